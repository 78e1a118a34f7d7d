//! The test bed of Millrace: what a test, a benchmark or the demo needs around the product.
//!
//! ```text
//!   producer (any AWS client) -> kinesis (emulator) -> [ Millrace ] -> clickhouse (real engine)
//!                                                        |
//!                                                     postgres (real)            ledger: what was put, what arrived
//! ```

use std::{env, path::PathBuf};

pub mod clickhouse;
pub mod kinesis;
pub mod postgres;
pub mod faults;
pub mod process;
pub mod cluster;
pub mod events;
pub mod flow;
pub mod ledger;
pub mod native;
pub mod load;
pub mod producer;
pub mod timeline;
pub mod chaos;
pub mod type_cases;
/// The root of the repository that is tested: where cargo runs the test, not where it was built, because one build may serve
/// several clones.
///
/// # Panics
///
/// Where the test is not run by cargo.
#[must_use]
pub fn repository() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR for the tests that it runs");
    PathBuf::from(package)
        .parent()
        .expect("the package is in the repository")
        .to_path_buf()
}

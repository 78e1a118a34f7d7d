//! The test bed of Millrace: what a test, a benchmark or the demo needs around the product.
//!
//! ```text
//!   producer (any AWS client) -> kinesis (emulator) -> [ Millrace ] -> clickhouse (real engine)
//!                                                        |
//!                                                     postgres (real)            ledger: what was put, what arrived
//! ```

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

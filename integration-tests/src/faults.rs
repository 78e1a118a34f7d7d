//! Faults of the network: a proxy in front of any TCP server, and scripts that say what becomes of each connection.
//!
//! ```text
//!   client -> Proxy (Script: delay, throttle, freeze, cut, reset, refuse, duplicate) -> upstream
//! ```
//!
//! It works on bytes, so gRPC, HTTP and PostgreSQL are all the same to it. Only to send a request twice does it look at the
//! bytes, and only at HTTP/1.1.

mod bed;
mod http1;
mod proxy;
mod script;
mod verdicts;

pub use bed::{Bed, LEASE_TTL, LIMIT, PIPE, Row, Setup};
pub use proxy::{Counts, Proxy};
pub use script::{Cut, Direction, Duplicate, End, Script};
pub use verdicts::{Outcome, Verdicts};

//! What both planes of Millrace share. The planes know each other only through this crate and the wire protocol.
//!
//! ```text
//!   user -> pipe (what is wanted) -> position, batch, gap (what was read) -> clickhouse (where it goes)
//!
//!   ids, reason, error, proto_json, clock, shutdown, grpc, aws, crypto, config, failpoint, telemetry: under all of it
//! ```

pub mod ids;
pub mod pipe;
pub mod json_pointer;
pub mod proto_json;
pub mod reason;
pub mod position;
pub mod batch;
pub mod gap;
pub mod clickhouse;
pub mod error;
pub mod clock;
pub mod shutdown;
pub mod grpc;
pub mod retry;
pub mod aws;
pub mod crypto;
pub mod config;
pub mod failpoint;
pub mod telemetry;

//! The data plane: a worker reads Kinesis shards, decodes JSON straight into columns and inserts native ClickHouse blocks.
//! It stores nothing: kill it at any instruction and nothing is lost or doubled.
//!
//! ```text
//!   control plane == session ==> supervisor --> lane (one pipe)
//!                                                |
//!            source (readers, one per shard) -> decode -> batch (cut, block) -> commit (prepare .. insert .. commit)
//!                                                                                  |
//!                                                                                sink -> ClickHouse
//! ```
//!
//! `sample` is beside that path: it shows people what the same code makes of a few records.
//!
//! Invariant: the Kinesis SDK is spoken only in `source`, ClickHouse only in `sink`, and generated protocol types only in
//! `session` and `commit`.

pub mod app;
pub mod config;
pub mod session;
mod short;
pub mod supervisor;
pub mod lane;
pub mod source;
pub mod decode;
pub mod batch;
pub mod sink;
pub mod commit;
pub mod sample;

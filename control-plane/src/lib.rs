//! The control plane: stores pipes and credentials, discovers shards, and assigns them to workers. It touches record data
//! only where a user asks to see some (`sample`).
//!
//! ```text
//!   users -- gRPC --> api ----> store <------------ protocol (what may be prepared, committed, granted: pure)
//!                      |          ^
//!                 destination     |   discovery (ListShards)
//!                      |          |       |
//!                  lifecycle      +-- coordinator -- scheduler (placement, lineage: pure)
//!                                 |       |
//!                               leader (of several control planes, the one that does all of this)
//!                                         |
//!   workers <-- one stream each, PrepareBatch, CommitBatch --> sessions
//! ```
//!
//! Invariant: SQL is spoken only in `store`, the Kinesis SDK only in `discovery`, the clickhouse crate only in `destination`,
//! and generated protocol types only at the edges (`api`, `sessions` and the `coordinator` behind it).

pub mod api;
pub mod app;
pub mod auth;
pub mod config;
pub mod coordinator;
pub mod destination;
pub mod discovery;
pub mod endpoint;
pub mod events;
pub mod leader;
pub mod lifecycle;
pub mod protocol;
pub mod rest;
pub mod sample;
pub mod scheduler;
pub mod sessions;
pub mod store;
mod tls;

//! What workers say and are told: one stream per worker, and the two calls that move a batch.
//!
//! ```text
//!   worker --Hello, Report, Leave--> session --> Registry <--snapshot-- coordinator
//!   worker <--Welcome, AssignmentSet-- session <--watch-- Registry <--offer-- coordinator
//!   worker --PrepareBatch, CommitBatch--> Service --> store
//! ```
//!
//! Nothing is decided here. A session notes what it hears in the [`Registry`], latest wins, and forwards the latest set; so
//! a worker costs one report and one set in memory however much it talks. Generated types end in [`convert`].
//!
//! Invariants: a session speaks for one process, and the newest session of a worker is the only one that is heard. Nothing
//! a peer sends is trusted: what does not parse closes its stream with INVALID_ARGUMENT.

pub mod convert;
mod gate;
mod registry;
mod report;
mod service;
mod session;

pub use gate::Gate;
pub use registry::{Leaving, Registry, WorkerSeen};
pub use report::{Capacity, Hello, LaneFault, LaneReport, Report, ShardReport};
pub use service::Service;

/// Oldest protocol version that is spoken here.
pub const PROTOCOL_MIN: u32 = 1;
/// Newest protocol version that is spoken here.
pub const PROTOCOL_MAX: u32 = 2;

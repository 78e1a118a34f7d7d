//! Who reads what. Everything here is pure: it takes a picture of the world and says what should be done about it; the
//! [`coordinator`](crate::coordinator) does it.
//!
//! ```text
//!   shards --lineage--> which may be read --+
//!   reports -----------> lease: who holds --+--> plan --> actions
//!   workers --placement: who should hold ---+
//! ```
//!
//! Nothing here is needed for correctness: the epochs in the store fence whoever acts on an old picture. It is needed for
//! order (children after parents) and for not wasting work.

pub mod lease;
pub mod lineage;
pub mod placement;
pub mod plan;

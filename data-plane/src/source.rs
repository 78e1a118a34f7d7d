//! Where records come from: one reader per shard, a page at a time, within one byte budget per worker.
//!
//! ```text
//!   Reader (one shard) -- permit from Budget --> GetRecords --> Page { records, permit } --> lane
//! ```
//!
//! Invariant: the Kinesis SDK is known only below this module, and none of its types leave it.
//! Invariant: a page's bytes are paid for in the [`Budget`] until whoever holds the page's [`Permit`] drops it.

mod budget;
mod error;
pub mod kinesis;
mod page;

pub use budget::{Budget, Permit};
pub use error::{Error, Trouble};
pub(crate) use page::{AGGREGATE_MAGIC, RECORD_OVERHEAD};
pub use page::{ChildShard, HashKeyRange, Page, Record, ShardEnd};

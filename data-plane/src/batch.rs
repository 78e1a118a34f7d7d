//! From rows to blocks: when to close a batch, and the block itself.

pub mod block;
pub mod cut;

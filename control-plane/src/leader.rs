//! Which of several control planes leads: holds worker sessions, plans, and looks at streams and tables.
//!
//! ```text
//!               row free or run out: term + 1
//!   following ------------------------------> leading(term) --renewed--.
//!       ^                                        |   ^                 |
//!       |                                        |   '-----------------'
//!       '-- row is another's, or not renewed in time, or asked to end --'
//! ```
//!
//! The row of the leader is in the database, and it ends by the database's clock. Each leadership has a [`Term`], higher
//! than all before it, and every write of a leader checks in its own transaction that its term is still the current one
//! ([`Store::fenced`](crate::store::Store::fenced)). So two processes may both believe that they lead, for a moment, and
//! waste work; they cannot both change anything. No clock is needed for that: the clocks only decide how soon another
//! takes over, and how soon a leader that has lost its row stops talking to workers.
//!
//! PrepareBatch and CommitBatch are fenced by the epochs of shards and by nothing else, so any control plane answers
//! them: batches go on moving while nobody leads.
//!
//! An SQLite file belongs to one process by its lock: that process leads at once and for as long as it runs.

mod decide;
mod elector;
mod tenure;

pub use decide::{Row, Step, Term, step};
pub use elector::{Elector, Handle, Options, Role, Seen};
pub use tenure::Tenure;

/// A control plane as the others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// This run of the process: a restart is another one.
    pub id: String,
    /// URL that workers dial; empty if nobody could.
    pub address: String,
}

impl Candidate {
    /// A new process at this address.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            id: ulid::Ulid::new().to_string(),
            address: address.into(),
        }
    }
}

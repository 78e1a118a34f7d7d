//! One leadership, as those who act under it see it.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Term;

/// A leadership. Clones share it.
///
/// It ends by this process's monotonic clock before the row in the database does, and whoever is about to tell workers
/// something asks [`Tenure::is_over`] first: a process that was frozen must not act on what it believed before.
#[derive(Debug, Clone)]
pub struct Tenure {
    term: Term,
    /// `None`: for as long as the process runs.
    until: Arc<Mutex<Option<Instant>>>,
    over: CancellationToken,
}

impl Tenure {
    /// A leadership that lasts until then, unless it is extended.
    #[must_use]
    pub fn new(term: Term, until: Instant) -> Self {
        Self {
            until: Arc::new(Mutex::new(Some(until))),
            ..Self::forever(term)
        }
    }

    /// The leadership of a process that has the database for itself.
    #[must_use]
    pub fn forever(term: Term) -> Self {
        Self {
            term,
            until: Arc::default(),
            over: CancellationToken::new(),
        }
    }

    /// Its term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// When it ends at the latest, as far as it is known now; `None`: never by itself.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        *self.until.lock()
    }

    /// Whether nothing may be done under it any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.is_cancelled() || self.until().is_some_and(|until| until <= Instant::now())
    }

    /// Cancelled when it is over.
    #[must_use]
    pub fn over(&self) -> &CancellationToken {
        &self.over
    }

    pub(super) fn extend(&self, until: Instant) {
        let mut current = self.until.lock();
        *current = (*current).map(|before| before.max(until));
    }

    pub(super) fn end(&self) {
        self.over.cancel();
    }
}

//! The byte budget that bounds a worker's memory.
//!
//! A reader takes a [`Permit`] for the most that a call may bring before it calls, resizes it to what came, and sends
//! it along with the bytes; dropping it gives the bytes back. Waiters are served in the order in which they came, so a
//! large request cannot be starved by small ones.
//!
//! A page may turn out larger than its permit, or than the whole budget. Its bytes are in memory by then, so the
//! permit grows at once and the budget runs a debt, which returned bytes pay off before anyone else gets any. A single
//! page larger than the budget thus passes, alone.
//!
//! It counts payload, not the allocator's view: a response being parsed costs more than its page for a moment.

use std::{cmp::Ordering, mem, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Most bytes that one request may ask for at once, because tokio's semaphore takes a `u32`.
const MAX_REQUEST: usize = u32::MAX as usize;

/// A number of bytes that many share.
#[derive(Debug)]
pub struct Budget {
    total: usize,
    free: Semaphore,
    /// Bytes that are held beyond `total`.
    debt: Mutex<usize>,
    parent: Option<Arc<Budget>>,
}

impl Budget {
    /// A budget of `total` bytes, at least one.
    pub fn new(total: usize) -> Arc<Self> {
        Arc::new(Self::build(total, None))
    }

    /// A part of this budget that never holds more than `limit` bytes of it (but for a page that turns out larger), so
    /// that one user whose bytes do not drain leaves some for the others.
    pub fn part(self: &Arc<Self>, limit: usize) -> Arc<Self> {
        Arc::new(Self::build(limit, Some(Arc::clone(self))))
    }

    fn build(total: usize, parent: Option<Arc<Budget>>) -> Self {
        let total = total.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            total,
            free: Semaphore::new(total),
            debt: Mutex::new(0),
            parent,
        }
    }

    /// Its size in bytes.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Bytes that are held now; more than [`Self::total`] while there is a debt.
    pub fn held(&self) -> usize {
        let debt = self.debt.lock();
        self.total - self.free.available_permits().min(self.total) + *debt
    }

    /// Waits until `bytes` are free and takes them; no more than the whole budget is ever waited for.
    /// Cancelling the wait gives up the place in the queue and nothing else.
    pub async fn acquire(self: &Arc<Self>, bytes: usize) -> Permit {
        let bytes = self
            .levels()
            .map(|level| level.total)
            .fold(bytes, usize::min)
            .min(MAX_REQUEST);
        let request = u32::try_from(bytes).unwrap_or(u32::MAX);
        // What was taken goes back by itself if the wait ends half-way.
        let mut taken = Vec::with_capacity(2);
        for level in self.levels() {
            // The semaphore is never closed, so there is always a permit.
            taken.push(level.free.acquire_many(request).await);
        }
        taken
            .into_iter()
            .flatten()
            .for_each(tokio::sync::SemaphorePermit::forget);
        Permit {
            budget: Arc::clone(self),
            bytes,
        }
    }

    /// A permit of no bytes, at once.
    pub fn empty(self: &Arc<Self>) -> Permit {
        Permit {
            budget: Arc::clone(self),
            bytes: 0,
        }
    }

    /// This budget and those that it is a part of.
    fn levels(&self) -> impl Iterator<Item = &Budget> {
        std::iter::successors(Some(self), |level| level.parent.as_deref())
    }

    fn take_now(&self, bytes: usize) {
        for level in self.levels() {
            let mut debt = level.debt.lock();
            *debt += bytes - level.free.forget_permits(bytes);
        }
    }

    fn give_back(&self, bytes: usize) {
        for level in self.levels() {
            let mut debt = level.debt.lock();
            let paid = bytes.min(*debt);
            *debt -= paid;
            level.free.add_permits(bytes - paid);
        }
    }
}

/// Bytes of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Permit {
    /// How many bytes it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it hold `bytes`: what is too much goes back, what is missing is taken at once, as a debt if need be.
    pub fn resize(&mut self, bytes: usize) {
        match bytes.cmp(&self.bytes) {
            Ordering::Less => self.budget.give_back(self.bytes - bytes),
            Ordering::Greater => self.budget.take_now(bytes - self.bytes),
            Ordering::Equal => {}
        }
        self.bytes = bytes;
    }

    /// Adds another permit of the same budget to this one.
    pub fn merge(&mut self, mut other: Permit) {
        if Arc::ptr_eq(&self.budget, &other.budget) {
            self.bytes += mem::take(&mut other.bytes);
        } else {
            // Bytes of two budgets cannot be in one permit: they are paid anew here, and go back there.
            self.resize(self.bytes + other.bytes);
        }
    }

    /// Takes up to `bytes` out of it into a permit of their own.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Permit {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Permit {
            budget: Arc::clone(&self.budget),
            bytes,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, task::Poll};

    use futures::{FutureExt as _, poll};

    use super::*;

    fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
        future.now_or_never()
    }

    #[tokio::test]
    async fn bytes_come_back_when_permits_are_dropped() {
        let budget = Budget::new(100);
        let mut permit = budget.acquire(60).await;
        assert!(ready(budget.acquire(50)).is_none());
        permit.resize(20);
        assert_eq!(budget.held(), 20);
        let other = budget.acquire(50).await;
        assert_eq!(budget.held(), 70);
        drop((permit, other));
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn a_page_larger_than_the_budget_passes_alone() {
        let budget = Budget::new(100);
        let mut page = budget.acquire(1_000).await;
        assert_eq!(page.bytes(), 100);
        page.resize(350);
        assert_eq!(budget.held(), 350);
        assert!(ready(budget.acquire(1)).is_none());
        let rest = page.split(300);
        drop(page);
        assert_eq!(budget.held(), 300, "fifty bytes only paid off debt");
        assert!(ready(budget.acquire(1)).is_none());
        drop(rest);
        assert_eq!(budget.held(), 0);
        assert!(ready(budget.acquire(100)).is_some());
    }

    #[tokio::test]
    async fn small_requests_do_not_overtake_a_large_one() {
        let budget = Budget::new(100);
        let first = budget.acquire(50).await;
        let mut large = std::pin::pin!(budget.acquire(80));
        assert!(poll!(&mut large).is_pending());
        let mut small = std::pin::pin!(budget.acquire(10));
        assert!(
            poll!(&mut small).is_pending(),
            "forty bytes are free, but the large request came first"
        );
        drop(first);
        let Poll::Ready(_large) = poll!(&mut large) else {
            panic!("the large request gets its bytes")
        };
        assert!(poll!(&mut small).is_ready());
    }

    #[tokio::test]
    async fn a_part_is_bounded_and_counts_in_the_whole() {
        let budget = Budget::new(100);
        let part = budget.part(40);
        let held = part.acquire(1_000).await;
        assert_eq!((held.bytes(), part.held(), budget.held()), (40, 40, 40));
        assert!(ready(part.acquire(1)).is_none());
        let other = budget.acquire(60).await;
        drop(held);
        assert_eq!((part.held(), budget.held()), (0, 60));
        // A wait that ends half-way leaves nothing taken in the part.
        let more = budget.acquire(40).await;
        assert!(ready(part.acquire(10)).is_none());
        assert_eq!(part.held(), 0);
        drop((other, more));
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn permits_split_and_merge() {
        let budget = Budget::new(100);
        let mut permit = budget.acquire(90).await;
        let part = permit.split(30);
        assert_eq!((permit.bytes(), part.bytes()), (60, 30));
        permit.merge(part);
        assert_eq!((permit.bytes(), budget.held()), (90, 90));
        permit.merge(budget.empty());
        drop(permit);
        assert_eq!(budget.held(), 0);
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        #[derive(Debug, Clone)]
        enum Act {
            Acquire(usize),
            Resize(usize, usize),
            Drop(usize),
            Split(usize, usize),
        }

        fn act() -> impl Strategy<Value = Act> {
            prop_oneof![
                (0usize..300).prop_map(Act::Acquire),
                (any::<usize>(), 0usize..300).prop_map(|(at, bytes)| Act::Resize(at, bytes)),
                any::<usize>().prop_map(Act::Drop),
                (any::<usize>(), 0usize..300).prop_map(|(at, bytes)| Act::Split(at, bytes)),
            ]
        }

        proptest! {
            /// What is held is the sum of the permits, whatever happens to them, and all of it comes back.
            #[test]
            fn held_is_the_sum_of_permits(acts in prop::collection::vec(act(), 0..60)) {
                let budget = Budget::new(200);
                let mut permits: Vec<Permit> = Vec::new();
                for act in acts {
                    let count = permits.len();
                    match act {
                        Act::Acquire(bytes) => {
                            let free = 200usize.saturating_sub(budget.held());
                            let permit = ready(budget.acquire(bytes));
                            prop_assert_eq!(permit.is_some(), bytes.min(200) <= free);
                            permits.extend(permit);
                        }
                        Act::Resize(at, bytes) if count > 0 => permits[at % count].resize(bytes),
                        Act::Drop(at) if count > 0 => drop(permits.swap_remove(at % count)),
                        Act::Split(at, bytes) if count > 0 => {
                            let part = permits[at % count].split(bytes);
                            permits.push(part);
                        }
                        Act::Resize(..) | Act::Drop(_) | Act::Split(..) => {}
                    }
                    prop_assert_eq!(budget.held(), permits.iter().map(Permit::bytes).sum::<usize>());
                }
                permits.clear();
                prop_assert_eq!(budget.held(), 0);
                prop_assert!(ready(budget.acquire(200)).is_some());
            }
        }
    }
}

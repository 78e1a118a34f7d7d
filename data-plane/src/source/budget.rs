//! The byte budget that bounds a worker's memory.
//!
//! A reader takes a [`Permit`] for the most that a call may bring before it calls, resizes it to what came, and sends
//! it along with the bytes; dropping it gives the bytes back. Waiters of one user are served in the order in which they
//! came, so a large request cannot be starved by small ones.
//!
//! Each lane has a *part* of the worker's budget. A part may hold as many bytes as it leaves to the others: it gets more
//! only while, after that, at least as much is free as it holds. So a lane that is alone gets half, two that do not drain
//! get a third each, and however many do not drain, there is as much left for the next one as for each of them. A part
//! that holds nothing gets its first bytes as long as anything is free, even where that is less than it asks for: what a
//! call may bring at its worst is far more than what it mostly brings. Then nothing is free, so that one part at a time
//! can go beyond the budget, and by no more than [`overdraft`].
//!
//! A page may turn out larger than its permit, or than the whole budget. Its bytes are in memory by then, so the
//! permit grows at once and the budget runs a debt, which returned bytes pay off before anyone else gets any. A single
//! page larger than the budget thus passes, alone.
//!
//! It counts payload, not the allocator's view. What a response costs beyond its page while it is taken apart is reserved
//! before the call and given back with the answer.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// What holds of the whole budget itself instead of one of its parts.
const WHOLE: u64 = 0;

/// The most that the first bytes of a part may go beyond the budget: enough for the largest page with its body, and for a
/// batch of the usual size that is read again.
const MAX_OVERDRAFT: usize = 48 * 1024 * 1024;
/// And no more than this part of it: in a small budget pages are smaller too.
const OVERDRAFT_PART: usize = 4;

/// How far beyond a budget the first bytes of a part may go.
fn overdraft(total: usize) -> usize {
    (total / OVERDRAFT_PART).min(MAX_OVERDRAFT)
}

/// A number of bytes that many share, or one user's part of it.
#[derive(Debug)]
pub struct Budget {
    shared: Arc<Shared>,
    part: u64,
}

#[derive(Debug)]
struct Shared {
    total: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that are held; more than there are while there is a debt.
    held: usize,
    /// The most that were ever held.
    most: usize,
    /// Those of each part.
    parts: BTreeMap<u64, usize>,
    /// In the order in which they came.
    waiters: VecDeque<Waiter>,
    names: u64,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    part: u64,
    bytes: usize,
    granted: oneshot::Sender<()>,
}

impl State {
    fn name(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    fn fits(&self, total: usize, part: u64, bytes: usize) -> bool {
        let free = total.saturating_sub(self.held);
        match self.parts.get(&part) {
            Some(0) => bytes <= free || (free > 0 && bytes - free <= overdraft(total)),
            Some(own) => bytes <= free && own + bytes <= free - bytes,
            None => bytes <= free,
        }
    }

    fn take(&mut self, part: u64, bytes: usize) {
        self.held += bytes;
        self.most = self.most.max(self.held);
        if let Some(own) = self.parts.get_mut(&part) {
            *own += bytes;
        }
    }

    fn give_back(&mut self, part: u64, bytes: usize) {
        self.held = self.held.saturating_sub(bytes);
        if let Some(own) = self.parts.get_mut(&part) {
            *own = own.saturating_sub(bytes);
        }
    }

    /// Grants what can be granted: who waits holds up only what comes after it in its own part.
    fn serve(&mut self, total: usize) {
        let mut passed: BTreeSet<u64> = BTreeSet::new();
        let mut at = 0;
        while let Some(Waiter { part, bytes, .. }) = self.waiters.get(at) {
            let (part, bytes) = (*part, *bytes);
            if passed.contains(&part) || !self.fits(total, part, bytes) {
                passed.insert(part);
                at += 1;
                continue;
            }
            self.take(part, bytes);
            let gone = self
                .waiters
                .remove(at)
                .is_some_and(|waiter| waiter.granted.send(()).is_err());
            if gone {
                self.give_back(part, bytes);
            }
        }
    }
}

impl Budget {
    /// A budget of `total` bytes, at least one.
    pub fn new(total: usize) -> Arc<Self> {
        let shared = Shared {
            total: total.max(1),
            state: Mutex::default(),
        };
        Arc::new(Self {
            shared: Arc::new(shared),
            part: WHOLE,
        })
    }

    /// One user's part of this budget.
    pub fn part(self: &Arc<Self>) -> Arc<Self> {
        let mut state = self.shared.state.lock();
        let part = state.name();
        state.parts.insert(part, 0);
        drop(state);
        Arc::new(Self {
            shared: Arc::clone(&self.shared),
            part,
        })
    }

    /// Bytes that there are, for all parts together.
    pub fn total(&self) -> usize {
        self.shared.total
    }

    /// Bytes that are held now, of the part if it is one; more than [`Self::total`] while there is a debt.
    pub fn held(&self) -> usize {
        let state = self.shared.state.lock();
        state.parts.get(&self.part).copied().unwrap_or(state.held)
    }

    /// The most bytes that were ever held, by all parts together.
    pub fn most_held(&self) -> usize {
        self.shared.state.lock().most
    }

    /// Whether somebody waits for bytes of this part.
    pub fn is_short(&self) -> bool {
        self.shared
            .state
            .lock()
            .waiters
            .iter()
            .any(|waiter| waiter.part == self.part)
    }

    /// Waits until `bytes` are free and takes them; no more than the whole budget is ever waited for.
    /// Cancelling the wait gives up the place in the queue and nothing else.
    pub async fn acquire(self: &Arc<Self>, bytes: usize) -> Permit {
        let bytes = bytes.min(self.shared.total);
        let waiting = {
            let mut state = self.shared.state.lock();
            let first = state.waiters.iter().all(|waiter| waiter.part != self.part);
            if first && state.fits(self.shared.total, self.part, bytes) {
                state.take(self.part, bytes);
                None
            } else {
                let (granted, grant) = oneshot::channel();
                let (id, part) = (state.name(), self.part);
                state.waiters.push_back(Waiter {
                    id,
                    part,
                    bytes,
                    granted,
                });
                Some(Waiting {
                    budget: self,
                    id,
                    bytes,
                    grant: Some(grant),
                })
            }
        };
        if let Some(waiting) = waiting {
            waiting.granted().await;
        }
        Permit {
            budget: Arc::clone(self),
            bytes,
        }
    }

    /// Takes `bytes` if they are free and nobody of this part waits.
    pub fn try_acquire(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let mut state = self.shared.state.lock();
        let first = state.waiters.iter().all(|waiter| waiter.part != self.part);
        let free = self.shared.total.saturating_sub(state.held);
        if !first || bytes > free || !state.fits(self.shared.total, self.part, bytes) {
            return None;
        }
        state.take(self.part, bytes);
        drop(state);
        Some(Permit {
            budget: Arc::clone(self),
            bytes,
        })
    }

    /// A permit of no bytes, at once.
    pub fn empty(self: &Arc<Self>) -> Permit {
        Permit {
            budget: Arc::clone(self),
            bytes: 0,
        }
    }

    fn take_now(&self, bytes: usize) {
        self.shared.state.lock().take(self.part, bytes);
    }

    fn give_back(&self, bytes: usize) {
        let mut state = self.shared.state.lock();
        state.give_back(self.part, bytes);
        state.serve(self.shared.total);
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        // Its permits and its waiters are gone: they had a share in it.
        self.shared.state.lock().parts.remove(&self.part);
    }
}

/// A place in the queue.
struct Waiting<'a> {
    budget: &'a Budget,
    id: u64,
    bytes: usize,
    grant: Option<oneshot::Receiver<()>>,
}

impl Waiting<'_> {
    async fn granted(mut self) {
        if let Some(grant) = &mut self.grant {
            // The other end is in the queue until it is used.
            let _ = grant.await;
        }
        self.grant = None;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.grant.is_none() {
            return;
        }
        let Shared { total, state } = &*self.budget.shared;
        let mut state = state.lock();
        let before = state.waiters.len();
        state.waiters.retain(|waiter| waiter.id != self.id);
        if state.waiters.len() == before {
            // It was granted, and nobody has noticed.
            state.give_back(self.budget.part, self.bytes);
        }
        state.serve(*total);
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

    /// Takes pieces of a part until it gets no more.
    fn fill(part: &Arc<Budget>, piece: usize) -> Vec<Permit> {
        std::iter::from_fn(|| ready(part.acquire(piece))).collect()
    }

    #[tokio::test]
    async fn a_part_holds_no_more_than_it_leaves() {
        let budget = Budget::new(600);
        let (one, two, three) = (budget.part(), budget.part(), budget.part());
        let mut stuck = fill(&one, 10);
        assert_eq!((one.held(), budget.held()), (300, 300), "alone it gets half");
        stuck.truncate(20);
        let other = fill(&two, 10);
        assert_eq!((one.held(), two.held()), (200, 200), "two get a third each");
        let flowing = fill(&three, 10);
        assert_eq!(
            three.held(),
            100,
            "and the next has half of what is left, however stuck they are"
        );
        assert!(!three.is_short(), "who gave up waiting does not wait");
        drop((stuck, other, flowing));
        assert_eq!((budget.held(), one.held()), (0, 0));
        // The first bytes of a part need only be free; more than there are is never waited for.
        let all = ready(one.acquire(1_000)).expect("it is all free");
        assert_eq!(all.bytes(), 600);
        assert!(ready(two.acquire(1)).is_none());
        drop(all);
    }

    #[tokio::test]
    async fn a_part_that_holds_nothing_gets_more_than_is_left() {
        let (total, page) = (100 << 20, 20 << 20);
        let budget = Budget::new(total);
        let (stuck, next, last) = (budget.part(), budget.part(), budget.part());
        let held = ready(stuck.acquire(total - 1)).expect("it is all free");
        assert!(next.try_acquire(page).is_none(), "only who waits may go beyond");
        assert!(ready(next.acquire(overdraft(total) + 2)).is_none(), "that is too far");
        let mut first = ready(next.acquire(page)).expect("one byte is free");
        assert_eq!(budget.held(), total - 1 + page);
        let mut waits = std::pin::pin!(last.acquire(1));
        assert!(poll!(&mut waits).is_pending(), "nothing is free now");
        assert!(ready(next.acquire(1)).is_none(), "and it holds something");
        // What came was less than what might have come.
        first.resize(1);
        assert!(poll!(&mut waits).is_pending());
        first.resize(0);
        assert!(poll!(&mut waits).is_ready());
        drop((held, first));
    }

    #[tokio::test]
    async fn a_part_that_waits_holds_up_nobody_else() {
        let budget = Budget::new(100);
        let (one, two) = (budget.part(), budget.part());
        let mut held = ready(one.acquire(50)).expect("free");
        let mut more = std::pin::pin!(one.acquire(10));
        assert!(poll!(&mut more).is_pending());
        assert!(one.is_short() && !two.is_short());
        let other = ready(two.acquire(20)).expect("the other part has not had its share");
        held.resize(20);
        let Poll::Ready(more) = poll!(&mut more) else {
            panic!("it holds no more than is free now")
        };
        assert_eq!((one.held(), two.held(), budget.held()), (30, 20, 50));
        // A grant that nobody has noticed goes back.
        let mut unseen = Box::pin(two.acquire(40));
        assert!(poll!(&mut unseen).is_pending());
        drop((held, more, other));
        drop(unseen);
        assert_eq!(budget.held(), 0);
        assert!(ready(two.acquire(100)).is_some());
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
            /// However many parts take what they get and hold it, they are never beyond the budget by more than one of
            /// the requests.
            #[test]
            fn parts_stay_within_the_budget(asked in prop::collection::vec((0usize..8, 1usize..400), 0..80)) {
                let budget = Budget::new(1_000);
                let parts: Vec<_> = (0..8).map(|_| budget.part()).collect();
                let mut permits: Vec<Permit> = Vec::new();
                for (part, bytes) in asked {
                    let (free, own) = (1_000usize.saturating_sub(budget.held()), parts[part].held());
                    let permit = ready(parts[part].acquire(bytes));
                    let may = own == 0 && free > 0 && bytes <= free + overdraft(1_000);
                    prop_assert!(permit.is_some() || !may, "{} of {}", bytes, free);
                    permits.extend(permit);
                    prop_assert!(budget.held() <= 1_000 + overdraft(1_000));
                }
                permits.clear();
                prop_assert_eq!(budget.held(), 0);
            }

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

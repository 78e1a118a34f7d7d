//! The line in which the inserts of a lane stand when the destination is in trouble.
//!
//! While all is well inserts go side by side. When one fails in a way that has to do with the destination, every later one
//! waits until it is through: so after an outage what was sent before it comes first, in its order, and nothing new goes in
//! before. That matters because ClickHouse remembers tokens relative to its newest insert: what was perhaps applied before
//! the outage must be asked about before anything newer pushes its token out. It also leaves one attempt at a time for a
//! server that is down or overloaded. Those that came while there was trouble go one after the other when it is over; those
//! that come later wait for them, and then go side by side again.
//!
//! Invariants:
//! - the oldest insert in line never waits for another one, so the line always moves;
//! - an insert that is given up leaves the line.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The line of one lane.
#[derive(Debug, Clone, Default)]
pub(super) struct Line(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    places: Mutex<Places>,
    moved: Notify,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    /// By age.
    standing: BTreeMap<u64, Standing>,
}

/// How an insert stands in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nobody has to wait for it.
    Well,
    /// It came while there was trouble.
    Queued,
    /// Its last attempt has failed.
    Troubled,
}

/// A place in the line; dropping it leaves the line.
#[derive(Debug)]
pub(super) struct Place {
    line: Line,
    number: u64,
}

impl Line {
    /// Takes the last place.
    pub(super) fn enter(&self) -> Place {
        let mut places = self.0.places.lock();
        let number = places.next;
        places.next += 1;
        let trouble = places.standing.values().any(|standing| *standing == Standing::Troubled);
        let standing = if trouble { Standing::Queued } else { Standing::Well };
        places.standing.insert(number, standing);
        Place {
            line: self.clone(),
            number,
        }
    }
}

impl Place {
    /// Waits until no older insert is in trouble, or has come while there was trouble.
    pub(super) async fn turn(&self) {
        loop {
            let moved = self.line.0.moved.notified();
            tokio::pin!(moved);
            // From here on no move is missed.
            moved.as_mut().enable();
            if self.is_next() {
                return;
            }
            moved.await;
        }
    }

    fn is_next(&self) -> bool {
        let places = self.line.0.places.lock();
        let mut older = places.standing.range(..self.number);
        older.all(|(_, standing)| *standing == Standing::Well)
    }

    /// Whether the last attempt has failed for a reason that later inserts would meet as well. Trouble stays until the
    /// place is left or the reason has changed.
    pub(super) fn set_troubled(&self, troubled: bool) {
        let standing = if troubled { Standing::Troubled } else { Standing::Well };
        self.line.0.places.lock().standing.insert(self.number, standing);
        if !troubled {
            self.line.0.moved.notify_waiters();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let before = self.line.0.places.lock().standing.remove(&self.number);
        if before != Some(Standing::Well) {
            self.line.0.moved.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn may_go(place: &Place) -> bool {
        place.turn().now_or_never().is_some()
    }

    #[test]
    fn all_go_side_by_side_until_one_is_in_trouble() {
        let line = Line::default();
        let places = [line.enter(), line.enter(), line.enter()];
        assert!(places.iter().all(may_go));
        places[1].set_troubled(true);
        assert_eq!(places.each_ref().map(may_go), [true, true, false]);
        places[0].set_troubled(true);
        assert_eq!(places.each_ref().map(may_go), [true, false, false]);
        let [first, second, third] = places;
        drop(first);
        assert!(may_go(&second) && !may_go(&third));
        second.set_troubled(false);
        assert!(may_go(&third));
    }

    #[test]
    fn what_came_in_trouble_goes_in_order_and_what_comes_later_side_by_side() {
        let line = Line::default();
        let first = line.enter();
        first.set_troubled(true);
        let (second, third) = (line.enter(), line.enter());
        drop(first);
        let (fourth, fifth) = (line.enter(), line.enter());
        let may = |places: &[&Place]| places.iter().map(|place| may_go(place)).collect::<Vec<_>>();
        assert_eq!(may(&[&second, &third, &fourth, &fifth]), [true, false, false, false]);
        drop(second);
        assert_eq!(may(&[&third, &fourth, &fifth]), [true, false, false]);
        drop(third);
        assert_eq!(may(&[&fourth, &fifth]), [true, true]);
    }

    #[tokio::test]
    async fn those_who_wait_are_woken_in_order() {
        let line = Line::default();
        let first = line.enter();
        first.set_troubled(true);
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = tokio::task::JoinSet::new();
        for number in 1..=3 {
            let (place, order) = (line.enter(), Arc::clone(&order));
            // Each was in flight when the trouble began, and failed too.
            place.set_troubled(true);
            waiting.spawn(async move {
                place.turn().await;
                order.lock().push(number);
            });
        }
        tokio::task::yield_now().await;
        assert!(order.lock().is_empty());
        drop(first);
        waiting.join_all().await;
        assert_eq!(*order.lock(), [1, 2, 3]);
    }
}

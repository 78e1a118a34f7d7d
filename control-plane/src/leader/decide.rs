//! What a control plane does about the leader's row: a pure function of what it holds and what it reads.

use std::{fmt, time::Duration};

/// Number of a leadership. It rises with each, and fences the writes of all before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(pub u64);

impl Term {
    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The row as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row {
    /// Who leads, or led last; empty if it has given up its place.
    pub holder: String,
    /// Its term.
    pub term: Term,
    /// Where workers find it; empty if they cannot.
    pub address: String,
    /// What is left of its time, by the database's clock.
    pub left: Duration,
}

impl Row {
    /// Whether somebody leads.
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.holder.is_empty() && !self.left.is_zero()
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Extend the own leadership.
    Renew(Term),
    /// Take the place, under this term.
    Acquire(Term),
    /// Another has the place now: stop leading.
    Lost,
    /// Another leads.
    Follow,
}

/// What `me` does, who leads under the term `held` or does not lead. `exclusive`: no other process can have the database
/// open, so whoever is in the row is dead.
///
/// A leader whose time ran out renews as long as nobody else came: that the time ran out is no news to it, and the term
/// tells whether anybody came.
#[must_use]
pub fn step(me: &str, held: Option<Term>, row: &Row, exclusive: bool) -> Step {
    let mine = row.holder == me;
    match held {
        Some(term) if mine && row.term == term => Step::Renew(term),
        Some(_) => Step::Lost,
        // Its own row, under a term that it has given up: nobody else is kept from anything.
        None if exclusive || mine || !row.is_held() => Step::Acquire(row.term.next()),
        None => Step::Follow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: Duration = Duration::from_secs(1);

    fn row(holder: &str, term: u64, left: Duration) -> Row {
        Row {
            holder: holder.to_owned(),
            term: Term(term),
            address: String::new(),
            left,
        }
    }

    #[test]
    fn every_state_meets_every_row() {
        let over = Duration::ZERO;
        let (led, renew) = (Some(Term(4)), Step::Renew(Term(4)));
        let take = |term| Step::Acquire(Term(term));
        // row, then what comes of it: following, following on an exclusive database, leading under term 4
        let cases = [
            (row("", 0, over), take(1), take(1), Step::Lost),
            (row("", 4, over), take(5), take(5), Step::Lost),
            (row("", 4, LEFT), take(5), take(5), Step::Lost),
            (row("other", 4, LEFT), Step::Follow, take(5), Step::Lost),
            (row("other", 4, over), take(5), take(5), Step::Lost),
            (row("other", 5, LEFT), Step::Follow, take(6), Step::Lost),
            (row("other", 5, over), take(6), take(6), Step::Lost),
            (row("me", 4, LEFT), take(5), take(5), renew),
            (row("me", 4, over), take(5), take(5), renew),
            (row("me", 5, LEFT), take(6), take(6), Step::Lost),
            (row("me", 3, over), take(4), take(4), Step::Lost),
        ];
        for (row, following, exclusive, leading) in cases {
            assert_eq!(step("me", None, &row, false), following, "{row:?}");
            assert_eq!(step("me", None, &row, true), exclusive, "{row:?}");
            assert_eq!(step("me", led, &row, false), leading, "{row:?}");
            assert_eq!(step("me", led, &row, true), leading, "{row:?}");
        }
    }

    /// Three processes step in any order, while time passes and messages are late: what each of them decided is done
    /// only if the row is still as it was read, as the store does it.
    #[test]
    fn terms_rise_and_none_is_given_twice() {
        let names = ["a", "b", "c"];
        for seed in 0..2_000_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut draw = |bound: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % bound
            };
            let mut current = row("", 0, Duration::ZERO);
            let mut held: [Option<Term>; 3] = [None; 3];
            let mut given = std::collections::BTreeMap::new();
            for _ in 0..60 {
                let index = usize::try_from(draw(3)).unwrap();
                match draw(4) {
                    0 => current.left = Duration::ZERO,
                    // A process that restarts, or steps down by its own clock.
                    1 => held[index] = None,
                    _ => match step(names[index], held[index], &current, false) {
                        Step::Renew(term) => {
                            assert_eq!(current.term, term);
                            current.left = LEFT;
                        }
                        Step::Acquire(term) => {
                            assert!(term > current.term, "a term rises");
                            assert_eq!(given.insert(term, names[index]), None, "a term is given once");
                            current = row(names[index], term.0, LEFT);
                            held[index] = Some(term);
                        }
                        Step::Lost => {
                            assert!(held[index].is_some_and(|term| term < current.term) || current.holder.is_empty());
                            held[index] = None;
                        }
                        Step::Follow => assert!(held[index].is_none() && current.is_held()),
                    },
                }
                let valid = held.iter().flatten().filter(|term| **term == current.term).count();
                assert!(valid <= 1, "one at most can write");
            }
        }
    }
}

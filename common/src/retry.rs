//! When to try again: exponential backoff with full jitter. Pure: whoever uses it does the waiting.

use std::time::Duration;

use rand::Rng as _;

/// Backoff from `first` to `longest`. Each delay is drawn between half of the current bound and the bound, so that many
/// callers that failed together do not come back together, and none of them comes back at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    bound: Duration,
}

impl Backoff {
    /// A backoff whose first delay is at most `first`, and whose last ones are at most `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            bound: first,
        }
    }

    /// The next delay. The bound doubles each time.
    pub fn delay(&mut self) -> Duration {
        let bound = self.bound;
        self.bound = bound.saturating_mul(2).min(self.longest);
        bound.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// It worked: start from the first delay again.
    pub fn reset(&mut self) {
        self.bound = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_rise_to_the_longest_and_start_again() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(first, longest);
        let mut bound = first;
        for _ in 0..20 {
            let delay = backoff.delay();
            assert!(
                delay >= bound / 2 && delay <= bound,
                "{delay:?} is not in the upper half of {bound:?}"
            );
            bound = (bound * 2).min(longest);
        }
        assert_eq!(bound, longest);
        backoff.reset();
        assert!(backoff.delay() <= first);
    }
}

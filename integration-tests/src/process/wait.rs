//! Waiting for a condition, never for a time.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

/// The first pause between two probes. Most conditions on one machine hold within a few milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The longest pause between two probes: short beside any limit a test uses, long enough not to burden two cores.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// What a probe may answer: "yes, this" or "not yet, because".
pub trait Outcome {
    /// What the probe yields once the condition holds.
    type Value;

    /// The value, or why there is none yet.
    fn settle(self) -> Result<Self::Value, String>;
}

impl Outcome for bool {
    type Value = ();

    fn settle(self) -> Result<(), String> {
        if self {
            Ok(())
        } else {
            Err("it does not hold yet".to_owned())
        }
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;

    fn settle(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing yet".to_owned())
    }
}

impl<T, E: Display> Outcome for Result<T, E> {
    type Value = T;

    fn settle(self) -> Result<T, String> {
        self.map_err(|error| format!("{error:#}"))
    }
}

/// A condition did not hold within its limit.
#[derive(Debug, thiserror::Error)]
#[error("waited {waited:?} for {what}; last answer: {last}")]
pub struct TimedOut {
    /// What was waited for, in the caller's words.
    pub what: String,
    /// How long.
    pub waited: Duration,
    /// What the last probe said.
    pub last: String,
}

/// Calls `probe` until it says yes, at most for `limit`; a probe that is still running at the limit is dropped.
///
/// ```text
/// eventually("the table has 10 rows", Duration::from_secs(5), || async { count().await == 10 }).await?;
/// ```
///
/// # Errors
/// [`TimedOut`] with the probe's last answer.
pub async fn eventually<P, F, O>(what: &str, limit: Duration, mut probe: P) -> Result<O::Value, TimedOut>
where
    P: FnMut() -> F,
    F: Future<Output = O>,
    O: Outcome,
{
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut last = "no answer at all".to_owned();
    loop {
        let left = limit.saturating_sub(began.elapsed());
        match tokio::time::timeout(left, probe()).await {
            Ok(outcome) => match outcome.settle() {
                Ok(value) => return Ok(value),
                Err(reason) => last = reason,
            },
            Err(_) => {
                return Err(TimedOut {
                    what: what.to_owned(),
                    waited: began.elapsed(),
                    last,
                });
            }
        }
        if began.elapsed() >= limit {
            return Err(TimedOut {
                what: what.to_owned(),
                waited: began.elapsed(),
                last,
            });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn yields_the_first_value() {
        let calls = AtomicU32::new(0);
        let got = eventually("three calls", Duration::from_secs(5), || async {
            let call = calls.fetch_add(1, Ordering::Relaxed);
            (call >= 2).then_some(call)
        })
        .await;
        assert_eq!(got.expect("third call says yes"), 2);
    }

    #[tokio::test]
    async fn gives_up_with_the_last_reason() {
        let got = eventually("a miracle", Duration::from_millis(30), || async {
            Err::<(), _>("no wine")
        })
        .await;
        let message = got.expect_err("it never holds").to_string();
        assert!(
            message.contains("a miracle") && message.contains("no wine"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn drops_a_probe_that_hangs() {
        let got = eventually("an answer", Duration::from_millis(30), std::future::pending::<bool>).await;
        assert!(got.is_err());
    }
}

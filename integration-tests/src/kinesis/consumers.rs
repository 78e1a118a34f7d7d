//! Registered consumers of one stream, and who is subscribed with them to which shard.
//!
//! The rules are those of the API reference: RegisterStreamConsumer ("up to 20 consumers per stream", "only 5 consumers can
//! be created simultaneously"), DeregisterStreamConsumer, and SubscribeToShard ("within 5 seconds of a successful call, you'll
//! get a ResourceInUseException"; "5 seconds or more after a successful call, the second call takes over the subscription").
//!
//! Invariants: a name is taken until its consumer is gone; an ARN is never given twice, because it ends with the second of
//! registration and that rises; per consumer and shard at most one subscription is not ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::error::{Error, ErrorKind};
use super::shard::seconds;

/// "You can register up to 20 consumers per stream."
const MAX_CONSUMERS: usize = 20;
/// "Only 5 consumers can be created simultaneously."
const MAX_CREATING: usize = 5;
/// Until then nobody else may subscribe to the shard with the same consumer.
pub(super) const TAKE_OVER_MS: i64 = 5_000;
/// "You can make one call to SubscribeToShard per second per registered consumer per shard."
const CALL_INTERVAL_MS: i64 = 1_000;

/// One registered consumer.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) name: String,
    pub(super) arn: String,
    pub(super) created_s: u64,
    active_from_ms: i64,
    /// When it began to be deleted; [`i64::MAX`] if it was not.
    deleting_from_ms: AtomicI64,
    /// Nobody may read with it any more.
    pub(super) ended: CancellationToken,
    shards: Mutex<BTreeMap<u32, Shard>>,
}

/// What is known of a consumer and one shard.
#[derive(Debug, Default)]
struct Shard {
    called_ms: Option<i64>,
    subscribed_ms: Option<i64>,
    current: CancellationToken,
    subscriptions: u64,
}

impl Consumer {
    pub(super) fn status(&self, now_ms: i64) -> &'static str {
        if now_ms >= self.deleting_from_ms.load(Ordering::Relaxed) {
            "DELETING"
        } else if now_ms < self.active_from_ms {
            "CREATING"
        } else {
            "ACTIVE"
        }
    }

    /// Makes the caller the one subscriber to a shard. The token is cancelled when another one takes over.
    pub(super) fn subscribe(&self, shard: u32, now_ms: i64, enforce_limits: bool) -> Result<CancellationToken, Error> {
        let in_use = |message: String| Err(Error::new(ErrorKind::ResourceInUse, message));
        let status = self.status(now_ms);
        if status != "ACTIVE" {
            return in_use(format!(
                "Consumer {} is not ACTIVE, instead in state {status}",
                self.arn
            ));
        }
        let mut shards = self.shards.lock();
        let known = shards.entry(shard).or_default();
        let too_often = known.called_ms.is_some_and(|at| now_ms < at + CALL_INTERVAL_MS);
        known.called_ms = Some(now_ms);
        if enforce_limits && too_often {
            let message = format!("Rate of SubscribeToShard exceeded for consumer {}.", self.arn);
            return Err(Error::new(ErrorKind::LimitExceeded, message));
        }
        if known.subscribed_ms.is_some_and(|at| now_ms < at + TAKE_OVER_MS) {
            return in_use(format!(
                "Another active subscription exists for this consumer: {}",
                self.arn
            ));
        }
        known.current.cancel();
        known.current = CancellationToken::new();
        known.subscribed_ms = Some(now_ms);
        known.subscriptions += 1;
        Ok(known.current.clone())
    }

    /// How many subscriptions to a shard began.
    pub(super) fn subscriptions(&self, shard: u32) -> u64 {
        self.shards.lock().get(&shard).map_or(0, |known| known.subscriptions)
    }
}

/// The registered consumers of a stream.
#[derive(Debug)]
pub(super) struct Consumers {
    transition: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    by_name: BTreeMap<String, Arc<Consumer>>,
    last_created_s: u64,
}

impl Consumers {
    pub(super) fn new(transition: Duration) -> Self {
        Self {
            transition,
            state: Mutex::default(),
        }
    }

    pub(super) fn register(&self, stream_arn: &str, name: &str, now_ms: i64) -> Result<Arc<Consumer>, Error> {
        let mut state = self.state.lock();
        state.forget_gone(now_ms, self.transition);
        if state.by_name.contains_key(name) {
            return Err(Error::new(
                ErrorKind::ResourceInUse,
                format!("Consumer {name} under stream {stream_arn} already exists."),
            ));
        }
        let creating = state
            .by_name
            .values()
            .filter(|c| c.status(now_ms) == "CREATING")
            .count();
        for (count, limit, what) in [
            (state.by_name.len(), MAX_CONSUMERS, "registered"),
            (creating, MAX_CREATING, "being created"),
        ] {
            if count >= limit {
                return Err(Error::new(
                    ErrorKind::LimitExceeded,
                    format!("Stream {stream_arn} has {count} consumers {what}. Limit: {limit}."),
                ));
            }
        }
        let created_s = seconds(now_ms).max(state.last_created_s + 1);
        state.last_created_s = created_s;
        let consumer = Arc::new(Consumer {
            name: name.to_owned(),
            arn: format!("{stream_arn}/consumer/{name}:{created_s}"),
            created_s,
            active_from_ms: now_ms.saturating_add(millis(self.transition)),
            deleting_from_ms: AtomicI64::new(i64::MAX),
            ended: CancellationToken::new(),
            shards: Mutex::default(),
        });
        state.by_name.insert(name.to_owned(), Arc::clone(&consumer));
        Ok(consumer)
    }

    /// All that are not gone, in the order of their names.
    pub(super) fn all(&self, now_ms: i64) -> Vec<Arc<Consumer>> {
        let mut state = self.state.lock();
        state.forget_gone(now_ms, self.transition);
        state.by_name.values().cloned().collect()
    }

    pub(super) fn by_name(&self, name: &str, now_ms: i64) -> Option<Arc<Consumer>> {
        let mut state = self.state.lock();
        state.forget_gone(now_ms, self.transition);
        state.by_name.get(name).cloned()
    }

    /// By an ARN, which names one consumer for ever: not a later one of the same name.
    pub(super) fn by_arn(&self, arn: &str, now_ms: i64) -> Option<Arc<Consumer>> {
        self.all(now_ms).into_iter().find(|consumer| consumer.arn == arn)
    }

    pub(super) fn deregister(&self, consumer: &Consumer, now_ms: i64) {
        let deleting_from = &consumer.deleting_from_ms;
        // Asked a second time, it goes on being deleted as it was.
        let _ = deleting_from.compare_exchange(i64::MAX, now_ms, Ordering::Relaxed, Ordering::Relaxed);
        consumer.ended.cancel();
    }

    /// The stream is deleted, and its consumers with it.
    pub(super) fn deregister_all(&self, now_ms: i64) {
        for consumer in self.all(now_ms) {
            self.deregister(&consumer, now_ms);
        }
    }
}

impl State {
    fn forget_gone(&mut self, now_ms: i64, transition: Duration) {
        self.by_name.retain(|_, consumer| {
            let gone_from = consumer
                .deleting_from_ms
                .load(Ordering::Relaxed)
                .saturating_add(millis(transition));
            now_ms < gone_from
        });
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kinesis:us-east-1:000000000000:stream/s";
    const NOW: i64 = 1_760_000_000_000;

    fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind)
    }

    #[test]
    fn a_subscription_is_safe_for_five_seconds_and_is_taken_over_then() {
        let consumers = Consumers::new(Duration::ZERO);
        let consumer = consumers.register(ARN, "c", NOW).expect("the first");
        let first = consumer.subscribe(0, NOW, false).expect("free");
        assert_eq!(
            kind(consumer.subscribe(0, NOW + TAKE_OVER_MS - 1, false)),
            Some(ErrorKind::ResourceInUse)
        );
        assert!(!first.is_cancelled());
        assert!(consumer.subscribe(1, NOW, false).is_ok(), "another shard");
        let second = consumer.subscribe(0, NOW + TAKE_OVER_MS, false).expect("taken over");
        assert!(first.is_cancelled() && !second.is_cancelled());
        assert_eq!(consumer.subscriptions(0), 2);
    }

    #[test]
    fn one_call_a_second_per_shard_where_limits_hold() {
        let consumers = Consumers::new(Duration::ZERO);
        let consumer = consumers.register(ARN, "c", NOW).expect("the first");
        assert!(consumer.subscribe(0, NOW, true).is_ok());
        assert_eq!(
            kind(consumer.subscribe(0, NOW + 999, true)),
            Some(ErrorKind::LimitExceeded)
        );
        assert_eq!(
            kind(consumer.subscribe(0, NOW + 2_000, true)),
            Some(ErrorKind::ResourceInUse)
        );
    }

    #[test]
    fn five_are_created_at_a_time_and_twenty_are_kept() {
        let consumers = Consumers::new(Duration::from_secs(10));
        let register = |i: i64, now| kind(consumers.register(ARN, &format!("c{i}"), now));
        assert!((0..5).all(|i| register(i, NOW).is_none()));
        assert_eq!(register(5, NOW), Some(ErrorKind::LimitExceeded));
        for round in 1..4 {
            let now = NOW + round * 10_000;
            assert!((0..5).all(|i| register(round * 5 + i, now).is_none()), "{round}");
        }
        assert_eq!(register(20, NOW + 40_000), Some(ErrorKind::LimitExceeded));
        let one = consumers.by_name("c7", NOW + 40_000).expect("registered");
        consumers.deregister(&one, NOW + 40_000);
        assert_eq!(one.status(NOW + 40_000), "DELETING");
        assert_eq!(register(7, NOW + 40_000), Some(ErrorKind::ResourceInUse));
        assert_eq!(register(7, NOW + 50_000), None);
        let again = consumers.by_name("c7", NOW + 50_000).expect("registered");
        assert_ne!(again.arn, one.arn);
        assert!(consumers.by_arn(&one.arn, NOW + 50_000).is_none());
    }
}

//! Faults by script: which call, or which event of a subscription, fails how, and how often.
//!
//! ```text
//!   Rule::on_call(GetRecords).of_shard(2).after(3).times(1).fails(Fault::Error(KmsThrottling))
//! ```
//!
//! A rule counts what it matches. Rules are asked in the order in which they were added, and the first that strikes is the one
//! that counts; a call that one rule struck is not counted by those after it. What a rule may strike is wider than what the service does:
//! [`documented`] says which errors the API reference names for a call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::RwLock;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::error::ErrorKind;
use super::operations::Operation;

/// What happens instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The call is refused; in a subscription, the error is its last event.
    Error(ErrorKind),
    /// The call is answered with this status and no body.
    Status(StatusCode),
    /// The call is answered this much later, by real time.
    Delay(Duration),
    /// The TCP connection is reset.
    Reset,
    /// The event's checksum is wrong; nothing follows.
    BadCrc,
    /// The checksum of the event's lengths is wrong; nothing follows.
    BadPreludeCrc,
    /// The body ends in the middle of an event, as if that were its end.
    CutFrame,
    /// The stream is reset in the middle of an event.
    Break,
    /// Nothing comes any more, and nothing ends.
    Stall,
    /// The same, in the middle of an event.
    StallInFrame,
    /// The body ends before the event.
    End,
    /// An event of a type that nobody knows comes first.
    UnknownEvent,
    /// The event comes twice.
    Repeat,
    /// The connection says that it takes no more requests (HTTP/2), or is closed after this response (HTTP/1.1).
    GoAway,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Call(Option<Operation>),
    Event,
}

/// When a fault strikes.
#[derive(Clone, Debug)]
pub struct Rule {
    at: At,
    stream: Option<String>,
    shard: Option<u32>,
    after: u64,
    times: u64,
    rate: Option<(f64, u64)>,
    fault: Fault,
}

impl Rule {
    /// Strikes calls of one operation, from the first on.
    #[must_use]
    pub fn on_call(operation: Operation, fault: Fault) -> Self {
        Self::new(At::Call(Some(operation)), fault)
    }

    /// Strikes any call.
    #[must_use]
    pub fn on_any_call(fault: Fault) -> Self {
        Self::new(At::Call(None), fault)
    }

    /// Strikes events of subscriptions.
    #[must_use]
    pub fn on_event(fault: Fault) -> Self {
        Self::new(At::Event, fault)
    }

    fn new(at: At, fault: Fault) -> Self {
        Self {
            at,
            stream: None,
            shard: None,
            after: 0,
            times: u64::MAX,
            rate: None,
            fault,
        }
    }

    /// Only of this stream.
    #[must_use]
    pub fn of_stream(mut self, name: impl Into<String>) -> Self {
        self.stream = Some(name.into());
        self
    }

    /// Only of the shard with this number.
    #[must_use]
    pub fn of_shard(mut self, shard: u32) -> Self {
        self.shard = Some(shard);
        self
    }

    /// Lets so many pass first.
    #[must_use]
    pub fn after(mut self, passed: u64) -> Self {
        self.after = passed;
        self
    }

    /// Strikes so often and no more.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Strikes with this probability only, drawn from a seed.
    #[must_use]
    pub fn at_rate(mut self, rate: f64, seed: u64) -> Self {
        self.rate = Some((rate.clamp(0.0, 1.0), seed));
        self
    }
}

/// A rule at work.
#[derive(Debug)]
struct Active {
    rule: Rule,
    seen: AtomicU64,
    struck: Arc<AtomicU64>,
    dice: Option<parking_lot::Mutex<SmallRng>>,
}

impl Active {
    fn strikes(&self, at: At, stream: Option<&str>, shard: Option<u32>) -> bool {
        let rule = &self.rule;
        let same_place = match (rule.at, at) {
            (At::Call(wanted), At::Call(this)) => wanted.is_none() || wanted == this,
            (At::Event, At::Event) => true,
            _ => false,
        };
        let same_stream = rule.stream.is_none() || rule.stream.as_deref() == stream;
        let same_shard = rule.shard.is_none() || rule.shard == shard;
        if !(same_place && same_stream && same_shard) || self.seen.fetch_add(1, Ordering::Relaxed) < rule.after {
            return false;
        }
        if let (Some(dice), Some((rate, _))) = (&self.dice, rule.rate)
            && !dice.lock().random_bool(rate)
        {
            return false;
        }
        self.struck
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |struck| {
                (struck < rule.times).then_some(struck + 1)
            })
            .is_ok()
    }
}

/// How often a rule has struck.
#[derive(Clone, Debug)]
pub struct Strikes(Arc<AtomicU64>);

impl Strikes {
    /// Until now.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All rules of an emulator.
#[derive(Debug, Default)]
pub(super) struct Script {
    rules: RwLock<Vec<Active>>,
    count: AtomicUsize,
}

impl Script {
    pub(super) fn add(&self, rule: Rule) -> Strikes {
        let struck = Arc::new(AtomicU64::new(0));
        let dice = rule
            .rate
            .map(|(_, seed)| parking_lot::Mutex::new(SmallRng::seed_from_u64(seed)));
        let active = Active {
            rule,
            seen: AtomicU64::new(0),
            struck: Arc::clone(&struck),
            dice,
        };
        let mut rules = self.rules.write();
        rules.push(active);
        self.count.store(rules.len(), Ordering::Release);
        Strikes(struck)
    }

    pub(super) fn clear(&self) {
        let mut rules = self.rules.write();
        rules.clear();
        self.count.store(0, Ordering::Release);
    }

    /// Whether there is any rule: where there is none, nobody has to find out of which shard a call is.
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    pub(super) fn on_call(&self, operation: Operation, stream: Option<&str>, shard: Option<u32>) -> Option<Fault> {
        self.find(At::Call(Some(operation)), stream, shard)
    }

    pub(super) fn on_event(&self, stream: &str, shard: u32) -> Option<Fault> {
        if self.is_empty() {
            return None;
        }
        self.find(At::Event, Some(stream), Some(shard))
    }

    fn find(&self, at: At, stream: Option<&str>, shard: Option<u32>) -> Option<Fault> {
        let rules = self.rules.read();
        let struck = rules.iter().find(|active| active.strikes(at, stream, shard))?;
        Some(struck.rule.fault)
    }
}

/// The errors that the API reference names for a call, beside those that every call of AWS may answer ("Common Errors").
#[must_use]
pub fn documented(operation: Operation) -> &'static [ErrorKind] {
    use ErrorKind as E;
    const KMS: [ErrorKind; 6] = [
        E::KmsAccessDenied,
        E::KmsDisabled,
        E::KmsInvalidState,
        E::KmsNotFound,
        E::KmsOptInRequired,
        E::KmsThrottling,
    ];
    match operation {
        Operation::GetRecords => &[
            E::AccessDenied,
            E::ExpiredIterator,
            E::InternalFailure,
            E::InvalidArgument,
            KMS[0],
            KMS[1],
            KMS[2],
            KMS[3],
            KMS[4],
            KMS[5],
            E::ProvisionedThroughputExceeded,
            E::ResourceNotFound,
        ],
        Operation::PutRecord | Operation::PutRecords => &[
            E::AccessDenied,
            E::InternalFailure,
            E::InvalidArgument,
            KMS[0],
            KMS[1],
            KMS[2],
            KMS[3],
            KMS[4],
            KMS[5],
            E::ProvisionedThroughputExceeded,
            E::ResourceNotFound,
        ],
        Operation::GetShardIterator => &[
            E::AccessDenied,
            E::InternalFailure,
            E::InvalidArgument,
            E::ProvisionedThroughputExceeded,
            E::ResourceNotFound,
        ],
        Operation::ListShards => &[
            E::AccessDenied,
            E::ExpiredNextToken,
            E::InvalidArgument,
            E::LimitExceeded,
            E::ResourceInUse,
            E::ResourceNotFound,
        ],
        Operation::ListStreamConsumers => &[
            E::ExpiredNextToken,
            E::InvalidArgument,
            E::LimitExceeded,
            E::ResourceInUse,
            E::ResourceNotFound,
        ],
        Operation::RegisterStreamConsumer => &[
            E::InvalidArgument,
            E::LimitExceeded,
            E::ResourceInUse,
            E::ResourceNotFound,
        ],
        Operation::DeregisterStreamConsumer | Operation::DescribeStreamConsumer => {
            &[E::InvalidArgument, E::LimitExceeded, E::ResourceNotFound]
        }
        Operation::SubscribeToShard => &[
            E::AccessDenied,
            E::InvalidArgument,
            E::LimitExceeded,
            E::ResourceInUse,
            E::ResourceNotFound,
        ],
        Operation::ListStreams => &[E::ExpiredNextToken, E::InvalidArgument, E::LimitExceeded],
        Operation::DescribeLimits => &[E::LimitExceeded],
        Operation::DescribeStream | Operation::DescribeStreamSummary => &[
            E::AccessDenied,
            E::InvalidArgument,
            E::LimitExceeded,
            E::ResourceNotFound,
        ],
        Operation::ListTagsForStream => &[
            E::AccessDenied,
            E::InvalidArgument,
            E::LimitExceeded,
            E::ResourceNotFound,
        ],
        Operation::CreateStream => &[E::InvalidArgument, E::LimitExceeded, E::ResourceInUse, E::Validation],
        Operation::MergeShards
        | Operation::SplitShard
        | Operation::UpdateShardCount
        | Operation::UpdateMaxRecordSize => &[
            E::AccessDenied,
            E::InvalidArgument,
            E::LimitExceeded,
            E::ResourceInUse,
            E::ResourceNotFound,
            E::Validation,
        ],
        Operation::AddTagsToStream
        | Operation::RemoveTagsFromStream
        | Operation::DeleteStream
        | Operation::IncreaseStreamRetentionPeriod
        | Operation::DecreaseStreamRetentionPeriod => &[
            E::AccessDenied,
            E::InvalidArgument,
            E::LimitExceeded,
            E::ResourceInUse,
            E::ResourceNotFound,
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: Fault = Fault::Reset;

    #[test]
    fn a_rule_passes_some_and_strikes_some() {
        let script = Script::default();
        assert!(script.is_empty());
        let strikes = script.add(
            Rule::on_call(Operation::GetRecords, FAULT)
                .of_shard(2)
                .after(1)
                .times(2),
        );
        let call = |shard| script.on_call(Operation::GetRecords, Some("s"), Some(shard)).is_some();
        assert!(!call(1), "another shard");
        assert!(script.on_call(Operation::PutRecord, Some("s"), Some(2)).is_none());
        assert!(script.on_event("s", 2).is_none());
        assert_eq!([call(2), call(2), call(2), call(2)], [false, true, true, false]);
        assert_eq!(strikes.count(), 2);
        script.clear();
        assert!(script.is_empty());
    }

    #[test]
    fn a_rate_is_a_part_and_a_seed_is_always_the_same_part() {
        let struck = || {
            let script = Script::default();
            script.add(Rule::on_event(FAULT).at_rate(0.3, 7));
            (0..1_000)
                .map(|_| script.on_event("s", 0).is_some())
                .collect::<Vec<_>>()
        };
        let first = struck();
        let count = first.iter().filter(|struck| **struck).count();
        assert!((250..350).contains(&count), "{count}");
        assert_eq!(first, struck());
    }
}

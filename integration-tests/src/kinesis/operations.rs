//! The operations: one table of names and functions, and what the functions share.
//!
//! An operation is a plain function from state and JSON body to answer or error. It does not wait, so no lock can be
//! held across an await; what the HTTP side needs is in `wire`.

use std::borrow::Cow;
use std::str::FromStr;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::account::Account;
use super::error::{Error, ErrorKind};
use super::subscription::Subscription;

mod consumers;
mod records;
mod shards;
mod streams;
mod tags;

pub(super) use records::{MAX_BATCH_BYTES, MAX_BATCH_RECORDS};
pub(super) use shards::describe_child;
pub(super) use streams::new_settings;

/// Declares [`Operation`] from the table of names and functions.
macro_rules! operations {
    ($($name:ident => $function:path,)*) => {
        /// What can be asked of the emulator.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Operation {
            $(#[doc = concat!("`", stringify!($name), "`.")] $name,)*
        }

        impl Operation {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name after the dot of `X-Amz-Target`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            pub(super) fn execute(self, account: &Account, body: &[u8]) -> Result<Reply, Error> {
                match self { $(Self::$name => $function(account, body),)* }
            }
        }
    };
}

operations! {
    AddTagsToStream => tags::add,
    CreateStream => streams::create,
    DecreaseStreamRetentionPeriod => streams::decrease_retention,
    DeleteStream => streams::delete,
    DeregisterStreamConsumer => consumers::deregister,
    DescribeLimits => streams::describe_limits,
    DescribeStream => shards::describe_stream,
    DescribeStreamConsumer => consumers::describe,
    DescribeStreamSummary => streams::describe_summary,
    GetRecords => records::get,
    GetShardIterator => records::get_iterator,
    IncreaseStreamRetentionPeriod => streams::increase_retention,
    ListShards => shards::list,
    ListStreamConsumers => consumers::list,
    ListStreams => streams::list,
    ListTagsForStream => tags::list,
    MergeShards => shards::merge,
    PutRecord => records::put_one,
    PutRecords => records::put_many,
    RegisterStreamConsumer => consumers::register,
    RemoveTagsFromStream => tags::remove,
    SplitShard => shards::split,
    SubscribeToShard => consumers::subscribe,
    UpdateMaxRecordSize => streams::update_max_record_size,
    UpdateShardCount => shards::update_count,
}

/// The name is not one of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such operation")]
pub struct UnknownOperation;

impl FromStr for Operation {
    type Err = UnknownOperation;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|operation| operation.name() == name)
            .ok_or(UnknownOperation)
    }
}

/// A successful answer: JSON, in pieces that are sent one after the other; or the events of a subscription.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) pieces: Vec<Bytes>,
    pub(super) subscription: Option<Box<Subscription>>,
}

impl Reply {
    /// Operations without output answer with no body at all.
    fn empty() -> Self {
        Self::default()
    }
}

impl From<Value> for Reply {
    fn from(value: Value) -> Self {
        Self {
            pieces: vec![value.to_string().into()],
            ..Self::default()
        }
    }
}

/// A string of a request, borrowed from its body where JSON has no escapes in it.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Text of an optional field.
fn text<'t>(field: &'t Option<Text<'_>>) -> Option<&'t str> {
    field.as_ref().map(|text| text.0.as_ref())
}

/// Text of a field that the checks found present.
fn given<'t>(field: &'t Option<Text<'_>>) -> &'t str {
    text(field).unwrap_or_default()
}

/// A stream by name, ARN or both, as nearly every request names it.
#[derive(Debug, Deserialize)]
struct StreamRef<'a> {
    #[serde(borrow, rename = "StreamName")]
    name: Option<Text<'a>>,
    #[serde(borrow, rename = "StreamARN")]
    arn: Option<Text<'a>>,
}

impl StreamRef<'_> {
    fn name(&self) -> Option<&str> {
        text(&self.name)
    }

    fn arn(&self) -> Option<&str> {
        text(&self.arn)
    }
}

fn input<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::new(ErrorKind::Serialization, error.to_string()))
}

/// A date of a request: seconds since 1970 with a fraction.
fn millis(seconds: f64) -> i64 {
    // Saturates; no date of the emulator is near the ends.
    (seconds * 1_000.0).round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_found_by_its_name() {
        for operation in Operation::ALL {
            assert_eq!(operation.name().parse(), Ok(*operation));
        }
        assert_eq!("GetRecord".parse::<Operation>(), Err(UnknownOperation));
    }
}

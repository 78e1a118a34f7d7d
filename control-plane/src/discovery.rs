//! What streams there are and what shards they have, as Kinesis says: once when a pipe is created or changed, and then
//! again and again while it runs. It reads no records.
//!
//! Invariants:
//! - a stream is its ARN and its creation time; another creation time halts the pipe, it is never followed silently;
//! - a listing is whole or it is nothing: all pages of it, or an error;
//! - that a stream is not found never touches a checkpoint.

mod aws;
pub mod check;
pub mod consumer;
mod error;
pub mod lineage;
mod orphans;
pub mod sample;
mod service;
pub mod streams;

use std::{future::Future, time::Duration};

use aws_sdk_kinesis::Client;
use jiff::Timestamp;
use millrace_common::{
    aws::{self as identities, Access},
    ids::ShardId,
    pipe::{StreamIdentity, StreamRef},
    reason,
};
use tokio::time::Instant;

pub use error::Error;
pub use service::{Callers, Options, Service, access, is_own, named_stream_arn, stream_arn, usage};

/// How long one look at a stream may take, with all pages and retries.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often a listing starts again because its token expired. Tokens live for 300 s, so once is odd already.
const RESTARTS: usize = 3;
/// Shards per page: what Kinesis allows at most.
const PAGE: i32 = 1_000;
/// Pages of one listing. The largest quota is 20,000 shards; closed ones stay listed until they expire.
const MAX_PAGES: usize = 200;

/// A shard as Kinesis lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Id.
    pub id: ShardId,
    /// Its parents as far as Kinesis names them, listed or not.
    pub parents: Vec<ShardId>,
    /// Records can still be put into it.
    pub open: bool,
    /// The first and the last of its hash keys, if Kinesis says them.
    pub hash_keys: Option<(u128, u128)>,
}

/// A stream and its shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Which stream.
    pub identity: StreamIdentity,
    /// How long it keeps records.
    pub retention: Duration,
    /// All shards that Kinesis still lists, closed ones too.
    pub shards: Vec<Shard>,
}

/// Looks at a stream.
///
/// # Errors
/// Why that was not possible, with a stable reason and what to do.
pub async fn look(access: &Access, stream: &StreamRef) -> Result<Stream, Error> {
    let looking = calling(access, |client| async move {
        let (identity, retention) = aws::describe(&client, stream).await?;
        let shards = aws::list(&client, stream).await?;
        Ok(Stream {
            identity,
            retention,
            shards,
        })
    });
    match tokio::time::timeout(DEADLINE, looking).await {
        Ok(result) => {
            result.map_err(|error: Error| error.about(stream.name(), &access.region, access.endpoint.as_deref()))
        }
        Err(_) => Err(Error {
            reason: reason::SOURCE_UNREACHABLE,
            message: format!(
                "Kinesis in {} did not answer within {} s",
                access.region,
                DEADLINE.as_secs()
            ),
            field: "pipe.source.kinesis.region",
            permanent: false,
            said: String::new(),
        }),
    }
}

/// Calls AWS. The session in use may be an older one: if it is not taken, everything is called once more with a newer one.
async fn calling<T, F>(access: &Access, calls: impl Fn(Client) -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let (config, identity) = identities::connect(access).await;
    // Without anybody to call as, there is nothing that a newer session could mend.
    identity.current().await.map_err(|nobody| Error::of_identity(&nobody))?;
    let (client, started) = (Client::new(&config), Instant::now());
    match calls(client.clone()).await {
        Err(error) if error.reason == reason::SOURCE_CREDENTIAL_INVALID && identity.renew(started).await => {
            calls(client).await
        }
        result => result,
    }
}

/// Compares the stream that was found with the one that a pipe was made for.
///
/// # Errors
/// If it is another one.
pub fn check_identity(pipe: &StreamIdentity, found: &StreamIdentity) -> Result<(), Error> {
    if pipe == found {
        return Ok(());
    }
    let message = if pipe.arn == found.arn {
        format!(
            "the stream {} was deleted and created again: this pipe's positions belong to the one of {}, the present one is of {}; \
             take it with `millrace pipe reset-position PIPE --adopt-stream`, or create a new pipe for it",
            found.name,
            time(pipe.created),
            time(found.created)
        )
    } else {
        format!(
            "this is the stream {}, but this pipe's positions belong to {}; create a new pipe for it",
            found.arn, pipe.arn
        )
    };
    Err(Error {
        reason: reason::SOURCE_STREAM_RECREATED,
        message,
        field: "pipe.source.kinesis.stream_name",
        permanent: true,
        said: String::new(),
    })
}

fn time(time: Timestamp) -> impl std::fmt::Display {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_its_arn_and_its_creation_time() {
        let identity = |arn: &str, second: i64| StreamIdentity {
            arn: arn.into(),
            name: "events".into(),
            created: Timestamp::from_second(second).unwrap(),
        };
        let pipe = identity("arn:aws:kinesis:eu-central-1:000000000000:stream/events", 1);
        assert!(check_identity(&pipe, &pipe.clone()).is_ok());
        let later = check_identity(&pipe, &identity(&pipe.arn, 2)).unwrap_err();
        assert_eq!((later.reason, later.permanent), (reason::SOURCE_STREAM_RECREATED, true));
        assert!(later.message.contains("created again"), "{later}");
        let other = check_identity(
            &pipe,
            &identity("arn:aws:kinesis:eu-west-1:000000000000:stream/events", 1),
        );
        assert!(other.unwrap_err().message.contains("eu-west-1"));
    }
}

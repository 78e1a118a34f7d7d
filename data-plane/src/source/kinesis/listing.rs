//! The hash keys of a stream's shards, from ListShards. They never change, so a stream is listed once for all of its shards, and
//! again only for a shard that came later. Who reads no aggregates never asks.

use std::collections::BTreeMap;

use aws_sdk_kinesis::types::Shard;
use millrace_common::ids::ShardId;
use tokio::time::Instant;

use super::failure::Failure;
use crate::source::HashKeyRange;

const CALL: &str = "ListShards";
/// Shards per page: what Kinesis gives at most.
const PAGE: i32 = 1_000;
/// Pages of one listing. The largest quota is 20,000 shards; closed ones stay listed until they expire.
const MAX_PAGES: usize = 200;

/// What is known of a stream's shards.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// When the last listing was begun.
    asked: Option<Instant>,
    /// Why the last one failed, and when.
    failed: Option<(Instant, Failure)>,
    shards: BTreeMap<ShardId, HashKeyRange>,
}

impl Listing {
    /// The hash keys of a shard, if it was listed.
    pub(super) fn find(&self, shard: &ShardId) -> Option<HashKeyRange> {
        self.shards.get(shard).copied()
    }

    /// Whether the stream was listed at some moment after this one.
    pub(super) fn is_newer_than(&self, asked: Instant) -> bool {
        self.asked.is_some_and(|last| last >= asked)
    }

    /// Why a listing failed that ended after this moment: whoever waited for it need not ask again.
    pub(super) fn failed_since(&self, asked: Instant) -> Option<Failure> {
        let failed = self.failed.as_ref().filter(|(ended, _)| *ended >= asked);
        failed.map(|(_, failure)| failure.clone())
    }

    /// Lists the stream.
    pub(super) async fn refresh(&mut self, sdk: &aws_sdk_kinesis::Client, stream_arn: &str) -> Result<(), Failure> {
        let listed = self.list(sdk, stream_arn).await;
        self.failed = listed.clone().err().map(|failure| (Instant::now(), failure));
        listed
    }

    async fn list(&mut self, sdk: &aws_sdk_kinesis::Client, stream_arn: &str) -> Result<(), Failure> {
        let asked = Instant::now();
        let mut token: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let call = sdk.list_shards().max_results(PAGE);
            // A page is asked for by its token and nothing else.
            let call = match token.take() {
                Some(token) => call.next_token(token),
                None => call.stream_arn(stream_arn),
            };
            let page = call.send().await.map_err(|error| Failure::of(CALL, &error))?;
            for shard in page.shards.unwrap_or_default() {
                let range = range(&shard).ok_or_else(|| {
                    Failure::malformed(CALL, format!("shard {} without a range of hash keys", shard.shard_id))
                })?;
                let id = shard
                    .shard_id
                    .parse()
                    .map_err(|_| Failure::malformed(CALL, format!("{:?} is not a shard id", shard.shard_id)))?;
                self.shards.insert(id, range);
            }
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                self.asked = Some(asked);
                return Ok(());
            }
        }
        Err(Failure::malformed(
            CALL,
            format!("more than {MAX_PAGES} pages of shards"),
        ))
    }
}

fn range(shard: &Shard) -> Option<HashKeyRange> {
    let range = shard.hash_key_range.as_ref()?;
    Some(HashKeyRange {
        first: range.starting_hash_key.parse().ok()?,
        last: range.ending_hash_key.parse().ok()?,
    })
}

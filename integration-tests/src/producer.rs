//! Puts events into a stream as an ordinary AWS client does: `PutRecords` over HTTP with aws-sdk-kinesis, records that fail put
//! again, the order of each partition key kept.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, bail};
use aws_sdk_kinesis::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
    primitives::Blob,
    types::PutRecordsRequestEntry,
};
use tokio::task::JoinSet;

use crate::events::Events;

/// Records of one call: the service's limit.
const RECORDS_PER_CALL: usize = 500;
/// Attempts for one call before the producer gives up.
const ATTEMPTS: usize = 100;

/// A client of a Kinesis endpoint that checks no signatures.
#[must_use]
pub fn client(endpoint: &str) -> Client {
    let config = aws_sdk_kinesis::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::for_tests())
        .endpoint_url(endpoint)
        .build();
    Client::from_conf(config)
}

/// Puts events into one stream.
#[derive(Debug, Clone)]
pub struct Producer {
    client: Client,
    stream: String,
    events: Arc<Events>,
    bytes: Arc<AtomicU64>,
    records: Arc<AtomicU64>,
}

impl Producer {
    /// A producer of `events` for a stream.
    #[must_use]
    pub fn new(client: Client, stream: &str, events: Arc<Events>) -> Self {
        Self {
            client,
            stream: stream.to_owned(),
            events,
            bytes: Arc::default(),
            records: Arc::default(),
        }
    }

    /// Payload bytes put so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Records put so far.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Puts events `ids`, with `writers` calls at a time. Each partition key belongs to one writer, so its order is kept.
    ///
    /// # Errors
    /// If the service keeps refusing.
    pub async fn put(&self, ids: Range<u64>, writers: u64) -> anyhow::Result<()> {
        let mut tasks = JoinSet::new();
        for writer in 0..writers {
            let (this, ids) = (self.clone(), ids.clone());
            tasks.spawn(async move { this.write(ids, writer, writers).await });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    }

    async fn write(&self, ids: Range<u64>, writer: u64, writers: u64) -> anyhow::Result<()> {
        let mine = |id: &u64| self.events.key_number(*id) % writers == writer;
        let mut entries = Vec::with_capacity(RECORDS_PER_CALL);
        for id in ids.filter(mine) {
            let event = self.events.event(id);
            let entry = PutRecordsRequestEntry::builder()
                .partition_key(event.key)
                .data(Blob::new(event.data))
                .build();
            entries.push(entry.context("an entry has a key and data")?);
            if entries.len() == RECORDS_PER_CALL {
                self.send(std::mem::take(&mut entries)).await?;
            }
        }
        self.send(entries).await
    }

    /// Puts `entries` in order. What is refused is put again together with all that came after it in its shard, by the
    /// simple means of putting one call at a time; a record that fails alone is put before anything newer.
    async fn send(&self, mut entries: Vec<PutRecordsRequestEntry>) -> anyhow::Result<()> {
        for _ in 0..ATTEMPTS {
            if entries.is_empty() {
                return Ok(());
            }
            let answer = self
                .client
                .put_records()
                .stream_name(&self.stream)
                .set_records(Some(entries.clone()))
                .send()
                .await
                .context("PutRecords")?;
            let mut refused = Vec::new();
            for (entry, result) in entries.into_iter().zip(answer.records()) {
                if result.error_code().is_some() {
                    refused.push(entry);
                } else {
                    self.bytes
                        .fetch_add(entry.data().as_ref().len() as u64, Ordering::Relaxed);
                    self.records.fetch_add(1, Ordering::Relaxed);
                }
            }
            entries = refused;
        }
        bail!("{} records were refused {ATTEMPTS} times", entries.len())
    }
}

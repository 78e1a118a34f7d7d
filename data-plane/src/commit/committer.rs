//! The three acts of a batch. Each takes the proof that the one before was done, and alone makes the next proof.
//!
//! Invariants:
//! - the bytes and the token of a batch are the same at every attempt, by whomever;
//! - the error table is written before the table, so that a batch that is in the table is wholly delivered;
//! - while ClickHouse is in trouble, what was sent first is tried first;
//! - nothing here gives up: a batch ends by being committed, or by being dropped with its lease.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use millrace_common::{
    batch::OpenBatch,
    fail_point,
    ids::{BatchId, Epoch, PipeUid, Revision, ShardId},
    pipe::Delivery,
    retry::Backoff,
};
use parking_lot::RwLock;
use tokio::time::Instant;

use super::{
    control::{ControlPlane, Error},
    line::{Line, Place},
    patience::{self, Patience, RETRY, Show},
};
use crate::{
    lane::fault::{Fault, Faults, Part},
    sink::clickhouse::{Insert, InsertError, Sink},
    source::Permit,
};

/// A block ready to be sent.
#[derive(Clone)]
pub struct Body {
    /// Names of its columns.
    pub columns: Arc<[String]>,
    /// Native, as LZ4 frames if `lz4`.
    pub bytes: Bytes,
    /// Whether `bytes` are LZ4 frames.
    pub lz4: bool,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("bytes", &self.bytes.len())
            .field("lz4", &self.lz4)
            .finish_non_exhaustive()
    }
}

/// A batch with everything that will be sent of it.
#[derive(Debug)]
pub struct Built {
    /// What it covers.
    pub batch: OpenBatch,
    /// Rows for the table; `None` if there are none.
    pub rows: Option<Body>,
    /// Rows for the error table; `None` if there are none.
    pub errors: Option<Body>,
    /// The memory of the pages that it was made from. It counts for more than the blocks take; the rest makes up for what
    /// is held while they are encoded.
    pub permits: Vec<Arc<Permit>>,
}

/// A batch and the leases under which it is claimed.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The pipe.
    pub pipe: PipeUid,
    /// The batch.
    pub batch: OpenBatch,
    /// Epochs of its shards.
    pub epochs: BTreeMap<ShardId, Epoch>,
}

#[derive(Debug)]
struct Load {
    claim: Claim,
    built: Built,
}

/// Proof that a batch may be sent.
#[derive(Debug)]
pub struct Prepared(Box<Load>);

/// Proof that ClickHouse has acknowledged a batch.
#[derive(Debug)]
pub struct Sent(Box<Load>);

/// A rebuilt batch is not what had been prepared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "batch {id} was prepared with {prepared} and is now rebuilt with {rebuilt}; sending it could lose or double rows"
)]
pub struct Diverged {
    id: BatchId,
    prepared: String,
    rebuilt: String,
}

impl Prepared {
    /// A batch of a pipe that does not ask for Prepare.
    ///
    /// # Errors
    /// The batch, back, if the pipe does ask for it.
    #[allow(clippy::result_large_err, reason = "it is no error but the batch itself")]
    pub fn at_least_once(claim: Claim, built: Built, delivery: Delivery) -> Result<Self, Built> {
        match delivery {
            Delivery::AtLeastOnce => Ok(Self(Box::new(Load { claim, built }))),
            Delivery::ExactlyOnce => Err(built),
        }
    }

    /// A batch that an earlier owner prepared, rebuilt from the stream.
    ///
    /// # Errors
    /// If it is not the same batch, byte for byte.
    pub fn replayed(claim: Claim, built: Built) -> Result<Self, Diverged> {
        let describe = |batch: &OpenBatch| {
            let digest = u128::from_be_bytes(batch.digest);
            format!(
                "{} rows, {} rejected records, digest {digest:032x}",
                batch.counts.rows, batch.counts.rejected_records
            )
        };
        let (prepared, rebuilt) = (&claim.batch, &built.batch);
        let same = prepared.id == rebuilt.id
            && prepared.revision == rebuilt.revision
            && prepared.slices == rebuilt.slices
            && prepared.digest == rebuilt.digest
            && prepared.counts.rows == rebuilt.counts.rows
            && prepared.counts.rejected_records == rebuilt.counts.rejected_records;
        if !same {
            return Err(Diverged {
                id: prepared.id,
                prepared: describe(prepared),
                rebuilt: describe(rebuilt),
            });
        }
        Ok(Self(Box::new(Load { claim, built })))
    }
}

/// Where the batches of one revision go.
#[derive(Debug)]
pub struct Target {
    /// Access to ClickHouse.
    pub sink: Sink,
    /// Table.
    pub table: String,
    /// Error table.
    pub error_table: String,
}

/// The targets of the revisions that a lane has batches of. Attempts look them up each time, so that a new password
/// reaches batches that wait for it.
#[derive(Debug, Clone, Default)]
pub struct Targets(Arc<RwLock<BTreeMap<Revision, Arc<Target>>>>);

impl Targets {
    /// Batches of this revision go there from now on.
    pub fn set(&self, revision: Revision, target: Arc<Target>) {
        self.0.write().insert(revision, target);
    }

    /// Forgets revisions that have no batches.
    pub fn retain(&self, keep: impl Fn(Revision) -> bool) {
        self.0.write().retain(|revision, _| keep(*revision));
    }

    fn get(&self, revision: Revision) -> Option<Arc<Target>> {
        self.0.read().get(&revision).cloned()
    }
}

/// Carries out what the tracker says. One per lane.
#[derive(Debug, Clone)]
pub struct Committer {
    control: Arc<dyn ControlPlane>,
    targets: Targets,
    faults: Faults,
    probe_interval: Duration,
    line: Line,
}

impl Committer {
    /// A committer of one lane. A batch that waits for a person is tried again each `probe_interval`.
    pub fn new(control: Arc<dyn ControlPlane>, targets: Targets, faults: Faults, probe_interval: Duration) -> Self {
        Self {
            control,
            targets,
            faults,
            probe_interval,
            line: Line::default(),
        }
    }

    /// Records the batch in the control plane. Waits for as long as the control plane is away.
    ///
    /// # Errors
    /// The control plane's words, if it refuses.
    pub async fn prepare(&self, claim: Claim, built: Built) -> Result<Prepared, String> {
        fail_point!("worker.prepare.before");
        self.call(&claim, "PrepareBatch", || self.control.prepare(&claim))
            .await?;
        fail_point!("worker.prepare.after");
        Ok(Prepared(Box::new(Load { claim, built })))
    }

    /// Moves the checkpoints over the batch. Waits for as long as the control plane is away.
    ///
    /// # Errors
    /// The control plane's words, if it refuses.
    pub async fn commit(&self, sent: Sent) -> Result<(), String> {
        let claim = &sent.0.claim;
        fail_point!("worker.commit.before");
        self.call(claim, "CommitBatch", || self.control.commit(claim)).await?;
        fail_point!("worker.commit.after");
        Ok(())
    }

    async fn call<'a>(
        &self,
        claim: &Claim,
        call: &'static str,
        attempt: impl Fn() -> futures::future::BoxFuture<'a, Result<(), Error>>,
    ) -> Result<(), String> {
        let part = Part::Batch(claim.batch.id);
        let mut backoff = Backoff::new(RETRY.0, RETRY.1 / 6);
        let mut attempts = 0_u32;
        loop {
            let delay = match attempt().await {
                Ok(()) => {
                    self.faults.clear(&part);
                    return Ok(());
                }
                Err(Error::Refused { message }) => {
                    self.faults.clear(&part);
                    return Err(message);
                }
                Err(Error::Unavailable { message }) => {
                    if attempts == 0 {
                        tracing::warn!(batch = %claim.batch.id, call, message, "waiting for the control plane");
                    }
                    backoff.delay()
                }
                Err(error @ Error::Invalid { .. }) => {
                    self.faults.set(part.clone(), Fault::internal(error.to_string()));
                    self.probe_interval
                }
            };
            attempts += 1;
            tokio::time::sleep(delay).await;
        }
    }

    /// Inserts the batch: first what goes to the error table, then the rows.
    pub async fn send(&self, prepared: Prepared) -> Sent {
        let load = prepared.0;
        let batch = &load.built.batch;
        fail_point!("worker.send.before");
        let place = self.line.enter();
        if let Some(errors) = &load.built.errors {
            let token = format!("{}:errors", batch.id);
            self.insert(batch, errors, &token, &place, |target| &target.error_table)
                .await;
            fail_point!("worker.send.errors_inserted");
        }
        if let Some(rows) = &load.built.rows {
            self.insert(batch, rows, &batch.id.to_string(), &place, |target| &target.table)
                .await;
            fail_point!("worker.send.rows_inserted");
        }
        Sent(load)
    }

    async fn insert(
        &self,
        batch: &OpenBatch,
        body: &Body,
        token: &str,
        place: &Place,
        table: impl Fn(&Target) -> &String,
    ) {
        let part = Part::Batch(batch.id);
        let mut patience = Patience::new(self.probe_interval);
        let mut attempt = 0_u32;
        loop {
            attempt += 1;
            place.turn().await;
            let Some(target) = self.targets.get(batch.revision) else {
                let message = format!(
                    "revision {} of the pipe, which batch {} belongs to, is not known",
                    batch.revision, batch.id
                );
                self.faults.set(part.clone(), Fault::internal(message));
                tokio::time::sleep(self.probe_interval).await;
                continue;
            };
            let table = table(&target);
            // Another owner may be sending the same batch: no two attempts have one name.
            let query_id = format!("millrace-{token}-{}", BatchId::new());
            let insert = Insert {
                table,
                columns: &body.columns,
                body: body.bytes.clone(),
                lz4: body.lz4,
                token,
                query_id: &query_id,
            };
            let Err(error) = target.sink.insert(insert).await else {
                self.faults.clear(&part);
                return;
            };
            tracing::debug!(batch = %batch.id, table, attempt, error = %error, "insert failed");
            place.set_troubled(patience::holds_others_back(error.class));
            let next = patience.failed(&error, Instant::now());
            match next.show {
                Show::Nothing => {}
                Show::Passing => self.faults.set(part.clone(), fault(&error, table, false)),
                Show::Permanent => self.faults.set(part.clone(), fault(&error, table, true)),
            }
            tokio::time::sleep(next.delay).await;
        }
    }
}

/// What a refused insert means for the lane.
fn fault(error: &InsertError, table: &str, permanent: bool) -> Fault {
    let message = format!("insert into {table}: {error}: {}", error.remedy());
    Fault {
        reason: error.reason(),
        message,
        permanent,
    }
}

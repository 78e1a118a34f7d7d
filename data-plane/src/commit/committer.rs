//! The acts of a batch. Each takes the proof that the one before was done, and alone makes the next proof.
//!
//! Invariants:
//! - the bytes and the token of a batch are the same at every attempt, by whomever;
//! - the error table is written before the table, so that a batch that is in the table is wholly delivered;
//! - while ClickHouse is in trouble, what was sent first is tried first;
//! - a batch gives way to smaller ones only with the proof that nothing of it was applied or will be;
//! - nothing here gives up: a batch ends by being committed, by being replaced, or by being dropped with its lease.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use millrace_common::{
    batch::OpenBatch,
    fail_point,
    ids::{BatchId, Epoch, PipeUid, Revision, ShardId},
    pipe, reason,
    retry::Backoff,
};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use super::{
    control::{ControlPlane, Error},
    line::{Line, Place},
    patience::{self, Patience, RETRY, Show},
    refusal::{self, Attempts, Cause, Newer, Past, Way},
};
use crate::{
    lane::fault::{Fault, Faults, Part},
    sink::clickhouse::{Definition, Insert, InsertError, Sink},
    source::Permit,
};

/// How long a table's definition is taken to be what it was; it is asked again at each refusal.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How long to wait for a table's definition: without it a batch goes on, only a refused one cannot be made smaller.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// How long the control plane may be away before it is shown: a take-over takes less.
const SHOW_AWAY_AFTER: Duration = Duration::from_secs(10);

/// A block ready to be sent.
#[derive(Clone)]
pub struct Body {
    /// Names of its columns.
    pub columns: Arc<[String]>,
    /// Native, as compressed frames if `compressed`.
    pub bytes: Bytes,
    /// Whether `bytes` are ClickHouse's compressed frames, which name their method themselves.
    pub compressed: bool,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("bytes", &self.bytes.len())
            .field("compressed", &self.compressed)
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
    past: Past,
}

/// Proof that a batch may be sent.
#[derive(Debug)]
pub struct Prepared(Box<Load>);

/// Proof that ClickHouse has acknowledged a batch.
#[derive(Debug)]
pub struct Sent(Box<Load>);

/// Proof that ClickHouse refuses a batch, and that nothing of it was applied or will be.
#[derive(Debug)]
pub struct Refused {
    load: Box<Load>,
    /// Why.
    pub cause: Cause,
    /// ClickHouse's words.
    pub message: String,
}

impl Refused {
    /// The batch, and the leases under which it is claimed.
    pub fn claim(&self) -> &Claim {
        &self.load.claim
    }

    /// Its blocks will not be sent any more. The memory that they were paid with stays with it, for what is read instead.
    pub fn forget_blocks(&mut self) {
        (self.load.built.rows, self.load.built.errors) = (None, None);
    }
}

/// What came of sending a batch.
#[derive(Debug)]
pub enum Delivery {
    /// ClickHouse has it.
    Sent(Sent),
    /// ClickHouse will never have it.
    Refused(Refused),
}

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
    /// The batch.
    pub fn batch(&self) -> &OpenBatch {
        &self.0.claim.batch
    }

    fn new(claim: Claim, built: Built, past: Past) -> Self {
        Self(Box::new(Load { claim, built, past }))
    }

    /// A batch of a pipe that does not ask for Prepare.
    ///
    /// # Errors
    /// The batch, back, if the pipe does ask for it.
    #[allow(clippy::result_large_err, reason = "it is no error but the batch itself")]
    pub fn at_least_once(claim: Claim, built: Built, delivery: pipe::Delivery) -> Result<Self, Built> {
        match delivery {
            pipe::Delivery::AtLeastOnce => Ok(Self::new(claim, built, Past::Unrecorded)),
            pipe::Delivery::ExactlyOnce => Err(built),
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
        Ok(Self::new(claim, built, Past::Replayed))
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
    /// What was last known of the table.
    pub known: Known,
}

/// What is known of a table, and since when.
#[derive(Debug, Default)]
pub struct Known(Mutex<Option<(Instant, Option<Definition>)>>);

impl Target {
    /// Fingerprint of the table, as it was read some time ago; empty if it cannot be read. One that is too old only makes
    /// it look altered.
    async fn fingerprint(&self) -> String {
        let known = self.known.0.lock().clone();
        let definition = match known {
            Some((since, definition)) if since.elapsed() < LOOK_AGAIN => definition,
            _ => self.look().await,
        };
        definition.map(|definition| definition.fingerprint).unwrap_or_default()
    }

    /// What the server says of the table now.
    async fn look(&self) -> Option<Definition> {
        let definition = match tokio::time::timeout(LOOK_LIMIT, self.sink.definition(&self.table)).await {
            Ok(Ok(definition)) => definition,
            Ok(Err(error)) => {
                tracing::debug!(table = self.table, error = %error, "the table's definition cannot be read");
                None
            }
            Err(_) => None,
        };
        *self.known.0.lock() = Some((Instant::now(), definition.clone()));
        definition
    }
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

    /// The newest, if it is newer than this one.
    fn newer(&self, revision: Revision) -> Option<Arc<Target>> {
        let targets = self.0.read();
        let (_, newest) = targets.last_key_value().filter(|(newest, _)| **newest > revision)?;
        Some(Arc::clone(newest))
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
    pub async fn prepare(&self, mut claim: Claim, built: Built) -> Result<Prepared, String> {
        fail_point!("worker.prepare.before");
        if let Some(target) = self.targets.get(claim.batch.revision) {
            claim.batch.terms.table = target.fingerprint().await;
        }
        self.call(&claim, "PrepareBatch", || self.control.prepare(&claim))
            .await?;
        fail_point!("worker.prepare.after");
        Ok(Prepared::new(claim, built, Past::None))
    }

    /// Records smaller batches in the place of one that ClickHouse refuses. Waits for as long as the control plane is away.
    ///
    /// # Errors
    /// The control plane's words, if it refuses.
    pub async fn replace(&self, refused: Refused, mut parts: Vec<Built>) -> Result<Vec<Prepared>, String> {
        fail_point!("worker.replace.before");
        let Load { claim, built, .. } = *refused.load;
        let revision = parts.first().map_or(claim.batch.revision, |part| part.batch.revision);
        if let Some(target) = self.targets.get(revision) {
            let fingerprint = target.fingerprint().await;
            parts
                .iter_mut()
                .for_each(|part| part.batch.terms.table.clone_from(&fingerprint));
        }
        let batches: Vec<OpenBatch> = parts.iter().map(|part| part.batch.clone()).collect();
        self.call(&claim, "ReplaceBatch", || self.control.replace(&claim, &batches))
            .await?;
        fail_point!("worker.replace.after");
        // The memory of the pages that the batch was made from goes with the last of its parts.
        if let Some(last) = parts.last_mut() {
            last.permits.extend(built.permits);
        }
        let prepared = |part: Built| {
            let of_part = |shard: &ShardId| part.batch.slices.iter().any(|slice| slice.shard == *shard);
            let mut epochs = claim.epochs.clone();
            epochs.retain(|shard, _| of_part(shard));
            let (pipe, batch) = (claim.pipe, part.batch.clone());
            Prepared::new(Claim { pipe, batch, epochs }, part, Past::None)
        };
        Ok(parts.into_iter().map(prepared).collect())
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
        let mut away_since = None;
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
                    let since = *away_since.get_or_insert_with(|| {
                        tracing::warn!(batch = %claim.batch.id, call, message, "waiting for the control plane");
                        Instant::now()
                    });
                    if since.elapsed() >= SHOW_AWAY_AFTER {
                        // Its session may well be there: a database that takes no writes can still be read.
                        let message = format!(
                            "{call} waits for the control plane: {message}; what was read is kept, and goes on when the \
                             control plane and its database are well"
                        );
                        let fault = Fault::passing(reason::CONTROL_PLANE_UNAVAILABLE, message);
                        self.faults.set(part.clone(), fault);
                    }
                    backoff.delay()
                }
                Err(error @ Error::Invalid { .. }) => {
                    away_since = None;
                    self.faults.set(part.clone(), Fault::internal(error.to_string()));
                    self.probe_interval
                }
            };
            tokio::time::sleep(delay).await;
        }
    }

    /// Inserts the batch: first what goes to the error table, then the rows.
    pub async fn send(&self, prepared: Prepared) -> Delivery {
        let load = prepared.0;
        let batch = &load.built.batch;
        fail_point!("worker.send.before");
        let place = self.line.enter();
        if let Some(errors) = &load.built.errors {
            let token = format!("{}:errors", batch.id);
            self.insert(&load, errors, &token, &place, Goal::Errors).await;
            fail_point!("worker.send.errors_inserted");
        }
        if let Some(rows) = &load.built.rows {
            let token = batch.id.to_string();
            if let Some((cause, message)) = self.insert(&load, rows, &token, &place, Goal::Rows).await {
                return Delivery::Refused(Refused { load, cause, message });
            }
            fail_point!("worker.send.rows_inserted");
        }
        Delivery::Sent(Sent(load))
    }

    /// Whether a newer revision writes into the table that refuses a block because it was altered.
    async fn newer(&self, revision: Revision, error: &InsertError, table: Option<&Definition>) -> Newer {
        let (Some(table), true) = (table, refusal::is_of_another_table(error)) else {
            return Newer::None;
        };
        let Some(newer) = self.targets.newer(revision) else {
            return Newer::None;
        };
        // It holds the table's uuid, so no other table has the same.
        match newer.look().await {
            Some(found) if found.fingerprint == table.fingerprint => Newer::Fits,
            _ => Newer::None,
        }
    }

    /// Sends a block until ClickHouse has it; or, if it is certain that it never will, says why.
    async fn insert(
        &self,
        load: &Load,
        body: &Body,
        token: &str,
        place: &Place,
        goal: Goal,
    ) -> Option<(Cause, String)> {
        let batch = &load.claim.batch;
        let part = Part::Batch(batch.id);
        let mut patience = Patience::new(self.probe_interval);
        let mut attempt = 0_u32;
        let mut attempts = Attempts::new(load.past, &batch.terms.table, batch.counts);
        let mut any_partitions = false;
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
            let table = match goal {
                Goal::Rows => &target.table,
                Goal::Errors => &target.error_table,
            };
            // Another owner may be sending the same batch: no two attempts have one name.
            let query_id = format!("millrace-{token}-{}", BatchId::new());
            let insert = Insert {
                table,
                columns: &body.columns,
                body: body.bytes.clone(),
                compressed: body.compressed,
                token,
                query_id: &query_id,
                any_partitions,
            };
            let Err(error) = target.sink.insert(insert).await else {
                self.faults.clear(&part);
                return None;
            };
            tracing::debug!(batch = %batch.id, table, attempt, error = %error, "insert failed");
            let way = match goal {
                Goal::Rows => {
                    let table = match refusal::depends_on_table(&error) {
                        true => target.look().await,
                        false => None,
                    };
                    let newer = self.newer(batch.revision, &error, table.as_ref()).await;
                    attempts.refused(&error, table.as_ref(), newer)
                }
                Goal::Errors => Way::Same(""),
            };
            let why = match way {
                Way::Replace(cause) => {
                    self.faults.clear(&part);
                    tracing::info!(batch = %batch.id, ?cause, error = %error, "refused: another is put in its place");
                    return Some((cause, error.message));
                }
                // Not the server's rule but its guard against mistakes, which can be told that this is none.
                Way::AnyPartitions if !any_partitions => {
                    any_partitions = true;
                    continue;
                }
                Way::AnyPartitions => "",
                Way::Same(why) => why,
            };
            place.set_troubled(patience::holds_others_back(error.class));
            let next = patience.failed(&error, Instant::now());
            match next.show {
                Show::Nothing => {}
                Show::Passing => self.faults.set(part.clone(), fault(&error, table, why, false)),
                Show::Permanent => self.faults.set(part.clone(), fault(&error, table, why, true)),
            }
            tokio::time::sleep(next.delay).await;
        }
    }
}

/// Which of the blocks of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Rows,
    Errors,
}

/// What a refused insert means for the lane.
fn fault(error: &InsertError, table: &str, why: &str, permanent: bool) -> Fault {
    let message = format!("insert into {table}: {error}: {}{why}", error.remedy());
    Fault {
        reason: error.reason(),
        message,
        permanent,
    }
}

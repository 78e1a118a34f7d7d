//! What the store takes and gives. Plain data; nothing of the database shows here.

use std::fmt;

use jiff::Timestamp;
use millrace_common::{
    aws,
    batch::OpenBatch,
    ids::{CredentialName, CredentialUid, Epoch, PipeName, PipeUid, Revision, ShardId, WorkerInstance},
    pipe::{Delivery, DesiredState, PipeSpec, ResolvedSpec},
    position::Position,
    reason,
};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::Error;
pub use crate::protocol::{NewShard, ShardPhase, Window};
use crate::{auth::Role, events::NewEvent};

/// A pipe to store.
#[derive(Debug, Clone)]
pub struct NewPipe {
    /// Resource name.
    pub name: PipeName,
    /// Identity.
    pub uid: PipeUid,
    /// What the user asked for.
    pub spec: PipeSpec,
    /// The same resolved. Its revision is set to 1.
    pub resolved: ResolvedSpec,
    /// Running or stopped.
    pub desired: DesiredState,
    /// What is promised in effect.
    pub effective: Option<Effective>,
    /// All shards that the pipe starts with. A parent that is not among them is past, and holds up nothing.
    pub shards: Vec<NewShard>,
}

/// A change of a pipe. What is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct PipeChange {
    /// A new specification, and the same resolved: a new revision. The revision inside is set by the store.
    pub spec: Option<(PipeSpec, ResolvedSpec)>,
    /// Running or stopped.
    pub desired: Option<DesiredState>,
    /// What is promised in effect.
    pub effective: Option<Effective>,
    /// What to tell of it, if anything is changed.
    pub events: Vec<NewEvent>,
}

/// A pipe as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPipe {
    /// Identity.
    pub uid: PipeUid,
    /// Resource name.
    pub name: PipeName,
    /// What the user asked for.
    pub spec: PipeSpec,
    /// The same resolved, at the current revision.
    pub resolved: ResolvedSpec,
    /// Running or stopped.
    pub desired: DesiredState,
    /// Current revision.
    pub revision: Revision,
    /// Changes whenever a user changes the pipe; not when something about it is observed.
    pub etag: String,
    /// Trouble that was observed, if any.
    pub fault: Option<StoredFault>,
    /// What is promised in effect.
    pub effective: Option<Effective>,
    /// Committed counts.
    pub totals: Totals,
    /// When the pipe was created.
    pub created: Timestamp,
    /// When a user changed it last.
    pub updated: Timestamp,
}

/// A specification that a pipe has, or had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRevision {
    /// Which one.
    pub revision: Revision,
    /// What the user asked for.
    pub spec: PipeSpec,
    /// When it became the pipe's.
    pub created: Timestamp,
}

/// What is known of a token that callers prove themselves with.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredToken {
    /// Identity: a ULID, in small letters. Part of the token.
    pub id: String,
    /// Free text for people; names the actor.
    pub display_name: String,
    /// What may be called with it.
    pub role: Role,
    /// Of the token.
    pub hash: String,
    /// Who made it.
    pub creator: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends by itself.
    pub expires: Option<Timestamp>,
    /// When it was revoked.
    pub revoked: Option<Timestamp>,
    /// About when it was used last.
    pub used: Option<Timestamp>,
}

/// What is promised in effect, given the destination's engine and settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effective {
    /// The promise.
    pub delivery: Delivery,
    /// Why it is that.
    pub reason: String,
    /// How far back the destination remembers insert tokens, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

/// Trouble of a pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFault {
    /// Stable reason, of [`millrace_common::reason`].
    pub reason: String,
    /// What is wrong and what to do about it, for people.
    pub message: String,
    /// A person has to act.
    pub permanent: bool,
}

impl StoredFault {
    /// Whether no worker may read for the pipe until a person has acted.
    #[must_use]
    pub fn halts(&self) -> bool {
        // In another stream its position means nothing.
        let reasons = [reason::SOURCE_STREAM_RECREATED, reason::REJECTED_LIMIT_REACHED];
        self.permanent && reasons.contains(&self.reason.as_str())
    }
}

/// Counts since a pipe was created. They move in the transaction that moves the checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Rows in the table.
    pub rows: u64,
    /// Records in the error table.
    pub rejected_records: u64,
    /// Kinesis records.
    pub records: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// Batches.
    pub batches: u64,
}

/// A credential to store.
#[derive(Debug, Clone)]
pub struct NewCredential {
    /// Resource name.
    pub name: CredentialName,
    /// Identity.
    pub uid: CredentialUid,
    /// Free text for people.
    pub display_name: String,
    /// The secret. Of a role without the identity that it is assumed with.
    pub secret: CredentialSecret,
    /// With whose identity a role is assumed: an AWS credential of the same project; `None`: the process's own.
    pub source: Option<CredentialName>,
}

/// A credential with its secret: on its way in, or on its way to a worker.
#[derive(Debug, Clone)]
pub enum CredentialSecret {
    /// Access to AWS.
    Aws(aws::Credential),
    /// A ClickHouse user.
    ClickHouse {
        /// User name.
        username: String,
        /// Password; may be empty.
        password: SecretString,
    },
}

/// A credential as stored, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCredential {
    /// Resource name.
    pub name: CredentialName,
    /// Identity.
    pub uid: CredentialUid,
    /// Free text for people.
    pub display_name: String,
    /// What of it is not secret.
    pub kind: CredentialKind,
    /// Keyed hash of the secret; empty where there is none.
    pub fingerprint: String,
    /// When it was stored.
    pub created: Timestamp,
}

/// What of a credential is not secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// An AWS key pair.
    AwsKeys {
        /// Access key id.
        access_key_id: String,
    },
    /// An AWS role.
    AwsRole {
        /// Role ARN.
        role_arn: String,
        /// External id.
        external_id: Option<String>,
        /// Session name.
        session_name: String,
        /// With whose identity it is assumed; `None`: the process's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<CredentialName>,
    },
    /// The processes' own AWS identity.
    AwsAmbient,
    /// A ClickHouse user.
    #[serde(rename = "clickhouse_user")]
    ClickHouseUser {
        /// User name.
        username: String,
    },
}

/// A shard as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredShard {
    /// Kinesis shard id.
    pub id: ShardId,
    /// Parents that it waits for, or waited for.
    pub parents: Vec<ShardId>,
    /// Where it is in its life.
    pub state: ShardPhase,
    /// How often it was granted.
    pub epoch: Epoch,
    /// Who holds it. Whether the lease still lives is not known here.
    pub owner: Option<WorkerInstance>,
    /// Up to where it is committed.
    pub checkpoint: Position,
    /// Up to where it is prepared: where the next slice starts. The checkpoint, if no batch is open.
    pub frontier: Position,
    /// Batches prepared and not committed.
    pub open_batches: u32,
    /// Batches committed.
    pub committed_batches: u64,
    /// All records that arrived before this lie before the checkpoint, as far as that is known.
    pub complete_until: Option<Timestamp>,
}

/// A pipe of which something is stored that cannot be read.
#[derive(Debug)]
pub struct Damaged {
    /// The pipe.
    pub uid: PipeUid,
    /// Its name.
    pub name: PipeName,
    /// What cannot be read.
    pub error: Error,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, error, .. } = self;
        write!(f, "{name} stands still: {error}; all other pipes go on")
    }
}

/// All pipes, read at one moment, in uid order.
#[derive(Debug, Default)]
pub struct Snapshots {
    /// Those that could be read.
    pub pipes: Vec<PipeSnapshot>,
    /// Those that could not.
    pub damaged: Vec<Damaged>,
}

/// A pipe with its shards and open batches, all read at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipeSnapshot {
    /// The pipe.
    pub pipe: StoredPipe,
    /// Its shards, in id order.
    pub shards: Vec<StoredShard>,
    /// Its open batches, oldest first: each comes after all older ones of its shards.
    pub open_batches: Vec<OpenBatch>,
}

//! The tables as sea-orm sees them. Their shape is made by [`super::migration`]; these modules must agree with it.
//!
//! Identifiers, sequence numbers and JSON are text, times are milliseconds since the epoch, so that both databases hold the
//! same values.

#![allow(unreachable_pub, reason = "sea-orm's derives make public items")]

/// What every entity needs besides its model; no relations, because joins are spelled where they are used.
macro_rules! entity {
    () => {
        /// None.
        #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
        pub enum Relation {}

        impl ActiveModelBehavior for ActiveModel {}
    };
}

/// Pipes, without their specifications.
pub mod pipe {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "pipes")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub uid: String,
        pub project: String,
        pub pipe_id: String,
        /// `running` or `stopped`.
        pub desired: String,
        /// Current revision.
        pub revision: i64,
        /// Rises with each change by a user; part of the etag.
        pub version: i64,
        /// JSON.
        pub fault: Option<String>,
        /// JSON.
        pub effective: Option<String>,
        pub created_millis: i64,
        pub updated_millis: i64,
        /// Above the epochs of all shards that were forgotten; where shards that are added begin.
        pub epoch_floor: i64,
    }
    entity!();
}

/// Specifications. Replays need old ones.
pub mod revision {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "pipe_revisions")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub pipe_uid: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub revision: i64,
        /// JSON.
        pub spec: String,
        /// JSON.
        pub resolved: String,
        pub created_millis: i64,
    }
    entity!();
}

/// Which revision of which pipe refers to which credential.
pub mod credential_use {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "pipe_credentials")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub pipe_uid: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub revision: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        pub credential_uid: String,
    }
    entity!();
}

/// Committed counts of pipes, apart from them because every commit writes here.
pub mod totals {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "pipe_totals")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub pipe_uid: String,
        pub rows: i64,
        pub rejected_records: i64,
        pub records: i64,
        pub bytes: i64,
        pub batches: i64,
        /// Of the rejected ones those that a person has seen to.
        pub rejected_seen: i64,
    }
    entity!();
}

/// Credentials.
pub mod credential {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "credentials")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub uid: String,
        pub project: String,
        pub credential_id: String,
        pub display_name: String,
        /// JSON of what is not secret.
        pub kind: String,
        pub fingerprint: String,
        /// Sealed password or secret access key.
        pub sealed_secret: Option<Vec<u8>>,
        /// Sealed session token.
        pub sealed_token: Option<Vec<u8>>,
        pub created_millis: i64,
    }
    entity!();
}

/// Shards with their leases and checkpoints.
pub mod shard {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "shards")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub pipe_uid: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub shard_id: String,
        /// JSON list of shard ids.
        pub parents: String,
        /// `waiting`, `open` or `finished`.
        pub phase: String,
        pub epoch: i64,
        pub owner_worker: Option<String>,
        pub owner_incarnation: Option<String>,
        /// JSON position.
        pub checkpoint: String,
        /// Ordinal of the last committed slice.
        pub committed_ordinal: i64,
        /// All records that arrived before this lie before the checkpoint; NULL where that is not known.
        pub complete_millis: Option<i64>,
    }
    entity!();
}

/// Open batches.
pub mod batch {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "batches")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub pipe_uid: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub batch_id: String,
        pub revision: i64,
        pub rows: i64,
        pub rejected_records: i64,
        pub records: i64,
        pub bytes: i64,
        pub digest: Vec<u8>,
        pub prepared_millis: i64,
        /// Batches that the pipe had committed then.
        pub prepared_batches: Option<i64>,
        /// JSON; absent in batches of releases that did not know it.
        pub terms: Option<String>,
    }
    entity!();
}

/// Slices of open batches.
pub mod slice {
    use sea_orm::entity::prelude::*;

    /// A row. The primary key says that a shard has one slice of each ordinal.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "batch_slices")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub pipe_uid: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub shard_id: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub ordinal: i64,
        pub batch_id: String,
        /// Place of the slice in its batch: the order of rows in the block depends on it.
        pub slice_index: i64,
        /// JSON position.
        pub from_exclusive: String,
        /// Sequence number.
        pub to_inclusive: String,
    }
    entity!();
}

/// Batches committed lately, each under one of its shards.
pub mod committed {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "committed_batches")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub pipe_uid: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub batch_id: String,
        pub shard_id: String,
        pub ordinal: i64,
    }
    entity!();
}

/// What happened to pipes.
pub mod event {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "pipe_events")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub pipe_uid: String,
        /// ULID; those of a pipe rise.
        #[sea_orm(primary_key, auto_increment = false)]
        pub event_id: String,
        pub created_millis: i64,
        pub kind: String,
        /// `info`, `warning` or `error`.
        pub severity: String,
        pub actor: String,
        pub shard_id: Option<String>,
        pub message: String,
        /// JSON object of texts.
        pub details: String,
        /// An observation that may repeat, and is to be one event.
        pub dedup_key: Option<String>,
    }
    entity!();
}

/// Facts about the database itself.
pub mod setting {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "settings")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub name: String,
        pub value: Vec<u8>,
    }
    entity!();
}

/// The leader among the control planes: one row.
pub mod leader {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "leader")]
    pub struct Model {
        /// Always 1.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i64,
        /// The process; empty if nobody leads.
        pub holder: String,
        pub term: i64,
        /// URL that workers dial; may be empty.
        pub address: String,
        /// By the clock of the database.
        pub expires_millis: i64,
        /// Counts what was stored by control planes that do not lead.
        pub changes: i64,
        /// Counts changes of `observed`.
        pub observed: i64,
    }
    entity!();
}

/// What the leader observes, for the others to read.
pub mod observed {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "observed")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub subject: String,
        /// JSON.
        pub status: String,
    }
    entity!();
}

/// Consumers that Millrace has registered, or is about to. They outlive their pipe.
pub mod consumer {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "consumers")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub pipe_uid: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub stream_arn: String,
        pub project: String,
        pub pipe_id: String,
        /// Full name of whose identity it is registered with.
        pub credential: String,
        pub region: String,
        pub endpoint: Option<String>,
        pub created_millis: i64,
        /// When it was deregistered for the first time since nobody wants it.
        pub gone_millis: Option<i64>,
    }
    entity!();
}

/// Tokens that callers prove themselves with.
pub mod token {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "tokens")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub token_id: String,
        pub display_name: String,
        /// `viewer`, `operator`, `admin` or `worker`.
        pub role: String,
        /// SHA-256 of the token, in hexadecimal digits.
        pub hash: String,
        /// Who made it.
        pub creator: String,
        pub created_millis: i64,
        pub expires_millis: Option<i64>,
        pub revoked_millis: Option<i64>,
        /// About when it was used last.
        pub used_millis: Option<i64>,
    }
    entity!();
}

/// Requests that carry an id, and were carried out lately.
pub mod request {
    use sea_orm::entity::prelude::*;

    /// A row.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "requests")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub caller: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub method: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub request_id: String,
        /// Which of several that were sent at once it is.
        pub attempt: String,
        /// SHA-256 of the request, and what was answered, as far as that is known.
        pub sealed: Vec<u8>,
        pub created_millis: i64,
    }
    entity!();
}

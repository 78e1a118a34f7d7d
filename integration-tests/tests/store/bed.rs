//! What the store tests start from: a database, a pipe, a worker, a batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_common::batch::{Counts, OpenBatch, Terms};
use millrace_common::clock::Clock;
use millrace_common::crypto::{KEY_LEN, Sealer};
use millrace_common::ids::{BatchId, CredentialUid, Epoch, Incarnation, PipeUid, Revision, ShardId, WorkerInstance};
use millrace_common::pipe::{
    DesiredState, Destination, KinesisSource, MappedColumn, PipeSpec, PollingBudget, ResolvedSpec, Settings,
    StartPosition, StreamIdentity, StreamRef,
};
use millrace_common::position::{Position, Slice};
use millrace_control_plane::store::{CredentialSecret, NewCredential, NewPipe, NewShard, Options, Store, StoredPipe};
use millrace_integration_tests::postgres::Postgres;
use secrecy::SecretString;

/// A database of one test.
pub(crate) struct Database {
    /// The store.
    pub(crate) store: Store,
    /// Its clock, which stands still until it is moved.
    pub(crate) clock: Clock,
    url: String,
    _directory: Option<tempfile::TempDir>,
}

impl Database {
    /// SQLite in memory.
    pub(crate) async fn memory() -> Self {
        Self::open("sqlite::memory:".to_owned(), None).await
    }

    /// SQLite in a file.
    pub(crate) async fn file() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/store.db", directory.path().display());
        Self::open(url, Some(directory)).await
    }

    /// PostgreSQL.
    pub(crate) async fn postgres() -> Self {
        let url = Postgres::shared().await.database().await.unwrap();
        Self::open(url, None).await
    }

    async fn open(url: String, directory: Option<tempfile::TempDir>) -> Self {
        let clock = Clock::manual(jiff::Timestamp::now());
        let store = open_at(&url, clock.clone()).await;
        Self {
            store,
            clock,
            url,
            _directory: directory,
        }
    }

    /// Closes it, so that it can be opened by its URL, which is returned with what keeps the database.
    pub(crate) async fn close(self) -> (String, Option<tempfile::TempDir>) {
        self.store.close().await;
        (self.url, self._directory)
    }

    /// Its URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The stores of several control planes: on PostgreSQL each has its own connections; SQLite has one process.
    pub(crate) async fn control_planes(&self, count: usize) -> Vec<Store> {
        let mut stores = vec![self.store.clone()];
        while stores.len() < count {
            let another = if self.url.starts_with("sqlite") {
                self.store.clone()
            } else {
                open(&self.url).await
            };
            stores.push(another);
        }
        stores
    }
}

/// Opens a store as a control plane does.
pub(crate) async fn open(url: &str) -> Store {
    open_at(url, Clock::System).await
}

async fn open_at(url: &str, clock: Clock) -> Store {
    let options = Options {
        max_connections: 6,
        ..Options::new(url)
    };
    let sealer = Arc::new(Sealer::new(&[7; KEY_LEN]).unwrap());
    Store::open(&options, sealer, clock).await.unwrap()
}

/// A specification; only its credentials and its table mean something here.
pub(crate) fn spec(table: &str) -> PipeSpec {
    PipeSpec {
        display_name: String::new(),
        annotations: BTreeMap::new(),
        source: KinesisSource {
            stream: StreamRef::Name("events".to_owned()),
            region: "eu-central-1".to_owned(),
            start: StartPosition::TrimHorizon,
            credential: "projects/default/credentials/aws".parse().unwrap(),
            endpoint: None,
            end: None,
            fan_out: None,
            polling: PollingBudget::default(),
        },
        destination: Destination {
            endpoint: "http://127.0.0.1:8123".to_owned(),
            credential: "projects/default/credentials/clickhouse".parse().unwrap(),
            database: "default".to_owned(),
            table: table.to_owned(),
            error_table: format!("{table}_millrace_error"),
            managed: None,
            columns: Vec::new(),
        },
        field_mappings: Vec::new(),
        decoding: Default::default(),
        replicas: 1,
        settings: Settings::default(),
    }
}

/// The same resolved.
pub(crate) fn resolved(column: &str) -> ResolvedSpec {
    ResolvedSpec {
        revision: Revision(0),
        stream: StreamIdentity {
            arn: "arn:aws:kinesis:eu-central-1:123456789012:stream/events".to_owned(),
            name: "events".to_owned(),
            created: "2026-11-01T00:00:00Z".parse().unwrap(),
        },
        time_zone: "UTC".to_owned(),
        columns: vec![MappedColumn {
            name: column.to_owned(),
            data_type: "String".to_owned(),
            has_default: false,
            source_field: column.to_owned(),
            ..Default::default()
        }],
    }
}

/// Stores the credentials that [`spec`] names.
pub(crate) async fn credentials(store: &Store) {
    for id in ["aws", "clickhouse"] {
        credential(store, &format!("projects/default/credentials/{id}")).await;
    }
}

/// Stores one credential.
pub(crate) async fn credential(store: &Store, name: &str) {
    let new = NewCredential {
        name: name.parse().unwrap(),
        uid: CredentialUid::new(),
        display_name: String::new(),
        secret: CredentialSecret::ClickHouse {
            username: "default".to_owned(),
            password: SecretString::from("secret"),
        },
        source: None,
    };
    store.create_credential(new).await.unwrap();
}

/// A pipe to store, with open shards of these names.
pub(crate) fn new_pipe(name: &str, shards: &[ShardId]) -> NewPipe {
    let shard = |id: &ShardId| NewShard {
        id: id.clone(),
        parents: Vec::new(),
        start: Position::TrimHorizon,
    };
    NewPipe {
        name: format!("projects/default/pipes/{name}").parse().unwrap(),
        uid: PipeUid::new(),
        spec: spec("events"),
        resolved: resolved("a"),
        desired: DesiredState::Running,
        effective: None,
        shards: shards.iter().map(shard).collect(),
    }
}

/// A stored pipe with shards `0..count`, and the credentials that it needs.
pub(crate) async fn pipe(store: &Store, count: usize) -> StoredPipe {
    credentials(store).await;
    let ids: Vec<_> = (0..count).map(shard).collect();
    store.create_pipe(new_pipe("events", &ids)).await.unwrap()
}

/// A shard id.
pub(crate) fn shard(number: usize) -> ShardId {
    format!("shardId-{number:012}").parse().unwrap()
}

/// A worker that has just started.
pub(crate) fn worker(name: &str) -> WorkerInstance {
    WorkerInstance {
        worker: name.parse().unwrap(),
        incarnation: Incarnation::new(),
    }
}

/// After the record with this number. Big, so that nothing treats it as a machine number.
pub(crate) fn after(number: u64) -> Position {
    Position::After(sequence(number).parse().unwrap())
}

fn sequence(number: u64) -> String {
    format!("4959033827149025660855969253836157109592157{number:013}")
}

/// The number in a position that [`after`] made.
pub(crate) fn number(position: &Position) -> u64 {
    let text = position
        .sequence_number()
        .map_or("0", |sequence_number| sequence_number.as_str());
    text[text.len().saturating_sub(13)..].parse().unwrap()
}

/// The slice from a position up to a number.
pub(crate) fn slice(shard: &ShardId, from_exclusive: Position, to: u64) -> Slice {
    Slice {
        shard: shard.clone(),
        from_exclusive,
        to_inclusive: sequence(to).parse().unwrap(),
    }
}

/// A batch of slices with `rows` rows, a rejected record, and so on.
pub(crate) fn batch(slices: Vec<Slice>, rows: u64) -> OpenBatch {
    let counts = Counts {
        rows,
        rejected_records: 1,
        records: rows + 1,
        bytes: rows * 1_000,
    };
    OpenBatch {
        id: BatchId::new(),
        revision: Revision(1),
        slices,
        counts,
        digest: [9; 16],
        terms: Terms::default(),
    }
}

/// Grants shards to a worker under the epochs that the database has.
pub(crate) async fn grant(
    store: &Store,
    uid: PipeUid,
    shards: &[ShardId],
    worker: &WorkerInstance,
) -> Vec<(ShardId, Epoch)> {
    let rows = store.shards(uid).await.unwrap();
    let current = rows
        .into_iter()
        .filter(|row| shards.contains(&row.id))
        .map(|row| (row.id, row.epoch));
    let wanted: Vec<_> = current.collect();
    assert_eq!(wanted.len(), shards.len());
    store.grant(uid, &wanted, worker).await.unwrap()
}

//! What a pipe is: the specification that a user gives, and the resolved one that a worker runs.
//!
//! Both are stored by the control plane as JSON, so every change here must read what was stored before.

use std::{collections::BTreeMap, fmt, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{CredentialName, PipeUid, Revision};

/// What a user asks for. Validated: every field is in its range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipeSpec {
    /// Free text for people.
    pub display_name: String,
    /// Free labels for machines.
    pub annotations: BTreeMap<String, String>,
    /// Where records come from.
    pub source: KinesisSource,
    /// Where rows go.
    pub destination: Destination,
    /// Which source field fills which column; empty: each column from the key of its name.
    pub field_mappings: Vec<FieldMapping>,
    /// How records become rows.
    #[serde(default, skip_serializing_if = "Decoding::is_default")]
    pub decoding: Decoding,
    /// Number of workers that the shards may spread over.
    pub replicas: u32,
    /// Batching and delivery.
    pub settings: Settings,
}

/// A Kinesis data stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KinesisSource {
    /// Name or ARN.
    pub stream: StreamRef,
    /// Region.
    pub region: String,
    /// Where the pipe starts.
    pub start: StartPosition,
    /// AWS credential.
    pub credential: CredentialName,
    /// Endpoint override.
    pub endpoint: Option<String>,
    /// Records that arrived then or later are not read: a backfill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
    /// Read by enhanced fan-out; else by polling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fan_out: Option<FanOut>,
    /// How fast a shard may be polled.
    #[serde(default, skip_serializing_if = "PollingBudget::is_default")]
    pub polling: PollingBudget,
}

/// How fast one shard may be polled: less than what Kinesis allows, where others poll it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PollingBudget {
    /// GetRecords calls a second; `None`: as many as Kinesis allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls_per_second: Option<u32>,
    /// Payload bytes a second; `None`: as many as Kinesis allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

impl PollingBudget {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Whose consumer a pipe reads with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FanOut {
    /// One that Millrace registers, for this pipe alone, and deregisters.
    Managed,
    /// One that the user has registered, by its ARN.
    Consumer(String),
}

/// The name of the consumer that Millrace registers for a pipe.
#[must_use]
pub fn managed_consumer(pipe: PipeUid) -> String {
    format!("millrace-{pipe}")
}

/// How a user names a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamRef {
    /// By name, in the credential's account.
    Name(String),
    /// By ARN.
    Arn(String),
}

impl StreamRef {
    /// The stream's name: of an ARN, what follows `stream/`.
    pub fn name(&self) -> &str {
        match self {
            StreamRef::Name(name) => name,
            StreamRef::Arn(arn) => arn.rsplit_once('/').map_or(arn, |(_, name)| name),
        }
    }
}

/// Where a new pipe starts, as the user asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartPosition {
    /// At the oldest record.
    TrimHorizon,
    /// After what the stream holds when the pipe is created.
    Latest,
    /// At a time.
    AtTimestamp(Timestamp),
}

/// A ClickHouse table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// HTTP interface.
    pub endpoint: String,
    /// ClickHouse credential.
    pub credential: CredentialName,
    /// Database.
    pub database: String,
    /// Table.
    pub table: String,
    /// Table for rejected records, in the same database.
    pub error_table: String,
    /// Shape of the table if Millrace makes it; `None` for a table that exists.
    pub managed: Option<TableDefinition>,
    /// Columns to fill; of a managed table, all its columns. Empty: all that can be inserted.
    pub columns: Vec<Column>,
}

/// Shape of a managed table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDefinition {
    /// Engine.
    pub engine: TableEngine,
    /// Columns of ORDER BY.
    pub sorting_key: Vec<String>,
    /// PARTITION BY.
    pub partition_by: Option<PartitionBy>,
    /// Columns of PRIMARY KEY, the first ones of the sorting key; empty means all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub primary_key: Vec<String>,
    /// When rows are removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<TableTtl>,
    /// Settings, but for the deduplication window.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
    /// The engine's Replicated form.
    #[serde(default, skip_serializing_if = "is_false")]
    pub replicated: bool,
    /// Cluster on which tables are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
}

/// Engine of a managed table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableEngine {
    /// MergeTree.
    MergeTree,
    /// ReplacingMergeTree.
    ReplacingMergeTree {
        /// Of rows of one sorting key, the one with the largest value here survives.
        version: Option<String>,
    },
    /// SummingMergeTree.
    SummingMergeTree {
        /// What is added up; empty means all numbers outside the key.
        columns: Vec<String>,
    },
    /// Null: rows go to materialized views only.
    Null,
}

/// When rows of a managed table are removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableTtl {
    /// A column with a time.
    pub column: String,
    /// So many seconds after it.
    pub seconds: u64,
}

/// PARTITION BY of a managed table: a column, or one function of one column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionBy {
    /// The function, of a fixed list.
    pub function: Option<String>,
    /// The column.
    pub column: String,
}

/// A column as a user gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Name.
    pub name: String,
    /// ClickHouse type; empty where the table exists and decides.
    pub data_type: String,
}

/// Fills one column from one source field, or with a constant.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FieldMapping {
    /// JSON key, dotted path, JSON pointer or virtual column; empty for a constant.
    pub source_field: String,
    /// Column.
    pub destination_field: String,
    /// A JSON value for all rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constant: Option<String>,
    /// Refuse records in which the value is null or missing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub required: bool,
}

/// How records become rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Decoding {
    /// Keys that no column is for.
    #[serde(default)]
    pub on_unknown_field: UnknownFieldPolicy,
    /// Columns are also filled from objects inside the record, by the keys that lead to a value with this between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flatten_separator: Option<String>,
    /// Records are taken as they are: aggregates are not split, and nothing is decompressed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub keep_packed: bool,
    /// Messages of aggregates whose hash key is outside the range of their shard.
    #[serde(default, skip_serializing_if = "OutOfRangePolicy::is_default")]
    pub on_out_of_range: OutOfRangePolicy,
    /// What documents are wrapped in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envelope: Option<Envelope>,
}

/// What becomes of messages of aggregates whose hash key is outside the range of their shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutOfRangePolicy {
    /// They are taken as the others.
    #[default]
    Keep,
    /// They are left out.
    Drop,
    /// They are refused.
    Reject,
}

impl OutOfRangePolicy {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What AWS services wrap documents in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Envelope {
    /// A subscription of CloudWatch Logs: log events.
    CloudwatchLogs,
    /// An event of EventBridge: its detail.
    Eventbridge,
    /// A notification of SNS: its message.
    Sns,
    /// A change record of a DynamoDB table: its new image, or its keys.
    DynamodbStream,
}

impl Decoding {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of keys that no column is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownFieldPolicy {
    /// They are left out.
    #[default]
    Ignore,
    /// The record is refused.
    Reject,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Batching and delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Close a batch after this many rows.
    pub max_batch_rows: u64,
    /// Close a batch at this many bytes of encoded block.
    pub max_batch_bytes: u64,
    /// Close a batch this long after its first row.
    pub max_insert_wait: Duration,
    /// How blocks travel.
    pub compression: Compression,
    /// What is promised.
    pub delivery: Delivery,
    /// What to do where records may be gone.
    #[serde(default, skip_serializing_if = "DataGapPolicy::is_default")]
    pub on_data_gap: DataGapPolicy,
    /// Halt once so many records were rejected since a person looked.
    #[serde(default = "max_rejected_records", skip_serializing_if = "is_max_rejected_records")]
    pub max_rejected_records: u64,
}

/// Of records of a kilobyte, ten gigabytes.
fn max_rejected_records() -> u64 {
    10_000_000
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks like that")]
fn is_max_rejected_records(records: &u64) -> bool {
    *records == max_rejected_records()
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_batch_rows: 100_000,
            max_batch_bytes: 20_000_000,
            max_insert_wait: Duration::from_secs(5),
            compression: Compression::Lz4,
            delivery: Delivery::ExactlyOnce,
            on_data_gap: DataGapPolicy::Halt,
            max_rejected_records: max_rejected_records(),
        }
    }
}

/// What to do where records may have left the stream before they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataGapPolicy {
    /// Stop there.
    #[default]
    Halt,
    /// Go on at the oldest record.
    Resume,
}

impl DataGapPolicy {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How blocks travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// LZ4.
    Lz4,
    /// ZSTD frames.
    Zstd,
    /// As they are.
    None,
}

/// What is promised of each record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Once.
    ExactlyOnce,
    /// Once or more.
    AtLeastOnce,
}

/// What a user wants of a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DesiredState {
    /// Move records.
    Running,
    /// Hold the position.
    Stopped,
}

/// A specification resolved against the stream and the table: what a batch of this revision is made with. It holds no
/// secrets, and it does not change when the table does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedSpec {
    /// Revision.
    pub revision: Revision,
    /// The stream.
    pub stream: StreamIdentity,
    /// Columns to fill, in the order of the block.
    pub columns: Vec<MappedColumn>,
    /// Time zone of the ClickHouse server (IANA name): that of columns whose type names none.
    pub time_zone: String,
}

/// A stream is its ARN and its creation time: one that was deleted and made again under its name is another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamIdentity {
    /// ARN.
    pub arn: String,
    /// Name.
    pub name: String,
    /// When it was created.
    pub created: Timestamp,
}

/// One column to fill.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MappedColumn {
    /// Column name.
    pub name: String,
    /// ClickHouse type as the server spells it.
    pub data_type: String,
    /// The column has a DEFAULT expression.
    pub has_default: bool,
    /// JSON key, dotted path, JSON pointer or virtual column; empty for a constant.
    pub source_field: String,
    /// A JSON value for all rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constant: Option<String>,
    /// Refuse records in which the value is null or missing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub required: bool,
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Delivery::ExactlyOnce => "EXACTLY_ONCE",
            Delivery::AtLeastOnce => "AT_LEAST_ONCE",
        })
    }
}

//! Aggregates with messages of other shards, where those are dropped or refused, while workers die between prepare and commit: whoever
//! comes after builds the same batches, so that every message that counts is there once, and every refused one as well.

#![allow(clippy::print_stderr, reason = "where it was killed is worth reading in the log")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use md5::{Digest as _, Md5};
use millrace_integration_tests::{
    clickhouse::ClickHouse,
    cluster::{Cluster, Options, Table, pipe_spec},
    kinesis::{Emulator, Handle, Options as KinesisOptions, Put},
    process::eventually,
};
use millrace_proto::api::v1::{Decoding, OutOfRangePolicy, Settings};

const LIMIT: Duration = Duration::from_secs(120);
const STREAM: &str = "halves";
/// Aggregates for each of the two shards.
const AGGREGATES: u64 = 40;
/// Messages of an aggregate. Every third belongs to the other shard.
const MESSAGES: u64 = 25;

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn field(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// An aggregate as the KPL writes it: its keys, the hash keys of both halves, and messages of an id and a half.
fn aggregate(messages: impl Iterator<Item = (u64, u8)>) -> Vec<u8> {
    let mut body = Vec::new();
    field(1, b"key", &mut body);
    for hash_key in [0, 1u128 << 127] {
        field(2, hash_key.to_string().as_bytes(), &mut body);
    }
    for (id, half) in messages {
        let mut message = vec![1 << 3, 0, 2 << 3, half];
        field(3, format!("{{\"id\":{id}}}").as_bytes(), &mut message);
        field(3, &message, &mut body);
    }
    [&b"\xF3\x89\x9A\xC2"[..], &body, &Md5::digest(&body)].concat()
}

struct Bed {
    clickhouse: &'static ClickHouse,
    database: String,
    kinesis: Handle,
    cluster: Cluster,
    policy: OutOfRangePolicy,
}

impl Bed {
    async fn new(policy: OutOfRangePolicy) -> anyhow::Result<Self> {
        let clickhouse = ClickHouse::shared().await;
        let database = clickhouse.database().await?;
        let kinesis = Emulator::start(KinesisOptions::default()).await?;
        kinesis.create_stream(STREAM, 2)?;
        let options = Options {
            fail_points: true,
            ..Options::unpaced()
        };
        let cluster = Cluster::start(options, 1).await?;
        cluster.create_credentials(clickhouse).await?;
        let table = Table {
            database: &database,
            table: "t",
            columns: &[("id", "UInt64")],
            sorting_key: &["id"],
        };
        let mut pipe = pipe_spec(&kinesis.endpoint_url(), STREAM, clickhouse, table);
        pipe.decoding = Some(Decoding {
            on_out_of_range: policy.into(),
            ..Default::default()
        });
        pipe.settings = Some(Settings {
            max_insert_wait: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            ..Default::default()
        });
        cluster.create_pipe(STREAM, pipe).await?;
        Ok(Self {
            clickhouse,
            database,
            kinesis,
            cluster,
            policy,
        })
    }

    /// Puts the aggregates of a round, in turns into both shards.
    fn put(&self, round: u64) -> anyhow::Result<()> {
        let records: Vec<_> = (0..2 * AGGREGATES)
            .map(|n| {
                let half = (n % 2) as u8;
                let first = (round * 2 * AGGREGATES + n) * MESSAGES;
                let message = |id: u64| (id, if id.is_multiple_of(3) { 1 - half } else { half });
                (half, aggregate((first..first + MESSAGES).map(message)))
            })
            .collect();
        let puts = records.iter().map(|(half, data)| Put {
            explicit_hash_key: Some(u128::from(*half) << 127),
            ..Put::new("key", data)
        });
        self.kinesis.put_records_direct(STREAM, puts)?;
        Ok(())
    }

    /// The worker dies where it is told to, and another takes its place.
    async fn kill_at(&mut self, point: &str, round: u64) -> anyhow::Result<()> {
        self.cluster.arm("worker-0", &format!("{point}=kill"))?;
        self.put(round)?;
        let died = eventually(point, LIMIT, || async {
            let worker = self.cluster.worker(0).context("it was started")?;
            ensure!(worker.status().is_some(), "it still runs");
            Ok(())
        });
        died.await.with_context(|| self.cluster.logs())?;
        eprintln!("killed at {point}");
        self.cluster.arm("worker-0", "")?;
        self.cluster.kill_worker(0).await?;
        self.cluster.start_worker(0)?;
        // Rows and what was rejected are counted; what was dropped is not.
        let messages = (round + 1) * 2 * AGGREGATES * MESSAGES;
        let counted = match self.policy {
            OutOfRangePolicy::Reject => messages,
            _ => messages - messages.div_ceil(3),
        };
        let waited = self.cluster.wait_for_records(STREAM, counted, LIMIT).await;
        let totals = waited.with_context(|| self.cluster.logs())?;
        ensure!(totals.records == (round + 1) * 2 * AGGREGATES, "{totals:?}");
        Ok(())
    }

    async fn query(&self, query: &str) -> anyhow::Result<String> {
        let query = query.replace("{db}", &self.database);
        Ok(self.clickhouse.query(&query).await?.trim().to_owned())
    }
}

async fn run(policy: OutOfRangePolicy, points: &[&str]) -> anyhow::Result<()> {
    let mut bed = Bed::new(policy).await?;
    for (round, point) in (0..).zip(points) {
        bed.kill_at(point, round).await?;
    }
    let all = points.len() as u64 * 2 * AGGREGATES * MESSAGES;
    let strangers = all.div_ceil(3);
    let rows = bed
        .query("SELECT count(), uniqExact(id), countIf(id % 3 = 0) FROM {db}.t FORMAT TSV")
        .await?;
    let own = all - strangers;
    ensure!(rows == format!("{own}\t{own}\t0"), "{rows}, expected {own}");
    let refused = if policy == OutOfRangePolicy::Reject {
        strangers
    } else {
        0
    };
    let errors = "SELECT count(), uniqExact(JSONExtractUInt(record_value, 'id')), countIf(JSONExtractUInt(record_value, 'id') % 3 != 0), \
                  countIf(error_type != 'out_of_hash_range') FROM {db}.t_millrace_error FORMAT TSV";
    let errors = bed.query(errors).await?;
    ensure!(
        errors == format!("{refused}\t{refused}\t0\t0"),
        "{errors}, expected {refused}"
    );
    eprintln!("{own} messages once, {refused} refused once");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_messages_are_refused_once_wherever_the_worker_dies() -> anyhow::Result<()> {
    let points = [
        "worker.prepare.after",
        "worker.send.errors_inserted",
        "worker.send.rows_inserted",
        "worker.commit.before",
    ];
    run(OutOfRangePolicy::Reject, &points).await
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_messages_stay_out_wherever_the_worker_dies() -> anyhow::Result<()> {
    let points = ["worker.prepare.after", "worker.send.rows_inserted"];
    run(OutOfRangePolicy::Drop, &points).await
}

//! The ledger: what was put into a stream against what a table holds. It knows nothing of Millrace, and asks only ClickHouse.
//!
//! Every record has a unique `id` (0, 1, 2, …) and counts the records of its partition key in `seq_in_key`. The table also has
//! the virtual column `_key` and `_sequence_number`.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::{clickhouse::ClickHouse, events::Events};

/// Ids of lost and doubled records that a verdict names.
const EXAMPLES: usize = 10;

/// What the ledger found. All is well if `lost`, `duplicated`, `disordered` and `misplaced` are 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Records put.
    pub records: u64,
    /// Rows of the table.
    pub rows: u64,
    /// Rows of the error table.
    pub rejected: u64,
    /// Records that are in neither table.
    pub lost: u64,
    /// Rows too many, in both tables.
    pub duplicated: u64,
    /// Rows whose counter goes back while the sequence number of their key goes on.
    pub disordered: u64,
    /// Good records in the error table, and malformed ones in the table.
    pub misplaced: u64,
    /// Some of the lost ids.
    pub lost_ids: Vec<u64>,
    /// Some of the doubled ids.
    pub duplicated_ids: Vec<u64>,
}

impl Verdict {
    /// Whether every record is where it belongs, once and in order.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        (self.lost, self.duplicated, self.disordered, self.misplaced) == (0, 0, 0, 0)
    }
}

/// Tables that the ledger looks at.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    /// Database.
    pub database: &'a str,
    /// Rows.
    pub table: &'a str,
    /// Rejected records.
    pub errors: &'a str,
}

/// Compares records `0..records` of `events` with what the tables hold.
///
/// # Errors
/// If ClickHouse does not answer, or not as expected.
pub async fn check(
    clickhouse: &ClickHouse,
    tables: Tables<'_>,
    events: &Events,
    records: u64,
) -> anyhow::Result<Verdict> {
    let Tables {
        database,
        table,
        errors,
    } = tables;
    let rows = number(clickhouse, &format!("SELECT count() FROM `{database}`.`{table}`")).await?;
    let rejected = number(clickhouse, &format!("SELECT count() FROM `{database}`.`{errors}`")).await?;
    let duplicates =
        format!("SELECT id FROM `{database}`.`{table}` GROUP BY id HAVING count() > 1 ORDER BY id LIMIT {EXAMPLES}");
    let duplicated_ids = numbers(clickhouse, &duplicates).await?;
    let distinct = number(clickhouse, &format!("SELECT uniqExact(id) FROM `{database}`.`{table}`")).await?;
    let distinct_rejected = number(
        clickhouse,
        &format!("SELECT uniqExact(shard_id, sequence_number) FROM `{database}`.`{errors}`"),
    )
    .await?;
    let missing: BTreeSet<u64> = {
        let query = format!(
            "SELECT number FROM numbers({records}) WHERE number NOT IN (SELECT id FROM `{database}`.`{table}`)"
        );
        numbers(clickhouse, &query).await?.into_iter().collect()
    };
    let malformed: BTreeSet<u64> = (0..records).filter(|id| events.is_malformed(*id)).collect();
    // A malformed record has no readable id, so those are compared as counts.
    let lost_ids: Vec<u64> = missing.difference(&malformed).copied().collect();
    let misplaced = malformed.difference(&missing).count() as u64;
    let expected_rejected = malformed.len() as u64;
    let lost_rejected = expected_rejected.saturating_sub(distinct_rejected);
    let surplus_rejected = distinct_rejected.saturating_sub(expected_rejected);
    let order = format!(
        "SELECT countIf(seq_in_key < before) FROM (SELECT seq_in_key, lagInFrame(seq_in_key) OVER (PARTITION BY _key \
         ORDER BY toUInt256(_sequence_number) ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS before \
         FROM `{database}`.`{table}`)"
    );
    let disordered = number(clickhouse, &order).await?;
    Ok(Verdict {
        records,
        rows,
        rejected,
        lost: lost_ids.len() as u64 + lost_rejected,
        duplicated: (rows - distinct) + (rejected - distinct_rejected),
        disordered,
        misplaced: misplaced + surplus_rejected,
        lost_ids: lost_ids.into_iter().take(EXAMPLES).collect(),
        duplicated_ids,
    })
}

/// In which order rows came to the table, by the blocks that they came in.
///
/// ClickHouse numbers the blocks of a table in the order in which they were committed there, and a row's `_part` has that
/// number for as long as the part was not merged. A row is *late* if a newer one of its partition key, one with a larger
/// counter, is in a block that came before its own: whoever had looked in between would have seen the newer record without
/// the older one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Arrival {
    /// Blocks that the table consists of.
    pub blocks: u64,
    /// Rows that came after a newer one of their key.
    pub late: u64,
    /// Some of their keys.
    pub keys: Vec<String>,
}

/// Looks at the order in which rows came. Merges must have been stopped before the first insert, by [`stop_merges`].
///
/// # Errors
/// If ClickHouse does not answer, or parts were merged, so that nothing can be told.
pub async fn arrival(clickhouse: &ClickHouse, tables: Tables<'_>) -> anyhow::Result<Arrival> {
    let Tables { database, table, .. } = tables;
    let rows = format!(
        "SELECT _key AS key, toUInt64(extract(_part, '_([0-9]+)_[0-9]+_[0-9]+$')) AS block, min(block) OVER (PARTITION BY key ORDER BY \
         seq_in_key DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS newer FROM `{database}`.`{table}`"
    );
    // The newest row of a key has nothing newer: the frame is empty, which reads as 0.
    let late = format!("SELECT key FROM ({rows}) WHERE newer > 0 AND newer < block");
    let merged = format!("SELECT uniqExact(_part) FROM `{database}`.`{table}` WHERE NOT endsWith(_part, '_0')");
    let merged = number(clickhouse, &merged).await?;
    anyhow::ensure!(
        merged == 0,
        "{merged} parts of {table} were merged: the order of its blocks is lost"
    );
    let keys = clickhouse
        .query(&format!(
            "SELECT DISTINCT key FROM ({late}) ORDER BY key LIMIT {EXAMPLES}"
        ))
        .await?;
    Ok(Arrival {
        blocks: number(
            clickhouse,
            &format!("SELECT uniqExact(_part) FROM `{database}`.`{table}`"),
        )
        .await?,
        late: number(clickhouse, &format!("SELECT count() FROM ({late})")).await?,
        keys: keys.split_whitespace().map(str::to_owned).collect(),
    })
}

/// Keeps a table's parts as they were inserted, for [`arrival`].
///
/// # Errors
/// If ClickHouse does not answer.
pub async fn stop_merges(clickhouse: &ClickHouse, tables: Tables<'_>) -> anyhow::Result<()> {
    let Tables { database, table, .. } = tables;
    clickhouse
        .query(&format!("SYSTEM STOP MERGES `{database}`.`{table}`"))
        .await?;
    Ok(())
}

async fn number(clickhouse: &ClickHouse, query: &str) -> anyhow::Result<u64> {
    Ok(clickhouse.query(query).await?.trim().parse()?)
}

async fn numbers(clickhouse: &ClickHouse, query: &str) -> anyhow::Result<Vec<u64>> {
    clickhouse
        .query(query)
        .await?
        .split_whitespace()
        .map(|word| Ok(word.parse()?))
        .collect()
}

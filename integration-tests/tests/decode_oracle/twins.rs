//! Two tables of one shape: ClickHouse fills one from JSON, Millrace the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use millrace_data_plane::batch::block::Block;
use millrace_data_plane::decode::{Decoder, FieldSource, MappedColumn, Plan, RecordMeta, Rejection};
use millrace_data_plane::sink::clickhouse::native::compress_lz4;
use millrace_integration_tests::clickhouse::{ClickHouse, Error, Request};
use serde_json::value::RawValue;

use super::differences;
use super::records::Record;
use super::table::{Column, Table};

const META: RecordMeta<'static> = RecordMeta {
    partition_key: b"key",
    arrival_millis: 1_700_000_000_123,
    stream: "events",
    shard_id: "shardId-000000000000",
    sequence_number: b"49590338271490256608559692538361571095921575989136588898",
    sub_sequence_number: 0,
    hash_keys: None,
};

/// What became of one record.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The same row in both.
    Rows,
    /// A row in neither.
    Refused,
    /// Not the same, as the documentation says.
    Documented(&'static str),
    /// Not the same.
    Different(String),
}

/// Cells of a row, as JSON text.
type Row = Vec<String>;

pub(crate) struct Twins<'a> {
    clickhouse: &'a ClickHouse,
    database: String,
    pub(crate) columns: Vec<Column>,
    plan: Arc<Plan>,
    /// What is compared, MATERIALIZED and ALIAS columns too.
    selected: String,
    /// True if the type of a value may depend on the rows before it.
    is_dynamic: bool,
}

impl<'a> Twins<'a> {
    pub(crate) async fn new(clickhouse: &'a ClickHouse, table: &Table) -> Result<Twins<'a>> {
        let database = clickhouse.database().await?;
        for name in ["a", "b"] {
            let create = format!(
                "CREATE TABLE {database}.{name} ({}) ENGINE = Memory",
                table.declaration()
            );
            let request = Request::query(&create)
                .parameter("flatten_nested", u8::from(table.flatten_nested))
                .parameter("allow_suspicious_low_cardinality_types", 1)
                .parameter("allow_suspicious_variant_types", 1);
            clickhouse.send(request).await?.into_text()?;
        }
        let listed = format!(
            "SELECT name, type, default_kind FROM system.columns WHERE database = '{database}' AND table = 'b' ORDER BY position FORMAT JSONCompactEachRow"
        );
        let mut columns = Vec::new();
        let mut selected = Vec::new();
        for line in clickhouse.query(&listed).await?.lines() {
            let (name, data_type, kind): (String, String, String) = serde_json::from_str(line)?;
            selected.push(format!("`{name}`"));
            if matches!(kind.as_str(), "" | "DEFAULT") {
                let data_type = data_type.parse().with_context(|| data_type.clone())?;
                columns.push(Column {
                    name,
                    data_type,
                    has_default: kind == "DEFAULT",
                });
            }
        }
        let zone = clickhouse.query("SELECT serverTimezone()").await?;
        let mapped = columns.iter().map(|column| MappedColumn {
            name: column.name.clone(),
            data_type: column.data_type.clone(),
            has_default: column.has_default,
            source: FieldSource::Key(column.name.clone()),
            required: false,
        });
        let options = millrace_data_plane::decode::Options {
            time_zone: zone.trim().to_owned(),
            ..Default::default()
        };
        let declared = table.declaration();
        Ok(Twins {
            clickhouse,
            database,
            plan: Arc::new(Plan::compile_with(mapped.collect(), &options)?),
            columns,
            selected: selected.join(", "),
            is_dynamic: declared.contains("JSON") || declared.contains("Dynamic"),
        })
    }

    pub(crate) async fn drop(self) -> Result<()> {
        self.clickhouse
            .query(&format!("DROP DATABASE {}", self.database))
            .await?;
        Ok(())
    }

    /// Compares all records at once, and those that differ (or may spoil others) one by one.
    pub(crate) async fn compare(&mut self, records: &[Record]) -> Result<Vec<Outcome>> {
        let mut together: Vec<&Record> = records.iter().filter(|record| !record.alone).collect();
        let mut decoder = Decoder::new(self.plan.clone());
        let mut block = Block::new(&self.plan);
        let mut ours = BTreeMap::new();
        for record in &together {
            ours.insert(record.id, decoder.decode_whole(&record.text, &META, &mut block).is_ok());
        }
        let inserted = self.insert_block(&block).await?;
        self.insert_json(&together).await?;
        // Where a row was left out, ClickHouse may mix up the others (seen with Nullable(Decimal)): that gives verdicts and
        // no rows.
        let taken = self.ids("a").await?;
        self.clickhouse
            .query(&format!("TRUNCATE TABLE {}.a", self.database))
            .await?;
        together.retain(|record| taken.contains(&record.id));
        self.insert_json(&together).await?;
        let (theirs, rows) = (self.rows("a").await, self.rows("b").await);
        let mut outcomes = Vec::new();
        for record in records {
            let (Ok(theirs), Ok(rows), Ok(())) = (&theirs, &rows, &inserted) else {
                // ClickHouse can leave what it cannot print, and refuses a block for one of its rows.
                outcomes.push(self.alone(record).await?);
                continue;
            };
            let accepted = ours.get(&record.id);
            let (left, right) = (theirs.get(&record.id), rows.get(&record.id));
            outcomes.push(match (accepted, left, right) {
                (Some(true), Some(left), Some(right)) if left == right => Outcome::Rows,
                (Some(false), None, None) => Outcome::Refused,
                _ => match self.alone(record).await? {
                    // Alone it is the same: then its neighbours made the difference, which nothing but types may.
                    Outcome::Rows if !self.is_dynamic && left.is_some() && right.is_some() => Outcome::Different(
                        format!("only among others: ClickHouse {left:?}\n  Millrace   {right:?}"),
                    ),
                    outcome => outcome,
                },
            });
        }
        Ok(outcomes)
    }

    /// One record, in tables that hold nothing else.
    async fn alone(&self, record: &Record) -> Result<Outcome> {
        for table in ["a", "b"] {
            self.clickhouse
                .query(&format!("TRUNCATE TABLE {}.{table}", self.database))
                .await?;
        }
        let mut block = Block::new(&self.plan);
        let ours = Decoder::new(self.plan.clone()).decode_whole(&record.text, &META, &mut block);
        let request = Request::insert(
            &format!("INSERT INTO {}.a FORMAT JSONEachRow", self.database),
            record.text.clone(),
        );
        let theirs = self
            .clickhouse
            .send(request.parameter("async_insert", 0))
            .await?
            .into_text();
        Ok(match (theirs, ours) {
            (Err(_), Err(_)) => Outcome::Refused,
            (Ok(_), Err(rejection)) => self.stricter(record, &rejection),
            (Err(error), Ok(())) => match differences::wider(record, &self.columns) {
                Some(class) => Outcome::Documented(class),
                None => Outcome::Different(format!("ClickHouse: {error}\n  Millrace takes it")),
            },
            (Ok(_), Ok(())) => self.rows_alone(record, &block).await?,
        })
    }

    fn stricter(&self, record: &Record, rejection: &Rejection) -> Outcome {
        match differences::stricter(record, &self.columns, rejection) {
            Some(class) => Outcome::Documented(class),
            None => Outcome::Different(format!("ClickHouse takes it\n  Millrace: {rejection}")),
        }
    }

    async fn rows_alone(&self, record: &Record, block: &Block) -> Result<Outcome> {
        if let Err(error) = self.insert_block(block).await? {
            return Ok(Outcome::Different(format!(
                "both take it, but the block is refused: {error}"
            )));
        }
        let names: Vec<&str> = self.selected.split(", ").collect();
        let mut documented = None;
        let mut different = Vec::new();
        for (index, column) in self.columns.iter().enumerate() {
            let cell = format!("`{}`", column.name);
            let (theirs, ours) = (self.cell("a", &cell).await?, self.cell("b", &cell).await?);
            if theirs.is_ok() && theirs == ours {
                continue;
            }
            match differences::different(record, &self.columns, index) {
                Some(class) => documented = Some(class),
                None => different.push(format!("{}: ClickHouse {theirs:?}\n  Millrace {ours:?}", column.name)),
            }
        }
        for cell in names
            .iter()
            .filter(|name| self.columns.iter().all(|column| **name != format!("`{}`", column.name)))
        {
            let (theirs, ours) = (self.cell("a", cell).await?, self.cell("b", cell).await?);
            if theirs != ours && documented.is_none() {
                different.push(format!("{cell}: ClickHouse {theirs:?}\n  Millrace {ours:?}"));
            }
        }
        Ok(match (different.is_empty(), documented) {
            (false, _) => Outcome::Different(different.join("\n  ")),
            (true, Some(class)) => Outcome::Documented(class),
            (true, None) => Outcome::Rows,
        })
    }

    /// All values of one column, or why they cannot be read.
    async fn cell(&self, table: &str, column: &str) -> Result<Result<String, String>> {
        let query = format!(
            "SELECT {column} FROM {}.{table} FORMAT JSONCompactEachRow",
            self.database
        );
        Ok(self
            .clickhouse
            .send(Self::printing(&query))
            .await?
            .into_text()
            .map_err(|error| error.to_string()))
    }

    /// Inserts what was decoded, as a real insert does.
    async fn insert_block(&self, block: &Block) -> Result<Result<(), Error>> {
        let columns: Vec<String> = self
            .plan
            .insert_columns()
            .iter()
            .map(|name| format!("`{name}`"))
            .collect();
        let mut native = Vec::new();
        block.write_native(&mut native);
        let mut frames = Vec::new();
        compress_lz4(&native, &mut frames);
        let statement = format!("INSERT INTO {}.b ({}) FORMAT Native", self.database, columns.join(", "));
        let request = Request::insert(&statement, frames)
            .parameter("decompress", 1)
            .parameter("async_insert", 0)
            .parameter("input_format_native_allow_types_conversion", 0)
            .parameter("input_format_skip_unknown_fields", 0)
            .parameter("input_format_null_as_default", 1);
        Ok(self.clickhouse.send(request).await?.into_text().map(drop))
    }

    /// One line for each record; the ones that ClickHouse cannot parse are left out, by it or by halving what it refuses.
    async fn insert_json(&self, records: &[&Record]) -> Result<()> {
        let mut pending = vec![records];
        while let Some(records) = pending.pop() {
            let mut lines = Vec::new();
            for record in records {
                lines.extend_from_slice(&record.text);
                lines.push(b'\n');
            }
            let request = Request::insert(&format!("INSERT INTO {}.a FORMAT JSONEachRow", self.database), lines)
                .parameter("async_insert", 0)
                .parameter("input_format_parallel_parsing", 0)
                .parameter("input_format_allow_errors_num", records.len());
            let refused = self.clickhouse.send(request).await?.into_text().is_err();
            if refused && records.len() > 1 {
                let (left, right) = records.split_at(records.len() / 2);
                pending.extend([left, right]);
            }
        }
        Ok(())
    }

    fn printing(query: &str) -> Request {
        Request::query(query)
            .parameter("wait_end_of_query", 1)
            .parameter("output_format_json_quote_denormals", 1)
            .parameter("output_format_json_quote_decimals", 1)
    }

    async fn ids(&self, table: &str) -> Result<BTreeSet<usize>> {
        let ids = format!("SELECT id FROM {}.{table}", self.database);
        let text = self.clickhouse.query(&ids).await?;
        text.lines().map(|id| Ok(id.parse()?)).collect()
    }

    /// The rows of a table by id. A record that ClickHouse refused without a row has none.
    async fn rows(&self, table: &str) -> Result<BTreeMap<usize, Row>> {
        let query = format!(
            "SELECT {} FROM {}.{table} FORMAT JSONCompactEachRow",
            self.selected, self.database
        );
        let text = self.clickhouse.send(Self::printing(&query)).await?.into_text()?;
        let mut rows = BTreeMap::new();
        for line in text.lines() {
            let cells: Vec<&RawValue> = serde_json::from_str(line).with_context(|| line.to_owned())?;
            let id = cells.first().context("a row without cells")?.get().parse()?;
            rows.insert(id, cells.iter().map(|cell| cell.get().to_owned()).collect());
        }
        Ok(rows)
    }
}

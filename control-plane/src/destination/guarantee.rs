//! What a pipe promises in effect. Exactly once needs a destination that remembers insert tokens: the table, the error
//! table, and every table behind them that a materialized view fills in the same insert. And it has to remember enough of
//! them: an insert uses one entry of the memory for each partition that it touches.

use millrace_common::{
    clickhouse::quote_identifier,
    pipe::{Delivery, PipeSpec},
};
use serde::Deserialize;

use super::{
    Error,
    client::Server,
    ddl,
    schema::{self, Table},
};
use crate::store::{Effective, Window};

/// Tables behind a table that are looked at. More of them make every insert slow long before.
const MAX_TARGETS: usize = 32;
/// Batches that a lane of a worker may have in flight.
const OPEN_BATCHES: u64 = 3;
/// Most partitions that an insert may touch: ClickHouse's own default limit.
const MAX_PARTITIONS: u64 = 100;
/// How many times the batches in flight have to fit into the memory: others write to the table as well, and an insert
/// that is repeated must be remembered although others came between.
const MARGIN: u64 = 4;

const PLAIN_WINDOW: &str = "non_replicated_deduplication_window";
const REPLICATED_WINDOW: &str = "replicated_deduplication_window";
const REPLICATED_SECONDS: &str = "replicated_deduplication_window_seconds";

/// What an engine remembers of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Memory {
    /// Those of so many blocks and seconds; `None` where the server's default counts and is not known.
    Window { blocks: Option<u64>, seconds: Option<u64> },
    /// None, until its window is set.
    Off,
    /// None, whatever is set.
    Never,
}

/// Defaults of a server, as far as this user may know them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Defaults {
    plain: Option<u64>,
    pub(super) replicated: Option<u64>,
    replicated_seconds: Option<u64>,
}

/// A table that an insert reaches.
struct Reached {
    table: Table,
    /// It is the hidden table of a materialized view of that name.
    inner: bool,
}

pub(super) async fn effective(server: &Server, spec: &PipeSpec, table: &Table) -> Result<Effective, Error> {
    if spec.settings.delivery == Delivery::AtLeastOnce {
        return Ok(Effective {
            delivery: Delivery::AtLeastOnce,
            reason: "pipe.settings.delivery asks for no more".to_owned(),
            window: None,
        });
    }
    let defaults = defaults(server).await;
    let destination = &spec.destination;
    let mut queue = vec![Reached {
        table: table.clone(),
        inner: false,
    }];
    // Rejected records are rows as well. One that does not exist yet will be made with a window.
    if let Some(table) = schema::read_table(server, &destination.database, &destination.error_table).await? {
        queue.push(Reached { table, inner: false });
    }
    let (mut seen, mut weak, mut window) = (Vec::new(), Vec::new(), None);
    while let Some(reached) = queue.pop() {
        let table = &reached.table;
        let id = (table.database.clone(), table.name.clone());
        if seen.contains(&id) {
            continue;
        }
        if seen.len() >= MAX_TARGETS {
            weak.push(format!(
                "more than {MAX_TARGETS} tables are filled by materialized views: the rest was not looked at"
            ));
            break;
        }
        seen.push(id);
        let memory = memory(&table.engine, &table.engine_full, defaults);
        let partitions = partitions(server, table).await;
        weak.extend(weakness(&reached, &memory, needed(spec, partitions)));
        if let Memory::Window { blocks, seconds } = memory {
            window = Some(narrower(
                window,
                Window {
                    blocks,
                    seconds,
                    partitions,
                },
            ));
        }
        for (database, view) in &table.views {
            match behind(server, database, view).await? {
                Ok(behind) => queue.push(behind),
                Err(invisible) => weak.push(invisible),
            }
        }
    }
    Ok(match weak.as_slice() {
        [] => Effective {
            delivery: Delivery::ExactlyOnce,
            reason: strong(table, &memory(&table.engine, &table.engine_full, defaults)),
            window,
        },
        weak => Effective {
            delivery: Delivery::AtLeastOnce,
            reason: weak.join("; "),
            window,
        },
    })
}

/// The table that a materialized view fills, or why it cannot be seen.
async fn behind(server: &Server, database: &str, view: &str) -> Result<Result<Reached, String>, Error> {
    let invisible = |database: &str, table: &str| Ok(Err(invisible(database, table, &server.username)));
    match target(server, database, view).await? {
        Target::Table(database, name) => match schema::read_table(server, &database, &name).await? {
            Some(table) => Ok(Ok(Reached { table, inner: false })),
            None => invisible(&database, &name),
        },
        // Views that read from the view are found under its name, not under that of its table.
        Target::Inner(engine_full) => match schema::read_table(server, database, view).await? {
            Some(mut table) => {
                table.engine = engine_full.split([' ', '(']).next().unwrap_or_default().to_owned();
                table.partition_key = partition_key(&engine_full);
                table.engine_full = engine_full;
                Ok(Ok(Reached { table, inner: true }))
            }
            None => invisible(database, view),
        },
        Target::Unknown => invisible(database, view),
    }
}

/// Entries of a table's window that the batches of a pipe may need.
pub(super) fn needed(spec: &PipeSpec, partitions: u64) -> u64 {
    MARGIN * OPEN_BATCHES * partitions * u64::from(spec.replicas.max(1))
}

/// The least of two windows.
fn narrower(one: Option<Window>, other: Window) -> Window {
    let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    one.map_or(other, |one| Window {
        blocks: least(one.blocks, other.blocks),
        seconds: least(one.seconds, other.seconds),
        partitions: one.partitions.max(other.partitions),
    })
}

fn strong(table: &Table, memory: &Memory) -> String {
    let (blocks, seconds) = match memory {
        Memory::Window { blocks, seconds } => (*blocks, *seconds),
        Memory::Off | Memory::Never => (None, None),
    };
    let blocks = match blocks {
        Some(blocks) => format!("the last {blocks} blocks"),
        None => "its last blocks, as many as the server's settings say".to_owned(),
    };
    let seconds = seconds.map(|seconds| format!(" for {seconds} s")).unwrap_or_default();
    format!("{} deduplicates {blocks}{seconds} by insert token", table.engine)
}

fn invisible(database: &str, table: &str, user: &str) -> String {
    let table = ddl::qualified(database, table);
    format!(
        "whether {table}, which a materialized view fills, deduplicates cannot be seen: run `GRANT SHOW TABLES, SHOW COLUMNS \
         ON {table} TO {}`",
        quote_identifier(user)
    )
}

/// Why a table can hold a row twice, and what to do about it; `None` if it cannot.
fn weakness(reached: &Reached, memory: &Memory, needed: u64) -> Option<String> {
    let (database, name, engine) = (&reached.table.database, &reached.table.name, &reached.table.engine);
    let table = ddl::qualified(database, name);
    let alter = ddl::set_window(database, name, window_setting(engine), needed);
    let (problem, remedy) = match memory {
        Memory::Window {
            blocks: Some(blocks), ..
        } if *blocks < needed => (
            format!(
                "{table} remembers only {blocks} inserted blocks, and the batches in flight may need {needed} (one for each \
                 partition that an insert touches)"
            ),
            format!("run `{alter}`"),
        ),
        Memory::Window { .. } => return None,
        Memory::Off if is_replicated(engine) => (
            format!("{table} has its deduplication window set to 0"),
            format!("run `{alter}`"),
        ),
        Memory::Off => (format!("{table} has no deduplication window"), format!("run `{alter}`")),
        Memory::Never => (
            format!("the engine {engine} of {table} does not deduplicate inserts"),
            instead_of(engine).to_owned(),
        ),
    };
    if reached.inner {
        return Some(format!(
            "the materialized view {table} keeps its rows in a table of its own ({problem}): let it write TO a table that has \
             a deduplication window"
        ));
    }
    Some(format!("{problem}: {remedy}"))
}

/// What to use where an engine never deduplicates.
fn instead_of(engine: &str) -> &'static str {
    match engine {
        "Distributed" => {
            "let the pipe write to the replicated table behind it: a Distributed table is not one transaction"
        }
        "Buffer" => "let the pipe write to the table behind it: batches are large enough without a buffer",
        "Null" => "give the materialized views behind it a MergeTree table to read from",
        "View" | "MaterializedView" => "let the pipe write to a table",
        _ => "use a MergeTree table",
    }
}

/// The setting that holds the window of an engine.
pub(super) fn window_setting(engine: &str) -> &'static str {
    if is_replicated(engine) {
        REPLICATED_WINDOW
    } else {
        PLAIN_WINDOW
    }
}

pub(super) fn is_replicated(engine: &str) -> bool {
    engine.starts_with("Replicated") || engine.starts_with("Shared")
}

pub(super) fn memory(engine: &str, engine_full: &str, defaults: Defaults) -> Memory {
    if !engine.ends_with("MergeTree") {
        return Memory::Never;
    }
    if !is_replicated(engine) {
        // A plain table's default is 0, unless somebody has changed it.
        return match setting(engine_full, PLAIN_WINDOW).or(defaults.plain).unwrap_or(0) {
            0 => Memory::Off,
            blocks => Memory::Window {
                blocks: Some(blocks),
                seconds: None,
            },
        };
    }
    match setting(engine_full, REPLICATED_WINDOW).or(defaults.replicated) {
        Some(0) => Memory::Off,
        // ClickHouse's own default for replicated tables is never 0.
        blocks => Memory::Window {
            blocks,
            seconds: setting(engine_full, REPLICATED_SECONDS).or(defaults.replicated_seconds),
        },
    }
}

/// Partitions that one insert is taken to touch: those that there are and a new one, as far as ClickHouse lets an insert
/// touch them.
pub(super) async fn partitions(server: &Server, table: &Table) -> u64 {
    if matches!(table.partition_key.as_str(), "" | "tuple()") {
        return 1;
    }
    // A user that may insert may not always look at the parts; that there are no more partitions than parts, it may know.
    const PARTITIONS: &str = "SELECT toString(uniqExact(partition_id)) AS count FROM system.parts \
                              WHERE database = ? AND table = ? AND active";
    const PARTS: &str = "SELECT toString(ifNull(active_parts, 0)) AS count FROM system.tables \
                         WHERE database = ? AND name = ?";
    for sql in [PARTITIONS, PARTS] {
        // A table without parts says nothing about what will be inserted.
        if let Some(found) = count(server, sql, table).await.filter(|found| *found > 0) {
            return found.saturating_add(1).min(MAX_PARTITIONS);
        }
    }
    MAX_PARTITIONS
}

async fn count(server: &Server, sql: &str, table: &Table) -> Option<u64> {
    #[derive(Deserialize)]
    struct Row {
        count: String,
    }
    let rows: Vec<Row> = server.rows(sql, &[&table.database, &table.name]).await.ok()?;
    rows.first()?.count.parse().ok()
}

/// The partition key in what follows `ENGINE =`, as ClickHouse prints it; only whether there is one matters.
fn partition_key(engine_full: &str) -> String {
    let rest = engine_full.split_once("PARTITION BY ").map(|(_, rest)| rest);
    rest.map(|rest| rest.split(" ORDER BY ").next().unwrap_or_default().trim().to_owned())
        .unwrap_or_default()
}

/// A number among the SETTINGS of `engine_full`.
fn setting(engine_full: &str, name: &str) -> Option<u64> {
    let (_, settings) = engine_full.rsplit_once("SETTINGS ")?;
    settings.split(", ").find_map(|setting| {
        let (found, value) = setting.split_once(" = ")?;
        (found.trim() == name).then(|| value.trim().parse().ok())?
    })
}

/// The server's defaults, where this user may know them.
pub(super) async fn defaults(server: &Server) -> Defaults {
    #[derive(Deserialize)]
    struct Row {
        name: String,
        value: String,
    }
    let sql = "SELECT name, value FROM system.merge_tree_settings WHERE name = 'non_replicated_deduplication_window' \
               UNION ALL SELECT name, value FROM system.replicated_merge_tree_settings \
               WHERE name IN ('replicated_deduplication_window', 'replicated_deduplication_window_seconds')";
    let rows: Vec<Row> = server.rows(sql, &[]).await.unwrap_or_default();
    let value = |name: &str| rows.iter().find(|row| row.name == name)?.value.parse().ok();
    Defaults {
        plain: value(PLAIN_WINDOW),
        replicated: value(REPLICATED_WINDOW),
        replicated_seconds: value(REPLICATED_SECONDS),
    }
}

/// Where a materialized view writes to.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Table(String, String),
    /// A table of its own, with this engine.
    Inner(String),
    Unknown,
}

async fn target(server: &Server, database: &str, view: &str) -> Result<Target, Error> {
    #[derive(Deserialize)]
    struct Row {
        create_table_query: String,
    }
    let sql = "SELECT create_table_query FROM system.tables WHERE database = ? AND name = ?";
    let rows: Vec<Row> = server
        .rows(sql, &[database, view])
        .await
        .map_err(|error| Error::of_connection(&error, server))?;
    Ok(rows
        .first()
        .map_or(Target::Unknown, |row| parse_view(&row.create_table_query)))
}

/// Reads `CREATE MATERIALIZED VIEW db.v [REFRESH …] [TO db.t] (…) [ENGINE = …] AS SELECT …` as ClickHouse prints it.
fn parse_view(sql: &str) -> Target {
    let Some(rest) = sql
        .strip_prefix("CREATE MATERIALIZED VIEW ")
        .and_then(|rest| qualified_name(rest))
        .map(|(_, _, rest)| rest)
    else {
        return Target::Unknown;
    };
    if let Some((database, name, _)) = rest.strip_prefix(" TO ").and_then(qualified_name) {
        return Target::Table(database, name);
    }
    let engine = rest
        .split_once(" ENGINE = ")
        .map(|(_, rest)| rest.split(" AS ").next().unwrap_or_default());
    engine.map_or(Target::Unknown, |engine| Target::Inner(engine.to_owned()))
}

fn qualified_name(text: &str) -> Option<(String, String, &str)> {
    let (database, rest) = identifier(text)?;
    let (name, rest) = identifier(rest.strip_prefix('.')?)?;
    Some((database, name, rest))
}

/// A bare or back-quoted identifier at the start, and what follows it.
fn identifier(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('`') else {
        let end = text
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut name = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '`' => return Some((name, &quoted[at + 1..])),
            '\\' => name.push(match chars.next()?.1 {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                '0' => '\0',
                'b' => '\u{8}',
                'f' => '\u{c}',
                escaped => escaped,
            }),
            c => name.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(plain: Option<u64>) -> Defaults {
        Defaults {
            plain,
            ..Defaults::default()
        }
    }

    fn window(blocks: Option<u64>, seconds: Option<u64>) -> Memory {
        Memory::Window { blocks, seconds }
    }

    fn reached(database: &str, name: &str, engine: &str, inner: bool) -> Reached {
        let table = Table {
            database: database.to_owned(),
            name: name.to_owned(),
            exists: true,
            engine: engine.to_owned(),
            engine_full: engine.to_owned(),
            sorting_key: String::new(),
            partition_key: String::new(),
            views: Vec::new(),
            columns: Vec::new(),
        };
        Reached { table, inner }
    }

    #[test]
    fn engines_and_their_memory() {
        let plain = "MergeTree ORDER BY a SETTINGS index_granularity = 8192";
        let set = "MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 5, index_granularity = 8192";
        let zero = "MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 0";
        assert_eq!(memory("MergeTree", plain, defaults(None)), Memory::Off);
        assert_eq!(memory("MergeTree", plain, defaults(Some(0))), Memory::Off);
        assert_eq!(memory("MergeTree", plain, defaults(Some(100))), window(Some(100), None));
        assert_eq!(
            memory("ReplacingMergeTree", set, defaults(Some(0))),
            window(Some(5), None)
        );
        assert_eq!(memory("MergeTree", zero, defaults(Some(100))), Memory::Off);
        let replicated = "ReplicatedMergeTree('/t', '{replica}') ORDER BY a SETTINGS index_granularity = 8192";
        assert_eq!(
            memory("ReplicatedMergeTree", replicated, defaults(Some(0))),
            window(None, None)
        );
        let known = Defaults {
            replicated: Some(10_000),
            replicated_seconds: Some(3_600),
            ..Defaults::default()
        };
        assert_eq!(
            memory("ReplicatedMergeTree", replicated, known),
            window(Some(10_000), Some(3_600))
        );
        let own = "SharedMergeTree ORDER BY a SETTINGS replicated_deduplication_window = 50, \
                   replicated_deduplication_window_seconds = 60";
        assert_eq!(memory("SharedMergeTree", own, known), window(Some(50), Some(60)));
        let off = "SharedMergeTree ORDER BY a SETTINGS replicated_deduplication_window = 0";
        assert_eq!(memory("SharedMergeTree", off, known), Memory::Off);
        // The other setting's name ends in this one's.
        let other = "ReplicatedMergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 0";
        assert_eq!(
            memory("ReplicatedMergeTree", other, Defaults::default()),
            window(None, None)
        );
        for engine in ["Null", "Memory", "Distributed", "Buffer", "Log", "View"] {
            assert_eq!(memory(engine, engine, known), Memory::Never, "{engine}");
            let what = weakness(&reached("d", "t", engine, false), &Memory::Never, 12).expect("a weakness");
            assert!(what.contains(engine) && what.contains(": "), "{what}");
        }
    }

    #[test]
    fn the_remedy_is_a_statement() {
        let what = weakness(&reached("d`b", "t", "MergeTree", false), &Memory::Off, 12).expect("a weakness");
        let alter = r"ALTER TABLE `d\`b`.`t` MODIFY SETTING non_replicated_deduplication_window = 10000";
        assert!(what.contains(alter), "{what}");
        let what = weakness(&reached("d", "t", "ReplicatedMergeTree", false), &Memory::Off, 12).expect("a weakness");
        assert!(
            what.contains("SETTING replicated_deduplication_window = 10000`"),
            "{what}"
        );
        let what = weakness(&reached("d", "v", "MergeTree", true), &Memory::Off, 12).expect("a weakness");
        assert!(what.contains("let it write TO a table"), "{what}");
    }

    #[test]
    fn a_window_that_is_too_small_is_a_weakness() {
        let table = reached("d", "t", "MergeTree", false);
        assert_eq!(weakness(&table, &window(Some(1_200), None), 1_200), None);
        assert_eq!(weakness(&table, &window(None, None), 1_200), None);
        let what = weakness(&table, &window(Some(1_199), None), 1_200).expect("a weakness");
        assert!(what.contains("only 1199") && what.contains("= 10000`"), "{what}");
        let what = weakness(&table, &window(Some(10_000), None), 24_000).expect("a weakness");
        assert!(what.contains("= 24000`"), "{what}");
    }

    #[test]
    fn the_narrowest_window_counts() {
        let of = |blocks, seconds, partitions| Window {
            blocks,
            seconds,
            partitions,
        };
        let first = narrower(None, of(Some(100), None, 1));
        assert_eq!(first, of(Some(100), None, 1));
        let both = narrower(Some(first), of(None, Some(3_600), 7));
        assert_eq!(both, of(Some(100), Some(3_600), 7));
    }

    #[test]
    fn partition_keys_of_hidden_tables() {
        assert_eq!(partition_key("MergeTree ORDER BY a"), "");
        assert_eq!(
            partition_key("MergeTree PARTITION BY toYYYYMM(d) ORDER BY a SETTINGS x = 1"),
            "toYYYYMM(d)"
        );
    }

    #[test]
    fn views_name_their_targets() {
        assert_eq!(
            parse_view("CREATE MATERIALIZED VIEW default.mv2 TO default.tgt (`a` UInt8) AS SELECT a FROM default.t"),
            Target::Table("default".into(), "tgt".into())
        );
        assert_eq!(
            parse_view(
                r"CREATE MATERIALIZED VIEW default.`m v` TO `d.b`.`t\`1` (`a` UInt8) AS SELECT a FROM default.t"
            ),
            Target::Table("d.b".into(), "t`1".into())
        );
        assert_eq!(
            parse_view(
                "CREATE MATERIALIZED VIEW default.mv (`a` UInt8) ENGINE = MergeTree ORDER BY a SETTINGS x = 1 AS SELECT a"
            ),
            Target::Inner("MergeTree ORDER BY a SETTINGS x = 1".into())
        );
        for odd in [
            "",
            "CREATE TABLE x",
            "CREATE MATERIALIZED VIEW `open",
            "CREATE MATERIALIZED VIEW a",
        ] {
            assert_eq!(parse_view(odd), Target::Unknown, "{odd}");
        }
    }
}

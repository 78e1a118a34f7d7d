//! What a pipe promises in effect. Exactly once needs a destination that remembers insert tokens: the table, and every
//! table behind it that a materialized view fills in the same insert.

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
use crate::store::Effective;

/// Tables behind a table that are looked at. More of them make every insert slow long before.
const MAX_TARGETS: usize = 32;

/// Whether an engine remembers tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Memory {
    /// It does, of so many blocks; `None` where the server's default counts.
    Window(Option<u64>),
    /// Only once its window is set.
    Off,
    /// Never.
    Never,
}

pub(super) async fn effective(server: &Server, spec: &PipeSpec, table: &Table) -> Result<Effective, Error> {
    if spec.settings.delivery == Delivery::AtLeastOnce {
        return Ok(Effective {
            delivery: Delivery::AtLeastOnce,
            reason: "pipe.settings.delivery asks for no more".to_owned(),
        });
    }
    let server_default = server_default(server).await;
    let mut queue = vec![table.clone()];
    let mut seen = Vec::new();
    let mut weak = Vec::new();
    while let Some(table) = queue.pop() {
        let id = (table.database.clone(), table.name.clone());
        if seen.contains(&id) || seen.len() >= MAX_TARGETS {
            continue;
        }
        seen.push(id);
        weak.extend(weakness(
            &table.database,
            &table.name,
            &table.engine,
            &table.engine_full,
            server_default,
        ));
        for (database, view) in &table.views {
            match target(server, database, view).await? {
                Target::Table(database, name) => match schema::read_table(server, &database, &name).await? {
                    Some(target) => queue.push(target),
                    None => weak.push(invisible(&database, &name, &server.username)),
                },
                Target::Inner(engine_full) => {
                    let engine = engine_full.split([' ', '(']).next().unwrap_or_default().to_owned();
                    let weakness = weakness(database, view, &engine, &engine_full, server_default);
                    weak.extend(weakness.map(|_| {
                        let view = ddl::qualified(database, view);
                        format!(
                            "the materialized view {view} keeps its rows in a table of its own without a deduplication \
                                 window: let it write TO a table that has one"
                        )
                    }));
                }
                Target::Unknown => weak.push(invisible(database, view, &server.username)),
            }
        }
    }
    Ok(match weak.as_slice() {
        [] => Effective {
            delivery: Delivery::ExactlyOnce,
            reason: strong(table),
        },
        weak => Effective {
            delivery: Delivery::AtLeastOnce,
            reason: weak.join("; "),
        },
    })
}

fn strong(table: &Table) -> String {
    let kept = match memory(&table.engine, &table.engine_full, None) {
        Memory::Window(Some(blocks)) => format!("the last {blocks} blocks"),
        _ => "its last blocks, as many as the server's settings say".to_owned(),
    };
    format!("{} deduplicates {kept} by insert token", table.engine)
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
fn weakness(database: &str, name: &str, engine: &str, engine_full: &str, default: Option<u64>) -> Option<String> {
    let table = ddl::qualified(database, name);
    match memory(engine, engine_full, default) {
        Memory::Window(_) => None,
        Memory::Off if engine.starts_with("Replicated") || engine.starts_with("Shared") => Some(format!(
            "{table} has its deduplication window set to 0: unset replicated_deduplication_window"
        )),
        Memory::Off => Some(format!(
            "{table} has no deduplication window: run `{}`",
            ddl::set_window(database, name)
        )),
        Memory::Never => Some(format!(
            "the engine {engine} of {table} does not deduplicate inserts: use a MergeTree table"
        )),
    }
}

fn memory(engine: &str, engine_full: &str, default: Option<u64>) -> Memory {
    if !engine.ends_with("MergeTree") {
        return Memory::Never;
    }
    let replicated = engine.starts_with("Replicated") || engine.starts_with("Shared");
    let name = if replicated {
        "replicated_deduplication_window"
    } else {
        "non_replicated_deduplication_window"
    };
    match (setting(engine_full, name), replicated, default) {
        (Some(0), _, _) | (None, false, Some(0) | None) => Memory::Off,
        (Some(blocks), _, _) | (None, false, Some(blocks)) => Memory::Window(Some(blocks)),
        // ClickHouse's own default for replicated tables is never 0.
        (None, true, _) => Memory::Window(None),
    }
}

/// A number among the SETTINGS of `engine_full`.
fn setting(engine_full: &str, name: &str) -> Option<u64> {
    let (_, settings) = engine_full.rsplit_once("SETTINGS ")?;
    settings.split(", ").find_map(|setting| {
        let (found, value) = setting.split_once(" = ")?;
        (found.trim() == name).then(|| value.trim().parse().ok())?
    })
}

/// The server's default window of plain MergeTree tables, where this user may know it. It is 0 unless someone changed it.
async fn server_default(server: &Server) -> Option<u64> {
    #[derive(Deserialize)]
    struct Row {
        value: String,
    }
    let sql = "SELECT value FROM system.merge_tree_settings WHERE name = 'non_replicated_deduplication_window'";
    let rows: Vec<Row> = server.rows(sql, &[]).await.ok()?;
    rows.first()?.value.parse().ok()
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

    #[test]
    fn engines_and_their_memory() {
        let plain = "MergeTree ORDER BY a SETTINGS index_granularity = 8192";
        let set = "MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 5, index_granularity = 8192";
        let zero = "MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 0";
        assert_eq!(memory("MergeTree", plain, None), Memory::Off);
        assert_eq!(memory("MergeTree", plain, Some(0)), Memory::Off);
        assert_eq!(memory("MergeTree", plain, Some(100)), Memory::Window(Some(100)));
        assert_eq!(memory("ReplacingMergeTree", set, Some(0)), Memory::Window(Some(5)));
        assert_eq!(memory("MergeTree", zero, Some(100)), Memory::Off);
        let replicated = "ReplicatedMergeTree('/t', '{replica}') ORDER BY a SETTINGS index_granularity = 8192";
        assert_eq!(memory("ReplicatedMergeTree", replicated, Some(0)), Memory::Window(None));
        let off = "SharedMergeTree ORDER BY a SETTINGS replicated_deduplication_window = 0";
        assert_eq!(memory("SharedMergeTree", off, None), Memory::Off);
        // The other setting's name ends in this one's.
        let other = "ReplicatedMergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 0";
        assert_eq!(memory("ReplicatedMergeTree", other, None), Memory::Window(None));
        for engine in ["Null", "Memory", "Distributed", "Buffer", "Log"] {
            assert_eq!(memory(engine, engine, Some(100)), Memory::Never, "{engine}");
        }
    }

    #[test]
    fn the_remedy_is_a_statement() {
        let what = weakness("d`b", "t", "MergeTree", "MergeTree ORDER BY a", None).unwrap();
        let alter = r"ALTER TABLE `d\`b`.`t` MODIFY SETTING non_replicated_deduplication_window = 10000";
        assert!(what.contains(alter), "{what}");
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

//! Puts the deduplication window of managed tables back where somebody has taken it away or made it smaller. Tables that are
//! not Millrace's own are left alone: what is wrong with them is only said, with the statement that mends it.
//!
//! Invariant: a window is only ever made larger.

use millrace_common::pipe::{Delivery, PipeSpec};

use super::{
    Error,
    client::Server,
    ddl,
    guarantee::{self, Memory},
    schema,
};

/// A window that was put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// The table, quoted.
    pub table: String,
    /// The setting.
    pub setting: &'static str,
    /// What it was found at.
    pub from: u64,
    /// What it was before and is now.
    pub to: u64,
    /// What was run.
    pub statement: String,
}

/// Mends the managed table of a pipe and the error table beside it.
pub(super) async fn mend(server: &Server, spec: &PipeSpec) -> Result<Vec<Mended>, Error> {
    let destination = &spec.destination;
    if destination.managed.is_none() || spec.settings.delivery != Delivery::ExactlyOnce {
        return Ok(Vec::new());
    }
    let defaults = guarantee::defaults(server).await;
    let mut mended = Vec::new();
    for name in [&destination.table, &destination.error_table] {
        let Some(table) = schema::read_table(server, &destination.database, name).await? else {
            continue;
        };
        let memory = guarantee::memory(&table.engine, &table.engine_full, defaults);
        let needed = guarantee::needed(spec, guarantee::partitions(server, &table).await);
        let asked = destination
            .managed
            .as_ref()
            .is_some_and(|definition| definition.replicated);
        let own = if guarantee::is_replicated(&table.engine) && !asked {
            // The server made it so, without the setting: its default is what the table had.
            defaults.replicated.unwrap_or_default()
        } else {
            u64::from(ddl::DEDUPLICATION_WINDOW)
        };
        let Some((from, to)) = wanted(&memory, own.max(needed)) else {
            continue;
        };
        let setting = guarantee::window_setting(&table.engine);
        let statement = ddl::set_window(&table.database, &table.name, setting, to);
        server
            .alter(&statement)
            .await
            .map_err(|error| Error::of_connection(&error, server))?;
        mended.push(Mended {
            table: ddl::qualified(&table.database, &table.name),
            setting,
            from,
            to: to.max(u64::from(ddl::DEDUPLICATION_WINDOW)),
            statement,
        });
    }
    Ok(mended)
}

/// From what to what a window has to be changed, if it is below what it has to be.
fn wanted(memory: &Memory, least: u64) -> Option<(u64, u64)> {
    match memory {
        Memory::Off => Some((0, least)),
        Memory::Window {
            blocks: Some(blocks), ..
        } if *blocks < least => Some((*blocks, least)),
        // Nothing that a setting would change, or nothing that is known to be too little.
        Memory::Window { .. } | Memory::Never => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_window_that_is_too_small_is_changed() {
        let window = |blocks| Memory::Window { blocks, seconds: None };
        assert_eq!(wanted(&Memory::Off, 10_000), Some((0, 10_000)));
        assert_eq!(wanted(&window(Some(9_999)), 10_000), Some((9_999, 10_000)));
        for well in [window(Some(10_000)), window(Some(50_000)), window(None), Memory::Never] {
            assert_eq!(wanted(&well, 10_000), None, "{well:?}");
        }
    }
}

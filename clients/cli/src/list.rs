//! Lists: every page of them, then a table for people or one document for programs.

use prost::Message;

use crate::{
    args::Connection,
    exit::Error,
    manifest,
    output::{self, Format},
};

/// Items asked for at a time. The server may send fewer.
const PAGE_SIZE: usize = 500;

/// Gets pages until there are `limit` items or no more. `page` is given how many to ask for and the token of the page, and
/// gives its items and the token of the next one.
pub(crate) async fn all<T>(
    limit: usize,
    mut page: impl AsyncFnMut(i32, String) -> Result<(Vec<T>, String), Error>,
) -> Result<Vec<T>, Error> {
    let mut all = Vec::new();
    let mut token = String::new();
    while all.len() < limit {
        let size = i32::try_from((limit - all.len()).min(PAGE_SIZE)).unwrap_or(i32::MAX);
        let (items, next) = page(size, token).await?;
        all.extend(items);
        token = next;
        if token.is_empty() {
            break;
        }
    }
    Ok(all)
}

/// Prints items: as rows of a table, or as messages of the type `message`.
pub(crate) fn show<T: Message>(
    connection: &Connection,
    items: &[T],
    message: &str,
    header: &[&str],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<(), Error> {
    if connection.output == Format::Table {
        return output::table(header, items.iter().map(row).collect());
    }
    let values = items.iter().map(|item| manifest::to_json(item, message));
    output::document(&values.collect::<Result<Vec<_>, _>>()?.into(), connection.output)
}

//! Which field of documents fills which column of a table: a proposal for people, who may know better. Pure.
//!
//! A column takes, in this order: the virtual column of its name; the key of its name; the one key whose name differs in case and
//! punctuation only (`userId` and `user_id`); the one path whose keys, put together, do (`user.id` and `user_id`).
//!
//! Invariants: a field fills at most one column; what could be meant in two ways is not proposed.

use std::collections::BTreeSet;

use millrace_common::{clickhouse::DataType, pipe::FieldMapping};

/// The virtual columns that may be meant by a column's name.
const VIRTUAL: [&str; 8] = [
    "_key",
    "_timestamp",
    "_stream",
    "_sequence_number",
    "_raw_message",
    "_shard_id",
    "_sub_sequence_number",
    "_unmapped",
];
/// How deep paths are looked for.
const MAX_PATH: usize = 4;

/// A top-level key of documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The key.
    pub key: String,
    /// As a mapping names it.
    pub source_field: String,
    /// The type of its values.
    pub data_type: DataType,
}

/// What fills what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proposal {
    /// Mappings, in the order of the columns.
    pub mappings: Vec<FieldMapping>,
    /// Columns for which nothing was found.
    pub unfilled: Vec<String>,
    /// Keys that fill nothing, not even by a part of their values.
    pub unmapped: Vec<String>,
}

/// Finds a field for each of these columns.
#[must_use]
pub fn propose<'a>(columns: impl IntoIterator<Item = &'a str>, fields: &[Field]) -> Proposal {
    let columns: Vec<&str> = columns.into_iter().collect();
    let mut sources: Vec<Option<String>> = columns
        .iter()
        .map(|column| VIRTUAL.contains(column).then(|| (*column).to_owned()))
        .collect();
    let mut used = BTreeSet::new();
    // What is certain goes first, so that a guess takes nothing away from it.
    for (column, source) in columns.iter().zip(&mut sources) {
        if source.is_none()
            && let Some(field) = fields.iter().find(|field| field.key == **column)
        {
            *source = Some(field.source_field.clone());
            used.insert(field.key.clone());
        }
    }
    let paths: Vec<Path> = fields.iter().flat_map(paths).collect();
    for depth in 1..=MAX_PATH {
        for (column, source) in columns.iter().zip(&mut sources).filter(|(_, source)| source.is_none()) {
            let wanted = folded(column);
            let mut found = paths.iter().filter(|path| {
                path.depth == depth && path.folded == wanted && (depth > 1 || !used.contains(&path.top))
            });
            let (Some(path), None) = (found.next(), found.next()) else {
                continue;
            };
            if columns.iter().filter(|other| folded(other) == wanted).count() > 1 {
                continue;
            }
            *source = Some(path.source_field.clone());
            used.insert(path.top.clone());
        }
    }
    let mut proposal = Proposal::default();
    for (column, source) in columns.into_iter().zip(sources) {
        match source {
            Some(source_field) => proposal.mappings.push(FieldMapping {
                source_field,
                destination_field: column.to_owned(),
                ..FieldMapping::default()
            }),
            None => proposal.unfilled.push(column.to_owned()),
        }
    }
    let unmapped = fields.iter().filter(|field| !used.contains(&field.key));
    proposal.unmapped = unmapped.map(|field| field.key.clone()).collect();
    proposal
}

/// A way to a value.
struct Path {
    top: String,
    depth: usize,
    folded: String,
    source_field: String,
}

/// The ways that begin with a field: itself, and into its objects.
fn paths(field: &Field) -> Vec<Path> {
    let mut paths = vec![Path {
        top: field.key.clone(),
        depth: 1,
        folded: folded(&field.key),
        source_field: field.source_field.clone(),
    }];
    // A dotted path can be written only where no key is one, or looks like a pointer.
    if !field.key.contains('.') && field.source_field == field.key {
        descend(field, &field.data_type, &field.key, 1, &mut paths);
    }
    paths
}

fn descend(field: &Field, data_type: &DataType, path: &str, depth: usize, paths: &mut Vec<Path>) {
    let DataType::Tuple(elements) = data_type else { return };
    if depth >= MAX_PATH {
        return;
    }
    for element in elements {
        let Some(name) = element.name.as_deref().filter(|name| !name.contains('.')) else {
            continue;
        };
        let path = format!("{path}.{name}");
        paths.push(Path {
            top: field.key.clone(),
            depth: depth + 1,
            folded: folded(&path),
            source_field: path.clone(),
        });
        descend(field, &element.data_type, &path, depth + 1, paths);
    }
}

/// A name without case and punctuation.
fn folded(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(&str, &str)]) -> Vec<Field> {
        fields
            .iter()
            .map(|(key, data_type)| Field {
                key: (*key).into(),
                source_field: (*key).into(),
                data_type: data_type.parse().unwrap(),
            })
            .collect()
    }

    fn shown(proposal: &Proposal) -> Vec<String> {
        proposal
            .mappings
            .iter()
            .map(|mapping| format!("{} <- {}", mapping.destination_field, mapping.source_field))
            .collect()
    }

    #[test]
    fn names_that_mean_the_same_are_found() {
        let fields = fields(&[
            ("id", "Int64"),
            ("eventTime", "DateTime"),
            ("user", "Tuple(id Int64, address Tuple(city String))"),
            ("extra", "String"),
        ]);
        let columns = ["id", "event_time", "user_id", "user_address_city", "_key", "score"];
        let proposal = propose(columns, &fields);
        assert_eq!(
            shown(&proposal),
            [
                "id <- id",
                "event_time <- eventTime",
                "user_id <- user.id",
                "user_address_city <- user.address.city",
                "_key <- _key"
            ]
        );
        assert_eq!(proposal.unfilled, ["score"]);
        assert_eq!(proposal.unmapped, ["extra"]);
    }

    #[test]
    fn what_could_be_meant_in_two_ways_is_not_proposed() {
        let two = fields(&[("userId", "Int64"), ("user-id", "Int64")]);
        assert_eq!(propose(["user_id"], &two).unfilled, ["user_id"]);
        let one = fields(&[("userId", "Int64")]);
        assert_eq!(propose(["user_id", "userID"], &one).mappings, []);
        // What is certain takes the field.
        let proposal = propose(["user_id", "userId"], &one);
        assert_eq!(shown(&proposal), ["userId <- userId"]);
        assert_eq!(proposal.unfilled, ["user_id"]);
    }
}

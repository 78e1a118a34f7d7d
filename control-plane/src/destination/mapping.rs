//! Which columns a pipe fills, and from where. Pure.

use std::borrow::Cow;

use millrace_common::{
    clickhouse::DataType,
    error::FieldViolation,
    json_pointer::JsonPointer,
    pipe::{FieldMapping, MappedColumn, PipeSpec},
    reason,
};

use super::{
    Error,
    schema::{TableColumn, same_type, violation},
};

/// A column to fill, and the field of the pipe that asks for it.
struct Wanted<'a> {
    mapping: Cow<'a, FieldMapping>,
    asked_by: String,
}

/// The columns that the pipe fills, in the order in which they are asked for, or in the table's own.
pub(super) fn resolve(spec: &PipeSpec, table: &[TableColumn]) -> Result<Vec<MappedColumn>, Error> {
    let mut problems = Problems::default();
    check_declared_types(spec, table, &mut problems);
    let columns: Vec<MappedColumn> = wanted(spec, table)
        .into_iter()
        .filter_map(|wanted| resolve_one(&wanted, table, &mut problems))
        .collect();
    problems.finish()?;
    if columns.is_empty() {
        let message = "the table has no column that can be inserted into".to_owned();
        return Err(Error::new(reason::DESTINATION_COLUMN_NOT_FOUND, message).field("pipe.destination.table"));
    }
    Ok(columns)
}

fn wanted<'a>(spec: &'a PipeSpec, table: &'a [TableColumn]) -> Vec<Wanted<'a>> {
    if !spec.field_mappings.is_empty() {
        let mapped = spec.field_mappings.iter().enumerate().map(|(index, mapping)| Wanted {
            mapping: Cow::Borrowed(mapping),
            asked_by: format!("pipe.field_mappings[{index}].destination_field"),
        });
        return mapped.collect();
    }
    let by_name = |name: &str, asked_by: String| Wanted {
        mapping: Cow::Owned(FieldMapping {
            source_field: key(name),
            destination_field: name.to_owned(),
            ..FieldMapping::default()
        }),
        asked_by,
    };
    if !spec.destination.columns.is_empty() {
        let listed = spec.destination.columns.iter().enumerate();
        return listed
            .map(|(index, column)| by_name(&column.name, format!("pipe.destination.columns[{index}].name")))
            .collect();
    }
    let insertable = table
        .iter()
        .filter(|column| matches!(column.default_kind.as_str(), "" | "DEFAULT"));
    insertable
        .map(|column| by_name(&column.name, "pipe.destination.table".to_owned()))
        .collect()
}

/// The key of this name, as a source field says it: what begins with a slash would be a pointer.
fn key(name: &str) -> String {
    if name.starts_with('/') {
        JsonPointer::to_key(name).to_string()
    } else {
        name.to_owned()
    }
}

fn resolve_one(wanted: &Wanted<'_>, table: &[TableColumn], problems: &mut Problems) -> Option<MappedColumn> {
    let mapping = &wanted.mapping;
    let column = &mapping.destination_field;
    let Some(found) = table.iter().find(|found| found.name == *column) else {
        let nearly = table.iter().find(|found| found.name.eq_ignore_ascii_case(column));
        let hint = nearly
            .map(|column| format!("; did you mean {:?}?", column.name))
            .unwrap_or_default();
        let what = format!("the table has no column {column:?}{hint}");
        problems.add(reason::DESTINATION_COLUMN_NOT_FOUND, &wanted.asked_by, what);
        return None;
    };
    if matches!(found.default_kind.as_str(), "MATERIALIZED" | "ALIAS") {
        let what = format!(
            "the column {:?} is {}: ClickHouse computes it, so leave it out",
            found.name, found.default_kind
        );
        problems.add(reason::DESTINATION_COLUMN_NOT_FOUND, &wanted.asked_by, what);
        return None;
    }
    if let Err(error) = found.data_type.parse::<DataType>() {
        let shown: String = found.data_type.chars().take(200).collect();
        let what = format!(
            "the column {:?} has the type {shown}, which Millrace cannot fill ({error}): leave it out by listing the \
             other columns in pipe.destination.columns",
            found.name
        );
        problems.add(reason::DESTINATION_TYPE_UNSUPPORTED, &wanted.asked_by, what);
        return None;
    }
    Some(MappedColumn {
        name: found.name.clone(),
        data_type: found.data_type.clone(),
        has_default: found.default_kind == "DEFAULT",
        source_field: mapping.source_field.clone(),
        constant: mapping.constant.clone(),
        required: mapping.required,
    })
}

/// A type that the user gives for a column of an existing table must be the one it has.
fn check_declared_types(spec: &PipeSpec, table: &[TableColumn], problems: &mut Problems) {
    for (index, column) in spec.destination.columns.iter().enumerate() {
        let found = table.iter().find(|found| found.name == column.name);
        if let Some(found) = found
            && !column.data_type.is_empty()
            && !same_type(&found.data_type, &column.data_type)
        {
            let what = format!(
                "the column {:?} is {} in the table, not {}: give that type, or none",
                column.name, found.data_type, column.data_type
            );
            problems.add(
                reason::DESTINATION_SCHEMA_CHANGED,
                &format!("pipe.destination.columns[{index}].type"),
                what,
            );
        }
    }
}

#[derive(Default)]
struct Problems {
    reason: Option<&'static str>,
    fields: Vec<FieldViolation>,
}

impl Problems {
    fn add(&mut self, reason: &'static str, field: &str, what: String) {
        self.reason.get_or_insert(reason);
        self.fields.push(violation(field, what));
    }

    fn finish(self) -> Result<(), Error> {
        /// So many are spelled out in the message; all are in the details, as far as they fit.
        const SHOWN: usize = 5;
        let Some(reason) = self.reason else {
            return Ok(());
        };
        let shown: Vec<&str> = self
            .fields
            .iter()
            .take(SHOWN)
            .map(|field| field.description.as_str())
            .collect();
        let more = self.fields.len().saturating_sub(SHOWN);
        let more = if more > 0 {
            format!("; and {more} more")
        } else {
            String::new()
        };
        let message = format!("{}{more}", shown.join("; "));
        Err(Error {
            fields: self.fields,
            ..Error::new(reason, message)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use millrace_common::pipe::{
        Column, Destination, FieldMapping, KinesisSource, PollingBudget, Settings, StartPosition, StreamRef,
    };

    use super::*;

    fn spec(columns: &[&str], mappings: &[(&str, &str)]) -> PipeSpec {
        let credential = "projects/p/credentials/c"
            .parse::<millrace_common::ids::CredentialName>()
            .unwrap();
        let column = |name: &&str| Column {
            name: (*name).into(),
            data_type: String::new(),
        };
        let mapping = |(source, target): &(&str, &str)| FieldMapping {
            source_field: (*source).into(),
            destination_field: (*target).into(),
            ..FieldMapping::default()
        };
        PipeSpec {
            display_name: String::new(),
            annotations: BTreeMap::new(),
            source: KinesisSource {
                stream: StreamRef::Name("s".into()),
                region: "eu-central-1".into(),
                start: StartPosition::TrimHorizon,
                credential: credential.clone(),
                endpoint: None,
                end: None,
                fan_out: None,
                polling: PollingBudget::default(),
            },
            destination: Destination {
                endpoint: "http://127.0.0.1:8123".into(),
                credential,
                database: "default".into(),
                table: "t".into(),
                error_table: "t_errors".into(),
                managed: None,
                columns: columns.iter().map(column).collect(),
            },
            field_mappings: mappings.iter().map(mapping).collect(),
            decoding: Default::default(),
            replicas: 1,
            settings: Settings::default(),
        }
    }

    fn table() -> Vec<TableColumn> {
        [
            ("id", "UInt64", ""),
            ("name", "String", "DEFAULT"),
            ("m", "UInt8", "MATERIALIZED"),
            ("al", "UInt8", "ALIAS"),
            ("e", "String", "EPHEMERAL"),
            ("_key", "String", ""),
        ]
        .map(|(name, data_type, kind)| TableColumn {
            name: name.into(),
            data_type: data_type.into(),
            default_kind: kind.into(),
        })
        .to_vec()
    }

    #[test]
    fn by_name_takes_what_can_be_inserted() {
        let columns = resolve(&spec(&[], &[]), &table()).unwrap();
        let shown: Vec<(&str, bool, &str)> = columns
            .iter()
            .map(|c| (c.name.as_str(), c.has_default, c.source_field.as_str()))
            .collect();
        assert_eq!(
            shown,
            [("id", false, "id"), ("name", true, "name"), ("_key", false, "_key")]
        );
    }

    #[test]
    fn mappings_decide_alone() {
        let columns = resolve(&spec(&[], &[("a.b", "id"), ("_raw_message", "e")]), &table()).unwrap();
        let shown: Vec<(&str, &str)> = columns
            .iter()
            .map(|c| (c.name.as_str(), c.source_field.as_str()))
            .collect();
        assert_eq!(shown, [("id", "a.b"), ("e", "_raw_message")]);
    }

    #[test]
    fn what_cannot_be_filled_is_named() {
        let error = resolve(&spec(&["id", "ID", "nope", "m", "al"], &[]), &table()).unwrap_err();
        assert_eq!(error.reason, reason::DESTINATION_COLUMN_NOT_FOUND);
        let fields: Vec<&str> = error.fields.iter().map(|field| field.field.as_str()).collect();
        assert_eq!(
            fields,
            [1, 2, 3, 4].map(|n| format!("pipe.destination.columns[{n}].name"))
        );
        assert!(error.message.contains("did you mean \"id\""), "{error}");

        let mut odd = table();
        odd[0].data_type = "AggregateFunction(sum, UInt64)".into();
        let error = resolve(&spec(&[], &[]), &odd).unwrap_err();
        assert_eq!(error.reason, reason::DESTINATION_TYPE_UNSUPPORTED);
        assert!(
            error.message.contains("\"id\"") && error.message.contains("AggregateFunction"),
            "{error}"
        );
        assert!(resolve(&spec(&["name"], &[]), &odd).is_ok());
    }

    #[test]
    fn a_declared_type_must_be_the_tables() {
        let mut spec = spec(&["id"], &[]);
        spec.destination.columns[0].data_type = "String".into();
        let error = resolve(&spec, &table()).unwrap_err();
        assert_eq!(error.fields[0].field, "pipe.destination.columns[0].type");
    }
}

//! A revision of a pipe made ready: its decoding plan, its Kinesis client, its sink. Making one calls nobody.

use std::sync::Arc;

use millrace_common::{
    aws,
    clickhouse::DataType,
    ids::Revision,
    json_pointer::JsonPointerError,
    pipe::{Decoding, MappedColumn, OutOfRangePolicy},
    reason,
};

use super::{fault::Fault, spec::Spec};
use crate::{
    decode::{self, FieldSource, Options, Plan, VirtualColumn},
    sink::clickhouse::{Access, Sink},
    source::kinesis::{Client, HashKeys, Limits},
};

/// How batches of one revision are made.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) spec: Arc<Spec>,
    pub(super) plan: Arc<Plan>,
    /// Names of the block's columns.
    pub(super) columns: Arc<[String]>,
    pub(super) client: Client,
    pub(super) limits: Limits,
    pub(super) sink: Sink,
}

impl Recipe {
    /// Makes a specification ready.
    ///
    /// # Errors
    /// A fault of the pipe, if it cannot be run as it is.
    pub(super) async fn make(spec: Arc<Spec>, limits: Limits, aws: &aws::Settings) -> Result<Self, Fault> {
        let plan = Arc::new(plan(&spec.columns, &spec.decoding, &spec.time_zone)?);
        let destination = &spec.destination;
        let access = Access {
            endpoint: destination.endpoint.clone(),
            username: destination.username.clone(),
            password: destination.password.clone(),
            database: destination.database.clone(),
        };
        let sink = Sink::new(&access).map_err(|error| {
            Fault::permanent(
                reason::DESTINATION_UNREACHABLE,
                format!("{error}: correct the pipe's destination"),
            )
        })?;
        let access = aws::Access {
            settings: aws.clone(),
            ..spec.source.access.clone()
        };
        let client = Box::pin(Client::new(&access)).await;
        let limits = limits.within(spec.source.polling);
        let columns = plan.insert_columns().into();
        Ok(Self {
            spec,
            plan,
            columns,
            client,
            limits,
            sink,
        })
    }

    /// What hash keys of shards are for.
    pub(super) fn hash_keys(&self) -> HashKeys {
        let decoding = &self.spec.decoding;
        match decoding.on_out_of_range {
            _ if decoding.keep_packed => HashKeys::Unused,
            OutOfRangePolicy::Keep => HashKeys::Count,
            OutOfRangePolicy::Drop | OutOfRangePolicy::Reject => HashKeys::Decide,
        }
    }

    /// The same for what was counted before.
    pub(super) fn hash_keys_of_a_replay(&self) -> HashKeys {
        match self.hash_keys() {
            HashKeys::Count => HashKeys::Unused,
            decided => decided,
        }
    }

    /// Its revision.
    pub(super) fn revision(&self) -> Revision {
        self.spec.revision
    }

    /// Whether it was made of this specification. Within a revision only access to the outside can differ.
    pub(super) fn is_of(&self, spec: &Spec) -> bool {
        self.spec.revision == spec.revision
            && self.spec.source.fingerprint == spec.source.fingerprint
            && self.spec.destination.fingerprint == spec.destination.fingerprint
    }
}

/// A constant, a virtual column by its name, a JSON pointer, which begins with a slash, or a key of the record.
fn source(column: &MappedColumn) -> Result<FieldSource, Fault> {
    if let Some(json) = &column.constant {
        return Ok(FieldSource::Constant(json.clone()));
    }
    let field = &column.source_field;
    if let Ok(column) = field.parse::<VirtualColumn>() {
        return Ok(FieldSource::Virtual(column));
    }
    if !field.starts_with('/') {
        return Ok(FieldSource::Key(field.clone()));
    }
    let pointer = field.parse().map_err(|error: JsonPointerError| {
        unfit(&format!("column {}: the source field {field}: {error}", column.name))
    })?;
    Ok(FieldSource::Pointer(pointer))
}

/// How records become rows of these columns.
///
/// # Errors
/// A fault of the pipe, if they cannot.
pub(crate) fn plan(columns: &[MappedColumn], decoding: &Decoding, time_zone: &str) -> Result<Plan, Fault> {
    let column = |column: &MappedColumn| {
        let data_type: DataType = column.data_type.parse().map_err(|error| {
            let message = format!("column {}: {error}: map only columns of supported types", column.name);
            Fault::permanent(reason::DESTINATION_TYPE_UNSUPPORTED, message)
        })?;
        Ok(decode::MappedColumn {
            name: column.name.clone(),
            data_type,
            has_default: column.has_default,
            source: source(column)?,
            required: column.required,
        })
    };
    let columns = columns.iter().map(column).collect::<Result<Vec<_>, Fault>>()?;
    let options = Options {
        time_zone: time_zone.to_owned(),
        on_unknown_field: decoding.on_unknown_field,
        flatten_separator: decoding.flatten_separator.clone(),
        keep_packed: decoding.keep_packed,
        on_out_of_range: decoding.on_out_of_range,
        envelope: decoding.envelope,
    };
    Plan::compile_with(columns, &options).map_err(|error| unfit(&error.to_string()))
}

fn unfit(what: &str) -> Fault {
    Fault::permanent(
        reason::DESTINATION_TYPE_UNSUPPORTED,
        format!("{what}: change the pipe's field mappings"),
    )
}

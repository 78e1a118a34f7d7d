//! Whether constants fit their columns: ClickHouse is asked, which knows its types best. The worker, which decodes them, looks
//! again and is stricter about numbers that wrap around.

use millrace_common::{
    clickhouse::quote_identifier,
    pipe::{MappedColumn, PipeSpec},
    reason,
};
use serde::de::IgnoredAny;

use super::{
    Error,
    client::{Server, ServerError},
    schema::violation,
};

/// The user may not do this.
const ACCESS_DENIED: u32 = 497;

/// # Errors
/// The first constant that its column cannot take.
pub(super) async fn check(server: &Server, spec: &PipeSpec, columns: &[MappedColumn]) -> Result<(), Error> {
    for column in columns {
        let Some(constant) = &column.constant else { continue };
        let structure = format!("{} {}", quote_identifier(&column.name), column.data_type);
        let Ok(name) = serde_json::to_string(&column.name) else {
            continue;
        };
        let row = format!("{{{name}:{constant}}}");
        let asked: Result<Vec<IgnoredAny>, ServerError> = server
            .rows(
                "SELECT ignore(*) AS fits FROM format(JSONEachRow, ?, ?)",
                &[&structure, &row],
            )
            .await;
        match asked {
            Err(ServerError::Exception { code, message }) if code != ACCESS_DENIED => {
                return Err(misfit(spec, column, constant, &message));
            }
            // Who may only insert may not ask, and whether the server answers at all is for others to say.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

fn misfit(spec: &PipeSpec, column: &MappedColumn, constant: &str, why: &str) -> Error {
    let index = spec
        .field_mappings
        .iter()
        .position(|mapping| mapping.destination_field == column.name)
        .unwrap_or_default();
    let what = format!(
        "the constant {constant} cannot be a value of the column {:?} of type {}: {why}",
        column.name, column.data_type
    );
    Error {
        fields: vec![violation(
            format!("pipe.field_mappings[{index}].constant"),
            what.clone(),
        )],
        ..Error::new(reason::DESTINATION_TYPE_UNSUPPORTED, what)
    }
}

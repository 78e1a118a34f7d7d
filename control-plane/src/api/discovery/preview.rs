//! The rows that records would be: a dry run of a pipe that there is, or of one that there is not yet.

use millrace_common::{
    error::ApiError,
    ids::{Label, PipeName, ProjectName},
    pipe::{MappedColumn, PipeSpec},
};
use millrace_proto::api::v1::{
    self as proto, PreviewRowsRequest, PreviewRowsResponse, preview_rows_request::Input as Given,
    preview_rows_request::Subject,
};

use super::{
    blocking,
    input::{self, Input},
    of_fault,
    output::{self, MAX_SHOWN, MAX_SHOWN_BYTES},
    request::{self, Wanted},
};
use crate::{
    api::{
        Api,
        convert::{self, Violations},
        name, parent,
    },
    destination::Mode,
    sample::{self, Previewed},
};

impl Api {
    pub(super) async fn previewed(&self, request: PreviewRowsRequest) -> Result<PreviewRowsResponse, ApiError> {
        let (spec, label) = self.of_subject(request.subject).await?;
        let wanted = match request.input {
            Some(Given::Given(given)) => Wanted {
                decoding: spec.decoding.clone(),
                ..input::given(given, None, "given")?
            },
            Some(Given::Sample(options)) => self.live(&spec, &label, Some(&options)).await?,
            None => self.live(&spec, &label, None).await?,
        };
        // All that would refuse the pipe refuses its preview.
        let found = Box::pin(self.preflight(&label, &spec, Mode::Check)).await?;
        let _permit = self.samples.acquire().await;
        let decoding = wanted.decoding.clone();
        let input = Box::pin(self.read(wanted)).await?;
        let (columns, time_zone) = (found.resolved.columns, found.resolved.time_zone);
        // What is given counts as of the pipe's stream.
        let stream = found.resolved.stream.name;
        let work = blocking(move || {
            let previewed = sample::preview(&input.records, &stream, &columns, &decoding, &time_zone);
            previewed.map(|previewed| answer(previewed, columns, input))
        });
        work.await?.map_err(|fault| of_fault(&fault))
    }

    async fn of_subject(&self, subject: Option<Subject>) -> Result<(PipeSpec, Label), ApiError> {
        match subject {
            Some(Subject::Pipe(pipe)) => {
                let pipe = self.pipe(&name::<PipeName>(&pipe, "pipe")?).await?;
                Ok((pipe.spec, pipe.name.id))
            }
            Some(Subject::Planned(planned)) => {
                let project: ProjectName = parent(&planned.parent)?;
                let mut violations = Violations::new();
                let pipe = planned.pipe.unwrap_or_default();
                let spec = convert::spec(&pipe, self.context(&project), &mut violations);
                violations.finish()?;
                let label: Label = super::SESSION
                    .parse()
                    .map_err(|error: millrace_common::ids::Error| ApiError::internal(&error))?;
                match spec {
                    Some(spec) => Ok((spec, label)),
                    // Whatever is missing was reported above.
                    None => Err(ApiError::invalid_field("planned.pipe", "is required")),
                }
            }
            None => Err(ApiError::invalid_field("subject", "is required: set pipe or planned")),
        }
    }

    /// Records of the pipe's own stream.
    async fn live(
        &self,
        spec: &PipeSpec,
        label: &Label,
        options: Option<&proto::SampleOptions>,
    ) -> Result<Wanted, ApiError> {
        let mut violations = Violations::new();
        let options = request::options(options, self.clock.now(), &mut violations);
        violations.finish()?;
        self.sampling_from(spec.source.clone(), label, options, spec.decoding.clone())
            .await
    }
}

fn answer(previewed: Previewed, columns: Vec<MappedColumn>, input: Input) -> PreviewRowsResponse {
    let mut answer = PreviewRowsResponse {
        record_count: output::count(previewed.decoded),
        row_count: previewed.rows.len() as u64,
        refused_count: previewed.refused.len() as u64,
        columns: columns
            .into_iter()
            .map(|column| proto::PreviewedColumn {
                name: column.name,
                r#type: column.data_type,
                source_field: column.source_field,
                has_default: column.has_default,
            })
            .collect(),
        ..Default::default()
    };
    let mut bytes = 0;
    for (number, row) in previewed.rows.into_iter().take(MAX_SHOWN) {
        let Some(record) = input.records.get(number) else {
            continue;
        };
        bytes += row.json.len();
        if bytes > MAX_SHOWN_BYTES {
            break;
        }
        answer.rows.push(proto::PreviewedRow {
            shard_id: record.shard_id.clone(),
            sequence_number: record.sequence_number.clone(),
            json: row.json,
            default_columns: row.defaults,
        });
    }
    // Refused documents are cut, so that they always fit beside the rows.
    answer.refused = previewed
        .refused
        .iter()
        .take(MAX_REFUSED)
        .filter_map(|(number, refusal)| Some(output::refused_document(input.records.get(*number)?, refusal)))
        .collect();
    answer.shards = input.shards.into_iter().map(output::shard).collect();
    answer
}

/// Most refused documents of a preview.
const MAX_REFUSED: usize = 200;

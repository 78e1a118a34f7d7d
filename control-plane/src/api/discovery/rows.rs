//! What a pipe has written: some rows of its table.

use millrace_common::{error::ApiError, ids::PipeName};
use millrace_proto::api::v1::{SampleRowsRequest, SampleRowsResponse};

use crate::api::{Api, errors::of_destination};

/// Rows that are shown if a request does not say how many, and most that it may say.
const DEFAULT_ROWS: u32 = 10;
const MAX_ROWS: u32 = 100;

impl Api {
    pub(super) async fn rows_of(&self, request: SampleRowsRequest) -> Result<SampleRowsResponse, ApiError> {
        let name: PipeName = crate::api::name(&request.pipe, "pipe")?;
        let limit = match request.limit {
            0 => DEFAULT_ROWS,
            limit if limit <= MAX_ROWS => limit,
            _ => {
                let what = format!("must be at most {MAX_ROWS}: to read a table, ask ClickHouse");
                return Err(ApiError::invalid_field("limit", what));
            }
        };
        let pipe = self.pipe(&name).await?;
        let access = self.access_of(&pipe).await?;
        let _permit = self.samples.acquire().await;
        let destination = &pipe.spec.destination;
        let sampled = self
            .clickhouse
            .sample_rows(&access, &destination.database, &destination.table, limit)
            .await
            .map_err(|error| of_destination(&error))?;
        Ok(SampleRowsResponse {
            rows: sampled.rows,
            omitted_row_count: sampled.omitted,
        })
    }
}

//! The service of rejected records: what a pipe could not map, as its error table has it.
//!
//! Invariant: a record that is seen here is not kept.

use jiff::Timestamp;
use millrace_common::{error::ApiError, ids::PipeName};
use millrace_proto::api::v1::{
    self as proto, CountRejectedRecordsRequest, CountRejectedRecordsResponse, DiscardRejectedRecordsRequest,
    DiscardRejectedRecordsResponse, ListRejectedRecordsRequest, ListRejectedRecordsResponse, rejected_record::Payload,
    rejected_record_service_server::RejectedRecordService,
};
use tonic::{Code, Request, Response, Status};

use super::{
    Api,
    convert::{Violations, output},
    errors::{CREDENTIAL_NOT_FOUND, of_destination, of_store},
    page,
};
use crate::{
    auth,
    destination::{
        Access,
        rejected::{Count, Cursor, Filter, Order, Record},
    },
    events::{NewEvent, Severity, kind},
    store::{CredentialSecret, StoredPipe},
};

/// Longest class or shard that is looked for.
const MAX_FILTER_BYTES: usize = 256;

#[tonic::async_trait]
impl RejectedRecordService for Api {
    async fn list_rejected_records(
        &self,
        request: Request<ListRejectedRecordsRequest>,
    ) -> Result<Response<ListRejectedRecordsResponse>, Status> {
        let listing = Box::pin(self.list_rejected(request.into_inner()));
        Ok(Response::new(listing.await?))
    }

    async fn count_rejected_records(
        &self,
        request: Request<CountRejectedRecordsRequest>,
    ) -> Result<Response<CountRejectedRecordsResponse>, Status> {
        let counting = Box::pin(self.count_rejected(request.into_inner()));
        Ok(Response::new(counting.await?))
    }

    async fn discard_rejected_records(
        &self,
        request: Request<DiscardRejectedRecordsRequest>,
    ) -> Result<Response<DiscardRejectedRecordsResponse>, Status> {
        let discarding = Box::pin(self.discard_rejected(request.into_inner()));
        Ok(Response::new(discarding.await?))
    }
}

impl Api {
    async fn discard_rejected(
        &self,
        request: DiscardRejectedRecordsRequest,
    ) -> Result<DiscardRejectedRecordsResponse, ApiError> {
        let name: PipeName = super::name(&request.parent, "parent")?;
        let mut filter = filter(request.filter)?;
        let narrow = filter != Filter::default();
        if narrow == request.all {
            let what = if narrow {
                "must not be set together with a filter"
            } else {
                "must be true where no filter says which: all rejected records of the pipe would be deleted"
            };
            return Err(ApiError::invalid_field("all", what));
        }
        let now = self.clock.now().as_millisecond();
        filter.to_exclusive = Some(filter.to_exclusive.map_or(now, |to| to.min(now)));
        let pipe = self.pipe(&name).await?;
        let destination = &pipe.spec.destination;
        let access = self.access_of(&pipe).await?;
        let _permit = self.samples.acquire().await;
        let discarded = self
            .clickhouse
            .discard_rejected(&access, (destination, pipe.uid), &filter, request.validate_only)
            .await
            .map_err(|error| of_destination(&error))?;
        if !request.validate_only && discarded.records > 0 {
            let (records, table) = (discarded.records, &destination.error_table);
            let message = format!("{records} rejected records were deleted from {table:?}");
            let mut event = NewEvent::new(kind::REJECTED_DISCARDED, Severity::Info, message)
                .by(auth::actor())
                .with("records", records)
                .with("table", table);
            let when = |millis: Option<i64>| Some(Timestamp::from_millisecond(millis?).ok()?.to_string());
            for (key, value) in [
                ("error_type", filter.error_type.clone()),
                ("shard_id", filter.shard_id.clone()),
                ("from_time", when(filter.from_inclusive)),
                ("to_time", when(filter.to_exclusive)),
            ] {
                if let Some(value) = value {
                    event = event.with(key, value);
                }
            }
            let noted = if request.all {
                self.store.note_rejected_seen(pipe.uid, &event).await
            } else {
                self.store.append_event(pipe.uid, &event).await.map(drop)
            };
            noted.map_err(|error| of_store(&error))?;
            self.note_change();
        }
        Ok(DiscardRejectedRecordsResponse {
            record_count: discarded.records,
            pending: discarded.pending,
        })
    }

    async fn list_rejected(
        &self,
        request: ListRejectedRecordsRequest,
    ) -> Result<ListRejectedRecordsResponse, ApiError> {
        let name: PipeName = super::name(&request.parent, "parent")?;
        let filter = filter(request.filter)?;
        let order = order(&request.order_by)?;
        let pipe = self.pipe(&name).await?;
        // A token leads on in the same listing only.
        let listing = format!("rejected-records/{order:?}/{filter:?}");
        let page = page::parse::<Cursor>(
            &self.sealer,
            &listing,
            &pipe.uid,
            request.page_size,
            &request.page_token,
        )?;
        let access = self.access_of(&pipe).await?;
        let _permit = self.samples.acquire().await;
        let subject = (&pipe.spec.destination, pipe.uid);
        let (records, more) = self
            .clickhouse
            .rejected(&access, subject, &filter, order, (page.after.as_ref(), page.size))
            .await
            .map_err(|error| of_destination(&error))?;
        let next_page_token = match records.last() {
            Some(last) if more => page::token(&self.sealer, &listing, &pipe.uid, &last.cursor())?,
            _ => String::new(),
        };
        Ok(ListRejectedRecordsResponse {
            rejected_records: records.into_iter().map(record).collect(),
            next_page_token,
        })
    }

    async fn count_rejected(
        &self,
        request: CountRejectedRecordsRequest,
    ) -> Result<CountRejectedRecordsResponse, ApiError> {
        let name: PipeName = super::name(&request.parent, "parent")?;
        let filter = filter(request.filter)?;
        let pipe = self.pipe(&name).await?;
        let access = self.access_of(&pipe).await?;
        let _permit = self.samples.acquire().await;
        let counts = self
            .clickhouse
            .count_rejected(&access, (&pipe.spec.destination, pipe.uid), &filter)
            .await
            .map_err(|error| of_destination(&error))?;
        Ok(CountRejectedRecordsResponse {
            total_count: counts.iter().map(|count| count.records).sum(),
            counts: counts.into_iter().map(count).collect(),
        })
    }

    /// The server of a pipe's tables, as the pipe's user.
    pub(super) async fn access_of(&self, pipe: &StoredPipe) -> Result<Access, ApiError> {
        let destination = &pipe.spec.destination;
        let field = "pipe.destination.credential";
        if let Err(error) = self.endpoints.check_resolved(&destination.endpoint).await {
            return Err(ApiError::invalid_field("pipe.destination.endpoint", error.to_string()));
        }
        match self.secret(&destination.credential).await? {
            Some(CredentialSecret::ClickHouse { username, password }) => Ok(Access {
                endpoint: destination.endpoint.clone(),
                username,
                password,
            }),
            _ => {
                let message = format!(
                    "there is no ClickHouse credential {}: create it first",
                    destination.credential
                );
                Err(ApiError::new(Code::FailedPrecondition, CREDENTIAL_NOT_FOUND, message).with_field(field))
            }
        }
    }
}

fn filter(given: Option<proto::RejectedRecordFilter>) -> Result<Filter, ApiError> {
    let given = given.unwrap_or_default();
    let mut violations = Violations::new();
    for (field, value) in [
        ("filter.error_type", &given.error_type),
        ("filter.shard_id", &given.shard_id),
    ] {
        if value.len() > MAX_FILTER_BYTES {
            violations.add(
                field,
                format!("is longer than {MAX_FILTER_BYTES} bytes: give it whole, or leave it out"),
            );
        }
    }
    let mut time = |field: &'static str, given: Option<prost_types::Timestamp>| {
        let given = given?;
        let time = Timestamp::new(given.seconds, given.nanos).ok();
        if time.is_none() {
            violations.add(field, "is not a valid time");
        }
        // The table knows milliseconds: both bounds go to the next whole one, the lower being in and the upper out.
        let nanos = time?.as_nanosecond();
        i64::try_from(nanos.div_euclid(1_000_000) + i128::from(nanos.rem_euclid(1_000_000) > 0)).ok()
    };
    let from_inclusive = time("filter.start_time", given.start_time);
    let to_exclusive = time("filter.end_time", given.end_time);
    if let (Some(from), Some(to)) = (from_inclusive, to_exclusive)
        && to < from
    {
        violations.add("filter.end_time", "is before start_time: nothing can lie between");
    }
    violations.finish()?;
    let some = |text: String| (!text.is_empty()).then_some(text);
    Ok(Filter {
        error_type: some(given.error_type),
        shard_id: some(given.shard_id),
        from_inclusive,
        to_exclusive,
    })
}

fn order(text: &str) -> Result<Order, ApiError> {
    match text {
        "" | "error_time desc" => Ok(Order::NewestFirst),
        "error_time" => Ok(Order::OldestFirst),
        _ => Err(ApiError::invalid_field(
            "order_by",
            "must be `error_time` or `error_time desc`",
        )),
    }
}

fn time(millis: i64) -> Option<prost_types::Timestamp> {
    Timestamp::from_millisecond(millis).ok().map(output::timestamp)
}

fn record(record: Record) -> proto::RejectedRecord {
    proto::RejectedRecord {
        error_time: time(record.error_millis),
        error_type: record.error_type,
        error_message: record.message,
        field_path: record.field_path,
        shard_id: record.shard_id,
        sequence_number: record.sequence_number,
        sub_sequence_number: record.sub_sequence_number,
        partition_key: record.partition_key,
        arrival_time: time(record.arrival_millis),
        batch_id: record.batch_id,
        payload: Some(match String::from_utf8(record.payload) {
            Ok(text) => Payload::Text(text),
            Err(error) => Payload::Binary(error.into_bytes()),
        }),
        cut_from_bytes: record.cut_from_bytes.unwrap_or_default(),
    }
}

fn count(count: Count) -> proto::RejectedRecordCount {
    proto::RejectedRecordCount {
        error_type: count.error_type,
        record_count: count.records,
        first_error_time: time(count.first_millis),
        last_error_time: time(count.last_millis),
        example_message: count.example,
    }
}

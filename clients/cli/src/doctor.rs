//! `millrace doctor`: what is wrong with a pipe, or with all of them, and what to do. It asks what other commands ask, one thing after
//! the other, and changes nothing.

use jiff::{SignedDuration, Timestamp};
use millrace_proto::api::v1::{
    self as api, AccessState, Delivery, PipeState, check_access_request, preview_rows_request,
};
use tonic::Status;

use crate::{
    args::Connection,
    client,
    exit::Error,
    list,
    output::{self, Format},
    pipe,
};

const HEADER: [&str; 4] = ["PIPE", "CHECK", "VERDICT", "WHAT"];
/// Records that are read of the stream to see whether they become rows.
const TRIED_RECORDS: u32 = 10;
/// How far back rejected records count.
const RECENTLY: SignedDuration = SignedDuration::from_hours(24);
/// A shard that is further behind is told of.
const BEHIND_SECONDS: i64 = 300;

/// How one check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Ok,
    Look,
    Wrong,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Look => "look",
            Verdict::Wrong => "WRONG",
        }
    }
}

/// One check of one pipe.
struct Finding {
    check: &'static str,
    verdict: Verdict,
    what: String,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, what: impl Into<String>) -> Self {
        Self {
            check,
            verdict,
            what: what.into(),
        }
    }

    /// Of a check that could not be made.
    fn failed(check: &'static str, status: &Status) -> Self {
        Self::new(check, Verdict::Wrong, status.message())
    }
}

/// Looks at one pipe, or at all of the project. False if something is wrong.
pub(crate) async fn run(connection: &Connection, given: Option<&str>) -> Result<bool, Error> {
    if connection.output != Format::Table {
        return Err(Error::Local(
            "doctor is for people: programs take `pipe get -o json` and `access check -o json`".to_owned(),
        ));
    }
    let pipes = match given {
        Some(id) => {
            let request = api::GetPipeRequest {
                name: connection.name("pipes", id),
                view: api::PipeView::Full.into(),
            };
            let answer = client::pipes(connection)?.get_pipe(request).await;
            answer
                .map_err(client::failed(connection))?
                .into_inner()
                .pipe
                .into_iter()
                .collect()
        }
        None => all(connection).await?,
    };
    if pipes.is_empty() {
        output::line(&format!(
            "the control plane answers; {} has no pipes",
            connection.parent()
        ))?;
        return Ok(true);
    }
    let (mut rows, mut worst) = (Vec::new(), Verdict::Ok);
    for one in &pipes {
        for finding in look(connection, one).await? {
            worst = worst.max(finding.verdict);
            rows.push(vec![
                output::short(&one.name),
                finding.check.to_owned(),
                finding.verdict.as_str().to_owned(),
                output::one_line(&finding.what),
            ]);
        }
    }
    output::table(&HEADER, rows)?;
    Ok(worst < Verdict::Wrong)
}

/// All pipes of the project, with their shards.
pub(crate) async fn all(connection: &Connection) -> Result<Vec<api::Pipe>, Error> {
    let mut client = client::pipes(connection)?;
    list::all(usize::MAX, async |page_size, page_token| {
        let request = api::ListPipesRequest {
            parent: connection.parent(),
            page_size,
            page_token,
            view: api::PipeView::Full.into(),
            filter: String::new(),
        };
        let page = client.list_pipes(request).await.map_err(client::failed(connection))?;
        let page = page.into_inner();
        Ok((page.pipes, page.next_page_token))
    })
    .await
}

async fn look(connection: &Connection, one: &api::Pipe) -> Result<Vec<Finding>, Error> {
    let status = one.status.clone().unwrap_or_default();
    let mut findings = vec![state(&status), delivery(one, &status), lag(&status)];
    findings.push(source(connection, one).await?);
    findings.push(destination(connection, one).await?);
    findings.push(rejected(connection, one).await?);
    Ok(findings)
}

fn state(status: &api::PipeStatus) -> Finding {
    let verdict = match status.state() {
        PipeState::Running | PipeState::Completed => Verdict::Ok,
        PipeState::Degraded | PipeState::Failed | PipeState::Unspecified => Verdict::Wrong,
        PipeState::Provisioning | PipeState::Stopping | PipeState::Stopped => Verdict::Look,
    };
    let mut what = pipe::state(status);
    if !status.message.is_empty() {
        what.push_str(&format!(": {} ({})", status.message, status.reason));
    }
    Finding::new("state", verdict, what)
}

fn delivery(one: &api::Pipe, status: &api::PipeStatus) -> Finding {
    let wanted = one.settings.as_ref().map(api::Settings::delivery).unwrap_or_default();
    let word = |delivery: Delivery| output::short_enum(delivery.as_str_name(), "DELIVERY_");
    let effective = status.effective_delivery();
    let weaker = effective != Delivery::ExactlyOnce && wanted != effective;
    if weaker && effective != Delivery::Unspecified {
        let what = format!("{}: {}", word(effective), status.effective_delivery_reason);
        return Finding::new("delivery", Verdict::Look, what);
    }
    Finding::new("delivery", Verdict::Ok, word(effective))
}

fn lag(status: &api::PipeStatus) -> Finding {
    let behind = status
        .shards
        .iter()
        .filter_map(|shard| Some((shard.lag?, shard)))
        .max_by_key(|(lag, _)| (lag.seconds, lag.nanos));
    match behind {
        Some((lag, shard)) if lag.seconds > BEHIND_SECONDS => {
            let what = format!(
                "{} is {} behind: give the pipe more replicas, or the fleet more workers",
                shard.shard_id,
                output::duration(Some(&lag))
            );
            Finding::new("lag", Verdict::Look, what)
        }
        Some((lag, _)) => Finding::new("lag", Verdict::Ok, output::duration(Some(&lag))),
        None => Finding::new("lag", Verdict::Ok, "no shard is read now"),
    }
}

/// Makes the calls that reading needs.
async fn source(connection: &Connection, one: &api::Pipe) -> Result<Finding, Error> {
    let request = api::CheckAccessRequest {
        subject: Some(check_access_request::Subject::Pipe(one.name.clone())),
    };
    let answer = match client::access(connection)?.check_access(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ok(Finding::failed("source", &status)),
    };
    let of = |state: AccessState| answer.findings.iter().filter(move |finding| finding.state() == state);
    if let Some(denied) = of(AccessState::Denied).next() {
        let what = format!("{} is not allowed: {}", denied.action, denied.remedy);
        return Ok(Finding::new("source", Verdict::Wrong, what));
    }
    if let Some(unknown) = of(AccessState::Unknown).next() {
        let what = format!("{} could not be tried: {}", unknown.action, unknown.message);
        return Ok(Finding::new("source", Verdict::Look, what));
    }
    let actions = answer.findings.len();
    Ok(Finding::new(
        "source",
        Verdict::Ok,
        format!("{actions} actions are allowed"),
    ))
}

/// Looks for the table, decodes some records for it, and inserts nothing.
async fn destination(connection: &Connection, one: &api::Pipe) -> Result<Finding, Error> {
    let to = one.destination.clone().unwrap_or_default();
    // A managed table is not looked at where rows are previewed: it might be about to be made.
    let request = api::DescribeTableRequest {
        parent: connection.parent(),
        server: Some(api::ClickHouseServer {
            endpoint: to.endpoint,
            credential: to.credential,
        }),
        database: to.database,
        table: to.table,
        ..Default::default()
    };
    if let Err(status) = client::discovery(connection)?.describe_table(request).await {
        return Ok(Finding::failed("destination", &status));
    }
    let options = api::SampleOptions {
        max_records: TRIED_RECORDS,
        ..Default::default()
    };
    let request = api::PreviewRowsRequest {
        subject: Some(preview_rows_request::Subject::Pipe(one.name.clone())),
        input: Some(preview_rows_request::Input::Sample(options)),
    };
    let answer = match client::discovery(connection)?.preview_rows(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ok(Finding::failed("destination", &status)),
    };
    let (records, rows) = (answer.record_count, answer.row_count);
    Ok(match answer.refused.first() {
        Some(refused) => {
            let what = format!(
                "of {records} records, {} documents would be rejected: {}",
                answer.refused_count, refused.error_message
            );
            Finding::new("destination", Verdict::Look, what)
        }
        None => {
            let what = format!("{records} records of the stream become {rows} rows of the table");
            Finding::new("destination", Verdict::Ok, what)
        }
    })
}

async fn rejected(connection: &Connection, one: &api::Pipe) -> Result<Finding, Error> {
    let since = Timestamp::now().checked_sub(RECENTLY).unwrap_or(Timestamp::MIN);
    let filter = api::RejectedRecordFilter {
        start_time: Some(prost_types::Timestamp {
            seconds: since.as_second(),
            nanos: 0,
        }),
        ..Default::default()
    };
    let request = api::CountRejectedRecordsRequest {
        parent: one.name.clone(),
        filter: Some(filter),
    };
    let answer = match client::rejected_records(connection)?
        .count_rejected_records(request)
        .await
    {
        Ok(answer) => answer.into_inner(),
        // Writing to the table does not need the right to read it.
        Err(status) => return Ok(Finding::new("rejected", Verdict::Look, status.message())),
    };
    Ok(match answer.counts.first() {
        Some(most) => {
            let what = format!(
                "{} records within 24 h, most of them {}: {}",
                output::count(answer.total_count),
                most.error_type,
                most.example_message
            );
            Finding::new("rejected", Verdict::Look, what)
        }
        None => Finding::new("rejected", Verdict::Ok, "none within 24 h"),
    })
}

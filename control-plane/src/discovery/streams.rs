//! Which streams a credential can see. Needs `kinesis:ListStreams`, which no pipe needs.

use aws_sdk_kinesis::Client;
use futures::StreamExt as _;
use jiff::Timestamp;
use millrace_common::{aws::Access, reason};

use super::{DEADLINE, Error};

/// Streams whose shards are counted at the same time: DescribeStreamSummary takes 20 calls per second and account.
const COUNTING: usize = 4;

/// A stream as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Name.
    pub name: String,
    /// ARN; empty where AWS does not say it.
    pub arn: String,
    /// As Kinesis says; may be empty.
    pub status: String,
    /// As Kinesis says; may be empty.
    pub mode: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Open shards, or why they could not be counted; `None` if they were not to be.
    pub open_shards: Option<Result<u32, Error>>,
}

/// A page of streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In name order.
    pub streams: Vec<Listed>,
    /// There are others behind the last.
    pub more: bool,
}

/// Lists at most `limit` streams whose names come after `after`.
///
/// # Errors
/// Why that was not possible.
pub async fn list(access: &Access, after: Option<&str>, limit: u32, count_shards: bool) -> Result<Page, Error> {
    let listing = async {
        let client = Client::new(&millrace_common::aws::config(access).await);
        let mut page = list_page(&client, after, limit).await?;
        if count_shards {
            page.streams = futures::stream::iter(page.streams)
                .map(|stream| counted(&client, stream))
                .buffered(COUNTING)
                .collect()
                .await;
        }
        Ok(page)
    };
    match tokio::time::timeout(DEADLINE, listing).await {
        Ok(result) => result,
        Err(_) => Err(Error {
            reason: reason::SOURCE_UNREACHABLE,
            message: format!(
                "Kinesis in {} did not answer within {} s: ask for smaller pages, or without counts",
                access.region,
                DEADLINE.as_secs()
            ),
            field: "pipe.source.kinesis.region",
            permanent: false,
            said: String::new(),
        }),
    }
}

async fn list_page(client: &Client, after: Option<&str>, limit: u32) -> Result<Page, Error> {
    let output = client
        .list_streams()
        .limit(i32::try_from(limit).unwrap_or(i32::MAX))
        .set_exclusive_start_stream_name(after.map(str::to_owned))
        .send()
        .await
        .map_err(|error| Error::of_call("kinesis:ListStreams", &error))?;
    let summaries = output.stream_summaries();
    // Some that answer like Kinesis give names only.
    let streams = output.stream_names().iter().map(|name| {
        let summary = summaries.iter().find(|summary| summary.stream_name() == name);
        let created = summary.and_then(|summary| summary.stream_creation_timestamp());
        Listed {
            name: name.clone(),
            arn: summary
                .map(|summary| summary.stream_arn().to_owned())
                .unwrap_or_default(),
            status: summary
                .map(|summary| summary.stream_status().as_str().to_owned())
                .unwrap_or_default(),
            mode: summary
                .and_then(|summary| summary.stream_mode_details())
                .map(|mode| mode.stream_mode().as_str().to_owned())
                .unwrap_or_default(),
            created: created
                .and_then(|time| time.to_millis().ok())
                .and_then(|millis| Timestamp::from_millisecond(millis).ok()),
            open_shards: None,
        }
    });
    Ok(Page {
        streams: streams.collect(),
        more: output.has_more_streams(),
    })
}

async fn counted(client: &Client, stream: Listed) -> Listed {
    let described = client.describe_stream_summary().stream_name(&stream.name).send().await;
    let count = match &described {
        Err(error) => Err(Error::of_call("kinesis:DescribeStreamSummary", error)),
        Ok(output) => output
            .stream_description_summary()
            .and_then(|summary| u32::try_from(summary.open_shard_count()).ok())
            .ok_or_else(|| super::aws::odd("DescribeStreamSummary said nothing")),
    };
    Listed {
        open_shards: Some(count),
        ..stream
    }
}

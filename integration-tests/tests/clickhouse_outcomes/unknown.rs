//! Attempts of which nobody knows whether they were carried out.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::future::BoxFuture;
use millrace_common::{
    batch::{Counts, OpenBatch, Terms},
    ids::{BatchId, PipeUid, Revision},
    pipe::Delivery,
};
use millrace_data_plane::{
    commit::{
        self, Body, Built, Claim, Committer, ControlPlane, Delivery as Delivered, Known, Prepared, Target, Targets,
    },
    lane::fault::Faults,
    sink::clickhouse::{Access, Sink, native},
};
use millrace_integration_tests::{
    native::{Bed, COLUMNS, access, block},
    process::eventually,
};

use crate::proxy::{Fault, Proxy};

const LIMIT: Duration = Duration::from_secs(60);
/// One attempt; only silence has to wait for it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Rows of the block, over four partitions, in more bytes than sockets buffer.
const ROWS: u64 = 400_000;

/// A control plane that agrees to all.
#[derive(Debug)]
struct Nobody;

impl ControlPlane for Nobody {
    fn prepare<'a>(&'a self, _: &'a Claim) -> BoxFuture<'a, Result<(), commit::Error>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn replace<'a>(&'a self, _: &'a Claim, _: &'a [OpenBatch]) -> BoxFuture<'a, Result<(), commit::Error>> {
        unreachable!("nothing is replaced here")
    }

    fn commit<'a>(&'a self, _: &'a Claim) -> BoxFuture<'a, Result<(), commit::Error>> {
        unreachable!("nothing is committed here")
    }
}

fn prepared(body: Vec<u8>, compressed: bool) -> Result<Prepared> {
    let (claim, built) = unprepared(body, compressed);
    Prepared::at_least_once(claim, built, Delivery::AtLeastOnce)
        .ok()
        .context("a batch that needs no Prepare")
}

fn unprepared(body: Vec<u8>, compressed: bool) -> (Claim, Built) {
    let batch = OpenBatch {
        id: BatchId::new(),
        revision: Revision(1),
        slices: Vec::new(),
        counts: Counts {
            rows: ROWS,
            records: ROWS,
            ..Counts::default()
        },
        digest: [0; 16],
        terms: Terms::default(),
    };
    let claim = Claim {
        pipe: PipeUid::new(),
        batch: batch.clone(),
        epochs: BTreeMap::new(),
    };
    let rows = Body {
        columns: COLUMNS.map(str::to_owned).to_vec().into(),
        bytes: body.into(),
        compressed,
    };
    let built = Built {
        batch,
        rows: Some(rows),
        errors: None,
        permits: Vec::new(),
    };
    (claim, built)
}

fn committer(sink: Sink) -> Committer {
    let targets = Targets::default();
    let target = Target {
        sink,
        table: "t".to_owned(),
        error_table: "t_errors".to_owned(),
        known: Known::default(),
    };
    targets.set(Revision(1), Arc::new(target));
    Committer::new(Arc::new(Nobody), targets, Faults::new(), Duration::from_millis(100))
}

/// Sends one batch through a proxy with these faults, and looks at what the engine has of it.
async fn exactly_once_in_spite_of(faults: &[Fault]) -> Result<Proxy> {
    let bed = Bed::new().await?;
    bed.table(1_000).await?;
    bed.one(
        "CREATE TABLE {db}.sums (part UInt8, n UInt64) ENGINE = MergeTree ORDER BY n \
         SETTINGS non_replicated_deduplication_window = 1000",
    )
    .await?;
    bed.one("CREATE MATERIALIZED VIEW {db}.v TO {db}.sums AS SELECT part, sum(n) AS n FROM {db}.t GROUP BY part")
        .await?;
    let proxy = Proxy::start(bed.clickhouse, faults.iter().cloned()).await?;
    let access = Access {
        endpoint: proxy.endpoint.clone(),
        ..access(bed.clickhouse, &bed.database)
    };
    let committer = committer(Sink::with_timeout(&access, TIMEOUT)?);
    let native = block(0..ROWS, 4);
    let mut frames = Vec::new();
    native::compress_lz4(&native, &mut frames);
    for (body, compressed) in [(native, false), (frames, true)] {
        let prepared = prepared(body, compressed)?;
        tokio::time::timeout(LIMIT, committer.send(prepared))
            .await
            .with_context(|| format!("not acknowledged in time: {faults:?}"))?;
    }
    ensure!(proxy.left() == 0, "{} faults did not happen", proxy.left());
    let seen = proxy.seen();
    let first: Vec<_> = seen.iter().filter(|insert| insert.token == seen[0].token).collect();
    let lost = faults.iter().filter(|fault| !matches!(fault, Fault::Twice)).count();
    ensure!(
        first.len() == lost + 1 || lost == 0,
        "{} attempts for {faults:?}",
        first.len()
    );
    ensure!(
        first.iter().all(|insert| **insert == *first[0]),
        "attempts differ: {faults:?}"
    );
    // Twice the same rows under two tokens: two batches, each once.
    let found = bed
        .one("SELECT count(), uniqExact(n), min(c), max(c) FROM (SELECT n, count() OVER (PARTITION BY n) AS c FROM {db}.t)")
        .await?;
    ensure!(found == format!("{}\t{ROWS}\t2\t2", 2 * ROWS), "{faults:?}: {found}");
    let sums = bed.one("SELECT count(), sum(n) FROM {db}.sums").await?;
    ensure!(sums == format!("8\t{}", ROWS * (ROWS - 1)), "{faults:?}: {sums}");
    Ok(proxy)
}

#[tokio::test]
async fn a_reset_in_the_middle_of_the_block() -> Result<()> {
    exactly_once_in_spite_of(&[0, 1, 50, 99].map(Fault::ResetInBody)).await?;
    Ok(())
}

#[tokio::test]
async fn a_reset_after_the_block_and_before_the_answer() -> Result<()> {
    exactly_once_in_spite_of(&[Fault::ResetBeforeAnswer, Fault::ResetBeforeAnswer]).await?;
    Ok(())
}

#[tokio::test]
async fn an_answer_that_breaks_off() -> Result<()> {
    // Nothing, a part of the status line, of the headers, and of the (chunked) end.
    exactly_once_in_spite_of(&[0, 10, 100, 400].map(Fault::CutAnswer)).await?;
    Ok(())
}

#[tokio::test]
async fn an_answer_200_that_is_no_acknowledgement() -> Result<()> {
    const FRAMED: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nX-ClickHouse-Exception-Tag: abcdefghijklmnop\r\n\r\n\
                          \r\n__exception__\r\nabcdefghijklmnop\r\nCode: 395. DB::Exception: boom. (X)\n\
                          29 abcdefghijklmnop\r\n__exception__\r\n";
    const HEADER: &str =
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\nX-ClickHouse-Exception-Code: 241\r\n\r\n";
    const PAGE: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 15\r\n\r\n<html>hi</html>";
    for instead in [FRAMED, HEADER, PAGE] {
        exactly_once_in_spite_of(&[Fault::AnswerInstead(instead), Fault::AnswerWithout(instead)]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_of_a_proxy() -> Result<()> {
    const BAD_GATEWAY: &str =
        "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 15\r\n\r\n<html>no</html>";
    const TIMED_OUT: &str = "HTTP/1.1 504 Gateway Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    for answer in [BAD_GATEWAY, TIMED_OUT] {
        exactly_once_in_spite_of(&[Fault::AnswerInstead(answer), Fault::AnswerWithout(answer)]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_code_that_nobody_knows() -> Result<()> {
    const LOGICAL_ERROR: &str = "HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\nContent-Length: 26\r\n\
                                 X-ClickHouse-Exception-Code: 49\r\n\r\nCode: 49. DB::Exception: x";
    exactly_once_in_spite_of(&[Fault::AnswerInstead(LOGICAL_ERROR), Fault::AnswerWithout(LOGICAL_ERROR)]).await?;
    Ok(())
}

#[tokio::test]
async fn silence() -> Result<()> {
    exactly_once_in_spite_of(&[Fault::Silence]).await?;
    Ok(())
}

#[tokio::test]
async fn a_request_that_arrives_twice() -> Result<()> {
    exactly_once_in_spite_of(&[Fault::Twice]).await?;
    Ok(())
}

#[tokio::test]
async fn a_request_that_arrives_after_its_repeat() -> Result<()> {
    let bed = Bed::new().await?;
    bed.table(1_000).await?;
    let proxy = Proxy::start(bed.clickhouse, [Fault::Late]).await?;
    let access = Access {
        endpoint: proxy.endpoint.clone(),
        ..access(bed.clickhouse, &bed.database)
    };
    let committer = committer(Sink::with_timeout(&access, TIMEOUT)?);
    committer.send(prepared(block(0..ROWS, 4), false)?).await;
    eventually("the late request is carried out", LIMIT, || async {
        proxy.late_answers() == 1
    })
    .await?;
    ensure!(proxy.seen().len() == 2, "{} attempts", proxy.seen().len());
    ensure!(bed.count().await? == ROWS, "{}", bed.count().await?);
    Ok(())
}

/// A destination in trouble is asked by the oldest batch alone, and then gets all of them in their order.
#[tokio::test]
async fn after_trouble_the_oldest_goes_first() -> Result<()> {
    const BUSY: &str = "HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let bed = Bed::new().await?;
    bed.table(1_000).await?;
    let proxy = Proxy::start(bed.clickhouse, vec![Fault::AnswerWithout(BUSY); 3]).await?;
    let access = Access {
        endpoint: proxy.endpoint.clone(),
        ..access(bed.clickhouse, &bed.database)
    };
    let committer = committer(Sink::with_timeout(&access, TIMEOUT)?);
    let bodies: Vec<_> = (0..5).map(|n| block(n * 10..n * 10 + 10, 1)).collect();
    let sends = bodies.iter().map(|body| prepared(body.clone(), false));
    let sends = sends.collect::<Result<Vec<_>>>()?;
    // The first is in trouble before the others come.
    let mut sends = sends.into_iter();
    let first = sends.next().context("five of them")?;
    let first = tokio::spawn({
        let committer = committer.clone();
        async move { committer.send(first).await }
    });
    eventually("the first attempt", LIMIT, || async { !proxy.seen().is_empty() }).await?;
    eventually("its failure", LIMIT, || async { proxy.left() == 2 }).await?;
    tokio::time::timeout(
        LIMIT,
        futures::future::join_all(sends.map(|prepared| committer.send(prepared))),
    )
    .await?;
    first.await?;
    let seen: Vec<_> = proxy.seen().into_iter().map(|insert| insert.body).collect();
    let tried: Vec<_> = seen
        .iter()
        .filter_map(|body| bodies.iter().position(|other| other == body))
        .collect();
    ensure!(tried.starts_with(&[0, 0, 0, 0]), "{tried:?}");
    ensure!(bed.one("SELECT count(), uniqExact(n) FROM {db}.t").await? == "50\t50");
    Ok(())
}

/// What ClickHouse says of a row that is against a CHECK constraint.
const VIOLATED: &str = "HTTP/1.1 500 Internal Server Error\r\nX-ClickHouse-Exception-Code: 469\r\nContent-Length: 48\r\n\
                        Connection: close\r\n\r\nCode: 469. DB::Exception: Constraint is violated";

/// Sends a recorded batch through a proxy with these faults; what came of it, and how many rows the table has.
async fn recorded(faults: &[Fault]) -> Result<(Delivered, String)> {
    let bed = Bed::new().await?;
    bed.table(1_000).await?;
    let proxy = Proxy::start(bed.clickhouse, faults.iter().cloned()).await?;
    let access = Access {
        endpoint: proxy.endpoint.clone(),
        ..access(bed.clickhouse, &bed.database)
    };
    let committer = committer(Sink::with_timeout(&access, TIMEOUT)?);
    let (claim, built) = unprepared(block(0..ROWS, 4), false);
    let prepared = committer.prepare(claim, built).await.map_err(anyhow::Error::msg)?;
    let delivery = tokio::time::timeout(LIMIT, committer.send(prepared)).await?;
    ensure!(proxy.left() == 0, "{} faults did not happen", proxy.left());
    Ok((delivery, bed.one("SELECT count() FROM {db}.t").await?))
}

#[tokio::test]
async fn a_refusal_is_taken_for_one_only_if_no_attempt_before_may_have_been_applied() -> Result<()> {
    let refused = || Fault::AnswerWithout(VIOLATED);
    let (delivery, rows) = recorded(&[refused()]).await?;
    ensure!(matches!(delivery, Delivered::Refused(_)), "{delivery:?}");
    ensure!(rows == "0", "{rows}");
    // Carried out, not answered, and then refused, as by a constraint that was added meanwhile. And not delivered, not carried
    // out, and then refused: nobody can tell the one from the other.
    for unknown in [Fault::ResetBeforeAnswer, Fault::ResetInBody(50)] {
        let (delivery, rows) = recorded(&[unknown.clone(), refused(), refused()]).await?;
        ensure!(matches!(delivery, Delivered::Sent(_)), "{unknown:?}: {delivery:?}");
        ensure!(rows == ROWS.to_string(), "{unknown:?}: {rows}");
    }
    Ok(())
}

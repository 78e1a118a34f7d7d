//! Pipes that read through roles.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_common::{error, reason};
use millrace_integration_tests::{
    kinesis::{ErrorKind, Fault, Operation, Rule},
    process::eventually,
};
use millrace_proto::api::v1::{self as api, credential::Kind};

use super::bed::{Ambient, Bed, LIMIT, LOADER, PAYLOAD, READ, SECRET, role, role_arn};

/// The longest session there is.
const SESSION: Duration = Duration::from_secs(3_600);

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_reads_another_account_through_a_role_and_across_the_end_of_its_sessions() -> Result<()> {
    let bed = Bed::start(Ambient::Silent).await?;
    let id = bed.role_credential("reader", "reader", Some("loader")).await?;
    bed.kinesis.put_role(role("reader", LOADER, &id, &READ));
    bed.create("events", "reader").await?;
    bed.put(0..500)?;
    bed.holds("events", 500).await?;
    for round in 1..=2 {
        bed.end_sessions(SESSION).await?;
        bed.put(round * 500..(round + 1) * 500)?;
        bed.holds("events", (round + 1) * 500).await?;
    }
    // An end that is foreseen in no way is still no trouble that anybody is told.
    let log = bed.cluster.log_of("worker-0");
    ensure!(!log.contains("cannot read"), "{log}");
    eprintln!("{} calls, all by ARN", bed.all_by_arn()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_roles_is_renewed_as_a_whole() -> Result<()> {
    let bed = Bed::start(Ambient::Silent).await?;
    let hub = bed.role_credential("hub", "hub", Some("loader")).await?;
    let reader = bed.role_credential("reader", "reader", Some("hub")).await?;
    ensure!(hub != reader, "each has its own");
    bed.kinesis.put_role(role("hub", LOADER, &hub, &["sts:AssumeRole"]));
    bed.kinesis.put_role(role("reader", &role_arn("hub"), &reader, &READ));
    bed.create("events", "reader").await?;
    bed.put(0..500)?;
    bed.holds("events", 500).await?;
    bed.end_sessions(SESSION).await?;
    bed.put(500..1_000)?;
    bed.holds("events", 1_000).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_credentials_external_id_opens_nothing() -> Result<()> {
    let bed = Bed::start(Ambient::Silent).await?;
    let ours = bed.role_credential("ours", "reader", Some("loader")).await?;
    let theirs = bed.role_credential("theirs", "reader", Some("loader")).await?;
    ensure!(ours != theirs);
    bed.kinesis.put_role(role("reader", LOADER, &theirs, &READ));
    let status = bed.create("events", "ours").await.expect_err("refused");
    ensure!(
        error::reason(&status).as_deref() == Some(reason::SOURCE_ACCESS_DENIED),
        "{status:?}"
    );
    for told in ["role/reader", "AccessDenied", "sts:AssumeRole", "external id"] {
        ensure!(status.message().contains(told), "{told}: {}", status.message());
    }
    ensure!(!status.message().contains(&theirs), "{}", status.message());
    bed.create("events", "theirs").await?;
    bed.put(0..10)?;
    bed.holds("events", 10).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_away_is_named_and_heals_when_it_is_given_back() -> Result<()> {
    let bed = Bed::start(Ambient::Silent).await?;
    let id = bed.role_credential("reader", "reader", Some("loader")).await?;
    bed.kinesis.put_role(role("reader", LOADER, &id, &READ));
    bed.create("events", "reader").await?;
    bed.create("others", "owner").await?;
    bed.put(0..100)?;
    bed.holds("events", 100).await?;
    bed.holds("others", 100).await?;

    bed.kinesis.put_role(role("reader", LOADER, &id, &READ[..3]));
    let said = bed.says("events", reason::SOURCE_ACCESS_DENIED).await?;
    ensure!(said.message.contains("allow kinesis:GetRecords"), "{}", said.message);
    eprintln!("{} {}", said.state().as_str_name(), said.message);
    bed.put(100..200)?;
    bed.holds("others", 200).await?;

    // The role itself is closed, and then its session ends.
    bed.kinesis.put_role(role("reader", LOADER, "another", &READ));
    bed.holds("events", 200).await?;
    bed.end_sessions(SESSION).await?;
    bed.put(200..300)?;
    bed.holds("others", 300).await?;
    let said = bed.says("events", reason::SOURCE_ACCESS_DENIED).await?;
    ensure!(said.message.contains("sts:AssumeRole"), "{}", said.message);
    eprintln!("{} {}", said.state().as_str_name(), said.message);

    bed.kinesis.put_role(role("reader", LOADER, &id, &READ));
    bed.holds("events", 300).await?;
    bed.says("events", "").await?;
    bed.holds("others", 300).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ambient_identity_is_used_only_where_the_operator_says_so() -> Result<()> {
    {
        let bed = Bed::start(Ambient::Silent).await?;
        let ambient = Kind::AwsAmbient(api::AwsAmbient {});
        bed.cluster.create_credential("ambient", ambient).await?;
        let id = bed.role_credential("reader", "reader", None).await?;
        bed.kinesis.put_role(role("reader", LOADER, &id, &READ));
        for credential in ["ambient", "reader"] {
            let status = bed.create("events", credential).await.expect_err("refused");
            ensure!(
                error::reason(&status).as_deref() == Some(reason::SOURCE_AMBIENT_NOT_ALLOWED),
                "{status:?}"
            );
            ensure!(status.message().contains("--allow-ambient-aws"), "{}", status.message());
        }
        ensure!(bed.all_by_arn()? == 0, "nothing was called");
    }
    let bed = Bed::start(Ambient::Allowed).await?;
    let id = bed.role_credential("reader", "reader", None).await?;
    bed.kinesis.put_role(role("reader", LOADER, &id, &READ));
    bed.create("events", "reader").await?;
    bed.put(0..10)?;
    bed.holds("events", 10).await?;
    // The loader himself may read nothing.
    bed.cluster
        .create_credential("ambient", Kind::AwsAmbient(api::AwsAmbient {}))
        .await?;
    let status = bed.create("own", "ambient").await.expect_err("refused");
    ensure!(
        error::reason(&status).as_deref() == Some(reason::SOURCE_ACCESS_DENIED),
        "{status:?}"
    );
    Ok(())
}

/// Waits until the control plane has looked at streams so often again.
async fn looks(bed: &Bed, more: u64) -> Result<()> {
    let before = bed.kinesis.calls(Operation::DescribeStreamSummary);
    let looked = eventually("looks at the stream", LIMIT, || async {
        let looks = bed.kinesis.calls(Operation::DescribeStreamSummary) - before;
        ensure!(looks >= more, "{looks}");
        Ok(())
    });
    looked.await.with_context(|| bed.cluster.logs())?;
    Ok(())
}

/// What reading by fan-out takes, with a consumer of the pipe's own.
fn fan_out() -> Vec<&'static str> {
    let more = ["DescribeStreamConsumer", "SubscribeToShard", "RegisterStreamConsumer"];
    let more = more.map(|action| match action {
        "DescribeStreamConsumer" => "kinesis:DescribeStreamConsumer",
        "SubscribeToShard" => "kinesis:SubscribeToShard",
        _ => "kinesis:RegisterStreamConsumer",
    });
    READ.into_iter()
        .chain(more)
        .chain(["kinesis:DeregisterStreamConsumer"])
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_serves_all_looks_at_a_stream_for_its_life() -> Result<()> {
    let bed = Bed::start(Ambient::Silent).await?;
    let hub = bed.role_credential("hub", "hub", Some("loader")).await?;
    let reader = bed.role_credential("reader", "reader", Some("hub")).await?;
    bed.kinesis.put_role(role("hub", LOADER, &hub, &["sts:AssumeRole"]));
    bed.kinesis
        .put_role(role("reader", &role_arn("hub"), &reader, &fan_out()));
    for id in ["events", "others"] {
        bed.cluster.create_pipe(id, bed.fan_out_spec(id, "reader")).await?;
    }
    bed.put(0..100)?;
    bed.holds("events", 100).await?;
    bed.holds("others", 100).await?;
    looks(&bed, 30).await?;
    let counted = || (bed.sessions("hub"), bed.sessions("reader"));
    // For each pipe one on each side; what the control plane assumes them with is one for both.
    eprintln!(
        "after {} looks: {:?} sessions",
        bed.kinesis.calls(Operation::DescribeStreamSummary),
        counted()
    );
    ensure!(counted() == (3, 4), "{:?}", counted());

    // All of them end, and each is followed by one.
    bed.end_sessions(SESSION).await?;
    bed.put(100..200)?;
    bed.holds("events", 200).await?;
    bed.holds("others", 200).await?;
    looks(&bed, 10).await?;
    let renewed = eventually("both sides to have new ones", LIMIT, || async {
        ensure!(counted().1 >= 8, "{:?}", counted());
        Ok(())
    });
    renewed.await?;
    looks(&bed, 20).await?;
    eprintln!("after the end of all: {:?} sessions", counted());
    ensure!(counted() == (6, 8), "{:?}", counted());

    // The reader is closed to them. That says nothing of what it is assumed with.
    bed.kinesis
        .put_role(role("reader", &role_arn("hub"), "another", &fan_out()));
    bed.end_sessions(SESSION).await?;
    for id in ["events", "others"] {
        bed.says(id, reason::SOURCE_ACCESS_DENIED).await?;
    }
    let told = eventually("the control plane to be refused", LIMIT, || async {
        let log = bed.cluster.log_of("control-plane");
        ensure!(log.contains("cannot be assumed"), "not yet");
        Ok(())
    });
    told.await.with_context(|| bed.cluster.logs())?;
    let before = bed.sessions("hub");
    tokio::time::timeout(LIMIT, async {
        // Some rounds of both sides.
        let mut rounds = tokio::time::interval(Duration::from_secs(1));
        for _ in 0..8 {
            rounds.tick().await;
        }
    })
    .await?;
    eprintln!(
        "while it is closed: {} sessions of what it is assumed with, {before} at first",
        bed.sessions("hub")
    );
    ensure!(
        bed.sessions("hub") <= 9 && bed.sessions("reader") == 8,
        "{:?}",
        counted()
    );
    bed.kinesis
        .put_role(role("reader", &role_arn("hub"), &reader, &fan_out()));
    bed.put(200..300)?;
    bed.holds("events", 300).await?;
    bed.says("events", "").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_never_taken_is_not_renewed_at_each_call() -> Result<()> {
    let bed = Bed::start(Ambient::Silent).await?;
    let id = bed.role_credential("reader", "reader", Some("loader")).await?;
    bed.kinesis.put_role(role("reader", LOADER, &id, &READ));
    bed.create("events", "reader").await?;
    bed.put(0..10)?;
    bed.holds("events", 10).await?;
    let refused = Fault::Error(ErrorKind::ExpiredToken);
    let strikes = bed
        .kinesis
        .script(Rule::on_call(Operation::DescribeStreamSummary, refused).times(u64::MAX));
    let (before, since) = (bed.sessions("reader"), std::time::Instant::now());
    let refused = eventually("many refusals", LIMIT, || async {
        ensure!(strikes.count() >= 20, "{}", strikes.count());
        Ok(())
    });
    refused.await?;
    let (sessions, seconds) = (bed.sessions("reader") - before, since.elapsed().as_secs());
    eprintln!("{} refusals in {seconds} s: {sessions} sessions", strikes.count());
    ensure!(sessions as u64 <= 2 * (seconds / 10 + 1), "{sessions} in {seconds} s");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fan_out_reads_through_a_role_and_nothing_of_it_is_logged_at_any_level() -> Result<()> {
    let all = "trace,aws_smithy_runtime=trace,aws_sigv4=trace,aws_runtime=trace,h2=trace,hyper=trace";
    let bed = Bed::start_with(Ambient::Silent, Some(all)).await?;
    let id = bed.role_credential("reader", "reader", Some("loader")).await?;
    bed.kinesis.put_role(role("reader", LOADER, &id, &fan_out()));
    bed.cluster
        .create_pipe("events", bed.fan_out_spec("events", "reader"))
        .await?;
    bed.put(0..500)?;
    bed.holds("events", 500).await?;
    let subscribed = eventually("both shards to be subscribed to", LIMIT, || async {
        let calls = bed.kinesis.calls(Operation::SubscribeToShard);
        ensure!(calls >= 2, "{calls}");
        Ok(())
    });
    subscribed.await.with_context(|| bed.cluster.logs())?;
    // What is put now comes by events, before and after the end of its session.
    bed.put(500..1_000)?;
    bed.holds("events", 1_000).await?;
    bed.end_sessions(SESSION).await?;
    bed.put(1_000..1_500)?;
    bed.holds("events", 1_500).await?;
    bed.says("events", "").await?;
    eprintln!(
        "{} subscriptions, {} calls of GetRecords, {} sessions",
        bed.kinesis.calls(Operation::SubscribeToShard),
        bed.kinesis.calls(Operation::GetRecords),
        bed.sessions("reader")
    );
    let packed = base64_simd::STANDARD.encode_to_string(format!("   {PAYLOAD}"));
    for process in ["control-plane", "worker-0"] {
        let log = bed.cluster.log_of(process);
        ensure!(log.contains("DEBUG"), "{process} was to log everything");
        for secret in [
            PAYLOAD,
            &packed[4..40],
            SECRET,
            "x-amz-security-token",
            "AWS4-HMAC-SHA256",
        ] {
            let line = log.lines().find(|line| line.contains(secret));
            ensure!(line.is_none(), "{process} logs {secret}: {line:?}");
        }
        eprintln!("{process}: {} lines without any of it", log.lines().count());
    }
    Ok(())
}

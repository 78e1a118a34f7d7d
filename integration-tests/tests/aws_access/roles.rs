//! Pipes that read through roles.

use std::time::Duration;

use anyhow::{Result, ensure};
use millrace_common::{error, reason};
use millrace_proto::api::v1::{self as api, credential::Kind};

use super::bed::{Ambient, Bed, LOADER, READ, role, role_arn};

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
        bed.kinesis.clock().advance(SESSION);
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
    bed.kinesis.clock().advance(SESSION);
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
    bed.kinesis.clock().advance(SESSION);
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

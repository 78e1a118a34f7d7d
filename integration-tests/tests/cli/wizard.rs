//! `millrace pipe create` on a terminal.

use std::{io::Write as _, process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use millrace_integration_tests::cluster;
use nix::pty::openpty;

use super::bed::{Bed, ORDERS};

/// Answers the questions of `millrace pipe create` on a terminal of its own. Exit code, what it asked and showed, and what it
/// printed.
async fn asked(bed: &Bed, answers: &[&str]) -> anyhow::Result<(i32, String, String)> {
    let terminal = openpty(None, None)?;
    let child = tokio::process::Command::new(cluster::program("millrace")?)
        .args(["pipe", "create"])
        .envs(bed.environment()?)
        .stdin(Stdio::from(terminal.slave))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut keyboard = std::fs::File::from(terminal.master);
    for answer in answers {
        keyboard.write_all(format!("{answer}\n").as_bytes())?;
    }
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await??;
    // A terminal that is closed ends what runs on it.
    drop(keyboard);
    Ok((
        output.status.code().context("a code")?,
        String::from_utf8(output.stderr)?,
        String::from_utf8(output.stdout)?,
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_is_made_of_answers() -> anyhow::Result<()> {
    let bed = Bed::start().await?;
    bed.kinesis.create_stream("returns", 1)?;
    let (code, said, _) = asked(&bed, &[]).await?;
    ensure!(
        code == 1 && said.contains("there is no AWS credential yet"),
        "{code} {said}"
    );
    bed.credentials().await?;

    let server = bed.clickhouse.http_url();
    // The only credentials are taken without a question; an empty answer takes what is proposed.
    let answers = ["", "nothing", "1", "", &server, "", "", "sometime", "", "maybe"];
    let refused: Vec<&str> = answers.into_iter().chain(["no"]).collect();
    let (code, said, printed) = asked(&bed, &refused).await?;
    ensure!(code == 0 && printed.is_empty(), "{code} {said} {printed}");
    for wanted in [
        "AWS credential: aws",
        "2. returns",
        "\"nothing\" is none of them: give a number of 1 to 2",
        "Id of the pipe [orders]",
        "give trim-horizon, latest, or a time",
        "- name: order_id",
        "Answer yes or no.",
        "Nothing was created.",
    ] {
        ensure!(said.contains(wanted), "{wanted:?} is not in {said}");
    }
    ensure!(
        bed.code("millrace pipe get orders").await?.0 == 3,
        "it was created all the same"
    );

    let agreed: Vec<&str> = answers.into_iter().chain(["yes"]).collect();
    let (code, said, printed) = asked(&bed, &agreed).await?;
    ensure!(code == 0 && printed.contains("orders"), "{code} {said} {printed}");
    bed.run(&format!("millrace pipe watch orders --until-records {ORDERS}"))
        .await?;
    let found = bed.clickhouse.query("SELECT count() FROM default.orders").await?;
    ensure!(found.trim() == ORDERS.to_string(), "{found}");
    bed.stop().await
}

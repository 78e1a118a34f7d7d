//! Consumers that a control plane leaves behind as it dies: none is lost, none is registered twice, and none that another installation
//! has registered is touched.

use anyhow::{Context as _, Result, ensure};
use millrace_integration_tests::cluster::CONTROL_PLANE;
use millrace_integration_tests::flow::{Flow, LIMIT};
use millrace_integration_tests::process::eventually;
use millrace_proto::api::v1 as api;

use super::pipe::{ONE_AT_A_TIME, shape};

/// The name of a pipe's consumer in another installation, which reads the same stream.
const FOREIGN: &str = "millrace-00000000-0000-4000-8000-000000000001";

async fn consumers(flow: &Flow, wanted: &[&str]) -> Result<()> {
    let mut wanted = wanted.to_vec();
    wanted.sort_unstable();
    let found = eventually("the consumers", LIMIT, || async {
        let consumers = flow.kinesis.consumers(flow.stream())?;
        let mut names: Vec<String> = consumers.into_iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        ensure!(names == wanted, "{names:?}, not {wanted:?}");
        Ok(())
    });
    found.await.with_context(|| flow.cluster.logs())
}

/// Does something after which the control plane dies at a point, and starts it again.
async fn dies(flow: &mut Flow, point: &str, act: impl AsyncFn(&Flow) -> Result<()>) -> Result<()> {
    let said = format!("fail point {point}: kill");
    let before = flow.cluster.log_of(CONTROL_PLANE).matches(&said).count();
    flow.cluster.arm(CONTROL_PLANE, &format!("{point}=kill"))?;
    // It may die before it has answered.
    let answered = act(flow).await;
    let died = eventually(&said, LIMIT, || async {
        let said = flow.cluster.log_of(CONTROL_PLANE).matches(&said).count();
        ensure!(said > before, "not yet; the call came to {answered:?}");
        let process = flow.cluster.control_plane();
        ensure!(
            process.is_none_or(|process| process.status().is_some()),
            "it still runs"
        );
        Ok(())
    });
    died.await.with_context(|| flow.cluster.logs())?;
    flow.cluster.arm(CONTROL_PLANE, "")?;
    flow.cluster.kill_control_plane().await?;
    flow.cluster.start_control_plane().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_dies_leaves_no_consumer_behind_and_touches_no_other() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut shape = shape(2, 1);
    shape.fan_out = false;
    shape.options.fail_points = true;
    shape
        .options
        .control_plane_args
        .push("--discovery-interval=1s".to_owned());
    let mut flow = Flow::start(shape).await?;
    flow.kinesis.register_consumer(flow.stream(), FOREIGN)?;
    let own = format!("millrace-{}", flow.pipe().await?.uid);
    flow.put(0..100)?;
    flow.committed(100).await?;

    // Before and after it is registered: the next one finds it noted, and registers it once.
    for (round, point) in ["control.consumer.noted", "control.consumer.registered"]
        .into_iter()
        .enumerate()
    {
        dies(&mut flow, point, async |flow| flow.set_fan_out(true).await).await?;
        consumers(&flow, &[FOREIGN, &own]).await?;
        // The pipe reads without it again, and nobody has deregistered it.
        dies(&mut flow, "control.consumer.deregister", async |flow| {
            flow.set_fan_out(false).await
        })
        .await?;
        consumers(&flow, &[FOREIGN]).await?;
        let told = events(&flow, "CONSUMER_DEREGISTERED").await?;
        ensure!(told.len() == round + 1, "{told:?}");
        eprintln!("{point}: {}", told[0]);
    }

    // The pipe is deleted, and nobody has deregistered its consumer.
    flow.set_fan_out(true).await?;
    consumers(&flow, &[FOREIGN, &own]).await?;
    flow.put(100..200)?;
    flow.committed(200).await?;
    dies(&mut flow, "control.consumer.deregister", async |flow| {
        flow.cluster.delete_pipe("flow").await.map(drop)
    })
    .await?;
    consumers(&flow, &[FOREIGN]).await?;
    let log = flow.cluster.log_of(CONTROL_PLANE);
    ensure!(log.contains("a consumer that nobody wanted was deregistered"), "{log}");
    // And the other installation's stays.
    let rounds = flow
        .kinesis
        .calls(millrace_integration_tests::kinesis::Operation::DeregisterStreamConsumer);
    eprintln!("{rounds} calls of DeregisterStreamConsumer");
    consumers(&flow, &[FOREIGN]).await
}

/// Messages of a pipe's events of a kind, newest first.
async fn events(flow: &Flow, kind: &str) -> Result<Vec<String>> {
    let request = api::ListPipeEventsRequest {
        parent: flow.pipe().await?.name,
        ..Default::default()
    };
    let answer = flow.cluster.pipes()?.list_pipe_events(request).await?.into_inner();
    let of_kind = answer.events.into_iter().filter(|event| event.kind == kind);
    Ok(of_kind.map(|event| event.message).collect())
}

//! The conformance suite, against this emulator and against one that nobody here wrote.

use millrace_integration_tests::{kinesis::referee::Referee, process::python, repository};

use super::*;

/// Runs the conformance suite, which asserts the same facts with boto3 whatever it talks to.
async fn conform(endpoint_url: &str, name: &str) -> Result<()> {
    let python = python().expect("boto3 is installed by deploy/dev/tools.sh test");
    let script = repository().join("integration-tests/tests/python/kinesis_conformance.py");
    let output = tokio::process::Command::new(&python)
        .arg(&script)
        .args(["--endpoint-url", endpoint_url, "--emulator", name])
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(240), output).await?;
    let output = output.with_context(|| format!("cannot run {}", python.display()))?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}\n{text}", output.status);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_of_this_emulator() -> Result<()> {
    let handle = Emulator::start(Options::default()).await?;
    conform(&handle.endpoint_url(), "millrace").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_of_the_referee() -> Result<()> {
    let referee = Referee::start(&[]).await?;
    conform(&referee.endpoint_url(), "kinesis-local").await
}

//! A client in Python, generated from the .proto files by grpcio-tools, drives every RPC.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use millrace_integration_tests::{process::python, repository};
use millrace_proto::DESCRIPTOR_POOL;

use super::bed::{Bed, ORDERS};

/// The package that is for users.
const PACKAGE: &str = "millrace.api.v1";

#[tokio::test(flavor = "multi_thread")]
async fn a_client_generated_for_python_drives_every_rpc() -> anyhow::Result<()> {
    let bed = Bed::start().await?;
    let python = python().context("grpcio-tools is installed by deploy/dev/tools.sh test")?;
    let generated = bed.directory.path().join("generated");
    std::fs::create_dir(&generated)?;
    let protos = repository().join("proto");
    let files = DESCRIPTOR_POOL.files().filter(|file| file.package_name() == PACKAGE);
    let files: Vec<String> = files.map(|file| file.name().to_owned()).collect();
    let generate = tokio::process::Command::new(&python)
        .args(["-m", "grpc_tools.protoc"])
        .arg(format!("--proto_path={}", protos.display()))
        .arg(format!("--proto_path={}", protos.join("third_party").display()))
        .arg(format!("--python_out={}", generated.display()))
        .arg(format!("--grpc_python_out={}", generated.display()))
        .args(&files)
        .output()
        .await?;
    ensure!(
        generate.status.success(),
        "{}",
        String::from_utf8_lossy(&generate.stderr)
    );

    let rpcs: Vec<String> = DESCRIPTOR_POOL
        .services()
        .filter(|service| service.package_name() == PACKAGE)
        .flat_map(|service| {
            let methods = service
                .methods()
                .map(|method| format!("/{}/{}", service.full_name(), method.name()));
            methods.collect::<Vec<_>>()
        })
        .collect();
    let described = serde_json::json!({
        "millrace": bed.address(),
        "kinesis": bed.kinesis.endpoint_url(),
        "stream_arn": bed.kinesis.stream_arn("orders")?,
        "clickhouse": bed.clickhouse.http_url(),
        "user": bed.clickhouse.user(),
        "password": bed.clickhouse.password(),
        "records": ORDERS,
        "rpcs": rpcs,
    });
    let output = tokio::process::Command::new(&python)
        .arg(repository().join("integration-tests/tests/python/generated_client.py"))
        .arg(&generated)
        .arg(described.to_string())
        .stdin(Stdio::null())
        .output()
        .await?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && printed.trim() == format!("{} RPCs called", rpcs.len()),
        "{printed}{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        bed.log()
    );
    bed.stop().await
}

//! HTTP as such: both versions, errors, the binary, stopping.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;

use super::*;

#[tokio::test]
async fn stopping_frees_the_port() -> Result<()> {
    let (handle, client) = emulator(1, Options::default()).await?;
    shards(&client).await?;
    let listen = handle.addr();
    handle.stop().await;
    let again = Emulator::start(Options {
        listen,
        ..Options::default()
    })
    .await?;
    assert_eq!(again.addr(), listen);
    Ok(())
}

#[tokio::test]
async fn http2_is_spoken_without_tls() -> Result<()> {
    let (handle, _) = emulator(1, Options::default()).await?;
    let stream = TcpStream::connect(handle.addr()).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = hyper::Request::post(handle.endpoint_url())
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amz-target", "Kinesis_20131202.ListStreams")
        .body(Full::<Bytes>::from("{}"))?;
    let response = sender.send_request(request).await?;
    assert_eq!(response.version(), hyper::Version::HTTP_2);
    assert!(response.headers().contains_key("x-amzn-requestid"));
    let body: serde_json::Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
    assert_eq!(body["StreamNames"], serde_json::json!([STREAM]));
    Ok(())
}

#[tokio::test]
async fn errors_have_the_services_shape() -> Result<()> {
    let (handle, _) = emulator(1, Options::default()).await?;
    for (target, body, status, kind) in [
        ("Kinesis_20131202.Dance", "{}", 400, "UnknownOperationException"),
        ("Kinesis_20131202.PutRecord", "{", 400, "SerializationException"),
        (
            "Kinesis_20131202.PutRecord",
            r#"{"StreamName":3}"#,
            400,
            "SerializationException",
        ),
        (
            "Kinesis_20131202.PutRecord",
            r#"{"StreamName":"events"}"#,
            400,
            "ValidationException",
        ),
        (
            "Kinesis_20131202.PutRecord",
            r#"{"StreamName":"events","PartitionKey":"k","Data":"not base64"}"#,
            400,
            "SerializationException",
        ),
        (
            "Kinesis_20131202.ListShards",
            r#"{"StreamName":"other"}"#,
            400,
            "ResourceNotFoundException",
        ),
    ] {
        let stream = TcpStream::connect(handle.addr()).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = hyper::Request::post("/")
            .header("host", "localhost")
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", target)
            .body(Full::<Bytes>::from(body))?;
        let response = sender.send_request(request).await?;
        assert_eq!(response.status(), status, "{target} {body}");
        assert_eq!(response.headers()["content-type"], "application/x-amz-json-1.1");
        let error: serde_json::Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
        assert_eq!(error["__type"], kind, "{target} {body}");
        assert!(error["message"].is_string());
    }
    Ok(())
}

#[tokio::test]
async fn the_binary_serves_until_it_is_told_to_stop() -> Result<()> {
    let directory = tempfile::TempDir::new()?;
    let port_file = directory.path().join("port");
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_millrace-kinesis-emulator"))
        .args([
            "--stream",
            "events:2,other:1",
            "--account",
            "123456789012",
            "--region",
            "eu-west-1",
        ])
        .arg("--port-file")
        .arg(&port_file)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
    let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await??;
    let endpoint_url = line.context("a line with the endpoint")?;
    let port = std::fs::read_to_string(&port_file)?;
    assert_eq!(endpoint_url, format!("http://127.0.0.1:{}", port.trim()));

    let client = client(&endpoint_url);
    assert_eq!(shards(&client).await?.len(), 2);
    let summary = client.describe_stream_summary().stream_name("other").send().await?;
    let arn = summary.stream_description_summary.context("a summary")?.stream_arn;
    assert_eq!(arn, "arn:aws:kinesis:eu-west-1:123456789012:stream/other");

    let pid = child.id().context("it runs")?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.try_into()?),
        nix::sys::signal::Signal::SIGTERM,
    )?;
    let status = tokio::time::timeout(Duration::from_secs(10), child.wait()).await??;
    assert!(status.success(), "{status}");
    Ok(())
}

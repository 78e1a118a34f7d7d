//! Faults by script, as the Rust SDK sees them.

use millrace_integration_tests::kinesis::{ErrorKind, Fault, Rule, documented};

use super::*;

#[tokio::test]
async fn each_documented_error_of_a_readers_calls_reaches_the_sdk() -> Result<()> {
    let (handle, client) = emulator(1, Options::default()).await?;
    let stream = handle.stream_arn(STREAM)?;
    let mut seen = 0;
    for operation in [
        Operation::GetRecords,
        Operation::GetShardIterator,
        Operation::ListShards,
        Operation::DescribeStreamSummary,
        Operation::PutRecord,
        Operation::RegisterStreamConsumer,
        Operation::DescribeStreamConsumer,
        Operation::ListStreamConsumers,
        Operation::DeregisterStreamConsumer,
    ] {
        let everywhere = [
            ErrorKind::ExpiredToken,
            ErrorKind::ServiceUnavailable,
            ErrorKind::UnrecognizedClient,
        ];
        for kind in documented(operation).iter().copied().chain(everywhere) {
            let strikes = handle.script(Rule::on_call(operation, Fault::Error(kind)));
            let code = match operation {
                Operation::GetRecords => code(client.get_records().shard_iterator("x").send().await),
                Operation::GetShardIterator => {
                    let call = client.get_shard_iterator().stream_name(STREAM).shard_id(SHARD_0);
                    code(call.shard_iterator_type(ShardIteratorType::Latest).send().await)
                }
                Operation::ListShards => code(client.list_shards().stream_name(STREAM).send().await),
                Operation::DescribeStreamSummary => {
                    code(client.describe_stream_summary().stream_name(STREAM).send().await)
                }
                Operation::PutRecord => {
                    let call = client.put_record().stream_name(STREAM).partition_key("k");
                    code(call.data(Blob::new("x")).send().await)
                }
                Operation::RegisterStreamConsumer => code(
                    client
                        .register_stream_consumer()
                        .stream_arn(&stream)
                        .consumer_name("c")
                        .send()
                        .await,
                ),
                Operation::DescribeStreamConsumer => code(
                    client
                        .describe_stream_consumer()
                        .stream_arn(&stream)
                        .consumer_name("c")
                        .send()
                        .await,
                ),
                Operation::ListStreamConsumers => code(client.list_stream_consumers().stream_arn(&stream).send().await),
                _ => code(
                    client
                        .deregister_stream_consumer()
                        .stream_arn(&stream)
                        .consumer_name("c")
                        .send()
                        .await,
                ),
            };
            assert_eq!(code, kind.name(), "{operation:?}");
            assert_eq!(strikes.count(), 1);
            handle.clear_script();
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen}");
    Ok(())
}

#[tokio::test]
async fn a_fault_strikes_one_shard_some_times() -> Result<()> {
    let (handle, client) = emulator(2, Options::default()).await?;
    let mut iterators = Vec::new();
    for shard in shards(&client).await? {
        iterators.push(iterator(&client, shard.shard_id(), ShardIteratorType::TrimHorizon).await?);
    }
    let fault = Fault::Error(ErrorKind::ProvisionedThroughputExceeded);
    let strikes = handle.script(
        Rule::on_call(Operation::GetRecords, fault)
            .of_stream(STREAM)
            .of_shard(1)
            .after(1)
            .times(2),
    );
    let mut results = Vec::new();
    for _ in 0..4 {
        for iterator in &iterators {
            results.push(client.get_records().shard_iterator(iterator).send().await.is_ok());
        }
    }
    assert_eq!(results, [true, true, true, false, true, false, true, true]);
    assert_eq!(strikes.count(), 2);
    Ok(())
}

#[tokio::test]
async fn a_status_without_a_body_a_delay_and_a_reset() -> Result<()> {
    let (handle, client) = emulator(1, Options::default()).await?;
    handle.script(Rule::on_any_call(Fault::Status(http::StatusCode::BAD_GATEWAY)).times(1));
    let error = client.list_streams().send().await.expect_err("refused");
    let raw = error.raw_response().expect("an answer");
    assert_eq!(raw.status().as_u16(), 502);
    assert_eq!(raw.body().bytes().map(<[u8]>::len), Some(0));
    handle.script(Rule::on_any_call(Fault::Reset).times(1));
    let error = client.list_streams().send().await.expect_err("reset");
    assert!(error.raw_response().is_none(), "{error:?}");
    handle.script(Rule::on_any_call(Fault::Delay(Duration::from_millis(200))).times(1));
    let started = std::time::Instant::now();
    client.list_streams().send().await?;
    assert!(started.elapsed() >= Duration::from_millis(200));
    client.list_streams().send().await?;
    Ok(())
}

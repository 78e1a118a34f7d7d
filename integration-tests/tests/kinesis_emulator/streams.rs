//! Streams: made, described, listed, deleted, made again; retention.

use super::*;

#[tokio::test]
async fn a_stream_is_created_described_listed_and_deleted() -> Result<()> {
    let handle = Emulator::start(Options::default()).await?;
    let client = client(&handle.endpoint_url());
    client
        .create_stream()
        .stream_name(STREAM)
        .shard_count(3)
        .tags("team", "a")
        .send()
        .await?;
    assert_eq!(
        code(client.create_stream().stream_name(STREAM).shard_count(1).send().await),
        "ResourceInUseException"
    );

    let summary = client.describe_stream_summary().stream_name(STREAM).send().await?;
    let summary = summary.stream_description_summary.context("a summary")?;
    assert_eq!(
        summary.stream_arn,
        "arn:aws:kinesis:us-east-1:000000000000:stream/events"
    );
    assert_eq!(summary.stream_status, StreamStatus::Active);
    assert_eq!((summary.open_shard_count, summary.retention_period_hours), (3, 24));

    let by_arn = client
        .describe_stream()
        .stream_arn(&summary.stream_arn)
        .limit(2)
        .send()
        .await?;
    let description = by_arn.stream_description.context("a description")?;
    assert_eq!((description.shards.len(), description.has_more_shards), (2, true));
    assert_eq!(description.stream_creation_timestamp, summary.stream_creation_timestamp);

    let tags = client.list_tags_for_stream().stream_name(STREAM).send().await?.tags;
    assert_eq!(
        tags.iter().map(|tag| (tag.key(), tag.value())).collect::<Vec<_>>(),
        [("team", Some("a"))]
    );

    client.delete_stream().stream_name(STREAM).send().await?;
    assert_eq!(
        code(client.describe_stream_summary().stream_name(STREAM).send().await),
        "ResourceNotFoundException"
    );
    handle.stop().await;
    Ok(())
}

#[tokio::test]
async fn streams_are_listed_in_pages() -> Result<()> {
    let handle = Emulator::start(Options::default()).await?;
    let client = client(&handle.endpoint_url());
    for name in ["c", "a", "e", "b", "d"] {
        handle.create_stream(name, 1)?;
    }
    let mut names = Vec::new();
    let mut token = None;
    loop {
        let page = client.list_streams().limit(2).set_next_token(token).send().await?;
        names.extend(page.stream_names);
        token = page.next_token;
        assert_eq!(page.has_more_streams, token.is_some());
        if token.is_none() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    Ok(())
}

#[tokio::test]
async fn on_demand_streams_open_with_four_shards() -> Result<()> {
    let handle = Emulator::start(Options::default()).await?;
    let client = client(&handle.endpoint_url());
    let on_demand = StreamModeDetails::builder().stream_mode(StreamMode::OnDemand).build()?;
    client
        .create_stream()
        .stream_name(STREAM)
        .stream_mode_details(on_demand)
        .send()
        .await?;
    assert_eq!(shards(&client).await?.len(), 4);
    let update = client.update_shard_count().stream_name(STREAM).target_shard_count(8);
    assert_eq!(
        code(update.scaling_type(ScalingType::UniformScaling).send().await),
        "ValidationException"
    );
    Ok(())
}

#[tokio::test]
async fn a_status_lasts_as_long_as_the_options_say() -> Result<()> {
    let options = Options {
        transition: Duration::from_secs(30),
        ..Options::default()
    };
    let (handle, client) = emulator(1, options).await?;
    let status = async || -> Result<StreamStatus> {
        let output = client.describe_stream_summary().stream_name(STREAM).send().await?;
        Ok(output.stream_description_summary.context("a summary")?.stream_status)
    };
    assert_eq!(status().await?, StreamStatus::Creating);
    let put = client
        .put_record()
        .stream_name(STREAM)
        .partition_key("k")
        .data(Blob::new("x"));
    assert_eq!(code(put.clone().send().await), "ResourceNotFoundException");
    handle.clock().advance(Duration::from_secs(30));
    assert_eq!(status().await?, StreamStatus::Active);

    handle.split_shard(STREAM, SHARD_0)?;
    assert_eq!(status().await?, StreamStatus::Updating);
    put.clone().send().await?;
    let merge = client.merge_shards().stream_name(STREAM);
    let merge = merge
        .shard_to_merge("shardId-000000000001")
        .adjacent_shard_to_merge("shardId-000000000002");
    assert_eq!(code(merge.clone().send().await), "ResourceInUseException");
    handle.clock().advance(Duration::from_secs(30));
    merge.send().await?;

    handle.clock().advance(Duration::from_secs(30));
    client.delete_stream().stream_name(STREAM).send().await?;
    assert_eq!(status().await?, StreamStatus::Deleting);
    handle.clock().advance(Duration::from_secs(30));
    assert_eq!(code(put.send().await), "ResourceNotFoundException");
    Ok(())
}

#[tokio::test]
async fn retention_moves_the_trim_horizon() -> Result<()> {
    let (handle, client) = emulator(1, Options::default()).await?;
    let put = |text: &str| {
        client
            .put_record()
            .stream_name(STREAM)
            .partition_key("k")
            .data(Blob::new(text))
            .send()
    };
    let old = put("old").await?.sequence_number;
    handle.clock().advance(Duration::from_secs(23 * 3_600));
    put("new").await?;
    let stale = iterator(&client, SHARD_0, ShardIteratorType::TrimHorizon).await?;
    let read = async |iterator: String| Ok::<_, anyhow::Error>(texts(&get(&client, &iterator).await?.records));
    assert_eq!(read(stale.clone()).await?, ["old", "new"]);

    let retention = client.increase_stream_retention_period().stream_name(STREAM);
    assert_eq!(
        code(retention.clone().retention_period_hours(8_761).send().await),
        "InvalidArgumentException"
    );
    retention.retention_period_hours(48).send().await?;
    handle.clock().advance(Duration::from_secs(2 * 3_600));
    let start = iterator(&client, SHARD_0, ShardIteratorType::TrimHorizon).await?;
    assert_eq!(read(start.clone()).await?, ["old", "new"]);

    let retention = client.decrease_stream_retention_period().stream_name(STREAM);
    assert_eq!(
        code(retention.clone().retention_period_hours(23).send().await),
        "InvalidArgumentException"
    );
    retention.retention_period_hours(24).send().await?;
    assert_eq!(
        read(start).await?,
        ["new"],
        "an iterator before the horizon goes on at the horizon"
    );
    let after_trimmed = iterator_by_number(&client, SHARD_0, ShardIteratorType::AfterSequenceNumber, &old).await?;
    assert_eq!(read(after_trimmed).await?, ["new"]);

    let placed = handle.put_records_direct(STREAM, [Put::new("k", b"newer")])?;
    handle.trim_through(STREAM, &placed[0])?;
    assert_eq!(handle.record_count(STREAM)?, 0);
    Ok(())
}

#[tokio::test]
async fn a_recreated_stream_is_another_stream() -> Result<()> {
    let (handle, client) = emulator(1, Options::default()).await?;
    let created = async || -> Result<DateTime> {
        let output = client.describe_stream_summary().stream_name(STREAM).send().await?;
        Ok(output
            .stream_description_summary
            .context("a summary")?
            .stream_creation_timestamp)
    };
    let put = client
        .put_record()
        .stream_name(STREAM)
        .partition_key("k")
        .data(Blob::new("x"));
    let number = put.clone().send().await?.sequence_number;
    let old_iterator = iterator(&client, SHARD_0, ShardIteratorType::TrimHorizon).await?;
    let old_created = created().await?;
    let old_page = client.list_shards().stream_name(STREAM).max_results(1).send().await?;
    assert_eq!(old_page.next_token, None);

    handle.delete_stream(STREAM)?;
    handle.create_stream(STREAM, 1)?;
    assert_ne!(created().await?, old_created);
    put.send().await?;
    assert_eq!(
        code(client.get_records().shard_iterator(old_iterator).send().await),
        "InvalidArgumentException"
    );
    let request = client.get_shard_iterator().stream_name(STREAM).shard_id(SHARD_0);
    let request = request
        .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
        .starting_sequence_number(number);
    let error = request.send().await.expect_err("of another stream");
    assert!(
        error
            .message()
            .is_some_and(|text| text.contains("did not come from this stream")),
        "{error:?}"
    );
    let list = client
        .list_shards()
        .stream_name(STREAM)
        .stream_creation_timestamp(old_created);
    assert_eq!(code(list.send().await), "ResourceNotFoundException");
    let list = client
        .list_shards()
        .stream_name(STREAM)
        .stream_creation_timestamp(created().await?);
    assert_eq!(list.send().await?.shards().len(), 1);
    Ok(())
}

//! Shards: split, merged, scaled, filtered and listed.

use super::*;

#[tokio::test]
async fn a_split_shard_ends_and_names_its_children() -> Result<()> {
    let (_handle, client) = emulator(1, Options::default()).await?;
    let put = |key: &str| {
        client
            .put_record()
            .stream_name(STREAM)
            .partition_key(key)
            .data(Blob::new(key))
            .send()
    };
    for key in ["a", "b", "c"] {
        put(key).await?;
    }
    let start = iterator(&client, SHARD_0, ShardIteratorType::TrimHorizon).await?;
    let middle = (1u128 << 127).to_string();
    let split = client.split_shard().stream_name(STREAM).shard_to_split(SHARD_0);
    assert_eq!(
        code(split.clone().new_starting_hash_key("1").send().await),
        "InvalidArgumentException"
    );
    split.clone().new_starting_hash_key(&middle).send().await?;
    assert_eq!(
        code(split.new_starting_hash_key(&middle).send().await),
        "InvalidArgumentException"
    );

    let first = client.get_records().shard_iterator(&start).limit(2).send().await?;
    assert!(first.child_shards.is_none());
    let last = get(&client, first.next_shard_iterator().context("not the end yet")?).await?;
    assert_eq!(texts(&last.records), ["c"]);
    assert_eq!(last.next_shard_iterator, None);
    let children: Vec<_> = last
        .child_shards()
        .iter()
        .map(|child| (child.shard_id(), child.parent_shards()))
        .collect();
    let parents = [SHARD_0.to_owned()];
    assert_eq!(
        children,
        [
            ("shardId-000000000001", &parents[..]),
            ("shardId-000000000002", &parents[..])
        ]
    );

    let listed = shards(&client).await?;
    let ending = listed[0]
        .sequence_number_range()
        .and_then(|range| range.ending_sequence_number());
    let ending = SequenceNumber::parse(ending.context("a closed shard has an ending sequence number")?);
    for child in &listed[1..] {
        assert_eq!(child.parent_shard_id(), Some(SHARD_0));
        let range = child.sequence_number_range().context("a range")?;
        assert_eq!(range.ending_sequence_number(), None);
        assert!(SequenceNumber::parse(range.starting_sequence_number()) > ending);
    }
    let placed = put("d").await?;
    assert_ne!(placed.shard_id, SHARD_0);
    Ok(())
}

#[tokio::test]
async fn merged_shards_end_in_one_child() -> Result<()> {
    let (_handle, client) = emulator(3, Options::default()).await?;
    let merge = |left: &str, right: &str| {
        client
            .merge_shards()
            .stream_name(STREAM)
            .shard_to_merge(left)
            .adjacent_shard_to_merge(right)
            .send()
    };
    assert_eq!(
        code(merge(SHARD_0, "shardId-000000000002").await),
        "InvalidArgumentException"
    );
    assert_eq!(
        code(merge(SHARD_0, "shardId-000000000009").await),
        "ResourceNotFoundException"
    );
    merge(SHARD_0, "shardId-000000000001").await?;
    for parent in [SHARD_0, "shardId-000000000001"] {
        let page = get(&client, &iterator(&client, parent, ShardIteratorType::Latest).await?).await?;
        assert_eq!(page.next_shard_iterator, None);
        let child = &page.child_shards()[0];
        assert_eq!(
            (child.shard_id(), child.parent_shards().len()),
            ("shardId-000000000003", 2)
        );
    }
    let child = &shards(&client).await?[3];
    assert_eq!(child.parent_shard_id(), Some(SHARD_0));
    assert_eq!(child.adjacent_parent_shard_id(), Some("shardId-000000000001"));
    Ok(())
}

#[tokio::test]
async fn the_shard_count_scales_uniformly() -> Result<()> {
    let (handle, client) = emulator(3, Options::default()).await?;
    let update = client
        .update_shard_count()
        .stream_name(STREAM)
        .scaling_type(ScalingType::UniformScaling);
    assert_eq!(
        code(update.clone().target_shard_count(7).send().await),
        "LimitExceededException"
    );
    let output = update.target_shard_count(5).send().await?;
    assert_eq!(
        (output.current_shard_count, output.target_shard_count),
        (Some(3), Some(5))
    );
    let open: Vec<_> = handle
        .shards(STREAM)?
        .into_iter()
        .filter(|shard| shard.is_open)
        .collect();
    let mut widths: Vec<_> = open
        .iter()
        .map(|s| s.range.end_inclusive - s.range.start_inclusive)
        .collect();
    widths.sort_unstable();
    assert_eq!(widths.len(), 5);
    assert!(widths[4] - widths[0] <= 5, "{widths:?}");
    Ok(())
}

#[tokio::test]
async fn shard_filters_show_the_shards_of_their_time() -> Result<()> {
    let clock = Clock::frozen_at_ms(1_760_000_000_000);
    let (handle, client) = emulator(
        1,
        Options {
            clock: clock.clone(),
            ..Options::default()
        },
    )
    .await?;
    clock.advance(Duration::from_secs(100));
    handle.split_shard(STREAM, SHARD_0)?;
    clock.advance(Duration::from_secs(100));
    handle.merge_shards(STREAM, "shardId-000000000001", "shardId-000000000002")?;
    clock.advance(Duration::from_secs(100));

    let filter = |kind: ShardFilterType| ShardFilter::builder().r#type(kind);
    let at = |seconds: i64| DateTime::from_secs(1_760_000_000 + seconds);
    for (filter, expected) in [
        (
            filter(ShardFilterType::AfterShardId).shard_id("shardId-000000000001"),
            vec![2, 3],
        ),
        (filter(ShardFilterType::AtTrimHorizon), vec![0]),
        (filter(ShardFilterType::FromTrimHorizon), vec![0, 1, 2, 3]),
        (filter(ShardFilterType::AtLatest), vec![3]),
        (filter(ShardFilterType::AtTimestamp).timestamp(at(150)), vec![1, 2]),
        (filter(ShardFilterType::FromTimestamp).timestamp(at(150)), vec![1, 2, 3]),
        (
            filter(ShardFilterType::FromTimestamp).timestamp(at(-500)),
            vec![0, 1, 2, 3],
        ),
    ] {
        let filter = filter.build()?;
        let output = client
            .list_shards()
            .stream_name(STREAM)
            .shard_filter(filter.clone())
            .send()
            .await?;
        let found: Vec<_> = output
            .shards()
            .iter()
            .map(|shard| shard.shard_id().to_owned())
            .collect();
        let expected: Vec<_> = expected.into_iter().map(|i| format!("shardId-{i:012}")).collect();
        assert_eq!(found, expected, "{filter:?}");
    }
    for incomplete in [
        ShardFilterType::AfterShardId,
        ShardFilterType::AtTimestamp,
        ShardFilterType::FromTimestamp,
    ] {
        let request = client
            .list_shards()
            .stream_name(STREAM)
            .shard_filter(filter(incomplete).build()?);
        assert_eq!(code(request.send().await), "InvalidArgumentException");
    }

    // A day after they were closed, shards are forgotten.
    clock.advance(Duration::from_secs(24 * 3_600));
    assert_eq!(shards(&client).await?.len(), 1);
    let closed = client.get_shard_iterator().stream_name(STREAM).shard_id(SHARD_0);
    let closed = closed.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await;
    assert_eq!(code(closed), "ResourceNotFoundException");
    Ok(())
}

#[tokio::test]
async fn shards_are_listed_in_pages_and_tokens_expire() -> Result<()> {
    let (handle, client) = emulator(25, Options::default()).await?;
    let first = client.list_shards().stream_name(STREAM).max_results(10).send().await?;
    let token = first.next_token().context("a token")?;
    let mut ids: Vec<_> = first.shards().iter().map(|shard| shard.shard_id().to_owned()).collect();
    let second = client.list_shards().next_token(token).max_results(10).send().await?;
    let third = client
        .list_shards()
        .set_next_token(second.next_token.clone())
        .send()
        .await?;
    assert_eq!(third.next_token, None);
    ids.extend(
        second
            .shards()
            .iter()
            .chain(third.shards())
            .map(|shard| shard.shard_id().to_owned()),
    );
    assert_eq!(ids, (0..25).map(|i| format!("shardId-{i:012}")).collect::<Vec<_>>());

    let both = client.list_shards().stream_name(STREAM).next_token(token).send().await;
    assert_eq!(code(both), "InvalidArgumentException");
    handle.clock().advance(Duration::from_secs(301));
    assert_eq!(
        code(client.list_shards().next_token(token).send().await),
        "ExpiredNextTokenException"
    );
    Ok(())
}

#[tokio::test]
async fn thousands_of_shards_take_several_pages() -> Result<()> {
    let (_handle, client) = emulator(2_500, Options::default()).await?;
    let mut pages = Vec::new();
    let mut page = client.list_shards().stream_name(STREAM).send().await?;
    loop {
        pages.push(page.shards().len());
        let Some(token) = page.next_token else { break };
        page = client.list_shards().next_token(token).send().await?;
    }
    assert_eq!(pages, [1_000, 1_000, 500]);
    Ok(())
}

//! Records: put, found by every kind of iterator, read in pages.

use super::*;

#[tokio::test]
async fn every_iterator_type_starts_where_it_says() -> Result<()> {
    let clock = Clock::frozen_at_ms(1_760_000_000_000);
    let (_handle, client) = emulator(
        1,
        Options {
            clock: clock.clone(),
            ..Options::default()
        },
    )
    .await?;
    let mut numbers = Vec::new();
    for i in 0..5 {
        let put = client
            .put_record()
            .stream_name(STREAM)
            .partition_key(format!("k{i}"))
            .data(Blob::new(i.to_string()));
        numbers.push(put.send().await?.sequence_number);
        clock.advance(Duration::from_millis(10));
    }
    let mut sorted = numbers.clone();
    sorted.sort_by_key(|number| SequenceNumber::parse(number));
    assert_eq!(sorted, numbers);

    let first_page = async |iterator: String| Ok::<_, anyhow::Error>(texts(&get(&client, &iterator).await?.records));
    let start = iterator(&client, SHARD_0, ShardIteratorType::TrimHorizon).await?;
    assert_eq!(first_page(start).await?, ["0", "1", "2", "3", "4"]);
    let at = iterator_by_number(&client, SHARD_0, ShardIteratorType::AtSequenceNumber, &numbers[2]).await?;
    assert_eq!(first_page(at).await?, ["2", "3", "4"]);
    let after = iterator_by_number(&client, SHARD_0, ShardIteratorType::AfterSequenceNumber, &numbers[2]).await?;
    assert_eq!(first_page(after).await?, ["3", "4"]);

    let request = client.get_shard_iterator().stream_name(STREAM).shard_id(SHARD_0);
    let request = request.shard_iterator_type(ShardIteratorType::AtTimestamp);
    let at_time = request
        .clone()
        .timestamp(DateTime::from_millis(1_760_000_000_030))
        .send()
        .await?;
    assert_eq!(
        first_page(at_time.shard_iterator.context("an iterator")?).await?,
        ["3", "4"]
    );
    let future = request
        .clone()
        .timestamp(DateTime::from_millis(1_760_000_001_000))
        .send()
        .await;
    assert_eq!(code(future), "InvalidArgumentException");
    assert_eq!(code(request.send().await), "InvalidArgumentException");

    let latest = iterator(&client, SHARD_0, ShardIteratorType::Latest).await?;
    client
        .put_record()
        .stream_name(STREAM)
        .partition_key("k")
        .data(Blob::new("new"))
        .send()
        .await?;
    assert_eq!(first_page(latest).await?, ["new"]);
    Ok(())
}

#[tokio::test]
async fn a_record_comes_back_as_it_was_put() -> Result<()> {
    let clock = Clock::frozen_at_ms(1_760_000_000_123);
    let (handle, client) = emulator(
        1,
        Options {
            clock,
            ..Options::default()
        },
    )
    .await?;
    let all_bytes: Vec<u8> = (0..=255).collect();
    let key = "schlüssel \"1\"\n\u{1F980}";
    client
        .put_record()
        .stream_name(STREAM)
        .partition_key(key)
        .data(Blob::new(all_bytes.clone()))
        .send()
        .await?;
    handle.put_records_direct(STREAM, [Put::new(key, &all_bytes), Put::new(key, b"")])?;
    let start = iterator(&client, SHARD_0, ShardIteratorType::TrimHorizon).await?;
    let records = get(&client, &start).await?.records;
    assert_eq!(records.len(), 3);
    for record in &records[..2] {
        assert_eq!(record.data.as_ref(), all_bytes);
        assert_eq!(record.partition_key(), Some(key));
        let arrival = record.approximate_arrival_timestamp.context("an arrival time")?;
        // The SDK reads a double, which is not exactly the decimal that was sent.
        assert!(
            (arrival.as_secs_f64() - 1_760_000_000.123).abs() < 0.000_5,
            "{arrival:?}"
        );
    }
    assert!(records[2].data.as_ref().is_empty());
    Ok(())
}

#[tokio::test]
async fn records_spread_by_hash_key() -> Result<()> {
    let (handle, client) = emulator(4, Options::default()).await?;
    let put = client
        .put_record()
        .stream_name(STREAM)
        .partition_key("same")
        .data(Blob::new("x"));
    let by_key = put.clone().send().await?.shard_id;
    assert_eq!(put.clone().send().await?.shard_id, by_key);
    let last = put.clone().explicit_hash_key(u128::MAX.to_string()).send().await?;
    assert_eq!(last.shard_id, "shardId-000000000003");
    let too_large = put
        .explicit_hash_key("340282366920938463463374607431768211456")
        .send()
        .await;
    assert_eq!(code(too_large), "InvalidArgumentException");

    let keys: Vec<_> = (0..4_000).map(|i| format!("key-{i}")).collect();
    handle.put_records_direct(STREAM, keys.iter().map(|key| Put::new(key, b"x")))?;
    for shard in handle.shards(STREAM)? {
        assert!(
            (900..1_100).contains(&shard.records),
            "{} has {}",
            shard.id,
            shard.records
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_page_ends_at_the_limit_at_ten_thousand_records_or_at_ten_mib() -> Result<()> {
    let (handle, client) = emulator(1, Options::default()).await?;
    handle.put_records_direct(STREAM, std::iter::repeat_n(Put::new("k", b"x"), 10_500))?;
    let start = iterator(&client, SHARD_0, ShardIteratorType::TrimHorizon).await?;
    let limited = client.get_records().shard_iterator(&start).limit(7).send().await?;
    assert_eq!(limited.records.len(), 7);
    assert!(limited.millis_behind_latest.is_some_and(|behind| behind > 0));
    let page = get(&client, &start).await?;
    assert_eq!(page.records.len(), 10_000);
    let rest = get(&client, page.next_shard_iterator().context("an iterator")?).await?;
    assert_eq!((rest.records.len(), rest.millis_behind_latest), (500, Some(0)));

    let large = vec![b'x'; 1 << 20];
    handle.put_records_direct(STREAM, std::iter::repeat_n(Put::new("k", &large), 15))?;
    let page = get(&client, rest.next_shard_iterator().context("an iterator")?).await?;
    assert_eq!(page.records.len(), 9, "the partition keys count too, so ten do not fit");
    assert!(page.millis_behind_latest.is_some_and(|behind| behind > 0));
    let rest = get(&client, page.next_shard_iterator().context("an iterator")?).await?;
    assert_eq!(rest.records.len(), 6);
    Ok(())
}

#[tokio::test]
async fn records_larger_than_the_stream_allows_are_refused() -> Result<()> {
    let (_handle, client) = emulator(1, Options::default()).await?;
    let put = |bytes: usize| {
        client
            .put_record()
            .stream_name(STREAM)
            .partition_key("k")
            .data(Blob::new(vec![b'x'; bytes]))
    };
    put((1 << 20) - 1).send().await?;
    assert_eq!(code(put(1 << 20).send().await), "InvalidArgumentException");

    let arn = "arn:aws:kinesis:us-east-1:000000000000:stream/events";
    client
        .update_max_record_size()
        .stream_arn(arn)
        .max_record_size_in_kib(10_240)
        .send()
        .await?;
    put((10 << 20) - 1).send().await?;
    let start = iterator(&client, SHARD_0, ShardIteratorType::TrimHorizon).await?;
    let (records, _) = drain(&client, start).await?;
    assert_eq!(
        records
            .iter()
            .map(|record| record.data.as_ref().len())
            .collect::<Vec<_>>(),
        [(1 << 20) - 1, (10 << 20) - 1]
    );
    Ok(())
}

#[tokio::test]
async fn a_batch_has_at_most_500_records_and_ten_mib() -> Result<()> {
    let (handle, client) = emulator(2, Options::default()).await?;
    let put = |entries| {
        client
            .put_records()
            .stream_name(STREAM)
            .set_records(Some(entries))
            .send()
    };
    let output = put(entries(500, 10)).await?;
    assert_eq!((output.records.len(), output.failed_record_count), (500, Some(0)));
    assert_eq!(code(put(entries(501, 10)).await), "ValidationException");
    assert_eq!(code(put(vec![]).await), "ValidationException");
    put(entries(10, 1_000_000)).await?;
    assert_eq!(code(put(entries(11, 1_000_000)).await), "InvalidArgumentException");
    assert_eq!(handle.record_count(STREAM)?, 510);
    Ok(())
}

#[tokio::test]
async fn an_iterator_lives_for_five_minutes() -> Result<()> {
    let (handle, client) = emulator(1, Options::default()).await?;
    let start = iterator(&client, SHARD_0, ShardIteratorType::TrimHorizon).await?;
    handle.clock().advance(Duration::from_secs(299));
    let next = get(&client, &start).await?.next_shard_iterator.context("an iterator")?;
    handle.clock().advance(Duration::from_secs(2));
    assert_eq!(
        code(client.get_records().shard_iterator(&start).send().await),
        "ExpiredIteratorException"
    );
    get(&client, &next).await?;
    assert_eq!(
        code(client.get_records().shard_iterator("AAAA").send().await),
        "InvalidArgumentException"
    );
    Ok(())
}

#[tokio::test]
async fn sequence_numbers_of_other_shards_and_nonsense_are_refused() -> Result<()> {
    let (_handle, client) = emulator(2, Options::default()).await?;
    let put = client
        .put_record()
        .stream_name(STREAM)
        .partition_key("k")
        .data(Blob::new("x"));
    let placed = put.explicit_hash_key("0").send().await?;
    let request = client
        .get_shard_iterator()
        .stream_name(STREAM)
        .shard_iterator_type(ShardIteratorType::AtSequenceNumber);
    let other_shard = request
        .clone()
        .shard_id("shardId-000000000001")
        .starting_sequence_number(placed.sequence_number);
    let error = other_shard.send().await.expect_err("of another shard");
    assert_eq!(
        error.message(),
        Some(
            "Invalid StartingSequenceNumber. It encodes shardId-000000000000, while it was used in a call to a shard \
             with shardId-000000000001"
        )
    );
    let request = request.shard_id(SHARD_0);
    assert_eq!(
        code(request.clone().starting_sequence_number("12").send().await),
        "InvalidArgumentException"
    );
    assert_eq!(
        code(request.clone().starting_sequence_number("x").send().await),
        "ValidationException"
    );
    assert_eq!(code(request.send().await), "InvalidArgumentException");
    Ok(())
}

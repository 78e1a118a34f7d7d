//! Many writers and readers at once, across reshards.

use std::collections::BTreeMap;

use super::*;

const WRITERS: usize = 8;
const RECORDS_PER_WRITER: usize = 2_000;
const BATCH: usize = 100;

/// Puts records `writer:0`, `writer:1`, … under a partition key of the writer's own.
async fn write(client: Client, writer: usize) -> Result<()> {
    for batch in 0..RECORDS_PER_WRITER / BATCH {
        let entry = |i: usize| {
            let text = format!("{writer}:{}", batch * BATCH + i);
            PutRecordsRequestEntry::builder()
                .partition_key(format!("writer-{writer}"))
                .data(Blob::new(text))
                .build()
        };
        let entries = (0..BATCH).map(entry).collect::<std::result::Result<_, _>>()?;
        let output = client
            .put_records()
            .stream_name(STREAM)
            .set_records(Some(entries))
            .send()
            .await?;
        ensure!(output.failed_record_count == Some(0));
    }
    Ok(())
}

/// Follows one shard and its descendants, and sees each record once, per writer in order.
async fn follow(client: Client) -> Result<BTreeMap<String, Vec<usize>>> {
    let mut seen: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    // Shards whose parents have not all ended wait here.
    let mut ended: Vec<String> = Vec::new();
    let mut reading = BTreeMap::new();
    for shard in shards(&client)
        .await?
        .iter()
        .filter(|shard| shard.parent_shard_id().is_none())
    {
        let start = iterator(&client, shard.shard_id(), ShardIteratorType::TrimHorizon).await?;
        reading.insert(shard.shard_id().to_owned(), start);
    }
    while seen.values().map(Vec::len).sum::<usize>() < WRITERS * RECORDS_PER_WRITER {
        for (shard, iterator_now) in std::mem::take(&mut reading) {
            let page = client
                .get_records()
                .shard_iterator(iterator_now)
                .limit(500)
                .send()
                .await?;
            for text in texts(&page.records) {
                let (writer, number) = text.split_once(':').context("writer and number")?;
                seen.entry(writer.to_owned()).or_default().push(number.parse()?);
            }
            match page.next_shard_iterator.clone() {
                Some(next) => drop(reading.insert(shard, next)),
                None => {
                    ended.push(shard);
                    for child in page.child_shards() {
                        if child.parent_shards().iter().all(|parent| ended.contains(parent)) {
                            let start = iterator(&client, child.shard_id(), ShardIteratorType::TrimHorizon).await?;
                            reading.insert(child.shard_id().to_owned(), start);
                        }
                    }
                }
            }
        }
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_writers_and_eight_readers_lose_and_double_nothing_across_reshards() -> Result<()> {
    let (handle, client) = emulator(2, Options::default()).await?;
    let readers: Vec<_> = (0..8).map(|_| tokio::spawn(follow(client.clone()))).collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(client.clone(), writer)))
        .collect();
    // Reshard while records flow: each step once another tenth of them is there.
    let total = (WRITERS * RECORDS_PER_WRITER) as u64;
    for (step, target) in [4, 8, 5, 3].into_iter().enumerate() {
        let wait = async {
            while handle.record_count(STREAM)? < total * (step as u64 + 1) / 10 {
                tokio::task::yield_now().await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await??;
        handle.update_shard_count(STREAM, target)?;
    }
    for writer in writers {
        writer.await??;
    }
    let in_order: Vec<usize> = (0..RECORDS_PER_WRITER).collect();
    for reader in readers {
        let seen = tokio::time::timeout(Duration::from_secs(60), reader).await???;
        assert_eq!(seen.len(), WRITERS);
        for (writer, numbers) in seen {
            assert_eq!(numbers, in_order, "writer {writer}");
        }
    }
    Ok(())
}

//! The service's rates, and the hook that stands before every request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;
use millrace_integration_tests::kinesis::{Call, Error, ErrorKind, Interceptor};

use super::*;

#[tokio::test]
async fn read_rates_hold_when_switched_on() -> Result<()> {
    let clock = Clock::frozen_at_ms(1_760_000_000_000);
    let options = Options {
        enforce_limits: true,
        clock: clock.clone(),
        ..Options::default()
    };
    let (handle, client) = emulator(1, options).await?;
    let start = iterator(&client, SHARD_0, ShardIteratorType::TrimHorizon).await?;
    let refused = "ProvisionedThroughputExceededException";
    for _ in 0..5 {
        get(&client, &start).await?;
    }
    assert_eq!(code(client.get_records().shard_iterator(&start).send().await), refused);
    assert_eq!(handle.calls(Operation::GetRecords), 6);

    let large = vec![b'x'; 1 << 20];
    handle.put_records_direct(STREAM, std::iter::repeat_n(Put::new("", &large), 12))?;
    clock.advance(Duration::from_secs(1));
    let page = get(&client, &start).await?;
    assert_eq!(page.records.len(), 10);
    let next = page.next_shard_iterator().context("an iterator")?;
    clock.advance(Duration::from_millis(4_900));
    assert_eq!(code(client.get_records().shard_iterator(next).send().await), refused);
    clock.advance(Duration::from_millis(100));
    assert_eq!(get(&client, next).await?.records.len(), 2);
    Ok(())
}

#[tokio::test]
async fn write_rates_hold_when_switched_on_and_fail_record_by_record() -> Result<()> {
    let clock = Clock::frozen_at_ms(1_760_000_000_000);
    let options = Options {
        enforce_limits: true,
        clock: clock.clone(),
        ..Options::default()
    };
    let (handle, client) = emulator(1, options).await?;
    let put = |entries| {
        client
            .put_records()
            .stream_name(STREAM)
            .set_records(Some(entries))
            .send()
    };
    assert_eq!(put(entries(500, 10)).await?.failed_record_count, Some(0));
    assert_eq!(put(entries(500, 10)).await?.failed_record_count, Some(0));
    let refused = put(entries(3, 10)).await?;
    assert_eq!(refused.failed_record_count, Some(3));
    assert_eq!(
        refused.records[0].error_code(),
        Some("ProvisionedThroughputExceededException")
    );
    assert_eq!(refused.records[0].sequence_number(), None);
    let one = client
        .put_record()
        .stream_name(STREAM)
        .partition_key("k")
        .data(Blob::new("x"))
        .send()
        .await;
    assert_eq!(code(one), "ProvisionedThroughputExceededException");

    clock.advance(Duration::from_secs(1));
    let partly = put(entries(4, 400_000)).await?;
    assert_eq!(partly.failed_record_count, Some(2));
    assert_eq!(handle.record_count(STREAM)?, 1_002);
    Ok(())
}

/// Lets every third GetRecords fail.
struct EveryThird(AtomicU64);

impl Interceptor for EveryThird {
    fn before<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, std::result::Result<(), Error>> {
        Box::pin(async move {
            assert!(call.headers.contains_key("authorization"));
            match call.operation {
                Operation::GetRecords if self.0.fetch_add(1, Ordering::Relaxed) % 3 == 2 => {
                    Err(Error::new(ErrorKind::InternalFailure, "scripted"))
                }
                _ => Ok(()),
            }
        })
    }
}

#[tokio::test]
async fn an_interceptor_answers_in_place_of_the_service() -> Result<()> {
    let options = Options {
        interceptor: Some(Arc::new(EveryThird(AtomicU64::new(0)))),
        ..Options::default()
    };
    let (_handle, client) = emulator(1, options).await?;
    let start = iterator(&client, SHARD_0, ShardIteratorType::TrimHorizon).await?;
    let mut codes = Vec::new();
    for _ in 0..6 {
        codes.push(client.get_records().shard_iterator(&start).send().await.is_ok());
    }
    assert_eq!(codes, [true, true, false, true, true, false]);
    Ok(())
}

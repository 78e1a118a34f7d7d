//! `millrace rejected`: what a worker could not map, as it came.

use std::time::Duration;

use anyhow::ensure;
use millrace_integration_tests::{kinesis::Put, process::eventually};

use super::bed::{Bed, ORDERS};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_rejected_is_counted_and_shown() -> anyhow::Result<()> {
    let bed = Bed::start().await?;
    bed.credentials().await?;
    bed.draft("orders").await?;
    let bad = [
        r#"{"order_id":"seven"}"#.as_bytes(),
        r#"{"order_id":"eight"}"#.as_bytes(),
        b"\xff{",
    ];
    let puts = bad.map(|data| Put {
        partition_key: "somebody",
        explicit_hash_key: None,
        data,
    });
    bed.kinesis.put_records_direct("orders", puts)?;
    bed.run("millrace apply -f orders.yaml").await?;
    let all = ORDERS + 3;
    bed.run(&format!("millrace pipe watch orders --until-records {all}"))
        .await?;

    let counted = bed.run("millrace rejected count orders -o json").await?;
    let counted: serde_json::Value = serde_json::from_str(&counted)?;
    ensure!(counted["totalCount"] == "3", "{counted}");
    let mut counts: Vec<u64> = counted["counts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|count| count["recordCount"].as_str()?.parse().ok())
        .collect();
    counts.sort_unstable();
    ensure!(counts == [1, 2], "{counted}");
    let table = bed.run("millrace rejected count orders").await?;
    ensure!(table.contains("order_id") || table.contains("type"), "{table}");

    let listed = bed.run("millrace rejected list orders").await?;
    ensure!(
        listed.contains("seven") && listed.contains("eight") && listed.contains("order_id"),
        "{listed}"
    );
    let one = bed
        .run("millrace rejected list orders --limit 1 --oldest-first -o json")
        .await?;
    let one: serde_json::Value = serde_json::from_str(&one)?;
    ensure!(one.as_array().is_some_and(|records| records.len() == 1), "{one}");
    let none = bed
        .run("millrace rejected list orders --to 2020-01-01T00:00:00Z")
        .await?;
    ensure!(none.lines().count() == 1, "{none}");
    let (code, _, _) = bed.code("millrace rejected discard orders").await?;
    ensure!(code == 2, "{code}: nothing says which");
    let planned = bed.run("millrace rejected discard orders --all --dry-run").await?;
    ensure!(planned == "3 rejected records would be deleted\n", "{planned}");
    let gone = bed.run("millrace rejected discard orders --all").await?;
    ensure!(gone == "3 rejected records deleted\n", "{gone}");
    let none = bed.run("millrace rejected list orders").await?;
    ensure!(none.lines().count() == 1, "{none}");
    let (code, _, error) = bed.code("millrace rejected list nobody").await?;
    ensure!(code == 3 && error.contains("nobody"), "{code} {error}");
    a_pipe_that_rejects_too_much_halts(&bed).await?;
    bed.stop().await
}

async fn a_pipe_that_rejects_too_much_halts(bed: &Bed) -> anyhow::Result<()> {
    let put = |text: &str| {
        let put = Put {
            partition_key: "somebody",
            explicit_hash_key: None,
            data: text.as_bytes(),
        };
        bed.kinesis.put_records_direct("orders", [put])
    };
    let status = async || {
        let pipe: serde_json::Value = serde_json::from_str(&bed.run("millrace pipe get orders -o json").await?)?;
        Ok::<_, anyhow::Error>(pipe["status"].clone())
    };
    let is = async |state: &str, reason: &str| {
        eventually("the pipe is as it should be", Duration::from_secs(30), || async {
            let status = status().await?;
            let found = (status["state"].as_str(), status["reason"].as_str().unwrap_or_default());
            ensure!(
                found == (Some(format!("PIPE_STATE_{state}").as_str()), reason),
                "{status}"
            );
            Ok::<_, anyhow::Error>(())
        })
        .await
    };
    bed.run("printf 'name: orders\\nsettings: {max_rejected_records: 2}\\n' | millrace pipe update -f - --field settings.max_rejected_records")
        .await?;
    put(r#"{"order_id":"nine"}"#)?;
    bed.run(&format!("millrace pipe watch orders --until-records {}", ORDERS + 4))
        .await?;
    is("RUNNING", "").await?;
    put(r#"{"order_id":"ten"}"#)?;
    is("FAILED", "REJECTED_LIMIT_REACHED").await?;
    let shown = bed.run("millrace pipe get orders -o json").await?;
    ensure!(
        shown.contains("max_rejected_records") && shown.contains("2 records were rejected"),
        "{shown}"
    );
    let events = bed
        .run("millrace pipe events orders --filter 'kind = REJECTED_LIMIT_REACHED'")
        .await?;
    ensure!(events.lines().count() == 2 && events.contains("ERROR"), "{events}");
    // It stands, and what comes meanwhile waits in the stream.
    eventually("no worker holds it", Duration::from_secs(30), || async {
        let status = status().await?;
        let held = status["shards"]
            .as_array()
            .is_some_and(|shards| shards.iter().any(|shard| shard["workerId"].is_string()));
        ensure!(!held, "{status}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    put(r#"{"order_id":900001}"#)?;
    let gone = bed.run("millrace rejected discard orders --all").await?;
    ensure!(gone == "2 rejected records deleted\n", "{gone}");
    bed.run(&format!("millrace pipe watch orders --until-records {}", ORDERS + 6))
        .await?;
    is("RUNNING", "").await?;
    // Started again, it has its whole limit again.
    for text in [r#"{"order_id":"eleven"}"#, r#"{"order_id":"twelve"}"#] {
        put(text)?;
    }
    is("FAILED", "REJECTED_LIMIT_REACHED").await?;
    bed.run("millrace pipe stop orders && millrace pipe start orders")
        .await?;
    is("RUNNING", "").await?;
    Ok(())
}

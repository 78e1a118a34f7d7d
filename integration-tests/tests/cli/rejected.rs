//! `millrace rejected`: what a worker could not map, as it came.

use anyhow::ensure;
use millrace_integration_tests::kinesis::Put;

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
    bed.stop().await
}

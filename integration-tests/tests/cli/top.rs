//! `millrace top`, `pipe rows` and `doctor`: a pipe at work, as people see it.

use anyhow::ensure;

use super::bed::{Bed, ORDERS};

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_at_work_is_shown_with_what_it_has_done() -> anyhow::Result<()> {
    let bed = Bed::start().await?;
    bed.credentials().await?;
    bed.draft("orders").await?;
    bed.run("millrace apply -f orders.yaml").await?;
    bed.run(&format!("millrace pipe watch orders --until-records {ORDERS}"))
        .await?;
    let shown = bed.run("millrace top --count 2 --interval 0.3").await?;
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .filter(|line| line.starts_with("orders "))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let committed = ORDERS.to_string();
    ensure!(rows.len() == 2, "{shown}");
    // Nothing comes any more, which is known from the second look on.
    ensure!(rows[0][1..5] == ["RUNNING", committed.as_str(), "-", "-"], "{shown}");
    ensure!(rows[1][1..5] == ["RUNNING", committed.as_str(), "0", "0.0"], "{shown}");
    let rows = bed.run("millrace pipe rows orders --limit 5").await?;
    ensure!(rows.lines().count() == 5, "{rows}");
    for row in rows.lines() {
        let row: serde_json::Value = serde_json::from_str(row)?;
        ensure!(row["order_id"].is_u64(), "{row}");
    }
    let (code, _, error) = bed.code("millrace top -o json").await?;
    ensure!(code == 1 && error.contains("pipe list -o json"), "{code} {error}");

    let healthy = bed.run("millrace doctor").await?;
    let verdicts: Vec<(&str, &str)> = healthy
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            Some((words.next()?, words.next()?))
        })
        .collect();
    let checks = ["state", "delivery", "lag", "source", "destination", "rejected"];
    ensure!(verdicts == checks.map(|check| (check, "ok")), "{healthy}");
    bed.clickhouse.query("DROP TABLE default.orders SYNC").await?;
    let (code, ill, _) = bed.code("millrace doctor orders").await?;
    let wrong = ill
        .lines()
        .any(|line| line.contains("destination") && line.contains("WRONG"));
    ensure!(code == 1 && wrong, "{code} {ill}");
    let (code, _, error) = bed.code("millrace doctor nobody").await?;
    ensure!(code == 3 && error.contains("nobody"), "{code} {error}");
    bed.stop().await
}

//! The page for newcomers is run as it stands: every command of it, in its order, and what it shows is compared with what is printed.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use millrace_integration_tests::{process::eventually, repository};

use super::bed::{Bed, ORDERS};

const LIMIT: Duration = Duration::from_secs(60);

/// A command, and what the page says that it prints.
struct Step {
    command: String,
    shown: String,
}

/// The commands of the page, in order.
fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match (line, inside) {
            ("```console", _) => inside = true,
            ("```", true) => inside = false,
            (line, true) => match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step {
                    command: command.to_owned(),
                    shown: String::new(),
                }),
                (None, Some(Step { shown, .. })) => *shown += &format!("{line}\n"),
                (None, None) => {}
            },
            _ => {}
        }
    }
    steps
}

/// What is the same in every run: numbers, times and fingerprints are not, and with them widths of columns.
fn shape(text: &str) -> String {
    let word = |word: &str| {
        let varies = |c: char| c.is_ascii_hexdigit() || matches!(c, '-' | ':' | '.' | ',' | 'T' | 'Z');
        if word.chars().any(|c| c.is_ascii_digit()) && word.chars().all(varies) {
            return "#".to_owned();
        }
        let mut shape = String::new();
        for c in word.chars() {
            match c {
                '0'..='9' if shape.ends_with('#') => {}
                '0'..='9' => shape.push('#'),
                c => shape.push(c),
            }
        }
        shape
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.trim_end().lines().map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_gets_from_credentials_to_rows() -> anyhow::Result<()> {
    let page = std::fs::read_to_string(repository().join("docs/first-pipe.md"))?;
    let steps = steps(&page);
    ensure!((2..10).contains(&steps.len()), "{} commands", steps.len());
    let bed = Bed::start().await?;
    let (last, before) = steps.split_last().context("commands")?;
    for Step { command, shown } in before {
        // The page's ClickHouse is at the port where one usually is.
        let command = command.replace("http://127.0.0.1:8123", &bed.clickhouse.http_url());
        let printed = bed.run(&command).await?;
        eprintln!("$ {command}\n{printed}");
        ensure!(shape(&printed) == shape(shown), "{command}\n{printed}\nis not\n{shown}");
    }
    // Rows follow within the flush interval.
    eventually("the page is right to its end", LIMIT, || async {
        let printed = bed.run(&last.command).await?;
        ensure!(printed.contains(&ORDERS.to_string()), "$ {}\n{printed}", last.command);
        ensure!(
            shape(&printed) == shape(&last.shown),
            "$ {}\n{printed}\nis not\n{}",
            last.command,
            last.shown
        );
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    let found = bed
        .clickhouse
        .query("SELECT count(), uniqExact(order_id), sum(amount) FROM default.orders")
        .await?;
    let sum: f64 = (0..ORDERS)
        .map(|number| f64::from(u32::try_from(number).unwrap_or(0)) * 3.0 + 0.25)
        .sum();
    ensure!(found.trim() == format!("{ORDERS}\t{ORDERS}\t{sum}"), "{found}");
    bed.stop().await
}

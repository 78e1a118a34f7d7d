//! Secrets and records are where they belong and nowhere else: a Millrace that logs all it can is led through its days, good and bad,
//! and everything it has written is searched for them. reliability.md D1 and D36.

use std::{path::Path, time::Duration};

use anyhow::ensure;
use base64_simd::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use millrace_integration_tests::{kinesis::Put, process::eventually};

use super::bed::{ADMIN_TOKEN, Bed, ORDERS};

const LIMIT: Duration = Duration::from_secs(60);
/// What only records say.
const PAYLOAD: &str = "canary-payload-of-a-record";

/// All that commands have printed.
#[derive(Default)]
struct Seen(String);

impl Seen {
    /// Runs a line and keeps what it printed; its exit code.
    async fn run(&mut self, bed: &Bed, line: &str) -> anyhow::Result<i32> {
        let (code, out, error) = bed.code(line).await?;
        self.0.push_str(&format!("{out}{error}"));
        Ok(code)
    }

    /// The same of a line that has to succeed.
    async fn done(&mut self, bed: &Bed, line: &str) -> anyhow::Result<()> {
        let code = self.run(bed, line).await?;
        ensure!(code == 0, "{}", self.0);
        Ok(())
    }

    /// The same of a line that has to fail, with these words.
    async fn refused(&mut self, bed: &Bed, line: &str, words: &str) -> anyhow::Result<()> {
        let before = self.0.len();
        let code = self.run(bed, line).await?;
        ensure!(code != 0 && self.0[before..].contains(words), "{}", &self.0[before..]);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_records_are_nowhere_else() -> anyhow::Result<()> {
    let bed = Bed::start_talkative().await?;
    let mut seen = Seen::default();
    let mut secrets = vec![
        ADMIN_TOKEN.to_owned(),
        bed.clickhouse.password().to_owned(),
        "canary-secret-key".to_owned(),
        "canary-session-token".to_owned(),
    ];
    let user = bed.clickhouse.user();
    let aws = "AWS_SESSION_TOKEN=canary-session-token millrace credential create aws aws-keys";
    seen.done(&bed, aws).await?;
    seen.done(
        &bed,
        &format!("millrace credential create clickhouse clickhouse-user --username {user}"),
    )
    .await?;
    records(&bed, &mut seen).await?;
    refusals(&bed, &mut seen, &mut secrets).await?;
    troubles(&bed, &mut seen).await?;
    for line in [
        "millrace pipe list -o json",
        "millrace pipe get orders -o yaml",
        "millrace pipe events orders -o json",
        "millrace pipe revisions orders -o json",
        "millrace credential list -o json",
        "millrace token list -o json",
        "millrace access check orders -o json",
        "millrace doctor",
    ] {
        seen.run(&bed, line).await?;
    }

    let log = bed.log();
    ensure!(
        log.contains(" DEBUG ") && log.contains("millrace_audit"),
        "the log was to be talkative:\n{log:.4000}"
    );
    let key = std::fs::read_to_string(bed.directory.path().join("data/millrace.key"))?;
    secrets.extend(key.split_whitespace().map(str::to_owned));
    ensure!(secrets.len() >= 8, "{}", secrets.len());
    let written = written(&bed.directory.path().join("data"))?;
    for (number, secret) in secrets.iter().enumerate() {
        for form in [
            secret.clone(),
            STANDARD_NO_PAD.encode_to_string(secret),
            URL_SAFE_NO_PAD.encode_to_string(secret),
        ] {
            let in_log = log.lines().find(|line| line.contains(&form));
            ensure!(in_log.is_none(), "secret {number} was logged: {in_log:?}");
            let in_answer = seen.0.lines().find(|line| line.contains(&form));
            ensure!(in_answer.is_none(), "secret {number} was told: {in_answer:?}");
            for (path, bytes) in &written {
                ensure!(!holds(bytes, form.as_bytes()), "secret {number} is in {path}");
            }
        }
    }
    let in_log = log.lines().find(|line| line.contains(PAYLOAD));
    ensure!(in_log.is_none(), "a record was logged: {in_log:?}");
    let in_answer = seen.0.lines().find(|line| line.contains(PAYLOAD));
    ensure!(in_answer.is_none(), "a record was told: {in_answer:?}");
    for (path, bytes) in &written {
        ensure!(!holds(bytes, PAYLOAD.as_bytes()), "a record is in {path}");
    }
    // The search finds what is there.
    ensure!(holds(
        &std::fs::read(bed.directory.path().join("data/millrace.key"))?,
        key.trim().as_bytes()
    ));
    ensure!(
        written.iter().any(|(_, bytes)| holds(bytes, b"AKIDEXAMPLE")),
        "the database was not searched"
    );
    bed.stop().await
}

/// Records that become rows, and such that do not.
async fn records(bed: &Bed, seen: &mut Seen) -> anyhow::Result<()> {
    bed.draft("orders").await?;
    let all = [
        format!(r#"{{"order_id":900001,"customer":"{PAYLOAD}"}}"#),
        format!(r#"{{"order_id":"{PAYLOAD}"}}"#),
        format!(r#"{{"order_id":7,"{PAYLOAD}":"#),
        format!("{PAYLOAD} is no JSON"),
    ];
    let puts = all.iter().map(|data| Put {
        partition_key: "somebody",
        explicit_hash_key: None,
        data: data.as_bytes(),
    });
    bed.kinesis.put_records_direct("orders", puts)?;
    seen.done(bed, "millrace apply -f orders.yaml").await?;
    let count = ORDERS + 4;
    seen.done(bed, &format!("millrace pipe watch orders --until-records {count}"))
        .await?;
    // Who asks for records gets them.
    let listed = bed.run("millrace rejected list orders").await?;
    ensure!(listed.contains(PAYLOAD), "{listed}");
    let rows = bed.run("millrace pipe rows orders --limit 100").await?;
    ensure!(rows.lines().count() == 100, "{rows}");
    Ok(())
}

/// What is asked for wrongly, with secrets in it.
async fn refusals(bed: &Bed, seen: &mut Seen, secrets: &mut Vec<String>) -> anyhow::Result<()> {
    let long = "canary-of-a-long-secret-".repeat(100);
    std::fs::write(bed.directory.path().join("long"), &long)?;
    secrets.push("canary-of-a-long-secret-".to_owned());
    let line = "millrace credential create long aws-keys --access-key-id AKIDEXAMPLE --secret-access-key-file long";
    seen.refused(
        bed,
        &format!("env -u AWS_SECRET_ACCESS_KEY {line}"),
        "secret_access_key",
    )
    .await?;

    secrets.push("canary-wrong-password".to_owned());
    let user = bed.clickhouse.user();
    seen.done(
        bed,
        &format!("CLICKHOUSE_PASSWORD=canary-wrong-password millrace credential create wrong clickhouse-user --username {user}"),
    )
    .await?;
    let wrong =
        "sed 's/credentials\\/clickhouse/credentials\\/wrong/; s/^name: .*/name: wrong/' orders.yaml > wrong.yaml";
    bed.run(wrong).await?;
    seen.refused(bed, "millrace apply -f wrong.yaml", "DESTINATION_AUTHENTICATION_FAILED")
        .await?;

    secrets.push("mlr_01kan5000000000000000000zz_canary-of-a-token".to_owned());
    let line = "MILLRACE_TOKEN=mlr_01kan5000000000000000000zz_canary-of-a-token millrace pipe list";
    let (code, out, error) = bed.code(line).await?;
    ensure!(code == 4, "{out}{error}");
    seen.0.push_str(&format!("{out}{error}"));
    let made = bed.run("millrace token create a-viewer --role viewer").await?;
    let token = made
        .split_whitespace()
        .find(|word| word.starts_with("mlr_"))
        .unwrap_or_default()
        .to_owned();
    ensure!(!token.is_empty(), "a token is shown once");
    std::fs::write(bed.directory.path().join("viewer"), &token)?;
    secrets.push(token);
    seen.done(
        bed,
        "env -u MILLRACE_TOKEN MILLRACE_TOKEN_FILE=viewer millrace pipe list",
    )
    .await?;
    seen.refused(
        bed,
        "env -u MILLRACE_TOKEN MILLRACE_TOKEN_FILE=viewer millrace pipe delete orders",
        "needs the role",
    )
    .await?;

    secrets.push("canary-of-a-database".to_owned());
    let line = "RUST_LOG=trace millrace-control-plane --listen 127.0.0.1:0 --encryption-key-file other.key --generate-key --database";
    for database in [
        "postgres://millrace:canary-of-a-database@127.0.0.1:1/millrace",
        "postgres://millrace:canary-of-a-database@127.0.0.1:1:2/millrace",
        "mysql://millrace:canary-of-a-database@127.0.0.1/millrace",
    ] {
        let (code, out, error) = bed.code(&format!("{line} {database}")).await?;
        ensure!(code != 0, "{out}{error}");
        seen.0.push_str(&format!("{out}{error}"));
    }
    let made = std::fs::read_to_string(bed.directory.path().join("other.key"))?;
    secrets.push(made.trim().to_owned());
    Ok(())
}

/// What goes wrong by itself.
async fn troubles(bed: &Bed, seen: &mut Seen) -> anyhow::Result<()> {
    let is = async |state: &str| {
        eventually("the pipe shows its trouble", LIMIT, || async {
            let shown = bed.run("millrace pipe get orders -o json").await?;
            ensure!(shown.contains(state), "{shown}");
            Ok::<_, anyhow::Error>(())
        })
        .await
    };
    let put = |id: u64| {
        let data = format!(r#"{{"order_id":{id},"customer":"{PAYLOAD}"}}"#);
        let put = Put {
            partition_key: "somebody",
            explicit_hash_key: None,
            data: data.as_bytes(),
        };
        bed.kinesis.put_records_direct("orders", [put])
    };
    bed.clickhouse
        .query("RENAME TABLE default.orders TO default.moved")
        .await?;
    put(900_002)?;
    is("DESTINATION_TABLE_NOT_FOUND").await?;
    bed.clickhouse
        .query("RENAME TABLE default.moved TO default.orders")
        .await?;
    seen.done(
        bed,
        &format!("millrace pipe watch orders --until-records {}", ORDERS + 5),
    )
    .await?;
    bed.clickhouse.kill().await?;
    put(900_003)?;
    is("DESTINATION_UNREACHABLE").await?;
    bed.clickhouse.start_again().await?;
    seen.done(
        bed,
        &format!("millrace pipe watch orders --until-records {}", ORDERS + 6),
    )
    .await?;
    bed.kinesis.delete_stream("orders")?;
    is("SOURCE_STREAM_NOT_FOUND").await?;
    Ok(())
}

/// Everything in a directory but keys: names and contents.
fn written(directory: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_file() && path.extension().is_none_or(|extension| extension != "key") {
            files.push((path.display().to_string(), std::fs::read(&path)?));
        }
    }
    ensure!(!files.is_empty(), "nothing was written to {}", directory.display());
    Ok(files)
}

fn holds(bytes: &[u8], secret: &[u8]) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret)
}

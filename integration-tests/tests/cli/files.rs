//! Pipes as files: apply, diff, revisions, rollback, wait; and what scripts see of it.

use anyhow::ensure;

use super::bed::Bed;

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_applied_compared_and_taken_back() -> anyhow::Result<()> {
    let bed = Bed::start().await?;
    bed.credentials().await?;
    bed.draft("orders").await?;
    bed.draft("copies").await?;
    bed.run("(cat orders.yaml; echo ---; cat copies.yaml) > both.yaml")
        .await?;

    // Of what is not there yet, all is new.
    let (code, diff, _) = bed.code("millrace diff -f both.yaml").await?;
    ensure!(
        code == 1 && diff.contains("+++ projects/default/pipes/copies") && diff.contains("--- /dev/null"),
        "{diff}"
    );
    let planned = bed.run("millrace apply -f both.yaml --dry-run").await?;
    ensure!(
        planned.lines().all(|line| line.ends_with(" created (dry run)")),
        "{planned}"
    );
    let (code, _, _) = bed.code("millrace pipe get orders").await?;
    ensure!(code == 3, "a dry run stored a pipe: {code}");
    let applied = bed.run("millrace apply -f both.yaml").await?;
    ensure!(
        applied == "projects/default/pipes/orders created\nprojects/default/pipes/copies created\n",
        "{applied}"
    );

    // Applied again it changes nothing, and says so.
    let (code, diff, error) = bed.code("millrace diff -f both.yaml").await?;
    ensure!(code == 0 && diff.is_empty(), "{diff}{error}");
    let applied = bed.run("millrace apply -f both.yaml").await?;
    ensure!(applied.lines().all(|line| line.ends_with(" unchanged")), "{applied}");

    bed.run("printf 'settings: {max_batch_rows: 7}\\ndisplay_name: Orders\\n' >> orders.yaml")
        .await?;
    let (code, diff, _) = bed.code("millrace diff -f orders.yaml").await?;
    let wanted = [
        "-  maxBatchRows: '100000'",
        "+  maxBatchRows: '7'",
        "+displayName: Orders",
    ];
    ensure!(code == 1 && wanted.iter().all(|line| diff.contains(line)), "{diff}");
    let applied = bed.run("millrace apply -f orders.yaml").await?;
    ensure!(applied == "projects/default/pipes/orders configured\n", "{applied}");
    // What the file leaves out goes back to its default.
    bed.run("grep -v display_name orders.yaml > less.yaml").await?;
    bed.run("millrace apply -f less.yaml").await?;
    let revisions = bed.run("millrace pipe revisions orders -o json").await?;
    let revisions: serde_json::Value = serde_json::from_str(&revisions)?;
    let changed = |at: usize| revisions[at]["changedFields"].to_string();
    ensure!(changed(0) == r#"["display_name"]"#, "{revisions}");
    ensure!(
        changed(1) == r#"["display_name","settings.max_batch_rows"]"#,
        "{revisions}"
    );
    let table = bed.run("millrace pipe revisions orders").await?;
    ensure!(
        table.lines().count() == 4 && table.contains("settings.max_batch_rows"),
        "{table}"
    );
    bed.run("millrace pipe rollback orders --to 1").await?;
    let (code, diff, _) = bed.code("millrace diff -f both.yaml").await?;
    ensure!(code == 0 && diff.is_empty(), "{diff}");

    bed.run("millrace pipe wait orders --for caught-up --timeout 60s")
        .await?;
    bed.run("millrace pipe stop orders").await?;
    bed.run("millrace pipe wait orders --for stopped").await?;
    // Whether it runs is not the file's business, unless the file says.
    bed.run("millrace apply -f orders.yaml").await?;
    bed.run("millrace pipe wait orders --for stopped --timeout 5s").await?;
    let (code, _, error) = bed.code("millrace pipe wait orders --for running --timeout 1s").await?;
    ensure!(code == 6 && error.contains("was STOPPED after 1 s"), "{code} {error}");
    bed.run("millrace pipe delete orders && millrace pipe wait orders --for deleted")
        .await?;
    bed.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_with_a_code_of_its_own() -> anyhow::Result<()> {
    let bed = Bed::start().await?;
    let cases = [
        // Wrong usage is clap's.
        ("millrace pipe wait orders", 2, "--for <GOAL>"),
        (
            "millrace pipe wait orders --for running --timeout soon",
            2,
            "give a number with a unit",
        ),
        (
            "millrace pipe wait orders --for running",
            3,
            "there is no projects/default/pipes/orders",
        ),
        (
            "millrace pipe rollback orders --to 1",
            3,
            "there is no projects/default/pipes/orders",
        ),
        ("millrace pipe create </dev/null", 1, "--file: name the file"),
        (
            "echo 'nome: a' | millrace apply -f -",
            1,
            "nome: no such field; there are: name,",
        ),
        ("echo '{}' | millrace apply -f -", 1, "name: give each pipe one"),
        // Of diff, 1 is an answer.
        ("echo 'nome: a' | millrace diff -f -", 2, "nome: no such field"),
        ("echo 'name: a' | millrace diff -f -", 2, "source"),
        (
            "millrace --endpoint http://127.0.0.1:1 pipe list",
            1,
            "no control plane at http://127.0.0.1:1",
        ),
    ];
    for (line, wanted, text) in cases {
        let (code, out, error) = bed.code(line).await?;
        ensure!(
            code == wanted && error.contains(text) && out.is_empty(),
            "{line}: {code}\n{out}{error}"
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = bed.run(&format!("millrace completion {shell}")).await?;
        ensure!(script.contains("reset-position"), "{script}");
    }
    let script = bed
        .code("millrace completion bash > complete.bash && bash -n complete.bash")
        .await?;
    ensure!(script.0 == 0, "{script:?}");
    bed.stop().await
}

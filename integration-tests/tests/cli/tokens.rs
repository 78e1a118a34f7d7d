//! Tokens on the command line: an operator's own makes the others, each may what its role may, and what is done has a name.

use anyhow::ensure;

use super::bed::{Bed, ORDERS};

#[tokio::test(flavor = "multi_thread")]
async fn everybody_does_what_their_token_allows() -> anyhow::Result<()> {
    let bed = Bed::start_guarded().await?;
    let (code, _, error) = bed.code("env -u MILLRACE_TOKEN millrace pipe list").await?;
    ensure!(
        code == 4 && error.contains("needs a token") && error.contains("UNAUTHENTICATED"),
        "{code} {error}"
    );
    for role in ["viewer", "operator"] {
        bed.run(&format!(
            "millrace token create {role}-of-tests --role {role} --ttl 1h > {role}"
        ))
        .await?;
    }
    bed.credentials().await?;
    let (code, _, error) = bed
        .code("env -u MILLRACE_TOKEN MILLRACE_TOKEN_FILE=operator millrace credential delete aws")
        .await?;
    ensure!(code == 4 && error.contains("needs the role admin"), "{code} {error}");
    bed.run("unset MILLRACE_TOKEN; export MILLRACE_TOKEN_FILE=operator; millrace pipe list")
        .await?;
    let server = bed.clickhouse.http_url();
    bed.run(&format!(
        "unset MILLRACE_TOKEN; export MILLRACE_TOKEN_FILE=operator; millrace pipe draft orders --stream orders --credential aws --server {server} \
         --clickhouse-credential clickhouse > orders.yaml && millrace apply -f orders.yaml"
    ))
    .await?;
    // The worker of the process has a token of its own.
    bed.run(&format!(
        "env -u MILLRACE_TOKEN MILLRACE_TOKEN_FILE=viewer millrace pipe watch orders --until-records {ORDERS}"
    ))
    .await?;
    let (code, _, error) = bed
        .code("env -u MILLRACE_TOKEN MILLRACE_TOKEN_FILE=viewer millrace pipe delete orders")
        .await?;
    ensure!(code == 4 && error.contains("needs the role operator"), "{code} {error}");
    let events = bed
        .run("env -u MILLRACE_TOKEN MILLRACE_TOKEN_FILE=viewer millrace pipe events orders")
        .await?;
    ensure!(events.contains("(operator-of-tests)"), "{events}");

    profiles_say_what_is_not_said(&bed).await?;
    let tokens = bed.run("millrace token list").await?;
    ensure!(
        tokens.contains("viewer-of-tests") && tokens.contains("OPERATOR"),
        "{tokens}"
    );
    let id = tokens
        .lines()
        .find(|line| line.contains("viewer-of-tests"))
        .and_then(|line| line.split_whitespace().next())
        .unwrap_or_default()
        .to_owned();
    let revoked = bed.run(&format!("millrace token revoke {id}")).await?;
    ensure!(revoked.contains("revoked"), "{revoked}");
    let log = bed.log();
    let audited = |method: &str, actor: &str| {
        let mut lines = log
            .lines()
            .filter(|line| line.contains("millrace_audit") && line.contains(method));
        lines.any(|line| line.contains(actor))
    };
    ensure!(audited("PipeService/CreatePipe", "(operator-of-tests)"), "{log}");
    ensure!(
        audited("CredentialService/DeleteCredential", "PermissionDenied")
            && audited("CredentialService/DeleteCredential", "(operator-of-tests)"),
        "{log}"
    );
    ensure!(audited("TokenService/RevokeToken", "operator"), "{log}");
    for file in ["viewer", "operator"] {
        let token = bed.run(&format!("cat {file}")).await?;
        ensure!(
            token.starts_with("mlr_") && !log.contains(token.trim()),
            "a token is in the log"
        );
    }
    ensure!(
        !log.contains(super::bed::ADMIN_TOKEN),
        "the operator's token is in the log"
    );
    bed.stop().await
}

async fn profiles_say_what_is_not_said(bed: &Bed) -> anyhow::Result<()> {
    let unset = "unset MILLRACE_TOKEN; endpoint=$MILLRACE_ENDPOINT; unset MILLRACE_ENDPOINT; ";
    let line = |line: &str| format!("{unset}{line}");
    let (code, none, _) = bed.code(&line("millrace profile list")).await?;
    ensure!(code == 0 && none.lines().count() == 1, "{none}");
    let save = "millrace --endpoint $endpoint --token-file viewer profile save looker";
    bed.run(&line(save)).await?;
    // One that is kept is not used by itself.
    let (code, _, error) = bed.code(&line("millrace --endpoint $endpoint pipe list")).await?;
    ensure!(code == 4, "{code} {error}");
    let named = bed.run(&line("millrace --profile looker pipe list")).await?;
    ensure!(named.contains("orders"), "{named}");
    bed.run(&line("millrace profile use looker")).await?;
    let used = bed.run(&line("cd config && millrace pipe list")).await?;
    ensure!(used == named, "{used}");
    let (code, _, error) = bed.code(&line("millrace pipe stop orders")).await?;
    ensure!(code == 4 && error.contains("needs the role operator"), "{code} {error}");
    // The environment counts more than the profile, and an argument more than that.
    bed.run(&line("MILLRACE_TOKEN_FILE=operator millrace pipe stop orders"))
        .await?;
    bed.run(&line(
        "MILLRACE_TOKEN_FILE=viewer millrace --token-file operator pipe start orders",
    ))
    .await?;
    bed.run("millrace pipe stop orders; millrace pipe start orders").await?;
    let (code, _, error) = bed.code(&line("MILLRACE_PROFILE=nobody millrace pipe list")).await?;
    ensure!(
        code == 1 && error.contains("\"nobody\"") && error.contains("looker"),
        "{code} {error}"
    );
    let listed = bed.run(&line("millrace profile list")).await?;
    ensure!(listed.contains("yes") && listed.contains("looker"), "{listed}");

    bed.run("printf '# mine\n[profiles.broken]\nendpont = \"x\"\n' >> config/profiles.toml")
        .await?;
    let (code, _, error) = bed.code(&line("millrace --profile broken pipe list")).await?;
    ensure!(
        code == 1 && error.contains("\"endpont\"") && error.contains("token_file"),
        "{code} {error}"
    );
    bed.run(&line(
        "millrace profile delete broken && millrace profile delete looker",
    ))
    .await?;
    let (code, _, error) = bed.code(&line("millrace profile use looker")).await?;
    ensure!(code == 1 && error.contains("profile save"), "{code} {error}");
    Ok(())
}

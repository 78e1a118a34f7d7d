//! Users, roles, sessions and signatures, as the Rust SDKs for STS and Kinesis see them.

use aws_sdk_sts::operation::assume_role::AssumeRoleOutput;
use millrace_integration_tests::kinesis::{Iam, Policy, Role, User};

use super::*;

const ACCOUNT: &str = "arn:aws:iam::000000000000";
const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const STREAM_ARN: &str = "arn:aws:kinesis:us-east-1:000000000000:stream/events";
const READ: &[&str] = &["kinesis:Get*", "kinesis:DescribeStreamSummary", "kinesis:ListShards"];

fn role(name: &str, trusts: &[&str], external_id: Option<&str>, policy: Policy) -> Role {
    Role {
        arn: format!("{ACCOUNT}:role/{name}"),
        trusts: trusts.iter().map(|name| format!("{ACCOUNT}:{name}")).collect(),
        external_id: external_id.map(str::to_owned),
        policy,
    }
}

/// A user who may assume roles and nothing else; a role that reads all streams; one behind it.
fn iam() -> Iam {
    Iam {
        users: vec![User {
            arn: format!("{ACCOUNT}:user/loader"),
            access_key_id: KEY.to_owned(),
            secret_access_key: SECRET.to_owned(),
            policy: Policy::allow(&["sts:AssumeRole"], &["*"]),
        }],
        roles: vec![
            role(
                "reader",
                &["user/loader", "role/hub"],
                Some("pipe-17"),
                Policy::allow(READ, &["*"]),
            ),
            role(
                "hub",
                &["user/loader"],
                None,
                Policy::allow(&["sts:AssumeRole"], &["*:role/reader"]),
            ),
            role("closed", &[], None, Policy::allow(&["*"], &["*"])),
        ],
    }
}

async fn bed() -> Result<(Handle, Clock)> {
    let clock = Clock::system();
    let options = Options {
        clock: clock.clone(),
        iam: Some(iam()),
        streams: vec![StreamSpec::new(STREAM, 1), StreamSpec::new("others", 1)],
        ..Options::default()
    };
    Ok((Emulator::start(options).await?, clock))
}

fn keys(id: &str, secret: &str, token: Option<&str>) -> Credentials {
    Credentials::new(id, secret, token.map(str::to_owned), None, "test")
}

fn sts(handle: &Handle, credentials: Credentials) -> aws_sdk_sts::Client {
    let config = aws_sdk_sts::Config::builder()
        .behavior_version(aws_sdk_sts::config::BehaviorVersion::latest())
        .region(aws_sdk_sts::config::Region::new("us-east-1"))
        .credentials_provider(credentials)
        .endpoint_url(handle.endpoint_url())
        .retry_config(aws_sdk_sts::config::retry::RetryConfig::disabled())
        .build();
    aws_sdk_sts::Client::from_conf(config)
}

fn kinesis(handle: &Handle, credentials: Credentials) -> Client {
    let config = aws_sdk_kinesis::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(credentials)
        .endpoint_url(handle.endpoint_url())
        .retry_config(aws_sdk_kinesis::config::retry::RetryConfig::disabled())
        .build();
    Client::from_conf(config)
}

fn of(output: &AssumeRoleOutput) -> Result<Credentials> {
    let given = output.credentials().context("credentials")?;
    Ok(keys(
        given.access_key_id(),
        given.secret_access_key(),
        Some(given.session_token()),
    ))
}

/// What the service calls its refusal of a call.
async fn look(client: &Client, stream: &str) -> String {
    code(client.list_shards().stream_name(stream).send().await)
}

#[tokio::test]
async fn a_role_is_assumed_with_its_external_id_and_reads_until_its_session_ends() -> Result<()> {
    let (handle, clock) = bed().await?;
    let user = sts(&handle, keys(KEY, SECRET, None));
    let who = user.get_caller_identity().send().await?;
    assert_eq!(who.arn(), Some("arn:aws:iam::000000000000:user/loader"));
    let assume = |external_id: Option<&str>| {
        let call = user.assume_role().role_arn(format!("{ACCOUNT}:role/reader"));
        let call = call.role_session_name("pipe").duration_seconds(900);
        call.set_external_id(external_id.map(str::to_owned)).send()
    };
    for wrong in [None, Some("pipe-18")] {
        assert_eq!(code(assume(wrong).await), "AccessDenied");
    }
    let closed = user.assume_role().role_arn(format!("{ACCOUNT}:role/closed"));
    assert_eq!(code(closed.role_session_name("pipe").send().await), "AccessDenied");
    let missing = user.assume_role().role_arn(format!("{ACCOUNT}:role/missing"));
    assert_eq!(code(missing.role_session_name("pipe").send().await), "AccessDenied");

    let assumed = assume(Some("pipe-17")).await?;
    let arn = assumed.assumed_role_user().context("a user")?.arn();
    assert_eq!(arn, "arn:aws:sts::000000000000:assumed-role/reader/pipe");
    let session = of(&assumed)?;
    let client = kinesis(&handle, session.clone());
    assert!(look(&client, STREAM).await.starts_with("succeeded"));
    let delete = client.delete_stream().stream_name(STREAM).send().await;
    assert_eq!(code(delete), "AccessDeniedException");
    clock.advance(Duration::from_secs(899));
    assert!(look(&client, STREAM).await.starts_with("succeeded"));
    clock.advance(Duration::from_secs(1));
    assert_eq!(look(&client, STREAM).await, "ExpiredTokenException");
    let late = sts(&handle, session).get_caller_identity().send().await;
    assert_eq!(code(late), "ExpiredToken");
    Ok(())
}

#[tokio::test]
async fn a_session_policy_narrows_and_never_widens() -> Result<()> {
    let (handle, _) = bed().await?;
    let user = sts(&handle, keys(KEY, SECRET, None));
    let assume = |policy: String| {
        let call = user
            .assume_role()
            .role_arn(format!("{ACCOUNT}:role/reader"))
            .external_id("pipe-17");
        call.role_session_name("pipe").policy(policy).send()
    };
    let policy = format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":"kinesis:*","Resource":"{STREAM_ARN}"}}]}}"#
    );
    let client = kinesis(&handle, of(&assume(policy).await?)?);
    assert!(look(&client, STREAM).await.starts_with("succeeded"));
    assert_eq!(look(&client, "others").await, "AccessDeniedException");
    let iterator = iterator(&client, SHARD_0, ShardIteratorType::TrimHorizon).await?;
    get(&client, &iterator).await?;
    let put = client
        .put_record()
        .stream_name(STREAM)
        .partition_key("k")
        .data(Blob::new("x"));
    assert_eq!(code(put.send().await), "AccessDeniedException", "the role may not");
    assert_eq!(code(assume("{}".to_owned()).await), "MalformedPolicyDocument");
    assert_eq!(code(assume(" ".repeat(2_049)).await), "PackedPolicyTooLarge");
    Ok(())
}

#[tokio::test]
async fn roles_are_chained_for_an_hour_at_most() -> Result<()> {
    let (handle, _) = bed().await?;
    let user = sts(&handle, keys(KEY, SECRET, None));
    let hub = user
        .assume_role()
        .role_arn(format!("{ACCOUNT}:role/hub"))
        .role_session_name("hub");
    let hub = sts(&handle, of(&hub.duration_seconds(7_200).send().await?)?);
    let reader = |seconds: i32| {
        let call = hub
            .assume_role()
            .role_arn(format!("{ACCOUNT}:role/reader"))
            .external_id("pipe-17");
        call.role_session_name("pipe").duration_seconds(seconds).send()
    };
    assert_eq!(code(reader(3_601).await), "ValidationError");
    assert_eq!(code(reader(899).await), "ValidationError");
    let client = kinesis(&handle, of(&reader(3_600).await?)?);
    assert!(look(&client, STREAM).await.starts_with("succeeded"));
    let closed = hub.assume_role().role_arn(format!("{ACCOUNT}:role/closed"));
    assert_eq!(code(closed.role_session_name("pipe").send().await), "AccessDenied");
    Ok(())
}

#[tokio::test]
async fn signatures_are_checked() -> Result<()> {
    let (handle, _) = bed().await?;
    let user = sts(&handle, keys(KEY, SECRET, None));
    let assumed = user
        .assume_role()
        .role_arn(format!("{ACCOUNT}:role/reader"))
        .external_id("pipe-17");
    let session = of(&assumed.role_session_name("pipe").send().await?)?;
    let (id, secret) = (
        session.access_key_id().to_owned(),
        session.secret_access_key().to_owned(),
    );
    for (credentials, at_kinesis, at_sts) in [
        (
            keys("AKIDNOBODY", SECRET, None),
            "UnrecognizedClientException",
            "InvalidClientTokenId",
        ),
        (
            keys(KEY, "another", None),
            "InvalidSignatureException",
            "SignatureDoesNotMatch",
        ),
        (
            keys(&id, &secret, None),
            "UnrecognizedClientException",
            "InvalidClientTokenId",
        ),
        (
            keys(&id, &secret, Some("forged")),
            "UnrecognizedClientException",
            "InvalidClientTokenId",
        ),
    ] {
        assert_eq!(look(&kinesis(&handle, credentials.clone()), STREAM).await, at_kinesis);
        let who = sts(&handle, credentials).get_caller_identity().send().await;
        assert_eq!(code(who), at_sts);
    }
    // The user may assume roles, and not look at streams.
    assert_eq!(
        look(&kinesis(&handle, keys(KEY, SECRET, None)), STREAM).await,
        "AccessDeniedException"
    );
    Ok(())
}

//! What a pipe needs in AWS, as the API says it; and that it names exactly what is missing.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use millrace_common::reason;
use millrace_integration_tests::{
    cluster::PARENT,
    kinesis::{Operation, Policy},
};
use millrace_proto::api::v1::{
    self as api, AccessState, check_access_request::Subject, get_aws_policies_request::Subject as PoliciesSubject,
    source::Kind,
};

use super::bed::{Ambient, Bed, LOADER, READ, STREAM, role, stream_arn};

const FAN_OUT: [&str; 4] = [
    "kinesis:DescribeStreamConsumer",
    "kinesis:SubscribeToShard",
    "kinesis:RegisterStreamConsumer",
    "kinesis:DeregisterStreamConsumer",
];

fn planned(bed: &Bed, aws: &str, fan_out: bool) -> Result<api::PlannedSource> {
    let source = bed.spec("planned", aws).source.and_then(|source| source.kind);
    let Kind::Kinesis(mut kinesis) = source.context("a source")?;
    kinesis.use_enhanced_fan_out = fan_out;
    kinesis.set_iterator_type(api::IteratorType::Unspecified);
    Ok(api::PlannedSource {
        parent: PARENT.to_owned(),
        kinesis: Some(kinesis),
    })
}

async fn check(bed: &Bed, subject: Subject) -> Result<BTreeMap<String, (AccessState, String)>> {
    let request = api::CheckAccessRequest { subject: Some(subject) };
    let answer = bed.cluster.access()?.check_access(request).await?.into_inner();
    for finding in &answer.findings {
        eprintln!(
            "{} {:?} {} {}",
            finding.action,
            finding.state(),
            finding.message,
            finding.remedy
        );
        // What cannot be tried is no trouble of the network.
        if finding.action == "kinesis:RegisterStreamConsumer" && finding.state() == AccessState::Unknown {
            let tried = finding.message.contains("without an identity");
            ensure!(tried || finding.reason == reason::SOURCE_NOT_TRIED, "{finding:?}");
        }
        // Nothing of what AWS or an endpoint says is repeated.
        ensure!(!finding.message.contains("not authorized to perform"), "{finding:?}");
    }
    let found = answer.findings.into_iter();
    Ok(found
        .map(|finding| (finding.action.clone(), (finding.state(), finding.remedy)))
        .collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_missing_action_is_named() -> Result<()> {
    let bed = Bed::start(Ambient::Silent).await?;
    let id = bed.role_credential("reader", "reader", Some("loader")).await?;
    let with = |actions: &[&str]| bed.kinesis.put_role(role("reader", LOADER, &id, actions));
    let all: Vec<&str> = READ.into_iter().chain(FAN_OUT).collect();
    // Without a role there is no identity, and without one nothing else can be tried.
    let found = check(&bed, Subject::Planned(planned(&bed, "reader", false)?)).await?;
    ensure!(found["sts:AssumeRole"].0 == AccessState::Denied, "{found:?}");
    ensure!(
        READ.iter().all(|action| found[*action].0 == AccessState::Unknown),
        "{found:?}"
    );

    for missing in &all {
        let rest: Vec<&str> = all.iter().copied().filter(|action| action != missing).collect();
        with(&rest);
        let found = check(&bed, Subject::Planned(planned(&bed, "reader", true)?)).await?;
        let (state, remedy) = &found[*missing];
        if *missing == "kinesis:RegisterStreamConsumer" {
            ensure!(*state == AccessState::Unknown, "{missing}: {found:?}");
        } else {
            ensure!(
                *state == AccessState::Denied && remedy.contains(missing),
                "{missing}: {found:?}"
            );
        }
        for other in rest.iter().filter(|action| !action.ends_with("RegisterStreamConsumer")) {
            let expected = match (*missing, *other) {
                ("kinesis:GetShardIterator", "kinesis:GetRecords") => AccessState::Unknown,
                _ => AccessState::Allowed,
            };
            ensure!(found[*other].0 == expected, "without {missing}, {other}: {found:?}");
        }
    }
    ensure!(bed.kinesis.consumers(STREAM)?.is_empty(), "nothing was registered");
    ensure!(bed.kinesis.calls(Operation::RegisterStreamConsumer) == 0);

    // Encrypted: whether it can be read is seen of a record.
    let key = "arn:aws:kms:eu-west-1:111122223333:key/k";
    bed.kinesis.encrypt(STREAM, key)?;
    with(&READ);
    bed.put(0..100)?;
    let found = check(&bed, Subject::Planned(planned(&bed, "reader", false)?)).await?;
    ensure!(found["kms:Decrypt"].0 == AccessState::Denied, "{found:?}");
    let mut reader = role("reader", LOADER, &id, &READ);
    let all: Vec<&str> = READ.into_iter().chain(["kms:Decrypt"]).collect();
    reader.policy = Policy::allow(&all, &["*"]);
    bed.kinesis.put_role(reader);
    let found = check(&bed, Subject::Planned(planned(&bed, "reader", false)?)).await?;
    ensure!(found["kms:Decrypt"].0 == AccessState::Allowed, "{found:?}");
    // And the session policy lets it through as well.
    bed.create("events", "reader").await?;
    bed.holds("events", 100).await?;
    let pipe = Subject::Pipe(format!("{PARENT}/pipes/events"));
    let found = check(&bed, pipe).await?;
    ensure!(
        found.values().all(|(state, _)| *state == AccessState::Allowed),
        "{found:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policies_that_the_api_gives_are_enough() -> Result<()> {
    let bed = Bed::start(Ambient::Silent).await?;
    let id = bed.role_credential("reader", "reader", Some("loader")).await?;
    let request = api::GetAwsPoliciesRequest {
        subject: Some(PoliciesSubject::Planned(planned(&bed, "reader", false)?)),
        kms_key_arn: String::new(),
    };
    let given = bed.cluster.access()?.get_aws_policies(request).await?.into_inner();
    eprintln!(
        "{}\n{}\n{}",
        given.trust_policy, given.permission_policy, given.assume_policy
    );
    ensure!(given.stream_arn == stream_arn(), "{}", given.stream_arn);
    let trust: serde_json::Value = serde_json::from_str(&given.trust_policy)?;
    let statement = &trust["Statement"][0];
    ensure!(statement["Principal"]["AWS"] == LOADER, "{trust}");
    ensure!(
        statement["Condition"]["StringEquals"]["sts:ExternalId"] == id.as_str(),
        "{trust}"
    );

    let mut reader = role("reader", LOADER, &id, &[]);
    reader.policy = Policy::parse(&given.permission_policy)?;
    bed.kinesis.put_role(reader);
    bed.create("events", "reader").await?;
    bed.put(0..100)?;
    bed.holds("events", 100).await
}

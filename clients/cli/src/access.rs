//! `millrace access …`: what a pipe needs in AWS, and whether it has it.

use millrace_proto::api::v1::{self as api, AccessState, check_access_request, get_aws_policies_request, source::Kind};

use crate::{
    args::{Access, AccessSubject, Connection},
    client,
    exit::Error,
    manifest,
    output::{self, Format},
};

const HEADER: [&str; 4] = ["ACTION", "STATE", "WHY", "WHAT TO DO"];
const PIPE: &str = "millrace.api.v1.Pipe";
const FINDINGS: &str = "millrace.api.v1.CheckAccessResponse";
const POLICIES: &str = "millrace.api.v1.GetAwsPoliciesResponse";

/// Runs one command.
pub(crate) async fn run(connection: &Connection, command: Access) -> Result<(), Error> {
    match command {
        Access::Check(subject) => check(connection, &subject).await,
        Access::Policies { subject, kms_key_arn } => policies(connection, &subject, kms_key_arn).await,
    }
}

/// The source in a pipe's file.
fn planned(connection: &Connection, file: &std::path::Path) -> Result<api::PlannedSource, Error> {
    let pipe: api::Pipe = manifest::parse(&manifest::read(file)?, PIPE)?;
    match pipe.source.and_then(|source| source.kind) {
        Some(Kind::Kinesis(kinesis)) => Ok(api::PlannedSource {
            parent: connection.parent(),
            kinesis: Some(kinesis),
        }),
        None => Err(Error::Local("the file has no source.kinesis".to_owned())),
    }
}

async fn check(connection: &Connection, subject: &AccessSubject) -> Result<(), Error> {
    use check_access_request::Subject;
    let subject = match (&subject.pipe, &subject.file) {
        (Some(pipe), _) => Some(Subject::Pipe(connection.name("pipes", pipe))),
        (None, Some(file)) => Some(Subject::Planned(planned(connection, file)?)),
        (None, None) => None,
    };
    let answer = client::access(connection)?
        .check_access(api::CheckAccessRequest { subject })
        .await
        .map_err(client::failed(connection))?
        .into_inner();
    if connection.output != Format::Table {
        return output::document(&manifest::to_json(&answer, FINDINGS)?, connection.output);
    }
    output::table(&HEADER, answer.findings.iter().map(row).collect())
}

fn row(finding: &api::AccessFinding) -> Vec<String> {
    let state = AccessState::try_from(finding.state).unwrap_or_default();
    vec![
        finding.action.clone(),
        output::short_enum(state.as_str_name(), "ACCESS_STATE_"),
        finding.message.clone(),
        finding.remedy.clone(),
    ]
}

async fn policies(connection: &Connection, subject: &AccessSubject, kms_key_arn: String) -> Result<(), Error> {
    use get_aws_policies_request::Subject;
    let subject = match (&subject.pipe, &subject.file) {
        (Some(pipe), _) => Some(Subject::Pipe(connection.name("pipes", pipe))),
        (None, Some(file)) => Some(Subject::Planned(planned(connection, file)?)),
        (None, None) => None,
    };
    let answer = client::access(connection)?
        .get_aws_policies(api::GetAwsPoliciesRequest { subject, kms_key_arn })
        .await
        .map_err(client::failed(connection))?
        .into_inner();
    if connection.output != Format::Table {
        return output::document(&manifest::to_json(&answer, POLICIES)?, connection.output);
    }
    for (title, policy) in [
        ("Trust policy of the role", &answer.trust_policy),
        ("Policy of the role or user that reads", &answer.permission_policy),
        ("Policy of who assumes the role", &answer.assume_policy),
    ] {
        if !policy.is_empty() {
            output::line(&format!("# {title}\n{policy}\n"))?;
        }
    }
    Ok(())
}

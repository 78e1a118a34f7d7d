//! The access service: which policies a pipe needs in AWS, and what its identity may do.

use millrace_common::{
    aws::{self, Access, policy, policy::Scope},
    error::ApiError,
    ids::{Label, PipeName, ProjectName},
    pipe::{FanOut, KinesisSource, StreamRef, managed_consumer},
    reason,
};
use millrace_proto::api::v1::{
    AccessFinding, AccessState, CheckAccessRequest, CheckAccessResponse, GetAwsPoliciesRequest, GetAwsPoliciesResponse,
    PlannedSource, access_service_server::AccessService, check_access_request, get_aws_policies_request,
};
use tonic::{Code, Request, Response, Status};

use super::{
    Api,
    convert::{self, Violations},
    errors::CREDENTIAL_NOT_FOUND,
    name, parent,
};
use crate::{
    discovery::{self, check},
    store::CredentialSecret,
};

/// Longest ARN of a key.
const MAX_KEY_ARN: usize = 2_048;

/// What is asked about.
struct Subject {
    source: KinesisSource,
    access: Access,
    /// The pipe's own consumer, if there may be one.
    consumer: Option<String>,
}

#[tonic::async_trait]
impl AccessService for Api {
    async fn get_aws_policies(
        &self,
        request: Request<GetAwsPoliciesRequest>,
    ) -> Result<Response<GetAwsPoliciesResponse>, Status> {
        use get_aws_policies_request::Subject as Given;
        let request = request.into_inner();
        let subject = match request.subject {
            Some(Given::Pipe(pipe)) => self.of_pipe(&pipe).await?,
            Some(Given::Planned(planned)) => self.of_planned(planned).await?,
            None => return Err(no_subject().into()),
        };
        Ok(Response::new(self.policies(&subject, &request.kms_key_arn).await?))
    }

    async fn check_access(
        &self,
        request: Request<CheckAccessRequest>,
    ) -> Result<Response<CheckAccessResponse>, Status> {
        use check_access_request::Subject as Given;
        let subject = match request.into_inner().subject {
            Some(Given::Pipe(pipe)) => self.of_pipe(&pipe).await?,
            Some(Given::Planned(planned)) => self.of_planned(planned).await?,
            None => return Err(no_subject().into()),
        };
        if let Some(endpoint) = &subject.source.endpoint
            && let Err(error) = self.endpoints.check_resolved(endpoint).await
        {
            return Err(ApiError::invalid_field("planned.kinesis.endpoint", error.to_string()).into());
        }
        let _permit = self.preflights.acquire().await;
        // What is tried is tried anew: a session that others have in use says nothing of whether there could be another.
        let access = Access {
            identities: None,
            ..subject.access
        };
        let checking = check::check(&access, &subject.source, subject.consumer.as_deref());
        let findings = Box::pin(checking).await;
        Ok(Response::new(CheckAccessResponse {
            findings: findings.into_iter().map(finding).collect(),
        }))
    }
}

fn no_subject() -> ApiError {
    ApiError::invalid_field("subject", "is required: set pipe or planned")
}

fn finding(finding: check::Finding) -> AccessFinding {
    let state = match finding.verdict {
        check::Verdict::Allowed => AccessState::Allowed,
        check::Verdict::Denied => AccessState::Denied,
        check::Verdict::Unknown => AccessState::Unknown,
    };
    AccessFinding {
        action: finding.action.to_owned(),
        state: state.into(),
        reason: finding.reason.to_owned(),
        message: finding.message,
        remedy: finding.remedy,
    }
}

impl Api {
    async fn of_pipe(&self, text: &str) -> Result<Subject, ApiError> {
        let pipe = self.pipe(&name::<PipeName>(text, "pipe")?).await?;
        let source = pipe.spec.source.clone();
        let consumer = (source.fan_out == Some(FanOut::Managed)).then(|| managed_consumer(pipe.uid));
        let access = self.access_to(&source, &pipe.name.id).await?;
        Ok(Subject {
            source,
            access,
            consumer,
        })
    }

    async fn of_planned(&self, planned: PlannedSource) -> Result<Subject, ApiError> {
        let project: ProjectName = parent(&planned.parent)?;
        let mut violations = Violations::new();
        let kinesis = planned.kinesis.unwrap_or_default();
        let source = convert::planned_source(kinesis, self.context(&project), &mut violations);
        violations.finish()?;
        let Some(source) = source else {
            // Whatever is missing was reported above.
            return Err(ApiError::new(Code::Internal, "INTERNAL", "a source got lost"));
        };
        let label: Label = "planned"
            .parse()
            .map_err(|error: millrace_common::ids::Error| ApiError::internal(&error))?;
        let access = self.access_to(&source, &label).await?;
        Ok(Subject {
            source,
            access,
            consumer: None,
        })
    }

    pub(super) async fn access_to(&self, source: &KinesisSource, pipe: &Label) -> Result<Access, ApiError> {
        match self.secret(&source.credential).await? {
            Some(CredentialSecret::Aws(credential)) => Ok(discovery::access(source, credential, pipe, &self.aws)),
            _ => Err(ApiError::new(
                Code::FailedPrecondition,
                CREDENTIAL_NOT_FOUND,
                format!("there is no AWS credential {}: create it first", source.credential),
            )),
        }
    }

    async fn policies(&self, subject: &Subject, key_arn: &str) -> Result<GetAwsPoliciesResponse, ApiError> {
        let key = match key_arn {
            "" => None,
            arn if arn.len() <= MAX_KEY_ARN && arn.starts_with("arn:") && arn.contains(":kms:") => Some(arn),
            _ => return Err(ApiError::invalid_field("kms_key_arn", "is not the ARN of a KMS key")),
        };
        let access = &subject.access;
        let stream_arn = match (&access.scope, &subject.source.stream) {
            (Some(scope), _) => scope.stream_arn.clone(),
            (None, StreamRef::Arn(arn)) => arn.clone(),
            // Of keys and of the ambient identity the account has to be asked for.
            (None, StreamRef::Name(stream)) => {
                let caller = self.caller(access, &access.credential).await?;
                discovery::named_stream_arn(&caller, &access.region, stream).ok_or_else(|| unsaid("an odd ARN"))?
            }
        };
        let scope = Scope {
            stream_arn,
            usage: discovery::usage(&subject.source),
        };
        let (mut trust_policy, mut assume_policy) = (String::new(), String::new());
        if let aws::Credential::Role {
            role_arn,
            external_id,
            source,
            ..
        } = &access.credential
        {
            let principal = match &**source {
                aws::Credential::Role { role_arn, .. } => role_arn.clone(),
                own => policy::principal_of(&self.caller(access, own).await?),
            };
            trust_policy = pretty(&policy::trust_policy(&principal, external_id.as_deref()));
            assume_policy = pretty(&policy::assume_policy(role_arn));
        }
        Ok(GetAwsPoliciesResponse {
            trust_policy,
            permission_policy: pretty(&scope.permission_policy(key)),
            assume_policy,
            stream_arn: scope.stream_arn,
        })
    }

    /// Who calls with this credential.
    async fn caller(&self, access: &Access, credential: &aws::Credential) -> Result<String, ApiError> {
        let access = Access {
            credential: credential.clone(),
            scope: None,
            ..access.clone()
        };
        let _permit = self.preflights.acquire().await;
        Box::pin(aws::caller(&access))
            .await
            .map_err(|error| ApiError::new(Code::FailedPrecondition, error.reason(), error.to_string()))
    }
}

fn unsaid(what: &str) -> ApiError {
    let message = format!("STS answered with {what}: give the stream by its ARN");
    ApiError::new(Code::FailedPrecondition, reason::SOURCE_UNREACHABLE, message)
}

fn pretty(policy: &serde_json::Value) -> String {
    format!("{policy:#}")
}

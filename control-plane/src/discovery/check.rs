//! What the identity of a pipe may do: the calls that the pipe would make are made, and nothing is changed by them.
//!
//! Where a call would change something, it is made in a way in which it cannot: about a consumer or a shard that does not exist. AWS judges
//! who calls before it looks for what is called about, so "not found" means "allowed". What cannot be tried is UNKNOWN.
//!
//! Of what AWS answers only its error codes are used: an endpoint is named by a user, and its texts are not shown.

use std::{error::Error as StdError, time::Duration};

use aws_sdk_kinesis::{
    Client,
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    types::{EncryptionType, ShardIteratorType, StartingPosition},
};
use millrace_common::{
    aws::{
        self, Access,
        policy::{
            ASSUME_ROLE, DECRYPT, DEREGISTER_CONSUMER, DESCRIBE_CONSUMER, DESCRIBE_STREAM, GET_RECORDS,
            GET_SHARD_ITERATOR, LIST_SHARDS, REGISTER_CONSUMER, SUBSCRIBE, Usage,
        },
    },
    pipe::{FanOut, KinesisSource, StreamRef},
    reason,
};
use uuid::Uuid;

use super::{Error, usage};

/// All calls of a check.
const DEADLINE: Duration = Duration::from_secs(60);
/// The shard that is asked about if shards cannot be listed: most streams begin with it, and whether it exists does not matter.
const ANY_SHARD: &str = "shardId-000000000000";
/// No stream has it.
const NO_SHARD: &str = "shardId-999999999999";

/// Whether an action is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A call was let through.
    Allowed,
    /// A call was refused.
    Denied,
    /// It was not tried, or the answer says nothing.
    Unknown,
}

/// What was found of one action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// As IAM names it.
    pub action: &'static str,
    /// Whether it is allowed.
    pub verdict: Verdict,
    /// Stable reason; empty if it is allowed.
    pub reason: &'static str,
    /// Why that is thought.
    pub message: String,
    /// What to do; may be empty.
    pub remedy: String,
}

fn allowed(action: &'static str) -> Finding {
    Finding {
        action,
        verdict: Verdict::Allowed,
        reason: "",
        message: "a call was let through".to_owned(),
        remedy: String::new(),
    }
}

/// It was not tried.
fn unknown(action: &'static str, message: impl Into<String>) -> Finding {
    Finding {
        action,
        verdict: Verdict::Unknown,
        reason: reason::SOURCE_NOT_TRIED,
        message: message.into(),
        remedy: String::new(),
    }
}

/// What a call came to.
enum Came<T> {
    Back(T),
    /// With this code of AWS.
    Refused(String),
    /// No answer of AWS, or one of a fault of its own.
    Nowhere(Error),
}

fn came<T, E>(action: &str, result: Result<T, SdkError<E, HttpResponse>>) -> Came<T>
where
    E: StdError + ProvideErrorMetadata + 'static,
{
    match result {
        Ok(output) => Came::Back(output),
        Err(error) => match error.code() {
            Some(code) if error.raw_response().is_some_and(|raw| raw.status().as_u16() < 500) => {
                Came::Refused(code.to_owned())
            }
            // Without what it says: whoever it was that answered, it was not AWS about a right.
            _ => Came::Nowhere(Error::of_call(action, &error).untold()),
        },
    }
}

/// What a refusal by this code says of an action on a stream.
fn judge(action: &'static str, code: &str, stream: &str) -> Finding {
    let mut finding = allowed(action);
    match code {
        "AccessDeniedException" | "AccessDenied" | "NotAuthorized" | "OptInRequired" => {
            finding.verdict = Verdict::Denied;
            finding.reason = reason::SOURCE_ACCESS_DENIED;
            finding.message = format!("AWS refuses it ({code})");
            finding.remedy = format!("allow {action} on {stream}");
        }
        // Of a call that was let through: what it is about is not there, or not in that state.
        "ResourceNotFoundException" | "ResourceInUseException" | "ExpiredIteratorException" => {
            finding.message = format!("a call was let through ({code})");
        }
        code if code.starts_with("KMS") => finding.message = "a call was let through, as far as the key".to_owned(),
        code => {
            finding.verdict = Verdict::Unknown;
            finding.reason = match code {
                // Perhaps before it was asked who calls.
                "ThrottlingException" | "ProvisionedThroughputExceededException" | "LimitExceededException" => {
                    reason::SOURCE_THROTTLED
                }
                "ExpiredTokenException"
                | "UnrecognizedClientException"
                | "InvalidSignatureException"
                | "IncompleteSignatureException"
                | "MissingAuthenticationTokenException" => reason::SOURCE_CREDENTIAL_INVALID,
                _ => reason::SOURCE_UNREACHABLE,
            };
            // A code is a word; anything else is not one of AWS.
            let word = code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric());
            finding.message = format!(
                "the answer says nothing of it ({})",
                if word { code } else { "no code of AWS" }
            );
        }
    }
    finding
}

/// A call of which only counts whether it was let through.
fn seen<T>(action: &'static str, came: &Came<T>, stream: &str) -> Finding {
    match came {
        Came::Back(_) => allowed(action),
        Came::Refused(code) => judge(action, code, stream),
        Came::Nowhere(error) => Finding {
            reason: error.reason,
            ..unknown(action, error.message.clone())
        },
    }
}

/// Tries all that a pipe needs. `consumer` is the name of its own consumer, if it has one.
pub async fn check(access: &Access, source: &KinesisSource, consumer: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let tried = Box::pin(try_all(access, source, consumer, &mut findings));
    if tokio::time::timeout(DEADLINE, tried).await.is_err() {
        let message = format!(
            "there was no time to try it: AWS did not answer within {} s",
            DEADLINE.as_secs()
        );
        let wanted = wanted(usage(source));
        for action in wanted {
            if !findings.iter().any(|finding| finding.action == action) {
                findings.push(Finding {
                    reason: reason::SOURCE_UNREACHABLE,
                    ..unknown(action, message.clone())
                });
            }
        }
    }
    findings
}

/// The actions of a pipe, in the order in which it needs them.
fn wanted(usage: Usage) -> Vec<&'static str> {
    let mut actions = vec![DESCRIBE_STREAM, LIST_SHARDS, GET_SHARD_ITERATOR, GET_RECORDS];
    match usage {
        Usage::Poll => {}
        Usage::FanOut => actions.extend([SUBSCRIBE]),
        Usage::ManagedFanOut => {
            actions.extend([DESCRIBE_CONSUMER, SUBSCRIBE, REGISTER_CONSUMER, DEREGISTER_CONSUMER]);
        }
    }
    actions
}

async fn try_all(access: &Access, source: &KinesisSource, consumer: Option<&str>, findings: &mut Vec<Finding>) {
    let (config, identity) = aws::connect(access).await;
    let is_role = matches!(access.credential, aws::Credential::Role { .. });
    match identity.current().await {
        Ok(_) if is_role => findings.push(allowed(ASSUME_ROLE)),
        Ok(_) => {}
        Err(error) => {
            let denied = error.reason() == reason::SOURCE_ACCESS_DENIED;
            findings.push(Finding {
                action: ASSUME_ROLE,
                verdict: if denied { Verdict::Denied } else { Verdict::Unknown },
                reason: error.reason(),
                message: "there is no identity to call with".to_owned(),
                remedy: error.to_string(),
            });
            let rest = wanted(usage(source)).into_iter();
            findings.extend(rest.map(|action| Finding {
                reason: error.reason(),
                ..unknown(action, "it cannot be tried without an identity")
            }));
            return;
        }
    }
    let client = Client::new(&config);
    let shown = source.stream.name();
    let arn = polling(&client, &source.stream, shown, findings).await;
    let arn = arn.or_else(|| access.scope.as_ref().map(|scope| scope.stream_arn.clone()));
    let usage = usage(source);
    match (usage, arn) {
        (Usage::Poll, _) => {}
        (_, Some(arn)) => {
            let own = match &source.fan_out {
                Some(FanOut::Consumer(arn)) => Some(arn.as_str()),
                _ => None,
            };
            fan_out(&client, &arn, usage, consumer, own, findings).await;
        }
        (_, None) => {
            let rest = wanted(usage).into_iter().skip(4);
            findings.extend(rest.map(|action| unknown(action, "the stream's ARN is not known: give it as stream_arn")));
        }
    }
}

/// Tries what polling needs; returns the stream's ARN, if it was told.
async fn polling(client: &Client, stream: &StreamRef, shown: &str, findings: &mut Vec<Finding>) -> Option<String> {
    let (name, arn) = match stream {
        StreamRef::Name(name) => (Some(name.clone()), None),
        StreamRef::Arn(arn) => (None, Some(arn.clone())),
    };
    let call = client.describe_stream_summary();
    let call = call.set_stream_name(name.clone()).set_stream_arn(arn.clone());
    let described = came(DESCRIBE_STREAM, call.send().await);
    let mut finding = seen(DESCRIBE_STREAM, &described, shown);
    if matches!(&described, Came::Refused(code) if code == "ResourceNotFoundException") {
        finding.reason = reason::SOURCE_STREAM_NOT_FOUND;
        finding.message = "a call was let through, and there is no such stream".to_owned();
        finding.remedy = "check the stream's name, its region and the account".to_owned();
    }
    findings.push(finding);
    let summary = match described {
        Came::Back(output) => output.stream_description_summary,
        Came::Refused(_) | Came::Nowhere(_) => None,
    };
    let encrypted = summary
        .as_ref()
        .map(|summary| summary.encryption_type == Some(EncryptionType::Kms));

    let call = client.list_shards().max_results(1);
    let call = call.set_stream_name(name.clone()).set_stream_arn(arn.clone());
    let listed = came(LIST_SHARDS, call.send().await);
    findings.push(seen(LIST_SHARDS, &listed, shown));
    let shard = match &listed {
        Came::Back(output) => output.shards().first().map(|shard| shard.shard_id().to_owned()),
        Came::Refused(_) | Came::Nowhere(_) => None,
    };

    let call = client
        .get_shard_iterator()
        .shard_id(shard.as_deref().unwrap_or(ANY_SHARD))
        .shard_iterator_type(ShardIteratorType::TrimHorizon);
    let call = call.set_stream_name(name).set_stream_arn(arn.clone());
    let begun = came(GET_SHARD_ITERATOR, call.send().await);
    findings.push(seen(GET_SHARD_ITERATOR, &begun, shown));
    let iterator = match begun {
        Came::Back(output) => output.shard_iterator,
        Came::Refused(_) | Came::Nowhere(_) => None,
    };
    match iterator {
        None => findings.push(unknown(
            GET_RECORDS,
            format!("it cannot be tried without {GET_SHARD_ITERATOR}"),
        )),
        Some(iterator) => {
            let call = client
                .get_records()
                .set_stream_arn(arn)
                .shard_iterator(iterator)
                .limit(1);
            let read = came(GET_RECORDS, call.send().await);
            findings.push(seen(GET_RECORDS, &read, shown));
            findings.extend(decrypt(&read, encrypted));
        }
    }
    summary.map(|summary| summary.stream_arn)
}

/// What reading says of the right to decrypt.
fn decrypt(
    read: &Came<aws_sdk_kinesis::operation::get_records::GetRecordsOutput>,
    encrypted: Option<bool>,
) -> Option<Finding> {
    match read {
        Came::Refused(code) if code.starts_with("KMS") && code != "KMSThrottlingException" => {
            let refused = code == "KMSAccessDeniedException";
            Some(Finding {
                action: DECRYPT,
                verdict: if refused { Verdict::Denied } else { Verdict::Unknown },
                reason: reason::SOURCE_ACCESS_DENIED,
                message: format!("records cannot be decrypted ({code})"),
                remedy: format!(
                    "allow {DECRYPT} on the stream's key, also in the key's policy, and see that it is enabled"
                ),
            })
        }
        Came::Back(output) if encrypted == Some(true) && !output.records.is_empty() => Some(allowed(DECRYPT)),
        _ if encrypted == Some(true) => Some(unknown(
            DECRYPT,
            "the stream is encrypted, and there was no record to read",
        )),
        _ => None,
    }
}

/// `consumer` is the name of the pipe's own, `own` the ARN of one that the user has registered.
async fn fan_out(
    client: &Client,
    arn: &str,
    usage: Usage,
    consumer: Option<&str>,
    own: Option<&str>,
    findings: &mut Vec<Finding>,
) {
    // Nobody has it.
    let nobody = format!("millrace-check-{}", Uuid::new_v4());
    let mut registered = false;
    if usage == Usage::ManagedFanOut {
        let call = client.describe_stream_consumer().stream_arn(arn);
        let described = came(
            DESCRIBE_CONSUMER,
            call.consumer_name(consumer.unwrap_or(&nobody)).send().await,
        );
        registered = consumer.is_some() && matches!(described, Came::Back(_));
        findings.push(seen(DESCRIBE_CONSUMER, &described, arn));
    }
    // A subscription to a shard that somebody reads would be taken from him: so to one that there is not.
    let any_position = StartingPosition::builder().r#type(ShardIteratorType::Latest).build();
    let call = client
        .subscribe_to_shard()
        .consumer_arn(own.map_or_else(|| format!("{arn}/consumer/{nobody}:1"), str::to_owned))
        .shard_id(NO_SHARD)
        .set_starting_position(any_position.ok());
    let subscribed = came(SUBSCRIBE, call.send().await);
    let consumers = own.map_or_else(|| format!("{arn}/consumer/*"), str::to_owned);
    findings.push(seen(SUBSCRIBE, &subscribed, &consumers));
    if usage != Usage::ManagedFanOut {
        return;
    }
    findings.push(match consumer.filter(|_| registered) {
        // It is there, so it is not registered again.
        Some(name) => {
            let call = client.register_stream_consumer().stream_arn(arn).consumer_name(name);
            seen(REGISTER_CONSUMER, &came(REGISTER_CONSUMER, call.send().await), arn)
        }
        None => unknown(
            REGISTER_CONSUMER,
            "it cannot be tried without registering a consumer; the pipe's status will say so if it is missing",
        ),
    });
    let call = client
        .deregister_stream_consumer()
        .stream_arn(arn)
        .consumer_name(&nobody);
    let removed = came(DEREGISTER_CONSUMER, call.send().await);
    findings.push(seen(DEREGISTER_CONSUMER, &removed, arn));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_says_whether_a_call_was_let_through() {
        for (code, verdict) in [
            ("AccessDeniedException", Verdict::Denied),
            ("ResourceNotFoundException", Verdict::Allowed),
            ("ProvisionedThroughputExceededException", Verdict::Unknown),
            ("KMSAccessDeniedException", Verdict::Allowed),
            ("InvalidArgumentException", Verdict::Unknown),
            ("ExpiredTokenException", Verdict::Unknown),
            ("HTTP banner of something else 1.2", Verdict::Unknown),
        ] {
            let finding = judge(GET_RECORDS, code, "orders");
            assert_eq!(finding.verdict, verdict, "{code}");
            assert!(!finding.message.contains("banner"), "{}", finding.message);
            assert_eq!(
                finding.remedy.contains(GET_RECORDS),
                verdict == Verdict::Denied,
                "{finding:?}"
            );
        }
    }
}

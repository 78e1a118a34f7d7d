//! What a pipe does in AWS, as IAM names it: the policy that its sessions are narrowed to, the smallest one that its role or
//! user needs, and the trust policy of a role. Pure functions.
//!
//! Invariant: nothing here lets a pipe write to a stream, or read another one.

use serde_json::{Value, json};

/// What is asked of the stream before any record is read, and again and again to follow it.
pub const DESCRIBE_STREAM: &str = "kinesis:DescribeStreamSummary";
/// Lists shards.
pub const LIST_SHARDS: &str = "kinesis:ListShards";
/// Begins to poll a shard.
pub const GET_SHARD_ITERATOR: &str = "kinesis:GetShardIterator";
/// Polls a shard.
pub const GET_RECORDS: &str = "kinesis:GetRecords";
/// Looks a consumer up.
pub const DESCRIBE_CONSUMER: &str = "kinesis:DescribeStreamConsumer";
/// Reads a shard by enhanced fan-out.
pub const SUBSCRIBE: &str = "kinesis:SubscribeToShard";
/// Registers the pipe's consumer.
pub const REGISTER_CONSUMER: &str = "kinesis:RegisterStreamConsumer";
/// Deregisters it.
pub const DEREGISTER_CONSUMER: &str = "kinesis:DeregisterStreamConsumer";
/// Reads records of an encrypted stream.
pub const DECRYPT: &str = "kms:Decrypt";
/// Becomes another role.
pub const ASSUME_ROLE: &str = "sts:AssumeRole";

const VERSION: &str = "2012-10-17";

/// How a stream is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Polling.
    Poll,
    /// Enhanced fan-out with a consumer that is there, and polling while that cannot be.
    FanOut,
    /// The same, and the consumer is registered and deregistered too.
    ManagedFanOut,
}

/// One stream and how it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// ARN of the stream.
    pub stream_arn: String,
    /// What is done with it.
    pub usage: Usage,
}

impl Scope {
    /// The actions on the stream itself.
    #[must_use]
    pub fn stream_actions(&self) -> Vec<&'static str> {
        // With fan-out as well: a shard is polled while its consumer cannot be had.
        let mut actions = vec![DESCRIBE_STREAM, LIST_SHARDS, GET_SHARD_ITERATOR, GET_RECORDS];
        // Whether one of these is judged by the stream or by its consumer is not the same in all of IAM's tables.
        actions.extend(
            self.consumer_actions()
                .into_iter()
                .filter(|action| *action != SUBSCRIBE),
        );
        actions
    }

    /// The actions on consumers of the stream.
    #[must_use]
    pub fn consumer_actions(&self) -> Vec<&'static str> {
        match self.usage {
            Usage::Poll => Vec::new(),
            Usage::FanOut => vec![DESCRIBE_CONSUMER, SUBSCRIBE],
            Usage::ManagedFanOut => vec![DESCRIBE_CONSUMER, SUBSCRIBE, REGISTER_CONSUMER, DEREGISTER_CONSUMER],
        }
    }

    /// All consumers of the stream.
    #[must_use]
    pub fn consumers_arn(&self) -> String {
        format!("{}/consumer/*", self.stream_arn)
    }

    fn statements(&self) -> Vec<Value> {
        let mut statements = vec![json!({
            "Sid": "ReadStream",
            "Effect": "Allow",
            "Action": self.stream_actions(),
            "Resource": self.stream_arn,
        })];
        let consumer_actions = self.consumer_actions();
        if !consumer_actions.is_empty() {
            statements.push(json!({
                "Sid": "UseConsumers",
                "Effect": "Allow",
                "Action": consumer_actions,
                "Resource": self.consumers_arn(),
            }));
        }
        statements
    }

    /// Reading what Kinesis has encrypted, and nothing else that the key has encrypted.
    fn decrypt(&self, key_arn: &str) -> Value {
        let region = self.stream_arn.split(':').nth(3).unwrap_or("*");
        json!({
            "Sid": "DecryptRecords",
            "Effect": "Allow",
            "Action": DECRYPT,
            "Resource": key_arn,
            // In China the service's name has one more part.
            "Condition": {"StringLike": {"kms:ViaService": format!("kinesis.{region}.amazonaws.com*")}},
        })
    }

    /// The policy that a session of a role is narrowed to. It gives nothing that the role does not have, so it may name all
    /// keys: whether the stream is encrypted, and with which, can change.
    #[must_use]
    pub fn session_policy(&self) -> String {
        let mut statements = self.statements();
        statements.push(self.decrypt("*"));
        json!({"Version": VERSION, "Statement": statements}).to_string()
    }

    /// The least that the identity which reads the stream has to be allowed.
    #[must_use]
    pub fn permission_policy(&self, key_arn: Option<&str>) -> Value {
        let mut statements = self.statements();
        statements.extend(key_arn.map(|key_arn| self.decrypt(key_arn)));
        json!({"Version": VERSION, "Statement": statements})
    }
}

/// The trust policy of a role that `principal` assumes with this external id.
#[must_use]
pub fn trust_policy(principal: &str, external_id: Option<&str>) -> Value {
    let mut statement = json!({
        "Sid": "LetMillraceAssumeThisRole",
        "Effect": "Allow",
        "Principal": {"AWS": principal},
        "Action": ASSUME_ROLE,
    });
    if let Some(external_id) = external_id {
        statement["Condition"] = json!({"StringEquals": {"sts:ExternalId": external_id}});
    }
    json!({"Version": VERSION, "Statement": [statement]})
}

/// What the identity that assumes a role has to be allowed.
#[must_use]
pub fn assume_policy(role_arn: &str) -> Value {
    json!({
        "Version": VERSION,
        "Statement": [{"Sid": "AssumeReader", "Effect": "Allow", "Action": ASSUME_ROLE, "Resource": role_arn}],
    })
}

/// Whom a trust policy has to name so that this caller may assume the role. A session stands for its role; the path of a role
/// is not in the ARN of its sessions, so for a role with a path it has to be put in by hand.
#[must_use]
pub fn principal_of(caller_arn: &str) -> String {
    let role = caller_arn.split_once(":assumed-role/").and_then(|(account, rest)| {
        let name = rest.split('/').next()?;
        Some(format!("{}:role/{name}", account.replacen(":sts:", ":iam:", 1)))
    });
    role.unwrap_or_else(|| caller_arn.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(usage: Usage) -> Scope {
        Scope {
            stream_arn: STREAM.to_owned(),
            usage,
        }
    }

    const STREAM: &str = "arn:aws:kinesis:eu-central-1:000000000000:stream/orders";
    const CONSUMERS: &str = "arn:aws:kinesis:eu-central-1:000000000000:stream/orders/consumer/*";

    /// What a policy says, without names for people.
    fn statements(policy: &Value) -> Vec<Value> {
        assert_eq!(policy["Version"], "2012-10-17");
        assert_eq!(policy.as_object().map(serde_json::Map::len), Some(2), "{policy}");
        let mut statements = policy["Statement"].as_array().expect("statements").clone();
        for statement in &mut statements {
            let sid = statement.as_object_mut().and_then(|statement| statement.remove("Sid"));
            let sid = sid.and_then(|sid| sid.as_str().map(str::to_owned)).expect("a Sid");
            assert!(sid.bytes().all(|b| b.is_ascii_alphanumeric()), "{sid}");
        }
        statements
    }

    fn read_stream(more: &[&str]) -> Value {
        let mut actions = vec![
            "kinesis:DescribeStreamSummary",
            "kinesis:ListShards",
            "kinesis:GetShardIterator",
            "kinesis:GetRecords",
        ];
        actions.extend(more);
        json!({"Effect": "Allow", "Action": actions, "Resource": STREAM})
    }

    fn decrypt(key: &str) -> Value {
        json!({
            "Effect": "Allow", "Action": "kms:Decrypt", "Resource": key,
            "Condition": {"StringLike": {"kms:ViaService": "kinesis.eu-central-1.amazonaws.com*"}},
        })
    }

    #[test]
    fn a_policy_allows_what_is_used_and_nothing_else() {
        let (describe, subscribe) = ("kinesis:DescribeStreamConsumer", "kinesis:SubscribeToShard");
        let (register, deregister) = ("kinesis:RegisterStreamConsumer", "kinesis:DeregisterStreamConsumer");
        let consumers = |actions: &[&str]| json!({"Effect": "Allow", "Action": actions, "Resource": CONSUMERS});
        let expected = [
            (Usage::Poll, vec![read_stream(&[])]),
            (
                Usage::FanOut,
                vec![read_stream(&[describe]), consumers(&[describe, subscribe])],
            ),
            (
                Usage::ManagedFanOut,
                vec![
                    read_stream(&[describe, register, deregister]),
                    consumers(&[describe, subscribe, register, deregister]),
                ],
            ),
        ];
        let key = "arn:aws:kms:eu-central-1:000000000000:key/k";
        for (usage, mut expected) in expected {
            assert_eq!(statements(&scope(usage).permission_policy(None)), expected, "{usage:?}");
            expected.push(decrypt(key));
            assert_eq!(
                statements(&scope(usage).permission_policy(Some(key))),
                expected,
                "{usage:?}"
            );
            // A session is narrowed to the same, with whatever key the stream has.
            expected.pop();
            expected.push(decrypt("*"));
            let session: Value = serde_json::from_str(&scope(usage).session_policy()).expect("a policy");
            assert_eq!(statements(&session), expected, "{usage:?}");
        }
        let assume = statements(&assume_policy("arn:aws:iam::000000000000:role/r"));
        let role = "arn:aws:iam::000000000000:role/r";
        assert_eq!(
            assume,
            [json!({"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": role})]
        );
    }

    #[test]
    fn the_longest_session_policy_fits() {
        let longest = Scope {
            stream_arn: format!(
                "arn:aws-iso-b:kinesis:us-isob-east-12:000000000000:stream/{}",
                "x".repeat(128)
            ),
            usage: Usage::ManagedFanOut,
        };
        let chars = longest.session_policy().chars().count();
        assert!(chars <= 2_048, "{chars}");
    }

    #[test]
    fn a_trust_policy_names_who_may_and_asks_for_the_external_id() {
        let principal = "arn:aws:iam::000000000000:user/millrace";
        let trust = json!({"Effect": "Allow", "Principal": {"AWS": principal}, "Action": "sts:AssumeRole"});
        let mut with_id = trust.clone();
        assert_eq!(statements(&trust_policy(principal, None)), [trust]);
        with_id["Condition"] = json!({"StringEquals": {"sts:ExternalId": "id-of-nobody"}});
        assert_eq!(statements(&trust_policy(principal, Some("id-of-nobody"))), [with_id]);
    }

    #[test]
    fn a_session_stands_for_its_role() {
        for (caller, principal) in [
            (
                "arn:aws:sts::000000000000:assumed-role/hub/i-0123",
                "arn:aws:iam::000000000000:role/hub",
            ),
            (
                "arn:aws:iam::000000000000:user/a/loader",
                "arn:aws:iam::000000000000:user/a/loader",
            ),
        ] {
            assert_eq!(principal_of(caller), principal);
        }
    }
}

//! Who may do what: users with keys, roles that are assumed, the temporary credentials that come of it, and their policies.
//!
//! Follows the IAM User Guide ("Policy evaluation logic": an explicit deny wins, else an allow is needed; with a session policy both it and
//! the role's policy must allow) and the STS API reference of AssumeRole. Without an [`Iam`] in its options the emulator takes any
//! signature, and none.
//!
//! Invariants: a secret is compared, never shown; a session ends by the emulator's clock.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use uuid::Uuid;

/// AssumeRole takes 900 s at least.
pub(super) const MIN_SESSION: Duration = Duration::from_secs(900);
/// What a session has where nothing is said, and the most where a role is assumed with a role's credentials.
pub(super) const DEFAULT_SESSION: Duration = Duration::from_secs(3_600);
/// A role's longest sessions: twelve hours at most, one hour unless set.
pub(super) const MAX_SESSION: Duration = Duration::from_secs(12 * 3_600);

/// An account's users and roles.
#[derive(Clone, Default)]
pub struct Iam {
    /// Who signs with keys of their own.
    pub users: Vec<User>,
    /// What can be assumed.
    pub roles: Vec<Role>,
}

/// A user with one key pair.
#[derive(Clone)]
pub struct User {
    /// Such as `arn:aws:iam::000000000000:user/loader`.
    pub arn: String,
    /// Access key id.
    pub access_key_id: String,
    /// Secret access key.
    pub secret_access_key: String,
    /// What the user may do.
    pub policy: Policy,
}

/// A role.
#[derive(Clone, Debug)]
pub struct Role {
    /// Such as `arn:aws:iam::000000000000:role/reader`.
    pub arn: String,
    /// ARNs of users and roles that may assume it.
    pub trusts: Vec<String>,
    /// What the trust policy's `sts:ExternalId` condition asks for, if there is one.
    pub external_id: Option<String>,
    /// What its sessions may do.
    pub policy: Policy,
}

impl std::fmt::Debug for Iam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let users: Vec<&str> = self.users.iter().map(|user| user.arn.as_str()).collect();
        f.debug_struct("Iam")
            .field("users", &users)
            .field("roles", &self.roles)
            .finish()
    }
}

/// A policy document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy(Vec<Statement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Statement {
    allow: bool,
    actions: Vec<String>,
    resources: Vec<String>,
    /// Pattern of `kms:ViaService`, which only calls of a service for somebody have.
    via_service: Option<String>,
}

/// The text is not a policy document that is understood here: of conditions only those on `kms:ViaService` are, and `Not…` is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a policy document of Effect, Action and Resource")]
pub struct MalformedPolicy;

impl Policy {
    /// Reads a policy document.
    ///
    /// # Errors
    /// If it is none, or has something in it that would be passed over.
    pub fn parse(text: &str) -> Result<Self, MalformedPolicy> {
        let document: Value = serde_json::from_str(text).map_err(|_| MalformedPolicy)?;
        let statements = match document.get("Statement") {
            Some(Value::Array(statements)) => statements.clone(),
            Some(one @ Value::Object(_)) => vec![one.clone()],
            _ => return Err(MalformedPolicy),
        };
        statements.iter().map(statement).collect::<Result<_, _>>().map(Self)
    }

    /// A policy that allows these actions on these resources.
    #[must_use]
    pub fn allow(actions: &[&str], resources: &[&str]) -> Self {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Self(vec![Statement {
            allow: true,
            actions: texts(actions),
            resources: texts(resources),
            via_service: None,
        }])
    }

    /// Whether a call that somebody makes himself is allowed.
    fn allows(&self, action: &str, resource: &str) -> bool {
        self.allows_via(None, action, resource)
    }

    /// The same of a call that a service makes for somebody.
    fn allows_via(&self, service: Option<&str>, action: &str, resource: &str) -> bool {
        let speaks = |statement: &&Statement| {
            statement
                .actions
                .iter()
                .any(|pattern| matches(&pattern.to_ascii_lowercase(), &action.to_ascii_lowercase()))
                && statement.resources.iter().any(|pattern| matches(pattern, resource))
                && statement
                    .via_service
                    .as_ref()
                    .is_none_or(|pattern| service.is_some_and(|service| matches(pattern, service)))
        };
        let mut speaking = self.0.iter().filter(speaks).peekable();
        speaking.peek().is_some() && speaking.all(|statement| statement.allow)
    }
}

fn statement(value: &Value) -> Result<Statement, MalformedPolicy> {
    let known = ["Sid", "Effect", "Action", "Resource", "Condition"];
    let fields = value.as_object().ok_or(MalformedPolicy)?;
    if fields.keys().any(|key| !known.contains(&key.as_str())) {
        return Err(MalformedPolicy);
    }
    let texts = |key: &str| match fields.get(key) {
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(many)) => many
            .iter()
            .map(|text| text.as_str().map(str::to_owned).ok_or(MalformedPolicy))
            .collect(),
        _ => Err(MalformedPolicy),
    };
    let allow = match fields.get("Effect").and_then(Value::as_str) {
        Some("Allow") => true,
        Some("Deny") => false,
        _ => return Err(MalformedPolicy),
    };
    Ok(Statement {
        allow,
        actions: texts("Action")?,
        resources: texts("Resource")?,
        via_service: fields.get("Condition").map(via_service).transpose()?,
    })
}

fn via_service(condition: &Value) -> Result<String, MalformedPolicy> {
    let one = |value: &Value, key: &str| match value.as_object() {
        Some(fields) if fields.len() == 1 => fields.get(key).cloned().ok_or(MalformedPolicy),
        _ => Err(MalformedPolicy),
    };
    let pattern = one(&one(condition, "StringLike")?, "kms:ViaService")?;
    pattern.as_str().map(str::to_owned).ok_or(MalformedPolicy)
}

/// Whether a text is of a pattern with `*` and `?`.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    (p, t) = (at + 1, from + 1);
                    star = Some((at, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Temporary credentials.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
    pub(super) token: String,
    /// Of the session: `…:assumed-role/NAME/SESSION`.
    pub(super) arn: String,
    pub(super) expires_ms: i64,
    role: Role,
    policy: Option<Policy>,
}

/// What a key id stands for.
pub(super) enum Key {
    User(User),
    Session(Session),
}

impl Key {
    pub(super) fn secret(&self) -> &str {
        match self {
            Key::User(user) => &user.secret_access_key,
            Key::Session(session) => &session.secret_access_key,
        }
    }

    pub(super) fn arn(&self) -> &str {
        match self {
            Key::User(user) => &user.arn,
            Key::Session(session) => &session.arn,
        }
    }

    /// As trust policies name it.
    fn principal(&self) -> &str {
        match self {
            Key::User(user) => &user.arn,
            Key::Session(session) => &session.role.arn,
        }
    }

    pub(super) fn is_session(&self) -> bool {
        matches!(self, Key::Session(_))
    }

    /// Whether it may do something.
    pub(super) fn may(&self, action: &str, resource: &str) -> bool {
        self.all(|policy| policy.allows(action, resource))
    }

    /// Whether a service may do something for it.
    pub(super) fn may_via(&self, service: &str, action: &str, resource: &str) -> bool {
        self.all(|policy| policy.allows_via(Some(service), action, resource))
    }

    fn all(&self, allows: impl Fn(&Policy) -> bool) -> bool {
        match self {
            Key::User(user) => allows(&user.policy),
            Key::Session(session) => allows(&session.role.policy) && session.policy.as_ref().is_none_or(allows),
        }
    }
}

/// The sessions of one emulator, and its roles as they are now.
#[derive(Default)]
pub(super) struct Sessions {
    sessions: Mutex<HashMap<String, Session>>,
    /// The ARN of each session that was given, and when, by a clock that nobody moves.
    given: Mutex<Vec<(String, std::time::Instant)>>,
    roles: Mutex<Vec<Role>>,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Sessions").field(&self.sessions.lock().len()).finish()
    }
}

impl Sessions {
    /// No sessions yet, and these roles.
    pub(super) fn new(roles: Vec<Role>) -> Self {
        Self {
            sessions: Mutex::default(),
            given: Mutex::default(),
            roles: Mutex::new(roles),
        }
    }

    /// A role as it is now.
    pub(super) fn role(&self, arn: &str) -> Option<Role> {
        self.roles.lock().iter().find(|role| role.arn == arn).cloned()
    }

    /// Adds a role, or puts it in the place of the one of its ARN.
    pub(super) fn put_role(&self, role: Role) {
        let mut roles = self.roles.lock();
        roles.retain(|known| known.arn != role.arn);
        roles.push(role);
    }

    /// The ARN of each session that was given, and how long ago.
    pub(super) fn given(&self) -> Vec<(String, std::time::Duration)> {
        let given = self.given.lock();
        given.iter().map(|(arn, at)| (arn.clone(), at.elapsed())).collect()
    }

    /// What a key id stands for. A session may do what its role may do by now.
    pub(super) fn find(&self, iam: &Iam, access_key_id: &str) -> Option<Key> {
        if let Some(user) = iam.users.iter().find(|user| user.access_key_id == access_key_id) {
            return Some(Key::User(user.clone()));
        }
        let mut session = self.sessions.lock().get(access_key_id).cloned()?;
        session.role = self.role(&session.role.arn)?;
        Some(Key::Session(session))
    }

    /// Assumes a role, if its trust policy lets the caller.
    pub(super) fn assume(
        &self,
        role: &Role,
        caller: &Key,
        external_id: Option<&str>,
        (name, policy): (&str, Option<Policy>),
        expires_ms: i64,
    ) -> Option<Session> {
        let trusted = role.trusts.iter().any(|arn| arn == caller.principal());
        let same_id = role.external_id.is_none() || role.external_id.as_deref() == external_id;
        if !(trusted && same_id) {
            return None;
        }
        let random = || Uuid::new_v4().simple().to_string();
        let session = Session {
            access_key_id: format!("ASIA{}", &random().to_ascii_uppercase()[..16]),
            secret_access_key: format!("{}{}", random(), &random()[..8]),
            token: random() + &random(),
            arn: format!(
                "{}/{name}",
                role.arn.replace(":iam:", ":sts:").replace(":role/", ":assumed-role/")
            ),
            expires_ms,
            role: role.clone(),
            policy,
        };
        self.given.lock().push((session.arn.clone(), std::time::Instant::now()));
        self.sessions
            .lock()
            .insert(session.access_key_id.clone(), session.clone());
        Some(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_iams_do() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("kinesis:Get*", "kinesis:GetRecords", true),
            ("kinesis:Get*", "kinesis:PutRecords", false),
            ("*:stream/a?c", "arn:x:stream/abc", true),
            ("*:stream/a?c", "arn:x:stream/ac", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("abc", "abcd", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_deny_wins_and_nothing_said_is_no() {
        let policy = Policy::parse(
            r#"{"Version":"2012-10-17","Statement":[
                {"Effect":"Allow","Action":"kinesis:*","Resource":"*"},
                {"Effect":"Deny","Action":["kinesis:GetRecords"],"Resource":["*:stream/secret"]}]}"#,
        )
        .expect("a policy");
        assert!(policy.allows("kinesis:getrecords", "arn:x:stream/open"));
        assert!(!policy.allows("kinesis:GetRecords", "arn:x:stream/secret"));
        assert!(!policy.allows("sts:AssumeRole", "arn:x:role/r"));
        for bad in [
            "",
            "{}",
            r#"{"Statement":[{"Effect":"Allow","NotAction":"x","Resource":"*"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Action":"x","Resource":"*","Condition":{"Bool":{"a":"b"}}}]}"#,
        ] {
            assert_eq!(Policy::parse(bad), Err(MalformedPolicy), "{bad}");
        }
    }

    #[test]
    fn a_condition_on_the_service_holds_for_that_service_alone() {
        let policy = Policy::parse(
            r#"{"Statement":{"Effect":"Allow","Action":"kms:Decrypt","Resource":"*",
                "Condition":{"StringLike":{"kms:ViaService":"kinesis.us-east-1.amazonaws.com*"}}}}"#,
        )
        .expect("a policy");
        assert!(policy.allows_via(Some("kinesis.us-east-1.amazonaws.com"), "kms:Decrypt", "k"));
        assert!(!policy.allows_via(Some("s3.us-east-1.amazonaws.com"), "kms:Decrypt", "k"));
        assert!(!policy.allows("kms:Decrypt", "k"));
    }
}

//! Identifiers. Each kind is its own type, so that one cannot stand where another is meant.
//!
//! Resource names (`projects/{project}/pipes/{pipe}`) are what users see; a [`PipeUid`] is what the planes and the
//! database speak of, because a pipe that is deleted and created again under its name is another pipe.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use ulid::Ulid;
use uuid::Uuid;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not of the form that the kind of name has.
    #[error("{given:?} is not a resource name: expected {expected}")]
    Name {
        /// What was given, cut to 100 characters.
        given: String,
        /// The form that was expected.
        expected: &'static str,
    },
    /// A segment that is not a label.
    #[error(
        "{given:?} is not a valid id: use 1 to 63 of a-z, 0-9 and '-', starting with a letter and not ending with '-'"
    )]
    Label {
        /// What was given, cut to 100 characters.
        given: String,
    },
    /// Not a UUID, ULID or number as the kind asks for.
    #[error("{given:?} is not a valid {kind}")]
    Malformed {
        /// What was given, cut to 100 characters.
        given: String,
        /// The kind of identifier.
        kind: &'static str,
    },
}

fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}

/// A DNS-like label: 1 to 63 of `a-z0-9-`, starting with a letter, not ending with `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

impl Label {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bytes = text.as_bytes();
        let valid = matches!(bytes.first(), Some(b'a'..=b'z'))
            && bytes.len() <= 63
            && bytes.last() != Some(&b'-')
            && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::Label { given: cut(text) })
        }
    }
}

impl TryFrom<String> for Label {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> String {
        label.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `projects/{project}`: the parent of pipes and credentials.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProjectName(pub Label);

impl FromStr for ProjectName {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        match text.strip_prefix("projects/") {
            Some(project) if !project.contains('/') => Ok(Self(project.parse()?)),
            _ => Err(Error::Name {
                given: cut(text),
                expected: "projects/{project}",
            }),
        }
    }
}

impl fmt::Display for ProjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "projects/{}", self.0)
    }
}

macro_rules! string_serde {
    ($($type:ty),*) => {$(
        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> { text.parse() }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String { value.to_string() }
        }
    )*};
}

/// A resource inside a project.
macro_rules! resource_name {
    ($(#[$doc:meta])* $type:ident, $collection:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type {
            /// The project.
            pub project: ProjectName,
            /// The last segment.
            pub id: Label,
        }

        impl FromStr for $type {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                let wrong = || Error::Name { given: cut(text), expected: $expected };
                let (project, id) = text.split_once(concat!("/", $collection, "/")).ok_or_else(wrong)?;
                let project = project.parse().map_err(|_| wrong())?;
                Ok(Self { project, id: id.parse()? })
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{}/", $collection, "/{}"), self.project, self.id)
            }
        }
    };
}

resource_name!(
    /// `projects/{project}/pipes/{pipe}`.
    PipeName,
    "pipes",
    "projects/{project}/pipes/{pipe}"
);
resource_name!(
    /// `projects/{project}/credentials/{credential}`.
    CredentialName,
    "credentials",
    "projects/{project}/credentials/{credential}"
);
string_serde!(ProjectName, PipeName, CredentialName);

/// A UUID made by the server.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(Uuid);

        impl $type {
            /// A new one.
            #[allow(clippy::new_without_default, reason = "two new ids are never equal")]
            pub fn new() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl FromStr for $type {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                text.parse().map(Self).map_err(|_| Error::Malformed { given: cut(text), kind: $kind })
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_id!(
    /// Identity of a pipe.
    PipeUid,
    "pipe uid"
);
uuid_id!(
    /// Identity of a credential.
    CredentialUid,
    "credential uid"
);
uuid_id!(
    /// One run of a worker process.
    Incarnation,
    "incarnation"
);

/// Stable id of a worker: up to 128 visible ASCII characters, such as a pod's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerId(String);

impl WorkerId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkerId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let valid = !text.is_empty() && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_graphic());
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::Malformed {
                given: cut(text),
                kind: "worker id",
            })
        }
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_serde!(WorkerId);

/// One worker process: a restart is another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerInstance {
    /// The worker.
    pub worker: WorkerId,
    /// Its run.
    pub incarnation: Incarnation,
}

impl fmt::Display for WorkerInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.worker, self.incarnation)
    }
}

/// Kinesis shard id, such as `shardId-000000000000`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShardId(String);

impl ShardId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ShardId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let valid = !text.is_empty()
            && text.len() <= 128
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::Malformed {
                given: cut(text),
                kind: "shard id",
            })
        }
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_serde!(ShardId);

/// Kinesis sequence number: a decimal number of up to 129 digits, kept as text and ordered as a number. It passes `u128`,
/// and as text `9` would come after `10`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SequenceNumber(Box<[u8]>);

/// Most digits of a number that the API of Kinesis takes.
const MOST_DIGITS: usize = 129;

impl SequenceNumber {
    /// Whether these are the digits of a sequence number.
    pub fn is_valid(digits: &[u8]) -> bool {
        (1..=MOST_DIGITS).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
    }

    /// The number with these digits, if they are that.
    pub fn from_digits(digits: &[u8]) -> Option<Self> {
        Self::is_valid(digits).then(|| Self(digits.into()))
    }

    /// The digits as Kinesis gave them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The order of the numbers with these digits.
    pub fn compare(left: &[u8], right: &[u8]) -> Ordering {
        let (left_zeros, right_zeros) = (zeros(left), zeros(right));
        let (a, b) = (&left[left_zeros..], &right[right_zeros..]);
        // Equal numbers with other zeros still get an order, so that `Ord` agrees with `Eq`.
        a.len()
            .cmp(&b.len())
            .then_with(|| a.cmp(b))
            .then_with(|| left_zeros.cmp(&right_zeros))
    }
}

/// How many zeros the digits begin with; the last digit is not one of them.
fn zeros(digits: &[u8]) -> usize {
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    zeros.min(digits.len().saturating_sub(1))
}

impl FromStr for SequenceNumber {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::from_digits(text.as_bytes()).ok_or_else(|| Error::Malformed {
            given: cut(text),
            kind: "sequence number",
        })
    }
}

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> Ordering {
        Self::compare(&self.0, &other.0)
    }
}

impl fmt::Debug for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SequenceNumber({self})")
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

string_serde!(SequenceNumber);

/// Identity of a batch, and its insert deduplication token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BatchId(Ulid);

impl BatchId {
    /// A new one.
    #[allow(clippy::new_without_default, reason = "two new ids are never equal")]
    pub fn new() -> Self {
        Self(Ulid::new())
    }
}

impl FromStr for BatchId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Ulid::from_string(text).map(Self).map_err(|_| Error::Malformed {
            given: cut(text),
            kind: "batch id",
        })
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

string_serde!(BatchId);

/// Identity of an event of a pipe. Those of one pipe rise, in the order in which they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(Ulid);

impl EventId {
    /// The id of an event of this time, in milliseconds since the epoch, behind `last`.
    #[must_use]
    pub fn after(last: Option<EventId>, millis: i64) -> Self {
        let now = Ulid::from_parts(u64::try_from(millis).unwrap_or(0), Ulid::new().random());
        match last {
            // A clock that stands or goes back.
            Some(EventId(last)) if last >= now => Self(Ulid(last.0.saturating_add(1))),
            _ => Self(now),
        }
    }
}

impl FromStr for EventId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Ulid::from_string(text).map(Self).map_err(|_| Error::Malformed {
            given: cut(text),
            kind: "event id",
        })
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A counter that only rises.
macro_rules! counter {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub u64);

        impl $type {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// How often a shard's lease was granted; fences writes.
    Epoch
);
counter!(
    /// Version of a worker's assignment; higher wins.
    Generation
);
counter!(
    /// Version of a pipe's specification.
    Revision
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_refuse() {
        let name: PipeName = "projects/default/pipes/events-1".parse().unwrap();
        assert_eq!(name.to_string(), "projects/default/pipes/events-1");
        for bad in [
            "",
            "projects/a/pipes",
            "projects/a/pipes/",
            "projects/A/pipes/b",
            "projects/a/b/pipes/c",
            "projects/a/pipes/b/pipes/c",
            "projects/a/pipes/../x",
            "projects/a/pipes/b\n",
        ] {
            assert!(bad.parse::<PipeName>().is_err(), "{bad:?}");
        }
        assert!("projects/a/credentials/b".parse::<PipeName>().is_err());
    }

    #[test]
    fn sequence_numbers_order_as_numbers() {
        let n = |s: &str| s.parse::<SequenceNumber>().unwrap();
        assert!(n("9") < n("10"));
        assert!(n("0009") < n("10"));
        assert!(
            n("49590338271490256608559692538361571095921575989136588898")
                > n("49590338271490256608559692538361571095921575989136588897")
        );
        for bad in ["", "-1", "1a", "１", &"1".repeat(130)] {
            assert!(bad.parse::<SequenceNumber>().is_err(), "{bad:?}");
        }
        assert!("0".parse::<SequenceNumber>().is_ok());
    }
}

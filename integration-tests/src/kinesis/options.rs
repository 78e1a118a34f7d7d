//! What an emulator is started with.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::clock::Clock;
use super::iam::Iam;
use super::intercept::Interceptor;

/// Settings of one emulator; the default is an open-handed, empty account on a free loopback port.
#[derive(Clone)]
pub struct Options {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The region in ARNs.
    pub region: String,
    /// The account in ARNs: twelve digits.
    pub account: String,
    /// Streams that exist from the start.
    pub streams: Vec<StreamSpec>,
    /// Whether the service's rates per shard hold: 5 reads/s and 2 MiB/s out, 1,000 records/s and 1 MiB/s in.
    pub enforce_limits: bool,
    /// How long CREATING, UPDATING and DELETING last on the emulator's clock.
    pub transition: Duration,
    /// The most open shards that the account may have.
    pub shard_limit: usize,
    /// The time that everything with a date goes by.
    pub clock: Clock,
    /// Whether GetShardIterator refuses the number of a record that was trimmed. Both are seen of the service: that, and
    /// going on silently at the oldest record.
    pub refuse_trimmed_numbers: bool,
    /// How long a subscription lasts on the emulator's clock.
    pub subscription_life: Duration,
    /// Whether to speak TLS, with a certificate of its own: clients of HTTP/2 want it.
    pub tls: bool,
    /// Users and roles, who then have to sign what they send and may do what their policies say. Without it anybody may do all.
    pub iam: Option<Iam>,
    /// Sees every request before it is executed.
    pub interceptor: Option<Arc<dyn Interceptor>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            region: "us-east-1".to_owned(),
            account: "000000000000".to_owned(),
            streams: Vec::new(),
            enforce_limits: false,
            transition: Duration::ZERO,
            // The service's largest quota, so that tests with thousands of shards need no setting.
            shard_limit: 20_000,
            clock: Clock::system(),
            refuse_trimmed_numbers: false,
            subscription_life: Duration::from_secs(300),
            tls: false,
            iam: None,
            interceptor: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("listen", &self.listen)
            .field("region", &self.region)
            .field("account", &self.account)
            .field("streams", &self.streams)
            .field("enforce_limits", &self.enforce_limits)
            .field("transition", &self.transition)
            .field("shard_limit", &self.shard_limit)
            .field("subscription_life", &self.subscription_life)
            .field("tls", &self.tls)
            .field("intercepted", &self.interceptor.is_some())
            .finish_non_exhaustive()
    }
}

/// A stream to create, written `name:shards`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    /// The stream's name.
    pub name: String,
    /// How many shards it opens with.
    pub shards: u32,
}

impl StreamSpec {
    /// A stream `name` of `shards` shards.
    #[must_use]
    pub fn new(name: impl Into<String>, shards: u32) -> Self {
        Self {
            name: name.into(),
            shards,
        }
    }
}

/// Why a `name:shards` text is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not NAME:SHARDS with at least one shard")]
pub struct StreamSpecError(String);

impl FromStr for StreamSpec {
    type Err = StreamSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.rsplit_once(':')
            .and_then(|(name, shards)| Some(Self::new(name, shards.parse().ok()?)))
            .filter(|spec| !spec.name.is_empty() && spec.shards > 0)
            .ok_or_else(|| StreamSpecError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_written_name_colon_shards() {
        assert_eq!("demo:4".parse(), Ok(StreamSpec::new("demo", 4)));
        for bad in ["demo", "demo:", ":4", "demo:0", "demo:-1", "demo:x"] {
            assert!(bad.parse::<StreamSpec>().is_err(), "{bad}");
        }
    }
}

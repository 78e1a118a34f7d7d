//! What has to be known of a server before the first insert: which settings it has, and how long it keeps a connection.
//! Asked once per connection pool, and again when the server seems to have changed.

use std::time::Duration;

use http::HeaderMap;

use super::http::Answer;

/// A pool's idle time before the server has said its own: below ClickHouse's shortest default, above a flush interval.
pub(super) const FIRST_IDLE: Duration = Duration::from_secs(9);
/// Longest idle time: load balancers drop connections silently after a minute or less.
const MAX_IDLE: Duration = Duration::from_secs(50);
/// How much sooner than the server a connection is given up, so that no request meets its closing.
const IDLE_MARGIN: Duration = Duration::from_secs(2);

/// Asks for the settings that not every version has; a name that is unknown would be refused with code 115.
/// `system.settings` can be read by every user.
pub(super) const PROBE: &str = "SELECT name FROM system.settings WHERE name IN \
     ('deduplicate_insert', 'distributed_foreground_insert', 'use_strict_insert_block_limits') FORMAT TSV";

/// Settings that the server has beyond those of every version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Optional {
    /// Since 26.2 it decides over deduplication, and `insert_deduplicate` no longer does.
    pub(super) deduplicate_insert: bool,
    /// An insert into a Distributed table waits for the shards.
    pub(super) distributed_foreground_insert: bool,
    /// Would cut a large block.
    pub(super) use_strict_insert_block_limits: bool,
}

impl Optional {
    pub(super) fn parse(body: &[u8]) -> Self {
        let has = |name: &str| body.split(|byte| *byte == b'\n').any(|line| line == name.as_bytes());
        Self {
            deduplicate_insert: has("deduplicate_insert"),
            distributed_foreground_insert: has("distributed_foreground_insert"),
            use_strict_insert_block_limits: has("use_strict_insert_block_limits"),
        }
    }

    pub(super) fn settings(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        [
            (self.deduplicate_insert, ("deduplicate_insert", "enable")),
            (
                self.distributed_foreground_insert,
                ("distributed_foreground_insert", "1"),
            ),
            (
                self.use_strict_insert_block_limits,
                ("use_strict_insert_block_limits", "0"),
            ),
        ]
        .into_iter()
        .filter_map(|(known, setting)| known.then_some(setting))
    }
}

/// How long to keep an idle connection, from what the server says of it.
pub(super) fn idle(answer: &Answer) -> Duration {
    keep_alive(&answer.headers).map_or(FIRST_IDLE, |server| {
        server
            .saturating_sub(IDLE_MARGIN)
            .clamp(Duration::from_secs(1), MAX_IDLE)
    })
}

/// The `timeout` of `Keep-Alive: timeout=30, max=9999`.
fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, StatusCode};

    use super::*;

    fn idle_of(value: Option<&'static str>) -> Duration {
        let mut headers = HeaderMap::new();
        if let Some(value) = value {
            headers.insert("keep-alive", HeaderValue::from_static(value));
        }
        idle(&Answer {
            status: StatusCode::OK,
            headers,
            body: Vec::new(),
        })
    }

    #[test]
    fn connections_are_given_up_before_the_server_does() {
        assert_eq!(idle_of(Some("timeout=30, max=9999")), Duration::from_secs(28));
        assert_eq!(idle_of(Some("max=5, timeout=10")), Duration::from_secs(8));
        assert_eq!(idle_of(Some("timeout=1")), Duration::from_secs(1));
        assert_eq!(idle_of(Some("timeout=3600")), MAX_IDLE);
        assert_eq!(idle_of(Some("nonsense")), FIRST_IDLE);
        assert_eq!(idle_of(None), FIRST_IDLE);
    }

    #[test]
    fn only_known_settings_are_sent() {
        assert_eq!(Optional::parse(b""), Optional::default());
        let optional = Optional::parse(b"deduplicate_insert\nuse_strict_insert_block_limits\n");
        let sent: Vec<_> = optional.settings().collect();
        assert_eq!(
            sent,
            [
                ("deduplicate_insert", "enable"),
                ("use_strict_insert_block_limits", "0")
            ]
        );
        assert_eq!(Optional::parse(b"deduplicate_insert_select\n"), Optional::default());
    }
}

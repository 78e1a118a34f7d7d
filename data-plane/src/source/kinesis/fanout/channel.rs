//! Connections for subscriptions: each carries a few, so that one that breaks, or is full because somebody does not read, concerns
//! a few; and one on which nothing comes any more is not used for new ones.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering},
};

use aws_sdk_kinesis::config::{Builder, StalledStreamProtectionConfig};
use parking_lot::Mutex;

use super::super::tap::{self, Tap};

/// Most subscriptions on one connection.
const SUBSCRIPTIONS: usize = 25;

/// The connections of one client; a cheap clone.
#[derive(Debug, Clone)]
pub(in super::super) struct Channels {
    config: Builder,
    open: Arc<Mutex<Vec<Weak<Line>>>>,
}

/// A client with an HTTP connection of its own: with HTTP/2 it is one.
#[derive(Debug)]
struct Line {
    sdk: aws_sdk_kinesis::Client,
    poisoned: AtomicBool,
}

/// A place on a connection, for as long as it is held.
#[derive(Debug)]
pub(super) struct Channel(Arc<Line>);

impl Channels {
    /// Connections made by this configuration, but for its HTTP client.
    pub(in super::super) fn new(config: Builder) -> Self {
        // A subscription may say nothing for seconds; whether it is dead is decided here.
        let config = config.stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        Self {
            config,
            open: Arc::default(),
        }
    }

    /// A place on a connection that has one, or on a new one.
    pub(super) fn take(&self) -> Channel {
        let mut open = self.open.lock();
        open.retain(|line| line.strong_count() > 0);
        let usable = open.iter().filter_map(Weak::upgrade).find(|line| {
            // One is what was made by looking.
            Arc::strong_count(line) - 1 < SUBSCRIPTIONS && !line.poisoned.load(Ordering::Relaxed)
        });
        Channel(usable.unwrap_or_else(|| {
            let config = self.config.clone().http_client(Tap::new(tap::https())).build();
            let line = Arc::new(Line {
                sdk: aws_sdk_kinesis::Client::from_conf(config),
                poisoned: AtomicBool::new(false),
            });
            open.push(Arc::downgrade(&line));
            line
        }))
    }
}

impl Channel {
    pub(super) fn sdk(&self) -> &aws_sdk_kinesis::Client {
        &self.0.sdk
    }

    /// Nobody is to begin on this connection any more.
    pub(super) fn poison(&self) {
        self.0.poisoned.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_kinesis::config::BehaviorVersion;

    use super::*;

    #[test]
    fn a_connection_carries_so_many_and_a_bad_one_no_more() {
        let channels = Channels::new(Builder::new().behavior_version(BehaviorVersion::latest()));
        let first: Vec<_> = (0..SUBSCRIPTIONS).map(|_| channels.take()).collect();
        assert!(first.iter().all(|channel| Arc::ptr_eq(&channel.0, &first[0].0)));
        let next = channels.take();
        assert!(!Arc::ptr_eq(&next.0, &first[0].0));
        drop(first);
        next.poison();
        let fresh = channels.take();
        assert!(!Arc::ptr_eq(&fresh.0, &next.0));
        assert!(Arc::ptr_eq(&channels.take().0, &fresh.0));
    }
}

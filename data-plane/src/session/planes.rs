//! The control planes that a worker knows, and which of them it talks to.
//!
//! One of them takes sessions, the leader; the others say so, and where it is if they know. PrepareBatch and CommitBatch are
//! answered by all, and go where the session goes, so that a batch waits for nobody who is known to be away.
//!
//! Invariant: a control plane that did not answer is not asked again for a while, as long as there is another one; what
//! somebody says of it meanwhile may be older than what was found out here.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use millrace_common::grpc::{self, Access, Link};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use tonic::transport::Error;

/// How long a control plane that did not answer is passed over: as long as a leader's row may outlive it.
const SHUN: Duration = Duration::from_secs(5);
/// Control planes that others have named, and that are not configured. There are a handful at most.
const MAX_HINTED: usize = 8;

/// The control planes of a worker. Clones share what is known.
#[derive(Clone)]
pub struct ControlPlanes {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    access: Access,
    changed: watch::Sender<()>,
}

struct State {
    choice: Choice,
    channels: BTreeMap<String, Link>,
}

impl fmt::Debug for ControlPlanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ControlPlanes")
            .field(&self.inner.state.lock().choice)
            .finish()
    }
}

impl ControlPlanes {
    /// The control planes at these URLs, the first of which is tried first, one at least; and what to prove oneself by there.
    ///
    /// # Errors
    /// If one of them is no URL.
    pub fn new(urls: &[String], access: &Access) -> Result<Self, Error> {
        let mut channels = BTreeMap::new();
        for url in urls {
            channels.insert(url.clone(), access.link(url)?);
        }
        let state = State {
            choice: Choice::new(urls),
            channels,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                state: Mutex::new(state),
                access: access.clone(),
                changed: watch::Sender::new(()),
            }),
        })
    }

    /// The one to talk to.
    ///
    /// # Errors
    /// Never: its URL was good before.
    pub fn current(&self) -> Result<(String, Link), Error> {
        let mut state = self.inner.state.lock();
        let url = state.choice.current().to_owned();
        if let Some(channel) = state.channels.get(&url) {
            return Ok((url, channel.clone()));
        }
        let channel = self.inner.access.link(&url)?;
        state.channels.insert(url.clone(), channel.clone());
        Ok((url, channel))
    }

    /// Notes that it did not answer.
    pub fn unreachable(&self, url: &str) {
        let mut state = self.inner.state.lock();
        state.choice.unreachable(url, Instant::now());
        let State { choice, channels } = &mut *state;
        channels.retain(|url, _| choice.knows(url));
        drop(state);
        self.inner.changed.send_replace(());
    }

    /// Notes that it takes no sessions, and who does, if it says so. True if that is worth trying at once.
    pub fn not_leader(&self, url: &str, leader: Option<&str>) -> bool {
        // What is no URL is no hint.
        let leader = leader.filter(|leader| grpc::channel(leader).is_ok());
        self.inner.state.lock().choice.not_leader(url, leader, Instant::now())
    }

    /// Notes that it has taken a session.
    pub fn leads(&self, url: &str) {
        self.inner.state.lock().choice.leads(url);
    }

    /// Waits until somebody finds out, from now on, that it does not answer.
    pub async fn given_up(&self, url: &str) {
        let shunned_until = || self.inner.state.lock().choice.shunned_until(url);
        let mut changed = self.inner.changed.subscribe();
        let before = shunned_until();
        // The sender lives as long as `self`.
        let _ = changed.wait_for(|()| shunned_until() > before).await;
    }
}

/// Which control plane to talk to. Pure.
#[derive(Debug)]
struct Choice {
    known: Vec<Known>,
    current: usize,
}

#[derive(Debug)]
struct Known {
    url: String,
    configured: bool,
    shunned_until: Option<Instant>,
}

impl Choice {
    fn new(urls: &[String]) -> Self {
        let known = |url: &String| Known {
            url: url.clone(),
            configured: true,
            shunned_until: None,
        };
        Self {
            known: urls.iter().map(known).collect(),
            current: 0,
        }
    }

    fn current(&self) -> &str {
        self.known.get(self.current).map_or("", |known| known.url.as_str())
    }

    fn knows(&self, url: &str) -> bool {
        self.position(url).is_some()
    }

    fn position(&self, url: &str) -> Option<usize> {
        self.known.iter().position(|known| known.url == url)
    }

    fn shunned_until(&self, url: &str) -> Option<Instant> {
        self.known[self.position(url)?].shunned_until
    }

    fn is_shunned(&self, url: &str, now: Instant) -> bool {
        self.shunned_until(url).is_some_and(|until| until > now)
    }

    fn unreachable(&mut self, url: &str, now: Instant) {
        let Some(index) = self.position(url) else { return };
        self.known[index].shunned_until = Some(now + SHUN);
        if index == self.current {
            self.move_on(now);
        }
    }

    fn not_leader(&mut self, url: &str, leader: Option<&str>, now: Instant) -> bool {
        let leader = leader.filter(|leader| *leader != url && !self.is_shunned(leader, now));
        if let Some(leader) = leader {
            self.current = self.position(leader).unwrap_or_else(|| self.learn(leader));
            return true;
        }
        if self.position(url) == Some(self.current) {
            self.move_on(now);
        }
        false
    }

    /// Takes in a URL that was hinted at, in the place of the oldest one that is only known so, if there are many.
    fn learn(&mut self, url: &str) -> usize {
        if self.known.iter().filter(|known| !known.configured).count() >= MAX_HINTED
            && let Some(oldest) = self.known.iter().position(|known| !known.configured)
        {
            self.known.remove(oldest);
        }
        self.known.push(Known {
            url: url.to_owned(),
            configured: false,
            shunned_until: None,
        });
        self.known.len() - 1
    }

    fn leads(&mut self, url: &str) {
        if let Some(index) = self.position(url) {
            self.known[index].shunned_until = None;
            self.current = index;
        }
    }

    /// The next one in turn that is not shunned; if all are, the one that has been for the longest time.
    fn move_on(&mut self, now: Instant) {
        let count = self.known.len();
        let in_turn = (1..=count).map(|step| (self.current + step) % count.max(1));
        let shunned_until = |index: &usize| self.known[*index].shunned_until.filter(|until| *until > now);
        if let Some(next) = in_turn.min_by_key(shunned_until) {
            self.current = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(urls: &[&str]) -> Choice {
        Choice::new(&urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn who_does_not_answer_is_passed_over_for_a_while() {
        let now = Instant::now();
        let mut choice = choice(&["a", "b", "c"]);
        choice.unreachable("a", now);
        assert_eq!(choice.current(), "b");
        choice.not_leader("b", None, now);
        assert_eq!(choice.current(), "c");
        // Back to b, and not to a; nor is a taken on anybody's word.
        choice.not_leader("c", None, now);
        assert_eq!(choice.current(), "b");
        assert!(!choice.not_leader("b", Some("a"), now));
        assert_eq!(choice.current(), "c");
        // In time it is one as the others.
        assert!(choice.not_leader("c", Some("a"), now + SHUN));
        assert_eq!(choice.current(), "a");
    }

    #[test]
    fn the_only_one_is_asked_again_and_again() {
        let now = Instant::now();
        let mut choice = choice(&["a"]);
        choice.unreachable("a", now);
        assert_eq!(choice.current(), "a");
        choice.not_leader("a", None, now);
        assert_eq!(choice.current(), "a");
    }

    #[test]
    fn if_nobody_answers_they_are_asked_in_turn() {
        let now = Instant::now();
        let mut choice = choice(&["a", "b", "c"]);
        let mut asked = Vec::new();
        for millis in 0..6 {
            asked.push(choice.current().to_owned());
            let current = choice.current().to_owned();
            choice.unreachable(&current, now + Duration::from_millis(millis));
        }
        assert_eq!(asked, ["a", "b", "c", "a", "b", "c"]);
    }

    #[test]
    fn a_hint_is_followed_and_hints_are_bounded() {
        let now = Instant::now();
        let mut choice = choice(&["a", "b"]);
        assert!(choice.not_leader("a", Some("b"), now));
        assert_eq!(choice.current(), "b");
        assert!(!choice.not_leader("b", Some("b"), now), "its own name is no hint");
        for n in 0..3 * MAX_HINTED {
            let from = choice.current().to_owned();
            assert!(choice.not_leader(&from, Some(&format!("hint-{n}")), now));
            assert_eq!(choice.current(), format!("hint-{n}"));
        }
        assert_eq!(choice.known.len(), 2 + MAX_HINTED);
        assert!(choice.knows("a") && choice.knows("b"), "what is configured stays");
    }

    #[test]
    fn what_another_found_out_meanwhile_moves_nothing() {
        let now = Instant::now();
        let mut choice = choice(&["a", "b"]);
        choice.leads("b");
        choice.unreachable("a", now);
        choice.not_leader("a", None, now);
        assert_eq!(choice.current(), "b");
        choice.leads("a");
        assert!(!choice.is_shunned("a", now), "it answers after all");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_given_up_for_what_is_found_out_after_it_began() {
        let urls = ["http://a:1".to_owned()];
        let planes = ControlPlanes::new(&urls, &Access::default()).expect("a URL");
        // It was away before: the call finds out by itself whether it still is.
        planes.unreachable(&urls[0]);
        let waiting = planes.given_up(&urls[0]);
        tokio::pin!(waiting);
        let soon = Duration::from_millis(1);
        assert!(tokio::time::timeout(soon, &mut waiting).await.is_err());
        planes.leads(&urls[0]);
        assert!(tokio::time::timeout(soon, &mut waiting).await.is_err());
        planes.unreachable(&urls[0]);
        waiting.await;
    }
}

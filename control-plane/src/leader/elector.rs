//! Looks at the leader's row again and again: takes the place when it is free, keeps it while it can, and gives it up in
//! order.
//!
//! Invariant: a [`Tenure`] ends before the row does. It is counted from before the database was asked, and shortened by a
//! margin, so it holds as long as the two clocks run at about the same speed.

use std::{fmt, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Candidate, Row, Step, Tenure};
use crate::store::{Standing, Store};

/// What a leadership is shorter than its row, as a part of it: time to stop what is under way.
const MARGIN: u32 = 10;
/// Looks at the row per leadership that is not renewed: a few lost ones cost nothing, and a change that another control
/// plane makes is seen within one look.
const LOOKS: u32 = 10;
/// A database that does not answer for this long is asked again, over another connection.
const LOOK_DEADLINE: Duration = Duration::from_secs(2);
/// How long giving up the row may take. Without it the others wait until it has run out.
const RESIGN_DEADLINE: Duration = Duration::from_secs(2);

/// How to elect.
#[derive(Debug, Clone)]
pub struct Options {
    /// A leader that dies is followed by another after this long.
    pub ttl: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            // Work goes on within 10 s of a leader's death: this, and the time that workers take to find the next one.
            ttl: Duration::from_secs(5),
        }
    }
}

/// What this control plane is.
#[derive(Debug, Clone)]
pub enum Role {
    /// Another leads, or nobody does.
    Following {
        /// Where workers find the leader, if there is one and it can be found.
        leader: Option<String>,
    },
    /// This one leads.
    Leading(Tenure),
}

impl Role {
    fn is_like(&self, other: &Role) -> bool {
        match (self, other) {
            (Role::Following { leader: a }, Role::Following { leader: b }) => a == b,
            (Role::Leading(a), Role::Leading(b)) => a.term() == b.term(),
            _ => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Following { leader: Some(leader) } => write!(f, "following {leader}"),
            Role::Following { leader: None } => f.write_str("following nobody"),
            Role::Leading(tenure) => write!(f, "leading under term {}", tenure.term()),
        }
    }
}

/// Counters beside the leader's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Rises when a control plane that does not lead has stored something.
    pub changes: u64,
    /// Rises when the leader has stored what it observes.
    pub observed: u64,
    /// Somebody leads.
    pub is_led: bool,
}

/// What others see of the election. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Handle {
    /// What this control plane is.
    pub role: watch::Receiver<Role>,
    /// Counters, as of the last look.
    pub seen: watch::Receiver<Seen>,
}

/// Stands for election for as long as it runs.
#[derive(Debug)]
pub struct Elector {
    store: Store,
    me: Candidate,
    options: Options,
    role: watch::Sender<Role>,
    seen: watch::Sender<Seen>,
    held: Option<Tenure>,
    /// The row could not be read; logged when it changes.
    down: bool,
}

impl Elector {
    /// Follows until it runs.
    #[must_use]
    pub fn new(store: Store, me: Candidate, options: Options) -> (Self, Handle) {
        let (role, seen) = (
            watch::Sender::new(Role::Following { leader: None }),
            watch::Sender::new(Seen::default()),
        );
        let handle = Handle {
            role: role.subscribe(),
            seen: seen.subscribe(),
        };
        let elector = Self {
            store,
            me,
            options,
            role,
            seen,
            held: None,
            down: false,
        };
        (elector, handle)
    }

    /// Runs until `shutdown`; then hands over at once.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let look = async {
                let rest = self.look().await;
                sleep(rest).await;
            };
            if shutdown.run_until_cancelled(look).await.is_none() {
                break;
            }
            if self.held.is_some() && self.store.is_exclusive() {
                shutdown.cancelled().await;
                break;
            }
        }
        self.hand_over().await;
    }

    /// One look at the row, and what follows from it. Says when the next one is due.
    async fn look(&mut self) -> Duration {
        if self.held.as_ref().is_some_and(Tenure::is_over) {
            self.step_down("the database was not reached in time");
        }
        let asked = Instant::now();
        let until = self.held.as_ref().and_then(Tenure::until);
        let limit = until.map_or(LOOK_DEADLINE, |until| LOOK_DEADLINE.min(until.duration_since(asked)));
        let term = self.held.as_ref().map(Tenure::term);
        let pause = self.options.ttl / LOOKS;
        match timeout(limit, self.store.campaign(&self.me, term, self.options.ttl)).await {
            Ok(Ok(standing)) => {
                if std::mem::take(&mut self.down) {
                    tracing::info!("the leader's row can be read again");
                }
                let left = self.take_in(standing, asked);
                // Candidates do not all come at the moment at which the row runs out.
                pause
                    .min(left.unwrap_or(pause))
                    .mul_f64(0.8 + 0.4 * rand::random::<f64>())
            }
            Ok(Err(error)) => self.unreadable(&error.to_string(), pause),
            Err(_) => self.unreadable("no answer in time", pause),
        }
    }

    fn unreadable(&mut self, error: &str, pause: Duration) -> Duration {
        if !std::mem::replace(&mut self.down, true) {
            tracing::warn!(error, "the leader's row cannot be read");
        }
        let left = |until: Instant| until.duration_since(Instant::now());
        self.held
            .as_ref()
            .and_then(Tenure::until)
            .map_or(pause, |until| pause.min(left(until)))
    }

    /// Gives what is left of another's time.
    fn take_in(&mut self, standing: Standing, asked: Instant) -> Option<Duration> {
        let Standing {
            step,
            row,
            changes,
            observed,
        } = standing;
        let until = asked + self.options.ttl - self.options.ttl / MARGIN;
        match step {
            Step::Renew(_) => {
                if let Some(tenure) = &self.held {
                    tenure.extend(until);
                }
            }
            Step::Acquire(term) => {
                let tenure = if self.store.is_exclusive() {
                    Tenure::forever(term)
                } else {
                    Tenure::new(term, until)
                };
                tracing::info!(%term, "leading");
                self.held = Some(tenure.clone());
                self.role.send_replace(Role::Leading(tenure));
            }
            Step::Lost => self.step_down(&format!("another control plane leads, under term {}", row.term)),
            Step::Follow => {}
        }
        if self.held.is_none() {
            self.follow(&row);
        }
        let seen = Seen {
            changes,
            observed,
            is_led: self.held.is_some() || row.is_held(),
        };
        self.seen
            .send_if_modified(|before| std::mem::replace(before, seen) != seen);
        (step == Step::Follow).then_some(row.left)
    }

    fn follow(&self, row: &Row) {
        let leader = Some(row.address.clone()).filter(|address| row.is_held() && !address.is_empty());
        let role = Role::Following { leader };
        self.role.send_if_modified(|before| {
            let changed = !before.is_like(&role);
            if changed {
                tracing::info!("{role}");
                *before = role;
            }
            changed
        });
    }

    fn step_down(&mut self, why: &str) {
        let Some(tenure) = self.held.take() else { return };
        tracing::warn!(term = %tenure.term(), why, "stepping down");
        self.role.send_replace(Role::Following { leader: None });
        tenure.end();
    }

    async fn hand_over(&mut self) {
        let Some(term) = self.held.as_ref().map(Tenure::term) else {
            return;
        };
        self.step_down("asked to end");
        match timeout(RESIGN_DEADLINE, self.store.resign(&self.me, term)).await {
            Ok(Ok(())) => tracing::info!(%term, "the leader's place is free"),
            Ok(Err(error)) => tracing::warn!(%error, "the others have to wait until the leader's row has run out"),
            Err(_) => tracing::warn!("no answer in time: the others have to wait until the leader's row has run out"),
        }
    }
}

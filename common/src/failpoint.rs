//! Fail points: named places in the protocol where a test makes a process die, stop, panic, fail or dawdle.
//!
//! A place is marked with [`fail_point!`](crate::fail_point) and does nothing unless one of two variables names it:
//! `MILLRACE_FAIL_POINTS` holds a list, `MILLRACE_FAIL_POINTS_FILE` the path of a file with one, which is read again at each
//! place, so that a test can arm a process that runs. A list is `name=action` with `;` or line ends between:
//!
//! ```text
//!   worker.commit.before=kill ; control.grant.after=3*error ; worker.send.before=sleep(250)
//! ```
//!
//! An action is `kill` (SIGKILL to this very process), `stop` (SIGSTOP), `panic`, `error` (the place returns its error) or
//! `sleep(milliseconds)`. `n*` before it means the n-th time that the place is reached. Each entry acts once in a process.
//!
//! Invariant: a build without debug assertions holds no fail point. The macro is empty there and this module has only
//! [`ENABLED`].

/// Whether this build has fail points.
pub const ENABLED: bool = cfg!(debug_assertions);

/// Marks a fail point. With a second argument, an error, the action `error` returns it from the function.
#[macro_export]
macro_rules! fail_point {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        $crate::failpoint::reach($name);
    };
    ($name:literal, $error:expr) => {
        #[cfg(debug_assertions)]
        if $crate::failpoint::reach($name) {
            return Err($error);
        }
    };
}

/// Marks a place where the action `error` makes a task wait for ever, as for a peer whose silence nobody times.
#[macro_export]
macro_rules! hang_point {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        if $crate::failpoint::reach($name) {
            ::std::future::pending::<()>().await;
        }
    };
}

#[cfg(debug_assertions)]
pub use armed::reach;

#[cfg(debug_assertions)]
mod armed {
    use std::{
        collections::HashMap,
        env, fmt,
        path::PathBuf,
        str::FromStr,
        sync::{Mutex, OnceLock, PoisonError},
        thread,
        time::Duration,
    };

    use nix::sys::signal::{Signal, raise};

    const LIST: &str = "MILLRACE_FAIL_POINTS";
    const FILE: &str = "MILLRACE_FAIL_POINTS_FILE";

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Action {
        Kill,
        Stop,
        Panic,
        Error,
        Sleep(Duration),
    }

    impl fmt::Display for Action {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self {
                Self::Kill => f.write_str("kill"),
                Self::Stop => f.write_str("stop"),
                Self::Panic => f.write_str("panic"),
                Self::Error => f.write_str("error"),
                Self::Sleep(time) => write!(f, "sleep({})", time.as_millis()),
            }
        }
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Entry {
        name: String,
        /// Acts when the place is reached this many times.
        at_hit: u64,
        action: Action,
    }

    impl FromStr for Entry {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, Self::Err> {
            let wrong = || format!("{text:?} is not NAME=[N*]kill|stop|panic|error|sleep(MS)");
            let (name, action) = text.split_once('=').ok_or_else(wrong)?;
            let (at_hit, action) = match action.split_once('*') {
                Some((count, action)) => (count.trim().parse().map_err(|_| wrong())?, action),
                None => (1, action),
            };
            let action = match action.trim() {
                "kill" => Action::Kill,
                "stop" => Action::Stop,
                "panic" => Action::Panic,
                "error" => Action::Error,
                other => {
                    let millis = other.strip_prefix("sleep(").and_then(|rest| rest.strip_suffix(')'));
                    let millis = millis.and_then(|millis| millis.parse().ok()).ok_or_else(wrong)?;
                    Action::Sleep(Duration::from_millis(millis))
                }
            };
            Ok(Self {
                name: name.trim().to_owned(),
                at_hit,
                action,
            })
        }
    }

    fn parse(list: &str) -> Result<Vec<Entry>, String> {
        let entries = list.split([';', '\n']).map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(str::parse).collect()
    }

    /// How often each entry's place was reached; the entry acts at one of these counts and at no later one.
    #[derive(Debug, Default)]
    struct Hits(HashMap<String, u64>);

    impl Hits {
        /// What is to be done at a place that is reached now.
        fn reach(&mut self, entries: &[Entry], name: &str) -> Option<Action> {
            let mut due = None;
            for entry in entries.iter().filter(|entry| entry.name == name) {
                let key = format!("{name}={}*{}", entry.at_hit, entry.action);
                let hits = self.0.entry(key).or_default();
                *hits += 1;
                if *hits == entry.at_hit.max(1) {
                    due = Some(entry.action);
                }
            }
            due
        }
    }

    enum Source {
        Fixed(Vec<Entry>),
        File(PathBuf),
    }

    fn source() -> Option<&'static Source> {
        static SOURCE: OnceLock<Option<Source>> = OnceLock::new();
        let find = || match (env::var_os(FILE), env::var(LIST)) {
            (Some(path), _) => Some(Source::File(path.into())),
            (None, Ok(list)) => Some(Source::Fixed(read(&list))),
            (None, Err(_)) => None,
        };
        SOURCE.get_or_init(find).as_ref()
    }

    /// A list that does not parse would be a fault that is never injected, and a test that proves nothing.
    fn read(list: &str) -> Vec<Entry> {
        parse(list).unwrap_or_else(|error| panic!("fail points: {error}"))
    }

    /// Does what is wanted here, if anything is. True: the caller is to fail.
    ///
    /// # Panics
    /// If that is wanted, or the list does not parse.
    pub fn reach(name: &str) -> bool {
        static HITS: OnceLock<Mutex<Hits>> = OnceLock::new();
        let listed;
        let entries = match source() {
            None => return false,
            Some(Source::Fixed(entries)) => entries,
            Some(Source::File(path)) => {
                // No file: nothing is armed (any more).
                listed = std::fs::read_to_string(path)
                    .map(|list| read(&list))
                    .unwrap_or_default();
                &listed
            }
        };
        let hits = HITS.get_or_init(Mutex::default).lock();
        let due = hits.unwrap_or_else(PoisonError::into_inner).reach(entries, name);
        due.is_some_and(|action| act(name, action))
    }

    fn act(name: &str, action: Action) -> bool {
        // In one text, so that a test finds it in a log however fields are shown.
        tracing::warn!("fail point {name}: {action}");
        let sent = match action {
            // To this thread, which therefore does not take another step.
            Action::Kill => raise(Signal::SIGKILL),
            Action::Stop => raise(Signal::SIGSTOP),
            Action::Panic => panic!("fail point {name}"),
            Action::Error => return true,
            Action::Sleep(time) => {
                thread::sleep(time);
                Ok(())
            }
        };
        sent.unwrap_or_else(|errno| panic!("fail point {name}: {errno}"));
        false
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn lists_are_read_and_nonsense_is_not() {
            let entries = parse(" a.b=kill;\n c = 3*stop ;d=sleep(20);e=error\nf=2*panic;").expect("a good list");
            let shown: Vec<_> = entries
                .iter()
                .map(|entry| format!("{}={}*{}", entry.name, entry.at_hit, entry.action))
                .collect();
            assert_eq!(
                shown,
                ["a.b=1*kill", "c=3*stop", "d=1*sleep(20)", "e=1*error", "f=2*panic"]
            );
            for bad in ["a", "a=", "a=die", "a=x*kill", "a=sleep(1", "a=sleep(x)", "a=-1*kill"] {
                assert!(parse(bad).is_err(), "{bad}");
            }
        }

        #[test]
        fn an_entry_acts_once_at_its_count() {
            let entries = parse("a=3*error;a=5*panic;b=stop").expect("a good list");
            let mut hits = Hits::default();
            let acted: Vec<_> = (0..6).map(|_| hits.reach(&entries, "a")).collect();
            let (error, panic) = (Some(Action::Error), Some(Action::Panic));
            assert_eq!(acted, [None, None, error, None, panic, None]);
            assert_eq!(hits.reach(&entries, "c"), None);
            assert_eq!(hits.reach(&entries, "b"), Some(Action::Stop));
            assert_eq!(hits.reach(&entries, "b"), None);
        }

        #[test]
        fn without_the_variables_nothing_happens() {
            assert!(env::var_os(LIST).is_none() && env::var_os(FILE).is_none());
            assert!(!reach("worker.commit.before"));
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn fail_points_are_there_only_with_debug_assertions() {
        fn place() -> Result<(), &'static str> {
            crate::fail_point!("test.place");
            crate::fail_point!("test.place", "an error");
            Ok(())
        }
        assert_eq!(super::ENABLED, cfg!(debug_assertions));
        assert_eq!(place(), Ok(()));
    }
}

//! Forking children so that none outlives its parent.
//!
//! The kernel sends a signal when the parent dies (`setpriv --pdeathsig`; a small watchdog shell stands in where that is
//! missing). It ties that signal to the *thread* that forked, and test threads come and go, so one thread that never ends
//! forks every child.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use nix::sys::signal::Signal;

use super::tools::find_program;

type Job = (Command, Sender<io::Result<Child>>);

/// Forks on the one thread that lives as long as the process does.
pub(super) fn fork(command: Command) -> io::Result<Child> {
    static FORKER: OnceLock<Sender<Job>> = OnceLock::new();
    let forker = FORKER.get_or_init(|| {
        let (sender, jobs): (Sender<Job>, Receiver<Job>) = channel();
        thread::spawn(move || {
            for (mut command, reply) in jobs {
                // The asker may have been dropped: then the child is dropped here, and Drop below is not involved.
                if let Err(unclaimed) = reply.send(command.spawn())
                    && let Ok(mut child) = unclaimed.0
                {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        });
        sender
    });
    let gone = || io::Error::other("the forking thread is gone");
    let (reply, answer) = channel();
    forker.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// `setpriv`, when it is there and knows `--pdeathsig` (util-linux since 2.33 does, busybox does not).
pub(super) fn parent_death_wrapper() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let setpriv = find_program("setpriv")?;
            let works = Command::new(&setpriv)
                .args(["--pdeathsig", "KILL", "--", "true"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            works.is_ok_and(|status| status.success()).then_some(setpriv)
        })
        .as_deref()
}

/// What stands in for the kernel's parent-death signal where there is none: a shell that looks once a second.
pub(super) fn watch_parent(pid: u32, signal: Signal) {
    const SCRIPT: &str =
        r#"while kill -0 "$1" 2>/dev/null; do kill -0 "$2" 2>/dev/null || exit 0; sleep 1; done; kill -s "$3" "$2""#;
    let mut watchdog = Command::new("sh");
    watchdog
        .args(["-c", SCRIPT, "watchdog"])
        .args([
            std::process::id().to_string(),
            pid.to_string(),
            signal_name(signal).to_owned(),
        ])
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Without a shell there is no watchdog either; Drop still ends the child in every orderly case.
    if let Ok(mut watchdog) = fork(watchdog) {
        thread::spawn(move || watchdog.wait());
    }
}

pub(super) fn signal_name(signal: Signal) -> &'static str {
    signal.as_str().trim_start_matches("SIG")
}

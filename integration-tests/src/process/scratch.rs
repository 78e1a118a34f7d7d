//! Scratch directories that are gone afterwards, even after a crash.
//!
//! A directory is removed when its [`Scratch`] is dropped. What is never dropped (an engine in a `static`, a test binary
//! that was killed) is removed by a janitor, a shell that waits for the end of this process. Should that fail too, the
//! next process sweeps: each directory holds a lock file that its owner keeps locked, so a directory whose lock can be
//! taken has no owner any more.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{Flock, FlockArg};

const PREFIX: &str = "millrace-scratch-";
const LOCK: &str = ".lock";
/// Set to anything to keep the directories for a look at logs and data.
const KEEP: &str = "MILLRACE_KEEP_SCRATCH";

/// A directory of one's own under the system's temporary directory.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Scratch {
    /// Creates an empty directory; `what` becomes part of its name.
    ///
    /// Its mode is 0711: its owner hands sub-directories to other users (PostgreSQL refuses to run as root), who must be
    /// able to pass through it and must not list it.
    ///
    /// # Errors
    /// When the directory cannot be created or locked.
    pub fn new(what: &str) -> io::Result<Self> {
        static RUN: OnceLock<String> = OnceLock::new();
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let run = RUN.get_or_init(|| {
            let run = format!("{PREFIX}{}", ulid::Ulid::new().to_string().to_lowercase());
            if !kept() {
                sweep(&env::temp_dir());
                hire_janitor(&env::temp_dir().join(&run));
            }
            run
        });
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("{run}-{number}-{what}"));
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
        let lock = lock(&path, true)?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !kept() {
            // Nobody can be told about a failure here, and the next process sweeps what is left.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn kept() -> bool {
    env::var_os(KEEP).is_some()
}

/// Starts a shell that removes whatever begins with `run` once this process has ended, in whichever way: its standard
/// input then ends. The engines that still write there are being killed at the same moment, hence the second try.
fn hire_janitor(run: &Path) {
    const SCRIPT: &str = r#"cat >/dev/null; rm -rf "$1"-* 2>/dev/null || { sleep 1; rm -rf "$1"-*; }"#;
    let janitor = Command::new("sh")
        .args(["-c", SCRIPT, "janitor"])
        .arg(run)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    if let Ok(janitor) = janitor {
        // Its input has to stay open until the very end; it is nobody's to wait for after that.
        std::mem::forget(janitor);
    }
}

fn lock(dir: &Path, create: bool) -> io::Result<Flock<File>> {
    let file = OpenOptions::new()
        .write(true)
        .create(create)
        .truncate(false)
        .open(dir.join(LOCK))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

/// Removes the directories whose owner is gone. Failures are passed over: another user's directory is not ours to sweep.
fn sweep(temp: &Path) {
    let Ok(entries) = fs::read_dir(temp) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if ours && let Ok(_lock) = lock(&entry.path(), false) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_only_what_has_no_owner() {
        let base = Scratch::new("sweep").expect("a scratch directory");
        let orphan = base.path().join(format!("{PREFIX}orphan"));
        let owned = base.path().join(format!("{PREFIX}owned"));
        let fresh = base.path().join(format!("{PREFIX}not-locked-yet"));
        let foreign = base.path().join("something-else");
        for dir in [&orphan, &owned, &fresh, &foreign] {
            fs::create_dir(dir).expect("created");
        }
        drop(lock(&orphan, true).expect("locked and let go"));
        drop(lock(&foreign, true).expect("locked and let go"));
        let _held = lock(&owned, true).expect("locked");

        sweep(base.path());

        assert!(!orphan.exists());
        assert!(owned.exists() && fresh.exists() && foreign.exists());
    }

    #[test]
    fn is_gone_after_drop() {
        let scratch = Scratch::new("drop").expect("a scratch directory");
        let path = scratch.path().to_owned();
        fs::write(path.join("file"), "x").expect("written");
        drop(scratch);
        assert!(!path.exists());
    }
}

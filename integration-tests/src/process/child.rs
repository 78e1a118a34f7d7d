//! A child process with a log file, signals, and a certain end.
//!
//! Each child leads its own process group. It is killed when its [`Process`] is dropped, and by the kernel when the
//! parent dies without dropping anything (see `fork`).

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::fork::{fork, parent_death_wrapper, signal_name, watch_parent};
use super::tools::find_program;
use super::wait::eventually;

/// How long a child may take to go away after SIGKILL before its `Drop` leaves it alone.
const REAP_LIMIT: Duration = Duration::from_secs(5);
/// How much of a log file is read for its tail: plenty of lines, and bounded.
const TAIL_BYTES: u64 = 64 * 1024;
/// Clock ticks per second in /proc: `USER_HZ`, which Linux fixed at 100 for user space.
const TICKS_PER_SECOND: u64 = 100;

/// Why a child could not be started or did not end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is not there, or is not executable.
    #[error("{0}: no such program")]
    NotFound(PathBuf),
    /// The operating system refused.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Its answer.
        source: io::Error,
    },
    /// The child is still running after the limit.
    #[error("{name} (pid {pid}) is still running after {limit:?}")]
    StillRunning {
        /// The child's name.
        name: String,
        /// Its process id.
        pid: u32,
        /// How long was waited.
        limit: Duration,
    },
}

/// How to start a child.
#[derive(Debug, Clone)]
pub struct Spawn {
    program: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    removed_envs: Vec<OsString>,
    current_dir: Option<PathBuf>,
    log: Option<PathBuf>,
    user: Option<(u32, u32)>,
    death_signal: Signal,
}

impl Spawn {
    /// A program by path, or by name on `PATH`.
    #[must_use]
    pub fn new(program: impl AsRef<Path>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            envs: Vec::new(),
            removed_envs: Vec::new(),
            current_dir: None,
            log: None,
            user: None,
            death_signal: Signal::SIGKILL,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets environment variables.
    #[must_use]
    pub fn envs<K: AsRef<OsStr>, V: AsRef<OsStr>>(mut self, envs: impl IntoIterator<Item = (K, V)>) -> Self {
        let owned = envs
            .into_iter()
            .map(|(name, value)| (name.as_ref().to_owned(), value.as_ref().to_owned()));
        self.envs.extend(owned);
        self
    }

    /// Removes an inherited environment variable.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.removed_envs.push(name.as_ref().to_owned());
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.current_dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Appends standard output and standard error to a file; without it both are discarded.
    #[must_use]
    pub fn log(mut self, path: impl AsRef<Path>) -> Self {
        self.log = Some(path.as_ref().to_owned());
        self
    }

    /// Runs the child as another user and group; only root may.
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    /// The signal the child gets when its parent dies; SIGKILL by default.
    #[must_use]
    pub fn death_signal(mut self, signal: Signal) -> Self {
        self.death_signal = signal;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such program, [`Error::Io`] when the log or the child cannot be created.
    pub fn spawn(self) -> Result<Process, Error> {
        let name = self
            .program
            .file_name()
            .unwrap_or(self.program.as_os_str())
            .to_string_lossy()
            .into_owned();
        let command = self.command()?;
        let child = fork(command).map_err(|source| Error::Io {
            what: format!("cannot start {name}"),
            source,
        })?;
        let process = Process {
            name,
            pid: child.id(),
            log: self.log,
            child: Mutex::new(child),
        };
        if parent_death_wrapper().is_none() {
            watch_parent(process.pid, self.death_signal);
        }
        Ok(process)
    }

    fn command(&self) -> Result<Command, Error> {
        let program = find_program(&self.program).ok_or_else(|| Error::NotFound(self.program.clone()))?;
        let mut command = match parent_death_wrapper() {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command
                    .arg("--pdeathsig")
                    .arg(signal_name(self.death_signal))
                    .arg("--")
                    .arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .args(&self.args)
            .envs(self.envs.iter().map(|(name, value)| (name, value)));
        for name in &self.removed_envs {
            command.env_remove(name);
        }
        if let Some(dir) = &self.current_dir {
            command.current_dir(dir);
        }
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command.process_group(0).stdin(Stdio::null());
        match &self.log {
            Some(path) => {
                let open = || {
                    OpenOptions::new()
                        .create(true)
                        .append(true)
                        .open(path)
                        .and_then(|log| Ok((log.try_clone()?, log)))
                };
                let (out, err) = open().map_err(|source| Error::Io {
                    what: format!("cannot open {}", path.display()),
                    source,
                })?;
                command.stdout(out).stderr(err);
            }
            None => {
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
        }
        Ok(command)
    }
}

/// A running child, or one that has ended.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    log: Option<PathBuf>,
    child: Mutex<Child>,
}

impl Process {
    /// Its process id, which is also its process group's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended; `None` while it runs.
    #[must_use]
    pub fn status(&self) -> Option<ExitStatus> {
        self.child.lock().try_wait().ok().flatten()
    }

    /// Whether it has not ended yet (a paused child has not).
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status().is_none()
    }

    /// Whether it is stopped, as by SIGSTOP. A child that has ended is not.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let state = fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .ok()
            .and_then(|stat| Some(stat.rsplit_once(')')?.1.trim_start().to_owned()));
        let state = state.or_else(|| {
            let output = Command::new("ps")
                .args(["-o", "stat=", "-p", &self.pid.to_string()])
                .output();
            Some(String::from_utf8_lossy(&output.ok()?.stdout).into_owned())
        });
        state.is_some_and(|state| state.trim_start().starts_with('T'))
    }

    /// Sends a signal to the child alone.
    ///
    /// # Errors
    /// [`Error::Io`] when it may not be signalled. A child that has ended is not an error.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        self.send(signal, |pid| kill(pid, signal))
    }

    /// Sends a signal to the child's whole process group.
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub fn signal_group(&self, signal: Signal) -> Result<(), Error> {
        self.send(signal, |pid| killpg(pid, signal))
    }

    fn send(&self, signal: Signal, send: impl FnOnce(Pid) -> nix::Result<()>) -> Result<(), Error> {
        // The lock is held over the call: a child that has not been waited for keeps its id, so it cannot be another's.
        let mut child = self.child.lock();
        if child.try_wait().ok().flatten().is_some() {
            return Ok(());
        }
        match send(self.nix_pid()) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(Error::Io {
                what: format!("cannot send {signal} to {}", self.name),
                source: errno.into(),
            }),
        }
    }

    /// Asks it to end (SIGTERM) without waiting for it.
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub fn terminate(&self) -> Result<(), Error> {
        self.signal(Signal::SIGTERM)
    }

    /// Freezes the child's process group (SIGSTOP).
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub fn pause(&self) -> Result<(), Error> {
        self.signal_group(Signal::SIGSTOP)
    }

    /// Lets a frozen process group go on (SIGCONT).
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub fn resume(&self) -> Result<(), Error> {
        self.signal_group(Signal::SIGCONT)
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// [`Error::StillRunning`] after `limit`.
    pub async fn wait(&self, limit: Duration) -> Result<ExitStatus, Error> {
        eventually("the child to end", limit, || async { self.status() })
            .await
            .map_err(|_| Error::StillRunning {
                name: self.name.clone(),
                pid: self.pid,
                limit,
            })
    }

    /// SIGTERM, and SIGKILL when it has not ended after `limit`.
    ///
    /// # Errors
    /// [`Error::StillRunning`] when not even SIGKILL ended it.
    pub async fn stop(&self, limit: Duration) -> Result<ExitStatus, Error> {
        self.terminate()?;
        match self.wait(limit).await {
            Err(Error::StillRunning { .. }) => self.kill().await,
            ended => ended,
        }
    }

    /// `kill -9` for the whole process group, and waits until the child is gone.
    ///
    /// # Errors
    /// [`Error::StillRunning`] when it does not go away.
    pub async fn kill(&self) -> Result<ExitStatus, Error> {
        self.signal_group(Signal::SIGKILL)?;
        self.wait(REAP_LIMIT).await
    }

    /// Where its output goes.
    #[must_use]
    pub fn log_path(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    /// The last lines of its output.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        self.log.as_deref().map(|path| tail(path, lines)).unwrap_or_default()
    }

    /// CPU time it has used so far, user and system; `None` where there is no /proc or when it has ended.
    #[must_use]
    pub fn cpu_time(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        // The second field is the program's name in parentheses and may hold anything; utime and stime are 14 and 15.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
    }

    /// Resident memory in bytes; `None` where there is no /proc or when it has ended.
    #[must_use]
    pub fn resident_bytes(&self) -> Option<u64> {
        self.memory("VmRSS:")
    }

    /// The most physical memory that it ever had in use, as Linux counts it.
    #[must_use]
    pub fn peak_resident_bytes(&self) -> Option<u64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, figure: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(figure))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1_024)
    }

    /// The ids of its direct children, whatever process group they are in.
    #[must_use]
    pub fn children(&self) -> Vec<u32> {
        let output = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output();
        let listed = output
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default();
        let from_ps = listed.lines().filter_map(|line| {
            let (pid, parent) = line.trim().split_once(char::is_whitespace)?;
            Some((pid.parse().ok()?, parent.trim().parse().ok()?))
        });
        proc_parents()
            .unwrap_or_else(|| from_ps.collect())
            .into_iter()
            .filter_map(|(pid, parent): (u32, u32)| (parent == self.pid).then_some(pid))
            .collect()
    }

    fn nix_pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.pid).unwrap_or(i32::MAX))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.signal_group(Signal::SIGKILL).is_err() {
            return;
        }
        let began = Instant::now();
        while self.is_running() && began.elapsed() < REAP_LIMIT {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// (pid, parent) of every process, from /proc; `None` where there is none.
fn proc_parents() -> Option<Vec<(u32, u32)>> {
    let entries = fs::read_dir("/proc").ok()?;
    let parents: Vec<(u32, u32)> = entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    (!parents.is_empty()).then_some(parents)
}

/// The last lines of a text file; empty when it cannot be read.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests;

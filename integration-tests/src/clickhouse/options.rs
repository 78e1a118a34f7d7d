//! How an engine is started, and for whom.

use std::path::PathBuf;
use std::time::Duration;

/// A user of the engine.
#[derive(Debug, Clone)]
pub struct User {
    /// Its name: letters, digits and `_`.
    pub name: String,
    /// Its password.
    pub password: String,
    /// Its rights, as whole statements without the grantee: `GRANT SELECT ON db.*`. Empty: no rights at all.
    pub grants: Vec<String>,
    /// Settings of this user alone, beside those of every user.
    pub settings: Vec<(String, String)>,
}

impl User {
    /// A user with these grants.
    #[must_use]
    pub fn new(name: &str, password: &str, grants: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            password: password.to_owned(),
            grants: grants.iter().map(|&grant| grant.to_owned()).collect(),
            settings: Vec::new(),
        }
    }
}

/// How to start an engine.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where data, configuration and logs go; a scratch directory when `None`.
    pub data_dir: Option<PathBuf>,
    /// The HTTP port; a free one when `None`.
    pub http_port: Option<u16>,
    /// The port of the native protocol; a free one when `None`.
    pub tcp_port: Option<u16>,
    /// The password of [`super::ADMIN`]; a random one when `None`.
    pub password: Option<String>,
    /// Users beside [`super::ADMIN`].
    pub users: Vec<User>,
    /// Settings of every user's profile, such as `("max_threads", "1")`.
    pub settings: Vec<(String, String)>,
    /// The server's memory limit in bytes.
    pub memory_bytes: u64,
    /// How long it may take until it answers.
    pub start_limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            data_dir: None,
            http_port: None,
            tcp_port: None,
            password: None,
            users: Vec::new(),
            settings: Vec::new(),
            // Beside a build and two planes on a machine with 16 GB; an engine under test uses a tenth of it.
            memory_bytes: 6 << 30,
            // Half a second on an idle machine; the first start after an install reads 570 MB from a cold disk.
            start_limit: Duration::from_secs(120),
        }
    }
}

impl Options {
    /// Adds a user.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str, grants: &[&str]) -> Self {
        self.users.push(User::new(name, password, grants));
        self
    }

    /// Adds a setting of the user that was added last.
    #[must_use]
    #[allow(
        clippy::needless_pass_by_value,
        reason = "callers write 1 and \"x\", not &1 and &\"x\""
    )]
    pub fn user_setting(mut self, name: &str, value: impl ToString) -> Self {
        if let Some(user) = self.users.last_mut() {
            user.settings.push((name.to_owned(), value.to_string()));
        }
        self
    }

    /// Adds a setting to every user's profile.
    #[must_use]
    #[allow(
        clippy::needless_pass_by_value,
        reason = "callers write 1 and \"x\", not &1 and &\"x\""
    )]
    pub fn setting(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }
}

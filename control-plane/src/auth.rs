//! Who calls, and whether they may: one check in front of every service.
//!
//! ```text
//!   request --> Guard: token --> Caller --> permission::needed(path) --> the service, with the caller as actor --> audit line
//! ```
//!
//! Invariants:
//! - What is not in the permission table is refused.
//! - A token is compared by its hash, in constant time, and is never logged.
//! - Without tokens (`Auth::None`) everybody is an admin; [`crate::config`] allows that on the loopback interface only, unless an operator
//!   insists.

mod guard;
pub mod oidc;
pub mod permission;
mod token;

use std::sync::Arc;

use secrecy::SecretString;

pub use self::guard::{Guard, Layer};
pub(crate) use self::token::Minted;
use crate::events::USER;

/// How callers are known.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// They are not: everybody may do everything.
    #[default]
    None,
    /// By tokens.
    Tokens {
        /// The operator's own, an admin's, which makes the first ones. No token is stored for it.
        admin: Option<Arc<SecretString>>,
        /// The operator's own for workers. No token is stored for it either.
        worker: Option<Arc<SecretString>>,
        /// An issuer that vouches for others.
        oidc: Option<oidc::Options>,
    },
}

/// What a caller may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look at what is no record and no secret.
    Viewer,
    /// Steer pipes, and see records.
    Operator,
    /// Everything of the API.
    Admin,
    /// A worker's work, and nothing else.
    Worker,
}

impl Role {
    /// Whether this role may do what needs `needed`.
    #[must_use]
    pub fn may(self, needed: Role) -> bool {
        match (self, needed) {
            (Role::Worker, needed) => needed == Role::Worker,
            (_, Role::Worker) => false,
            (role, needed) => role >= needed,
        }
    }

    /// As it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
            Role::Worker => "worker",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Role::Viewer, Role::Operator, Role::Admin, Role::Worker]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("{text:?} is no role"))
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// As events and audit lines name them.
    pub actor: String,
    /// What they may.
    pub role: Role,
}

/// A token that nobody has, for a part of this process.
///
/// # Errors
/// If the system has no random bytes.
pub fn own_token() -> Result<SecretString, aws_lc_rs::error::Unspecified> {
    Minted::new().map(|minted| minted.token)
}

tokio::task_local! {
    /// Who makes the call that this task serves.
    static CALLER: Caller;
}

/// Who makes the call that is being served, for events; [`USER`] outside of one.
#[must_use]
pub fn actor() -> String {
    CALLER
        .try_with(|caller| caller.actor.clone())
        .unwrap_or_else(|_| USER.to_owned())
}

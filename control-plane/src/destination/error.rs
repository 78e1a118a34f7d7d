//! Why a pipe cannot write to its destination.

use millrace_common::{error::FieldViolation, reason};

use super::client::{Server, ServerError};

/// Why a pipe cannot write to its destination: a stable reason, the fields at fault, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Stable reason, of [`millrace_common::reason`].
    pub reason: &'static str,
    /// What is wrong and what to do about it.
    pub message: String,
    /// Fields of the pipe at fault.
    pub fields: Vec<FieldViolation>,
    /// It may pass without anybody changing anything.
    pub transient: bool,
    /// ClickHouse's own number, if it said no.
    pub code: Option<u32>,
}

impl Error {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            fields: Vec::new(),
            transient: false,
            code: None,
        }
    }

    /// The same error about a field.
    pub(super) fn field(mut self, field: impl Into<String>) -> Self {
        let (field, description) = (field.into(), self.message.clone());
        self.fields.push(FieldViolation { field, description });
        self
    }

    /// An error of the connection: nobody there, not ClickHouse, or not as this user.
    pub(super) fn of_connection(error: &ServerError, server: &Server) -> Self {
        let endpoint = "pipe.destination.endpoint";
        match error {
            ServerError::Network(what) => Error::new(
                reason::DESTINATION_UNREACHABLE,
                format!("cannot reach ClickHouse at {}: {what}; check the host, the port and the network", server.endpoint),
            )
            .field(endpoint),
            ServerError::Foreign(what) => Error::new(
                reason::DESTINATION_UNREACHABLE,
                format!(
                    "{} does not answer like the HTTP interface of ClickHouse ({what}): its usual ports are 8123 and, with TLS, 8443",
                    server.endpoint
                ),
            )
            .field(endpoint),
            ServerError::Exception { code, message } => Self::of_exception(*code, message, server),
        }
    }

    /// An exception of ClickHouse that does not depend on what was asked, by its number.
    pub(super) fn of_exception(code: u32, message: &str, server: &Server) -> Self {
        let user = &server.username;
        let error = match code {
            // UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD, IP_ADDRESS_NOT_ALLOWED, AUTHENTICATION_FAILED, USER_EXPIRED
            192..=195 | 516 | 720 => Error::new(
                reason::DESTINATION_AUTHENTICATION_FAILED,
                format!(
                    "ClickHouse refuses the user {user:?} or its password: check that the user exists, may connect from here, \
                     and store its password in a new credential"
                ),
            )
            .field("pipe.destination.credential"),
            // READONLY, DATABASE_ACCESS_DENIED, QUERY_IS_PROHIBITED, SETTING_CONSTRAINT_VIOLATION, ACCESS_DENIED
            164 | 291 | 392 | 452 | 497 => Error::new(
                reason::DESTINATION_ACCESS_DENIED,
                format!("ClickHouse does not let the user {user:?} do this: {message}"),
            )
            .field("pipe.destination.credential"),
            60 | 218 => Error::new(reason::DESTINATION_TABLE_NOT_FOUND, message).field("pipe.destination.table"),
            81 => Error::new(reason::DESTINATION_DATABASE_NOT_FOUND, message).field("pipe.destination.database"),
            // Load: too slow, out of memory, too many queries, too many parts, overloaded.
            159 | 160 | 173 | 202 | 241 | 243 | 252 | 290 | 364 | 692 | 745 | 749 => Error {
                transient: true,
                ..Error::new(
                    reason::DESTINATION_OVERLOADED,
                    format!("ClickHouse at {} is overloaded (code {code}); try again later", server.endpoint),
                )
            },
            // The network between replicas, Keeper, a restart.
            3 | 32 | 95 | 96 | 198 | 203 | 209 | 210 | 225 | 236 | 242 | 244 | 254 | 265 | 279 | 285 | 286 | 289 | 297
            | 319 | 369 | 394 | 425 | 473 | 519 | 529 | 571 | 722 | 733..=735 | 999 | 1000 => Error {
                transient: true,
                ..Error::new(
                    reason::DESTINATION_UNREACHABLE,
                    format!("ClickHouse at {} is not available now: {message}", server.endpoint),
                )
            },
            _ => Error::new(
                reason::DESTINATION_INSERT_FAILED,
                format!("ClickHouse at {} refused (code {code}): {message}", server.endpoint),
            ),
        };
        Error {
            code: Some(code),
            ..error
        }
    }
}

//! What went wrong, told to a person, and as an exit code to a script:
//! 1 anything else, 2 wrong usage, 3 not found, 4 not allowed, 5 conflict, 6 timeout. Of `diff`, 1 says that there are differences,
//! and what would be 1 elsewhere is 2.

use std::io::Write as _;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Error {
    /// Here: a file, the terminal, an argument.
    Local(String),
    /// It took longer than was allowed.
    Timeout(String),
    /// The control plane said no.
    Remote(Box<Status>),
    /// The control plane could not be reached.
    Unreachable {
        /// Where it was looked for.
        endpoint: String,
        /// What happened.
        cause: String,
    },
}

impl Error {
    /// From a status of a call to `endpoint`.
    pub(crate) fn from_status(endpoint: &str, status: Status) -> Self {
        // A status that a server sent has a reason; one without is the transport's own.
        match status.code() {
            Code::Unavailable if status.get_details_error_info().is_none() => Error::Unreachable {
                endpoint: endpoint.to_owned(),
                cause: innermost(&status),
            },
            _ => Error::Remote(Box::new(status)),
        }
    }
}

fn innermost(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(next) = cause.source() {
        cause = next;
    }
    if std::ptr::addr_eq(cause, status) {
        status.message().to_owned()
    } else {
        cause.to_string()
    }
}

/// Prints the error and returns its exit code.
pub(crate) fn report(error: &Error) -> u8 {
    let mut text = String::new();
    let code = match error {
        Error::Local(message) => {
            text.push_str(&format!("error: {message}\n"));
            1
        }
        Error::Timeout(message) => {
            text.push_str(&format!("error: {message}\n"));
            6
        }
        Error::Unreachable { endpoint, cause } => {
            text.push_str(&format!(
                "error: no control plane at {endpoint}: {cause}\n\
                 Start one with `millrace standalone`, or name another with --endpoint or MILLRACE_ENDPOINT.\n"
            ));
            1
        }
        Error::Remote(status) => {
            describe(status, &mut text);
            match status.code() {
                Code::NotFound => 3,
                Code::Unauthenticated | Code::PermissionDenied => 4,
                Code::AlreadyExists | Code::Aborted => 5,
                Code::DeadlineExceeded => 6,
                _ => 1,
            }
        }
    };
    // Standard error may be closed; there is nowhere left to say so.
    let _ = std::io::stderr().write_all(text.as_bytes());
    code
}

fn describe(status: &Status, text: &mut String) {
    let details = status.get_error_details();
    let violations = details
        .bad_request()
        .map(|bad| bad.field_violations.as_slice())
        .unwrap_or_default();
    match violations {
        [] => text.push_str(&format!("error: {}\n", printable(status.message()))),
        [one] => text.push_str(&format!(
            "error: {}: {}\n",
            printable(&one.field),
            printable(&one.description)
        )),
        many => {
            text.push_str("error: several fields are wrong\n");
            for violation in many {
                text.push_str(&format!(
                    "  {}: {}\n",
                    printable(&violation.field),
                    printable(&violation.description)
                ));
            }
        }
    }
    if let Some(info) = details.error_info() {
        text.push_str(&format!("reason: {}\n", printable(&info.reason)));
    }
}

/// Text that cannot steer the terminal that it is printed on.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

//! What a test that runs servers within its own process can tell of their trouble: callers are told that something is
//! wrong inside, and the log says what.

use millrace_common::telemetry;

/// Has errors logged to standard error, or what `RUST_LOG` asks for. Any number of calls count as one.
///
/// # Panics
/// If `RUST_LOG` does not parse.
pub fn log_errors() {
    let options = telemetry::Options {
        log_level: std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned()),
        log_format: telemetry::Format::Text,
    };
    telemetry::init(&options).expect("RUST_LOG is a filter");
}

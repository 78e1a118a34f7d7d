//! Command-line options of a process: bad ones are all named, and the process exits with `EX_CONFIG`-like 64 rather than
//! clap's 2, so that a supervisor can tell a wrong configuration from a crash.

use clap::Parser;

/// Exit code of a process whose options are wrong (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: i32 = 64;

/// Parses the process's arguments and environment, or prints what is wrong and exits.
pub fn parse<T: Parser>() -> T {
    T::try_parse().unwrap_or_else(|error| {
        let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
        // Nothing is left to do if the terminal is gone.
        let _ = error.print();
        std::process::exit(code)
    })
}

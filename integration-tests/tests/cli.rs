//! The command line, as people and scripts use it: the program itself, against `millrace standalone`, a real ClickHouse engine and the
//! Kinesis emulator. A client in another language is driven against the same.

#![allow(
    clippy::print_stderr,
    reason = "what commands print is what a failing test is read by"
)]

mod cli {
    mod bed;
    mod files;
    mod python;
    mod rejected;
    mod secrets;
    mod tokens;
    mod top;
    mod transcript;
    mod wizard;
}

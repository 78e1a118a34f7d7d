//! The command line, as people and scripts use it: the program itself, against `millrace standalone`, a real ClickHouse engine and the
//! Kinesis emulator.

mod cli {
    mod bed;
    mod files;
    mod transcript;
    mod wizard;
}

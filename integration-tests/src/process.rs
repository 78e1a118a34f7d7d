//! Child processes, free ports, scratch directories and bounded waits: what every launcher and every test stands on.
//!
//! Not a process supervisor: nothing here restarts anything by itself, because a test must decide when that happens.
//!
//! Invariants:
//! - a child never outlives the process that started it, however that process ends;
//! - every wait has a limit and says what it waited for when it gives up;
//! - servers get loopback ports only.

mod child;
mod fork;
mod logs;
mod ports;
mod scratch;
mod tools;
mod wait;

pub(crate) use child::tail;
pub use child::{Error, Process, Spawn};
pub use logs::log_errors;
pub use nix::sys::signal::Signal;
pub use ports::free_port;
pub use scratch::Scratch;
pub use tools::{find_program, npm_package, python, tools_dir};
pub use wait::{Outcome, TimedOut, eventually};

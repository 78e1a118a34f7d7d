//! The exactly-once protocol, explored exhaustively: every order of every event of a small world.
//!
//! Two workers, a stream of two shards of which one has split, some records, a control plane, and a ClickHouse that keeps the
//! first block of each token. The control plane is [`protocol`](millrace_control_plane::protocol), the very functions that the
//! store runs; the workers order their batches with the production
//! [`Tracker`](millrace_data_plane::commit::tracker::Tracker). What is written here is only what is between them: messages,
//! which may be lost, arrive twice, or late.
//!
//! After each event the predicates of [`invariants`](millrace_control_plane::protocol::invariants) must hold, and wherever
//! nothing more can happen everything must have landed. There is no clock: a worker may stand still in any state while its
//! leases end and others are granted them, so a paused worker that goes on is every worker whose lease was taken.
//!
//! That a model holds says little unless it can fail: [`faulty`](exactly_once_model::faulty) lists ways to get the protocol
//! wrong, and for each the checker must find the history that breaks the invariant that forbids it.

#![allow(clippy::print_stderr, reason = "the number of states is worth reading in the log")]

mod exactly_once_model {
    mod faulty;
    mod names;
    mod properties;
    mod tests;
    mod worker;
    mod world;
}

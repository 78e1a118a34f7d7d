//! Pipes whose destination changes, breaks or goes away under load: the pipe says what is wrong and what to do, loses and
//! doubles nothing, and goes on by itself when the destination is well again.

#[path = "destination/bed.rs"]
mod bed;
#[path = "destination/bulkhead.rs"]
mod bulkhead;
#[path = "destination/changes.rs"]
mod changes;
#[path = "destination/outage.rs"]
mod outage;

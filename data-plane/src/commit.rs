//! From a block to a checkpoint: prepare, insert, commit.
//!
//! ```text
//!   Built --- prepare ---> Prepared --- send ---> Sent --- commit ---> (gone)
//!          control plane              ClickHouse       control plane
//!                             |
//!                             '-- Refused --- replace ---> smaller ones, Prepared
//!                                           control plane
//! ```
//!
//! [`tracker`] decides the order, without IO. Each arrow is one function that takes the value on its left and alone makes
//! the one on its right, and that retries for as long as it is polled: so nothing can be sent that was not prepared, and
//! nothing committed that was not sent.

mod committer;
mod control;
mod line;
mod patience;
mod refusal;
pub mod tracker;

pub use committer::{
    Body, Built, Claim, Committer, Delivery, Diverged, Known, Prepared, Refused, Sent, Target, Targets,
};
pub use control::{ControlPlane, Error, GrpcControlPlane};
pub use refusal::Cause;

//! A Kinesis emulator: one account's data streams in memory, behind the protocol that AWS clients speak.
//!
//! ```text
//!   aws-sdk-kinesis, boto3 --HTTP--> server -> wire -> (interceptor) -> operations -> account -> stream -> shard -> log
//!   a test in this process --------> Handle ----------------------------------------^
//! ```
//!
//! It is meant to be right where a reader of streams can tell the difference (sequence numbers, lineage, page bounds,
//! trim horizon, iterator life, lag), fast enough never to be what is measured, and steerable: its clock moves when a
//! test says so, an [`Interceptor`] sees every request, a script of [`Rule`]s makes calls and events fail, the service's rates
//! are a switch. It is not durable, and checks
//! signatures and rights only where it is given users and roles ([`Iam`]); then it answers for STS as well.
//!
//! Invariants: a record's number and its visibility come under one lock; no lock is held across an await; what has a
//! date asks [`Clock`] and nothing else.

mod options;
mod clock;
mod server;
mod tls;
mod connection;
mod wire;
mod iam;
mod sigv4;
mod sts;
mod frame;
mod script;
mod intercept;
mod error;
mod operations;
mod validate;
mod cursor;
mod account;
mod stream;
mod consumers;
mod subscription;
mod shard;
mod hash_key;
mod sequence;
mod throttle;
mod log;
pub mod referee;

pub use clock::Clock;
pub use error::{Error, ErrorKind};
pub use hash_key::{HashKeyRange, of_partition_key as hash_key_of};
pub use iam::{Iam, MalformedPolicy, Policy, Role, User};
pub use intercept::{Call, Interceptor};
pub use operations::{Operation, UnknownOperation};
pub use options::{Options, StreamSpec, StreamSpecError};
pub use script::{Fault, Rule, Strikes, documented};
pub use sequence::SequenceNumber;
pub use server::{Emulator, Handle, Placed, Put, ShardInfo, StartError};
pub use tls::TlsError;

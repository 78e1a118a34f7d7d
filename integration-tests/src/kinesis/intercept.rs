//! The one place where a test may step between a request and its execution.
//!
//! The emulator accepts any SigV4 header; whoever wants signatures checked, errors scripted, calls counted or delayed
//! installs an [`Interceptor`]. It is not a place for rules of the service: those live in `operations`.

use bytes::Bytes;
use futures::future::BoxFuture;
use http::HeaderMap;

use super::error::Error;
use super::operations::Operation;

/// One request, as it came off the wire.
#[derive(Clone, Debug)]
pub struct Call {
    /// What is asked for.
    pub operation: Operation,
    /// All request headers, `Authorization` among them.
    pub headers: HeaderMap,
    /// The JSON body.
    pub body: Bytes,
}

/// Decides about each request before it is executed.
pub trait Interceptor: Send + Sync + 'static {
    /// `Ok` lets the request through, after as long as the future takes; `Err` is its answer, and nothing is executed.
    fn before<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Result<(), Error>>;
}

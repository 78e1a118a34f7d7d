//! gRPC as both planes use it: limits of a server, and a channel to one.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Server};

/// Largest message either way. A request that is larger is a mistake or an attack.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Largest message of a session: an `AssignmentSet` names every shard of a worker.
pub const MAX_SESSION_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// Streams per connection. tonic's default of "none" would lift hyper's own bound.
const MAX_CONCURRENT_STREAMS: u32 = 256;
/// HTTP/2 ping interval: finds half-open connections.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a ping may stay unanswered.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A server with Millrace's limits.
pub fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .tcp_nodelay(true)
}

/// A channel that connects when it is first used and again whenever the connection breaks.
///
/// # Errors
/// If `url` is not an `http://` or `https://` URL.
pub fn channel(url: &str) -> Result<Channel, tonic::transport::Error> {
    Ok(Endpoint::from_shared(url.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .connect_lazy())
}

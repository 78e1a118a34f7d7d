//! Free loopback ports.
//!
//! A port is chosen below the range from which the kernel takes ports for outgoing connections, so that a server that
//! is stopped and started again finds its port still free.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng as _;

/// Below Linux' default `ip_local_port_range` (32768 and up) and above the ports of well-known servers.
const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;
/// Enough tries that failing all of them means something other than bad luck.
const TRIES: usize = 1_000;

/// Nobody there is known at once on the loopback interface; a server that is paused answers late, or not at all.
const CONNECT: Duration = Duration::from_millis(200);

/// What this process handed out already: a port is free again for the kernel while its server is stopped.
static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A loopback TCP port on which nothing listens, and which this process will not hand out a second time.
///
/// # Errors
/// When every port of the range that was tried has a server.
pub fn free_port() -> io::Result<u16> {
    let mut taken = TAKEN.lock();
    let taken = taken.get_or_insert_default();
    for _ in 0..TRIES {
        let port = rand::rng().random_range(FIRST..=LAST);
        if !taken.contains(&port) && is_free(port) {
            taken.insert(port);
            return Ok(port);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!("no free port on 127.0.0.1 between {FIRST} and {LAST}"),
    ))
}

/// Whether nothing listens. Found by calling, and not by listening for a moment: a program that another thread starts in that moment
/// holds what was listened on until it is itself, and the server that the port is for would find it in use.
fn is_free(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, CONNECT).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_with_a_server_is_not_free() {
        let server = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = server.local_addr().expect("an address").port();
        assert!(!is_free(port));
    }

    #[test]
    fn never_hands_out_a_port_twice() {
        let ports: Vec<u16> = (0..200).map(|_| free_port().expect("a free port")).collect();
        let distinct: HashSet<u16> = ports.iter().copied().collect();
        assert_eq!(distinct.len(), ports.len());
    }
}

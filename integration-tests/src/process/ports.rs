//! Free loopback ports.
//!
//! A port is chosen below the range from which the kernel takes ports for outgoing connections, so that a server that
//! is stopped and started again finds its port still free.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener};

use parking_lot::Mutex;
use rand::Rng as _;

/// Below Linux' default `ip_local_port_range` (32768 and up) and above the ports of well-known servers.
const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;
/// Enough tries that failing all of them means something other than bad luck.
const TRIES: usize = 1_000;

/// What this process handed out already: a port is free again for the kernel while its server is stopped.
static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A loopback TCP port on which nothing listens, and which this process will not hand out a second time.
///
/// # Errors
/// When no port of the range can be bound.
pub fn free_port() -> io::Result<u16> {
    let mut taken = TAKEN.lock();
    let taken = taken.get_or_insert_default();
    for _ in 0..TRIES {
        let port = rand::rng().random_range(FIRST..=LAST);
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            taken.insert(port);
            return Ok(port);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!("no free port on 127.0.0.1 between {FIRST} and {LAST}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_hands_out_a_port_twice() {
        let ports: Vec<u16> = (0..200).map(|_| free_port().expect("a free port")).collect();
        let distinct: HashSet<u16> = ports.iter().copied().collect();
        assert_eq!(distinct.len(), ports.len());
    }
}

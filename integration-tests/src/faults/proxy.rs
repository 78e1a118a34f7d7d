//! A TCP proxy on a port of the loopback interface.
//!
//! Each direction of a connection is a reader, a short queue and a writer. The reader notes when bytes came; the writer
//! lets them out when the script says so. A script can be changed at any time, for connections to come or for all.
//!
//! Invariants:
//! - bytes are never changed, reordered or dropped, except by the end of their connection;
//! - the port stays the same through refusals;
//! - dropping the proxy ends all its connections.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    http1::Messages,
    script::{Direction, Duplicate, End, Script},
};
use crate::process::free_port;

/// Bytes read at a time.
const CHUNK: usize = 16 * 1024;
/// Chunks between reader and writer: what a network would hold. More would hide back-pressure.
const QUEUE: usize = 64;
/// How often a throttled writer may write.
const THROTTLE_STEP: Duration = Duration::from_millis(20);
/// How long both sides may take to close after a cut in order.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// How long an answer to a request that was sent twice may take.
const DUPLICATE_LIMIT: Duration = Duration::from_secs(30);
/// Pause before the port is taken again while something is in the way.
const BIND_PAUSE: Duration = Duration::from_millis(10);

/// What a proxy has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections taken.
    pub connections: u64,
    /// Connections that are open.
    pub open: u64,
    /// Connections reset by a script, or because the upstream took none.
    pub resets: u64,
    /// Connections cut at a byte, in whichever way.
    pub cuts: u64,
    /// Bytes passed to the upstream.
    pub request_bytes: u64,
    /// Bytes passed to clients.
    pub response_bytes: u64,
    /// Requests sent a second time.
    pub duplicated: u64,
    /// Statuses of the answers to those.
    pub duplicate_answers: Vec<u16>,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    open: AtomicU64,
    resets: AtomicU64,
    cuts: AtomicU64,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    duplicated: AtomicU64,
    duplicate_answers: Mutex<Vec<u16>>,
}

#[derive(Debug)]
struct Shared {
    upstream: Mutex<SocketAddr>,
    counters: Counters,
    /// For connections to come; whether to listen is seen here too.
    script: watch::Sender<Script>,
    /// For the next connections, one each.
    queued: Mutex<VecDeque<Script>>,
    live: Mutex<HashMap<u64, watch::Sender<Script>>>,
    stop: CancellationToken,
}

/// A proxy. Dropping it ends it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

impl Proxy {
    /// A proxy in front of `upstream`, on a free port.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let listener = TcpListener::bind(address).await?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            counters: Counters::default(),
            script: watch::Sender::default(),
            queued: Mutex::default(),
            live: Mutex::default(),
            stop: stop.clone(),
        });
        tokio::spawn(
            stop.clone()
                .run_until_cancelled_owned(listen(Arc::clone(&shared), address, listener)),
        );
        Ok(Self {
            address,
            shared,
            _stop: stop.drop_guard(),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Connections to come go there.
    pub fn set_upstream(&self, upstream: SocketAddr) {
        *self.shared.upstream.lock() = upstream;
    }

    /// The script of connections to come.
    pub fn set(&self, script: Script) {
        self.shared.script.send_replace(script);
    }

    /// The script of all connections, those that are there and those to come.
    pub fn set_all(&self, script: Script) {
        self.shared.queued.lock().clear();
        // Under the lock that a new connection takes to be listed: none gets neither.
        let live = self.shared.live.lock();
        for connection in live.values() {
            connection.send_replace(script.clone());
        }
        self.shared.script.send_replace(script);
    }

    /// The scripts of the next connections, one each; those after them get the script of [`Proxy::set`].
    pub fn queue(&self, scripts: impl IntoIterator<Item = Script>) {
        self.shared.queued.lock().extend(scripts);
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.set_all(Script::pass());
    }

    /// Resets every connection that is there. New ones are not affected.
    pub fn reset_live(&self) {
        for connection in self.shared.live.lock().values() {
            connection.send_replace(Script::reset());
        }
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            connections: read(&counters.connections),
            open: read(&counters.open),
            resets: read(&counters.resets),
            cuts: read(&counters.cuts),
            request_bytes: read(&counters.request_bytes),
            response_bytes: read(&counters.response_bytes),
            duplicated: read(&counters.duplicated),
            duplicate_answers: counters.duplicate_answers.lock().clone(),
        }
    }
}

async fn listen(shared: Arc<Shared>, address: SocketAddr, first: TcpListener) {
    let mut script = shared.script.subscribe();
    let mut listener = Some(first);
    loop {
        if script.borrow_and_update().refuse {
            // Only a closed port refuses.
            drop(listener.take());
            if script.changed().await.is_err() {
                return;
            }
            continue;
        }
        let bound = match listener.take() {
            Some(bound) => bound,
            None => match TcpListener::bind(address).await {
                Ok(bound) => bound,
                Err(_) => {
                    sleep(BIND_PAUSE).await;
                    continue;
                }
            },
        };
        tokio::select! {
            biased;
            _ = script.changed() => {}
            accepted = bound.accept() => match accepted {
                Ok((client, _)) => begin(&shared, client),
                // Out of descriptors, or the client is gone already.
                Err(_) => sleep(BIND_PAUSE).await,
            },
        }
        listener = Some(bound);
    }
}

/// Lists the connection and starts it.
fn begin(shared: &Arc<Shared>, client: TcpStream) {
    let queued = shared.queued.lock().pop_front();
    let mut live = shared.live.lock();
    let number = shared.counters.connections.fetch_add(1, Ordering::Relaxed);
    shared.counters.open.fetch_add(1, Ordering::Relaxed);
    let script = watch::Sender::new(queued.unwrap_or_else(|| shared.script.borrow().clone()));
    live.insert(number, script.clone());
    drop(live);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let stop = shared.stop.clone();
        stop.run_until_cancelled(serve(&shared, client, script)).await;
        shared.live.lock().remove(&number);
        shared.counters.open.fetch_sub(1, Ordering::Relaxed);
    });
}

/// How a connection, or one direction of it, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The sender has nothing more to say.
    Eof,
    /// To be closed in order.
    Fin,
    /// To be reset.
    Reset,
}

async fn serve(shared: &Arc<Shared>, mut client: TcpStream, script: watch::Sender<Script>) {
    let upstream = *shared.upstream.lock();
    let counters = &shared.counters;
    let connected = if script.borrow().reset {
        None
    } else {
        TcpStream::connect(upstream).await.ok()
    };
    let Some(mut server) = connected else {
        counters.resets.fetch_add(1, Ordering::Relaxed);
        return reset(client);
    };
    // Neither matters if the connection is gone already.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let way = |direction| Way {
            direction,
            shared,
            script: script.clone(),
            scripts: script.subscribe(),
            passed: 0,
        };
        let mut requests = pin!(way(Direction::Request).run(from_client, to_server));
        let mut responses = pin!(way(Direction::Response).run(from_server, to_client));
        // One side that has nothing more to say may still be listening.
        tokio::select! {
            ended = &mut requests => if ended == Ended::Eof { responses.await } else { ended },
            ended = &mut responses => if ended == Ended::Eof { requests.await } else { ended },
        }
    };
    match ended {
        Ended::Eof => {}
        Ended::Fin => {
            let closing = async { tokio::join!(close(&mut client), close(&mut server)) };
            // A side that does not close is left.
            let _ = timeout(CLOSE_LIMIT, closing).await;
        }
        Ended::Reset => {
            counters.resets.fetch_add(1, Ordering::Relaxed);
            reset(client);
            reset(server);
        }
    }
}

/// Closes without the end in order, so that the peer gets RST.
fn reset(stream: TcpStream) {
    // An error means that there is no peer any more.
    let _ = stream.set_zero_linger();
    drop(stream);
}

/// Says the end, and reads on until the peer says it too: closing on unread bytes would be a reset.
async fn close(stream: &mut TcpStream) {
    let _ = stream.shutdown().await;
    let mut ignored = vec![0; CHUNK];
    while let Ok(1..) = stream.read(&mut ignored).await {}
}

enum Item {
    Bytes(Instant, Bytes),
    Broken,
}

/// One direction of a connection.
struct Way<'a> {
    direction: Direction,
    shared: &'a Arc<Shared>,
    script: watch::Sender<Script>,
    scripts: watch::Receiver<Script>,
    /// Bytes passed since the script took hold.
    passed: u64,
}

impl Way<'_> {
    async fn run(self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> Ended {
        let (queue, queued) = mpsc::channel(QUEUE);
        let tap = (self.direction == Direction::Request).then(|| Tap {
            shared: Arc::clone(self.shared),
            scripts: self.scripts.clone(),
            messages: Messages::default(),
        });
        let mut writing = pin!(self.write(queued, to));
        let mut reading = pin!(read(from, queue, tap));
        tokio::select! {
            biased;
            ended = &mut writing => return ended,
            () = &mut reading => {}
        }
        writing.await
    }

    async fn write(mut self, mut queued: mpsc::Receiver<Item>, mut to: WriteHalf<'_>) -> Ended {
        loop {
            // Looked at even when nothing comes: a reset waits for no bytes.
            let item = tokio::select! {
                biased;
                ended = self.until_ended() => return ended,
                item = queued.recv() => item,
            };
            let written = match item {
                Some(Item::Bytes(came, bytes)) => self.pass(came, &bytes, &mut to).await,
                Some(Item::Broken) => self.ready().await.and(Err(Ended::Reset)),
                None => match self.ready().await {
                    Ok(_) => {
                        // The other side may be gone.
                        let _ = to.shutdown().await;
                        Err(Ended::Eof)
                    }
                    ended => ended.map(drop),
                },
            };
            if let Err(ended) = written {
                return ended;
            }
        }
    }

    /// Waits for a script that ends the connection.
    async fn until_ended(&mut self) -> Ended {
        loop {
            if self.scripts.borrow().reset {
                return Ended::Reset;
            }
            if self.scripts.changed().await.is_err() {
                return Ended::Reset;
            }
            self.passed = 0;
        }
    }

    /// The script, once it lets bytes pass.
    async fn ready(&mut self) -> Result<Script, Ended> {
        loop {
            let script = self.scripts.borrow().clone();
            if script.reset {
                return Err(Ended::Reset);
            }
            if !script.frozen {
                return Ok(script);
            }
            self.changed().await?;
        }
    }

    async fn changed(&mut self) -> Result<(), Ended> {
        self.scripts.changed().await.map_err(|_| Ended::Reset)?;
        self.passed = 0;
        Ok(())
    }

    async fn pass(&mut self, came: Instant, bytes: &[u8], to: &mut WriteHalf<'_>) -> Result<(), Ended> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let script = self.ready().await?;
            let due = came + script.delay;
            if due > Instant::now() {
                tokio::select! {
                    biased;
                    changed = self.changed() => changed?,
                    () = sleep_until(due) => {}
                }
                continue;
            }
            let step = script.bytes_per_second.map_or(usize::MAX, |rate| {
                let step = u128::from(rate) * THROTTLE_STEP.as_millis() / 1000;
                usize::try_from(step).unwrap_or(usize::MAX).max(1)
            });
            let mut now = rest.len().min(step);
            let cut = script.cut.filter(|cut| cut.direction == self.direction);
            let left = cut.map(|cut| cut.after_bytes.saturating_sub(self.passed));
            if let Some(left) = left {
                now = now.min(usize::try_from(left).unwrap_or(usize::MAX));
            }
            let (piece, after) = rest.split_at(now);
            // A peer that takes nothing does not keep the connection from being reset.
            tokio::select! {
                biased;
                ended = self.until_ended() => return Err(ended),
                written = to.write_all(piece) => written.map_err(|_| Ended::Reset)?,
            }
            self.count(piece.len());
            rest = after;
            match cut {
                Some(cut) if self.passed >= cut.after_bytes => self.cut(cut.end)?,
                _ if script.bytes_per_second.is_some() => sleep(THROTTLE_STEP).await,
                _ => {}
            }
        }
        Ok(())
    }

    fn cut(&self, end: End) -> Result<(), Ended> {
        self.shared.counters.cuts.fetch_add(1, Ordering::Relaxed);
        match end {
            End::Reset => Err(Ended::Reset),
            End::Fin => Err(Ended::Fin),
            // The other direction would go on otherwise: both hang on the same script.
            End::Freeze => {
                self.script.send_replace(Script::freeze());
                Ok(())
            }
        }
    }

    fn count(&mut self, bytes: usize) {
        let bytes = bytes as u64;
        self.passed += bytes;
        let counter = match self.direction {
            Direction::Request => &self.shared.counters.request_bytes,
            Direction::Response => &self.shared.counters.response_bytes,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }
}

async fn read(mut from: ReadHalf<'_>, queue: mpsc::Sender<Item>, mut tap: Option<Tap>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let item = match from.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => {
                if let Some(tap) = &mut tap {
                    tap.look(&buffer[..count]);
                }
                Item::Bytes(Instant::now(), Bytes::copy_from_slice(&buffer[..count]))
            }
            Err(_) => Item::Broken,
        };
        let broken = matches!(item, Item::Broken);
        if queue.send(item).await.is_err() || broken {
            return;
        }
    }
}

/// Finds the requests that are to be sent twice.
struct Tap {
    shared: Arc<Shared>,
    scripts: watch::Receiver<Script>,
    messages: Messages,
}

impl Tap {
    fn look(&mut self, bytes: &[u8]) {
        let complete = self.messages.push(bytes);
        let Some(duplicate) = self.scripts.borrow().duplicate.clone() else {
            return;
        };
        for message in complete {
            let wanted = memchr::memmem::find(message.head(), duplicate.containing.as_bytes()).is_some();
            if wanted {
                let shared = Arc::clone(&self.shared);
                let (again, duplicate) = (message.bytes, duplicate.clone());
                tokio::spawn(async move {
                    let stop = shared.stop.clone();
                    stop.run_until_cancelled(send_again(&shared, &again, &duplicate)).await;
                });
            }
        }
    }
}

/// Sends a request on a connection of its own and notes the answer's status.
async fn send_again(shared: &Shared, request: &[u8], duplicate: &Duplicate) {
    sleep(duplicate.delay).await;
    let upstream = *shared.upstream.lock();
    let exchange = async {
        let mut server = TcpStream::connect(upstream).await?;
        server.write_all(request).await?;
        shared.counters.duplicated.fetch_add(1, Ordering::Relaxed);
        let (mut messages, mut buffer) = (Messages::default(), vec![0; CHUNK]);
        loop {
            let count = server.read(&mut buffer).await?;
            if let Some(answer) = messages.push(&buffer[..count]).into_iter().next() {
                return Ok::<_, io::Error>(answer.status());
            }
            if count == 0 {
                return Ok(None);
            }
        }
    };
    // No answer is not counted as one, which the test sees.
    if let Ok(Ok(Some(status))) = timeout(DUPLICATE_LIMIT, exchange).await {
        shared.counters.duplicate_answers.lock().push(status);
    }
}

#[cfg(test)]
mod tests;

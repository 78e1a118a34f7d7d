//! The emulator as a service: listen, serve each connection, stop; and a handle for tests that share its process.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::account::Account;
use super::clock::Clock;
use super::connection::{Connection, Wire};
use super::error::Error;
use super::iam::Role;
use super::log::Data;
use super::operations::{MAX_BATCH_RECORDS, Operation, new_settings};
use super::options::{Options, StreamSpec};
use super::script::{Rule, Strikes};
use super::sequence::SequenceNumber;
use super::shard::{self, Shard};
use super::stream::{Incoming, Stream};
use super::tls::{Tls, TlsError};
use super::wire;

/// How long a connection may take to finish its request when the emulator stops.
const GRACE: Duration = Duration::from_secs(1);
/// Pause after a failed accept, so that running out of file descriptors is not a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// A Kinesis account behind an HTTP endpoint.
#[derive(Debug)]
pub struct Emulator;

/// Why an emulator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// TLS was asked for and cannot be had.
    #[error("no TLS")]
    Tls(#[from] TlsError),
    /// A stream of the options cannot be created.
    #[error("cannot create stream {name}")]
    Stream {
        /// The stream's name.
        name: String,
        /// What the service would say.
        source: Error,
    },
}

impl Emulator {
    /// Starts an emulator on the current tokio runtime. It stops when its handle is dropped or told to.
    ///
    /// # Errors
    /// If the address is not free or a stream cannot be created.
    pub async fn start(options: Options) -> Result<Handle, StartError> {
        let listen_error = |source| StartError::Listen {
            address: options.listen,
            source,
        };
        let listener = TcpListener::bind(options.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let streams = options.streams.clone();
        let tls = options.tls.then(Tls::new).transpose()?;
        let account = Arc::new(Account::new(options));
        for StreamSpec { name, shards } in streams {
            account
                .create(&name, shards, new_settings())
                .map_err(|source| StartError::Stream { name, source })?;
        }
        let stop = CancellationToken::new();
        let server = tokio::spawn(accept(listener, Arc::clone(&account), tls.clone(), stop.clone()));
        Ok(Handle {
            account,
            address,
            tls,
            stop: stop.drop_guard(),
            server,
        })
    }
}

/// A running emulator: its address, and direct access to its state past the network.
#[derive(Debug)]
pub struct Handle {
    account: Arc<Account>,
    address: SocketAddr,
    tls: Option<Tls>,
    stop: DropGuard,
    server: JoinHandle<()>,
}

/// A record to put past the network.
#[derive(Clone, Copy, Debug)]
pub struct Put<'a> {
    /// The partition key, which decides the shard unless `explicit_hash_key` does.
    pub partition_key: &'a str,
    /// The hash key, where the partition key's is not meant.
    pub explicit_hash_key: Option<u128>,
    /// The bytes.
    pub data: &'a [u8],
}

impl<'a> Put<'a> {
    /// A record in the shard of its partition key.
    #[must_use]
    pub fn new(partition_key: &'a str, data: &'a [u8]) -> Self {
        Self {
            partition_key,
            explicit_hash_key: None,
            data,
        }
    }
}

/// Where a record was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The number of the shard; its name is [`Placed::shard_id`].
    pub shard: u32,
    /// The record's place in the shard.
    pub sequence: SequenceNumber,
}

impl Placed {
    /// The shard's name.
    #[must_use]
    pub fn shard_id(&self) -> String {
        shard::id(self.shard)
    }
}

/// A shard as tests see it past the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardInfo {
    /// `shardId-` and twelve digits.
    pub id: String,
    /// The shards it came from: none, one (split) or two (merge).
    pub parents: Vec<String>,
    /// The hash keys it takes.
    pub range: super::hash_key::HashKeyRange,
    /// Whether it takes records.
    pub is_open: bool,
    /// How many records it holds.
    pub records: u64,
}

impl Handle {
    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// What to give an AWS client as endpoint URL.
    #[must_use]
    pub fn endpoint_url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The certificate that clients must trust, in PEM; `None` without TLS.
    #[must_use]
    pub fn certificate_pem(&self) -> Option<&str> {
        self.tls.as_ref().map(|tls| tls.certificate_pem.as_str())
    }

    /// Makes calls or events fail from now on.
    pub fn script(&self, rule: Rule) -> Strikes {
        self.account.script.add(rule)
    }

    /// Lets nothing fail by script any more.
    pub fn clear_script(&self) {
        self.account.script.clear();
    }

    /// Encrypts a stream with a KMS key: with an [`super::Iam`], who reads it must be allowed `kms:Decrypt` on that key.
    ///
    /// # Errors
    /// If there is no such stream.
    pub fn encrypt(&self, stream: &str, key_arn: &str) -> Result<(), Error> {
        self.stream(stream)?.update(self.account.now_ms(), |settings| {
            settings.key_arn = Some(key_arn.to_owned());
            Ok(())
        })
    }

    /// Adds a role, or puts it in the place of the one of its ARN. Sessions that there are may do what it may do from now on.
    pub fn put_role(&self, role: Role) {
        self.account.sessions.put_role(role);
    }

    /// The ARN of each session of a role that was given, and how long ago by real time.
    #[must_use]
    pub fn sessions(&self) -> Vec<(String, Duration)> {
        self.account.sessions.given()
    }

    /// The names and ARNs of a stream's registered consumers.
    ///
    /// # Errors
    /// If there is no such stream.
    pub fn consumers(&self, stream: &str) -> Result<Vec<(String, String)>, Error> {
        let consumers = self.stream(stream)?.consumers.all(self.account.now_ms());
        Ok(consumers
            .iter()
            .map(|consumer| (consumer.name.clone(), consumer.arn.clone()))
            .collect())
    }

    /// Registers a consumer and returns its ARN.
    ///
    /// # Errors
    /// As RegisterStreamConsumer.
    pub fn register_consumer(&self, stream: &str, name: &str) -> Result<String, Error> {
        let stream = self.stream(stream)?;
        let consumer = stream
            .consumers
            .register(&stream.identity.arn, name, self.account.now_ms())?;
        Ok(consumer.arn.clone())
    }

    /// How many subscriptions to a shard have begun, by all of a stream's consumers that are registered now.
    ///
    /// # Errors
    /// If there is no such stream or shard.
    pub fn subscriptions(&self, stream: &str, shard_id: &str) -> Result<u64, Error> {
        let stream = self.stream(stream)?;
        let shard = stream.index_of(shard_id)?;
        let consumers = stream.consumers.all(self.account.now_ms());
        Ok(consumers.iter().map(|consumer| consumer.subscriptions(shard)).sum())
    }

    /// The clock that everything with a date goes by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.account.options.clock
    }

    /// How often an operation was asked for over the network, refused calls included.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> u64 {
        self.account.calls(operation)
    }

    /// Finishes requests that are being answered, closes all connections and waits until that is done.
    pub async fn stop(self) {
        drop(self.stop);
        // A panic of the accept loop has been reported by the runtime; there is nothing left to stop.
        let _ = self.server.await;
    }

    /// Creates a provisioned stream.
    ///
    /// # Errors
    /// As CreateStream.
    pub fn create_stream(&self, name: &str, shards: u32) -> Result<(), Error> {
        self.account.create(name, shards, new_settings())
    }

    /// Deletes a stream with all its records.
    ///
    /// # Errors
    /// As DeleteStream.
    pub fn delete_stream(&self, name: &str) -> Result<(), Error> {
        self.stream(name)?.begin_delete(self.account.now_ms());
        Ok(())
    }

    /// The ARN of a stream.
    ///
    /// # Errors
    /// If there is no such stream.
    pub fn stream_arn(&self, name: &str) -> Result<String, Error> {
        Ok(self.stream(name)?.identity.arn.clone())
    }

    /// Puts records in order, in any number and of any size, past the network and past all rates. Each record becomes
    /// visible at once, and is never seen before one of the same shard that was put earlier.
    ///
    /// # Errors
    /// If there is no such stream.
    pub fn put_records_direct<'a>(
        &self,
        stream: &str,
        records: impl IntoIterator<Item = Put<'a>>,
    ) -> Result<Vec<Placed>, Error> {
        let stream = self.account.readable_stream(Some(stream), None)?;
        let mut records = records.into_iter().map(|record| Incoming {
            key: record.partition_key,
            explicit_hash_key: record.explicit_hash_key,
            data: Data::Raw(record.data),
        });
        let mut placed = Vec::new();
        loop {
            // In batches, so that a million records do not keep a reshard waiting.
            let before = placed.len();
            stream.put(
                self.account.now_ms(),
                false,
                records.by_ref().take(MAX_BATCH_RECORDS),
                |result| {
                    placed.extend(result.map(|(shard, sequence)| Placed { shard, sequence }));
                },
            );
            if placed.len() == before {
                return Ok(placed);
            }
        }
    }

    /// All shards of a stream that are not forgotten, in the order of their numbers.
    ///
    /// # Errors
    /// If there is no such stream.
    pub fn shards(&self, stream: &str) -> Result<Vec<ShardInfo>, Error> {
        Ok(self
            .stream(stream)?
            .shards(self.account.now_ms())
            .iter()
            .map(|shard| info(shard))
            .collect())
    }

    /// How many records a stream holds.
    ///
    /// # Errors
    /// If there is no such stream.
    pub fn record_count(&self, stream: &str) -> Result<u64, Error> {
        Ok(self.shards(stream)?.iter().map(|shard| shard.records).sum())
    }

    /// Splits a shard into two equal halves.
    ///
    /// # Errors
    /// As SplitShard.
    pub fn split_shard(&self, stream: &str, shard_id: &str) -> Result<(), Error> {
        let stream = self.stream(stream)?;
        stream.split(stream.index_of(shard_id)?, None, self.account.now_ms())
    }

    /// Merges two shards whose hash keys are neighbours.
    ///
    /// # Errors
    /// As MergeShards.
    pub fn merge_shards(&self, stream: &str, shard_id: &str, adjacent_shard_id: &str) -> Result<(), Error> {
        let stream = self.stream(stream)?;
        let (shard, adjacent) = (stream.index_of(shard_id)?, stream.index_of(adjacent_shard_id)?);
        stream.merge(shard, adjacent, self.account.now_ms())
    }

    /// Splits and merges until there are `target` shards of equal width.
    ///
    /// # Errors
    /// As UpdateShardCount.
    pub fn update_shard_count(&self, stream: &str, target: u32) -> Result<(), Error> {
        self.stream(stream)?
            .resize(target, self.account.now_ms(), false)
            .map(drop)
    }

    /// Moves a shard's trim horizon past a record, as if retention had ended for it and all before it.
    ///
    /// # Errors
    /// If there is no such shard.
    pub fn trim_through(&self, stream: &str, last: &Placed) -> Result<(), Error> {
        self.stream(stream)?
            .shard(last.shard, self.account.now_ms())?
            .trim_through(last.sequence);
        Ok(())
    }

    fn stream(&self, name: &str) -> Result<Arc<Stream>, Error> {
        self.account.stream(Some(name), None)
    }
}

fn info(shard: &Shard) -> ShardInfo {
    ShardInfo {
        id: shard.id(),
        parents: [shard.parent, shard.adjacent_parent]
            .into_iter()
            .flatten()
            .map(shard::id)
            .collect(),
        range: shard.range,
        is_open: shard.closed().is_none(),
        records: shard.len(),
    }
}

async fn accept(listener: TcpListener, account: Arc<Account>, tls: Option<Tls>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connect(stream, Arc::clone(&account), tls.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // Free the port before the connections have ended: a test may start the next emulator on it.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Serves one connection until it ends or is reset.
async fn connect(stream: TcpStream, account: Arc<Account>, tls: Option<Tls>, stop: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let connection = Connection::new(stop.clone());
    let wire = Wire::new(stream, Arc::clone(&connection));
    let served = async {
        match tls {
            None => serve(wire, account, &connection, stop).await,
            Some(tls) => {
                let shaken = tokio::select! {
                    () = stop.cancelled() => return,
                    shaken = tls.acceptor.accept(wire) => shaken,
                };
                match shaken {
                    Ok(secured) => serve(secured, account, &connection, stop).await,
                    Err(error) => tracing::debug!(%error, "a TLS handshake failed"),
                }
            }
        }
    };
    tokio::select! {
        () = connection.is_reset() => {}
        () = served => {}
    }
}

/// HTTP/1.1 or HTTP/2, as the client begins.
async fn serve<I>(io: I, account: Arc<Account>, connection: &Arc<Connection>, stop: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let of_request = Arc::clone(connection);
    let service = service_fn(move |request| {
        let (account, connection) = (Arc::clone(&account), Arc::clone(&of_request));
        async move { Ok::<_, std::convert::Infallible>(wire::respond(&account, &connection, request).await) }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let mut http = std::pin::pin!(server.serve_connection(TokioIo::new(io), service));
    let mut leaving = false;
    let ended = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                http.as_mut().graceful_shutdown();
                match tokio::time::timeout(GRACE, http).await {
                    Ok(ended) => break ended,
                    Err(_) => return,
                }
            }
            () = connection.is_leaving(), if !leaving => {
                leaving = true;
                http.as_mut().graceful_shutdown();
            }
            ended = http.as_mut() => break ended,
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

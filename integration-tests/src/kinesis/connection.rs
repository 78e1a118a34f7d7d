//! What can be done to one connection from within a request: end its subscriptions, send GOAWAY, reset it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// The levers of one connection.
#[derive(Debug)]
pub(super) struct Connection {
    stop: CancellationToken,
    leaving: CancellationToken,
    reset: CancellationToken,
}

impl Connection {
    /// `stop` ends all of the emulator.
    pub(super) fn new(stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            stop,
            leaving: CancellationToken::new(),
            reset: CancellationToken::new(),
        })
    }

    /// The emulator stops: what has no end of its own has to end now.
    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    pub(super) fn go_away(&self) {
        self.leaving.cancel();
    }

    pub(super) async fn is_leaving(&self) {
        self.leaving.cancelled().await;
    }

    pub(super) fn reset(&self) {
        self.reset.cancel();
    }

    pub(super) async fn is_reset(&self) {
        self.reset.cancelled().await;
    }
}

/// A socket that is reset when it is dropped, if its connection was.
#[derive(Debug)]
pub(super) struct Wire {
    socket: TcpStream,
    connection: Arc<Connection>,
}

impl Wire {
    pub(super) fn new(socket: TcpStream, connection: Arc<Connection>) -> Self {
        Self { socket, connection }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.connection.reset.is_cancelled()
            && let Err(error) = self.socket.set_zero_linger()
        {
            tracing::warn!(%error, "cannot reset a connection");
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

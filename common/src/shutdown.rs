//! Leaving in order: a token that says "finish now", and a hard deadline behind it, because a graceful server shutdown can
//! hang for as long as a client idles.

use std::{future::Future, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long a process may take to finish after it was asked to.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(25);

/// A token that is cancelled by SIGTERM or SIGINT.
///
/// # Errors
/// If the signal handlers cannot be installed.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => tracing::info!("SIGTERM: finishing"),
            _ = int.recv() => tracing::info!("SIGINT: finishing"),
        }
        cancelled.cancel();
    });
    Ok(token)
}

/// Runs `work` to its end, or until `deadline` has passed after `shutdown` was cancelled; then returns `None`.
pub async fn within<T>(shutdown: &CancellationToken, deadline: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        result = work => Some(result),
        () = async {
            shutdown.cancelled().await;
            tokio::time::sleep(deadline).await;
        } => None,
    }
}

//! A key ring that has got a new first key: what is stored is sealed with it again, beside everything else.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// Time between two attempts.
const AGAIN: Duration = Duration::from_secs(30);

/// Seals with the newest key what is sealed with older ones, until that is done.
pub(super) async fn reseal(store: Store, ending: CancellationToken) {
    loop {
        match store.reseal().await {
            Ok(0) => return,
            Ok(count) => {
                tracing::info!(
                    count,
                    "secrets were sealed again with the newest key: once all control planes have it, older ones can go"
                );
                return;
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "sealing with the newest key goes on later"
                );
            }
        }
        tokio::select! {
            () = ending.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

//! Callers that go away in the middle of a transaction, as a worker does whose deadline has passed.

use std::time::Duration;

use millrace_integration_tests::{
    faults::{Proxy, Script},
    postgres::Postgres,
    process::eventually,
};
use sqlx::{Connection as _, PgConnection};

use crate::bed::{open, pipe};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_leaves_no_transaction_behind() {
    let postgres = Postgres::start().await.unwrap();
    let direct = postgres.database().await.unwrap();
    let proxy = Proxy::start(([127, 0, 0, 1], postgres.port()).into()).await.unwrap();
    let (port, through) = (format!(":{}/", postgres.port()), format!(":{}/", proxy.addr().port()));
    let store = open(&direct.replace(&port, &through)).await;
    let uid = pipe(&store, 4).await.uid;
    // A round trip takes 40 ms, so that callers go away in each of the first statements, BEGIN above all.
    proxy.set_all(Script::pass().delay(Duration::from_millis(20)));
    for round in 0..40 {
        let patience = Duration::from_millis(5 + 7 * (round % 20));
        // Whether it came to an end in time is not what this is about.
        let _ = tokio::time::timeout(patience, store.add_shards(uid, &[], &std::collections::BTreeSet::new())).await;
        let _ = tokio::time::timeout(patience, store.snapshot(uid)).await;
    }
    proxy.heal();
    let left = || async {
        let mut other = PgConnection::connect(&direct)
            .await
            .map_err(|error| error.to_string())?;
        let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
                     AND state <> 'idle'";
        match sqlx::query_scalar::<_, i64>(query).fetch_one(&mut other).await {
            Ok(0) => Ok(()),
            Ok(open) => Err(format!("{open} transactions are open")),
            Err(error) => Err(error.to_string()),
        }
    };
    eventually("nobody's transactions are ended", LIMIT, left)
        .await
        .unwrap();
    assert!(store.snapshot(uid).await.unwrap().is_some());
}

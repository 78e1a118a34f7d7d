//! Batches that were committed so late that their tokens may have left the destination's memory.

use std::time::Duration;

use millrace_common::{
    batch::OpenBatch,
    ids::{Epoch, PipeUid, ShardId, WorkerInstance},
    pipe::Delivery,
    position::Position,
};
use millrace_control_plane::{
    events::{Event, Severity, kind},
    store::{Effective, Store, Window},
};

use super::bed::{Database, after, batch, grant, pipe, shard, slice, worker};

/// A pipe of two shards that a worker holds, into a table with this window.
struct Held<'a> {
    store: &'a Store,
    uid: PipeUid,
    worker: WorkerInstance,
    epochs: Vec<(ShardId, Epoch)>,
}

impl<'a> Held<'a> {
    async fn new(database: &'a Database, window: Option<Window>) -> Self {
        let store = &database.store;
        let uid = pipe(store, 2).await.uid;
        let effective = Effective {
            delivery: Delivery::ExactlyOnce,
            reason: "for the test".to_owned(),
            window,
        };
        assert!(store.set_pipe_effective(uid, &effective).await.unwrap());
        let worker = worker("w");
        let epochs = grant(store, uid, &[shard(0), shard(1)], &worker).await;
        Self {
            store,
            uid,
            worker,
            epochs,
        }
    }

    async fn prepare(&self, of: usize, from: Position, to: u64) -> OpenBatch {
        let batch = batch(vec![slice(&shard(of), from, to)], 10);
        self.store
            .prepare(self.uid, &self.worker, &batch, &self.epochs)
            .await
            .unwrap();
        batch
    }

    async fn commit(&self, batch: &OpenBatch) {
        // Twice: a commit that repeats tells nothing again.
        for _ in 0..2 {
            self.store
                .commit(self.uid, &self.worker, batch.id, &self.epochs)
                .await
                .unwrap();
        }
    }

    async fn flagged(&self) -> Vec<Event> {
        let events = self.store.list_events(self.uid, None, 100).await.unwrap();
        events
            .into_iter()
            .filter(|event| event.kind == kind::REPLAY_LATE)
            .collect()
    }
}

pub(crate) async fn a_commit_after_half_of_the_seconds_is_flagged(database: Database) {
    let window = Window {
        blocks: Some(10_000),
        seconds: Some(3_600),
        partitions: 1,
    };
    let held = Held::new(&database, Some(window)).await;
    let (early, late) = (
        held.prepare(0, Position::TrimHorizon, 5).await,
        held.prepare(1, Position::TrimHorizon, 5).await,
    );
    database.clock.advance(Duration::from_secs(1_800));
    held.commit(&early).await;
    assert_eq!(held.flagged().await, []);
    database.clock.advance(Duration::from_secs(61));
    held.commit(&late).await;
    let flagged = held.flagged().await;
    assert_eq!(flagged.len(), 1);
    let event = &flagged[0];
    assert_eq!((event.severity, event.actor.as_str()), (Severity::Warning, "worker/w"));
    assert_eq!(event.details["batch"], late.id.to_string());
    assert_eq!(event.details["open_seconds"], "1861");
    assert_eq!(event.details["window_seconds"], "3600");
    assert!(event.message.contains("1861 s"), "{}", event.message);
}

pub(crate) async fn a_commit_after_half_of_the_blocks_is_flagged(database: Database) {
    let window = Window {
        blocks: Some(20),
        seconds: None,
        partitions: 3,
    };
    let held = Held::new(&database, Some(window)).await;
    let open = held.prepare(0, Position::TrimHorizon, 5).await;
    // Three of another shard are nine entries, not more than half; a fourth is too many.
    let mut from = Position::TrimHorizon;
    for number in 1..=3 {
        let batch = held.prepare(1, from, number).await;
        held.commit(&batch).await;
        from = after(number);
    }
    held.commit(&open).await;
    assert_eq!(held.flagged().await, []);

    let open = held.prepare(0, after(5), 9).await;
    database.clock.advance(Duration::from_secs(100_000));
    for number in 4..=7 {
        let batch = held.prepare(1, from, number).await;
        held.commit(&batch).await;
        from = after(number);
    }
    held.commit(&open).await;
    let flagged = held.flagged().await;
    assert_eq!(flagged.len(), 1);
    assert_eq!(flagged[0].details["batch"], open.id.to_string());
    assert_eq!(flagged[0].details["batches_committed_meanwhile"], "4");
    assert_eq!(
        (
            flagged[0].details["blocks_written"].as_str(),
            flagged[0].details["window_blocks"].as_str()
        ),
        ("12", "20")
    );
}

pub(crate) async fn without_a_known_window_nothing_is_late(database: Database) {
    let held = Held::new(&database, None).await;
    let batch = held.prepare(0, Position::TrimHorizon, 5).await;
    database.clock.advance(Duration::from_secs(1_000_000));
    held.commit(&batch).await;
    assert_eq!(held.flagged().await, []);
}

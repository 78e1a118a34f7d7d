//! Replacing a batch that ClickHouse refused, through the database.

use millrace_common::batch::{OpenBatch, Terms};
use millrace_common::ids::Epoch;
use millrace_common::position::Position;
use millrace_control_plane::protocol::Refusal;
use millrace_control_plane::store::Error;

use crate::bed::{Database, after, batch, grant, pipe, shard, slice, worker};

fn part(slices: Vec<millrace_common::position::Slice>, records: u64, condemned: Option<&str>) -> OpenBatch {
    let mut part = batch(slices, records);
    part.counts.records = records;
    part.terms = Terms {
        format: 2,
        table: "uuid/17/0123".to_owned(),
        part: true,
        condemned: condemned.map(str::to_owned),
        firsts: [(shard(0), "1".parse().expect("a number"))].into(),
    };
    part
}

pub(crate) async fn parts_stand_where_the_batch_stood(database: Database) {
    let store = &database.store;
    let uid = pipe(store, 2).await.uid;
    let me = worker("w1");
    let held = grant(store, uid, &[shard(0), shard(1)], &me).await;
    let mut old = batch(
        vec![
            slice(&shard(0), Position::TrimHorizon, 10),
            slice(&shard(1), Position::TrimHorizon, 10),
        ],
        20,
    );
    old.counts.records = 20;
    store.prepare(uid, &me, &old, &held).await.unwrap();
    let younger: Vec<_> = [(10, 20), (20, 30)]
        .map(|(from, to)| batch(vec![slice(&shard(1), after(from), to)], 10))
        .into();
    for batch in &younger {
        store.prepare(uid, &me, batch, &held[1..]).await.unwrap();
    }
    let parts = [
        part(
            vec![
                slice(&shard(0), Position::TrimHorizon, 10),
                slice(&shard(1), Position::TrimHorizon, 4),
            ],
            14,
            None,
        ),
        part(vec![slice(&shard(1), after(4), 5)], 1, Some("value > 0 is violated")),
        part(vec![slice(&shard(1), after(5), 10)], 5, None),
    ];
    // A stale owner replaces nothing.
    let stale: Vec<_> = held.iter().map(|(id, _)| (id.clone(), Epoch(0))).collect();
    let refused = store.replace(uid, &me, old.id, &parts, &stale).await;
    assert!(matches!(
        refused,
        Err(Error::Refused {
            reason: Refusal::StaleEpoch { .. }
        })
    ));
    let refused = store.replace(uid, &me, old.id, &parts[..2], &held).await;
    assert!(matches!(
        refused,
        Err(Error::Refused {
            reason: Refusal::NotTiling { .. }
        })
    ));
    for _ in 0..3 {
        store.replace(uid, &me, old.id, &parts, &held).await.unwrap();
    }
    let expected: Vec<OpenBatch> = parts.iter().chain(&younger).cloned().collect();
    assert_eq!(store.open_batches(uid).await.unwrap(), expected);
    let gone = store.commit(uid, &me, old.id, &held).await;
    assert!(matches!(
        gone,
        Err(Error::Refused {
            reason: Refusal::UnknownBatch { .. }
        })
    ));
    for batch in &expected {
        let epochs: Vec<_> = held
            .iter()
            .filter(|(id, _)| batch.slices.iter().any(|slice| slice.shard == *id))
            .cloned()
            .collect();
        store.commit(uid, &me, batch.id, &epochs).await.unwrap();
    }
    let shards = store.shards(uid).await.unwrap();
    let ends: Vec<_> = shards.iter().map(|row| row.checkpoint.clone()).collect();
    assert_eq!(ends, [after(10), after(30)]);
    let committed: Vec<_> = shards.iter().map(|row| row.committed_batches).collect();
    assert_eq!(committed, [1, 5]);
    assert_eq!(store.open_batches(uid).await.unwrap(), []);
}

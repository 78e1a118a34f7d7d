//! The life of a shard as one table: every state it can be in, times everything that can happen to it, each with the
//! state that follows or the refusal. Whoever changes a rule changes a line of the table, and sees which others it moved.

use std::fmt::Write as _;

use millrace_common::{
    batch::{Counts, OpenBatch, Terms},
    ids::{BatchId, Epoch, Incarnation, Revision, ShardId, WorkerInstance},
    position::{Position, Slice},
};

use super::{NewShard, Refusal, ShardPhase, memory::Memory};

const TABLE: &str = "
                      waiting                free                   free, open batch       held                   held, open batch       held by another        finished
grant                 SHARD_NOT_OPEN         held                   held, open batch       held                   held, open batch       held                   SHARD_NOT_OPEN
grant, old epoch      STALE_EPOCH            STALE_EPOCH            STALE_EPOCH            STALE_EPOCH            STALE_EPOCH            STALE_EPOCH            STALE_EPOCH
release               -                      -                      -                      free                   free, open batch       free                   -
release, old epoch    -                      -                      -                      -                      -                      -                      -
prepare               NOT_OWNER              NOT_OWNER              NOT_OWNER              held, open batch       held, open batch       NOT_OWNER              NOT_OWNER
prepare, old epoch    STALE_EPOCH            STALE_EPOCH            STALE_EPOCH            STALE_EPOCH            STALE_EPOCH            STALE_EPOCH            STALE_EPOCH
prepare again         NOT_OWNER              NOT_OWNER              NOT_OWNER              held, open batch       -                      NOT_OWNER              NOT_OWNER
commit                UNKNOWN_BATCH          UNKNOWN_BATCH          NOT_OWNER              UNKNOWN_BATCH          held                   UNKNOWN_BATCH          UNKNOWN_BATCH
commit, old epoch     UNKNOWN_BATCH          UNKNOWN_BATCH          STALE_EPOCH            UNKNOWN_BATCH          STALE_EPOCH            UNKNOWN_BATCH          UNKNOWN_BATCH
commit again          UNKNOWN_BATCH          UNKNOWN_BATCH          NOT_OWNER              UNKNOWN_BATCH          -                      UNKNOWN_BATCH          UNKNOWN_BATCH
finish                SHARD_NOT_OPEN         finished               OPEN_BATCHES           finished               OPEN_BATCHES           finished               -
finish, old epoch     STALE_EPOCH            STALE_EPOCH            STALE_EPOCH            STALE_EPOCH            STALE_EPOCH            STALE_EPOCH            -
parent finished       free                   -                      -                      -                      -                      -                      -
listed again          -                      -                      -                      -                      -                      -                      -
";

/// What can happen.
const EVENTS: [&str; 14] = [
    "grant",
    "grant, old epoch",
    "release",
    "release, old epoch",
    "prepare",
    "prepare, old epoch",
    "prepare again",
    "commit",
    "commit, old epoch",
    "commit again",
    "finish",
    "finish, old epoch",
    "parent finished",
    "listed again",
];

/// Where a shard can be.
const STATES: [&str; 7] = [
    "waiting",
    "free",
    "free, open batch",
    "held",
    "held, open batch",
    "held by another",
    "finished",
];

/// A shard `s` with the parent `p`, brought to a state by what brings it there in production.
struct World {
    memory: Memory,
    me: WorkerInstance,
    open: OpenBatch,
}

fn id(text: &str) -> ShardId {
    text.parse().unwrap()
}

fn worker(name: &str) -> WorkerInstance {
    WorkerInstance {
        worker: name.parse().unwrap(),
        incarnation: Incarnation::new(),
    }
}

fn listing() -> Vec<NewShard> {
    let new = |shard: &str, parents: &[&str]| NewShard {
        id: id(shard),
        parents: parents.iter().map(|parent| id(parent)).collect(),
        start: Position::TrimHorizon,
    };
    vec![new("p", &[]), new("s", &["p"])]
}

/// The records `(from, to]` of the shard `s`; from 0 means from its beginning.
fn batch(from: u64, to: u64) -> OpenBatch {
    let from_exclusive = match from {
        0 => Position::TrimHorizon,
        _ => Position::After(from.to_string().parse().unwrap()),
    };
    OpenBatch {
        id: BatchId::new(),
        revision: Revision(1),
        slices: vec![Slice {
            shard: id("s"),
            from_exclusive,
            to_inclusive: to.to_string().parse().unwrap(),
        }],
        counts: Counts {
            rows: to - from,
            rejected_records: 0,
            records: to - from,
            bytes: 1,
        },
        digest: [0; 16],
        terms: Terms::default(),
    }
}

impl World {
    fn at(state: &str) -> Self {
        let (me, other) = (worker("me"), worker("other"));
        let mut world = World {
            memory: Memory::default(),
            me: me.clone(),
            open: batch(0, 10),
        };
        let memory = &mut world.memory;
        memory.add(&listing());
        if state == "waiting" {
            return world;
        }
        let granted = memory.grant(&vec![(id("p"), Epoch(0))], &other).unwrap();
        memory.finish(&id("p"), granted[0].1, &listing()[1..]).unwrap();
        // Held once before, so that there is an old epoch.
        let mut hold = |by: &WorkerInstance| {
            let epoch = memory.ledger.shards[&id("s")].epoch;
            memory.grant(&vec![(id("s"), epoch)], by).unwrap()
        };
        let before = hold(&me);
        match state {
            "free" => {
                memory.release(&before);
            }
            "held" => {
                hold(&me);
            }
            "held by another" => {
                hold(&other);
            }
            "free, open batch" | "held, open batch" => {
                let held = hold(&me);
                memory.prepare(&me, &world.open, &held).unwrap();
                if state == "free, open batch" {
                    memory.release(&held);
                }
            }
            "finished" => {
                memory.finish(&id("s"), before[0].1, &[]).unwrap();
            }
            _ => unreachable!("{state}"),
        }
        world
    }

    fn state(&self) -> &'static str {
        let row = &self.memory.ledger.shards[&id("s")];
        let open = !self.memory.ledger.open(&id("s")).is_empty();
        match (row.phase, &row.owner, open) {
            (ShardPhase::Waiting, None, false) => "waiting",
            (ShardPhase::Open, None, false) => "free",
            (ShardPhase::Open, None, true) => "free, open batch",
            (ShardPhase::Open, Some(owner), false) if *owner != self.me => "held by another",
            (ShardPhase::Open, Some(_), false) => "held",
            (ShardPhase::Open, Some(_), true) => "held, open batch",
            (ShardPhase::Finished, None, false) => "finished",
            other => unreachable!("{other:?}"),
        }
    }

    /// Has it happen. Whether something changed.
    fn happen(&mut self, event: &str) -> Result<bool, Refusal> {
        let memory = &mut self.memory;
        let current = memory.ledger.shards[&id("s")].epoch;
        let epoch = if event.ends_with("old epoch") {
            Epoch(current.0.wrapping_sub(1))
        } else {
            current
        };
        let claim = vec![(id("s"), epoch)];
        match event.trim_end_matches(", old epoch") {
            "grant" => memory.grant(&claim, &self.me).map(|_| true),
            "release" => Ok(!memory.release(&claim).is_empty()),
            "prepare" => {
                let from = if memory.batches.is_empty() { 0 } else { 10 };
                memory.prepare(&self.me, &batch(from, 20), &claim)
            }
            "prepare again" => memory.prepare(&self.me, &self.open, &claim),
            "commit" => memory.commit(&self.me, self.open.id, &claim),
            "commit again" => {
                memory.commit(&self.me, self.open.id, &claim)?;
                memory.commit(&self.me, self.open.id, &claim)
            }
            "finish" => memory.finish(&id("s"), epoch, &[]),
            "parent finished" => {
                let parent = memory.ledger.shards[&id("p")].epoch;
                memory.finish(&id("p"), parent, &listing()[1..])
            }
            "listed again" => Ok(memory.add(&listing())),
            _ => unreachable!("{event}"),
        }
    }
}

#[test]
fn the_life_of_a_shard_is_as_its_table_says() {
    let mut table = format!("\n{:22}", "");
    STATES.iter().for_each(|state| write!(table, "{state:23}").unwrap());
    for event in EVENTS {
        write!(table, "\n{event:22}").unwrap();
        for state in STATES {
            let mut world = World::at(state);
            assert_eq!(world.state(), state, "how it was brought there");
            let cell = match world.happen(event) {
                Ok(true) => world.state(),
                Ok(false) => "-",
                Err(refusal) => refusal.code(),
            };
            write!(table, "{cell:23}").unwrap();
        }
    }
    let trimmed: Vec<&str> = table.lines().map(str::trim_end).collect();
    let table = trimmed.join("\n") + "\n";
    assert_eq!(TABLE, table, "the table as it is now:\n{table}");
}

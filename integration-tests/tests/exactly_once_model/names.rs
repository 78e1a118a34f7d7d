//! The things of the small world: its names, as the production functions want them, and small numbers for them, which are
//! what a state is made of.

use std::sync::LazyLock;

use millrace_common::{
    batch::{Counts, Digest, OpenBatch, Terms},
    ids::{BatchId, Epoch, Revision, SequenceNumber, ShardId, WorkerInstance},
    position::{Position, Slice},
};
use millrace_control_plane::protocol::{NewShard, memory::Claims};

/// Shards: two that are there from the beginning, and the two that the first of them was split into.
pub(crate) const SHARDS: usize = 4;
/// The shard that was split.
pub(crate) const PARENT: u8 = 0;
/// Most records that a shard can have.
pub(crate) const RECORDS: usize = 3;
/// Workers.
pub(crate) const WORKERS: usize = 2;
/// Processes that a worker can be, one after another.
pub(crate) const INCARNATIONS: u8 = 4;
/// Batches that one process can make.
pub(crate) const BATCHES: u8 = 15;

/// One record: its shard and its number, from 1.
pub(crate) type Row = (u8, u8);
/// Epochs by shard.
pub(crate) type Epochs = Vec<(u8, u64)>;

struct Names {
    shards: Vec<ShardId>,
    numbers: Vec<SequenceNumber>,
    instances: Vec<WorkerInstance>,
    batches: Vec<BatchId>,
}

static NAMES: LazyLock<Names> = LazyLock::new(|| {
    let instance = |n: usize| {
        let (worker, run) = (n / usize::from(INCARNATIONS), n % usize::from(INCARNATIONS));
        WorkerInstance {
            worker: format!("w{worker}").parse().expect("a worker id"),
            incarnation: format!("00000000-0000-4000-8000-00000000000{run}")
                .parse()
                .expect("an incarnation"),
        }
    };
    let instances = WORKERS * usize::from(INCARNATIONS);
    Names {
        shards: ["a", "b", "a0", "a1"]
            .map(|name| name.parse().expect("a shard id"))
            .into(),
        numbers: (0..=RECORDS)
            .map(|n| n.to_string().parse().expect("a number"))
            .collect(),
        instances: (0..instances).map(instance).collect(),
        batches: (0..instances * usize::from(BATCHES) * 2)
            .map(|n| format!("{n:026}").parse().expect("a batch id"))
            .collect(),
    }
});

/// The process that is this run of this worker.
pub(crate) fn process(worker: usize, run: u8) -> u8 {
    u8::try_from(worker).expect("few workers") * INCARNATIONS + run
}

/// The worker that a process is of.
pub(crate) fn worker_of(process: u8) -> usize {
    usize::from(process / INCARNATIONS)
}

pub(crate) fn shard(n: u8) -> &'static ShardId {
    &NAMES.shards[usize::from(n)]
}

pub(crate) fn shard_number(id: &ShardId) -> u8 {
    let at = NAMES.shards.iter().position(|shard| shard == id);
    u8::try_from(at.expect("a shard of this world")).expect("few shards")
}

pub(crate) fn number(n: u8) -> &'static SequenceNumber {
    &NAMES.numbers[usize::from(n)]
}

pub(crate) fn instance(process: u8) -> &'static WorkerInstance {
    &NAMES.instances[usize::from(process)]
}

pub(crate) fn instance_number(instance: &WorkerInstance) -> u8 {
    let at = NAMES.instances.iter().position(|other| other == instance);
    u8::try_from(at.expect("a process of this world")).expect("few processes")
}

pub(crate) fn batch(id: u8) -> BatchId {
    NAMES.batches[usize::from(id)]
}

pub(crate) fn batch_number(id: BatchId) -> u8 {
    let at = NAMES.batches.binary_search(&id);
    u8::try_from(at.expect("a batch of this world")).expect("few batches")
}

pub(crate) fn position(n: u8) -> Position {
    if n == 0 {
        Position::TrimHorizon
    } else {
        Position::After(number(n).clone())
    }
}

/// How many records of a shard a position is behind.
pub(crate) fn place(position: &Position) -> u8 {
    let Some(end) = position.sequence_number() else {
        return 0;
    };
    let at = NAMES.numbers.iter().position(|number| number == end);
    u8::try_from(at.expect("a number of this world")).expect("few records")
}

pub(crate) fn claims(epochs: &Epochs) -> Claims {
    epochs
        .iter()
        .map(|(n, epoch)| (shard(*n).clone(), Epoch(*epoch)))
        .collect()
}

/// The children of [`PARENT`].
pub(crate) fn children() -> Vec<NewShard> {
    [2, 3].map(|n| new_shard(n, &[PARENT])).into()
}

/// All shards of the stream.
pub(crate) fn stream() -> Vec<NewShard> {
    let mut all = vec![new_shard(0, &[]), new_shard(1, &[])];
    all.extend(children());
    all
}

fn new_shard(n: u8, parents: &[u8]) -> NewShard {
    NewShard {
        id: shard(n).clone(),
        parents: parents.iter().map(|n| shard(*n).clone()).collect(),
        start: Position::TrimHorizon,
    }
}

/// A batch of this world: the records `(from, to]` of some shards.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Cut {
    pub(crate) id: u8,
    pub(crate) slices: Vec<(u8, u8, u8)>,
    /// Its record goes to the error table.
    pub(crate) condemned: bool,
}

impl Cut {
    pub(crate) fn rows(&self) -> Vec<Row> {
        let rows = |(shard, from, to): &(u8, u8, u8)| {
            let shard = *shard;
            (*from + 1..=*to).map(move |n| (shard, n))
        };
        self.slices.iter().flat_map(rows).collect()
    }

    pub(crate) fn touches(&self, shard: u8) -> bool {
        self.slices.iter().any(|(other, ..)| *other == shard)
    }

    /// As the control plane takes it.
    pub(crate) fn open_batch(&self) -> OpenBatch {
        let slice = |(n, from, to): &(u8, u8, u8)| Slice {
            shard: shard(*n).clone(),
            from_exclusive: position(*from),
            to_inclusive: number(*to).clone(),
        };
        let rows = self.rows();
        let counts = Counts {
            rows: rows.len() as u64,
            records: rows.len() as u64,
            ..Counts::default()
        };
        OpenBatch {
            id: batch(self.id),
            revision: Revision(1),
            slices: self.slices.iter().map(slice).collect(),
            counts,
            digest: digest(&rows, self.condemned),
            terms: Terms {
                condemned: self.condemned.then(String::new),
                ..Terms::default()
            },
        }
    }

    /// As the control plane gives it back.
    pub(crate) fn of(batch: &OpenBatch) -> Self {
        let slice = |slice: &Slice| {
            (
                shard_number(&slice.shard),
                place(&slice.from_exclusive),
                place(&slice.end()),
            )
        };
        Self {
            id: batch_number(batch.id),
            slices: batch.slices.iter().map(slice).collect(),
            condemned: batch.terms.condemned.is_some(),
        }
    }

    /// What is put in its place when it is refused: halves, or its one record condemned. The ids follow `id`.
    pub(crate) fn parts(&self, id: u8) -> Vec<Self> {
        let rows = self.rows();
        if rows.len() == 1 {
            let slices = self.slices.clone();
            let condemned = true;
            return vec![Self { id, slices, condemned }];
        }
        let part = |id: u8, rows: &[Row]| {
            let mut slices: Vec<(u8, u8, u8)> = Vec::new();
            for (shard, n) in rows {
                match slices.iter_mut().find(|(other, ..)| other == shard) {
                    Some((_, _, to)) => *to = *n,
                    None => slices.push((*shard, *n - 1, *n)),
                }
            }
            let condemned = false;
            Self { id, slices, condemned }
        };
        let (first, second) = rows.split_at(rows.len().div_ceil(2));
        vec![part(id, first), part(id + 1, second)]
    }
}

/// What tells rows from other rows.
pub(crate) fn digest(rows: &[Row], condemned: bool) -> Digest {
    let bit = |(shard, n): &Row| 1_u128 << (usize::from(*shard) * (RECORDS + 1) + usize::from(*n));
    (rows.iter().map(bit).sum::<u128>() + (u128::from(condemned) << 127)).to_be_bytes()
}

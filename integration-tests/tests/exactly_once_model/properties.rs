//! What must hold in every state, what must be reached in the end, and what must be possible at all.

use millrace_control_plane::protocol::invariants::{self, Broken, Copies};
use stateright::Property;

use super::{
    names::{self, PARENT, RECORDS, SHARDS},
    worker::Request,
    world::{State, World},
};

/// Everything lands, whatever happens.
pub(crate) const LANDS: &str = "everything lands";
/// A child's records come after those of its parent.
pub(crate) const ORDER: &str = "children after parents";
/// A batch is replayed by another process.
pub(crate) const REPLAYED: &str = "a batch is sent by two processes";
/// A batch of several shards.
pub(crate) const SHARED: &str = "a batch covers two shards";
/// A batch of a process that lost its leases lands.
pub(crate) const ZOMBIE: &str = "a batch lands though its sender holds nothing any more";
/// Several open batches of a shard.
pub(crate) const PIPELINED: &str = "a shard has two open batches";
/// A batch was replaced.
pub(crate) const REPLACED: &str = "a batch is replaced by its parts";

fn holds(result: &Result<(), Broken>) -> bool {
    result.is_ok()
}

/// All properties.
pub(crate) fn all() -> Vec<Property<World>> {
    vec![
        Property::<World>::always(invariants::TILING, |_, state| {
            holds(&invariants::tiling(&state.control))
        }),
        Property::<World>::always(invariants::WRITE_AHEAD, |_, state| {
            let sent = state.sent.iter().filter_map(|request| match request {
                Request::Insert { batch, .. } => Some(names::batch(*batch)),
                _ => None,
            });
            holds(&invariants::write_ahead(&state.control, sent))
        }),
        Property::<World>::always(invariants::DETERMINISM, |_, state| {
            let attempts = state.sent.iter().filter_map(|request| match request {
                Request::Insert {
                    batch, rows, condemned, ..
                } => Some((names::batch(*batch), names::digest(rows, *condemned))),
                _ => None,
            });
            holds(&invariants::determinism(&state.control, attempts))
        }),
        Property::<World>::always(invariants::AT_MOST_ONCE, |_, state| {
            holds(&invariants::at_most_once(copies(state)))
        }),
        Property::<World>::always(invariants::AT_LEAST_ONCE, |_, state| {
            holds(&invariants::at_least_once(&state.control, copies(state)))
        }),
        Property::<World>::always(invariants::FENCE, |_, state| state.broken != Some(invariants::FENCE)),
        Property::<World>::always(invariants::NO_GAP, |_, state| {
            state.broken != Some(invariants::NO_GAP)
                && holds(&invariants::no_gap(&state.control))
                && holds(&invariants::totals(&state.control))
        }),
        Property::<World>::always(invariants::FRONTIER, |_, state| {
            state.broken != Some(invariants::FRONTIER)
        }),
        Property::<World>::always(ORDER, in_order),
        Property::<World>::eventually(LANDS, World::is_landed),
        Property::<World>::sometimes(REPLAYED, |_, state| {
            let sender = |request: &Request| match request {
                Request::Insert { from, batch, .. } => Some((*batch, *from)),
                _ => None,
            };
            let senders: Vec<_> = state.sent.iter().filter_map(sender).collect();
            let again = |(batch, from): &(u8, u8)| senders.iter().any(|(b, f)| b == batch && f != from);
            senders.iter().any(again)
        }),
        Property::<World>::sometimes(SHARED, |_, state| {
            state.control.contents.values().any(|batch| batch.slices.len() > 1)
        }),
        Property::<World>::sometimes(REPLACED, |_, state| {
            let gone = |id: &_| !state.control.batches.contains_key(id) && !state.control.committed.contains(id);
            state.control.contents.keys().any(gone)
        }),
        Property::<World>::sometimes(PIPELINED, |_, state| {
            state.control.ledger.slices.values().any(|queue| queue.len() > 1)
        }),
        Property::<World>::sometimes(ZOMBIE, |_, state| {
            let senders = state.sent.iter().filter_map(|request| match request {
                Request::Insert { from, token, .. } if state.table.tokens.contains(token) => Some(*from),
                _ => None,
            });
            let mut senders = senders;
            senders.any(|from| {
                let instance = names::instance(from);
                let mut rows = state.control.ledger.shards.values();
                rows.all(|row| row.owner.as_ref() != Some(instance)) && state.control.batches.len() == 1
            })
        }),
    ]
}

fn copies(state: &State) -> impl Iterator<Item = Copies<'static>> {
    let table = &state.table.copies;
    let cells = (0..SHARDS).flat_map(|shard| (1..=RECORDS).map(move |n| (shard, n)));
    let cells: Vec<Copies<'static>> = cells
        .map(|(shard, n)| {
            let small = |n: usize| u8::try_from(n).expect("a small world");
            (
                names::shard(small(shard)),
                names::number(small(n)),
                u64::from(table[shard][n]),
            )
        })
        .collect();
    cells.into_iter()
}

/// A record of a child is there only once all records of its parent are.
fn in_order(world: &World, state: &State) -> bool {
    let parent = usize::from(PARENT);
    let all = (1..=world.records[parent]).all(|n| state.table.copies[parent][usize::from(n)] > 0);
    let any = |shard: usize| state.table.copies[shard].iter().any(|copies| *copies > 0);
    all || !(any(2) || any(3))
}

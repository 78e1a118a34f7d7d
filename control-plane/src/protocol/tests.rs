//! Each refusal, and each thing that is allowed.

use millrace_common::{
    batch::Terms,
    ids::{Incarnation, Revision},
};

use super::*;

fn id(text: &str) -> ShardId {
    text.parse().unwrap()
}

fn after(number: u64) -> Position {
    Position::After(number.to_string().parse().unwrap())
}

fn slice(shard: &str, from: Position, to: u64) -> Slice {
    Slice {
        shard: id(shard),
        from_exclusive: from,
        to_inclusive: to.to_string().parse().unwrap(),
    }
}

fn worker(name: &str) -> WorkerInstance {
    WorkerInstance {
        worker: name.parse().unwrap(),
        incarnation: Incarnation::new(),
    }
}

fn batch(slices: Vec<Slice>) -> OpenBatch {
    let counts = Counts {
        rows: 1,
        rejected_records: 0,
        records: 1,
        bytes: 1,
    };
    OpenBatch {
        id: BatchId::new(),
        revision: Revision(1),
        slices,
        counts,
        digest: [0; 16],
        terms: Terms::default(),
    }
}

fn new(shard: &str, parents: &[&str]) -> NewShard {
    NewShard {
        id: id(shard),
        parents: parents.iter().map(|parent| id(parent)).collect(),
        start: Position::TrimHorizon,
    }
}

/// Shards `a` and `b` at sequence number 10 after one slice, held by `owner` under epoch 5.
fn held(owner: &WorkerInstance) -> Ledger {
    let row = Shard {
        parents: Vec::new(),
        phase: ShardPhase::Open,
        epoch: Epoch(5),
        owner: Some(owner.clone()),
        checkpoint: after(10),
        committed: 1,
    };
    Ledger {
        shards: BTreeMap::from([(id("a"), row.clone()), (id("b"), row)]),
        slices: BTreeMap::new(),
    }
}

fn claims(epoch: u64) -> Vec<(ShardId, Epoch)> {
    vec![(id("a"), Epoch(epoch)), (id("b"), Epoch(epoch))]
}

fn store(ledger: &mut Ledger, batch: &OpenBatch, ordinals: &[u64]) {
    for (slice, ordinal) in batch.slices.iter().zip(ordinals) {
        let open = OpenSlice {
            ordinal: *ordinal,
            batch: batch.id,
            slice: slice.clone(),
        };
        ledger.slices.entry(slice.shard.clone()).or_default().push(open);
    }
}

#[test]
fn prepare_appends_at_the_frontier_only() {
    let me = worker("w1");
    let mut ledger = held(&me);
    let first = batch(vec![slice("a", after(10), 20), slice("b", after(10), 15)]);
    let stored = prepare(&ledger, None, false, &me, &first, &claims(5)).unwrap();
    assert_eq!(stored, Prepare::Store { ordinals: vec![2, 2] });
    store(&mut ledger, &first, &[2, 2]);

    let second = batch(vec![slice("a", after(20), 30)]);
    assert_eq!(
        prepare(&ledger, None, false, &me, &second, &claims(5)),
        Ok(Prepare::Store { ordinals: vec![3] })
    );

    for (from, to) in [(after(10), 30), (after(21), 30), (Position::TrimHorizon, 30)] {
        let wrong = batch(vec![slice("a", from.clone(), to)]);
        let refusal = prepare(&ledger, None, false, &me, &wrong, &claims(5)).unwrap_err();
        assert_eq!(
            refusal,
            Refusal::NotAtFrontier {
                shard: id("a"),
                expected: after(20),
                found: from
            }
        );
        let text = refusal.to_string();
        assert!(
            text.contains('a') && text.contains("20") && text.contains("starts"),
            "{text}"
        );
    }
}

#[test]
fn prepare_asks_for_epoch_and_owner_before_anything_else() {
    let me = worker("w1");
    let ledger = held(&me);
    let ok = batch(vec![slice("a", after(10), 20)]);
    let stale = prepare(&ledger, None, false, &me, &ok, &claims(4));
    assert_eq!(
        stale,
        Err(Refusal::StaleEpoch {
            shard: id("a"),
            expected: Epoch(5),
            found: Epoch(4)
        })
    );
    let none = prepare(&ledger, None, false, &me, &ok, &[]);
    assert_eq!(none, Err(Refusal::NoEpoch { shard: id("a") }));
    // The same worker after a restart is another one.
    let restarted = worker("w1");
    let other = prepare(&ledger, None, false, &restarted, &ok, &claims(5));
    assert!(matches!(other, Err(Refusal::NotOwner { .. })), "{other:?}");
    // A repeat under a lost epoch is refused too: whoever lost a shard must not go on.
    assert!(prepare(&ledger, Some(&ok), false, &me, &ok, &claims(4)).is_err());
    let mut released = ledger.clone();
    released.shards.get_mut(&id("a")).unwrap().owner = None;
    let text = prepare(&released, None, false, &me, &ok, &claims(5))
        .unwrap_err()
        .to_string();
    assert!(text.contains("held by nobody"), "{text}");
    let mut finished = ledger;
    finished.shards.get_mut(&id("a")).unwrap().phase = ShardPhase::Finished;
    let refusal = prepare(&finished, None, false, &me, &ok, &claims(5));
    assert_eq!(
        refusal,
        Err(Refusal::NotOpen {
            shard: id("a"),
            found: ShardPhase::Finished
        })
    );
}

#[test]
fn prepare_repeats_only_the_same() {
    let me = worker("w1");
    let mut ledger = held(&me);
    let first = batch(vec![slice("a", after(10), 20), slice("b", after(10), 15)]);
    store(&mut ledger, &first, &[2, 2]);
    assert_eq!(
        prepare(&ledger, Some(&first), false, &me, &first, &claims(5)),
        Ok(Prepare::Already)
    );
    let mut other_digest = first.clone();
    other_digest.digest[3] = 1;
    let mut other_order = first.clone();
    other_order.slices.reverse();
    let mut other_revision = first.clone();
    other_revision.revision = Revision(2);
    for other in [other_digest, other_order, other_revision] {
        let refusal = prepare(&ledger, Some(&first), false, &me, &other, &claims(5));
        assert_eq!(refusal, Err(Refusal::OtherContent { batch: first.id }));
    }
    let next = OpenBatch {
        slices: vec![slice("a", after(10), 20)],
        ..first
    };
    let refusal = prepare(&held(&me), None, true, &me, &next, &claims(5));
    assert_eq!(refusal, Err(Refusal::AlreadyCommitted { batch: next.id }));
}

#[test]
fn prepare_refuses_shapes_that_cannot_be() {
    let me = worker("w1");
    let ledger = held(&me);
    let refuse = |batch: &OpenBatch| prepare(&ledger, None, false, &me, batch, &claims(5)).unwrap_err();
    assert_eq!(refuse(&batch(vec![])), Refusal::NoSlices);
    let twice = batch(vec![slice("a", after(10), 20), slice("a", after(20), 30)]);
    assert_eq!(refuse(&twice), Refusal::RepeatedShard { shard: id("a") });
    for to in [10, 9, 2] {
        let backward = batch(vec![slice("a", after(10), to)]);
        assert!(matches!(refuse(&backward), Refusal::Backward { .. }));
    }
    let unknown = batch(vec![slice("c", after(10), 20)]);
    assert_eq!(refuse(&unknown), Refusal::NoEpoch { shard: id("c") });
    let mut lie = batch(vec![slice("a", after(10), 20)]);
    lie.counts.bytes = u64::MAX;
    assert!(matches!(refuse(&lie), Refusal::TooLarge { what: "bytes", .. }));
    assert!(check_size(MAX_SLICES).is_ok() && check_size(MAX_SLICES + 1).is_err());
}

#[test]
fn open_batches_are_bounded() {
    let me = worker("w1");
    let mut ledger = held(&me);
    for number in 0..MAX_OPEN_BATCHES as u64 {
        let next = batch(vec![slice("a", after(10 + number), 11 + number)]);
        let Ok(Prepare::Store { ordinals }) = prepare(&ledger, None, false, &me, &next, &claims(5)) else {
            panic!("batch {number} was refused")
        };
        store(&mut ledger, &next, &ordinals);
    }
    let one_more = batch(vec![slice("a", ledger.frontier(&id("a")).unwrap(), 1000)]);
    let refusal = prepare(&ledger, None, false, &me, &one_more, &claims(5)).unwrap_err();
    assert!(matches!(refusal, Refusal::TooManyOpen { .. }), "{refusal}");
}

#[test]
fn commit_takes_the_oldest_of_every_shard() {
    let me = worker("w1");
    let mut ledger = held(&me);
    let first = batch(vec![slice("b", after(10), 20)]);
    let second = batch(vec![slice("b", after(20), 30), slice("a", after(10), 15)]);
    store(&mut ledger, &first, &[2]);
    store(&mut ledger, &second, &[3, 2]);
    let early = commit(&ledger, Some(&second), false, &me, second.id, &claims(5));
    let expected = Refusal::NotOldest {
        shard: id("b"),
        expected: Some(first.id),
        found: second.id,
    };
    assert_eq!(early, Err(expected));
    let advanced = commit(&ledger, Some(&first), false, &me, first.id, &claims(5)).unwrap();
    let advance = Advance {
        shard: id("b"),
        checkpoint: after(20),
        ordinal: 2,
    };
    assert_eq!(advanced, Commit::Advance(vec![advance]));

    ledger.slices.get_mut(&id("b")).unwrap().remove(0);
    let advanced = commit(&ledger, Some(&second), false, &me, second.id, &claims(5)).unwrap();
    let Commit::Advance(advances) = advanced else {
        panic!("not committed")
    };
    assert_eq!(
        advances
            .iter()
            .map(|advance| advance.shard.as_str())
            .collect::<Vec<_>>(),
        ["a", "b"]
    );

    // The epoch of every shard of the batch is asked for.
    let partly = commit(&ledger, Some(&second), false, &me, second.id, &claims(5)[..1]);
    assert_eq!(partly, Err(Refusal::NoEpoch { shard: id("b") }));
    let stale = commit(&ledger, Some(&second), false, &me, second.id, &claims(6));
    assert_eq!(
        stale,
        Err(Refusal::StaleEpoch {
            shard: id("b"),
            expected: Epoch(5),
            found: Epoch(6)
        })
    );
    assert!(matches!(
        commit(&ledger, Some(&second), false, &worker("w2"), second.id, &claims(5)),
        Err(Refusal::NotOwner { .. })
    ));
}

#[test]
fn commit_repeats_and_refuses_strangers() {
    let me = worker("w1");
    let ledger = held(&me);
    let id = BatchId::new();
    assert_eq!(commit(&ledger, None, true, &me, id, &claims(5)), Ok(Commit::Already));
    assert_eq!(
        commit(&ledger, None, false, &me, id, &claims(5)),
        Err(Refusal::UnknownBatch { batch: id })
    );
}

#[test]
fn unprepared_commits_need_an_empty_queue() {
    let me = worker("w1");
    let mut ledger = held(&me);
    let slices = [slice("a", after(10), 20)];
    let counts = Counts::default();
    let advanced = commit_unprepared(&ledger, false, &me, &slices, counts, &claims(5)).unwrap();
    let advance = Advance {
        shard: id("a"),
        checkpoint: after(20),
        ordinal: 2,
    };
    assert_eq!(advanced, Commit::Advance(vec![advance]));
    assert_eq!(
        commit_unprepared(&ledger, true, &me, &slices, counts, &claims(4)),
        Ok(Commit::Already)
    );
    assert!(commit_unprepared(&ledger, false, &me, &slices, counts, &claims(4)).is_err());
    let gap = [slice("a", after(11), 20)];
    assert!(commit_unprepared(&ledger, false, &me, &gap, counts, &claims(5)).is_err());
    store(&mut ledger, &batch(vec![slice("a", after(10), 20)]), &[2]);
    let refusal = commit_unprepared(&ledger, false, &me, &slices, counts, &claims(5));
    assert_eq!(
        refusal,
        Err(Refusal::OpenBatches {
            shard: id("a"),
            found: 1
        })
    );
}

#[test]
fn a_grant_is_all_or_none_and_never_tears_a_batch() {
    let (old, new) = (worker("w1"), worker("w2"));
    let mut ledger = held(&old);
    let both = batch(vec![slice("a", after(10), 20), slice("b", after(10), 15)]);
    store(&mut ledger, &both, &[2, 2]);
    let torn = grant(&ledger, &claims(5)[..1], &new);
    assert_eq!(
        torn,
        Err(Refusal::TornBatch {
            shard: id("a"),
            batch: both.id,
            other: id("b")
        })
    );
    let nobody = |ledger: &Ledger| {
        let mut ledger = ledger.clone();
        ledger.shards.get_mut(&id("b")).unwrap().owner = None;
        ledger
    };
    assert!(grant(&nobody(&ledger), &claims(5)[..1], &new).is_err());
    assert_eq!(grant(&ledger, &claims(5), &new), Ok(claims(6)));
    // The rest of the batch is with that worker already.
    assert_eq!(grant(&ledger, &claims(5)[..1], &old), Ok(claims(6)[..1].to_vec()));

    let late = grant(&ledger, &[(id("a"), Epoch(5)), (id("b"), Epoch(4))], &new);
    assert_eq!(
        late,
        Err(Refusal::StaleEpoch {
            shard: id("b"),
            expected: Epoch(5),
            found: Epoch(4)
        })
    );
    let twice = grant(&ledger, &[(id("a"), Epoch(5)), (id("a"), Epoch(5))], &new);
    assert_eq!(twice, Err(Refusal::RepeatedShard { shard: id("a") }));
    assert_eq!(
        grant(&ledger, &[(id("z"), Epoch(0))], &new),
        Err(Refusal::UnknownShard { shard: id("z") })
    );
    assert_eq!(grant(&ledger, &[], &new), Ok(vec![]));
}

#[test]
fn a_release_that_comes_late_changes_nothing() {
    let ledger = held(&worker("w1"));
    assert_eq!(release(&ledger, &claims(5)), [id("a"), id("b")]);
    assert_eq!(release(&ledger, &claims(4)), []);
    assert_eq!(
        release(
            &ledger,
            &[(id("z"), Epoch(5)), (id("a"), Epoch(5)), (id("a"), Epoch(5))]
        ),
        [id("a")]
    );
}

fn rows(new: Vec<(NewShard, ShardPhase)>) -> BTreeMap<ShardId, Shard> {
    let row = |(new, phase): (NewShard, ShardPhase)| {
        let row = Shard {
            parents: new.parents,
            phase,
            epoch: Epoch(1),
            owner: Some(worker("w1")),
            checkpoint: new.start,
            committed: 0,
        };
        (new.id, row)
    };
    new.into_iter().map(row).collect()
}

fn all(known: &BTreeMap<ShardId, Shard>) -> BTreeSet<ShardId> {
    known.keys().cloned().collect()
}

fn none() -> BTreeSet<ShardId> {
    BTreeSet::new()
}

#[test]
fn a_listing_forgets_parents_that_are_past() {
    let listing = [new("a", &["gone"]), new("b", &["gone", "a"]), new("c", &["b", "a"])];
    let added = add(&BTreeMap::new(), &listing, &none());
    let phases: Vec<_> = added
        .new
        .iter()
        .map(|(shard, phase)| (shard.id.as_str(), *phase))
        .collect();
    assert_eq!(
        phases,
        [
            ("a", ShardPhase::Open),
            ("b", ShardPhase::Waiting),
            ("c", ShardPhase::Waiting)
        ]
    );
    assert_eq!(added.new[1].0.parents, [id("a")]);
    let known = rows(added.new);
    assert_eq!(add(&known, &listing, &all(&known)), Added::default());
    assert_eq!(add(&known, &[], &all(&known)), Added::default());
}

#[test]
fn a_merge_waits_for_both_parents() {
    let known = rows(add(&BTreeMap::new(), &[new("a", &[]), new("b", &[])], &none()).new);
    let mut ledger = Ledger {
        shards: known,
        slices: BTreeMap::new(),
    };
    let merged = new("m", &["a", "b"]);
    let first = finish(&ledger, &id("a"), Epoch(1), std::slice::from_ref(&merged)).unwrap();
    assert!(first.finish && first.opened.is_empty());
    assert_eq!(first.new, [(merged.clone(), ShardPhase::Waiting)]);
    ledger.shards.get_mut(&id("a")).unwrap().phase = ShardPhase::Finished;
    ledger.shards.extend(rows(first.new));
    let second = finish(&ledger, &id("b"), Epoch(1), &[merged]).unwrap();
    assert!(second.finish && second.new.is_empty());
    assert_eq!(second.opened, [id("m")]);
}

#[test]
fn a_parent_that_no_listing_showed_yet_holds_up_its_child() {
    let mut known = rows(add(&BTreeMap::new(), &[new("a", &[])], &none()).new);
    let ledger = Ledger {
        shards: known.clone(),
        slices: BTreeMap::new(),
    };
    let end = finish(&ledger, &id("a"), Epoch(1), &[new("m", &["a", "unseen"])]).unwrap();
    assert_eq!(end.new, [(new("m", &["a", "unseen"]), ShardPhase::Waiting)]);
    known.get_mut(&id("a")).unwrap().phase = ShardPhase::Finished;
    known.extend(rows(end.new));
    // The next listing either shows it …
    let shown = add(&known, &[new("unseen", &[]), new("m", &["a", "unseen"])], &all(&known));
    assert_eq!(shown.new.len(), 1);
    assert!(shown.opened.is_empty() && shown.reparented.is_empty());
    // … or, if it was begun before the child was stored, tells nothing …
    assert_eq!(add(&known, &[], &BTreeSet::from([id("a")])), Added::default());
    // … or shows that it is past.
    let past = add(&known, &[new("m", &["a", "unseen"])], &all(&known));
    assert_eq!(past.reparented, [(id("m"), vec![id("a")])]);
    assert_eq!(past.opened, [id("m")]);
}

#[test]
fn only_a_shard_without_open_batches_finishes() {
    let me = worker("w1");
    let mut ledger = held(&me);
    assert!(finish(&ledger, &id("a"), Epoch(5), &[]).unwrap().finish);
    let stale = finish(&ledger, &id("a"), Epoch(4), &[]);
    assert_eq!(
        stale,
        Err(Refusal::StaleEpoch {
            shard: id("a"),
            expected: Epoch(5),
            found: Epoch(4)
        })
    );
    let stranger = finish(&ledger, &id("a"), Epoch(5), &[new("x", &["b"])]);
    assert_eq!(
        stranger,
        Err(Refusal::NotAChild {
            shard: id("a"),
            child: id("x")
        })
    );
    store(&mut ledger, &batch(vec![slice("a", after(10), 20)]), &[2]);
    let open = finish(&ledger, &id("a"), Epoch(5), &[]);
    assert_eq!(
        open,
        Err(Refusal::OpenBatches {
            shard: id("a"),
            found: 1
        })
    );
    ledger.slices.clear();
    ledger.shards.get_mut(&id("a")).unwrap().phase = ShardPhase::Finished;
    let again = finish(&ledger, &id("a"), Epoch(1), &[new("x", &["a"])]).unwrap();
    assert!(!again.finish);
    assert_eq!(again.new, [(new("x", &["a"]), ShardPhase::Open)]);
}

#[test]
fn oldest_first_finds_circles() {
    let (one, two) = (BatchId::new(), BatchId::new());
    let open = |batch, ordinal| OpenSlice {
        ordinal,
        batch,
        slice: slice("a", after(10), 20),
    };
    let fine = BTreeMap::from([
        (id("a"), vec![open(one, 1), open(two, 2)]),
        (id("b"), vec![open(one, 7)]),
    ]);
    assert_eq!(oldest_first(&fine), Ok(vec![one, two]));
    let circle = BTreeMap::from([
        (id("a"), vec![open(one, 1), open(two, 2)]),
        (id("b"), vec![open(two, 1), open(one, 2)]),
    ]);
    assert!(oldest_first(&circle).is_err());
}

#[test]
fn codes_are_unique_and_well_formed() {
    let refusals = [
        Refusal::NoSlices,
        Refusal::UnknownShard { shard: id("a") },
        Refusal::NoEpoch { shard: id("a") },
        Refusal::NotOpen {
            shard: id("a"),
            found: ShardPhase::Waiting,
        },
    ];
    let codes: BTreeSet<_> = refusals.iter().map(Refusal::code).collect();
    assert_eq!(codes.len(), refusals.len());
    assert!(
        codes
            .iter()
            .all(|code| code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
    );
}

/// `old` replaced by `parts`, by a holder under epoch 5.
fn replaced(old: &OpenBatch, parts: &[OpenBatch], claims: &[(ShardId, Epoch)]) -> Result<Replace, Refusal> {
    let owner = worker("w");
    let mut ledger = held(&owner);
    store(&mut ledger, old, &[2, 2]);
    let younger = batch(vec![slice("b", after(20), 30)]);
    store(&mut ledger, &younger, &[3]);
    let open = BTreeMap::from([(old.id, old.clone()), (younger.id, younger)]);
    let committed = BTreeSet::new();
    let known = Known {
        old: open.get(&old.id),
        open: &open,
        committed: &committed,
    };
    replace(&ledger, known, &owner, old.id, parts, claims)
}

fn with_records(slices: Vec<Slice>, records: u64) -> OpenBatch {
    let mut batch = batch(slices);
    batch.counts.records = records;
    batch
}

#[test]
fn parts_take_the_place_of_a_batch_and_younger_ones_move() {
    let old = with_records(vec![slice("a", after(10), 20), slice("b", after(10), 20)], 4);
    let parts = [
        with_records(vec![slice("a", after(10), 20), slice("b", after(10), 15)], 3),
        with_records(vec![slice("b", after(15), 20)], 1),
    ];
    let expected = Replaced {
        ordinals: vec![vec![2, 2], vec![3]],
        moved: vec![(id("b"), 3, 4)],
    };
    assert_eq!(replaced(&old, &parts, &claims(5)), Ok(Replace::Store(expected)));
    let same = [with_records(old.slices.clone(), 4)];
    let expected = Replaced {
        ordinals: vec![vec![2, 2]],
        moved: Vec::new(),
    };
    assert_eq!(replaced(&old, &same, &claims(5)), Ok(Replace::Store(expected)));
}

#[test]
fn parts_that_do_not_tile_are_refused() {
    let old = with_records(vec![slice("a", after(10), 20), slice("b", after(10), 20)], 4);
    let a = || with_records(vec![slice("a", after(10), 20)], 2);
    let not_tiling = |shard| {
        Err(Refusal::NotTiling {
            batch: old.id,
            shard: id(shard),
        })
    };
    for (parts, shard) in [
        (vec![a()], "b"),
        (vec![a(), with_records(vec![slice("b", after(10), 19)], 2)], "b"),
        (vec![a(), with_records(vec![slice("b", after(11), 20)], 2)], "b"),
        (vec![a(), with_records(vec![slice("b", after(10), 30)], 2)], "b"),
        (
            vec![
                with_records(vec![slice("a", after(15), 20)], 1),
                with_records(vec![slice("a", after(10), 15), slice("b", after(10), 20)], 3),
            ],
            "a",
        ),
    ] {
        assert_eq!(replaced(&old, &parts, &claims(5)), not_tiling(shard), "{parts:?}");
    }
    let b = with_records(vec![slice("b", after(10), 20)], 3);
    let expected = Err(Refusal::OtherRecords {
        batch: old.id,
        expected: 4,
        found: 5,
    });
    assert_eq!(replaced(&old, &[a(), b], &claims(5)), expected);
    let expected = Err(Refusal::PartCount {
        batch: old.id,
        limit: MAX_PARTS,
        found: 0,
    });
    assert_eq!(replaced(&old, &[], &claims(5)), expected);
    let b = with_records(vec![slice("b", after(10), 20)], 2);
    assert!(matches!(
        replaced(&old, &[a(), b.clone()], &claims(4)),
        Err(Refusal::StaleEpoch { .. })
    ));
    let twice = OpenBatch { id: old.id, ..b };
    assert_eq!(
        replaced(&old, &[a(), twice], &claims(5)),
        Err(Refusal::OtherContent { batch: old.id })
    );
}

#[test]
fn a_replacement_that_repeats_is_known() {
    let owner = worker("w");
    let mut ledger = held(&owner);
    let part = batch(vec![slice("a", after(10), 20)]);
    store(&mut ledger, &part, &[2]);
    let open = BTreeMap::from([(part.id, part.clone())]);
    let committed = BTreeSet::new();
    let known = Known {
        old: None,
        open: &open,
        committed: &committed,
    };
    let old = BatchId::new();
    let again = |parts: &[OpenBatch]| replace(&ledger, known, &owner, old, parts, &claims(5));
    assert_eq!(again(std::slice::from_ref(&part)), Ok(Replace::Already));
    let mut other = part;
    other.digest[0] ^= 1;
    assert_eq!(again(&[other]), Err(Refusal::UnknownBatch { batch: old }));
}

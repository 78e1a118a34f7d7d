//! The leader's row and the fence around what a leader writes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use millrace_common::ids::PipeUid;
use millrace_common::pipe::Delivery;
use millrace_common::position::Position;
use millrace_control_plane::leader::{Candidate, Step, Term};
use millrace_control_plane::store::{Effective, Error, NewShard, Store, StoredFault};
use millrace_integration_tests::process::eventually;
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::task::JoinSet;

use crate::bed::{Database, batch, grant, new_pipe, pipe, shard, slice, worker};

/// Long enough for any pause of a busy machine.
const LONG: Duration = Duration::from_secs(3_600);
/// Over at once.
const SHORT: Duration = Duration::from_millis(1);
const LIMIT: Duration = Duration::from_secs(30);

/// Takes the place as soon as it can be had.
async fn take(store: &Store, me: &Candidate, ttl: Duration) -> Term {
    let taken = eventually("the place is free", LIMIT, || async {
        match store.campaign(me, None, ttl).await.unwrap().step {
            Step::Acquire(term) => Some(term),
            _ => None,
        }
    });
    taken.await.unwrap()
}

fn fault(reason: &str) -> StoredFault {
    StoredFault {
        reason: reason.to_owned(),
        message: String::new(),
        permanent: false,
    }
}

pub(crate) async fn one_leads_the_others_follow(database: Database) {
    let stores = database.control_planes(2).await;
    let (a, b) = (Candidate::new("http://a:1"), Candidate::new("http://b:1"));
    let first = stores[0].campaign(&a, None, LONG).await.unwrap();
    assert_eq!((first.step, first.row.is_held()), (Step::Acquire(Term(1)), false));
    if stores[0].is_exclusive() {
        // Whoever was there before is dead: nobody waits for it.
        assert_eq!(take(&stores[1], &b, LONG).await, Term(2));
        let lost = stores[0].campaign(&a, Some(Term(1)), LONG).await.unwrap();
        assert_eq!(lost.step, Step::Lost);
        return;
    }
    let follows = stores[1].campaign(&b, None, LONG).await.unwrap();
    assert_eq!(follows.step, Step::Follow);
    assert_eq!(
        (follows.row.term, follows.row.address.as_str()),
        (Term(1), "http://a:1")
    );
    assert!(
        follows.row.left > LONG / 2 && follows.row.left <= LONG,
        "{:?}",
        follows.row.left
    );
    let renewed = stores[0].campaign(&a, Some(Term(1)), LONG).await.unwrap();
    assert_eq!(renewed.step, Step::Renew(Term(1)));

    // Given up in order: the next one does not wait.
    stores[0].resign(&a, Term(1)).await.unwrap();
    let next = stores[1].campaign(&b, None, LONG).await.unwrap();
    assert_eq!((next.step, next.row.is_held()), (Step::Acquire(Term(2)), false));
    // One that has been followed cannot give away what is another's.
    stores[0].resign(&a, Term(1)).await.unwrap();
    let lost = stores[0].campaign(&a, Some(Term(1)), LONG).await.unwrap();
    assert_eq!((lost.step, lost.row.holder), (Step::Lost, b.id.clone()));
    assert_eq!(stores[0].campaign(&a, None, LONG).await.unwrap().step, Step::Follow);

    // One that stepped down takes its own row again, under another term.
    assert_eq!(take(&stores[1], &b, SHORT).await, Term(3));
    // And one that has run out goes to whoever comes.
    assert_eq!(take(&stores[0], &a, LONG).await, Term(4));
}

pub(crate) async fn a_leader_that_was_followed_changes_nothing(database: Database) {
    let stores = database.control_planes(2).await;
    let (a, b) = (Candidate::new(""), Candidate::new(""));
    let uid = pipe(&stores[0], 4).await.uid;
    let me = worker("w1");
    let old_term = take(&stores[0], &a, SHORT).await;
    let old = stores[0].fenced(old_term);
    let held = grant(&old, uid, &[shard(0), shard(1)], &me).await;
    assert!(
        old.set_pipe_fault(uid, Some(&fault("SOURCE_UNREACHABLE")))
            .await
            .unwrap()
    );
    old.put_observed(&[("pipe/x".to_owned(), "1".to_owned())], &[])
        .await
        .unwrap();

    // It is frozen here, and another one takes the place.
    let new_term = take(&stores[1], &b, LONG).await;
    let new = stores[1].fenced(new_term);
    let before = (new.snapshot(uid).await.unwrap(), new.observed().await.unwrap());
    let late = |result: Result<(), Error>| match result {
        Err(Error::Fenced { term, current }) => assert_eq!((term, current), (old_term, new_term)),
        other => panic!("{other:?}"),
    };
    let epoch = |index: usize| held[index].1;
    let child = NewShard {
        id: shard(9),
        parents: vec![shard(0)],
        start: Position::TrimHorizon,
    };
    let promise = Effective {
        delivery: Delivery::AtLeastOnce,
        reason: "late".to_owned(),
        window: None,
    };
    late(old.grant(uid, &held, &worker("w2")).await.map(drop));
    late(old.release(uid, &held).await.map(drop));
    late(
        old.finish_shard(uid, &shard(0), epoch(0), std::slice::from_ref(&child))
            .await
            .map(drop),
    );
    late(
        old.add_shards(uid, &[child], &std::collections::BTreeSet::new())
            .await
            .map(drop),
    );
    late(old.set_pipe_fault(uid, None).await.map(drop));
    late(old.set_pipe_effective(uid, &promise).await.map(drop));
    late(old.put_observed(&[("pipe/x".to_owned(), "2".to_owned())], &[]).await);
    assert_eq!(
        (new.snapshot(uid).await.unwrap(), new.observed().await.unwrap()),
        before
    );
    assert_eq!(before.1, [("pipe/x".to_owned(), "1".to_owned())]);

    // Batches are fenced by epochs alone: any control plane moves them, whoever leads.
    let open = batch(vec![slice(&shard(0), Position::TrimHorizon, 5)], 3);
    stores[0].prepare(uid, &me, &open, &held[..1]).await.unwrap();
    stores[1].commit(uid, &me, open.id, &held[..1]).await.unwrap();
    // And the new leader does what the old one could not.
    assert_eq!(new.release(uid, &held).await.unwrap(), [shard(0), shard(1)]);
}

/// Each leader writes its term, as often as it can, while others take its place: what is stored never falls back. A
/// take-over that did not wait for what is under way would be followed by a write of the leader before.
pub(crate) async fn terms_never_fall_back(database: Database) {
    const LEADERS: usize = 4;
    let stores = database.control_planes(LEADERS).await;
    let uid = pipe(&stores[0], 1).await.uid;
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for store in &stores {
        tasks.spawn(lead_for_moments(store.clone(), uid, stop.clone()));
    }
    let (mut highest, mut seen) = (0, 0);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) || seen < 20 {
        assert!(began.elapsed() < LIMIT, "only {seen} terms in {LIMIT:?}");
        let stored = stores[0].pipe_by_uid(uid).await.unwrap().unwrap().fault;
        let term: u64 = stored.map_or(0, |fault| fault.reason.parse().unwrap());
        assert!(term >= highest, "term {term} was written after term {highest}");
        seen += u64::from(term > highest);
        highest = term;
    }
    stop.store(true, Ordering::Relaxed);
    let written: u64 = tasks.join_all().await.into_iter().sum();
    assert!(written > seen, "{written} writes");
}

async fn lead_for_moments(store: Store, uid: PipeUid, stop: Arc<AtomicBool>) -> u64 {
    let (me, mut written) = (Candidate::new(""), 0);
    while !stop.load(Ordering::Relaxed) {
        let Step::Acquire(term) = store.campaign(&me, None, SHORT).await.unwrap().step else {
            tokio::task::yield_now().await;
            continue;
        };
        let fenced = store.fenced(term);
        loop {
            match fenced.set_pipe_fault(uid, Some(&fault(&term.to_string()))).await {
                Ok(_) => written += 1,
                Err(Error::Fenced { .. }) => break,
                Err(error) => panic!("{error:?}"),
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    written
}

pub(crate) async fn changes_are_counted_and_what_is_observed_is_replaced(database: Database) {
    let store = &database.store;
    let me = Candidate::new("");
    let term = take(store, &me, LONG).await;
    let leading = store.fenced(term);
    let text = |text: &str| text.to_owned();
    for _ in 0..3 {
        store.announce_change().await.unwrap();
    }
    let both = [(text("pipe/a"), text("1")), (text("workers"), text("[]"))];
    leading.put_observed(&both, &[]).await.unwrap();
    let standing = store.campaign(&me, Some(term), LONG).await.unwrap();
    assert_eq!((standing.changes, standing.observed), (3, 1));
    leading
        .put_observed(&[(text("workers"), text("[1]"))], &[text("pipe/a"), text("pipe/z")])
        .await
        .unwrap();
    assert_eq!(store.observed().await.unwrap(), [(text("workers"), text("[1]"))]);
}

/// API calls that hang hold every connection that is theirs: the leader goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_pool_does_not_cost_the_leader_its_place() {
    const CALLS: usize = 60;
    let database = Database::postgres().await;
    let store = database.store.clone();
    let one = pipe(&store, 1).await;
    let other = store.create_pipe(new_pipe("other", &[shard(0)])).await.unwrap();
    let me = Candidate::new("");
    let term = take(&store, &me, LONG).await;
    let leading = store.fenced(term);

    // Revisions cannot be read: whoever asks for a pipe waits, with a connection in its hands.
    let mut blocker = PgConnection::connect(database.url()).await.unwrap();
    for statement in ["BEGIN", "LOCK TABLE pipe_revisions IN ACCESS EXCLUSIVE MODE"] {
        blocker.execute(statement).await.unwrap();
    }
    let mut calls = JoinSet::new();
    for index in 0..CALLS {
        let (store, name, uid) = (store.clone(), one.name.clone(), one.uid);
        calls.spawn(async move {
            if index % 2 == 0 {
                store.get_pipe(&name).await.map(drop)
            } else {
                store
                    .update_pipe(uid, None, millrace_control_plane::store::PipeChange::default())
                    .await
                    .map(drop)
            }
        });
    }
    let drained = || async {
        let asked = tokio::time::timeout(Duration::from_millis(300), store.ping());
        asked.await.is_err()
    };
    eventually("the calls have all connections for writing", LIMIT, drained)
        .await
        .unwrap();
    let began = Instant::now();
    for _ in 0..5 {
        let renewed = store.campaign(&me, Some(term), LONG).await.unwrap();
        assert_eq!(renewed.step, Step::Renew(term));
    }
    let rows = leading.shards(other.uid).await.unwrap();
    let wanted: Vec<_> = rows.into_iter().map(|row| (row.id, row.epoch)).collect();
    let held = leading.grant(other.uid, &wanted, &worker("w1")).await.unwrap();
    assert_eq!(leading.release(other.uid, &held).await.unwrap(), [shard(0)]);
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(4),
        "five renewals, a grant and a release took {took:?}"
    );
    blocker.execute("ROLLBACK").await.unwrap();
    for call in calls.join_all().await {
        // Some have waited for too long: they say so.
        assert!(matches!(call, Ok(()) | Err(Error::Unavailable(_))), "{call:?}");
    }
}

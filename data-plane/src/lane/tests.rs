//! A lane against a control plane and a ClickHouse made for the test. Pages are put in by hand: the readers have nobody to
//! call.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::Timestamp;
use millrace_common::{
    aws,
    batch::{Counts, Terms},
    ids::SequenceNumber,
    pipe::{Compression, Decoding, Delivery, MappedColumn, PollingBudget, StreamIdentity},
    position::{Position, Slice},
    reason,
};
use tokio::net::TcpListener;

use super::{
    shard::Reading,
    spec::{Destination, Fingerprint, Grant, Source, Spec},
    *,
};
use crate::{
    batch::cut::Limits,
    commit::{self, Claim},
    source::{ChildShard, Record, ShardEnd, kinesis},
};

mod outage;

/// The longest that any condition here may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A specification whose source nobody answers at.
pub(super) fn spec(delivery: Delivery, clickhouse: &str, columns: Vec<MappedColumn>) -> Spec {
    Spec {
        revision: Revision(1),
        source: Source {
            stream: StreamIdentity {
                arn: "arn:aws:kinesis:us-east-1:000000000000:stream/events".to_owned(),
                name: "events".to_owned(),
                created: Timestamp::UNIX_EPOCH,
            },
            access: aws::Access {
                region: "us-east-1".to_owned(),
                endpoint: Some("http://127.0.0.1:1".to_owned()),
                credential: aws::Credential::Keys {
                    access_key_id: "AKIDEXAMPLE".to_owned(),
                    secret_access_key: "secret".into(),
                    session_token: None,
                },
                max_attempts: 1,
                scope: None,
                identities: None,
                settings: millrace_common::aws::Settings::default(),
            },
            end: None,
            consumer: None,
            polling: PollingBudget::default(),
            fingerprint: Fingerprint(1),
        },
        destination: Destination {
            endpoint: clickhouse.to_owned(),
            username: "default".to_owned(),
            password: String::new().into(),
            database: "db".to_owned(),
            table: "events".to_owned(),
            error_table: "events_errors".to_owned(),
            fingerprint: Fingerprint(2),
        },
        time_zone: "UTC".to_owned(),
        decoding: Decoding::default(),
        columns,
        limits: Limits {
            rows: 10,
            bytes: 1 << 20,
            wait: Duration::from_millis(50),
        },
        compression: Compression::None,
        delivery,
    }
}

/// What the control plane was asked, and what it is to answer first.
#[derive(Debug, Default)]
struct Control {
    asked: Mutex<Vec<(&'static str, Claim)>>,
    answers: Mutex<VecDeque<commit::Error>>,
    /// What batches were replaced by.
    parts: Mutex<Vec<Vec<OpenBatch>>>,
}

impl Control {
    fn ask(&self, call: &'static str, claim: &Claim) -> Result<(), commit::Error> {
        self.asked.lock().push((call, claim.clone()));
        self.answers.lock().pop_front().map_or(Ok(()), Err)
    }

    fn calls(&self, call: &str) -> Vec<Claim> {
        self.asked
            .lock()
            .iter()
            .filter(|(asked, _)| *asked == call)
            .map(|(_, claim)| claim.clone())
            .collect()
    }
}

impl ControlPlane for Control {
    fn prepare<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<(), commit::Error>> {
        async move { self.ask("prepare", claim) }.boxed()
    }

    fn replace<'a>(&'a self, claim: &'a Claim, parts: &'a [OpenBatch]) -> BoxFuture<'a, Result<(), commit::Error>> {
        self.parts.lock().push(parts.to_vec());
        async move { self.ask("replace", claim) }.boxed()
    }

    fn commit<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<(), commit::Error>> {
        async move { self.ask("commit", claim) }.boxed()
    }
}

/// An insert as ClickHouse saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    table: String,
    token: String,
    body: Bytes,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Answers inserts; those to come first with these codes.
#[derive(Debug, Default)]
struct ClickHouse {
    seen: Mutex<Vec<Seen>>,
    codes: Mutex<VecDeque<u32>>,
    /// Inserts wait while this is above 0.
    held: AtomicUsize,
    /// What becomes of inserts that no code is meant for.
    mood: Mutex<Mood>,
}

/// How a server treats inserts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// It takes them.
    #[default]
    Well,
    /// It has them fail with this code.
    Refusing(u32),
    /// It closes the connection without an answer.
    Broken,
    /// It never answers.
    Silent,
}

impl ClickHouse {
    async fn start(self: &Arc<Self>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let this = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let this = Arc::clone(&this);
                let service = service_fn(move |request| Arc::clone(&this).answer(request));
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                tokio::spawn(async move {
                    server
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .map_err(drop)
                });
            }
        });
        address
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, BoxError> {
        let query: BTreeMap<String, String> =
            url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let body = request.into_body().collect().await?.to_bytes();
        let Some(token) = query.get("insert_deduplication_token") else {
            return Ok(acknowledgement());
        };
        let table = query["query"]
            .split('`')
            .nth(3)
            .or(query["query"].split_whitespace().nth(2));
        let table = table
            .unwrap_or_default()
            .rsplit('.')
            .next()
            .unwrap_or_default()
            .to_owned();
        // One without rows only asks what is wrong.
        if !body.is_empty() {
            self.seen.lock().push(Seen {
                table,
                token: token.clone(),
                body,
            });
        }
        while self.held.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (code, mood) = (self.codes.lock().pop_front(), *self.mood.lock());
        let code = match (code, mood) {
            (Some(code), _) | (None, Mood::Refusing(code)) => code,
            (None, Mood::Well) => return Ok(acknowledgement()),
            (None, Mood::Broken) => return Err("broken for the test".into()),
            (None, Mood::Silent) => return std::future::pending().await,
        };
        let answer = Response::builder()
            .status(500)
            .header("x-clickhouse-exception-code", code);
        Ok(answer
            .body(Full::from(format!("Code: {code}. DB::Exception: for the test.")))
            .expect("a response"))
    }

    fn tables(&self) -> Vec<String> {
        self.seen.lock().iter().map(|seen| seen.table.clone()).collect()
    }
}

/// More than the tests have builds.
const SPARE_CORES: usize = 4;

struct World {
    lane: Lane,
    orders: watch::Sender<Order>,
    control: Arc<Control>,
    clickhouse: Arc<ClickHouse>,
    board: Board,
    budget: Arc<Budget>,
}

fn column() -> MappedColumn {
    MappedColumn {
        name: "id".to_owned(),
        data_type: "UInt64".to_owned(),
        has_default: false,
        source_field: "id".to_owned(),
        ..MappedColumn::default()
    }
}

fn shard(n: u8) -> ShardId {
    format!("shardId-{n}").parse().expect("a shard id")
}

fn number(n: u64) -> SequenceNumber {
    n.to_string().parse().expect("a sequence number")
}

fn grants(of: &[(u8, u64)]) -> BTreeMap<ShardId, Grant> {
    let grant = |epoch: u64| Grant {
        epoch: Epoch(epoch),
        start: Position::TrimHorizon,
        complete_until: None,
    };
    of.iter().map(|(n, epoch)| (shard(*n), grant(*epoch))).collect()
}

impl World {
    async fn new(delivery: Delivery, shards: &[(u8, u64)]) -> Self {
        let (control, clickhouse) = (Arc::new(Control::default()), Arc::new(ClickHouse::default()));
        let address = clickhouse.start().await;
        let spec = Arc::new(spec(delivery, &format!("http://{address}"), vec![column()]));
        let assignment = Assignment {
            pipe: PipeUid::new(),
            name: "projects/default/pipes/events".to_owned(),
            current: Revision(1),
            specs: [(Revision(1), Ok(spec))].into(),
            shards: grants(shards),
            open_batches: Vec::new(),
        };
        let pipe = assignment.pipe;
        let (orders, receiver) = watch::channel(Order {
            round: 1,
            assignment: Arc::new(assignment),
        });
        let (board, budget) = (Board::new(), Budget::new(1 << 20));
        let settings = Settings {
            probe_interval: Duration::from_millis(20),
            release_patience: Duration::from_millis(400),
            limits: kinesis::Limits::default(),
            aws: millrace_common::aws::Settings::default(),
        };
        let context = Context {
            control: control.clone(),
            budget: budget.clone(),
            board: board.clone(),
            settings,
            clock: millrace_common::clock::Clock::System,
            spare_cores: Arc::new(Semaphore::new(SPARE_CORES)),
        };
        let mut lane = Lane::new(context, pipe, receiver, Burned::default());
        lane.orders.mark_changed();
        Self {
            lane,
            orders,
            control,
            clickhouse,
            board,
            budget,
        }
    }

    /// Lets the lane run until this holds.
    async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !condition(self) {
            assert!(
                Instant::now() < deadline,
                "not in time: {what}; {:?}",
                self.board.snapshot()
            );
            self.turn().await;
        }
    }

    /// One turn, which ends soon even if nothing happens.
    async fn turn(&mut self) {
        self.lane.advance(Instant::now());
        let now = Instant::now();
        self.lane.show(now);
        self.lane.show.at.get_or_insert(now + Duration::from_millis(10));
        self.lane.turn().await;
    }

    fn order(&self, change: impl FnOnce(&mut Assignment)) {
        self.orders.send_modify(|order| {
            let mut assignment = (*order.assignment).clone();
            change(&mut assignment);
            *order = Order {
                round: order.round + 1,
                assignment: Arc::new(assignment),
            };
        });
    }

    fn page(&self, of: u8, numbers: std::ops::RangeInclusive<u64>, end: bool) -> Page {
        let record = |n: u64| Record::new(&number(n), "k", 0, format!(r#"{{"id":{n}}}"#).as_bytes());
        let child = ChildShard {
            id: shard(9),
            parents: vec![shard(of)],
        };
        Page {
            shard: shard(of),
            last: Some(number(*numbers.end())),
            records: numbers.map(record).collect(),
            lag: Some(Duration::ZERO),
            end: end.then(|| ShardEnd { children: vec![child] }),
            complete_until: None,
            hash_keys: None,
            permit: self.budget.acquire(100).now_or_never().expect("memory"),
        }
    }

    fn feed(&mut self, of: u8, numbers: std::ops::RangeInclusive<u64>) {
        let page = self.page(of, numbers, false);
        self.lane.on_page(&shard(of), page);
    }

    fn held(&self) -> Vec<ShardId> {
        let (_, lanes) = self.board.snapshot();
        lanes
            .into_values()
            .flat_map(|lane| lane.shards)
            .map(|status| status.shard)
            .collect()
    }

    fn fault(&self) -> Option<&'static str> {
        let (_, mut lanes) = self.board.snapshot();
        lanes
            .pop_first()
            .and_then(|(_, lane)| lane.fault)
            .map(|fault| fault.reason)
    }

    fn committed(&self) -> Vec<Slice> {
        self.control
            .calls("commit")
            .into_iter()
            .flat_map(|claim| claim.batch.slices)
            .collect()
    }
}

fn slice(of: u8, from: u64, to: u64) -> Slice {
    let from_exclusive = if from == 0 {
        Position::TrimHorizon
    } else {
        Position::After(number(from))
    };
    Slice {
        shard: shard(of),
        from_exclusive,
        to_inclusive: number(to),
    }
}

#[tokio::test]
async fn batches_are_prepared_sent_and_committed_in_order() {
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 3), (1, 4)]).await;
    world.until("taken up", |world| world.held().len() == 2).await;
    world.feed(0, 1..=25);
    world.feed(1, 1..=3);
    world.until("committed", |world| world.committed().len() >= 4).await;
    assert_eq!(
        world.committed(),
        [slice(0, 0, 10), slice(0, 10, 20), slice(0, 20, 25), slice(1, 0, 3)]
    );
    let prepared = world.control.calls("prepare");
    assert_eq!(
        prepared.iter().map(|claim| claim.batch.counts.rows).collect::<Vec<_>>(),
        [10, 10, 8]
    );
    assert_eq!(prepared[2].epochs, [(shard(0), Epoch(3)), (shard(1), Epoch(4))].into());
    let tokens: Vec<_> = world
        .clickhouse
        .seen
        .lock()
        .iter()
        .map(|seen| seen.token.clone())
        .collect();
    assert_eq!(
        tokens,
        prepared
            .iter()
            .map(|claim| claim.batch.id.to_string())
            .collect::<Vec<_>>()
    );
    assert_eq!(world.budget.held(), 0, "memory comes back with the commit");
}

#[tokio::test]
async fn whole_batches_of_other_shards_are_built_side_by_side_and_are_what_one_thread_makes() {
    for spare_cores in [0, 1, SPARE_CORES] {
        let mut world = World::new(Delivery::ExactlyOnce, &[(0, 1), (1, 1), (2, 1), (3, 1)]).await;
        world.lane.context.spare_cores = Arc::new(Semaphore::new(spare_cores));
        world.until("taken up", |world| world.held().len() == 4).await;
        let counts = [(0, 35), (1, 12), (2, 21), (3, 3)];
        for (of, count) in counts {
            world.feed(of, 1..=count);
        }
        // Three of them have a whole batch; the last one waits for the rest of another or for its time.
        world.lane.advance(Instant::now());
        // A core may be free again already, if the thread was quick.
        let (least, most) = (1 + spare_cores.min(2), 1 + 2 * spare_cores.min(1));
        let builds = world.lane.build.len();
        assert!(
            (least..=most).contains(&builds),
            "{builds} builds with {spare_cores} spare cores"
        );
        let total = || counts.iter().map(|(_, count)| count).sum::<u64>();
        let records = |world: &World| {
            let batches = world.control.calls("commit").into_iter();
            batches.map(|claim| claim.batch.counts.records).sum::<u64>()
        };
        world.until("committed", |world| records(world) == total()).await;

        let slices = world.committed();
        for (of, count) in counts {
            let mut at = Position::TrimHorizon;
            for slice in slices.iter().filter(|slice| slice.shard == shard(of)) {
                assert_eq!(slice.from_exclusive, at);
                at = slice.end();
            }
            assert_eq!(at, Position::After(number(count)), "shard {of}");
        }
        let recipe = Arc::clone(world.lane.recipe().expect("a recipe"));
        for claim in world.control.calls("prepare") {
            let again = rebuilt(&world, &recipe, &claim.batch);
            assert_eq!((again.digest, again.counts), (claim.batch.digest, claim.batch.counts));
        }
        let cores = Arc::clone(&world.lane.context.spare_cores);
        assert_eq!((cores.available_permits(), world.budget.held()), (spare_cores, 0));
    }
}

/// The batch of these slices, built by itself.
fn rebuilt(world: &World, recipe: &Arc<Recipe>, batch: &OpenBatch) -> OpenBatch {
    let run = |slice: &Slice| {
        let mut queue = Queue::new();
        let at = |position: Option<&SequenceNumber>| -> u64 {
            position.map_or(0, |number| number.to_string().parse().expect("a small number"))
        };
        let of = slice
            .shard
            .as_str()
            .trim_start_matches("shardId-")
            .parse()
            .expect("a shard");
        let numbers = at(slice.from_exclusive.sequence_number()) + 1..=at(Some(&slice.to_inclusive));
        queue.push(world.page(of, numbers, false), Instant::now());
        queue.take(|_| Some(slice.from_exclusive.clone()), |_| false).remove(0)
    };
    let job = build::Job {
        id: batch.id,
        pipe: world.lane.pipe,
        recipe: Arc::clone(recipe),
        runs: batch.slices.iter().map(run).collect(),
        rules: None,
        bench: None,
        budget: Arc::clone(&world.lane.budget),
        terms: Terms::default(),
    };
    build::build(job).built.expect("rows").batch
}

#[tokio::test]
async fn at_least_once_skips_prepare() {
    let mut world = World::new(Delivery::AtLeastOnce, &[(0, 1)]).await;
    world.until("taken up", |world| !world.held().is_empty()).await;
    world.feed(0, 1..=5);
    world.until("committed", |world| !world.committed().is_empty()).await;
    assert!(world.control.calls("prepare").is_empty());
    assert_eq!(world.control.calls("commit")[0].batch.counts.rows, 5);
}

#[tokio::test]
async fn what_is_sent_unprepared_is_committed_before_more_is_prepared() {
    let mut world = World::new(Delivery::AtLeastOnce, &[(0, 1)]).await;
    world.until("taken up", |world| !world.held().is_empty()).await;
    world.clickhouse.held.store(1, Ordering::SeqCst);
    world.feed(0, 1..=5);
    world
        .until("sent", |world| !world.clickhouse.seen.lock().is_empty())
        .await;
    let address = world.clickhouse.start().await;
    world.order(|assignment| {
        let mut exact = spec(Delivery::ExactlyOnce, &format!("http://{address}"), vec![column()]);
        exact.revision = Revision(2);
        assignment.specs.insert(Revision(2), Ok(Arc::new(exact)));
        assignment.current = Revision(2);
    });
    world
        .until("taken up", |world| {
            world.lane.order.as_ref().is_some_and(|order| order.round == 2)
        })
        .await;
    world.feed(0, 6..=8);
    world.until("built", |world| world.lane.tracker.cut_here() == 2).await;
    for _ in 0..20 {
        world.turn().await;
    }
    assert!(
        world.control.calls("prepare").is_empty(),
        "it would begin where the control plane knows nothing of"
    );
    world.clickhouse.held.store(0, Ordering::SeqCst);
    world.until("committed", |world| world.committed().len() == 2).await;
    let asked: Vec<&str> = world.control.asked.lock().iter().map(|(call, _)| *call).collect();
    assert_eq!(asked, ["commit", "prepare", "commit"]);
    assert_eq!(world.committed(), [slice(0, 0, 5), slice(0, 5, 8)]);
}

#[tokio::test]
async fn the_same_bytes_and_token_until_it_works_and_errors_first() {
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 1)]).await;
    world.until("taken up", |world| !world.held().is_empty()).await;
    // The error table is missing at first, then the server is too busy for the rows twice.
    world.clickhouse.codes.lock().extend([60, 60]);
    let mut page = world.page(0, 1..=3, false);
    page.records[1] = Record::new(&number(2), "k", 0, b"{");
    world.lane.on_page(&shard(0), page);
    world
        .until("a fault is shown", |world| {
            world.fault() == Some(reason::DESTINATION_TABLE_NOT_FOUND)
        })
        .await;
    world.until("committed", |world| !world.committed().is_empty()).await;
    assert_eq!(
        world.clickhouse.tables(),
        ["events_errors", "events_errors", "events_errors", "events"]
    );
    let seen = world.clickhouse.seen.lock().clone();
    assert!(seen[0] == seen[1] && seen[1] == seen[2]);
    assert_eq!(seen[0].token, format!("{}:errors", seen[3].token));
    let counts = world.control.calls("commit")[0].batch.counts;
    assert_eq!((counts.rows, counts.rejected_records), (2, 1));
}

#[tokio::test]
async fn a_control_plane_that_is_away_is_waited_for() {
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 1)]).await;
    world.until("taken up", |world| !world.held().is_empty()).await;
    let away = || commit::Error::Unavailable {
        message: "for the test".to_owned(),
    };
    world.control.answers.lock().extend([away(), away()]);
    world.feed(0, 1..=3);
    world.until("committed", |world| !world.committed().is_empty()).await;
    let prepared = world.control.calls("prepare");
    assert_eq!(prepared.len(), 3);
    assert!(prepared.iter().all(|claim| claim.batch == prepared[0].batch));
    assert_eq!(
        world.clickhouse.seen.lock().len(),
        1,
        "nothing is sent before it is prepared"
    );
}

#[tokio::test]
async fn a_refused_batch_costs_its_shards_until_they_are_granted_anew() {
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 1), (1, 1)]).await;
    world.until("taken up", |world| world.held().len() == 2).await;
    world.control.answers.lock().push_back(commit::Error::Refused {
        message: "for the test".to_owned(),
    });
    world.feed(0, 1..=3);
    world.until("given back", |world| world.held() == [shard(1)]).await;
    assert!(world.clickhouse.seen.lock().is_empty());
    assert_eq!(world.budget.held(), 0);
    // The old lease is burned, also when it is told again.
    world.order(|_| {});
    world
        .until("taken up again", |world| {
            world.lane.order.as_ref().is_some_and(|order| order.round == 2)
        })
        .await;
    world.until("shown", |world| world.held() == [shard(1)]).await;
    world.order(|assignment| {
        drop(assignment.shards.insert(
            shard(0),
            Grant {
                epoch: Epoch(2),
                start: Position::TrimHorizon,
                complete_until: None,
            },
        ));
    });
    world.until("granted anew", |world| world.held().len() == 2).await;
    world.feed(0, 1..=3);
    world
        .until("committed", |world| world.committed() == [slice(0, 0, 3)])
        .await;
    assert_eq!(world.control.calls("commit")[0].epochs[&shard(0)], Epoch(2));
}

#[tokio::test]
async fn a_shard_that_is_wanted_back_is_flushed_first() {
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 1), (1, 1)]).await;
    world.until("taken up", |world| world.held().len() == 2).await;
    let address = world.clickhouse.start().await;
    world.order(|assignment| {
        let mut patient = spec(Delivery::ExactlyOnce, &format!("http://{address}"), vec![column()]);
        patient.limits = Limits {
            rows: 1_000,
            bytes: 1 << 30,
            wait: Duration::from_secs(3600),
        };
        patient.revision = Revision(2);
        assignment.specs = [(Revision(2), Ok(Arc::new(patient)))].into();
        assignment.current = Revision(2);
    });
    world
        .until("taken up", |world| {
            world.lane.order.as_ref().is_some_and(|order| order.round == 2)
        })
        .await;
    world.feed(0, 1..=3);
    for _ in 0..20 {
        world.turn().await;
    }
    assert!(world.control.asked.lock().is_empty(), "nothing is due");
    world.order(|assignment| drop(assignment.shards.remove(&shard(0))));
    world.until("given back", |world| world.held() == [shard(1)]).await;
    assert_eq!(world.committed(), [slice(0, 0, 3)], "before it was given back");
}

#[tokio::test]
async fn a_shard_that_cannot_be_drained_goes_as_it_is() {
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 1), (1, 1), (2, 1)]).await;
    world.until("taken up", |world| world.held().len() == 3).await;
    world.clickhouse.held.store(1, Ordering::SeqCst);
    world.feed(0, 1..=5);
    world.feed(1, 1..=5);
    world
        .until("sent", |world| !world.clickhouse.seen.lock().is_empty())
        .await;
    world.order(|assignment| drop(assignment.shards.remove(&shard(0))));
    // Shard 1 shares the recorded batch, so it has to go to the same next owner.
    world.until("given back", |world| world.held() == [shard(2)]).await;
    assert!(world.committed().is_empty());
    assert_eq!(world.lane.burned.lock().get(&shard(1)), Some(&Epoch(1)));
}

#[tokio::test]
async fn a_finished_shard_is_told_with_its_children_once_it_is_committed() {
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 1)]).await;
    world.until("taken up", |world| !world.held().is_empty()).await;
    world.clickhouse.held.store(1, Ordering::SeqCst);
    let page = world.page(0, 1..=3, true);
    world.lane.on_page(&shard(0), page);
    world
        .until("sent", |world| !world.clickhouse.seen.lock().is_empty())
        .await;
    let finished = |world: &World| {
        let (_, lanes) = world.board.snapshot();
        lanes
            .into_values()
            .flat_map(|lane| lane.shards)
            .find_map(|status| status.finished)
    };
    assert_eq!(finished(&world), None, "not before the commit");
    world.clickhouse.held.store(0, Ordering::SeqCst);
    world.until("finished", |world| finished(world).is_some()).await;
    assert_eq!(finished(&world).expect("children")[0].id, shard(9));
    world.order(|assignment| assignment.shards.clear());
    world.until("gone", |world| world.lane.is_done()).await;
}

#[tokio::test]
async fn a_batch_of_another_format_holds_its_shards_and_no_others() {
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 2), (1, 2)]).await;
    let open = OpenBatch {
        id: BatchId::new(),
        revision: Revision(1),
        slices: vec![slice(0, 0, 7)],
        counts: Counts::default(),
        digest: [0; 16],
        terms: Terms::of_format(build::FORMAT + 1),
    };
    world.order(|assignment| assignment.open_batches.push(open.clone()));
    world
        .until("said so", |world| world.fault() == Some(reason::BATCH_FORMAT_UNKNOWN))
        .await;
    assert_eq!(world.lane.replay_of, None, "it is not even read");
    assert!(!world.lane.shards[&shard(0)].wants_reader(Instant::now()));
    world.feed(1, 1..=3);
    world
        .until("the other shard goes on", |world| {
            !world.control.calls("commit").is_empty()
        })
        .await;
    assert!(world.committed().iter().all(|slice| slice.shard == shard(1)));
    // Given up, or finished by another worker: the shard comes back without it.
    world.order(|assignment| {
        assignment.open_batches.clear();
        assignment.shards = grants(&[(0, 3), (1, 2)]);
    });
    world.until("no fault", |world| world.fault().is_none()).await;
}

#[tokio::test]
async fn a_recorded_batch_holds_its_shards_back_until_it_is_replayed() {
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 2), (1, 2)]).await;
    let open = OpenBatch {
        id: BatchId::new(),
        revision: Revision(1),
        slices: vec![slice(0, 0, 7)],
        counts: Counts {
            rows: 7,
            ..Counts::default()
        },
        digest: [0; 16],
        terms: Terms::default(),
    };
    world.order(|assignment| assignment.open_batches.push(open.clone()));
    world.until("taken up", |world| world.held().len() == 2).await;
    world
        .until("started", |world| world.lane.replay_of == Some(open.id))
        .await;
    assert!(!world.lane.shards[&shard(0)].wants_reader(Instant::now()));
    // It cannot be read here. Rebuilt with another digest it is never sent.
    let runs = vec![queue::Run {
        shard: shard(0),
        from: Position::TrimHorizon,
        pages: {
            let mut queue = Queue::new();
            queue.push(world.page(0, 1..=7, false), Instant::now());
            queue.take(|_| Some(Position::TrimHorizon), |_| false).remove(0).pages
        },
    }];
    let recipe = Arc::clone(world.lane.recipe().expect("a recipe"));
    let job = build::Job {
        id: open.id,
        pipe: world.lane.pipe,
        recipe,
        runs,
        rules: None,
        bench: None,
        budget: Arc::clone(&world.lane.budget),
        terms: Terms::default(),
    };
    let built = build::build(job).built.expect("rows");
    world.lane.on_replayed(Some(Replayed {
        id: open.id,
        built: Some(built),
        gap: None,
    }));
    world
        .until("halted", |world| world.fault() == Some(reason::BATCH_DIVERGED))
        .await;
    world.feed(1, 1..=3);
    for _ in 0..20 {
        world.turn().await;
    }
    assert_eq!(world.lane.queue.queued(|_| true).records, 3, "nothing moves");
    assert!(world.clickhouse.seen.lock().is_empty() && world.control.asked.lock().is_empty());
    // A person gives the batch up: the shards come back under new epochs, and without it.
    world.order(|assignment| {
        assignment.open_batches.clear();
        assignment.shards = grants(&[(0, 3), (1, 3)]);
    });
    world.until("no fault", |world| world.fault().is_none()).await;
    world.feed(1, 1..=3);
    world
        .until("rows flow", |world| !world.clickhouse.seen.lock().is_empty())
        .await;
}

#[tokio::test]
async fn a_reader_that_is_stuck_is_started_anew_and_counted() {
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 1)]).await;
    let attempt = |world: &World| match world.lane.shards.get(&shard(0))?.reading {
        Reading::By { attempt, .. } => Some(attempt),
        _ => None,
    };
    world.until("the shard is read", |world| attempt(world).is_some()).await;
    world.feed(0, 1..=2);
    let before = attempt(&world).expect("it is read");
    world.lane.on_reader_end(Some(ReaderEnd::stuck(shard(0), before)));
    world
        .until("another reader", |world| {
            attempt(world).is_some_and(|attempt| attempt > before)
        })
        .await;
    let restarts = |world: &World| {
        let (_, lanes) = world.board.snapshot();
        let shards = lanes.into_values().flat_map(|lane| lane.shards);
        shards.map(|shard| shard.restarts).collect::<Vec<_>>()
    };
    world.until("the count is shown", |world| restarts(world) == [1]).await;
    // It reads on where the lane stands, and the end of the one before says nothing of it.
    let stands = world.lane.shards.get(&shard(0)).map(|shard| shard.read_to.clone());
    assert_eq!(stands, Some(Position::After(number(2))));
    let current = attempt(&world);
    world.lane.on_reader_end(Some(ReaderEnd::stuck(shard(0), before)));
    assert_eq!(attempt(&world), current);
    world
        .until("the rows are committed", |world| world.committed() == [slice(0, 0, 2)])
        .await;
}

#[tokio::test]
async fn a_pipe_that_cannot_run_holds_its_shards_and_says_why() {
    let mut world = World::new(Delivery::ExactlyOnce, &[(0, 1)]).await;
    world.order(|assignment| {
        let mut bad = spec(Delivery::ExactlyOnce, "http://127.0.0.1:1", Vec::new());
        bad.columns.clear();
        assignment.specs = [(Revision(1), Ok(Arc::new(bad)))].into();
    });
    world
        .until("the fault is shown", |world| {
            world.fault() == Some(reason::DESTINATION_TYPE_UNSUPPORTED)
        })
        .await;
    assert_eq!(world.held(), [shard(0)]);
    world.order(|assignment| {
        let mut good = spec(Delivery::ExactlyOnce, "http://127.0.0.1:1", vec![column()]);
        good.revision = Revision(2);
        assignment.specs = [(Revision(2), Ok(Arc::new(good)))].into();
        assignment.current = Revision(2);
    });
    let mended = |world: &World| world.fault() != Some(reason::DESTINATION_TYPE_UNSUPPORTED);
    world.until("the fault is gone with its revision", mended).await;
    world.order(|assignment| assignment.shards.clear());
    world.until("gone", |world| world.lane.is_done()).await;
}

/// As ClickHouse answers what it took.
fn acknowledgement() -> Response<Full<Bytes>> {
    let mut answer = Response::default();
    let id = hyper::header::HeaderValue::from_static("q");
    answer.headers_mut().insert("x-clickhouse-query-id", id);
    answer
}

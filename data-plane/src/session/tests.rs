//! A session with a control plane made for the test.

use std::pin::Pin;

use futures::Stream;
use millrace_common::{
    error::ApiError,
    grpc::Access,
    ids::{Epoch, Incarnation, PipeUid},
};
use millrace_proto::worker::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use tokio::net::TcpListener;
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Code, Request, Response};

use super::*;
use crate::lane::status::{LaneStatus, ShardStatus};

/// The longest that any condition here may take.
const LIMIT: Duration = Duration::from_secs(20);

/// One session as the control plane sees it.
struct Side {
    said: mpsc::Receiver<session_request::Message>,
    answers: mpsc::Sender<Result<wire::SessionResponse, Status>>,
}

impl Side {
    async fn hear(&mut self) -> session_request::Message {
        timeout(LIMIT, self.said.recv())
            .await
            .expect("in time")
            .expect("the worker talks")
    }

    async fn hear_report(&mut self, wanted: impl Fn(&wire::Report) -> bool) -> wire::Report {
        loop {
            match self.hear().await {
                session_request::Message::Report(report) if wanted(&report) => return report,
                _ => {}
            }
        }
    }

    async fn answer(&self, message: session_response::Message) {
        let response = wire::SessionResponse { message: Some(message) };
        self.answers.send(Ok(response)).await.expect("the worker listens");
    }

    async fn welcome(&mut self, heartbeat: Duration) -> wire::Hello {
        self.welcome_for(heartbeat, Duration::from_secs(8)).await
    }

    async fn welcome_for(&mut self, heartbeat: Duration, lease: Duration) -> wire::Hello {
        let session_request::Message::Hello(hello) = self.hear().await else {
            panic!("not a Hello")
        };
        self.answer(session_response::Message::Welcome(wire::Welcome {
            protocol: PROTOCOL_MAX,
            lease_ttl: Some(convert::to_duration(lease)),
            heartbeat_interval: Some(convert::to_duration(heartbeat)),
        }))
        .await;
        hello
    }

    async fn assign(&self, generation: u64, lanes: Vec<wire::Lane>) {
        self.answer(session_response::Message::AssignmentSet(wire::AssignmentSet {
            generation,
            lanes,
        }))
        .await;
    }
}

struct Control {
    sides: mpsc::Sender<Side>,
    /// Where it sends workers, if it does not lead.
    elsewhere: Option<String>,
}

/// A control plane on a port of its own.
async fn serve(sides: mpsc::Sender<Side>, elsewhere: Option<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let service = WorkerServiceServer::new(Control { sides, elsewhere });
    tokio::spawn(
        grpc::server()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    format!("http://{address}")
}

#[tonic::async_trait]
impl WorkerService for Control {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<wire::SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if let Some(leader) = &self.elsewhere {
            let refusal = ApiError::new(Code::FailedPrecondition, NOT_LEADER, "not here");
            return Err(refusal.with_metadata(LEADER_METADATA, leader).into());
        }
        let (answers, answered) = mpsc::channel(8);
        let (saying, said) = mpsc::channel(1_000);
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                if saying.send(request.message.expect("a message")).await.is_err() {
                    break;
                }
            }
        });
        let _ = self.sides.send(Side { said, answers }).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(answered))))
    }

    async fn prepare_batch(
        &self,
        _: Request<wire::PrepareBatchRequest>,
    ) -> Result<Response<wire::PrepareBatchResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn replace_batch(
        &self,
        _: Request<wire::ReplaceBatchRequest>,
    ) -> Result<Response<wire::ReplaceBatchResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn commit_batch(
        &self,
        _: Request<wire::CommitBatchRequest>,
    ) -> Result<Response<wire::CommitBatchResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

struct World {
    sides: mpsc::Receiver<Side>,
    board: Board,
    desired: watch::Receiver<Option<AssignmentSet>>,
    leave: CancellationToken,
    close: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl World {
    async fn new() -> Self {
        let (sides_in, sides) = mpsc::channel(8);
        let url = serve(sides_in, None).await;
        Self::of(&[url], sides)
    }

    fn of(urls: &[String], sides: mpsc::Receiver<Side>) -> Self {
        let board = Board::new();
        let (desired_in, desired) = watch::channel(None);
        let options = Options {
            worker: WorkerInstance {
                worker: "w-1".parse().expect("a worker id"),
                incarnation: Incarnation::new(),
            },
            cores: 2,
            memory_bytes: 100,
        };
        let planes = ControlPlanes::new(urls, &Access::default()).expect("URLs");
        let session = Session::new(options, planes, board.clone(), desired_in);
        let (leave, close) = (CancellationToken::new(), CancellationToken::new());
        let running = tokio::spawn(session.run(leave.clone(), Duration::from_secs(3), close.clone()));
        Self {
            sides,
            board,
            desired,
            leave,
            close,
            running,
        }
    }

    async fn side(&mut self) -> Side {
        timeout(LIMIT, self.sides.recv())
            .await
            .expect("in time")
            .expect("a session")
    }

    async fn desired(&mut self, wanted: impl Fn(&AssignmentSet) -> bool) -> AssignmentSet {
        let set = self.desired.wait_for(|set| set.as_ref().is_some_and(&wanted));
        timeout(LIMIT, set)
            .await
            .expect("in time")
            .expect("a session")
            .clone()
            .expect("an assignment")
    }
}

fn status(shard: &str) -> LaneStatus {
    let shard = ShardStatus {
        shard: shard.parse().expect("a shard id"),
        epoch: Epoch(4),
        read: None,
        lag: Some(Duration::from_millis(1_500)),
        finished: None,
        bytes_per_second: 7.0,
        complete_until: None,
        gap: None,
        out_of_range: 3,
        restarts: 1,
    };
    LaneStatus {
        shards: vec![shard],
        fault: None,
    }
}

#[tokio::test]
async fn it_says_who_it_is_learns_what_to_run_and_tells_what_it_holds() {
    let mut world = World::new().await;
    let mut side = world.side().await;
    let hello = side.welcome(Duration::from_secs(60)).await;
    assert_eq!(hello.worker.expect("a worker").worker_id, "w-1");
    assert_eq!(hello.capacity.expect("a capacity").memory_bytes, 100);
    assert_eq!(hello.report, Some(wire::Report::default()));
    side.assign(5, Vec::new()).await;
    world.desired(|set| set.generation == Generation(5)).await;
    // Older ones and those told twice are passed over.
    side.assign(4, Vec::new()).await;
    side.assign(6, Vec::new()).await;
    world.desired(|set| set.generation == Generation(6)).await;

    // What is urgent does not wait for the heartbeat of a minute.
    let pipe = PipeUid::new();
    world.board.distributed(1, Generation(6));
    world.board.put(pipe, 1, status("shardId-0"), true);
    let report = side.hear_report(|report| !report.lanes.is_empty()).await;
    assert_eq!(
        (report.generation, report.lanes[0].pipe_uid.clone()),
        (6, pipe.to_string())
    );
    let shard = &report.lanes[0].shards[0];
    assert_eq!(
        (shard.epoch, shard.lag),
        (
            4,
            Some(prost_types::Duration {
                seconds: 1,
                nanos: 500_000_000
            })
        )
    );
}

#[tokio::test]
async fn a_broken_session_is_taken_up_again_with_all_that_is_held() {
    let mut world = World::new().await;
    let mut side = world.side().await;
    side.welcome(Duration::from_millis(100)).await;
    side.assign(50, Vec::new()).await;
    world.desired(|set| set.generation == Generation(50)).await;
    world.board.distributed(1, Generation(50));
    world.board.put(PipeUid::new(), 1, status("shardId-0"), false);
    side.hear_report(|report| report.generation == 50).await;
    drop(side);

    let mut side = world.side().await;
    let hello = side.welcome(Duration::from_millis(100)).await;
    let report = hello.report.expect("a report");
    assert_eq!(report.lanes.len(), 1, "nothing is given up because of the connection");
    assert_eq!(report.generation, 0, "this control plane may count anew");
    side.assign(2, Vec::new()).await;
    world.desired(|set| set.generation == Generation(2)).await;
}

#[tokio::test]
async fn what_is_not_the_protocol_ends_the_session_and_changes_nothing() {
    let mut world = World::new().await;
    // Another first message, another protocol, an assignment with an id that is none.
    let mut side = world.side().await;
    side.hear().await;
    side.assign(1, Vec::new()).await;
    let mut side = world.side().await;
    side.hear().await;
    side.answer(session_response::Message::Welcome(wire::Welcome {
        protocol: 99,
        ..wire::Welcome::default()
    }))
    .await;
    let mut side = world.side().await;
    side.welcome(Duration::from_secs(1)).await;
    side.assign(
        1,
        vec![wire::Lane {
            pipe_uid: "no uid".to_owned(),
            ..wire::Lane::default()
        }],
    )
    .await;
    let mut side = world.side().await;
    side.welcome(Duration::from_secs(1)).await;
    assert!(world.desired.borrow().is_none());
    side.assign(1, Vec::new()).await;
    world.desired(|set| set.lanes.is_empty()).await;
}

#[tokio::test]
async fn leaving_is_said_and_the_last_report_comes_before_the_end() {
    let mut world = World::new().await;
    let mut side = world.side().await;
    side.welcome(Duration::from_secs(60)).await;
    let pipe = PipeUid::new();
    world.board.distributed(1, Generation(1));
    world.board.put(pipe, 1, status("shardId-0"), true);
    side.hear_report(|report| !report.lanes.is_empty()).await;
    world.leave.cancel();
    let leave = loop {
        if let session_request::Message::Leave(leave) = side.hear().await {
            break leave;
        }
    };
    assert_eq!(leave.deadline, Some(convert::to_duration(Duration::from_secs(3))));
    world.board.put(pipe, 1, LaneStatus::default(), false);
    world.close.cancel();
    side.hear_report(|report| report.lanes.iter().all(|lane| lane.shards.is_empty()))
        .await;
    assert!(
        timeout(LIMIT, side.said.recv()).await.expect("in time").is_none(),
        "the stream ends"
    );
    drop(side);
    timeout(LIMIT, world.running).await.expect("in time").expect("no panic");
}

#[tokio::test]
async fn it_goes_where_it_is_sent_and_passes_over_who_does_not_answer() {
    let (sides_in, sides) = mpsc::channel(8);
    let leader = serve(sides_in, None).await;
    let (nobody, _) = mpsc::channel(1);
    let follower = serve(nobody, Some(leader)).await;
    // A port that nobody listens on: what is bound and dropped is free.
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", gone.local_addr().expect("an address"));
    drop(gone);
    let mut world = World::of(&[url, follower], sides);
    let mut side = world.side().await;
    side.welcome(Duration::from_millis(100)).await;
    side.assign(1, Vec::new()).await;
    world.desired(|set| set.generation == Generation(1)).await;
}

#[tokio::test]
async fn a_control_plane_that_says_nothing_is_given_up_and_one_that_beats_is_not() {
    let mut world = World::new().await;
    let mut side = world.side().await;
    let (heartbeat, lease) = (Duration::from_millis(50), Duration::from_millis(400));
    side.welcome_for(heartbeat, lease).await;
    // For several times as long as it would wait in silence.
    for _ in 0..20 {
        side.answer(session_response::Message::Heartbeat(wire::Heartbeat {}))
            .await;
        side.hear_report(|_| true).await;
    }
    assert!(world.sides.try_recv().is_err(), "it is still the first session");
    let silent = Instant::now();
    let mut side = world.side().await;
    assert!(
        silent.elapsed() >= lease / 2 - heartbeat,
        "given up after {:?}",
        silent.elapsed()
    );
    side.welcome(heartbeat).await;
}

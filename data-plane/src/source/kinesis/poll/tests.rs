//! The polling machine, driven by hand: time, answers and failures are made up, and what it wants to do is checked.

use millrace_common::{clock::Clock, pipe::StreamIdentity};

use super::*;
use crate::source::kinesis::{Limits, client::Child};

const CREATED: i64 = 1_700_000_000_000;
const SHARD: &str = "shardId-000000000001";

struct Bed {
    machine: Machine,
    now: Instant,
    iterators: u32,
}

fn number(value: u64) -> SequenceNumber {
    value.to_string().parse().unwrap()
}

fn after(value: u64) -> Position {
    Position::After(number(value))
}

fn reply(numbers: &[u64], millis_behind: i64) -> Reply {
    let record = |value: &u64| Record::new(&number(*value), "key", 0, &[b'x'; 10]);
    Reply {
        records: numbers.iter().map(record).collect(),
        next_iterator: Some("next".to_owned()),
        millis_behind: Some(millis_behind),
        children: None,
    }
}

fn end(numbers: &[u64]) -> Reply {
    let child = Child {
        id: "shardId-000000000002".to_owned(),
        parents: vec![SHARD.to_owned()],
    };
    Reply {
        next_iterator: None,
        children: Some(vec![child]),
        ..reply(numbers, 0)
    }
}

fn failure(kind: Kind) -> Failure {
    Failure {
        call: "GetRecords",
        kind,
        message: "x".to_owned(),
    }
}

impl Bed {
    fn new(start: Position, until: Option<u64>) -> Self {
        let stream = StreamIdentity {
            arn: "arn:aws:kinesis:us-east-1:123456789012:stream/s".to_owned(),
            name: "s".to_owned(),
            created: jiff::Timestamp::from_millisecond(CREATED).unwrap(),
        };
        let options = ReaderOptions {
            stream,
            shard: SHARD.parse().unwrap(),
            start,
            until: until.map(number),
            first: None,
            limits: Limits::default(),
            page_bytes: FULL_BYTES,
            record_bytes: None,
            // Nothing here is old, but where a test says so.
            complete_until: Some(jiff::Timestamp::now()),
            end: None,
            hash_keys: super::super::HashKeys::Unused,
            clock: Clock::System,
        };
        let now = Instant::now();
        Self {
            machine: Machine::new(options, now),
            now,
            iterators: 0,
        }
    }

    /// Waits as told, and returns what comes then and how long that took.
    fn next(&mut self) -> (Action, Duration) {
        let start = self.now;
        loop {
            match self.machine.next(self.now) {
                Action::Wait(until) => {
                    assert!(until > self.now, "a wait for what has passed");
                    self.now = until;
                }
                action => return (action, self.now - start),
            }
        }
    }

    /// The position from which an iterator is asked for; gives one.
    fn iterator(&mut self) -> Position {
        let (action, _) = self.next();
        let Action::GetIterator(from) = action else {
            panic!("{action:?} instead of an iterator")
        };
        self.iterators += 1;
        self.machine.on_iterator(&from, format!("iterator {}", self.iterators));
        match from {
            Origin::Position(position) => position,
            Origin::Record(number) => panic!("record {number} itself is asked for"),
        }
    }

    /// Answers the GetRecords call that comes next.
    fn answer(&mut self, reply: Reply) -> Result<Result<Accepted, Failure>, Error> {
        let (action, _) = self.next();
        assert!(
            matches!(action, Action::GetRecords { .. }),
            "{action:?} instead of GetRecords"
        );
        let started = self.now;
        self.now += Duration::from_millis(10);
        self.machine.on_records(started, self.now, reply)
    }

    fn accepted(&mut self, reply: Reply) -> Accepted {
        self.answer(reply).expect("the reader goes on").expect("a good answer")
    }

    fn fail(&mut self, failure: &Failure) -> Result<(), Error> {
        self.machine.on_failure(self.now, self.now, failure, 1.0)
    }

    fn reason(&self) -> Option<&'static str> {
        self.machine.trouble().map(|trouble| trouble.reason)
    }
}

#[test]
fn reads_from_the_start_and_keeps_the_place() {
    let mut bed = Bed::new(Position::TrimHorizon, None);
    assert_eq!(bed.iterator(), Position::TrimHorizon);
    let page = bed.accepted(reply(&[], 5_000));
    assert_eq!((page.last, page.lag), (None, Some(Duration::from_secs(5))));
    let page = bed.accepted(reply(&[1, 2, 3], 1_000));
    assert_eq!(page.last, Some(number(3)));
    let page = bed.accepted(reply(&[], 0));
    assert_eq!(page.last, Some(number(3)), "an empty answer does not move the place");
    assert_eq!(page.stop(), None);
}

#[test]
fn an_expired_iterator_is_renewed_after_the_last_accepted_record() {
    for taken in [&[][..], &[4, 9]] {
        let mut bed = Bed::new(after(3), None);
        assert_eq!(bed.iterator(), after(3));
        bed.accepted(reply(taken, 1_000));
        bed.now += Duration::from_secs(360);
        let _ = bed.next();
        bed.fail(&failure(Kind::ExpiredIterator)).unwrap();
        let before = bed.now;
        assert_eq!(bed.iterator(), after(taken.last().copied().unwrap_or(3)));
        assert_eq!(bed.now, before, "at once");
        assert_eq!(bed.reason(), None);
        // What the new iterator repeats is dropped.
        assert_eq!(bed.accepted(reply(&[3, 10], 0)).duplicates, 1);
    }
}

#[test]
fn iterators_that_are_born_expired_do_not_spin() {
    let mut bed = Bed::new(Position::TrimHorizon, None);
    let start = bed.now;
    for _ in 0..20 {
        bed.iterator();
        let _ = bed.next();
        bed.fail(&failure(Kind::ExpiredIterator)).unwrap();
    }
    assert!(bed.now - start > Duration::from_secs(60), "{:?}", bed.now - start);
    assert!(bed.reason().is_some());
}

#[test]
fn empty_answers_behind_the_tip_are_walked_through_at_full_rate() {
    let mut bed = Bed::new(Position::TrimHorizon, None);
    bed.iterator();
    let start = bed.now;
    for step in 0..500 {
        let page = bed.accepted(reply(&[], 1_000_000 - step * 100));
        assert!(!page.stalled);
    }
    assert!(bed.now - start < Duration::from_secs(500 / 4), "{:?}", bed.now - start);
    assert_eq!(bed.accepted(reply(&[7], 10)).records.len(), 1);
    assert_eq!(bed.iterators, 1);
}

#[test]
fn an_iterator_that_brings_nothing_for_a_minute_is_given_up() {
    let mut bed = Bed::new(after(5), None);
    let known = bed.machine.complete_until;
    bed.iterator();
    let start = bed.now;
    while !bed.accepted(reply(&[], 1_000)).stalled {
        assert!(bed.now - start < Duration::from_secs(70));
    }
    assert!(bed.now - start >= STALL);
    // A number that has left the stream may bring nothing for ever, and a time does not.
    assert_eq!(Some(bed.iterator()), known.map(gap::begin));
    // Without one, it is the number again.
    let mut bed = Bed::new(Position::TrimHorizon, None);
    bed.machine.complete_until = None;
    bed.iterator();
    while !bed.accepted(reply(&[], 1_000)).stalled {}
    assert_eq!(bed.iterator(), Position::TrimHorizon);
}

#[test]
fn a_shard_ends_only_with_children() {
    let mut bed = Bed::new(Position::TrimHorizon, None);
    bed.iterator();
    let broken = Reply {
        next_iterator: None,
        ..reply(&[1], 0)
    };
    let refused = bed.answer(broken).unwrap().expect_err("no children");
    assert_eq!(refused.kind, Kind::Malformed);
    bed.fail(&refused).unwrap();
    assert_eq!(
        bed.iterator(),
        Position::TrimHorizon,
        "nothing of the broken answer was taken"
    );
    let page = bed.accepted(end(&[1, 2]));
    assert_eq!((page.stop(), page.last), (Some(Stop::ShardEnd), Some(number(2))));
    assert_eq!(page.end.unwrap().children.len(), 1);
}

#[test]
fn disorder_is_never_taken() {
    let mut bed = Bed::new(Position::TrimHorizon, None);
    bed.iterator();
    let refused = bed.answer(reply(&[1, 3, 2], 0)).unwrap().expect_err("disorder");
    bed.fail(&refused).unwrap();
    assert_eq!(bed.iterator(), Position::TrimHorizon);
    assert_eq!(bed.accepted(reply(&[1, 2, 3], 0)).records.len(), 3);
}

#[test]
fn a_replay_ends_at_its_last_record() {
    let mut bed = Bed::new(after(3), Some(6));
    bed.iterator();
    assert_eq!(bed.accepted(reply(&[4], 9)).stop(), None);
    let page = bed.accepted(reply(&[5, 6, 7, 8], 0));
    assert_eq!(
        (page.records.len(), page.last.clone(), page.stop()),
        (2, Some(number(6)), Some(Stop::Until))
    );
    assert_eq!(bed.machine.next(bed.now), Action::Finish(Stop::Until));
}

#[test]
fn a_replay_at_the_end_of_a_shard_leaves_the_end_to_others() {
    let mut bed = Bed::new(after(3), Some(5));
    bed.iterator();
    let page = bed.accepted(end(&[4, 5]));
    assert_eq!((page.stop(), page.end), (Some(Stop::Until), None));
}

#[test]
fn a_replay_whose_last_record_is_gone_says_so() {
    let missing = |result: Result<Result<Accepted, Failure>, Error>| {
        assert!(matches!(result, Err(Error::RecordMissing { .. })), "{result:?}");
    };
    let mut bed = Bed::new(after(3), Some(6));
    bed.iterator();
    missing(bed.answer(reply(&[4, 7], 0)));

    let mut bed = Bed::new(after(3), Some(6));
    bed.iterator();
    missing(bed.answer(end(&[4])));

    let mut bed = Bed::new(after(3), Some(6));
    bed.iterator();
    for _ in 1..EMPTY_AT_TIP {
        assert_eq!(bed.accepted(reply(&[], 0)).stop(), None);
    }
    missing(bed.answer(reply(&[], 0)));
}

#[test]
fn throttling_slows_down_and_never_ends() {
    let mut bed = Bed::new(Position::TrimHorizon, None);
    bed.iterator();
    let start = bed.now;
    for count in 0..50 {
        let (action, waited) = bed.next();
        assert!(matches!(action, Action::GetRecords { .. }));
        assert!(count == 0 || waited >= Duration::from_secs(1), "{waited:?}");
        assert_eq!(
            bed.reason().is_some(),
            bed.reason() == Some(millrace_common::reason::SOURCE_THROTTLED)
        );
        bed.fail(&failure(Kind::Throttled)).unwrap();
    }
    assert!(bed.now - start > SHOW_THROTTLING_AFTER);
    assert!(!bed.machine.trouble().expect("shown by now").permanent);
    bed.accepted(reply(&[1], 100));
    assert_eq!(bed.reason(), None);
    let (_, waited) = bed.next();
    assert!(waited > Duration::from_secs(1), "the interval recovers step by step");
}

#[test]
fn an_outage_is_shown_after_a_while_and_cleared_by_the_first_answer() {
    let mut bed = Bed::new(Position::TrimHorizon, None);
    bed.iterator();
    let start = bed.now;
    while bed.reason().is_none() {
        let _ = bed.next();
        bed.fail(&failure(Kind::Transient)).unwrap();
        assert!(bed.now - start < Duration::from_secs(20));
    }
    assert!(bed.now - start >= SHOW_FAILURE_AFTER);
    assert_eq!(bed.reason(), Some(millrace_common::reason::SOURCE_UNREACHABLE));
    let (action, waited) = bed.next();
    assert!(waited <= Duration::from_secs(10));
    let Action::GetRecords { limit, reserve, .. } = action else {
        panic!("{action:?}")
    };
    assert_eq!(
        (limit, reserve),
        (PROBE_LIMIT, SMALL_RESERVE),
        "a probe asks for little"
    );
    bed.accepted(reply(&[1], 100));
    assert_eq!(bed.reason(), None);
    let (action, _) = bed.next();
    assert!(matches!(
        action,
        Action::GetRecords {
            limit: 1_998,
            reserve: 29_347_328,
            ..
        }
    ));
}

#[test]
fn a_call_asks_for_as_many_records_as_a_page_holds() {
    let mut bed = Bed::new(Position::TrimHorizon, None);
    bed.iterator();
    let mut limit_after = |payload: usize| {
        let (action, _) = bed.next();
        let Action::GetRecords { limit, .. } = action else {
            panic!("{action:?}")
        };
        let mut reply = reply(&[], 100);
        let from = bed
            .machine
            .position
            .sequence_number()
            .map_or(0, |number| number.as_str().parse().unwrap());
        reply.records = (from + 1..from + 3)
            .map(|n| Record::new(&number(n), "key", 0, &vec![b'x'; payload]))
            .collect();
        bed.accepted(reply);
        limit
    };
    assert_eq!(limit_after(10_240), 1_000, "nothing is known of the records");
    assert_eq!(limit_after(102_400), 1_011);
    assert_eq!(limit_after(10), 102, "large records have a say at once");
    assert_eq!(limit_after(10), 204, "small ones bit by bit");
    assert_eq!(limit_after(10), 409);
    for _ in 0..20 {
        limit_after(10);
    }
    assert_eq!(limit_after(FULL_BYTES), FULL_LIMIT);
    assert_eq!(limit_after(10), 1);
}

#[test]
fn pages_suit_the_memory_and_the_pace() {
    const MIB: usize = 1 << 20;
    let unpaced = Limits {
        bytes_per_second: None,
        ..Limits::default()
    };
    let paced = Limits::default();
    assert_eq!(page_bytes(256 * MIB, paced), 2 * MIB, "a second's worth");
    assert_eq!(
        [32, 64, 256, 4096].map(|memory| page_bytes(memory * MIB, unpaced) / MIB),
        [4, 4, 8, 10]
    );
    let slow = Limits {
        bytes_per_second: Some(1_000),
        ..Limits::default()
    };
    assert_eq!(page_bytes(256 * MIB, slow), MIB);
}

#[test]
fn what_a_person_must_mend_is_shown_at_once_and_probed() {
    for kind in [Kind::Denied, Kind::Credential, Kind::NotFound] {
        let mut bed = Bed::new(after(1), None);
        bed.iterator();
        let _ = bed.next();
        if kind == Kind::Credential {
            // A session may have ended: there is one attempt with a new one before anybody is told.
            bed.fail(&failure(kind)).unwrap();
            assert!(bed.machine.trouble().is_none());
            let (_, waited) = bed.next();
            assert!(waited <= Duration::from_secs(1), "{waited:?}");
        }
        bed.fail(&failure(kind)).unwrap();
        let trouble = bed.machine.trouble().expect("shown");
        let remedy = failure(kind).remedy();
        assert!(trouble.permanent && trouble.reason == kind.reason() && trouble.message.contains(&remedy));
        for _ in 0..20 {
            let (action, waited) = bed.next();
            assert!(waited <= Duration::from_secs(60));
            match action {
                Action::VerifyStream => bed
                    .machine
                    .on_stream(CreatedStream {
                        created_millis: CREATED,
                        retention: gap::SHORTEST_RETENTION,
                    })
                    .unwrap(),
                Action::GetIterator(from) => {
                    assert_eq!(from, Origin::Position(after(1)), "the place is kept");
                    bed.machine.on_iterator(&from, "again".to_owned());
                }
                Action::GetRecords { .. } => {
                    bed.accepted(reply(&[2], 0));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(bed.reason(), None, "{kind:?} heals by itself");
    }
}

#[test]
fn a_stream_that_was_gone_is_checked_before_it_is_read_again() {
    let mut bed = Bed::new(Position::TrimHorizon, None);
    bed.iterator();
    let _ = bed.next();
    bed.fail(&failure(Kind::NotFound)).unwrap();
    assert_eq!(bed.next().0, Action::VerifyStream);
    // Still gone.
    bed.fail(&failure(Kind::NotFound)).unwrap();
    assert_eq!(bed.next().0, Action::VerifyStream);
    let error = bed
        .machine
        .on_stream(CreatedStream {
            created_millis: CREATED + 1,
            retention: gap::SHORTEST_RETENTION,
        })
        .expect_err("another stream");
    assert_eq!(error.reason(), millrace_common::reason::SOURCE_STREAM_RECREATED);
}

#[test]
fn a_shard_that_is_gone_from_a_stream_that_is_there_has_expired() {
    let mut bed = Bed::new(after(9), None);
    for _ in 1..SHARD_NOT_FOUND {
        assert!(matches!(bed.next().0, Action::GetIterator(_)));
        bed.fail(&failure(Kind::NotFound)).unwrap();
        assert_eq!(bed.next().0, Action::VerifyStream);
        bed.machine
            .on_stream(CreatedStream {
                created_millis: CREATED,
                retention: gap::SHORTEST_RETENTION,
            })
            .unwrap();
    }
    assert!(matches!(bed.next().0, Action::GetIterator(_)));
    let error = bed.fail(&failure(Kind::NotFound)).expect_err("gone");
    assert_eq!(error.reason(), millrace_common::reason::SOURCE_POSITION_EXPIRED);
}

#[test]
fn invalid_arguments_of_an_iterator_are_told_apart_by_their_text() {
    let fail = |start: Position, message: &str| {
        let mut bed = Bed::new(start, None);
        let failure = Failure {
            call: "GetShardIterator",
            kind: Kind::InvalidArgument,
            message: format!("InvalidArgumentException: {message}"),
        };
        bed.fail(&failure).map(|()| bed.machine.next(bed.now))
    };
    let recreated = "StartingSequenceNumber 4 … is invalid because it did not come from this stream.";
    assert!(matches!(fail(after(4), recreated), Err(Error::StreamRecreated { .. })));
    let ours =
        "Invalid StartingSequenceNumber. It encodes shardId-1, while it was used in a call to a shard with shardId-2";
    assert!(matches!(fail(after(4), ours), Err(Error::Refused { .. })));
    // Whether that is a loss depends on what is known.
    assert!(matches!(fail(after(4), "too old"), Ok(Action::VerifyStream)));
    assert!(matches!(
        fail(Position::TrimHorizon, "what"),
        Err(Error::Refused { .. })
    ));
    // A time that is still to come for Kinesis' clock.
    let future = Position::AtTimestamp("2026-01-01T00:00:00Z".parse().unwrap());
    assert!(matches!(
        fail(future, "the timestamp is in the future"),
        Ok(Action::Wait(_))
    ));
}

const HOUR: Duration = Duration::from_secs(3600);

/// A machine whose position was complete at some time before now, with a clock to set.
fn aged(start: Position, age: Option<Duration>) -> (Bed, Clock) {
    let mut bed = Bed::new(start, None);
    let clock = Clock::manual("2026-11-22T12:00:00Z".parse().unwrap());
    bed.machine.options.clock = clock.clone();
    bed.machine.complete_until = age.map(|age| clock.now() - age);
    (bed, clock)
}

fn described(bed: &mut Bed, retention: Duration) {
    assert_eq!(bed.next().0, Action::VerifyStream);
    let stream = CreatedStream {
        created_millis: CREATED,
        retention,
    };
    bed.machine.on_stream(stream).unwrap();
}

fn arrived(mut reply: Reply, millis: i64) -> Reply {
    for record in &mut reply.records {
        record.arrival_millis = millis;
    }
    reply
}

fn too_old() -> Failure {
    Failure {
        call: "GetShardIterator",
        kind: Kind::InvalidArgument,
        message: "InvalidArgumentException: the sequence number is invalid".to_owned(),
    }
}

#[test]
fn an_aged_number_is_no_loss_where_the_reader_was_at_the_tip() {
    let (mut bed, clock) = aged(after(4), Some(HOUR));
    let Action::GetIterator(Origin::Position(position)) = bed.next().0 else {
        panic!()
    };
    assert_eq!(position, after(4));
    bed.fail(&too_old()).unwrap();
    described(&mut bed, HOUR * 24);
    assert_eq!(bed.iterator(), after(4));
    bed.machine.iterator = None;
    bed.fail(&too_old()).unwrap();
    assert_eq!(bed.iterator(), Position::AtTimestamp(clock.now() - HOUR - gap::SKEW));
    // What was read before comes again and is dropped.
    let page = bed.accepted(reply(&[3, 4, 5], 0));
    assert_eq!(
        (page.records.len(), page.duplicates, page.last),
        (1, 2, Some(number(5)))
    );
    assert_eq!(bed.machine.complete_until, Some(clock.now() - HOUR));
    bed.accepted(reply(&[], 0));
    assert_eq!(
        bed.machine.complete_until,
        Some(clock.now() - Duration::from_millis(10))
    );
}

#[test]
fn an_aged_number_is_a_gap_where_it_was_behind() {
    let (mut bed, clock) = aged(after(4), Some(HOUR * 25));
    described(&mut bed, HOUR * 24);
    assert_eq!(bed.next().0, Action::GetIterator(Origin::Record(number(4))));
    let Err(Error::PositionExpired {
        from, to, shard_gone, ..
    }) = bed.fail(&too_old())
    else {
        panic!()
    };
    assert_eq!(
        (from, to),
        (Some(clock.now() - HOUR * 25), Some(clock.now() - HOUR * 24))
    );
    assert!(!shard_gone);
    // A stream that keeps records for longer is asked nothing special.
    let (mut bed, _) = aged(after(4), Some(HOUR * 25));
    described(&mut bed, HOUR * 48);
    assert_eq!(bed.iterator(), after(4));
}

#[test]
fn a_retention_that_was_shortened_since_is_noticed() {
    let (mut bed, clock) = aged(after(4), Some(HOUR * 30));
    described(&mut bed, HOUR * 48);
    assert_eq!(bed.iterator(), after(4));
    // Far behind, so that nothing says when the position was complete but its record.
    let arrival = (clock.now() - HOUR * 28).as_millisecond();
    bed.accepted(arrived(reply(&[5], 1_000), arrival));
    bed.machine.iterator = None;
    described(&mut bed, HOUR * 24);
    assert_eq!(bed.next().0, Action::GetIterator(Origin::Record(number(5))));
}

#[test]
fn what_follows_is_taken_only_if_the_last_record_is_still_there() {
    let begin = |age| {
        let (mut bed, clock) = aged(after(4), age);
        described(&mut bed, HOUR * 24);
        let (action, _) = bed.next();
        assert_eq!(action, Action::GetIterator(Origin::Record(number(4))));
        bed.machine
            .on_iterator(&Origin::Record(number(4)), "iterator".to_owned());
        (bed, clock)
    };
    for age in [None, Some(HOUR * 30)] {
        let (mut bed, _) = begin(age);
        assert_eq!(bed.accepted(reply(&[], 5)).records, []);
        let page = bed.accepted(reply(&[4, 6], 0));
        assert_eq!((page.records.len(), page.duplicates), (1, 1));
        assert_eq!(bed.accepted(reply(&[7], 0)).records.len(), 1);

        let (mut bed, clock) = begin(age);
        let first = clock.now().as_millisecond() - 5_000;
        let Err(Error::PositionExpired { from, to, .. }) = bed.answer(arrived(reply(&[6], 0), first)) else {
            panic!()
        };
        assert_eq!(from, age.map(|age| clock.now() - age));
        assert_eq!(to.map(Timestamp::as_millisecond), Some(first));

        let (mut bed, _) = begin(age);
        assert!(matches!(bed.answer(reply(&[], 0)), Err(Error::PositionExpired { .. })));
    }
}

#[test]
fn a_time_that_has_left_the_stream_is_a_gap_if_it_was_promised() {
    let time = |clock: &Clock| Position::AtTimestamp(clock.now() - HOUR * 25);
    let (mut bed, clock) = aged(Position::TrimHorizon, Some(HOUR * 25));
    bed.machine.position = time(&clock);
    described(&mut bed, HOUR * 24);
    assert_eq!(bed.next().0, Action::GiveUp);
    assert!(matches!(bed.machine.doubtful(), Error::PositionExpired { .. }));
    // Nothing was promised of a time that was gone from the beginning.
    let (mut bed, clock) = aged(Position::TrimHorizon, None);
    bed.machine.position = time(&clock);
    assert_eq!(bed.iterator(), time(&clock));
}

#[test]
fn a_reader_knows_how_far_it_is_complete() {
    let (mut bed, clock) = aged(Position::TrimHorizon, None);
    bed.iterator();
    let early = clock.now().as_millisecond() - 60_000;
    let page = bed.accepted(arrived(reply(&[1], 30_000), early));
    assert_eq!(page.complete_until.map(Timestamp::as_millisecond), Some(early));
    // Arrival times may go back.
    let page = bed.accepted(arrived(reply(&[2], 30_000), early - 500));
    assert_eq!(page.complete_until.map(Timestamp::as_millisecond), Some(early));
    // The first answer at the tip may be of a shard that was closed long ago.
    let page = bed.accepted(reply(&[], 0));
    assert_eq!(page.complete_until.map(Timestamp::as_millisecond), Some(early));
    clock.advance(HOUR);
    let page = bed.accepted(reply(&[], 0));
    assert_eq!(
        page.complete_until,
        Some(clock.now() - HOUR - Duration::from_millis(10))
    );
    let page = bed.accepted(reply(&[], 0));
    assert_eq!(page.complete_until, Some(clock.now() - Duration::from_millis(10)));
    clock.advance(HOUR);
    let page = bed.accepted(reply(&[], 4));
    assert_eq!(
        page.complete_until,
        Some(clock.now() - HOUR - Duration::from_millis(10))
    );
}

#[test]
fn a_backfill_ends_before_the_first_record_of_its_end() {
    let bounded = |past: Duration| {
        let (mut bed, clock) = aged(Position::TrimHorizon, None);
        bed.machine.options.end = Some(clock.now() - past);
        bed.iterator();
        let end = (clock.now() - past).as_millisecond();
        (bed, end)
    };
    let (mut bed, end) = bounded(HOUR);
    assert_eq!(bed.accepted(arrived(reply(&[1, 2], 9), end - 1)).stop(), None);
    let mut mixed = arrived(reply(&[3, 4, 5], 9), end - 1);
    mixed.records[1].arrival_millis = end;
    let page = bed.accepted(mixed);
    assert_eq!(
        (page.records.len(), page.last.clone(), page.stop()),
        (1, Some(number(3)), Some(Stop::Time))
    );

    // At the tip nothing more can come, once the end is well past.
    let (mut bed, _) = bounded(HOUR);
    assert_eq!(bed.accepted(reply(&[], 9)).stop(), None);
    assert_eq!(bed.accepted(reply(&[], 0)).stop(), Some(Stop::Time));
    let (mut bed, _) = bounded(END_GRACE - Duration::from_secs(1));
    assert_eq!(bed.accepted(reply(&[], 0)).stop(), None);

    // The end of a shard comes first: its children may hold records of before.
    let (mut bed, _) = bounded(HOUR);
    let page = bed.accepted(self::end(&[1]));
    assert_eq!(
        (page.stop(), page.end.map(|end| end.children.len())),
        (Some(Stop::ShardEnd), Some(1))
    );
}

#[test]
fn an_invalid_iterator_is_renewed_once_and_then_shown() {
    let mut bed = Bed::new(after(4), None);
    bed.iterator();
    let _ = bed.next();
    bed.fail(&failure(Kind::InvalidArgument)).unwrap();
    assert_eq!((bed.reason(), bed.iterator()), (None, after(4)));
    let _ = bed.next();
    bed.fail(&failure(Kind::InvalidArgument)).unwrap();
    assert!(bed.machine.trouble().is_some_and(|trouble| trouble.permanent));
    assert_eq!(bed.iterator(), after(4));
    bed.accepted(reply(&[5], 0));
    assert_eq!(bed.reason(), None);
}

#[test]
fn a_refused_request_ends_the_reader() {
    let mut bed = Bed::new(after(4), None);
    let error = bed.fail(&failure(Kind::Refused)).expect_err("a defect");
    assert_eq!(error.reason(), millrace_common::reason::INTERNAL);
}

#[test]
fn lag_is_clamped() {
    let mut bed = Bed::new(after(4), None);
    bed.iterator();
    assert_eq!(bed.accepted(reply(&[], -5)).lag, Some(Duration::ZERO));
    assert_eq!(
        bed.accepted(reply(&[], i64::MAX)).lag,
        Some(Duration::from_millis(i64::MAX as u64))
    );
    let silent = Reply {
        millis_behind: None,
        ..reply(&[], 0)
    };
    assert_eq!(bed.accepted(silent).lag, None);
}

mod properties {
    //! A made-up shard behind a made-up service that fails, repeats, expires and throttles at will: every record comes
    //! out once and in order.

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Answer { count: usize, repeat: usize },
        Disorder,
        NoChildren,
        Fail(Kind),
        Stall(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => (0usize..5, 0usize..3).prop_map(|(count, repeat)| Event::Answer { count, repeat }),
            1 => Just(Event::Disorder),
            1 => Just(Event::NoChildren),
            3 => prop::sample::select(vec![
                Kind::Throttled,
                Kind::ExpiredIterator,
                Kind::Transient,
                Kind::Malformed,
                Kind::Denied,
                Kind::Credential,
            ]).prop_map(Event::Fail),
            1 => (1u64..1_000).prop_map(Event::Stall),
        ]
    }

    proptest! {
        #[test]
        fn every_record_comes_once_and_in_order(events in prop::collection::vec(event(), 1..120)) {
            let mut bed = Bed::new(Position::TrimHorizon, None);
            let (mut seen, mut cursor) = (Vec::new(), 0u64);
            let mut calls: Vec<Instant> = Vec::new();
            for event in events {
                match bed.next().0 {
                    Action::GetIterator(from) => {
                        let Origin::Position(position) = &from else { panic!("{from:?}") };
                        // Where the service goes on: after the position.
                        cursor = position.sequence_number().map_or(0, |number| number.as_str().parse().unwrap());
                        bed.machine.on_iterator(&from, "it".to_owned());
                        continue;
                    }
                    Action::GetRecords { .. } => calls.push(bed.now),
                    other => prop_assert!(false, "{:?}", other),
                }
                let started = bed.now;
                bed.now += Duration::from_millis(5);
                let answer = match event {
                    Event::Answer { count, repeat } => {
                        let from = cursor.saturating_sub(repeat as u64) + 1;
                        let numbers: Vec<u64> = (from..=cursor + count as u64).collect();
                        cursor += count as u64;
                        reply(&numbers, 1_000)
                    }
                    Event::Disorder => reply(&[cursor + 2, cursor + 1], 1_000),
                    Event::NoChildren => Reply { next_iterator: None, ..reply(&[cursor + 1], 0) },
                    Event::Fail(kind) => {
                        bed.fail(&failure(kind)).unwrap();
                        continue;
                    }
                    Event::Stall(seconds) => {
                        bed.now += Duration::from_secs(seconds);
                        continue;
                    }
                };
                match bed.machine.on_records(started, bed.now, answer).unwrap() {
                    Ok(accepted) => seen.extend(accepted.records.iter().map(Record::sequence_number)),
                    Err(failure) => bed.fail(&failure).unwrap(),
                }
            }
            let expected: Vec<SequenceNumber> = (1..=seen.len() as u64).map(number).collect();
            prop_assert_eq!(seen, expected);
            // Six calls never come within one second.
            prop_assert!(calls.windows(6).all(|six| six[5] - six[0] >= Duration::from_secs(1)));
        }
    }
}

/// The answer to the call that asks for the first record of a replay, which is record 4.
fn replay_from_the_oldest(start: Position) -> Bed {
    let mut bed = Bed::new(start, Some(6));
    bed.machine.options.first = Some(number(4));
    let (action, _) = bed.next();
    assert_eq!(action, Action::GetIterator(Origin::Record(number(4))));
    bed.machine
        .on_iterator(&Origin::Record(number(4)), "iterator".to_owned());
    bed
}

#[test]
fn a_replay_begins_at_its_first_record() {
    for start in [
        Position::TrimHorizon,
        Position::AtTimestamp(jiff::Timestamp::UNIX_EPOCH),
    ] {
        let mut bed = replay_from_the_oldest(start);
        bed.accepted(reply(&[], 5));
        let page = bed.accepted(reply(&[4, 5], 5));
        assert_eq!((page.records.len(), page.stop()), (2, None));
        bed.fail(&failure(Kind::ExpiredIterator)).unwrap();
        assert_eq!(bed.iterator(), after(5), "the first record is read only once");
        let page = bed.accepted(reply(&[6, 7], 0));
        assert_eq!((page.records.len(), page.stop()), (1, Some(Stop::Until)));
    }
}

#[test]
fn a_replay_whose_first_record_is_gone_is_a_gap() {
    let mut trimmed = replay_from_the_oldest(Position::TrimHorizon);
    let error = trimmed.answer(reply(&[5, 6], 0)).expect_err("4 is gone");
    assert!(matches!(error, Error::PositionExpired { .. }), "{error}");

    let mut refused = replay_from_the_oldest(Position::TrimHorizon);
    refused.machine.iterator = None;
    let error = refused.fail(&failure(Kind::InvalidArgument)).expect_err("4 is gone");
    assert!(matches!(error, Error::PositionExpired { .. }), "{error}");

    let mut empty = replay_from_the_oldest(Position::TrimHorizon);
    let error = (0..EMPTY_AT_TIP).find_map(|_| empty.answer(reply(&[], 0)).err());
    assert!(matches!(error, Some(Error::RecordMissing { .. })), "{error:?}");
}

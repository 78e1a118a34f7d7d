#!/usr/bin/env python3
"""What a Kinesis endpoint must do, asserted with boto3.

The same facts are asserted whatever answers at --endpoint-url, so that an emulator of our own cannot flatter us: the
suite runs against it and against one that nobody here wrote. A fact that the other one is known not to support is
named in UNSUPPORTED with the reason, and skipped there only.

Prints one line per fact and exits with 1 if one does not hold.
"""

import argparse
import sys
import time
import traceback
import uuid
from datetime import datetime, timedelta, timezone

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

# Emulator -> fact -> why it is skipped there.
UNSUPPORTED = {
    "millrace": {},
    "kinesis-local": {
        "the_partition_key_counts_towards_the_record_size": "counts the data only",
        "a_sequence_number_of_another_shard_is_refused": "takes it",
        "a_sequence_number_of_a_deleted_stream_is_refused": "takes it",
        "nonsense_iterators_are_refused": "takes sequence numbers that were never issued, answers 500 to iterators",
        "both_halves_of_a_split_have_keys": "splits off an empty range",
        "a_batch_has_one_to_500_records": "answers batches of none and of 501",
        "a_time_to_come_is_refused": "gives an iterator",
        "the_filter_at_trim_horizon_shows_the_first_shards": "shows the shards since then too",
        "a_subscription_brings_records_and_says_where_to_go_on": "sends no initial response, which boto3 waits for",
        "a_second_subscription_is_refused_for_five_seconds": "sends no initial response, which boto3 waits for",
        "a_subscription_to_a_shard_that_was_split_ends_with_its_children": "a closed shard never ends",
    },
}

MAX_HASH_KEY = 2**128 - 1
READY_SECONDS = 30
FACTS = []


def fact(function):
    """Registers a function that asserts one fact about an endpoint."""
    FACTS.append(function)
    return function


class Subject:
    """A client of the endpoint under test, with the steps that most facts need."""

    def __init__(self, endpoint_url):
        self.client = boto3.client(
            "kinesis",
            endpoint_url=endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            # A refusal is what is looked for: nothing is retried unseen.
            config=Config(retries={"total_max_attempts": 1}, parameter_validation=False),
        )

    def wait_active(self, name):
        deadline = time.monotonic() + READY_SECONDS
        while True:
            summary = self.client.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]
            if summary["StreamStatus"] == "ACTIVE":
                return summary
            assert time.monotonic() < deadline, f"{name} stays {summary['StreamStatus']}"
            time.sleep(0.05)

    def stream(self, shards=1):
        name = f"s-{uuid.uuid4()}"
        self.client.create_stream(StreamName=name, ShardCount=shards)
        self.wait_active(name)
        return name

    def delete(self, name):
        self.client.delete_stream(StreamName=name)
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                self.client.describe_stream_summary(StreamName=name)
            except ClientError as error:
                assert code_of(error) == "ResourceNotFoundException"
                return
            assert time.monotonic() < deadline, f"{name} is not gone"
            time.sleep(0.05)

    def put(self, name, text, key="key", **more):
        return self.client.put_record(StreamName=name, Data=text.encode(), PartitionKey=key, **more)

    def shards(self, name, **more):
        return self.client.list_shards(StreamName=name, **more)["Shards"]

    def iterator(self, name, kind="TRIM_HORIZON", shard="shardId-000000000000", **more):
        answer = self.client.get_shard_iterator(StreamName=name, ShardId=shard, ShardIteratorType=kind, **more)
        return answer["ShardIterator"]

    def read(self, iterator, **more):
        page = self.client.get_records(ShardIterator=iterator, **more)
        return [record["Data"].decode() for record in page["Records"]], page


def code_of(error):
    return error.response["Error"]["Code"]


def refused(call, *codes):
    """Asserts that a call is refused with one of these codes, and returns the message."""
    try:
        answer = call()
    except ClientError as error:
        assert code_of(error) in codes, f"refused with {error}"
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400
        return error.response["Error"]["Message"]
    raise AssertionError(f"not refused but answered {str(answer)[:500]}")


def ids(shards):
    return [shard["ShardId"] for shard in shards]


def shard_id(number):
    return f"shardId-{number:012}"


@fact
def a_summary_describes_the_stream(subject):
    name = subject.stream(3)
    summary = subject.client.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]
    assert summary["StreamName"] == name
    assert summary["StreamARN"] == f"arn:aws:kinesis:us-east-1:000000000000:stream/{name}"
    assert summary["OpenShardCount"] == 3
    assert summary["RetentionPeriodHours"] == 24
    assert summary["StreamModeDetails"]["StreamMode"] == "PROVISIONED"
    age = datetime.now(timezone.utc) - summary["StreamCreationTimestamp"]
    assert abs(age) < timedelta(minutes=1), age


@fact
def names_are_unique_and_checked(subject):
    name = subject.stream()
    refused(lambda: subject.client.create_stream(StreamName=name, ShardCount=1), "ResourceInUseException")
    refused(lambda: subject.client.create_stream(StreamName="a b", ShardCount=1), "ValidationException", "InvalidArgumentException")
    refused(lambda: subject.client.describe_stream_summary(StreamName="no-such"), "ResourceNotFoundException")
    refused(lambda: subject.client.list_shards(StreamName="no-such"), "ResourceNotFoundException")


@fact
def a_stream_is_found_by_arn(subject):
    name = subject.stream()
    arn = subject.wait_active(name)["StreamARN"]
    placed = subject.client.put_record(StreamARN=arn, Data=b"x", PartitionKey="k")
    assert ids(subject.client.list_shards(StreamARN=arn)["Shards"]) == [placed["ShardId"]]
    answer = subject.client.get_shard_iterator(StreamARN=arn, ShardId=placed["ShardId"], ShardIteratorType="TRIM_HORIZON")
    page = subject.client.get_records(StreamARN=arn, ShardIterator=answer["ShardIterator"])
    assert len(page["Records"]) == 1


@fact
def streams_are_listed_in_order(subject):
    names = sorted(subject.stream() for _ in range(3))
    listed = []
    more = {}
    while True:
        page = subject.client.list_streams(Limit=2, **more)
        listed += page["StreamNames"]
        if not page["HasMoreStreams"]:
            break
        more = {"ExclusiveStartStreamName": page["StreamNames"][-1]}
    assert listed == sorted(listed)
    assert set(names) <= set(listed)


@fact
def new_shards_cover_the_hash_keys(subject):
    shards = subject.shards(subject.stream(5))
    assert ids(shards) == [shard_id(i) for i in range(5)]
    ranges = [shard["HashKeyRange"] for shard in shards]
    assert ranges[0]["StartingHashKey"] == "0"
    assert ranges[-1]["EndingHashKey"] == str(MAX_HASH_KEY)
    for left, right in zip(ranges, ranges[1:]):
        assert int(left["EndingHashKey"]) + 1 == int(right["StartingHashKey"])
    for shard in shards:
        assert "ParentShardId" not in shard
        assert "EndingSequenceNumber" not in shard["SequenceNumberRange"]


@fact
def sequence_numbers_look_and_rise_as_the_services_do(subject):
    name = subject.stream()
    start = subject.shards(name)[0]["SequenceNumberRange"]["StartingSequenceNumber"]
    numbers = [subject.put(name, str(i))["SequenceNumber"] for i in range(5)]
    for number in [start, *numbers]:
        assert len(number) == 56 and number.startswith("49"), number
    values = [int(number) for number in [start, *numbers]]
    assert values == sorted(set(values))


@fact
def records_come_back_as_they_were_put(subject):
    name = subject.stream()
    data = bytes(range(256))
    key = 'key "1" ü'
    before = datetime.now(timezone.utc)
    placed = subject.client.put_record(StreamName=name, Data=data, PartitionKey=key)
    subject.client.put_record(StreamName=name, Data=b"", PartitionKey=key)
    _, page = subject_page(subject, name)
    record, empty = page["Records"]
    assert (record["Data"], record["PartitionKey"]) == (data, key)
    assert record["SequenceNumber"] == placed["SequenceNumber"]
    assert abs(record["ApproximateArrivalTimestamp"] - before) < timedelta(minutes=1)
    assert empty["Data"] == b""


def subject_page(subject, name):
    """The first page of the first shard."""
    page = subject.client.get_records(ShardIterator=subject.iterator(name))
    return page["NextShardIterator"], page


@fact
def the_hash_key_decides_the_shard(subject):
    name = subject.stream(4)
    # md5("a") = 0cc1..., md5("key") = 3c6e...: the first and the first quarter's shard.
    assert subject.put(name, "x", key="a")["ShardId"] == shard_id(0)
    assert subject.put(name, "x", key="key")["ShardId"] == shard_id(0)
    # md5("b") = 92eb..., in the third quarter.
    assert subject.put(name, "x", key="b")["ShardId"] == shard_id(2)
    assert subject.put(name, "x", key="a", ExplicitHashKey=str(MAX_HASH_KEY))["ShardId"] == shard_id(3)
    assert subject.put(name, "x", key="a", ExplicitHashKey=str(2**126))["ShardId"] == shard_id(1)


@fact
def a_batch_is_placed_record_by_record(subject):
    name = subject.stream(4)
    records = [{"Data": str(i).encode(), "PartitionKey": f"k{i}"} for i in range(100)]
    answer = subject.client.put_records(StreamName=name, Records=records)
    assert answer["FailedRecordCount"] == 0
    assert len(answer["Records"]) == 100
    found = {}
    for shard in ids(subject.shards(name)):
        page = subject.client.get_records(ShardIterator=subject.iterator(name, shard=shard))
        for record in page["Records"]:
            found[record["SequenceNumber"], shard] = int(record["Data"])
    assert len(found) == 100
    for i, placed in enumerate(answer["Records"]):
        assert found[placed["SequenceNumber"], placed["ShardId"]] == i


@fact
def bad_records_are_refused(subject):
    name = subject.stream()
    bad = ("ValidationException", "InvalidArgumentException")
    refused(lambda: subject.put(name, "x", key="k" * 257), *bad)
    refused(lambda: subject.put(name, "x", ExplicitHashKey=str(MAX_HASH_KEY + 1)), *bad)
    refused(lambda: subject.put(name, "x" * ((1 << 20) + 1)), *bad)
    refused(lambda: subject.put("no-such", "x"), "ResourceNotFoundException")
    assert subject_page(subject, name)[1]["Records"] == []


@fact
def the_partition_key_counts_towards_the_record_size(subject):
    name = subject.stream()
    refused(lambda: subject.put(name, "x" * (1 << 20)), "InvalidArgumentException", "ValidationException")
    subject.put(name, "x" * ((1 << 20) - 3), key="key")


@fact
def a_batch_has_one_to_500_records(subject):
    name = subject.stream()
    record = {"Data": b"x", "PartitionKey": "k"}
    batch = lambda count: subject.client.put_records(StreamName=name, Records=[record] * count)
    refused(lambda: batch(0), "ValidationException")
    refused(lambda: batch(501), "ValidationException")
    assert len(batch(500)["Records"]) == 500


@fact
def iterators_start_where_they_say(subject):
    name = subject.stream()
    numbers = [subject.put(name, str(i))["SequenceNumber"] for i in range(4)]
    texts = lambda *arguments, **more: subject.read(subject.iterator(name, *arguments, **more))[0]
    assert texts() == ["0", "1", "2", "3"]
    assert texts("AT_SEQUENCE_NUMBER", StartingSequenceNumber=numbers[1]) == ["1", "2", "3"]
    assert texts("AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=numbers[1]) == ["2", "3"]
    latest = subject.iterator(name, "LATEST")
    assert subject.read(latest)[0] == []
    subject.put(name, "new")
    assert subject.read(latest)[0] == ["new"]


@fact
def a_time_starts_at_the_first_record_since_then(subject):
    name = subject.stream()
    subject.put(name, "before")
    # boto3 sends whole seconds, so the time between must contain the start of one.
    time.sleep(1.1 + (1 - time.time() % 1))
    middle = datetime.fromtimestamp(int(time.time()), timezone.utc)
    subject.put(name, "after")
    assert subject.read(subject.iterator(name, "AT_TIMESTAMP", Timestamp=middle))[0] == ["after"]
    past = middle - timedelta(hours=1)
    assert subject.read(subject.iterator(name, "AT_TIMESTAMP", Timestamp=past))[0] == ["before", "after"]


@fact
def a_time_to_come_is_refused(subject):
    name = subject.stream()
    future = datetime.now(timezone.utc) + timedelta(hours=1)
    refused(lambda: subject.iterator(name, "AT_TIMESTAMP", Timestamp=future), "InvalidArgumentException")


@fact
def impossible_iterators_are_refused(subject):
    name = subject.stream()
    refused(lambda: subject.iterator(name, shard=shard_id(9)), "ResourceNotFoundException")
    refused(lambda: subject.iterator("no-such"), "ResourceNotFoundException")
    refused(lambda: subject.iterator(name, "AT_SEQUENCE_NUMBER"), "InvalidArgumentException", "ValidationException")


@fact
def a_sequence_number_of_another_shard_is_refused(subject):
    name = subject.stream(2)
    number = subject.put(name, "x", ExplicitHashKey="0")["SequenceNumber"]
    at = lambda shard: subject.iterator(name, "AT_SEQUENCE_NUMBER", shard_id(shard), StartingSequenceNumber=number)
    assert at(0)
    refused(lambda: at(1), "InvalidArgumentException")


@fact
def nonsense_iterators_are_refused(subject):
    name = subject.stream()
    at = lambda number: subject.iterator(name, "AT_SEQUENCE_NUMBER", StartingSequenceNumber=number)
    refused(lambda: at("12"), "InvalidArgumentException")
    refused(lambda: at("x"), "ValidationException")
    refused(lambda: subject.client.get_records(ShardIterator="AAAA"), "InvalidArgumentException")


@fact
def pages_follow_each_other_without_gap(subject):
    name = subject.stream()
    subject.client.put_records(
        StreamName=name, Records=[{"Data": str(i).encode(), "PartitionKey": "k"} for i in range(25)]
    )
    iterator = subject.iterator(name)
    found = []
    lags = []
    for _ in range(3):
        texts, page = subject.read(iterator, Limit=10)
        found.append(texts)
        lags.append(page["MillisBehindLatest"])
        iterator = page["NextShardIterator"]
    assert [len(texts) for texts in found] == [10, 10, 5]
    assert [int(text) for texts in found for text in texts] == list(range(25))
    assert lags[-1] == 0
    texts, page = subject.read(iterator)
    assert (texts, page["MillisBehindLatest"]) == ([], 0)
    refused(lambda: subject.read(iterator, Limit=10_001), "ValidationException", "InvalidArgumentException")


@fact
def a_reader_who_is_behind_is_told_so(subject):
    name = subject.stream()
    subject.put(name, "first")
    time.sleep(0.3)
    subject.put(name, "second")
    _, page = subject.read(subject.iterator(name), Limit=1)
    assert 0 < page["MillisBehindLatest"] < 60_000
    assert subject.read(page["NextShardIterator"])[1]["MillisBehindLatest"] == 0


@fact
def a_page_ends_before_ten_mib_are_passed(subject):
    name = subject.stream()
    for _ in range(12):
        subject.client.put_record(StreamName=name, Data=b"x" * 1_000_000, PartitionKey="k")
    _, page = subject.read(subject.iterator(name))
    size = sum(len(record["Data"]) for record in page["Records"])
    assert 9_000_000 <= size <= 10 << 20, size
    rest, _ = subject.read(page["NextShardIterator"])
    assert len(page["Records"]) + len(rest) == 12


@fact
def a_split_shard_ends_and_names_its_children(subject):
    name = subject.stream()
    subject.put(name, "old")
    parent = subject.iterator(name)
    subject.client.split_shard(StreamName=name, ShardToSplit=shard_id(0), NewStartingHashKey=str(2**127))
    subject.wait_active(name)

    closed, left, right = subject.shards(name)
    ending = int(closed["SequenceNumberRange"]["EndingSequenceNumber"])
    for child, start, end in [(left, 0, 2**127 - 1), (right, 2**127, MAX_HASH_KEY)]:
        assert child["ParentShardId"] == shard_id(0)
        assert child["HashKeyRange"] == {"StartingHashKey": str(start), "EndingHashKey": str(end)}
        assert int(child["SequenceNumberRange"]["StartingSequenceNumber"]) > ending
    assert subject.put(name, "new")["ShardId"] in ids([left, right])

    texts, page = subject.read(parent)
    for _ in range(3):
        if not page.get("NextShardIterator"):
            break
        more, page = subject.read(page["NextShardIterator"])
        texts += more
    assert texts == ["old"]
    assert not page.get("NextShardIterator")
    children = {child["ShardId"]: child["ParentShards"] for child in page["ChildShards"]}
    assert children == {shard_id(1): [shard_id(0)], shard_id(2): [shard_id(0)]}, children


@fact
def both_halves_of_a_split_have_keys(subject):
    name = subject.stream()
    split = lambda key: subject.client.split_shard(StreamName=name, ShardToSplit=shard_id(0), NewStartingHashKey=key)
    for key in ("0", "1", str(MAX_HASH_KEY)):
        refused(lambda: split(key), "InvalidArgumentException")


@fact
def merged_shards_have_one_child(subject):
    name = subject.stream(3)
    merge = lambda one, other: subject.client.merge_shards(
        StreamName=name, ShardToMerge=shard_id(one), AdjacentShardToMerge=shard_id(other)
    )
    refused(lambda: merge(0, 2), "InvalidArgumentException")
    merge(0, 1)
    subject.wait_active(name)
    child = subject.shards(name)[-1]
    assert {child["ParentShardId"], child["AdjacentParentShardId"]} == {shard_id(0), shard_id(1)}
    for parent in (0, 1):
        _, page = subject.read(subject.iterator(name, shard=shard_id(parent)))
        assert not page.get("NextShardIterator")
        assert [sorted(c["ParentShards"]) for c in page["ChildShards"]] == [[shard_id(0), shard_id(1)]]


@fact
def the_shard_count_is_updated(subject):
    name = subject.stream(2)
    update = lambda count: subject.client.update_shard_count(
        StreamName=name, TargetShardCount=count, ScalingType="UNIFORM_SCALING"
    )
    refused(lambda: update(5), "LimitExceededException", "InvalidArgumentException")
    answer = update(4)
    assert (answer["CurrentShardCount"], answer["TargetShardCount"]) == (2, 4)
    assert subject.wait_active(name)["OpenShardCount"] == 4
    opened = [shard for shard in subject.shards(name) if "EndingSequenceNumber" not in shard["SequenceNumberRange"]]
    widths = [int(s["HashKeyRange"]["EndingHashKey"]) - int(s["HashKeyRange"]["StartingHashKey"]) for s in opened]
    assert len(opened) == 4 and max(widths) - min(widths) < 4, widths


@fact
def filters_choose_shards(subject):
    name = subject.stream(2)
    subject.client.split_shard(StreamName=name, ShardToSplit=shard_id(0), NewStartingHashKey=str(2**126))
    subject.wait_active(name)
    chosen = lambda **filter: ids(subject.shards(name, ShardFilter=filter))
    now = datetime.now(timezone.utc) + timedelta(seconds=1)
    assert chosen(Type="AT_LATEST") == [shard_id(i) for i in (1, 2, 3)]
    assert chosen(Type="FROM_TRIM_HORIZON") == [shard_id(i) for i in range(4)]
    assert chosen(Type="AFTER_SHARD_ID", ShardId=shard_id(1)) == [shard_id(2), shard_id(3)]
    past = now - timedelta(hours=1)
    assert chosen(Type="FROM_TIMESTAMP", Timestamp=past) == [shard_id(i) for i in range(4)]
    bad = ("InvalidArgumentException", "ValidationException")
    refused(lambda: chosen(Type="AFTER_SHARD_ID"), *bad)
    refused(lambda: chosen(Type="AT_TIMESTAMP"), *bad)
    refused(lambda: chosen(Type="NOTHING"), "SerializationException", *bad)


@fact
def the_filter_at_trim_horizon_shows_the_first_shards(subject):
    name = subject.stream(2)
    subject.client.split_shard(StreamName=name, ShardToSplit=shard_id(0), NewStartingHashKey=str(2**126))
    subject.wait_active(name)
    assert ids(subject.shards(name, ShardFilter={"Type": "AT_TRIM_HORIZON"})) == [shard_id(0), shard_id(1)]


@fact
def shards_are_listed_in_pages_by_token_alone(subject):
    name = subject.stream(7)
    page = subject.client.list_shards(StreamName=name, MaxResults=3)
    found = ids(page["Shards"])
    token = page["NextToken"]
    refused(
        lambda: subject.client.list_shards(StreamName=name, NextToken=token),
        "InvalidArgumentException",
        "ValidationException",
    )
    while "NextToken" in page:
        page = subject.client.list_shards(NextToken=page["NextToken"], MaxResults=3)
        found += ids(page["Shards"])
    assert found == [shard_id(i) for i in range(7)]
    refused(lambda: subject.client.list_shards(), "InvalidArgumentException", "ValidationException")


@fact
def retention_is_at_least_a_day(subject):
    name = subject.stream()
    hours = lambda: subject.wait_active(name)["RetentionPeriodHours"]
    subject.client.increase_stream_retention_period(StreamName=name, RetentionPeriodHours=48)
    assert hours() == 48
    subject.client.decrease_stream_retention_period(StreamName=name, RetentionPeriodHours=24)
    assert hours() == 24
    bad = ("InvalidArgumentException", "ValidationException")
    refused(lambda: subject.client.decrease_stream_retention_period(StreamName=name, RetentionPeriodHours=23), *bad)
    refused(lambda: subject.client.increase_stream_retention_period(StreamName=name, RetentionPeriodHours=9_000), *bad)


@fact
def tags_are_kept(subject):
    name = subject.stream()
    subject.client.add_tags_to_stream(StreamName=name, Tags={"a": "1", "b": "2"})
    tags = subject.client.list_tags_for_stream(StreamName=name)
    assert {tag["Key"]: tag["Value"] for tag in tags["Tags"]} == {"a": "1", "b": "2"}
    assert tags["HasMoreTags"] is False
    subject.client.remove_tags_from_stream(StreamName=name, TagKeys=["a"])
    assert [tag["Key"] for tag in subject.client.list_tags_for_stream(StreamName=name)["Tags"]] == ["b"]


@fact
def a_stream_of_the_same_name_is_another_stream(subject):
    name = subject.stream()
    subject.put(name, "old")
    created = subject.wait_active(name)["StreamCreationTimestamp"]
    recreate(subject, name)
    assert subject.wait_active(name)["StreamCreationTimestamp"] != created
    assert subject.read(subject.iterator(name))[0] == []


def recreate(subject, name):
    subject.delete(name)
    # The service's dates of creation are whole seconds.
    time.sleep(1.1)
    subject.client.create_stream(StreamName=name, ShardCount=1)
    subject.wait_active(name)


@fact
def a_sequence_number_of_a_deleted_stream_is_refused(subject):
    name = subject.stream()
    number = subject.put(name, "old")["SequenceNumber"]
    recreate(subject, name)
    after = lambda: subject.iterator(name, "AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=number)
    refused(after, "InvalidArgumentException")


@fact
def large_records_pass_when_the_stream_allows_them(subject):
    name = subject.stream()
    arn = subject.wait_active(name)["StreamARN"]
    subject.client.update_max_record_size(StreamARN=arn, MaxRecordSizeInKiB=5_120)
    subject.wait_active(name)
    subject.client.put_record(StreamName=name, Data=b"x" * (4 << 20), PartitionKey="k")
    _, page = subject_page(subject, name)
    assert [len(record["Data"]) for record in page["Records"]] == [4 << 20]


def consumer_of(subject, name, consumer="reader"):
    """An active consumer of a stream."""
    arn = subject.wait_active(name)["StreamARN"]
    registered = subject.client.register_stream_consumer(StreamARN=arn, ConsumerName=consumer)["Consumer"]
    deadline = time.monotonic() + READY_SECONDS
    while True:
        described = subject.client.describe_stream_consumer(ConsumerARN=registered["ConsumerARN"])
        if described["ConsumerDescription"]["ConsumerStatus"] == "ACTIVE":
            return arn, registered["ConsumerARN"]
        assert time.monotonic() < deadline, "the consumer does not become active"
        time.sleep(0.05)


def subscription(subject, consumer, shard="shardId-000000000000", kind="TRIM_HORIZON", **more):
    position = {"Type": kind, **more}
    answer = subject.client.subscribe_to_shard(ConsumerARN=consumer, ShardId=shard, StartingPosition=position)
    for event in answer["EventStream"]:
        yield event["SubscribeToShardEvent"]


@fact
def consumers_are_registered_described_listed_and_deregistered(subject):
    name = subject.stream()
    arn, consumer = consumer_of(subject, name, "one")
    assert consumer.startswith(f"{arn}/consumer/one:"), consumer
    consumer_of(subject, name, "two")
    refused(
        lambda: subject.client.register_stream_consumer(StreamARN=arn, ConsumerName="one"), "ResourceInUseException"
    )
    by_name = subject.client.describe_stream_consumer(StreamARN=arn, ConsumerName="one")["ConsumerDescription"]
    assert (by_name["ConsumerARN"], by_name["StreamARN"]) == (consumer, arn)
    listed = subject.client.list_stream_consumers(StreamARN=arn)["Consumers"]
    assert sorted(one["ConsumerName"] for one in listed) == ["one", "two"]
    subject.client.deregister_stream_consumer(ConsumerARN=consumer)
    deadline = time.monotonic() + READY_SECONDS
    while len(subject.client.list_stream_consumers(StreamARN=arn)["Consumers"]) > 1:
        assert time.monotonic() < deadline, "the consumer is not gone"
        time.sleep(0.05)
    missing = lambda: subject.client.describe_stream_consumer(StreamARN=arn, ConsumerName="one")
    refused(missing, "ResourceNotFoundException")


@fact
def a_subscription_brings_records_and_says_where_to_go_on(subject):
    name = subject.stream()
    for text in ("a", "b"):
        subject.put(name, text)
    _, consumer = consumer_of(subject, name)
    got = []
    for event in subscription(subject, consumer):
        got += [record["Data"].decode() for record in event["Records"]]
        if len(got) >= 2:
            break
    assert got == ["a", "b"], got
    assert event["MillisBehindLatest"] == 0
    assert event["ContinuationSequenceNumber"] >= event["Records"][-1]["SequenceNumber"]


@fact
def a_second_subscription_is_refused_for_five_seconds(subject):
    name = subject.stream()
    _, consumer = consumer_of(subject, name)
    first = subscription(subject, consumer)
    next(first)
    refused(lambda: next(subscription(subject, consumer)), "ResourceInUseException")


@fact
def a_subscription_to_a_shard_that_was_split_ends_with_its_children(subject):
    name = subject.stream()
    subject.put(name, "a")
    _, consumer = consumer_of(subject, name)
    subject.client.split_shard(StreamName=name, ShardToSplit=shard_id(0), NewStartingHashKey=str(2**127))
    subject.wait_active(name)
    events = list(subscription(subject, consumer))
    assert [record["Data"] for event in events for record in event["Records"]] == [b"a"]
    assert ids(events[-1]["ChildShards"]) == [shard_id(1), shard_id(2)]
    assert not any(event.get("ChildShards") for event in events[:-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--endpoint-url", required=True)
    parser.add_argument("--emulator", required=True, choices=UNSUPPORTED)
    parser.add_argument("facts", nargs="*", help="only these")
    arguments = parser.parse_args()

    subject = Subject(arguments.endpoint_url)
    skipped = UNSUPPORTED[arguments.emulator]
    unknown = [name for name in (*skipped, *arguments.facts) if name not in {function.__name__ for function in FACTS}]
    assert not unknown, unknown
    failed = 0
    for function in FACTS:
        name = function.__name__
        if arguments.facts and name not in arguments.facts:
            continue
        if name in skipped:
            print(f"skip  {name}: {skipped[name]}")
            continue
        try:
            function(subject)
            print(f"ok    {name}", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)
    print(f"{arguments.emulator}: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

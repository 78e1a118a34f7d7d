"""Calls every RPC of millrace.api.v1 through a client that grpcio-tools generated from the .proto files.

Arguments: the directory of the generated modules, and a JSON object that says where everything is. Fails if an RPC of the package is not
called, so one that is added has to be added here.
"""

import json
import sys
import uuid

sys.path.insert(0, sys.argv[1])

import grpc
from google.protobuf import duration_pb2, field_mask_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from millrace.api.v1 import (
    access_pb2,
    access_pb2_grpc,
    credential_pb2,
    credential_pb2_grpc,
    discovery_pb2,
    discovery_pb2_grpc,
    pipe_pb2,
    pipe_pb2_grpc,
    rejected_pb2,
    rejected_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
)

BED = json.loads(sys.argv[2])
PARENT = "projects/default"
PIPE = f"{PARENT}/pipes/python"
AWS = f"{PARENT}/credentials/python-aws"
CLICKHOUSE = f"{PARENT}/credentials/python-clickhouse"

called = set()


class Recorder(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Notes what is called."""

    def intercept_unary_unary(self, continuation, details, request):
        called.add(details.method)
        return continuation(details, request)

    intercept_unary_stream = intercept_unary_unary


channel = grpc.intercept_channel(grpc.insecure_channel(BED["millrace"]), Recorder())
pipes = pipe_pb2_grpc.PipeServiceStub(channel)
credentials = credential_pb2_grpc.CredentialServiceStub(channel)
access = access_pb2_grpc.AccessServiceStub(channel)
rejected = rejected_pb2_grpc.RejectedRecordServiceStub(channel)
tokens = token_pb2_grpc.TokenServiceStub(channel)
discovery = discovery_pb2_grpc.DiscoveryServiceStub(channel)


def reason(call):
    """The reason of the error that a call ends with, and the fields that it names."""
    try:
        call()
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        assert status is not None, error
        info, fields = error_details_pb2.ErrorInfo(), []
        for detail in status.details:
            if detail.Is(info.DESCRIPTOR):
                detail.Unpack(info)
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad = error_details_pb2.BadRequest()
                detail.Unpack(bad)
                fields = [violation.field for violation in bad.field_violations]
        assert info.domain == "millrace.dev", status
        return error.code(), info.reason, fields
    raise AssertionError("the call was not refused")


def source():
    return pipe_pb2.KinesisSource(
        stream_arn=BED["stream_arn"],
        iterator_type=pipe_pb2.ITERATOR_TYPE_TRIM_HORIZON,
        credential=AWS,
        endpoint=BED["kinesis"],
    )


def sample():
    return discovery_pb2.SampleRecordsRequest(
        planned=access_pb2.PlannedSource(parent=PARENT, kinesis=source()),
        options=discovery_pb2.SampleOptions(max_records=10),
    )


def a_credential_is_stored_and_never_told():
    keys = credential_pb2.AwsKeys(access_key_id="AKIDEXAMPLE", secret_access_key="canary-python")
    credentials.CreateCredential(
        credential_pb2.CreateCredentialRequest(
            parent=PARENT, credential_id="python-aws", credential=credential_pb2.Credential(aws_keys=keys)
        )
    )
    user = credential_pb2.ClickHouseUser(username=BED["user"], password=BED["password"])
    credentials.CreateCredential(
        credential_pb2.CreateCredentialRequest(
            parent=PARENT, credential_id="python-clickhouse", credential=credential_pb2.Credential(clickhouse_user=user)
        )
    )
    stored = credentials.GetCredential(credential_pb2.GetCredentialRequest(name=AWS))
    listed = credentials.ListCredentials(credential_pb2.ListCredentialsRequest(parent=PARENT))
    assert "canary" not in f"{stored}{listed}"
    assert {AWS, CLICKHOUSE} <= {credential.name for credential in listed.credentials}


def discovery_shows_what_there_is():
    streams = discovery.ListStreams(
        discovery_pb2.ListStreamsRequest(
            parent=PARENT, credential=AWS, region="us-east-1", endpoint=BED["kinesis"], count_shards=True
        )
    )
    assert [(stream.stream_name, stream.open_shard_count) for stream in streams.streams] == [("orders", 2)]
    sampled = discovery.SampleRecords(sample())
    assert sampled.record_count == 10 and json.loads(sampled.documents[0].text)["customer"], sampled
    schema = discovery.InferSchema(discovery_pb2.InferSchemaRequest(parent=PARENT, sample=sample()))
    types = {column.name: column.type for column in schema.columns}
    assert types["order_id"] == "Int64" and types["paid"] == "Bool", types
    server = discovery_pb2.ClickHouseServer(endpoint=BED["clickhouse"], credential=CLICKHOUSE)
    databases = discovery.ListDatabases(discovery_pb2.ListDatabasesRequest(parent=PARENT, server=server))
    assert "default" in [database.database for database in databases.databases]
    discovery.ListTables(discovery_pb2.ListTablesRequest(parent=PARENT, server=server, database="default"))
    described = discovery.DescribeTable(
        discovery_pb2.DescribeTableRequest(parent=PARENT, server=server, database="system", table="one")
    )
    assert [column.name for column in described.columns] == ["dummy"]
    return schema


def a_pipe_lives(schema):
    pipe = pipe_pb2.Pipe(
        display_name="From Python",
        source=pipe_pb2.Source(kinesis=source()),
        destination=pipe_pb2.Destination(
            endpoint=BED["clickhouse"],
            credential=CLICKHOUSE,
            database="default",
            table="python",
            managed_table=True,
            table_definition=pipe_pb2.TableDefinition(sorting_key=list(schema.sorting_key)),
            columns=[pipe_pb2.Column(name=column.name, type=column.type) for column in schema.columns],
        ),
        settings=pipe_pb2.Settings(max_insert_wait=duration_pb2.Duration(nanos=200_000_000)),
    )
    preview = discovery.PreviewRows(
        discovery_pb2.PreviewRowsRequest(planned=discovery_pb2.PlannedPipe(parent=PARENT, pipe=pipe))
    )
    assert preview.row_count > 0 and preview.refused_count == 0, preview
    nameless = pipe_pb2.CreatePipeRequest(parent=PARENT, pipe_id="Not An Id", pipe=pipe)
    code, why, fields = reason(lambda: pipes.CreatePipe(nameless))
    assert (code, why, fields) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", ["pipe_id"]), (code, why, fields)
    request = pipe_pb2.CreatePipeRequest(parent=PARENT, pipe_id="python", pipe=pipe, request_id=str(uuid.uuid4()))
    created = pipes.CreatePipe(request).pipe
    assert created.name == PIPE and created.revision == 1
    assert pipes.CreatePipe(request).pipe == created

    policies = access.GetAwsPolicies(access_pb2.GetAwsPoliciesRequest(pipe=PIPE))
    assert "kinesis:GetRecords" in policies.permission_policy
    findings = access.CheckAccess(access_pb2.CheckAccessRequest(pipe=PIPE)).findings
    assert findings and all(finding.state == access_pb2.ACCESS_STATE_ALLOWED for finding in findings), findings

    for update in pipes.WatchPipe(pipe_pb2.WatchPipeRequest(name=PIPE), timeout=60):
        if update.pipe.status.totals.rows >= BED["records"]:
            break
    got = pipes.GetPipe(pipe_pb2.GetPipeRequest(name=PIPE)).pipe
    assert got.status.totals.rows == BED["records"], got.status
    listed = pipes.ListPipes(pipe_pb2.ListPipesRequest(parent=PARENT, filter="desired_state = RUNNING"))
    assert [pipe.name for pipe in listed.pipes] == [PIPE]

    stale = pipe_pb2.Pipe(name=PIPE, display_name="Stale", etag="stale")
    code, why, _ = reason(lambda: pipes.UpdatePipe(pipe_pb2.UpdatePipeRequest(pipe=stale)))
    assert (code, why) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH"), (code, why)
    renamed = pipe_pb2.Pipe(name=PIPE, display_name="Renamed", desired_state=pipe_pb2.DESIRED_STATE_STOPPED)
    mask = field_mask_pb2.FieldMask(paths=["display_name", "desired_state"])
    updated = pipes.UpdatePipe(pipe_pb2.UpdatePipeRequest(pipe=renamed, update_mask=mask)).pipe
    assert (updated.display_name, updated.revision) == ("Renamed", 2)
    revisions = pipes.ListPipeRevisions(pipe_pb2.ListPipeRevisionsRequest(parent=PIPE)).revisions
    assert [list(revision.changed_fields) for revision in revisions] == [["display_name"], []], revisions
    back = pipes.RollbackPipe(pipe_pb2.RollbackPipeRequest(name=PIPE, revision=1)).pipe
    assert (back.display_name, back.revision) == ("From Python", 3)

    for update in pipes.WatchPipe(pipe_pb2.WatchPipeRequest(name=PIPE), timeout=60):
        if update.pipe.status.state == pipe_pb2.PIPE_STATE_STOPPED:
            break
    moved = pipes.ResetPosition(
        pipe_pb2.ResetPositionRequest(
            name=PIPE, iterator_type=pipe_pb2.ITERATOR_TYPE_TRIM_HORIZON, validate_only=True
        )
    )
    assert len(moved.moves) == 2, moved
    events = pipes.ListPipeEvents(pipe_pb2.ListPipeEventsRequest(parent=PIPE)).events
    assert events[-1].kind == "PIPE_CREATED", events
    rows = discovery.SampleRows(discovery_pb2.SampleRowsRequest(pipe=PIPE, limit=3)).rows
    assert len(rows) == 3 and all("order_id" in json.loads(row) for row in rows), rows
    assert not rejected.ListRejectedRecords(rejected_pb2.ListRejectedRecordsRequest(parent=PIPE)).rejected_records
    assert not rejected.CountRejectedRecords(rejected_pb2.CountRejectedRecordsRequest(parent=PIPE)).counts
    discarded = rejected.DiscardRejectedRecords(rejected_pb2.DiscardRejectedRecordsRequest(parent=PIPE, all=True))
    assert (discarded.record_count, discarded.pending) == (0, False), discarded
    pipes.DeletePipe(pipe_pb2.DeletePipeRequest(name=PIPE))
    code, why, _ = reason(lambda: pipes.GetPipe(pipe_pb2.GetPipeRequest(name=PIPE)))
    assert (code, why) == (grpc.StatusCode.NOT_FOUND, "PIPE_NOT_FOUND"), (code, why)
    for name in (AWS, CLICKHOUSE):
        credentials.DeleteCredential(credential_pb2.DeleteCredentialRequest(name=name))


def a_token_lives():
    token = token_pb2.Token(display_name="python", role=token_pb2.TOKEN_ROLE_VIEWER)
    made = tokens.CreateToken(token_pb2.CreateTokenRequest(token=token, ttl=duration_pb2.Duration(seconds=3600)))
    assert made.secret.startswith("mlr_") and made.token.HasField("expire_time"), made.token
    name = made.token.name
    assert tokens.GetToken(token_pb2.GetTokenRequest(name=name)).token == made.token
    assert [token.name for token in tokens.ListTokens(token_pb2.ListTokensRequest()).tokens] == [name]
    assert tokens.RevokeToken(token_pb2.RevokeTokenRequest(name=name)).token.HasField("revoke_time")


def every_rpc_was_called():
    package = "millrace.api.v1."
    there = set()
    for module in [module for name, module in sys.modules.items() if name.startswith("millrace.api.v1.") and name.endswith("_pb2")]:
        for service in module.DESCRIPTOR.services_by_name.values():
            assert service.full_name.startswith(package)
            there |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    expected = set(BED["rpcs"])
    assert there == expected, f"the generated modules have other RPCs than the server: {there ^ expected}"
    missing = there - {method.decode() if isinstance(method, bytes) else method for method in called}
    assert not missing, f"not called: {sorted(missing)}"
    print(f"{len(there)} RPCs called")


a_credential_is_stored_and_never_told()
a_pipe_lives(discovery_shows_what_there_is())
a_token_lives()
every_rpc_was_called()

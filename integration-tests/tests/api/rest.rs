//! The API as JSON over HTTP, and as gRPC-Web, by a client that knows nothing of gRPC.

use std::{process::Stdio, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use millrace_common::crypto::{KEY_LEN, Sealer};
use millrace_control_plane::{
    app::{App, Options, Running},
    auth::Auth,
};
use millrace_integration_tests::process::tools_dir;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic_prost::prost::Message as _;

use super::bed::{Bed, PARENT};

const ADMIN: &str = "an operator's token of more than 32 characters";
/// What a client of these tests waits for an answer.
const LIMIT: Duration = Duration::from_secs(20);

struct Browser {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    headers: Vec<(&'static str, String)>,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// The reason in an error.
    fn reason(&self) -> String {
        let value = self.json();
        let details = value["error"]["details"].as_array().cloned().unwrap_or_default();
        let info = details
            .iter()
            .find(|detail| detail["@type"] == "type.googleapis.com/google.rpc.ErrorInfo");
        info.unwrap_or_else(|| panic!("{value:#}"))["reason"]
            .as_str()
            .expect("a reason")
            .to_owned()
    }
}

impl Browser {
    /// Of HTTP/1.1, as most scripts speak it, or of HTTP/2.
    fn new(running: &Running, http2: bool) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).http2_only(http2).build_http(),
            base: format!("http://{}", running.addr),
            headers: Vec::new(),
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    async fn open(&self, method: &Method, path: &str, body: impl Into<Bytes>) -> http::Response<Incoming> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let answer = tokio::time::timeout(LIMIT, self.client.request(request)).await;
        answer.expect("an answer in time").expect("an answer")
    }

    async fn send(&self, method: &Method, path: &str, body: impl Into<Bytes>) -> Answer {
        let (parts, body) = self.open(method, path, body).await.into_parts();
        let body = tokio::time::timeout(LIMIT, body.collect()).await;
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.expect("a body in time").expect("a body").to_bytes(),
        }
    }

    async fn json(&self, method: &Method, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.send(method, path, body).await
    }
}

fn script(running: &Running, http2: bool) -> Browser {
    Browser::new(running, http2).with("content-type", "application/json")
}

async fn bare(auth: Auth, browsers: &[&str]) -> (Running, DropGuard) {
    let sealer = Arc::new(Sealer::new(&[7; KEY_LEN]).expect("a key"));
    let options = Options {
        auth,
        browsers: browsers
            .iter()
            .map(|origin| origin.parse().expect("an origin"))
            .collect(),
        ..Options::new("sqlite::memory:", sealer)
    };
    let shutdown = CancellationToken::new();
    let running = App::start(options, shutdown.clone()).await.expect("a control plane");
    (running, shutdown.drop_guard())
}

fn pipe(bed: &Bed, table: &str) -> Value {
    let endpoint = bed.engine.http_url();
    json!({
        "displayName": "Events",
        "source": { "kinesis": {
            "streamName": "events", "region": "us-east-1", "iteratorType": "TRIM_HORIZON",
            "credential": format!("{PARENT}/credentials/aws"), "endpoint": bed.kinesis.endpoint_url(),
        } },
        "destination": {
            "endpoint": endpoint, "credential": format!("{PARENT}/credentials/owner"),
            "database": super::bed::DATABASE, "table": table,
        },
        "settings": { "maxInsertWait": "2.500s" },
    })
}

#[tokio::test]
async fn a_pipe_lives_over_http() {
    let bed = Bed::start().await;
    bed.create_table("rest").await;
    for http2 in [false, true] {
        let script = script(&bed.running, http2);
        let pipes = format!("/v1/{PARENT}/pipes");
        let id = format!("rest-{}", u8::from(http2) + 1);
        let one = format!("{pipes}/{id}");

        let create = format!("{pipes}?pipe_id={id}");
        let planned = script
            .json(
                &Method::POST,
                &format!("{create}&validate_only=true"),
                &pipe(&bed, "rest"),
            )
            .await;
        assert_eq!(planned.status, StatusCode::OK, "{:#}", planned.json());
        assert_eq!(
            script.json(&Method::GET, &one, &Value::Null).await.reason(),
            "PIPE_NOT_FOUND"
        );
        let created = script.json(&Method::POST, &create, &pipe(&bed, "rest")).await;
        assert_eq!(created.status, StatusCode::OK, "{:#}", created.json());
        assert_eq!(created.headers[header::CONTENT_TYPE], "application/json");
        // The answer is the pipe itself, as `response_body` says; 64-bit numbers are strings.
        let created = created.json();
        assert_eq!(
            (&created["name"], &created["revision"]),
            (&json!(format!("{PARENT}/pipes/{id}")), &json!("1"))
        );
        assert_eq!(created["settings"]["maxInsertWait"], "2.500s");
        let again = script.json(&Method::POST, &create, &pipe(&bed, "rest")).await;
        assert_eq!(
            (again.status, again.reason()),
            (StatusCode::CONFLICT, "ALREADY_EXISTS".to_owned())
        );

        let update = format!("{one}?update_mask=display_name,settings.max_insert_wait");
        let change = json!({ "displayName": "Other", "settings": { "maxInsertWait": "3s" }, "etag": created["etag"] });
        let updated = script.json(&Method::PATCH, &update, &change).await;
        assert_eq!(updated.status, StatusCode::OK, "{:#}", updated.json());
        assert_eq!(updated.json()["displayName"], "Other");
        let stale = script.json(&Method::PATCH, &update, &change).await;
        assert_eq!(
            (stale.status, stale.json()["error"]["status"].clone()),
            (StatusCode::CONFLICT, json!("ABORTED"))
        );
        let back = script
            .json(&Method::POST, &format!("{one}:rollback"), &json!({ "revision": 1 }))
            .await;
        assert_eq!(back.json()["settings"]["maxInsertWait"], "2.500s", "{:#}", back.json());

        let listed = script
            .json(&Method::GET, &format!("{pipes}?page_size=1"), &Value::Null)
            .await
            .json();
        assert_eq!(listed["pipes"].as_array().map(Vec::len), Some(1), "{listed:#}");
        let events = script
            .json(&Method::GET, &format!("{one}/events"), &Value::Null)
            .await
            .json();
        assert!(events.to_string().contains("PIPE_CREATED"), "{events:#}");

        // A line for each message, as they come.
        let mut watch = script
            .open(&Method::GET, &format!("{one}:watch?interval=1s"), Bytes::new())
            .await;
        assert_eq!(watch.headers()[header::CONTENT_TYPE], "application/x-ndjson");
        for _ in 0..2 {
            let frame = tokio::time::timeout(LIMIT, watch.body_mut().frame())
                .await
                .expect("a line in time");
            let data = frame.expect("a line").expect("a line").into_data().expect("data");
            let line: Value = serde_json::from_slice(data.strip_suffix(b"\n").expect("a whole line")).expect("JSON");
            assert_eq!(line["pipe"]["name"], created["name"], "{line:#}");
        }
        drop(watch);
        let nobody = script
            .json(&Method::GET, &format!("{pipes}/nobody:watch"), &Value::Null)
            .await;
        assert_eq!(
            (nobody.status, nobody.reason()),
            (StatusCode::NOT_FOUND, "PIPE_NOT_FOUND".to_owned())
        );

        let deleted = script.json(&Method::DELETE, &one, &Value::Null).await;
        assert_eq!((deleted.status, deleted.json()), (StatusCode::OK, json!({})));
        assert_eq!(
            script.json(&Method::GET, &one, &Value::Null).await.status,
            StatusCode::NOT_FOUND
        );
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said() {
    let (running, _stop) = bare(Auth::None, &[]).await;
    let script = script(&running, false);
    let pipes = "/v1/projects/default/pipes";

    let wrong = script
        .json(&Method::POST, &format!("{pipes}?pipe_id=a"), &json!({ "sauce": 1 }))
        .await;
    assert_eq!(
        (wrong.status, wrong.reason()),
        (StatusCode::BAD_REQUEST, "INVALID_FIELD".to_owned())
    );
    let error = wrong.json()["error"].clone();
    assert_eq!(
        (&error["code"], &error["status"]),
        (&json!(400), &json!("INVALID_ARGUMENT"))
    );
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .starts_with("pipe.sauce: no such field; there are: name,"),
        "{error:#}"
    );

    for (method, path, status, reason) in [
        (Method::GET, "/", StatusCode::NOT_FOUND, "PATH_NOT_FOUND"),
        (
            Method::GET,
            "/v1/projects/default",
            StatusCode::NOT_FOUND,
            "PATH_NOT_FOUND",
        ),
        (
            Method::GET,
            "/v1/projects/default/pipes/a/../../../tokens",
            StatusCode::NOT_FOUND,
            "PATH_NOT_FOUND",
        ),
        (
            Method::POST,
            "/millrace.api.v1.PipeService/ListPipes",
            StatusCode::NOT_FOUND,
            "PATH_NOT_FOUND",
        ),
        (Method::PUT, pipes, StatusCode::METHOD_NOT_ALLOWED, "VERB_NOT_ALLOWED"),
        (
            Method::GET,
            "/v1/projects/default/pipes?page_size=-1",
            StatusCode::BAD_REQUEST,
            "INVALID_FIELD",
        ),
        (
            Method::GET,
            "/v1/projects/default/pipes?page_size=1&page_size=2",
            StatusCode::BAD_REQUEST,
            "INVALID_FIELD",
        ),
        (
            Method::GET,
            "/v1/projects/default/pipes?page_size=99999999999",
            StatusCode::BAD_REQUEST,
            "INVALID_FIELD",
        ),
        (
            Method::GET,
            "/v1/projects/default/pipes/%00",
            StatusCode::BAD_REQUEST,
            "INVALID_FIELD",
        ),
    ] {
        let answer = script.send(&method, path, "").await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (status, reason),
            "{method} {path}"
        );
    }
    assert_eq!(
        script.send(&Method::PUT, pipes, "").await.headers[header::ALLOW],
        "POST, GET"
    );

    let large = script.send(&Method::POST, pipes, vec![b' '; 5 << 20]).await;
    assert_eq!(
        (large.status, large.reason().as_str()),
        (StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE")
    );
    for content in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=a",
    ] {
        let form = Browser::new(&running, false).with("content-type", content);
        let answer = form
            .send(&Method::POST, "/v1/tokens", r#"{"displayName":"a","role":"ADMIN"}"#)
            .await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "CONTENT_TYPE_NOT_JSON")
        );
    }
    // Nothing is said, not even that it is empty.
    let form = Browser::new(&running, false);
    assert_eq!(
        form.send(&Method::POST, "/v1/tokens/a:revoke", "").await.status,
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
}

#[tokio::test]
async fn tokens_are_asked_for_over_http_too() {
    let auth = Auth::Tokens {
        admin: Some(Arc::new(SecretString::from(ADMIN))),
        worker: None,
        oidc: None,
    };
    let (running, _stop) = bare(auth, &[]).await;
    let list = "/v1/projects/default/pipes";
    let nobody = script(&running, false).json(&Method::GET, list, &Value::Null).await;
    assert_eq!(
        (nobody.status, nobody.reason().as_str()),
        (StatusCode::UNAUTHORIZED, "UNAUTHENTICATED")
    );
    assert_eq!(nobody.headers[header::WWW_AUTHENTICATE], "Bearer");
    let admin = script(&running, false).with("authorization", format!("Bearer {ADMIN}"));
    assert_eq!(
        admin.json(&Method::GET, list, &Value::Null).await.status,
        StatusCode::OK
    );
    let made = admin
        .json(
            &Method::POST,
            "/v1/tokens?ttl=3600s",
            &json!({ "displayName": "viewer", "role": "viewer" }),
        )
        .await
        .json();
    assert!(made["token"]["expireTime"].is_string(), "{made:#}");
    let secret = made["secret"].as_str().expect("a secret");
    let viewer = script(&running, true).with("authorization", format!("Bearer {secret}"));
    assert_eq!(
        viewer.json(&Method::GET, list, &Value::Null).await.status,
        StatusCode::OK
    );
    let denied = viewer.json(&Method::DELETE, &format!("{list}/a"), &Value::Null).await;
    assert_eq!(
        (denied.status, denied.reason().as_str()),
        (StatusCode::FORBIDDEN, "PERMISSION_DENIED")
    );
    // Two are as good as none: which of them a proxy would have meant nobody knows.
    let two = admin.with("authorization", "Bearer other");
    assert_eq!(
        two.json(&Method::GET, list, &Value::Null).await.status,
        StatusCode::UNAUTHORIZED
    );
    // Where tokens are asked for, the name of the control plane is the operator's own.
    let named = script(&running, false).with("host", "millrace.example");
    assert_eq!(
        named.json(&Method::GET, list, &Value::Null).await.status,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn pages_of_others_cannot_call() {
    let (running, _stop) = bare(Auth::None, &["https://console.example"]).await;
    let list = "/v1/projects/default/pipes";
    for content in ["application/json", "application/grpc-web+proto"] {
        let rebound = Browser::new(&running, false)
            .with("content-type", content)
            .with("host", "evil.example");
        let answer = rebound.send(&Method::GET, list, "").await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (StatusCode::FORBIDDEN, "HOST_NOT_LOCAL")
        );
    }
    let allowed = |headers: &HeaderMap| headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).cloned();
    for (origin, may) in [
        ("https://console.example", true),
        ("https://evil.example", false),
        ("null", false),
    ] {
        let preflight = Browser::new(&running, false)
            .with("origin", origin)
            .with("access-control-request-method", "POST")
            .with("access-control-request-headers", "content-type");
        let answer = preflight.send(&Method::OPTIONS, list, "").await;
        assert_eq!(
            allowed(&answer.headers).is_some_and(|allowed| allowed == origin),
            may,
            "{origin}"
        );
        let page = script(&running, false).with("origin", origin);
        let answer = page.json(&Method::GET, list, &Value::Null).await;
        assert_eq!(allowed(&answer.headers).is_some(), may, "{origin}");
    }
}

/// A body of gRPC-Web is messages as gRPC has them, and then the trailers as one more.
#[tokio::test]
async fn browsers_call_by_grpc_web() {
    use millrace_proto::api::v1 as proto;

    let (running, _stop) = bare(Auth::None, &[]).await;
    let browser = Browser::new(&running, false)
        .with("content-type", "application/grpc-web+proto")
        .with("x-grpc-web", "1");
    let request = proto::ListPipesRequest {
        parent: PARENT.into(),
        ..Default::default()
    };
    let framed = |request: &proto::ListPipesRequest| {
        let message = request.encode_to_vec();
        let mut body = vec![0];
        body.extend(u32::try_from(message.len()).expect("a short message").to_be_bytes());
        body.extend(message);
        body
    };
    let path = "/millrace.api.v1.PipeService/ListPipes";
    let answer = browser.send(&Method::POST, path, framed(&request)).await;
    assert_eq!(answer.headers[header::CONTENT_TYPE], "application/grpc-web+proto");
    let body = answer.body.as_ref();
    assert_eq!(body[..6], [0, 0, 0, 0, 0, 0x80], "no pipes, and the trailers");
    assert!(String::from_utf8_lossy(body).contains("grpc-status:0"), "{body:?}");
    let nobody = proto::ListPipesRequest::default();
    let answer = browser.send(&Method::POST, path, framed(&nobody)).await;
    assert_eq!(answer.headers["grpc-status"], "3");
}

/// Each operation of the document is called at its path, and someone else's reader finds the document in order.
#[tokio::test]
async fn the_document_is_valid_and_true() {
    let (running, _stop) = bare(Auth::None, &[]).await;
    let script = script(&running, false);
    let answer = script.send(&Method::GET, "/openapi.json", "").await;
    let document = answer.json();
    let mut called = 0;
    for (path, verbs) in document["paths"].as_object().expect("paths") {
        let path: String = path
            .split('{')
            .enumerate()
            .map(|(at, part)| {
                if at == 0 {
                    part.to_owned()
                } else {
                    format!("x{}", part.split_once('}').expect("an end").1)
                }
            })
            .collect();
        for verb in verbs.as_object().expect("verbs").keys() {
            let method: Method = verb.to_ascii_uppercase().parse().expect("a verb");
            let body = if matches!(method, Method::GET | Method::DELETE) {
                ""
            } else {
                "{}"
            };
            let answer = script.send(&method, &path, body).await;
            // What is asked for is not there, or not whole; the path is there.
            let reached = answer.status == StatusCode::OK
                || !matches!(
                    answer.reason().as_str(),
                    "PATH_NOT_FOUND" | "VERB_NOT_ALLOWED" | "METHOD_NOT_FOUND" | "INTERNAL"
                );
            assert!(reached, "{method} {path}: {}", answer.status);
            called += 1;
        }
    }
    assert!(called > 29, "{called}");

    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("openapi.json");
    std::fs::write(&file, &answer.body).expect("a file");
    let validate = |file: &std::path::Path| {
        let program = tools_dir().join("npm/node_modules/.bin/validate-api");
        tokio::process::Command::new(program)
            .arg(file)
            .stdin(Stdio::null())
            .output()
    };
    let output = validate(&file).await.expect("deploy/dev/tools.sh test installs it");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let mut broken = document;
    broken["paths"]["/v1/tokens"]["get"]["responses"] = json!(7);
    std::fs::write(&file, broken.to_string()).expect("a file");
    let output = validate(&file).await.expect("a verdict");
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

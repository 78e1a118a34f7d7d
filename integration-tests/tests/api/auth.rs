//! Who may call what, over a real server: every method with every role, tokens that end, and TLS. reliability.md D.

use std::{sync::Arc, time::Duration};

use millrace_common::{
    crypto::{KEY_LEN, Sealer},
    error,
    grpc::{Access, Link, ServerTls},
};
use millrace_control_plane::{
    app::{App, Options, Running},
    auth::{Auth, Role, permission},
};
use millrace_integration_tests::process::{Scratch, eventually};
use millrace_proto::api::v1::{
    self as proto, TokenRole, pipe_service_client::PipeServiceClient, token_service_client::TokenServiceClient,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use secrecy::SecretString;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Request, Status, client::Grpc};

const ADMIN: &str = "an-operators-own-token-0123456789abcdef";
const JOIN: &str = "a-join-token-of-workers-0123456789abcdef";
const LIMIT: Duration = Duration::from_secs(20);

struct Guarded {
    running: Running,
    url: String,
    _stop: DropGuard,
}

impl Guarded {
    async fn start(tls: Option<ServerTls>) -> Self {
        let sealer = Arc::new(Sealer::new(&[7; KEY_LEN]).expect("a key"));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let options = Options {
            auth: Auth::Tokens {
                admin: Some(Arc::new(SecretString::from(ADMIN))),
                worker: Some(Arc::new(SecretString::from(JOIN))),
                oidc: None,
            },
            tls,
            ..Options::new("sqlite::memory:", sealer)
        };
        let shutdown = CancellationToken::new();
        let running = App::start(options, shutdown.clone()).await.expect("a control plane");
        Self {
            url: format!("{scheme}://localhost:{}", running.addr.port()),
            running,
            _stop: shutdown.drop_guard(),
        }
    }

    fn link(&self, token: &str) -> Link {
        let access = match token {
            "" => Access::default(),
            token => Access::with_token(token).expect("a token"),
        };
        access.link(&self.url).expect("a URL")
    }

    async fn mint(&self, role: TokenRole, ttl: Option<i64>) -> Result<proto::CreateTokenResponse, Status> {
        let request = proto::CreateTokenRequest {
            token: Some(proto::Token {
                display_name: role.as_str_name().to_ascii_lowercase(),
                role: role.into(),
                ..Default::default()
            }),
            ttl: ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
            ..Default::default()
        };
        let mut tokens = TokenServiceClient::new(self.link(ADMIN));
        Ok(tokens.create_token(request).await?.into_inner())
    }

    /// Calls a method with an empty message; what came of it.
    async fn call(&self, token: &str, path: &str) -> Status {
        let mut client = Grpc::new(self.link(token));
        client.ready().await.expect("a connection");
        let path = path.parse().expect("a path");
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let call = client.server_streaming(Request::new(()), path, codec);
        match tokio::time::timeout(LIMIT, call).await.expect("an answer") {
            Err(status) => status,
            Ok(response) => match tokio::time::timeout(LIMIT, response.into_inner().message()).await {
                Ok(Err(status)) => status,
                _ => Status::ok(""),
            },
        }
    }
}

fn denied(status: &Status) -> Option<Code> {
    let reason = error::reason(status);
    match (status.code(), reason.as_deref()) {
        (Code::Unauthenticated, Some("UNAUTHENTICATED")) | (Code::PermissionDenied, Some("PERMISSION_DENIED")) => {
            Some(status.code())
        }
        (Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented, _) => panic!("{status:?}"),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_takes_the_roles_of_the_table_and_no_others() {
    let guarded = Guarded::start(None).await;
    let mut callers = vec![(String::new(), None), (ADMIN.to_owned(), Some(Role::Admin))];
    callers.push((JOIN.to_owned(), Some(Role::Worker)));
    for (role, known) in [
        (TokenRole::Viewer, Role::Viewer),
        (TokenRole::Operator, Role::Operator),
        (TokenRole::Admin, Role::Admin),
        (TokenRole::Worker, Role::Worker),
    ] {
        let secret = guarded.mint(role, Some(3_600)).await.expect("a token").secret;
        callers.push((secret, Some(known)));
    }
    let mut calls = 0;
    for (service, methods) in permission::TABLE {
        for (method, need) in *methods {
            let path = format!("/{service}/{method}");
            for (token, role) in &callers {
                let expected = match (need.role, role) {
                    (None, _) => None,
                    (Some(_), None) => Some(Code::Unauthenticated),
                    (Some(needed), Some(role)) => (!role.may(needed)).then_some(Code::PermissionDenied),
                };
                // Of health and reflection it matters only that they are let through.
                if need.role.is_none() {
                    continue;
                }
                let status = guarded.call(token, &path).await;
                assert_eq!(denied(&status), expected, "{path} as {role:?}: {status:?}");
                calls += 1;
            }
        }
    }
    assert!(calls > 200, "{calls} calls");
    let health = guarded.call("", "/grpc.health.v1.Health/Check").await;
    assert_eq!(health.code(), Code::Ok, "{health:?}");
    for nothing in ["/millrace.api.v1.PipeService/Nothing", "/nobody.Knows/This"] {
        let status = guarded.call(ADMIN, nothing).await;
        assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
        assert_eq!(error::reason(&status).as_deref(), Some("METHOD_NOT_FOUND"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_once_and_ends_when_it_is_to() {
    let guarded = Guarded::start(None).await;
    let list = "/millrace.api.v1.PipeService/ListPipes";
    let made = guarded.mint(TokenRole::Viewer, None).await.expect("a token");
    let token = made.token.clone().expect("a token");
    assert!(!format!("{made:?}").contains(&made.secret), "a secret is printed");
    assert_eq!((token.creator.as_str(), token.role()), ("operator", TokenRole::Viewer));
    let mut tokens = TokenServiceClient::new(guarded.link(ADMIN));
    let get = proto::GetTokenRequest {
        name: token.name.clone(),
    };
    // Who only knows the id leaves no trace in it.
    let guessed = guarded
        .call(&format!("mlr_{}_guessed", &token.name["tokens/".len()..]), list)
        .await;
    assert_eq!(denied(&guessed), Some(Code::Unauthenticated), "{guessed:?}");
    let unused = tokens
        .get_token(get.clone())
        .await
        .expect("the token")
        .into_inner()
        .token
        .expect("a token");
    assert_eq!(unused.last_use_time, None);
    assert_eq!(denied(&guarded.call(&made.secret, list).await), None);
    let mut wrong = made.secret.clone();
    wrong.pop();
    let long = format!("{}{}", made.secret, "a".repeat(10_000));
    for bad in [wrong.as_str(), long.as_str(), "mlr_nothing_nothing", "x"] {
        let status = guarded.call(bad, list).await;
        assert_eq!(denied(&status), Some(Code::Unauthenticated), "{status:?}");
        assert!(!status.message().contains(bad), "{status:?}");
    }

    let got = tokens
        .get_token(get)
        .await
        .expect("the token")
        .into_inner()
        .token
        .expect("a token");
    assert!(got.last_use_time.is_some() && got.revoke_time.is_none(), "{got:?}");
    let request = proto::RevokeTokenRequest {
        name: token.name.clone(),
    };
    let revoked = tokens
        .revoke_token(request.clone())
        .await
        .expect("revoked")
        .into_inner()
        .token;
    let ended = revoked.expect("a token").revoke_time;
    assert!(ended.is_some());
    let again = tokens.revoke_token(request).await.expect("still").into_inner().token;
    assert_eq!(again.expect("a token").revoke_time, ended, "the time of the first");
    eventually("the token has ended", LIMIT, || async {
        let status = guarded.call(&made.secret, list).await;
        anyhow::ensure!(
            denied(&status) == Some(Code::Unauthenticated) && status.message().contains("revoked"),
            "{status:?}"
        );
        Ok::<_, anyhow::Error>(())
    })
    .await
    .expect("within seconds");
    let listed = tokens
        .list_tokens(proto::ListTokensRequest::default())
        .await
        .expect("tokens")
        .into_inner();
    assert_eq!(listed.tokens.len(), 1);

    for (role, ttl, field) in [
        (TokenRole::Unspecified, None, "token.role"),
        (TokenRole::Viewer, Some(59), "ttl"),
        (TokenRole::Viewer, Some(-1), "ttl"),
        (TokenRole::Viewer, Some(i64::MAX), "ttl"),
    ] {
        let refused = guarded.mint(role, ttl).await.expect_err("refused");
        super::bed::assert_refused(&refused, Code::InvalidArgument, "INVALID_FIELD", field, "must be");
    }
    let missing = proto::GetTokenRequest {
        name: "tokens/nothing".into(),
    };
    let missing = tokens.get_token(missing).await.expect_err("none");
    super::bed::assert_refused(&missing, Code::NotFound, "TOKEN_NOT_FOUND", "", "tokens/nothing");
    // Neither the database nor a page of it holds a token.
    let stored = guarded.running.store.list_tokens(None, 10).await.expect("tokens");
    assert!(
        stored
            .iter()
            .all(|stored| !made.secret.contains(&stored.hash) && stored.hash.len() == 64)
    );
}

/// A certificate authority, and a certificate of it for localhost, in PEM.
struct Certificates {
    ca: String,
    cert: String,
    key: String,
}

impl Certificates {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("a name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let cert = params.signed_by(&key, &ca).expect("a certificate");
        Self {
            ca: ca.pem(),
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_with_those_who_have_a_certificate_where_that_is_asked() {
    let (ours, theirs) = (Certificates::new(), Certificates::new());
    let scratch = Scratch::new("tls").expect("a directory");
    let file = |name: &str, text: &str| {
        let path = scratch.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    };
    let (cert, key) = (file("cert.pem", &ours.cert), file("key.pem", &ours.key));
    let (ca, other) = (file("ca.pem", &ours.ca), file("other.pem", &theirs.ca));
    let (their_cert, their_key) = (file("their-cert.pem", &theirs.cert), file("their-key.pem", &theirs.key));
    let token = file("token", &format!("{ADMIN}\n"));
    for asked in [false, true] {
        let client_ca = asked.then_some(("--tls-client-ca-file", &ca));
        let tls = ServerTls::from_files(("--tls-cert-file", &cert), ("--tls-key-file", &key), client_ca);
        let guarded = Guarded::start(Some(tls.expect("files"))).await;
        let list = async |ca: &std::path::PathBuf, own: Option<(&std::path::PathBuf, &std::path::PathBuf)>| {
            let options = millrace_common::grpc::AccessOptions {
                token_file: Some(token.clone()),
                ca_file: Some(ca.clone()),
                cert_file: own.map(|(cert, _)| cert.clone()),
                key_file: own.map(|(_, key)| key.clone()),
            };
            let link = options.access().expect("files").link(&guarded.url).expect("a URL");
            let request = proto::ListPipesRequest {
                parent: "projects/default".into(),
                ..Default::default()
            };
            PipeServiceClient::new(link).list_pipes(request).await.map(drop)
        };
        assert_eq!(list(&ca, None).await.is_ok(), !asked, "without a certificate");
        assert!(
            list(&ca, Some((&cert, &key))).await.is_ok(),
            "with one of the right authority"
        );
        assert_eq!(
            list(&ca, Some((&their_cert, &their_key))).await.is_ok(),
            !asked,
            "with one of another"
        );
        assert!(
            list(&other, Some((&cert, &key))).await.is_err(),
            "who trusts somebody else"
        );
    }
}

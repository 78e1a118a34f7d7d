//! Callers whom an OpenID Connect issuer vouches for. The issuer is a server of this test with keys of its own; tokens are made by
//! the `jsonwebtoken` crate, or by hand where no library makes them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64_simd::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use millrace_common::{
    crypto::{KEY_LEN, Sealer},
    error,
    grpc::Access,
};
use millrace_control_plane::{
    app::{App, Options, Running},
    auth::{Auth, Role, oidc},
};
use millrace_proto::api::v1::{
    ListPipesRequest, ListTokensRequest, pipe_service_client::PipeServiceClient,
    token_service_client::TokenServiceClient,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status};

const AUDIENCE: &str = "millrace";

/// A key of the issuer.
struct Key {
    id: String,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new(id: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        Self {
            id: id.to_owned(),
            pair,
        }
    }

    /// As the issuer publishes it.
    fn public(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id,
            "x": URL_SAFE_NO_PAD.encode_to_string(&point[1..33]),
            "y": URL_SAFE_NO_PAD.encode_to_string(&point[33..]),
        })
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_as(
            &Header {
                kid: Some(self.id.clone()),
                ..Header::new(Algorithm::ES256)
            },
            claims,
        )
    }

    fn sign_as(&self, header: &Header, claims: &Value) -> String {
        let der = self.pair.to_pkcs8v1().expect("a key");
        let key = EncodingKey::from_ec_der(der.as_ref());
        jsonwebtoken::encode(header, claims, &key).expect("a token")
    }
}

/// An issuer of tokens.
struct Issuer {
    url: String,
    keys: Arc<Mutex<Vec<Value>>>,
    asked: Arc<AtomicUsize>,
    down: Arc<AtomicBool>,
}

impl Issuer {
    async fn start(keys: &[&Key]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/realm", listener.local_addr().expect("an address"));
        let issuer = Self {
            url: url.clone(),
            keys: Arc::new(Mutex::new(keys.iter().map(|key| key.public()).collect())),
            asked: Arc::default(),
            down: Arc::default(),
        };
        let (keys, asked, down) = (issuer.keys.clone(), issuer.asked.clone(), issuer.down.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (url, keys, asked, down) = (url.clone(), keys.clone(), asked.clone(), down.clone());
                let serve = service_fn(move |request: http::Request<Incoming>| {
                    let answer = match request.uri().path() {
                        _ if down.load(Ordering::SeqCst) => Err(StatusCode::SERVICE_UNAVAILABLE),
                        "/realm/.well-known/openid-configuration" => {
                            Ok(json!({"issuer": url, "jwks_uri": format!("{url}/keys")}))
                        }
                        "/realm/keys" => {
                            asked.fetch_add(1, Ordering::SeqCst);
                            Ok(json!({"keys": *keys.lock()}))
                        }
                        _ => Err(StatusCode::NOT_FOUND),
                    };
                    async move {
                        let (status, body) = match answer {
                            Ok(body) => (StatusCode::OK, body.to_string()),
                            Err(status) => (status, String::new()),
                        };
                        let mut response = Response::new(Full::new(Bytes::from(body)));
                        *response.status_mut() = status;
                        Ok::<_, std::convert::Infallible>(response)
                    }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), serve));
            }
        });
        issuer
    }

    fn claims(&self, roles: &Value) -> Value {
        let now = Timestamp::now().as_second();
        json!({"iss": self.url, "aud": AUDIENCE, "sub": "ann-1", "email": "ann@example.com", "iat": now, "exp": now + 300, "roles": roles})
    }
}

struct Bed {
    running: Running,
    _stop: DropGuard,
}

impl Bed {
    async fn start(issuer: &Issuer, change: impl FnOnce(&mut oidc::Options)) -> Self {
        let sealer = Arc::new(Sealer::new(&[7; KEY_LEN]).expect("a key"));
        let mut options = oidc::Options::new(issuer.url.parse().expect("a URL"), AUDIENCE);
        options.refresh = Duration::from_millis(100);
        change(&mut options);
        let options = Options {
            auth: Auth::Tokens {
                admin: None,
                worker: None,
                oidc: Some(options),
            },
            ..Options::new("sqlite::memory:", sealer)
        };
        let shutdown = CancellationToken::new();
        let running = App::start(options, shutdown.clone()).await.expect("a control plane");
        Self {
            running,
            _stop: shutdown.drop_guard(),
        }
    }

    /// What a viewer may do.
    async fn look(&self, token: &str) -> Result<(), Status> {
        let access = Access::with_token(token).map_err(Status::internal)?;
        let link = access.link(&format!("http://{}", self.running.addr)).expect("a URL");
        let request = ListPipesRequest {
            parent: "projects/default".into(),
            ..Default::default()
        };
        PipeServiceClient::new(link).list_pipes(request).await.map(drop)
    }

    /// What an admin may do.
    async fn administer(&self, token: &str) -> Result<(), Status> {
        let access = Access::with_token(token).expect("a token");
        let link = access.link(&format!("http://{}", self.running.addr)).expect("a URL");
        let request = ListTokensRequest::default();
        TokenServiceClient::new(link).list_tokens(request).await.map(drop)
    }
}

fn reason(status: &Status) -> String {
    error::reason(status).unwrap_or_default()
}

#[tokio::test]
async fn an_issuer_says_who_may_do_what() {
    let key = Key::new("one");
    let issuer = Issuer::start(&[&key]).await;
    let bed = Bed::start(&issuer, |_| {}).await;
    for roles in [json!(["viewer"]), json!("viewer other"), json!(["operator"])] {
        let token = key.sign(&issuer.claims(&roles));
        bed.look(&token).await.expect("a viewer may look");
        let refused = bed.administer(&token).await.expect_err("and no more");
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::PermissionDenied, "PERMISSION_DENIED")
        );
    }
    let admin = key.sign(&issuer.claims(&json!(["viewer", "admin"])));
    bed.administer(&admin).await.expect("an admin");
    for roles in [
        json!([]),
        json!(null),
        json!(["root", "Admin", "worker"]),
        json!({"admin": true}),
    ] {
        let refused = bed.look(&key.sign(&issuer.claims(&roles))).await.expect_err("no role");
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::PermissionDenied, "NO_ROLE"),
            "{roles}"
        );
    }

    let mapped = Bed::start(&issuer, |options| {
        options.role_claim = "realm.groups".into();
        options.roles = vec![(Role::Viewer, "everyone".into()), (Role::Admin, "platform team".into())];
    })
    .await;
    let mut claims = issuer.claims(&json!(["admin"]));
    let refused = mapped.look(&key.sign(&claims)).await.expect_err("another claim counts");
    assert_eq!(reason(&refused), "NO_ROLE");
    claims["realm"] = json!({"groups": ["everyone"]});
    mapped.look(&key.sign(&claims)).await.expect("a viewer");
    mapped.administer(&key.sign(&claims)).await.expect_err("no admin");
    claims["realm"] = json!({"groups": ["platform team"]});
    mapped.administer(&key.sign(&claims)).await.expect("an admin");
}

#[tokio::test]
async fn tokens_that_are_not_what_they_say_are_refused() {
    let (key, stranger) = (Key::new("one"), Key::new("one"));
    let issuer = Issuer::start(&[&key]).await;
    let bed = Bed::start(&issuer, |_| {}).await;
    let now = Timestamp::now().as_second();
    let good = issuer.claims(&json!(["admin"]));
    bed.look(&key.sign(&good)).await.expect("the token is good");
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        key.sign(&claims)
    };
    let without = |name: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().expect("claims").remove(name);
        key.sign(&claims)
    };
    let by_hand = |header: Value, signature: &str| {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode_to_string(value.to_string());
        format!("{}.{}.{signature}", part(&header), part(&good))
    };
    // A published key is no secret that a token could be signed with.
    let point = key.pair.public_key().as_ref();
    let confused = |secret: &[u8]| {
        let header = Header {
            kid: Some("one".into()),
            ..Header::new(Algorithm::HS256)
        };
        jsonwebtoken::encode(&header, &good, &EncodingKey::from_secret(secret)).expect("a token")
    };
    let header = |kid: Option<&str>| Header {
        kid: kid.map(str::to_owned),
        ..Header::new(Algorithm::ES256)
    };
    let whole = key.sign(&good);
    let (signed, signature) = whole.rsplit_once('.').expect("three parts");
    let (head, _) = signed.split_once('.').expect("three parts");
    let other_claims = issuer.claims(&json!(["admin", "more"])).to_string();
    let tokens = [
        ("alg none", by_hand(json!({"alg": "none", "kid": "one"}), "")),
        ("alg None", by_hand(json!({"alg": "None", "kid": "one"}), "x")),
        ("no alg", by_hand(json!({"kid": "one"}), "x")),
        ("HS256 with the public key", confused(point)),
        (
            "HS256 with the public key as published",
            confused(key.public().to_string().as_bytes()),
        ),
        (
            "RS256 with a key for ES256",
            by_hand(json!({"alg": "RS256", "kid": "one"}), signature),
        ),
        ("a stranger's key of the same name", stranger.sign(&good)),
        ("no signature", format!("{signed}.")),
        (
            "other claims",
            format!("{head}.{}.{signature}", URL_SAFE_NO_PAD.encode_to_string(other_claims)),
        ),
        ("no kid", key.sign_as(&header(None), &good)),
        ("an unknown kid", key.sign_as(&header(Some("two")), &good)),
        (
            "a kid that is a path",
            key.sign_as(&header(Some("../../etc/passwd")), &good),
        ),
        ("a kid of 10 kB", key.sign_as(&header(Some(&"k".repeat(10_000))), &good)),
        ("expired by a second", with("exp", json!(now - 1))),
        ("expired long ago", with("exp", json!(1))),
        ("never expires", without("exp")),
        ("not good yet", with("nbf", json!(now + 60))),
        ("for others", with("aud", json!("somebody"))),
        ("for nobody", without("aud")),
        ("by others", with("iss", json!("https://id.example.com"))),
        ("by nobody", without("iss")),
        ("of nobody", without("sub")),
        ("of an empty name", with("sub", json!(""))),
        ("of two lines", with("sub", json!("ann\nmillrace_audit: actor=root"))),
        ("claims that are no object", key.sign(&json!(["admin"]))),
        ("two dots", "ey..".into()),
        ("no JSON", "eyXX.eyXX.eyXX".into()),
    ];
    for (what, token) in tokens {
        let refused = bed.look(&token).await.expect_err(what);
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::Unauthenticated, "UNAUTHENTICATED"),
            "{what}: {refused}"
        );
        assert!(
            !refused.message().contains(&token[..token.len().min(20)]),
            "{what}: {refused}"
        );
    }
    // Beyond what a header may be, the connection refuses it.
    let huge = key.sign_as(&header(Some(&"k".repeat(100_000))), &good);
    bed.look(&huge).await.expect_err("a kid of 100 kB");
    bed.look(&key.sign(&good)).await.expect("others are served");
    bed.look(&with("aud", json!(["somebody", AUDIENCE])))
        .await
        .expect("for several");
    // An unknown name of a key is no way to make a control plane ask for ever.
    assert!(issuer.asked.load(Ordering::SeqCst) < 20, "{:?}", issuer.asked);
}

#[tokio::test]
async fn keys_change_and_issuers_rest() {
    let (one, two) = (Key::new("one"), Key::new("two"));
    let issuer = Issuer::start(&[&one]).await;
    issuer.down.store(true, Ordering::SeqCst);
    let bed = Bed::start(&issuer, |_| {}).await;
    let claims = issuer.claims(&json!(["viewer"]));
    let refused = bed.look(&one.sign(&claims)).await.expect_err("nobody knows the key");
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unavailable, "OIDC_UNAVAILABLE")
    );
    issuer.down.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(150)).await;
    bed.look(&one.sign(&claims)).await.expect("the issuer answers");
    bed.look(&two.sign(&claims))
        .await
        .expect_err("the key is not published");

    *issuer.keys.lock() = vec![one.public(), two.public()];
    tokio::time::sleep(Duration::from_millis(150)).await;
    bed.look(&two.sign(&claims)).await.expect("a new key is found");
    // What is known is good while the issuer rests.
    issuer.down.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(150)).await;
    bed.look(&Key::new("three").sign(&claims))
        .await
        .expect_err("no such key");
    for key in [&one, &two] {
        bed.look(&key.sign(&claims)).await.expect("a key that is known");
    }
    let asked = issuer.asked.load(Ordering::SeqCst);
    for _ in 0..50 {
        bed.look(&one.sign(&claims)).await.expect("a key that is known");
    }
    assert_eq!(
        issuer.asked.load(Ordering::SeqCst),
        asked,
        "nobody asks for what is known"
    );
}

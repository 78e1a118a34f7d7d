//! The check in front of every service, as a layer.

use std::{
    collections::HashMap,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use jiff::Timestamp;
use millrace_common::{clock::Clock, error::ApiError};
use parking_lot::Mutex;
use secrecy::ExposeSecret as _;
use tokio::time::Instant;
use tonic::{
    Code, Status,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};

use super::{
    Auth, CALLER, Caller, Role,
    oidc::{self, Oidc},
    permission::{self, Need},
    token,
};
use crate::{
    events::USER,
    store::{Store, StoredToken},
};

/// Target of audit lines.
const AUDIT: &str = "millrace_audit";
/// How long what is stored of a token is believed: a revoked one ends this late at most.
const BELIEVED: Duration = Duration::from_secs(5);
/// Tokens that are remembered.
const MAX_REMEMBERED: usize = 1_000;

/// There is no token, or none that is good.
const UNAUTHENTICATED: &str = "UNAUTHENTICATED";
/// The token is good, and not for this.
const PERMISSION_DENIED: &str = "PERMISSION_DENIED";
/// The method is not in the permission table.
const METHOD_NOT_FOUND: &str = "METHOD_NOT_FOUND";
/// The database that knows the tokens does not answer.
const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";

/// Knows callers.
pub struct Guard {
    auth: Auth,
    /// Hashes of the operator's own tokens.
    own: Vec<(String, Role)>,
    oidc: Option<Oidc>,
    store: Store,
    clock: Clock,
    /// By id: since when, and what is stored, if anything.
    remembered: Mutex<HashMap<String, (Instant, Option<StoredToken>)>>,
}

impl Guard {
    /// A guard of this kind, with the tokens of this store.
    #[must_use]
    pub fn new(auth: Auth, store: Store, clock: Clock) -> Self {
        let own = match &auth {
            Auth::Tokens { admin, worker, .. } => [(admin, Role::Admin), (worker, Role::Worker)]
                .into_iter()
                .filter_map(|(own, role)| Some((token::hash(own.as_ref()?.expose_secret()), role)))
                .collect(),
            Auth::None => Vec::new(),
        };
        let oidc = match &auth {
            Auth::Tokens { oidc, .. } => oidc.clone().map(Oidc::new),
            Auth::None => None,
        };
        Self {
            auth,
            own,
            oidc,
            store,
            clock,
            remembered: Mutex::default(),
        }
    }

    /// Who calls, if they may call this.
    async fn admit(&self, path: &str, headers: &HeaderMap) -> Result<(Caller, Need), Refused> {
        let Some(need) = permission::needed(path) else {
            let message = format!("there is no method {} that anybody may call", clean(path));
            return Err(ApiError::new(Code::Unimplemented, METHOD_NOT_FOUND, message).into());
        };
        let Some(role) = need.role else {
            let caller = Caller {
                actor: "anybody".to_owned(),
                role: Role::Viewer,
            };
            return Ok((caller, need));
        };
        let caller = match &self.auth {
            Auth::None => Caller {
                actor: USER.to_owned(),
                role: if role == Role::Worker {
                    Role::Worker
                } else {
                    Role::Admin
                },
            },
            Auth::Tokens { .. } => self.caller(headers).await?,
        };
        if !caller.role.may(role) {
            let message = format!(
                "this needs the role {}, and the token is a {}'s: use another token, or ask an admin for one",
                role.as_str(),
                caller.role.as_str()
            );
            let error = ApiError::new(Code::PermissionDenied, PERMISSION_DENIED, message)
                .with_metadata("needed_role", role.as_str())
                .with_metadata("role", caller.role.as_str());
            return Err(Refused {
                actor: caller.actor,
                error,
            });
        }
        Ok((caller, need))
    }

    async fn caller(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let mut all = headers.get_all(AUTHORIZATION).iter();
        let Some(given) = all.next() else {
            return Err(unauthenticated(
                "this control plane needs a token: send `authorization: Bearer …`",
            ));
        };
        // A proxy in front may go by another one of them.
        if all.next().is_some() {
            return Err(unauthenticated("there is more than one authorization: send one"));
        }
        let given = given.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let Some(given) = given else {
            return Err(unauthenticated("the authorization is not `Bearer` and a token"));
        };
        if let Some((_, role)) = self.own.iter().find(|(own, _)| token::matches(given, own)) {
            return Ok(Caller {
                actor: "operator".to_owned(),
                role: *role,
            });
        }
        if let Some(oidc) = self.oidc.as_ref().filter(|_| oidc::is_jwt(given)) {
            return oidc.caller(given).await;
        }
        // Of a wrong secret nobody learns whether there is such an id.
        let unknown = || unauthenticated("the token is not known: check it, or ask an admin for another one");
        let id = token::id_of(given).ok_or_else(unknown)?;
        let stored = self.stored(id).await?.ok_or_else(unknown)?;
        if !token::matches(given, &stored.hash) {
            return Err(unknown());
        }
        let now = self.clock.now();
        if let Some(revoked) = stored.revoked {
            return Err(unauthenticated(&format!("the token was revoked at {revoked}")));
        }
        if let Some(expires) = stored.expires.filter(|expires| *expires <= now) {
            return Err(unauthenticated(&format!("the token has ended at {expires}")));
        }
        self.note_use(stored.clone()).await;
        Ok(Caller {
            // Names need not differ.
            actor: format!("token/{} ({})", stored.id, stored.display_name),
            role: stored.role,
        })
    }

    /// Notes that a token is used; only of one that is good, and no call fails for it.
    async fn note_use(&self, mut token: StoredToken) {
        if let Err(error) = self.store.note_token_use(&token).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                token = token.id,
                "the use of a token cannot be noted"
            );
        }
        token.used = Some(self.clock.now());
        if let Some((_, Some(remembered))) = self.remembered.lock().get_mut(&token.id) {
            remembered.used = token.used;
        }
    }

    /// What is stored of a token, as of a few seconds ago.
    async fn stored(&self, id: &str) -> Result<Option<StoredToken>, ApiError> {
        let now = Instant::now();
        if let Some((since, stored)) = self.remembered.lock().get(id)
            && now.duration_since(*since) < BELIEVED
        {
            return Ok(stored.clone());
        }
        let stored = self.store.get_token(id).await.map_err(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "a token cannot be looked up");
            ApiError::unavailable(STORE_UNAVAILABLE, "the database is not available: try again")
        })?;
        let mut remembered = self.remembered.lock();
        if remembered.len() >= MAX_REMEMBERED {
            remembered.retain(|_, (since, _)| now.duration_since(*since) < BELIEVED);
            if remembered.len() >= MAX_REMEMBERED {
                remembered.clear();
            }
        }
        remembered.insert(id.to_owned(), (now, stored.clone()));
        Ok(stored)
    }
}

/// Why a call is not let through.
struct Refused {
    /// Who made it, if that is known.
    actor: String,
    error: ApiError,
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self {
            actor: String::new(),
            error,
        }
    }
}

pub(super) fn unauthenticated(message: &str) -> ApiError {
    ApiError::new(Code::Unauthenticated, UNAUTHENTICATED, message)
}

/// Puts the guard in front of services.
#[derive(Clone)]
pub struct Layer(Arc<Guard>);

impl Layer {
    /// With this guard.
    #[must_use]
    pub fn new(guard: Guard) -> Self {
        Self(Arc::new(guard))
    }
}

impl<S> tower::Layer<S> for Layer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            guard: self.0.clone(),
            inner,
        }
    }
}

/// Services behind a guard.
#[derive(Clone)]
pub struct Guarded<S> {
    guard: Arc<Guard>,
    inner: S,
}

impl<S, I, O> tower::Service<Request<I>> for Guarded<S>
where
    S: tower::Service<Request<I>, Response = Response<O>> + Clone + Send + 'static,
    S::Future: Send,
    I: Send + 'static,
    O: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        // The one that is ready is the one that is called.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let guard = self.guard.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let peer = peer(&request);
            match guard.admit(&path, request.headers()).await {
                Ok((caller, need)) => {
                    let actor = caller.actor.clone();
                    let response = CALLER.scope(caller, inner.call(request)).await;
                    if let (true, Ok(response)) = (need.changes, &response) {
                        audit(guard.clock.now(), &actor, &path, &peer, code_of(response));
                    }
                    response
                }
                Err(Refused { actor, error }) => {
                    audit(guard.clock.now(), &actor, &path, &peer, error.code);
                    Ok(Status::from(error).into_http())
                }
            }
        })
    }
}

/// Tells of a call that changes something, or that was refused. Its answer has the rest: names and values may be secret.
fn audit(time: Timestamp, actor: &str, method: &str, peer: &str, code: Code) {
    tracing::info!(target: AUDIT, %time, actor, method = clean(method), peer, code = ?code, "call");
}

/// What a caller says, with nothing that could be taken for another line, and not all of it.
fn clean(text: &str) -> String {
    text.chars().take(200).filter(|c| !c.is_control()).collect()
}

/// How a call ended. An error of a call without a stream is in the headers.
fn code_of<O>(response: &Response<O>) -> Code {
    Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
}

fn peer<I>(request: &Request<I>) -> String {
    let extensions = request.extensions();
    let plain = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
    let tls = extensions
        .get::<TlsConnectInfo<TcpConnectInfo>>()
        .and_then(|info| info.get_ref().remote_addr());
    plain.or(tls).map(|address| address.to_string()).unwrap_or_default()
}

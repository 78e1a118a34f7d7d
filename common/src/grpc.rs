//! gRPC as both planes use it: limits of a server, its TLS, and a channel to one, with what a client proves itself by.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig},
};

/// Largest message either way. A request that is larger is a mistake or an attack.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Largest message of a session: an `AssignmentSet` names every shard of a worker.
pub const MAX_SESSION_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// Streams per connection. tonic's default of "none" would lift hyper's own bound.
const MAX_CONCURRENT_STREAMS: u32 = 256;
/// HTTP/2 ping interval: finds half-open connections.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a ping may stay unanswered.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The token of this process, where a file is not wanted. Not an option: command lines are there for all to see.
const TOKEN_VARIABLE: &str = "MILLRACE_TOKEN";

/// A server with Millrace's limits.
pub fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .tcp_nodelay(true)
}

/// A channel that connects when it is first used and again whenever the connection breaks. It proves nothing and trusts the system's
/// roots.
///
/// # Errors
/// If `url` is not an `http://` or `https://` URL.
pub fn channel(url: &str) -> Result<Channel, tonic::transport::Error> {
    Access::default().channel(url)
}

/// A channel on which every call carries what the client proves itself by.
pub type Link = InterceptedService<Channel, Bearer>;

/// How a client proves who it is, and whom it trusts.
#[derive(Clone, Default)]
pub struct Access {
    bearer: Bearer,
    ca: Option<Certificate>,
    identity: Option<Identity>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("token", &self.bearer.0.is_some())
            .field("ca", &self.ca.is_some())
            .field("identity", &self.identity.is_some())
            .finish()
    }
}

impl Access {
    /// With this token.
    ///
    /// # Errors
    /// If it has characters that no token has.
    pub fn with_token(token: &str) -> Result<Self, String> {
        Ok(Self {
            bearer: Bearer::new(token)?,
            ..Self::default()
        })
    }

    /// A channel to the server at `url` that proves and trusts this.
    ///
    /// # Errors
    /// As [`channel`], or if a certificate cannot be used.
    pub fn link(&self, url: &str) -> Result<Link, tonic::transport::Error> {
        Ok(InterceptedService::new(self.channel(url)?, self.bearer.clone()))
    }

    fn channel(&self, url: &str) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(url.to_owned())?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let endpoint = if endpoint.uri().scheme_str() == Some("https") {
            let tls = ClientTlsConfig::new();
            let tls = match &self.ca {
                Some(ca) => tls.ca_certificate(ca.clone()),
                None => tls.with_native_roots(),
            };
            endpoint.tls_config(match &self.identity {
                Some(identity) => tls.identity(identity.clone()),
                None => tls,
            })?
        } else {
            endpoint
        };
        Ok(endpoint.connect_lazy())
    }
}

/// Puts a token on each call.
#[derive(Clone, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    fn new(token: &str) -> Result<Self, String> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| "is no token: it has characters that a header cannot have".to_owned())?;
        // Not to be compressed with others, and not to be printed.
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// What a client proves itself by, and whom it trusts: options of a command.
#[derive(Debug, Clone, Default, Args)]
// Without a group of its own: the commands that take these options have options of that name too.
#[group(skip)]
pub struct AccessOptions {
    /// File with the token to prove oneself with; or set MILLRACE_TOKEN to the token itself.
    #[arg(long, global = true, env = "MILLRACE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// PEM file with the certificate authority that control planes are certified by. Without: those that the system trusts.
    #[arg(long, global = true, env = "MILLRACE_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// PEM file with this client's own certificate, where control planes ask for one.
    #[arg(
        long,
        global = true,
        env = "MILLRACE_CERT_FILE",
        value_name = "FILE",
        requires = "key_file"
    )]
    pub cert_file: Option<PathBuf>,
    /// PEM file with the key of `--cert-file`.
    #[arg(
        long,
        global = true,
        env = "MILLRACE_KEY_FILE",
        value_name = "FILE",
        requires = "cert_file"
    )]
    pub key_file: Option<PathBuf>,
}

impl AccessOptions {
    /// What the options mean.
    ///
    /// # Errors
    /// The option at fault, and what is wrong with it.
    pub fn access(&self) -> Result<Access, String> {
        let variable = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty());
        let (token, origin) = match (&self.token_file, variable) {
            (Some(_), Some(_)) => return Err(format!("give --token-file or {TOKEN_VARIABLE}, not both")),
            (Some(file), None) => (Some(read("--token-file", file)?), "--token-file"),
            (None, token) => (token, TOKEN_VARIABLE),
        };
        let bearer = token.map(|token| Bearer::new(&token)).transpose();
        let ca = self.ca_file.as_ref().map(|file| read("--ca-file", file)).transpose()?;
        let identity = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => Some(Identity::from_pem(read("--cert-file", cert)?, read("--key-file", key)?)),
            _ => None,
        };
        Ok(Access {
            bearer: bearer.map_err(|error| format!("{origin} {error}"))?.unwrap_or_default(),
            ca: ca.map(Certificate::from_pem),
            identity,
        })
    }
}

/// TLS of a server.
#[derive(Clone)]
pub struct ServerTls(ServerTlsConfig);

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls")
    }
}

impl ServerTls {
    /// Of these PEM files. With a certificate authority, clients have to have a certificate of it.
    ///
    /// # Errors
    /// The option at fault, and what is wrong with it.
    pub fn from_files(
        (cert_option, cert): (&str, &PathBuf),
        (key_option, key): (&str, &PathBuf),
        client_ca: Option<(&str, &PathBuf)>,
    ) -> Result<Self, String> {
        let identity = Identity::from_pem(read(cert_option, cert)?, read(key_option, key)?);
        let tls = ServerTlsConfig::new().identity(identity);
        Ok(Self(match client_ca {
            Some((option, ca)) => tls.client_ca_root(Certificate::from_pem(read(option, ca)?)),
            None => tls,
        }))
    }

    /// The server with this TLS.
    ///
    /// # Errors
    /// If the certificate or the key cannot be used.
    pub fn apply<L>(&self, server: Server<L>) -> Result<Server<L>, tonic::transport::Error> {
        server.tls_config(self.0.clone())
    }
}

fn read(option: &str, file: &PathBuf) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| format!("{option}: cannot read {}: {error}", file.display()))
}

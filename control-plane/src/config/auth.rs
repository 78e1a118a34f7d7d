//! Who may call: options of the control plane, and of `millrace standalone`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, ValueEnum};
use http::HeaderValue;
use millrace_common::grpc::ServerTls;
use secrecy::SecretString;
use url::Url;

use crate::auth::{Auth, Role, oidc};

/// The operator's own token, where a file is not wanted.
const ADMIN_TOKEN_VARIABLE: &str = "MILLRACE_ADMIN_TOKEN";
/// The same for workers.
const WORKER_TOKEN_VARIABLE: &str = "MILLRACE_WORKER_TOKEN";
/// So much of a token cannot be guessed.
const MIN_TOKEN_CHARS: usize = 32;

/// How callers are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    /// They are not.
    None,
    /// By tokens.
    Tokens,
}

/// Who may call, and over what.
#[derive(Debug, Clone, Default, Args)]
// Without a group of its own: the commands that take these options have options of that name too.
#[group(skip)]
pub struct AuthOptions {
    /// How callers are known: `tokens`, or `none`, which is for the loopback interface. Default: `tokens` if one is
    /// given.
    #[arg(long, env = "MILLRACE_AUTH", value_enum)]
    pub auth: Option<AuthMode>,
    /// File with a token of the operator's own, an admin's, of 32 characters at least; or set MILLRACE_ADMIN_TOKEN. It makes the first
    /// tokens; `openssl rand -hex 32` makes one.
    #[arg(long, env = "MILLRACE_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// File with a token for workers, likewise; or set MILLRACE_WORKER_TOKEN. Tokens of the role `worker` do as well.
    #[arg(long, env = "MILLRACE_WORKER_TOKEN_FILE")]
    pub worker_token_file: Option<PathBuf>,
    /// URL of an OpenID Connect issuer whose JSON Web Tokens are good, too. Its keys are found by it.
    #[arg(long, env = "MILLRACE_OIDC_ISSUER", value_name = "URL", requires = "oidc_audience")]
    pub oidc_issuer: Option<String>,
    /// Audience (`aud`) that its tokens have to be made for.
    #[arg(long, env = "MILLRACE_OIDC_AUDIENCE", value_name = "TEXT", requires = "oidc_issuer")]
    pub oidc_audience: Option<String>,
    /// Claim of its tokens that says the roles: a name, or a path such as `realm_access.roles`.
    #[arg(
        long,
        env = "MILLRACE_OIDC_ROLE_CLAIM",
        value_name = "CLAIM",
        default_value = "roles"
    )]
    pub oidc_role_claim: String,
    /// What in that claim gives which role, such as `viewer=everyone,operator=data,admin=platform`. Without: the names of the roles.
    #[arg(long, env = "MILLRACE_OIDC_ROLES", value_delimiter = ',', value_name = "ROLE=VALUE")]
    pub oidc_roles: Vec<String>,
    /// Let everybody who reaches this control plane do everything, although it listens beyond this machine.
    #[arg(long, env = "MILLRACE_INSECURE_NO_AUTH")]
    pub insecure_no_auth: bool,
    /// Origins, such as `https://console.example.com`, whose pages may call from a browser, comma-separated. Without: none.
    #[arg(long, env = "MILLRACE_ALLOW_ORIGINS", value_delimiter = ',', value_name = "ORIGIN")]
    pub allow_origins: Vec<String>,
    /// PEM file with the certificate of this control plane. With it, all that is served is TLS.
    #[arg(long, env = "MILLRACE_TLS_CERT_FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// PEM file with the key of `--tls-cert-file`.
    #[arg(long, env = "MILLRACE_TLS_KEY_FILE")]
    pub tls_key_file: Option<PathBuf>,
    /// PEM file with the certificate authority of clients: all of them, workers and users, need a certificate of it then.
    #[arg(long, env = "MILLRACE_TLS_CLIENT_CA_FILE")]
    pub tls_client_ca_file: Option<PathBuf>,
}

impl AuthOptions {
    /// How callers are known on this address.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn auth(&self, listen: Option<&SocketAddr>) -> Result<Auth, String> {
        let admin = own_token(
            "--admin-token-file",
            self.admin_token_file.as_deref(),
            ADMIN_TOKEN_VARIABLE,
        )?;
        let worker = own_token(
            "--worker-token-file",
            self.worker_token_file.as_deref(),
            WORKER_TOKEN_VARIABLE,
        )?;
        let oidc = self.oidc()?;
        let any = admin.is_some() || worker.is_some() || oidc.is_some();
        let mode = self.auth.unwrap_or(if any { AuthMode::Tokens } else { AuthMode::None });
        let beyond = listen.is_some_and(|listen| !listen.ip().is_loopback());
        match mode {
            AuthMode::None if any => {
                Err("--auth none does not go with a token or an issuer: leave one of them out".to_owned())
            }
            AuthMode::None if beyond && !self.insecure_no_auth => Err(
                "--listen is an address that other machines reach, and everybody there could do everything: give \
                 --admin-token-file, or --insecure-no-auth if that is wanted"
                    .to_owned(),
            ),
            AuthMode::None => Ok(Auth::None),
            // The tokens that were made before are good without it.
            AuthMode::Tokens => Ok(Auth::Tokens { admin, worker, oidc }),
        }
    }

    /// Whom tokens may be of beside the operator.
    fn oidc(&self) -> Result<Option<oidc::Options>, String> {
        let (Some(issuer), Some(audience)) = (&self.oidc_issuer, &self.oidc_audience) else {
            return Ok(None);
        };
        let url = Url::parse(issuer).map_err(|error| format!("--oidc-issuer: {issuer:?} is no URL: {error}"))?;
        let loopback = matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"));
        if url.scheme() != "https" && !(url.scheme() == "http" && loopback) {
            return Err(
                "--oidc-issuer must be an https:// URL: who stands between could make tokens otherwise".to_owned(),
            );
        }
        if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
            return Err("--oidc-issuer must be a URL without user, query and fragment".to_owned());
        }
        let roles = self.oidc_roles.iter().map(|text| {
            let wrong =
                || format!("--oidc-roles: {text:?} must be viewer=, operator= or admin= and a value of the claim");
            let (role, value) = text.split_once('=').ok_or_else(wrong)?;
            let role = role.trim().parse::<Role>().ok().filter(|role| *role != Role::Worker);
            match (role, value.trim()) {
                (Some(role), value) if !value.is_empty() => Ok((role, value.to_owned())),
                _ => Err(wrong()),
            }
        });
        Ok(Some(oidc::Options {
            role_claim: self.oidc_role_claim.clone(),
            roles: roles.collect::<Result<_, String>>()?,
            ..oidc::Options::new(url, audience.as_str())
        }))
    }

    /// Origins whose pages may call.
    ///
    /// # Errors
    /// The one that is none.
    pub fn browsers(&self) -> Result<Vec<HeaderValue>, String> {
        let parse = |text: &String| {
            let wrong =
                || format!("--allow-origins: {text:?} is no origin: expected one such as https://console.example.com");
            let url = Url::parse(text).map_err(|_| wrong())?;
            // Browsers say it in one way only; what is written in another would match none of them.
            if !matches!(url.scheme(), "http" | "https") || url.origin().ascii_serialization() != *text {
                return Err(wrong());
            }
            HeaderValue::from_str(text).map_err(|_| wrong())
        };
        self.allow_origins.iter().map(parse).collect()
    }

    /// TLS of the server, if it is wanted.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn tls(&self) -> Result<Option<ServerTls>, String> {
        match (&self.tls_cert_file, &self.tls_key_file) {
            (Some(cert), Some(key)) => {
                let client_ca = self
                    .tls_client_ca_file
                    .as_ref()
                    .map(|file| ("--tls-client-ca-file", file));
                ServerTls::from_files(("--tls-cert-file", cert), ("--tls-key-file", key), client_ca).map(Some)
            }
            (None, None) if self.tls_client_ca_file.is_some() => {
                Err("--tls-client-ca-file needs --tls-cert-file and --tls-key-file".to_owned())
            }
            (None, None) => Ok(None),
            (Some(_), None) => Err("--tls-cert-file needs --tls-key-file".to_owned()),
            (None, Some(_)) => Err("--tls-key-file needs --tls-cert-file".to_owned()),
        }
    }
}

/// A token that an operator gives in a file or in a variable.
fn own_token(option: &str, file: Option<&Path>, variable: &str) -> Result<Option<Arc<SecretString>>, String> {
    let set = std::env::var(variable).ok().filter(|token| !token.is_empty());
    let token = match (file, set) {
        (Some(_), Some(_)) => return Err(format!("give {option} or {variable}, not both")),
        (Some(file), None) => std::fs::read_to_string(file)
            .map_err(|error| format!("{option}: cannot read {}: {error}", file.display()))?,
        (None, Some(token)) => token,
        (None, None) => return Ok(None),
    };
    let token = token.trim();
    if token.chars().count() < MIN_TOKEN_CHARS {
        return Err(format!(
            "{option}: the token has fewer than {MIN_TOKEN_CHARS} characters, and could be guessed: `openssl rand -hex 32` makes one"
        ));
    }
    Ok(Some(Arc::new(SecretString::from(token))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: &str = "127.0.0.1:7400";
    const BEYOND: &str = "0.0.0.0:7400";

    fn auth(options: &AuthOptions, listen: &str) -> Result<Auth, String> {
        options.auth(Some(&listen.parse().unwrap()))
    }

    #[test]
    fn nobody_listens_beyond_the_machine_without_tokens_by_mistake() {
        let none = AuthOptions::default();
        assert!(matches!(auth(&none, LOOPBACK), Ok(Auth::None)));
        assert!(matches!(auth(&none, "[::1]:7400"), Ok(Auth::None)));
        for beyond in [BEYOND, "10.0.0.1:7400", "[::]:7400"] {
            assert!(
                auth(&none, beyond).unwrap_err().contains("--admin-token-file"),
                "{beyond}"
            );
        }
        let insecure = AuthOptions {
            insecure_no_auth: true,
            ..AuthOptions::default()
        };
        assert!(matches!(auth(&insecure, BEYOND), Ok(Auth::None)));
        let tokens = AuthOptions {
            auth: Some(AuthMode::Tokens),
            ..AuthOptions::default()
        };
        assert!(matches!(auth(&tokens, BEYOND), Ok(Auth::Tokens { admin: None, .. })));
    }

    #[test]
    fn a_token_that_can_be_guessed_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let with = |text: &str| {
            std::fs::write(&file, text).unwrap();
            AuthOptions {
                admin_token_file: Some(file.clone()),
                ..AuthOptions::default()
            }
        };
        assert!(auth(&with("secret\n"), LOOPBACK).unwrap_err().contains("openssl rand"));
        let good = with(&format!("{}\n", "a".repeat(32)));
        let Ok(Auth::Tokens { admin: Some(_), .. }) = auth(&good, LOOPBACK) else {
            panic!("a token that was given is to be used");
        };
        let contradictory = AuthOptions {
            auth: Some(AuthMode::None),
            ..good
        };
        assert!(auth(&contradictory, LOOPBACK).unwrap_err().contains("--auth none"));
        std::fs::remove_file(&file).unwrap();
        assert!(
            auth(
                &AuthOptions {
                    auth: None,
                    ..contradictory
                },
                LOOPBACK
            )
            .unwrap_err()
            .contains("cannot read")
        );
    }

    #[test]
    fn an_issuer_is_trusted_over_https_only_and_gives_roles() {
        let of = |issuer: &str, roles: &[&str]| AuthOptions {
            oidc_issuer: Some(issuer.to_owned()),
            oidc_audience: Some("millrace".to_owned()),
            oidc_role_claim: "groups".to_owned(),
            oidc_roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            ..AuthOptions::default()
        };
        let good = auth(
            &of("https://id.example.com/realm", &["viewer=all", "admin=platform"]),
            BEYOND,
        );
        let Ok(Auth::Tokens {
            oidc: Some(options), ..
        }) = good
        else {
            panic!("an issuer is a way to know callers");
        };
        assert_eq!(options.roles.len(), 2);
        for issuer in [
            "http://id.example.com",
            "id.example.com",
            "https://u@id.example.com",
            "https://id.example.com?x",
        ] {
            assert!(
                auth(&of(issuer, &[]), BEYOND).unwrap_err().contains("--oidc-issuer"),
                "{issuer}"
            );
        }
        for role in ["worker=w", "root=r", "viewer", "viewer="] {
            assert!(
                auth(&of("https://id.example.com", &[role]), BEYOND)
                    .unwrap_err()
                    .contains("--oidc-roles"),
                "{role}"
            );
        }
    }

    #[test]
    fn an_origin_is_written_as_browsers_write_it() {
        let of = |origin: &str| {
            let options = AuthOptions {
                allow_origins: vec![origin.to_owned()],
                ..AuthOptions::default()
            };
            options.browsers()
        };
        for origin in ["https://console.example.com", "http://localhost:3000"] {
            assert_eq!(of(origin).unwrap(), [origin]);
        }
        for origin in [
            "*",
            "null",
            "",
            "https://a.example/",
            "https://a.example/x",
            "https://A.example",
            "https://a.example:443",
            "ftp://a",
        ] {
            assert!(of(origin).unwrap_err().contains("--allow-origins"), "{origin}");
        }
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let path = || Some(PathBuf::from("nowhere.pem"));
        let options = |cert, key, ca| AuthOptions {
            tls_cert_file: cert,
            tls_key_file: key,
            tls_client_ca_file: ca,
            ..AuthOptions::default()
        };
        let refused = |options: AuthOptions| options.tls().map(|_| ()).unwrap_err();
        assert!(refused(options(path(), None, None)).contains("--tls-key-file"));
        assert!(refused(options(None, path(), None)).contains("--tls-cert-file"));
        assert!(refused(options(None, None, path())).contains("--tls-client-ca-file"));
        assert!(refused(options(path(), path(), None)).contains("cannot read nowhere.pem"));
        assert!(options(None, None, None).tls().unwrap().is_none());
    }
}

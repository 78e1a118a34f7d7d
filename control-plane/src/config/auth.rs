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

use crate::auth::Auth;

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
        let any = admin.is_some() || worker.is_some();
        let mode = self.auth.unwrap_or(if any { AuthMode::Tokens } else { AuthMode::None });
        let beyond = listen.is_some_and(|listen| !listen.ip().is_loopback());
        match mode {
            AuthMode::None if any => Err("--auth none does not go with a token: leave one of them out".to_owned()),
            AuthMode::None if beyond && !self.insecure_no_auth => Err(
                "--listen is an address that other machines reach, and everybody there could do everything: give \
                 --admin-token-file, or --insecure-no-auth if that is wanted"
                    .to_owned(),
            ),
            AuthMode::None => Ok(Auth::None),
            // The tokens that were made before are good without it.
            AuthMode::Tokens => Ok(Auth::Tokens { admin, worker }),
        }
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

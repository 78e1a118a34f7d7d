//! TLS towards others: ClickHouse servers and issuers of tokens.

use std::io;

use hyper_rustls::ConfigBuilderExt as _;

/// What a client of others believes: the system's certificate authorities. Without any, it connects to nobody over TLS.
#[must_use]
pub(crate) fn client() -> rustls::ClientConfig {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = || {
        rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)
    };
    let with_roots = builder().and_then(ConfigExt::native_roots);
    match with_roots {
        Ok(config) => config,
        Err(error) => {
            tracing::warn!(%error, "no certificate authorities found: https endpoints will not connect");
            rustls::ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(rustls::DEFAULT_VERSIONS)
                .map(|builder| {
                    builder
                        .with_root_certificates(rustls::RootCertStore::empty())
                        .with_no_client_auth()
                })
                .unwrap_or_else(|error| unreachable!("aws-lc-rs speaks the default TLS versions: {error}"))
        }
    }
}

trait ConfigExt {
    fn native_roots(self) -> io::Result<rustls::ClientConfig>;
}

impl ConfigExt for rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier> {
    fn native_roots(self) -> io::Result<rustls::ClientConfig> {
        Ok(self.with_native_roots()?.with_no_client_auth())
    }
}

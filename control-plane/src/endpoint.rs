//! Which endpoints users may name. An endpoint is a URL that the control plane and the workers will call with a user's
//! credential, so it must be one thing only, written one way only.
//!
//! Always refused: other schemes than HTTP, user info, paths, queries, addresses in disguise (decimal, octal, mapped into
//! IPv6), and link-local addresses, where cloud metadata services live. Loopback and private addresses are where a team's own
//! ClickHouse is, so they are allowed unless the operator names the hosts that may be called.
//!
//! Names are resolved and checked once more before the first call; a name that changes its addresses between that check and
//! a later call is a matter for the operator's list and network.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use url::{Host, Url};

/// Longest endpoint. Host names end at 253 bytes.
const MAX_LENGTH: usize = 300;

/// Why an endpoint is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a URL of the right form.
    #[error("{0}; expected a URL such as {1}")]
    Form(String, &'static str),
    /// An address that is never called.
    #[error("{0} is a link-local, multicast or unspecified address, which Millrace never calls")]
    Address(String),
    /// Not on the operator's list.
    #[error("{host} is not among the hosts that the operator of this Millrace allows: {allowed}")]
    NotAllowed {
        /// The host.
        host: String,
        /// The operator's list.
        allowed: String,
    },
}

/// The operator's list of hosts that endpoints may name.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Host names and addresses; a leading dot allows every name below. Empty: all.
    allowed: Vec<String>,
}

impl Policy {
    /// Only these hosts; a leading dot (`.example.com`) allows every name below it. Empty: all.
    #[must_use]
    pub fn new(allowed: impl IntoIterator<Item = String>) -> Self {
        Self {
            allowed: allowed.into_iter().map(|host| host.to_ascii_lowercase()).collect(),
        }
    }

    /// Checks an endpoint and returns it as `scheme://host:port` or `scheme://host`.
    ///
    /// # Errors
    /// If the endpoint is not one that may be called.
    pub fn parse(&self, text: &str, example: &'static str) -> Result<String, Error> {
        let form = |what: &str| Error::Form(what.to_owned(), example);
        if text.len() > MAX_LENGTH {
            return Err(form("is too long"));
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
            return Err(form("must not contain white space, control characters or backslashes"));
        }
        let url = Url::parse(text).map_err(|_| form("is not a URL"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(form("must start with http:// or https://"));
        }
        if !url.username().is_empty() || url.password().is_some() || text.contains('@') {
            return Err(form(
                "must not contain a user or a password: those belong into a credential",
            ));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(form("must end after the host and port"));
        }
        let host = url.host().ok_or_else(|| form("has no host"))?;
        self.check_host(&host, text, example)?;
        let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
        Ok(format!("{}://{host}{port}", url.scheme()))
    }

    fn check_host(&self, host: &Host<&str>, text: &str, example: &'static str) -> Result<(), Error> {
        let address = match host {
            Host::Ipv4(address) => {
                // The URL standard reads 2130706433, 0x7f.1 and 017700000001 as addresses. People do not.
                if !text.contains(&address.to_string()) {
                    return Err(Error::Form(
                        "must give an IPv4 address as four decimal numbers".to_owned(),
                        example,
                    ));
                }
                Some(IpAddr::V4(*address))
            }
            Host::Ipv6(address) => {
                if address.to_ipv4_mapped().is_some() {
                    return Err(Error::Form(
                        "must give an IPv4 address as such, not inside IPv6".to_owned(),
                        example,
                    ));
                }
                Some(IpAddr::V6(*address))
            }
            Host::Domain(_) => None,
        };
        if let Some(address) = address {
            check_address(address)?;
        }
        self.check_allowed(&host.to_string())
    }

    fn check_allowed(&self, host: &str) -> Result<(), Error> {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let allows = |allowed: &String| match allowed.strip_prefix('.') {
            Some(domain) => host
                .strip_suffix(domain)
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            None => host == *allowed || host.trim_matches(['[', ']']) == allowed.as_str(),
        };
        if self.allowed.is_empty() || self.allowed.iter().any(allows) {
            Ok(())
        } else {
            Err(Error::NotAllowed {
                host,
                allowed: self.allowed.join(", "),
            })
        }
    }

    /// Resolves the host of an endpoint that [`Policy::parse`] has accepted and refuses it if any of its addresses is one
    /// that is never called. A name that does not resolve is left to whoever calls it.
    ///
    /// # Errors
    /// If an address is never called.
    pub async fn check_resolved(&self, endpoint: &str) -> Result<(), Error> {
        let Ok(url) = Url::parse(endpoint) else {
            return Ok(());
        };
        let (Some(Host::Domain(domain)), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Ok(());
        };
        if let Ok(addresses) = tokio::net::lookup_host((domain, port)).await {
            for address in addresses {
                check_address(address.ip())?;
            }
        }
        Ok(())
    }
}

fn check_address(address: IpAddr) -> Result<(), Error> {
    if is_callable(address) {
        Ok(())
    } else {
        Err(Error::Address(address.to_string()))
    }
}

/// False for addresses that are never called. Metadata services answer on link-local ones, and on one unique local one.
#[must_use]
pub fn is_callable(address: IpAddr) -> bool {
    const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match address.to_canonical() {
        IpAddr::V4(v4) => !(v4.is_link_local() || v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
        IpAddr::V6(v6) => {
            !(v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast() || v6 == METADATA_V6)
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.allowed.is_empty() {
            "any host"
        } else {
            "listed hosts only"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "https://clickhouse.example.com:8443";

    #[test]
    fn good_endpoints_get_one_spelling() {
        let policy = Policy::default();
        for (given, stored) in [
            ("https://ch.example.com:8443", "https://ch.example.com:8443"),
            ("HTTPS://CH.Example.com/", "https://ch.example.com"),
            ("http://127.0.0.1:8123/", "http://127.0.0.1:8123"),
            ("http://10.0.0.1", "http://10.0.0.1"),
            ("http://[::1]:8123", "http://[::1]:8123"),
            ("http://localhost:8123", "http://localhost:8123"),
        ] {
            assert_eq!(policy.parse(given, EXAMPLE).as_deref(), Ok(stored), "{given}");
        }
    }

    #[test]
    fn hostile_endpoints_are_refused() {
        let policy = Policy::default();
        for bad in [
            "",
            "ch.example.com:8443",
            "http://169.254.169.254",
            "http://169.254.169.254/latest/meta-data",
            "http://[::ffff:a9fe:a9fe]",
            "http://[::ffff:169.254.169.254]",
            "http://[fe80::1]",
            "http://[fd00:ec2::254]",
            "http://2130706433",
            "http://2852039166",
            "http://0xa9fea9fe",
            "http://0251.0376.0251.0376",
            "http://127.1",
            "http://0.0.0.0:8123",
            "http://[::]",
            "http://224.0.0.1",
            "http://x@10.0.0.1",
            "http://user:secret@ch.example.com",
            "http://@ch.example.com",
            "file:///etc/passwd",
            "gopher://10.0.0.1:70",
            "ftp://ch.example.com",
            "http://ch.example.com/path",
            "http://ch.example.com?user=x",
            "http://ch.example.com#x",
            "http://ch.example.com\r\nX-Evil: 1",
            "http://ch.example.com\\@evil.example",
            "http://",
            "javascript:alert(1)",
            &format!("http://{}.example.com", "a".repeat(300)),
        ] {
            assert!(policy.parse(bad, EXAMPLE).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_operators_list_binds() {
        let policy = Policy::new([
            "ch.example.com".to_owned(),
            ".internal.example".to_owned(),
            "10.1.2.3".to_owned(),
        ]);
        for good in [
            "https://ch.example.com",
            "https://a.internal.example",
            "http://10.1.2.3:8123",
        ] {
            assert!(policy.parse(good, EXAMPLE).is_ok(), "{good}");
        }
        for bad in [
            "https://evil.example",
            "https://internal.example",
            "https://xinternal.example",
            "http://10.1.2.4",
        ] {
            assert!(
                matches!(policy.parse(bad, EXAMPLE), Err(Error::NotAllowed { .. })),
                "{bad}"
            );
        }
    }

    #[tokio::test]
    async fn names_are_resolved_before_they_are_called() {
        let policy = Policy::default();
        assert_eq!(policy.check_resolved("http://localhost:1").await, Ok(()));
        assert_eq!(policy.check_resolved("http://does-not-exist.invalid").await, Ok(()));
    }
}

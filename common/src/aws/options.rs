//! What the operator of Millrace says about AWS, on the command line or in the environment of control planes, workers and
//! `millrace standalone` alike. No user of the API can change it.

use std::time::Duration;

use clap::Args;

/// Shortest session that AWS gives.
const MIN_SESSION_SECONDS: u64 = 900;
/// Longest session that every role allows, and that a role may have that is assumed with another one.
const MAX_SESSION_SECONDS: u64 = 3_600;

/// Options about AWS.
#[derive(Debug, Clone, Args)]
// Without a group of its own: the commands that take these options have options of that name too.
#[group(skip)]
pub struct Options {
    /// Let pipes use the AWS identity that this process runs under (environment, web identity, container, instance): for
    /// credentials of the kind aws_ambient, and to assume roles that name no source_credential. Whoever may create pipes can
    /// then read with it.
    #[arg(long, env = "MILLRACE_ALLOW_AMBIENT_AWS")]
    pub allow_ambient_aws: bool,
    /// Endpoint of AWS STS, where roles are assumed, instead of the region's own: interface endpoints and emulators.
    #[arg(long, env = "MILLRACE_STS_ENDPOINT", value_name = "URL")]
    pub sts_endpoint: Option<String>,
    /// Seconds for which a role is assumed, 900 to 3600. Sessions are renewed after 80 % of that.
    #[arg(long, env = "MILLRACE_AWS_SESSION_SECONDS", default_value_t = MAX_SESSION_SECONDS, value_name = "SECONDS")]
    pub aws_session_seconds: u64,
}

/// The same, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Pipes may use the process's own identity.
    pub allow_ambient: bool,
    /// Endpoint of STS; the region's own if `None`.
    pub sts_endpoint: Option<String>,
    /// How long a role is assumed for.
    pub session: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            allow_ambient: false,
            sts_endpoint: None,
            session: Duration::from_secs(MAX_SESSION_SECONDS),
        }
    }
}

impl Options {
    /// What the options mean; what is wrong with them is added to `errors`.
    pub fn settings(&self, errors: &mut Vec<String>) -> Settings {
        if let Some(endpoint) = &self.sts_endpoint
            && !url::Url::parse(endpoint).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        {
            errors.push(format!(
                "--sts-endpoint: {endpoint:?} is not an http:// or https:// URL"
            ));
        }
        if !(MIN_SESSION_SECONDS..=MAX_SESSION_SECONDS).contains(&self.aws_session_seconds) {
            errors.push(format!(
                "--aws-session-seconds: {} is not between {MIN_SESSION_SECONDS} and {MAX_SESSION_SECONDS}",
                self.aws_session_seconds
            ));
        }
        Settings {
            allow_ambient: self.allow_ambient_aws,
            sts_endpoint: self.sts_endpoint.clone(),
            session: Duration::from_secs(self.aws_session_seconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wrong_is_said() {
        let mut errors = Vec::new();
        let mut options = Options {
            allow_ambient_aws: false,
            sts_endpoint: None,
            aws_session_seconds: MAX_SESSION_SECONDS,
        };
        assert_eq!(options.settings(&mut errors), Settings::default());
        assert!(errors.is_empty(), "{errors:?}");
        options.sts_endpoint = Some("localhost".to_owned());
        options.aws_session_seconds = 43_200;
        options.settings(&mut errors);
        assert_eq!(errors.len(), 2, "{errors:?}");
    }
}

//! Logs of a process: fields, not formatted text; levels by `RUST_LOG` or `--log-level`; to standard error, so that
//! standard output stays for results.
//!
//! Invariant: whatever the filter asks for, nothing below `info` is logged but by Millrace itself. The AWS SDK, HTTP and database clients
//! log requests and answers there: records, keys and session tokens. Millrace logs none of those at any level.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    filter::{ParseError, filter_fn},
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// What the names of Millrace's own targets begin with.
const OWN: &str = "millrace";
/// The most that others may log.
const MOST_OF_OTHERS: Level = Level::INFO;

/// How to log.
#[derive(Debug, Clone, Args)]
// Without a group of its own: the commands that take these options have options of that name too.
#[group(skip)]
pub struct Options {
    /// Filter such as `info` or `millrace_data_plane=debug,info`. Libraries log nothing below `info`, whatever it says: that could be
    /// records and secrets.
    #[arg(long, env = "RUST_LOG", default_value = "info", global = true)]
    pub log_level: String,
    /// Shape of a log line.
    #[arg(long, env = "MILLRACE_LOG_FORMAT", default_value = "text", value_enum, global = true)]
    pub log_format: Format,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging. A second call does nothing, so tests may each call it.
///
/// # Errors
/// If the filter does not parse.
pub fn init(options: &Options) -> Result<(), ParseError> {
    let started = subscriber(options, std::io::stderr)?.try_init();
    if started.is_err() {
        tracing::debug!("logging had been started before");
    }
    Ok(())
}

/// What takes the lines, and where they go.
fn subscriber<W>(options: &Options, writer: W) -> Result<Box<dyn Subscriber + Send + Sync>, ParseError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let registry = tracing_subscriber::registry()
        .with(EnvFilter::try_new(&options.log_level)?)
        .with(filter_fn(is_harmless));
    Ok(match options.log_format {
        Format::Text => {
            // Codes of colours in a file are noise.
            let layer = fmt::layer().with_writer(writer).with_target(true);
            let colours =
                std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
            Box::new(registry.with(layer.with_ansi(colours)))
        }
        Format::Json => Box::new(registry.with(fmt::layer().json().with_writer(writer))),
    })
}

/// Whether a line or a span can hold no record and no secret.
fn is_harmless(metadata: &Metadata<'_>) -> bool {
    // What comes from the `log` crate has a target of its own, which is not ours.
    *metadata.level() <= MOST_OF_OTHERS
        || metadata
            .target()
            .strip_prefix(OWN)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('_') || rest.starts_with(':'))
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged under this filter of one line for each level, by a library and by Millrace.
    fn logged(filter: &str, format: Format) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let options = Options {
            log_level: filter.to_owned(),
            log_format: format,
        };
        let subscriber = subscriber(&options, move || writer.clone()).expect("a filter");
        tracing::subscriber::with_default(subscriber, || {
            macro_rules! from {
                ($target:literal) => {{
                    let span = tracing::trace_span!(target: $target, "span", payload = concat!($target, "-span"));
                    let _entered = span.enter();
                    tracing::trace!(target: $target, payload = concat!($target, "-trace"));
                    tracing::debug!(target: $target, payload = concat!($target, "-debug"));
                    tracing::info!(target: $target, payload = concat!($target, "-info"));
                }};
            }
            from!("aws_smithy_runtime::client::http");
            from!("aws_sigv4");
            from!("h2::codec");
            from!("hyper::proto");
            from!("millracer");
            from!("millrace_data_plane::source");
        });
        let lines = lines.0.lock().expect("no panic").clone();
        String::from_utf8(lines).expect("text")
    }

    #[test]
    fn libraries_log_nothing_below_info_whatever_the_filter_says() {
        for filter in [
            "trace",
            "aws_smithy_runtime=trace,aws_sigv4=trace,h2=trace,hyper=trace,millracer=trace,millrace_data_plane=trace",
            "info,[span]=trace",
        ] {
            for format in [Format::Text, Format::Json] {
                let said = logged(filter, format);
                for target in [
                    "aws_smithy_runtime::client::http",
                    "aws_sigv4",
                    "h2::codec",
                    "hyper::proto",
                    "millracer",
                ] {
                    for level in ["span", "trace", "debug"] {
                        assert!(!said.contains(&format!("{target}-{level}")), "{filter}: {said}");
                    }
                    assert!(said.contains(&format!("{target}-info")), "{filter}: {said}");
                }
            }
        }
        let said = logged("trace", Format::Text);
        for level in ["span", "trace", "debug", "info"] {
            assert!(said.contains(&format!("millrace_data_plane::source-{level}")), "{said}");
        }
        let said = logged("warn,millrace_data_plane=debug", Format::Text);
        assert!(
            said.contains("source-debug") && !said.contains("source-trace") && !said.contains("-info\" aws"),
            "{said}"
        );
        assert!(!said.contains("aws_sigv4"), "{said}");
    }
}

//! `millrace pipe create` without a file: asks on the terminal what the pipe is to be, shows the file that says so, and creates the pipe
//! when that is confirmed. Questions go to standard error, so that what is printed at the end can still be used.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use millrace_proto::api::v1::{self as api, credential::Kind};

use crate::{
    args::{
        Connection,
        discovery::{Aws, Draft, Sampling, Server, Start},
    },
    credential, discovery,
    draft::{self, Drafted},
    exit::Error,
    manifest,
    output::{self, Format},
    pipe::{self, PIPE},
};

/// Streams that are listed to choose from.
const SHOWN_STREAMS: usize = 50;
/// Longest id of a pipe.
const MAX_ID: usize = 63;

/// Asks, and creates the pipe.
pub(crate) async fn run(connection: &Connection, kinesis_endpoint: String, dry_run: bool) -> Result<(), Error> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::Local(
            "--file: name the file of the pipe; without one, this command asks, and needs a terminal for that"
                .to_owned(),
        ));
    }
    let credentials = credential::all(connection).await?;
    let (clickhouse, aws): (Vec<_>, Vec<_>) = credentials
        .into_iter()
        .partition(|credential| matches!(credential.kind, Some(Kind::ClickhouseUser(_))));
    if aws.is_empty() {
        return Err(missing("AWS", "millrace credential create aws aws-keys"));
    }
    if clickhouse.is_empty() {
        let command = "millrace credential create clickhouse clickhouse-user --username NAME";
        return Err(missing("ClickHouse", command));
    }
    let aws = Aws {
        credential: choose("AWS credential", names(&aws))?,
        region: ask("AWS region", std::env::var("AWS_REGION").ok())?,
        kinesis_endpoint,
    };
    let stream = stream(connection, &aws).await?;
    let pipe = ask("Id of the pipe", Some(id_of(&stream)))?;
    let server = Server {
        server: ask("ClickHouse (HTTP interface)", Some("http://127.0.0.1:8123".to_owned()))?,
        clickhouse_credential: choose("ClickHouse credential", names(&clickhouse))?,
    };
    let given = Draft {
        database: ask("Database", Some("default".to_owned()))?,
        table: Some(ask(
            "Table, which is made if there is none",
            Some(pipe.replace('-', "_")),
        )?),
        start: start()?,
        pipe,
        stream,
        aws,
        server,
        envelope: None,
        sampling: Sampling {
            from: "latest".to_owned(),
            max_records: 1_000,
            shard: Vec::new(),
        },
    };
    say("\nLooking at the newest records of the stream …")?;
    let Drafted { yaml, notes } = draft::make(connection, &given).await?;
    for note in notes {
        output::note(&note);
    }
    say(&format!("\n{}\n", yaml.trim_end()))?;
    let question = if dry_run {
        "Check this pipe? (yes/no)"
    } else {
        "Create this pipe? (yes/no)"
    };
    if !confirm(question)? {
        say(
            "Nothing was created. To change the file first, put it where you like, and use `millrace pipe create -f`.",
        )?;
        return match connection.output {
            Format::Table => Ok(()),
            format => output::document(&manifest::value(&yaml)?, format),
        };
    }
    let drafted: api::Pipe = manifest::parse(&yaml, PIPE)?;
    pipe::create(connection, drafted, dry_run).await
}

fn missing(what: &str, command: &str) -> Error {
    Error::Local(format!("there is no {what} credential yet: store one with `{command}`"))
}

fn names(credentials: &[api::Credential]) -> Vec<String> {
    credentials
        .iter()
        .map(|credential| output::short(&credential.name))
        .collect()
}

/// The stream, of a list if the credential may see one.
async fn stream(connection: &Connection, aws: &Aws) -> Result<String, Error> {
    match discovery::streams(connection, aws, false, SHOWN_STREAMS).await {
        Ok(streams) if !streams.is_empty() => {
            choose("Stream", streams.into_iter().map(|stream| stream.stream_name).collect())
        }
        Ok(_) => {
            say("There is no stream in this region.")?;
            ask("Stream (name or ARN)", None)
        }
        // Without leave to list streams one can still be named.
        Err(Error::Remote(status)) => {
            say(&format!("Streams cannot be listed: {}", status.message()))?;
            ask("Stream (name or ARN)", None)
        }
        Err(error) => Err(error),
    }
}

fn start() -> Result<Start, Error> {
    loop {
        let given = ask(
            "Begin at (trim-horizon, latest, or a time)",
            Some("trim-horizon".to_owned()),
        )?;
        match given.parse() {
            Ok(start) => return Ok(start),
            Err(error) => say(&error)?,
        }
    }
}

/// An id that is like the name of a stream.
fn id_of(stream: &str) -> String {
    let name = stream.rsplit('/').next().unwrap_or(stream).to_ascii_lowercase();
    let id: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let id = id.trim_start_matches(|c: char| !c.is_ascii_lowercase());
    let id: String = id.chars().take(MAX_ID).collect();
    match id.trim_end_matches('-') {
        "" => "pipe".to_owned(),
        id => id.to_owned(),
    }
}

/// One of these, by its number or as it is written. The only one there is is taken at once.
fn choose(what: &str, mut options: Vec<String>) -> Result<String, Error> {
    if options.len() == 1 {
        let only = options.remove(0);
        say(&format!("{what}: {only}"))?;
        return Ok(only);
    }
    for (index, option) in options.iter().enumerate() {
        say(&format!("  {}. {option}", index + 1))?;
    }
    loop {
        let given = ask(what, None)?;
        let numbered = given
            .parse::<usize>()
            .ok()
            .and_then(|number| options.get(number.checked_sub(1)?));
        match options.iter().find(|option| **option == given).or(numbered) {
            Some(chosen) => return Ok(chosen.clone()),
            None => say(&format!(
                "{given:?} is none of them: give a number of 1 to {}",
                options.len()
            ))?,
        }
    }
}

fn confirm(question: &str) -> Result<bool, Error> {
    loop {
        match ask(question, None)?.to_ascii_lowercase().as_str() {
            "yes" | "y" => return Ok(true),
            "no" | "n" => return Ok(false),
            _ => say("Answer yes or no.")?,
        }
    }
}

/// An answer that is not empty; of an empty one, the default.
fn ask(question: &str, default: Option<String>) -> Result<String, Error> {
    let default = default.filter(|default| !default.is_empty());
    loop {
        let shown = default
            .as_ref()
            .map(|default| format!(" [{default}]"))
            .unwrap_or_default();
        put(&format!("{question}{shown}: "))?;
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        let read = read.map_err(|error| Error::Local(format!("cannot read the answer: {error}")))?;
        if read == 0 {
            return Err(Error::Local("the answers ended; nothing was created".to_owned()));
        }
        match (line.trim(), &default) {
            ("", Some(default)) => return Ok(default.clone()),
            ("", None) => {}
            (answer, _) => return Ok(answer.to_owned()),
        }
    }
}

fn say(text: &str) -> Result<(), Error> {
    put(&format!("{}\n", crate::exit::printable(text)))
}

fn put(text: &str) -> Result<(), Error> {
    let mut out = std::io::stderr().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::Local(format!("cannot ask: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_like_the_names_of_streams() {
        assert_eq!(id_of("Orders_EU.v2"), "orders-eu-v2");
        assert_eq!(
            id_of("arn:aws:kinesis:eu-central-1:123456789012:stream/clicks"),
            "clicks"
        );
        assert_eq!(id_of("42"), "pipe");
        assert_eq!(id_of("7-days-"), "days");
        assert_eq!(id_of(&"a".repeat(100)).len(), MAX_ID);
    }
}

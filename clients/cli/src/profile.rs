//! Profiles: what to say to which Millrace, by name, in a file.
//!
//! ```toml
//! current = "prod"            # used where no other is named
//!
//! [profiles.prod]             # each key is the option of its name
//! endpoint = "https://millrace.example.com:7400"
//! token_file = "/home/ann/.config/millrace/prod-token"
//! ```
//!
//! What is said on the command line counts most, then the environment, then the profile. The file holds no secrets.

use std::path::{Path, PathBuf};

use clap::{ArgMatches, Command as Clap, CommandFactory as _, FromArgMatches as _, builder::OsStr};
use toml_edit::{DocumentMut, Item, Table, value};

use crate::{
    args::{Cli, Connection, Profile},
    exit::Error,
    output::{self, Format},
};

/// Keys of a profile: options of all commands, by their names in clap.
const KEYS: [&str; 6] = ["endpoint", "project", "token_file", "ca_file", "cert_file", "key_file"];
const HEADER: [&str; 4] = ["CURRENT", "NAME", "ENDPOINT", "PROJECT"];
/// Where the file is, if not where such files are.
const FILE_VARIABLE: &str = "MILLRACE_CONFIG";
/// The token itself, which counts more than a file that the profile names.
const TOKEN_VARIABLE: &str = "MILLRACE_TOKEN";
/// Longest name.
const MAX_NAME: usize = 63;

/// What the command line says, with what a profile says where it says nothing.
pub(crate) fn parse() -> Result<Cli, Error> {
    let matches = Cli::command().get_matches();
    // Those that keep profiles work also where one is broken.
    let of_none = matches!(
        matches.subcommand_name(),
        Some("profile" | "completion" | "explain" | "standalone")
    );
    if of_none {
        return read(&matches);
    }
    let named: Option<&String> = matches.get_one("profile");
    let file = file()?;
    let document = load(&file)?;
    let current = document.get("current").and_then(Item::as_str);
    let Some(name) = named.map(String::as_str).or(current) else {
        return read(&matches);
    };
    let profile = find(&document, name).ok_or_else(|| unknown(&document, name, &file))?;
    let command = with_defaults(Cli::command(), profile)
        .map_err(|what| Error::Local(format!("{}: profile {name}: {what}", file.display())))?;
    read(&command.get_matches())
}

fn read(matches: &ArgMatches) -> Result<Cli, Error> {
    Cli::from_arg_matches(matches).map_err(|error| Error::Local(error.to_string()))
}

/// The command line with other defaults.
fn with_defaults(mut command: Clap, profile: &Table) -> Result<Clap, String> {
    for (key, item) in profile {
        let Some(key) = KEYS.into_iter().find(|known| *known == key) else {
            return Err(format!("there is no key {key:?}; there are {}", KEYS.join(", ")));
        };
        let text = item.as_str().ok_or_else(|| format!("{key} must be text in quotes"))?;
        if key == "token_file" && std::env::var_os(TOKEN_VARIABLE).is_some_and(|token| !token.is_empty()) {
            continue;
        }
        let text = OsStr::from(text.to_owned());
        command = command.mut_arg(key, |arg| arg.default_value(text));
    }
    Ok(command)
}

/// Runs one command.
pub(crate) fn run(connection: &Connection, command: Profile) -> Result<(), Error> {
    let file = file()?;
    let mut document = load(&file)?;
    match command {
        Profile::List => list(connection, &document),
        Profile::Save { name } => {
            check(&name)?;
            save(connection, &mut document, &name);
            store(&file, &document)?;
            output::line(&format!("profile {name} is in {}", file.display()))
        }
        Profile::Use { name } => {
            if find(&document, &name).is_none() {
                return Err(unknown(&document, &name, &file));
            }
            document["current"] = value(name.as_str());
            store(&file, &document)?;
            output::line(&format!("profile {name} is used from now on"))
        }
        Profile::Delete { name } => {
            let removed = document.get_mut("profiles").and_then(Item::as_table_like_mut);
            if removed.and_then(|profiles| profiles.remove(&name)).is_none() {
                return Err(unknown(&document, &name, &file));
            }
            if document.get("current").and_then(Item::as_str) == Some(&name) {
                document.remove("current");
            }
            store(&file, &document)?;
            output::line(&format!("profile {name} deleted"))
        }
    }
}

fn list(connection: &Connection, document: &DocumentMut) -> Result<(), Error> {
    let current = document.get("current").and_then(Item::as_str);
    let profiles = document.get("profiles").and_then(Item::as_table_like);
    let all = profiles.into_iter().flat_map(|profiles| profiles.iter());
    let text = |profile: &Item, key: &str| profile.get(key).and_then(Item::as_str).unwrap_or_default().to_owned();
    if connection.output != Format::Table {
        let all = all.map(|(name, profile)| {
            let keys = KEYS.iter().filter(|key| profile.get(key).is_some());
            let mut shown: serde_json::Map<_, _> =
                keys.map(|key| ((*key).to_owned(), text(profile, key).into())).collect();
            shown.insert("name".to_owned(), name.into());
            shown.insert("current".to_owned(), (current == Some(name)).into());
            serde_json::Value::Object(shown)
        });
        return output::document(&all.collect::<Vec<_>>().into(), connection.output);
    }
    let rows = all.map(|(name, profile)| {
        vec![
            if current == Some(name) { "yes" } else { "" }.to_owned(),
            name.to_owned(),
            text(profile, "endpoint"),
            text(profile, "project"),
        ]
    });
    output::table(&HEADER, rows.collect())
}

/// Keeps what this command was told.
fn save(connection: &Connection, document: &mut DocumentMut, name: &str) {
    let path = |path: &Option<PathBuf>| {
        path.as_ref()
            .map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()))
    };
    let access = &connection.access;
    let shown = |path: Option<PathBuf>| path.map(|path| path.display().to_string());
    let values = [
        Some(connection.endpoint.clone()),
        Some(connection.project.clone()),
        shown(path(&access.token_file)),
        shown(path(&access.ca_file)),
        shown(path(&access.cert_file)),
        shown(path(&access.key_file)),
    ];
    let mut profile = Table::new();
    for (key, text) in KEYS.into_iter().zip(values) {
        if let Some(text) = text {
            profile[key] = value(text);
        }
    }
    let profiles = document.entry("profiles").or_insert_with(|| {
        let mut profiles = Table::new();
        profiles.set_implicit(true);
        Item::Table(profiles)
    });
    profiles[name] = Item::Table(profile);
}

fn find<'a>(document: &'a DocumentMut, name: &str) -> Option<&'a Table> {
    document.get("profiles")?.get(name)?.as_table()
}

fn unknown(document: &DocumentMut, name: &str, file: &Path) -> Error {
    let profiles = document.get("profiles").and_then(Item::as_table_like);
    let names: Vec<&str> = profiles
        .into_iter()
        .flat_map(|profiles| profiles.iter().map(|(name, _)| name))
        .collect();
    let there = if names.is_empty() {
        "none; `millrace --endpoint … profile save NAME` makes one".to_owned()
    } else {
        names.join(", ")
    };
    Error::Local(format!(
        "there is no profile {name:?} in {}: there is {there}",
        file.display()
    ))
}

fn check(name: &str) -> Result<(), Error> {
    let fine = (1..=MAX_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if fine {
        return Ok(());
    }
    Err(Error::Local(format!(
        "{name:?}: a profile's name is 1 to {MAX_NAME} letters, digits, `-` and `_`"
    )))
}

fn file() -> Result<PathBuf, Error> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set(FILE_VARIABLE)
        .or_else(|| Some(set("XDG_CONFIG_HOME")?.join("millrace/config.toml")))
        .or_else(|| Some(set("HOME")?.join(".config/millrace/config.toml")))
        .ok_or_else(|| Error::Local(format!("there is no HOME: say where profiles are by {FILE_VARIABLE}")))
}

fn load(file: &Path) -> Result<DocumentMut, Error> {
    match std::fs::read_to_string(file) {
        Ok(text) => text
            .parse()
            .map_err(|error| Error::Local(format!("{}: {error}", file.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(DocumentMut::new()),
        Err(error) => Err(Error::Local(format!("cannot read {}: {error}", file.display()))),
    }
}

/// Whole or not at all.
fn store(file: &Path, document: &DocumentMut) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::Local(format!("cannot write {}: {error}", file.display()));
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    let beside = file.with_extension("toml.new");
    std::fs::write(&beside, document.to_string()).map_err(failed)?;
    std::fs::rename(&beside, file).map_err(failed)
}

//! The engine's configuration files.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{ADMIN, Options, User};

pub(super) const CONFIG_FILE: &str = "config.xml";
pub(super) const USERS_FILE: &str = "users.xml";
/// What the process prints; its log goes to [`LOG_FILE`].
pub(super) const OUTPUT_FILE: &str = "output.log";
pub(super) const LOG_FILE: &str = "server.log";
/// ClickHouse's own default.
pub(super) const DEFAULT_TCP_PORT: u16 = 9_000;

/// Marks of a few thousand small parts; the default of 5 GB is for servers.
const MARK_CACHE_BYTES: u64 = 64 << 20;
/// So short that a test which asks for the query log right after `SYSTEM FLUSH LOGS` rarely waits.
const LOG_FLUSH_MILLIS: u64 = 200;
/// The logs that are kept, in tables of these names.
const LOGS: [&str; 2] = ["query_log", "part_log"];

/// Writes `config.xml` and `users.xml` below the data directory, readable by their owner only.
pub(super) fn write(dir: &Path, options: &Options, password: &str) -> io::Result<()> {
    private(&dir.join(CONFIG_FILE), &config(dir, options))?;
    private(&dir.join(USERS_FILE), &users(options, password))
}

/// Removes the data of logs whose tables are lost. The library engine does not keep the definitions of system tables, so
/// after a restart it makes its logs anew, and refuses to where it finds their data.
pub(super) fn forget_lost_logs(dir: &Path) -> io::Result<()> {
    for log in LOGS {
        let definition = dir.join("data/metadata/system").join(format!("{log}.sql"));
        let data = dir.join("data/data/system").join(log);
        if data.is_dir() && !definition.exists() {
            fs::remove_dir_all(data)?;
        }
    }
    Ok(())
}

fn private(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}

fn config(dir: &Path, options: &Options) -> String {
    let at = |name: &str| escape(&dir.join(name).to_string_lossy());
    let log = |table| {
        format!(
            "<{table}><database>system</database><table>{table}</table>\
             <flush_interval_milliseconds>{LOG_FLUSH_MILLIS}</flush_interval_milliseconds></{table}>"
        )
    };
    format!(
        "<clickhouse>
  <logger><level>warning</level><log>{log_file}</log><errorlog>{error_file}</errorlog><size>100M</size><count>2</count></logger>
  <listen_host>127.0.0.1</listen_host>
  <http_port>{http}</http_port>
  <tcp_port>{tcp}</tcp_port>
  <path>{data}/</path>
  <tmp_path>{tmp}/</tmp_path>
  <user_files_path>{files}/</user_files_path>
  <format_schema_path>{schemas}/</format_schema_path>
  <default_profile>default</default_profile>
  <default_database>default</default_database>
  <user_directories><users_xml><path>{users}</path></users_xml></user_directories>
  <mark_cache_size>{MARK_CACHE_BYTES}</mark_cache_size>
  <max_server_memory_usage>{memory}</max_server_memory_usage>
  <http_options_response/>
  {logs}
</clickhouse>
",
        log_file = at(LOG_FILE),
        error_file = at("server.err.log"),
        http = options.http_port.unwrap_or_default(),
        tcp = options.tcp_port.unwrap_or_default(),
        data = at("data"),
        tmp = at("tmp"),
        files = at("user_files"),
        schemas = at("schemas"),
        users = at(USERS_FILE),
        memory = options.memory_bytes,
        logs = LOGS.map(log).join("\n  "),
    )
}

fn users(options: &Options, password: &str) -> String {
    let settings = elements(&options.settings);
    let (mut profiles, mut users) = (String::new(), String::new());
    // The library engine opens its listeners as `default`, which therefore has to exist and has no password.
    let _ = write!(users, "{}", element("default", "", "default", None));
    let admin = User::new(ADMIN, password, &["GRANT ALL ON *.* WITH GRANT OPTION"]);
    for user in std::iter::once(&admin).chain(&options.users) {
        let mut profile = "millrace".to_owned();
        if !user.settings.is_empty() {
            profile = format!("profile_of_{}", user.name);
            let own = elements(&user.settings);
            let _ = write!(profiles, "<{profile}><profile>millrace</profile>{own}</{profile}>");
        }
        let _ = write!(
            users,
            "{}",
            element(&user.name, &user.password, &profile, Some(&user.grants))
        );
    }
    format!(
        "<clickhouse>
  <profiles><default/><millrace>{settings}</millrace>{profiles}</profiles>
  <quotas><default/></quotas>
  <users>
{users}  </users>
</clickhouse>
"
    )
}

fn elements(settings: &[(String, String)]) -> String {
    settings
        .iter()
        .map(|(name, value)| format!("<{name}>{}</{name}>", escape(value)))
        .collect()
}

/// `grants: None` leaves ClickHouse's default, which is everything.
fn element(name: &str, password: &str, profile: &str, grants: Option<&[String]>) -> String {
    let mut rights = String::new();
    if let Some(grants) = grants {
        // An element without a query would mean "everything".
        let none = ["REVOKE ALL ON *.*".to_owned()];
        let grants = if grants.is_empty() { &none } else { grants };
        for grant in grants {
            let _ = write!(rights, "<query>{}</query>", escape(grant));
        }
        rights = format!("<grants>{rights}</grants>");
    }
    format!(
        "    <{name}><password>{}</password><networks><ip>127.0.0.1</ip></networks>\
         <profile>{profile}</profile><quota>default</quota>{rights}</{name}>\n",
        escape(password)
    )
}

/// Text for an XML element.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A quoted identifier.
pub(super) fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// A quoted string.
pub(super) fn string_literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_escaped_for_their_place() {
        assert_eq!(escape("a<b&c>"), "a&lt;b&amp;c&gt;");
        assert_eq!(string_literal(r"it's a \"), r"'it\'s a \\'");
        assert_eq!(identifier("odd`name"), r"`odd\`name`");
    }

    #[test]
    fn a_user_without_grants_gets_none() {
        assert!(element("nobody", "x", "millrace", Some(&[])).contains("<query>REVOKE ALL ON *.*</query>"));
        assert!(!element("default", "", "default", None).contains("<grants>"));
    }
}

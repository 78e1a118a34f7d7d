//! What has to be known of a table before a refused batch may be cut: whether something of it can have been applied, and
//! whether the table would have refused it at any earlier time as well.

use xxhash_rust::xxh3::xxh3_64;

/// What is asked. `dependencies_table` are the materialized views that read the table. What else decides over an insert, the
/// version of the server and the settings of the user, goes into the fingerprint.
pub(super) const COLUMNS: &str = "toString(uuid), toString(toUnixTimestamp(metadata_modification_time)), \
     toString(length(dependencies_table)), if(partition_key = '', '0', '1'), \
     if(endsWith(engine, 'MergeTree'), '1', '0'), create_table_query, \
     arrayStringConcat(arraySort(arrayMap((d, t) -> concat(d, '.', t), dependencies_database, dependencies_table)), ','), \
     version(), (SELECT toString(sipHash64(arraySort(groupArray((name, value))))) FROM system.settings WHERE changed)";

/// Functions whose value can change although the table does not: with them a refusal says nothing of another time.
/// Those that end with `*` stand for all that begin so.
const UNSTEADY: &[&str] = &[
    "now*",
    "today",
    "yesterday",
    "current*",
    "utctimestamp",
    "rand*",
    "generate*",
    "fuzz*",
    "dictget*",
    "dicthas",
    "joinget*",
    "hostname",
    "fqdn",
    "user",
    "getsetting*",
    "getmacro",
    "uptime",
    "blocknumber",
    "rownumberin*",
    "runningaccumulate",
    "serveruuid",
    "filesystem*",
    "file",
    "nowinblock*",
];

/// What is known of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Changes whenever the table is altered or made anew, or gets another view.
    pub fingerprint: String,
    /// Materialized views read it: what a refusal leaves behind is not known.
    pub has_views: bool,
    /// A block may become several parts, of which the first can be written before the second is refused.
    pub is_partitioned: bool,
    /// It writes what it takes, and passes nothing on.
    pub is_merge_tree: bool,
    /// What it refuses now it has refused since it was last altered.
    pub is_steady: bool,
}

impl Definition {
    /// Reads the answer to [`COLUMNS`] in the format TSV; `None` if there is no such table.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).ok()?;
        let mut fields = text.lines().next()?.splitn(6, '\t');
        let (uuid, altered, views) = (fields.next()?, fields.next()?, fields.next()?);
        let (partitioned, merge_tree, rest) = (fields.next()?, fields.next()?, fields.next()?);
        let query = rest.split('\t').next().unwrap_or_default();
        Some(Self {
            fingerprint: format!("{uuid}/{altered}/{:016x}", xxh3_64(rest.as_bytes())),
            has_views: views != "0",
            is_partitioned: partitioned != "0",
            is_merge_tree: merge_tree == "1",
            is_steady: is_steady(&query.replace("\\n", " ").replace("\\t", " ")),
        })
    }
}

/// Whether no function of the list is called in a text as the server spells it, and no subquery is in it.
fn is_steady(query: &str) -> bool {
    let query = query.to_ascii_lowercase();
    let words = query.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.into_iter().all(|word| {
        let name = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let called = word.ends_with('(') && UNSTEADY.iter().any(|unsteady| is_called(unsteady, name));
        !called && name != "select"
    })
}

fn is_called(name: &str, word: &str) -> bool {
    match name.strip_suffix('*') {
        Some(start) => word.starts_with(start),
        None => word == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(query: &str, views: &str) -> Vec<u8> {
        format!("u\t17\t{views}\t1\t1\t{query}\t\t26.1\t7\n").into_bytes()
    }

    #[test]
    fn the_fingerprint_changes_with_the_table_and_its_views() {
        let of = |query: &str, views: &str| Definition::parse(&line(query, views)).expect("a definition");
        let plain = of("CREATE TABLE t (a Int32)", "0");
        assert!(!plain.has_views && plain.is_partitioned && plain.is_merge_tree && plain.is_steady);
        assert_ne!(plain.fingerprint, of("CREATE TABLE t (a Int64)", "0").fingerprint);
        assert!(of("CREATE TABLE t (a Int32)", "1").has_views);
        assert_eq!(Definition::parse(b""), None);
        assert_eq!(Definition::parse(b"Code: 60. DB::Exception"), None);
    }

    #[test]
    fn what_depends_on_more_than_the_row_is_not_steady() {
        for steady in [
            "CREATE TABLE t (brand String, user String, known Int8, CONSTRAINT c CHECK x > 0) ENGINE = MergeTree",
            "CREATE TABLE t (d Date DEFAULT toDate(ts), CONSTRAINT c CHECK length(snow) < 5)",
        ] {
            assert!(is_steady(steady), "{steady}");
        }
        for unsteady in [
            "CREATE TABLE t (ts DateTime DEFAULT now())",
            "CREATE TABLE t (ts DateTime, CONSTRAINT c CHECK ts < NOW64(3))",
            "CREATE TABLE t (x Int32, CONSTRAINT c CHECK x IN (SELECT y FROM u))",
            "CREATE TABLE t (x Int32 DEFAULT rand32())",
            "CREATE TABLE t (x Int32, CONSTRAINT c CHECK dictGetInt32('d', 'a', x) > 0)",
        ] {
            assert!(!is_steady(unsteady), "{unsteady}");
        }
        let two_lines = Definition::parse(&line("CREATE TABLE t (x Int32 DEFAULT\\nrand32())", "0"));
        assert!(!two_lines.expect("a definition").is_steady);
    }
}

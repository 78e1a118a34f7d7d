//! What queries cost, by ClickHouse's own account.

use super::{ClickHouse, Error};

/// Sums over finished queries of `system.query_log`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// How many queries.
    pub queries: u64,
    /// Their wall-clock time in seconds.
    pub seconds: f64,
    /// CPU seconds, user and system, of all their threads.
    pub cpu_seconds: f64,
    /// Rows written.
    pub written_rows: u64,
    /// Bytes written, uncompressed.
    pub written_bytes: u64,
}

impl ClickHouse {
    /// Sums the cost of the finished queries that `filter` selects, a condition over the columns of `system.query_log`
    /// such as `query_kind = 'Insert' AND has(tables, 'db.t')`. Flushes the log first.
    ///
    /// # Errors
    /// When ClickHouse refuses the condition, or its answer is not what was asked for.
    pub async fn usage(&self, filter: &str) -> Result<Usage, Error> {
        self.query("SYSTEM FLUSH LOGS query_log").await?;
        let answer = self
            .query(&format!(
                "SELECT count(), sum(query_duration_ms) / 1e3, \
                 sum(ProfileEvents['UserTimeMicroseconds'] + ProfileEvents['SystemTimeMicroseconds']) / 1e6, \
                 sum(written_rows), sum(written_bytes) \
                 FROM system.query_log WHERE type = 'QueryFinish' AND ({filter})"
            ))
            .await?;
        parse(&answer).ok_or_else(|| Error::Http(format!("unexpected answer: {answer}")))
    }
}

fn parse(line: &str) -> Option<Usage> {
    let mut fields = line.trim_end().split('\t');
    Some(Usage {
        queries: fields.next()?.parse().ok()?,
        seconds: fields.next()?.parse().ok()?,
        cpu_seconds: fields.next()?.parse().ok()?,
        written_rows: fields.next()?.parse().ok()?,
        written_bytes: fields.next()?.parse().ok()?,
    })
}

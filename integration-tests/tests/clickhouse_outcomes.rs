//! What becomes of a batch whose insert fails: by the code that ClickHouse gives, by the real engine's own refusals, and by
//! every way in which an answer can get lost. Whatever happens, the same bytes go out under the same token until they are
//! acknowledged, and the rows are in the table once.

#[path = "clickhouse_outcomes/codes.rs"]
mod codes;
#[path = "clickhouse_outcomes/engine.rs"]
mod engine;
#[path = "clickhouse_outcomes/proxy.rs"]
mod proxy;
#[path = "clickhouse_outcomes/unknown.rs"]
mod unknown;

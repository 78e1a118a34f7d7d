//! What both planes know of ClickHouse's language: its types, and how names and literals are quoted.
//!
//! It parses the type strings of `system.columns`, prints them back, and quotes what goes into statements. It holds no
//! connection, sends nothing and knows no data: decoding and encoding of values belong to the data plane.
//!
//! Invariants:
//! - `parse(type.to_string()) == type` for every type this module can hold.
//! - Parsing is bounded in length and depth, whatever the peer sends.
//! - There is one function to quote an identifier and one to quote a string; statements are built with nothing else.

mod data_type;
mod error_table;
mod parse;
mod quote;

pub use data_type::{DataType, JsonType, TupleElement};
pub use error_table::{ERROR_TABLE_COLUMNS, cut_from, cut_note, error_table_column_names};
pub use parse::{MAX_TYPE_DEPTH, MAX_TYPE_LENGTH, ParseTypeError};
pub use quote::{quote_identifier, quote_identifier_if_needed, quote_string};

//! A block under construction: typed columns, and their bytes in ClickHouse's Native format.
//!
//! The block is what one batch inserts: exactly one per request, without `BlockInfo`, as a plain HTTP insert wants it.
//! Its bytes are a function of its rows alone, so a block that is built again from the same records has the same
//! digest.
//!
//! Invariants:
//! - All columns have `rows()` rows, except while a row is being appended; [`Block::truncate`] restores that.
//! - A row that was taken back leaves no trace in the bytes.

pub(crate) mod column;
mod dictionary;
mod output;
pub(crate) mod scalar;
mod show;
pub(crate) mod strings;
mod value;
pub(crate) mod variant;
mod variant_order;
pub(crate) mod zone;

use std::sync::Arc;

use millrace_common::clickhouse::DataType;
use xxhash_rust::xxh3::xxh3_128;

pub use self::output::Output;
pub use self::show::ShownColumn;
pub use self::value::{AppendError, Value};

use self::column::{Column, ColumnError};
use self::output::put_varint;
use self::strings::{append_string, varint_width};
use self::zone::Zone;
use crate::decode::Plan;

/// A type that cannot be a column of a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The type names a time zone that is not in the tables.
    #[error("column `{column}`: there is no time zone `{zone}`")]
    UnknownZone {
        /// The column.
        column: String,
        /// The zone as the type names it.
        zone: String,
    },
    /// The type is not one that values can be written to.
    #[error("column `{column}` of type {data_type}: {reason}")]
    Unsupported {
        /// The column.
        column: String,
        /// The type, or the part of it that is at fault.
        data_type: String,
        /// Why not.
        reason: &'static str,
    },
}

impl BlockError {
    pub(crate) fn of(column: &str, error: ColumnError) -> BlockError {
        let column = column.to_owned();
        match error {
            ColumnError::UnknownZone(zone) => BlockError::UnknownZone { column, zone },
            ColumnError::Unsupported { data_type, reason } => BlockError::Unsupported {
                column,
                data_type,
                reason,
            },
        }
    }
}

/// Columns under construction, all with the same number of rows.
#[derive(Debug, Clone)]
pub struct Block {
    pub(crate) columns: Vec<BlockColumn>,
    rows: usize,
}

/// A named column of a block.
#[derive(Debug, Clone)]
pub(crate) struct BlockColumn {
    pub(crate) name: Arc<str>,
    /// Name and type as they stand on the wire.
    header: Arc<[u8]>,
    pub(crate) column: Column,
}

impl BlockColumn {
    pub(crate) fn new(name: &str, data_type: &DataType, zone: &Zone) -> Result<BlockColumn, BlockError> {
        let column = Column::new(data_type, zone).map_err(|error| BlockError::of(name, error))?;
        let mut header = Vec::new();
        append_string(&mut header, name.as_bytes());
        append_string(&mut header, data_type.to_string().as_bytes());
        Ok(BlockColumn {
            name: name.into(),
            header: header.into(),
            column,
        })
    }

    fn write(&self, rows: usize, out: &mut dyn Output) {
        out.put(&self.header);
        if rows > 0 {
            self.column.write_prefix(out);
            self.column.write_data(out);
        }
    }
}

impl Block {
    /// An empty block for what the plan decodes.
    pub fn new(plan: &Plan) -> Block {
        Block {
            columns: plan.prototype().to_vec(),
            rows: 0,
        }
    }

    /// An empty block of these columns, to be filled with [`append_row`](Self::append_row).
    pub fn with_columns(columns: &[(&str, DataType)]) -> Result<Block, BlockError> {
        let columns = columns
            .iter()
            .map(|(name, data_type)| BlockColumn::new(name, data_type, &Zone::Utc));
        Ok(Block {
            columns: columns.collect::<Result<_, _>>()?,
            rows: 0,
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Size in bytes of what [`write_native`](Self::write_native) would write now. It visits every column, not every
    /// row.
    pub fn encoded_bytes(&self) -> usize {
        let columns = self.columns.iter().map(|column| {
            let data = if self.rows > 0 {
                column.column.encoded_bytes()
            } else {
                0
            };
            column.header.len() + data
        });
        varint_width(self.columns.len() as u64) + varint_width(self.rows as u64) + columns.sum::<usize>()
    }

    /// Empties the block and keeps its memory for the next one.
    pub fn clear(&mut self) {
        self.columns.iter_mut().for_each(|column| column.column.clear());
        self.rows = 0;
    }

    /// Cuts back to the first `rows` rows, as if the others had never been appended.
    pub fn truncate(&mut self, rows: usize) {
        self.columns.iter_mut().for_each(|column| column.column.truncate(rows));
        self.rows = self.rows.min(rows);
    }

    /// Appends one row of plain values, one per column. On error the block is as before.
    pub fn append_row(&mut self, values: &[Value<'_>]) -> Result<(), AppendError> {
        if values.len() != self.columns.len() {
            return Err(AppendError::Width {
                columns: self.columns.len(),
                values: values.len(),
            });
        }
        let mut cells = self.columns.iter_mut().zip(values);
        let unfit = cells.find_map(|(cell, value)| {
            let fits = value::append(&mut cell.column, *value);
            (!fits).then(|| cell.name.to_string())
        });
        if let Some(column) = unfit {
            self.truncate(self.rows);
            return Err(AppendError::Type { column });
        }
        self.rows += 1;
        Ok(())
    }

    /// Writes the block in the Native format.
    pub fn write_native(&self, out: &mut dyn Output) {
        self.write_size(out);
        self.columns.iter().for_each(|column| column.write(self.rows, out));
    }

    /// The same for a block that is not needed any more: the memory of each column is free once it is written.
    pub fn into_native(self, out: &mut dyn Output) {
        self.write_size(out);
        self.columns.into_iter().for_each(|column| column.write(self.rows, out));
    }

    fn write_size(&self, out: &mut dyn Output) {
        put_varint(out, self.columns.len() as u64);
        put_varint(out, self.rows as u64);
    }

    /// Digest of the block's bytes in the Native format. It is stored with a batch and compared when the batch is built
    /// again, so the function must never change.
    pub fn digest(&self) -> [u8; 16] {
        let mut native = Vec::new();
        self.write_native(&mut native);
        Block::digest_of(&native)
    }

    /// The digest of bytes that [`write_native`](Self::write_native) wrote, for who has them already.
    pub fn digest_of(native: &[u8]) -> [u8; 16] {
        xxh3_128(native).to_be_bytes()
    }

    /// Notes that every column has one row more.
    pub(crate) fn finish_row(&mut self) {
        self.rows += 1;
        debug_assert!(self.columns.iter().all(|column| column.column.rows() == self.rows));
    }
}

#[cfg(test)]
mod tests;

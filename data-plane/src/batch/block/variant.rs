//! Columns whose rows are of different types: `Variant`, with types that the table declares, and `Dynamic`, with those
//! that came. Each type has a column of its own rows, and each row says which.

use std::sync::Arc;

use hashbrown::HashMap;
use millrace_common::clickhouse::DataType;

use super::column::{Column, ColumnError};
use super::output::{Output, put_numbers, put_string, put_varint};
use super::strings::varint_width;
use super::zone::Zone;

/// A `Variant` with one plain discriminator per row.
const VARIANT_BASIC: u64 = 0;
/// The discriminator of NULL in a `Variant`.
const VARIANT_NULL: u8 = 255;
/// A `Dynamic` as a list of types and one index per row.
const DYNAMIC_FLATTENED: u64 = 3;

/// One of several types per row.
#[derive(Debug, Clone)]
pub(crate) struct Variant {
    discriminators: Vec<u8>,
    pub(crate) alternatives: Vec<Column>,
    /// In which order ClickHouse tries them on a text.
    pub(crate) try_order: Arc<[u8]>,
}

impl Variant {
    pub(super) fn new(alternatives: Vec<Column>, try_order: Arc<[u8]>) -> Variant {
        Variant {
            discriminators: Vec::new(),
            alternatives,
            try_order,
        }
    }

    /// The alternative of each row, or what stands for NULL.
    pub(super) fn discriminators(&self) -> &[u8] {
        &self.discriminators
    }

    /// Ends a row whose value was just appended to this alternative.
    pub(crate) fn push_discriminator(&mut self, alternative: u8) {
        self.discriminators.push(alternative);
    }

    pub(super) fn push_null(&mut self) {
        self.discriminators.push(VARIANT_NULL);
    }

    pub(super) fn rows(&self) -> usize {
        self.discriminators.len()
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        let rows = rows.min(self.discriminators.len());
        for (index, alternative) in self.alternatives.iter_mut().enumerate() {
            let removed = self.discriminators[rows..].iter();
            let removed = removed.filter(|d| usize::from(**d) == index).count();
            if removed > 0 {
                alternative.truncate(alternative.rows() - removed);
            }
        }
        self.discriminators.truncate(rows);
    }

    pub(super) fn clear(&mut self) {
        self.discriminators.clear();
        self.alternatives.iter_mut().for_each(Column::clear);
    }

    pub(super) fn encoded_bytes(&self) -> usize {
        let alternatives: usize = self.alternatives.iter().map(Column::encoded_bytes).sum();
        8 + self.discriminators.len() + alternatives
    }

    pub(super) fn write_prefix(&self, out: &mut dyn Output) {
        out.put(&VARIANT_BASIC.to_le_bytes());
        self.alternatives
            .iter()
            .for_each(|alternative| alternative.write_prefix(out));
    }

    pub(super) fn write_data(&self, out: &mut dyn Output) {
        out.put(&self.discriminators);
        self.alternatives
            .iter()
            .for_each(|alternative| alternative.write_data(out));
    }
}

/// Any type per row.
#[derive(Debug, Clone)]
pub(crate) struct Dynamic {
    zone: Zone,
    /// Index into `types`, plus one; 0 is NULL.
    indexes: Vec<u32>,
    types: Vec<DynamicType>,
    by_type: HashMap<DataType, usize>,
}

/// One type of a `Dynamic` column.
#[derive(Debug, Clone)]
struct DynamicType {
    data_type: DataType,
    name: String,
    /// The row that brought it in.
    first_row: usize,
    column: Column,
}

impl Dynamic {
    pub(super) fn new(zone: Zone) -> Dynamic {
        Dynamic {
            zone,
            indexes: Vec::new(),
            types: Vec::new(),
            by_type: HashMap::new(),
        }
    }

    /// The type of each row by number, from 1; 0 is NULL.
    pub(super) fn indexes(&self) -> &[u32] {
        &self.indexes
    }

    /// The types that came, and their values.
    pub(super) fn typed(&self) -> impl Iterator<Item = (&DataType, &Column)> {
        self.types.iter().map(|of| (&of.data_type, &of.column))
    }

    /// The number of this type, new if it is the first one. `Err` if there can be no such column.
    pub(crate) fn type_index(&mut self, data_type: &DataType) -> Result<usize, ColumnError> {
        if let Some(index) = self.by_type.get(data_type) {
            return Ok(*index);
        }
        let index = self.types.len();
        self.types.push(DynamicType {
            data_type: data_type.clone(),
            name: data_type.to_string(),
            first_row: self.indexes.len(),
            column: Column::new(data_type, &self.zone)?,
        });
        self.by_type.insert(data_type.clone(), index);
        Ok(index)
    }

    /// The column of the rows of this type.
    pub(crate) fn column(&mut self, type_index: usize) -> &mut Column {
        &mut self.types[type_index].column
    }

    /// Takes back a type that was made for the row that then failed.
    pub(crate) fn forget_new_types(&mut self) {
        let rows = self.indexes.len();
        while let Some(new) = self.types.pop_if(|last| last.first_row >= rows) {
            self.by_type.remove(&new.data_type);
        }
    }

    /// Ends a row whose value was just appended to this type's column.
    pub(crate) fn push_index(&mut self, type_index: usize) {
        self.indexes.push(type_index as u32 + 1);
    }

    pub(super) fn push_null(&mut self) {
        self.indexes.push(0);
    }

    pub(super) fn rows(&self) -> usize {
        self.indexes.len()
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        if rows == 0 {
            self.types.clear();
            self.by_type.clear();
        }
        while self.indexes.len() > rows {
            let type_index = self.indexes.pop().and_then(|index| index.checked_sub(1));
            if let Some(last) = type_index.and_then(|index| self.types.get_mut(index as usize)) {
                last.column.truncate(last.column.rows() - 1);
            }
        }
        self.forget_new_types();
    }

    fn index_width(&self) -> usize {
        match self.types.len() {
            0..=0xFF => 1,
            0x100..=0xFFFF => 2,
            _ => 4,
        }
    }

    pub(super) fn encoded_bytes(&self) -> usize {
        let bytes = |t: &DynamicType| varint_width(t.name.len() as u64) + t.name.len() + t.column.encoded_bytes();
        let types: usize = self.types.iter().map(bytes).sum();
        8 + varint_width(self.types.len() as u64) + self.indexes.len() * self.index_width() + types
    }

    pub(super) fn write_prefix(&self, out: &mut dyn Output) {
        out.put(&DYNAMIC_FLATTENED.to_le_bytes());
        put_varint(out, self.types.len() as u64);
        self.types.iter().for_each(|t| put_string(out, t.name.as_bytes()));
        self.types.iter().for_each(|t| t.column.write_prefix(out));
    }

    pub(super) fn write_data(&self, out: &mut dyn Output) {
        if self.indexes.is_empty() {
            return;
        }
        // On the wire NULL is the index after the last type.
        let null = self.types.len() as u32;
        let wire = self.indexes.iter().map(|index| index.checked_sub(1).unwrap_or(null));
        match self.index_width() {
            1 => put_numbers(out, wire.map(|index| [index as u8])),
            2 => put_numbers(out, wire.map(|index| (index as u16).to_le_bytes())),
            _ => put_numbers(out, wire.map(u32::to_le_bytes)),
        }
        self.types.iter().for_each(|t| t.column.write_data(out));
    }
}

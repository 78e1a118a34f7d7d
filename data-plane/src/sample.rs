//! What people are shown of a few records before a pipe runs: the documents in them, the rows that they would be, and what is
//! wrong with the others. It is the workers' own code that unpacks and decodes, so that nothing is shown that would not happen.
//!
//! Not here: reading a stream, and any table. This is the only part of the data plane that the control plane uses.
//!
//! Invariant: nothing here keeps, inserts or sends anything.

use std::sync::Arc;

use millrace_common::pipe::{Decoding, MappedColumn, UnknownFieldPolicy};

use crate::{
    batch::block::Block,
    decode::{Decoder, VirtualColumn},
    lane::{fault::Fault, plan},
};

pub use crate::{
    decode::{InferredColumn, RecordMeta, Rejection, RejectionKind, Schema},
    source::HashKeyRange,
};

/// A document of a record, or a part of it that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Partition key, of the message if the record is an aggregate.
    pub partition_key: Vec<u8>,
    /// Its place within the record.
    pub sub_sequence_number: u64,
    /// As it stands in the record, unpacked.
    pub text: Vec<u8>,
    /// The JSON object that its row is made of, or why there is none.
    pub object: Result<Vec<u8>, Rejection>,
}

/// Takes records apart into their documents.
pub struct Opener {
    decoder: Decoder,
    block: Block,
}

/// The columns of the opener's block, in this order.
const OPENED: [(VirtualColumn, &str); 4] = [
    (VirtualColumn::Key, "String"),
    (VirtualColumn::SubSequenceNumber, "String"),
    (VirtualColumn::RawMessage, "String"),
    // No column takes a key, so this is all of the object.
    (VirtualColumn::Unmapped, "String"),
];

impl Opener {
    /// Takes apart as a pipe with this decoding would. What it says of keys and columns does not matter.
    ///
    /// # Errors
    /// None that is expected: the columns are fixed.
    pub fn new(decoding: &Decoding) -> Result<Opener, Fault> {
        let columns: Vec<MappedColumn> = OPENED
            .iter()
            .map(|(column, data_type)| MappedColumn {
                name: column.as_str().to_owned(),
                data_type: (*data_type).to_owned(),
                source_field: column.as_str().to_owned(),
                ..MappedColumn::default()
            })
            .collect();
        let decoding = Decoding {
            on_unknown_field: UnknownFieldPolicy::Ignore,
            flatten_separator: None,
            ..decoding.clone()
        };
        let plan = Arc::new(plan(&columns, &decoding, "UTC")?);
        Ok(Opener {
            block: Block::new(&plan),
            decoder: Decoder::new(plan),
        })
    }

    /// The documents of a record, in their order.
    pub fn open(&mut self, record: &[u8], meta: &RecordMeta<'_>) -> Vec<Document> {
        let mut documents = Vec::new();
        self.block.clear();
        self.decoder.decode(record, meta, &mut self.block, &mut |refused| {
            documents.push(Document {
                partition_key: refused.partition_key.unwrap_or(meta.partition_key).to_vec(),
                sub_sequence_number: refused.sub_sequence_number,
                text: refused.text.to_vec(),
                object: Err(refused.rejection),
            });
        });
        let columns: [Vec<&[u8]>; OPENED.len()] = std::array::from_fn(|column| self.block.texts(column));
        let [keys, numbers, texts, objects] = columns;
        for (((key, number), text), object) in keys.into_iter().zip(numbers).zip(texts).zip(objects) {
            documents.push(Document {
                partition_key: key.to_vec(),
                // The decoder wrote it.
                sub_sequence_number: String::from_utf8_lossy(number).parse().unwrap_or(0),
                text: text.to_vec(),
                object: Ok(object.to_vec()),
            });
        }
        documents.sort_by_key(|document| document.sub_sequence_number);
        documents
    }
}

/// A row as it would land.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// A JSON object of the columns that are filled.
    pub json: String,
    /// Columns that ClickHouse fills by their DEFAULT expression.
    pub defaults: Vec<String>,
}

/// What is no row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub rejection: Rejection,
    /// The document.
    pub text: Vec<u8>,
    /// Its place within the record.
    pub sub_sequence_number: u64,
}

/// What a record becomes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Rows, in their order.
    pub rows: Vec<Row>,
    /// What would go to the error table.
    pub refused: Vec<Refusal>,
}

/// Decodes records for a table without inserting them.
pub struct Preview {
    decoder: Decoder,
    block: Block,
    /// By column: the table has a DEFAULT for it, which a null in the block asks for.
    asks_for_default: Vec<bool>,
}

impl Preview {
    /// Decodes as a pipe with these columns would.
    ///
    /// # Errors
    /// If there can be no such pipe, with the reason.
    pub fn new(columns: &[MappedColumn], decoding: &Decoding, time_zone: &str) -> Result<Preview, Fault> {
        let plan = Arc::new(plan(columns, decoding, time_zone)?);
        let asks_for_default = columns
            .iter()
            .map(|column| column.has_default && !plan.columns_without_row_default().contains(&column.name))
            .collect();
        Ok(Preview {
            block: Block::new(&plan),
            decoder: Decoder::new(plan),
            asks_for_default,
        })
    }

    /// What a record becomes.
    pub fn decode(&mut self, record: &[u8], meta: &RecordMeta<'_>) -> Decoded {
        let mut decoded = Decoded::default();
        self.block.clear();
        self.decoder.decode(record, meta, &mut self.block, &mut |refused| {
            decoded.refused.push(Refusal {
                rejection: refused.rejection,
                text: refused.text.to_vec(),
                sub_sequence_number: refused.sub_sequence_number,
            });
        });
        let columns = self.block.show();
        decoded.rows = (0..self.block.rows())
            .map(|row| {
                let (mut fields, mut defaults) = (Vec::with_capacity(columns.len()), Vec::new());
                for (column, asks) in columns.iter().zip(&self.asks_for_default) {
                    let value = column.values.get(row).map_or("null", String::as_str);
                    if *asks && value == "null" {
                        defaults.push(column.name.clone());
                    } else {
                        let name = serde_json::Value::String(column.name.clone());
                        fields.push(format!("{name}:{value}"));
                    }
                }
                Row {
                    json: format!("{{{}}}", fields.join(",")),
                    defaults,
                }
            })
            .collect();
        decoded
    }
}

#[cfg(test)]
mod tests {
    use millrace_common::pipe::Envelope;

    use super::*;

    const META: RecordMeta<'_> = RecordMeta {
        partition_key: b"key",
        arrival_millis: 0,
        stream: "events",
        shard_id: "shardId-000000000000",
        sequence_number: b"1",
        sub_sequence_number: 0,
        hash_keys: None,
    };

    fn opened(record: &[u8], decoding: &Decoding) -> Vec<(u64, String, Result<String, &'static str>)> {
        let documents = Opener::new(decoding).unwrap().open(record, &META);
        documents
            .into_iter()
            .map(|document| {
                let object = document.object.map(|object| String::from_utf8(object).unwrap());
                (
                    document.sub_sequence_number,
                    String::from_utf8(document.text).unwrap(),
                    object.map_err(|rejection| rejection.kind.as_str()),
                )
            })
            .collect()
    }

    #[test]
    fn documents_come_in_their_order_whatever_became_of_them() {
        let record = b"{\"a\":1}\n{\"a\":\n{\"a\": 3}";
        let documents = opened(record, &Decoding::default());
        let shown: Vec<(u64, &str, bool)> = documents
            .iter()
            .map(|(number, text, object)| (*number, text.as_str().trim(), object.is_ok()))
            .collect();
        assert_eq!(shown.first(), Some(&(0, r#"{"a":1}"#, true)));
        assert_eq!(shown.last(), Some(&(2, r#"{"a": 3}"#, true)));
        assert!(!shown[1].2, "{shown:?}");
    }

    #[test]
    fn what_is_wrapped_is_unwrapped() {
        let decoding = Decoding {
            envelope: Some(Envelope::Sns),
            ..Decoding::default()
        };
        let record = br#"{"Type":"Notification","TopicArn":"arn:t","Message":"{\"a\":1}"}"#;
        let object = r#"{"a":1}"#;
        assert_eq!(
            opened(record, &decoding),
            [(0, object.to_owned(), Ok(object.to_owned()))]
        );
        assert_eq!(opened(b"{}", &decoding)[0].2, Err("not_in_envelope"));
    }

    #[test]
    fn a_default_is_asked_for_and_not_shown() {
        let column = |name: &str, data_type: &str, has_default| MappedColumn {
            name: name.into(),
            data_type: data_type.into(),
            has_default,
            source_field: name.into(),
            ..MappedColumn::default()
        };
        let columns = [
            column("a", "UInt8", true),
            column("b", "Nullable(String)", false),
            column("c", "Array(UInt8)", true),
        ];
        let mut preview = Preview::new(&columns, &Decoding::default(), "UTC").unwrap();
        let decoded = preview.decode(b"{} {\"a\":1,\"b\":\"x\"} {\"a\":300}", &META);
        let rows: Vec<(&str, &[String])> = decoded
            .rows
            .iter()
            .map(|row| (row.json.as_str(), row.defaults.as_slice()))
            .collect();
        assert_eq!(
            rows,
            [
                (r#"{"b":null,"c":[]}"#, ["a".to_owned()].as_slice()),
                (r#"{"a":1,"b":"x","c":[]}"#, [].as_slice()),
            ]
        );
        assert_eq!(decoded.refused[0].sub_sequence_number, 2);
        // What was decoded before leaves nothing behind.
        assert_eq!(preview.decode(b"{\"a\":2}", &META).rows.len(), 1);
        assert!(
            Preview::new(
                &[column("a", "UInt8", false), column("a", "UInt8", false)],
                &Decoding::default(),
                "UTC"
            )
            .is_err()
        );
    }
}

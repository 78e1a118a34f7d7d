//! The values of a record, each with the type that it is read as and the path that a verdict would name.

use millrace_common::clickhouse::DataType;

use super::records::Record;
use super::table::Column;
use super::value::{Json, unquoted};

/// A value where a type stands.
#[derive(Debug)]
pub(crate) struct Node<'a> {
    /// As in [`Rejection::field_path`](millrace_data_plane::decode::Rejection).
    pub(crate) path: String,
    pub(crate) column: usize,
    pub(crate) data_type: DataType,
    /// `None`: the element of a named tuple has no key in its object.
    pub(crate) value: Option<&'a Json>,
    /// Below a `Variant`, `Dynamic` or `JSON`, where the type is one of several that it may be read as.
    pub(crate) maybe: bool,
    /// As a map's key: a text.
    pub(crate) key: Option<String>,
}

impl Node<'_> {
    /// The value as it is written, without white space.
    pub(crate) fn text(&self) -> String {
        match (&self.key, self.value) {
            (Some(key), _) => format!("\"{key}\""),
            (None, Some(value)) => value.compact(),
            (None, None) => String::new(),
        }
    }

    /// A scalar's text, without quotes.
    pub(crate) fn bare(&self) -> String {
        let text = self.text();
        unquoted(&text).unwrap_or(text)
    }

    pub(crate) fn is_string(&self) -> bool {
        self.text().starts_with('"')
    }
}

/// All nodes of a record.
pub(crate) fn of<'a>(record: &'a Record, columns: &[Column]) -> Vec<Node<'a>> {
    let mut nodes = Vec::new();
    let Json::Object(fields) = &record.tree else {
        return nodes;
    };
    for (key, value) in fields {
        let name = unquoted(&format!("\"{key}\"")).unwrap_or_default();
        if let Some(index) = columns.iter().position(|column| column.name == name) {
            let place = Place {
                path: name,
                column: index,
                maybe: false,
            };
            walk(&columns[index].data_type, value, place, &mut nodes);
        }
    }
    nodes
}

#[derive(Clone)]
struct Place {
    path: String,
    column: usize,
    maybe: bool,
}

impl Place {
    fn below(&self, more: &str) -> Place {
        Place {
            path: format!("{}{more}", self.path),
            ..self.clone()
        }
    }
}

fn walk<'a>(data_type: &DataType, value: &'a Json, place: Place, nodes: &mut Vec<Node<'a>>) {
    let storage = data_type.storage();
    let node = |data_type: &DataType, value, key| Node {
        path: place.path.clone(),
        column: place.column,
        data_type: data_type.clone(),
        value,
        maybe: place.maybe,
        key,
    };
    match (storage.as_ref(), value) {
        (DataType::Nullable(inner) | DataType::LowCardinality(inner), _) => {
            nodes.push(node(&storage, Some(value), None));
            return walk(inner, value, place, nodes);
        }
        (DataType::Array(inner), Json::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                walk(inner, item, place.below(&format!("[{index}]")), nodes);
            }
        }
        (DataType::Map(key_type, inner), Json::Object(fields)) => {
            for (key, item) in fields {
                nodes.push(node(key_type, None, Some(key.clone())));
                walk(inner, item, place.below(&format!(".{key}")), nodes);
            }
        }
        (DataType::Tuple(elements), Json::Array(items)) => {
            for (index, (element, item)) in elements.iter().zip(items).enumerate() {
                walk(&element.data_type, item, place.below(&format!("[{index}]")), nodes);
            }
        }
        (DataType::Tuple(elements), Json::Object(fields)) => {
            for element in elements {
                let name = element.name.clone().unwrap_or_default();
                let is = |key: &str| unquoted(&format!("\"{key}\"")).is_some_and(|key| key == name);
                let mut any = false;
                for (_, item) in fields.iter().filter(|(key, _)| is(key)) {
                    any = true;
                    walk(&element.data_type, item, place.below(&format!(".{name}")), nodes);
                }
                if !any {
                    nodes.push(node(&element.data_type, None, None));
                }
            }
        }
        (DataType::Variant(alternatives), _) => {
            let inside = Place {
                maybe: true,
                ..place.clone()
            };
            for alternative in alternatives {
                walk(alternative, value, inside.clone(), nodes);
            }
        }
        _ => {}
    }
    nodes.push(node(&storage, Some(value), None));
}

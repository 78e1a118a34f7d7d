//! In which order ClickHouse tries the types of a `Variant` on a text.
//!
//! Deeper nesting first; then by the priority of the types, of which text is last because it takes everything; then
//! `LowCardinality` and `Nullable` before the plain type.

use millrace_common::clickhouse::DataType;

/// Nesting depth, priority, depth of `LowCardinality` and `Nullable`: compared in this order, higher first.
type Rank = (usize, usize, usize);

/// The positions of the alternatives in the order in which they are tried.
pub(crate) fn try_order(alternatives: &[DataType]) -> Vec<u8> {
    let ranks: Vec<Rank> = alternatives.iter().map(|alternative| rank(alternative, 0, 0)).collect();
    // At most 255 alternatives parse.
    let mut order: Vec<u8> = (0..alternatives.len()).map(|index| index as u8).collect();
    order.sort_by(|left, right| ranks[usize::from(*right)].cmp(&ranks[usize::from(*left)]));
    order
}

fn rank(data_type: &DataType, depth: usize, wrapped: usize) -> Rank {
    let combine = |own: usize, parts: Vec<Rank>| {
        let deepest = parts.iter().map(|part| part.0).max().unwrap_or(0);
        let most_wrapped = parts.iter().map(|part| part.2).max().unwrap_or(0);
        (
            deepest,
            own + parts.iter().map(|part| part.1).sum::<usize>(),
            most_wrapped,
        )
    };
    match data_type.storage().as_ref() {
        DataType::Nullable(inner) | DataType::LowCardinality(inner) => rank(inner, depth, wrapped + 1),
        DataType::Array(element) => combine(33, vec![rank(element, depth + 1, wrapped)]),
        DataType::Tuple(elements) => combine(
            32,
            elements
                .iter()
                .map(|element| rank(&element.data_type, depth + 1, wrapped))
                .collect(),
        ),
        DataType::Map(key, value) => combine(31, vec![rank(key, depth + 1, wrapped), rank(value, depth + 1, wrapped)]),
        scalar => (depth, priority(scalar), wrapped),
    }
}

/// Enums read names and numbers; then what is read from text; then numbers, the narrow before the wide; then dates,
/// which numbers would also be; then text.
fn priority(data_type: &DataType) -> usize {
    match data_type {
        DataType::Enum8(_) => 29,
        DataType::Enum16(_) => 28,
        DataType::Uuid => 27,
        DataType::Ipv4 => 26,
        DataType::Ipv6 => 25,
        // Level with IPv6, before all integers.
        DataType::Bool => 25,
        DataType::Int8 => 24,
        DataType::UInt8 => 23,
        DataType::Int16 => 22,
        DataType::UInt16 => 21,
        DataType::Int32 => 20,
        DataType::UInt32 => 19,
        DataType::Int64 => 18,
        DataType::UInt64 => 17,
        DataType::Int128 => 16,
        DataType::UInt128 => 15,
        DataType::Int256 => 14,
        DataType::UInt256 => 13,
        DataType::Decimal { precision: 0..=9, .. } => 12,
        DataType::Decimal { precision: 10..=18, .. } => 11,
        DataType::Decimal { precision: 19..=38, .. } => 10,
        DataType::Decimal { .. } => 9,
        DataType::Float32 => 8,
        DataType::Float64 => 7,
        DataType::Date => 6,
        DataType::Date32 => 5,
        DataType::DateTime { .. } => 4,
        DataType::DateTime64 { .. } => 3,
        DataType::FixedString(_) => 2,
        // `String` is above what ClickHouse has no place for.
        DataType::String => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(variant: &str) -> Vec<String> {
        let Ok(DataType::Variant(alternatives)) = variant.parse() else {
            panic!("{variant}")
        };
        try_order(&alternatives)
            .into_iter()
            .map(|index| alternatives[usize::from(index)].to_string())
            .collect()
    }

    #[test]
    fn the_narrowest_reading_comes_first() {
        let types = order("Variant(String, DateTime, Float64, UInt64, Bool, Array(UInt8), UUID, Map(String, UInt8))");
        assert_eq!(
            types,
            [
                "Array(UInt8)",
                "Map(String, UInt8)",
                "UUID",
                "Bool",
                "UInt64",
                "Float64",
                "DateTime",
                "String"
            ]
        );
        assert_eq!(
            order("Variant(Array(String), Array(Array(String)))")[0],
            "Array(Array(String))"
        );
    }
}

//! Type strings that ClickHouse prints, that users write, and that nobody should.

use super::*;

fn round_trip(text: &str) {
    let parsed: DataType = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(parsed.to_string(), text);
}

#[test]
fn prints_what_clickhouse_prints() {
    for text in [
        "UInt8",
        "Decimal(9, 2)",
        "FixedString(10)",
        "DateTime",
        "DateTime('Asia/Kolkata')",
        "DateTime64(3)",
        "DateTime64(9, 'UTC')",
        "Time64(6)",
        r"Enum8('a' = 1, 'b' = -2, 'it\'s' = 3)",
        "LowCardinality(Nullable(String))",
        "Array(Array(Nullable(UInt256)))",
        "Map(LowCardinality(String), Tuple(a UInt8, `b c` Map(UUID, Array(IPv6))))",
        "Tuple(UInt8, String)",
        "Nested(a UInt8, b Nested(c String))",
        "JSON",
        "JSON(max_dynamic_types=4, max_dynamic_paths=10, `a.b` UInt32, c Array(String), SKIP `x.y`, SKIP REGEXP 'z')",
        "Variant(Array(UInt8), String, UInt64)",
        "Dynamic",
        "Dynamic(max_types=5)",
        "SimpleAggregateFunction(sum, UInt64)",
        "SimpleAggregateFunction(groupArrayArray(10), Array(String))",
        "MultiPolygon",
    ] {
        round_trip(text);
    }
}

#[test]
fn reads_what_users_write() {
    let parse = |text: &str| text.parse::<DataType>().unwrap().to_string();
    assert_eq!(parse(" Decimal64( 3 ) "), "Decimal(18, 3)");
    assert_eq!(parse("Decimal"), "Decimal(10, 0)");
    assert_eq!(parse("Enum('a','b'=5,'c')"), "Enum8('a' = 1, 'b' = 5, 'c' = 6)");
    assert_eq!(parse("Enum('a'=1000)"), "Enum16('a' = 1000)");
    assert_eq!(parse("Variant(UInt64,String)"), "Variant(String, UInt64)");
    assert_eq!(parse("JSON(a.b UInt32)"), "JSON(`a.b` UInt32)");
    assert_eq!(parse("JSON()"), "JSON");
    assert_eq!(parse(r#"Tuple("q" Int8)"#), "Tuple(q Int8)");
}

#[test]
fn errors_say_where_and_what() {
    let error = |text: &str| text.parse::<DataType>().unwrap_err().to_string();
    assert_eq!(error("Array(Strin)"), "at position 6: unknown type `Strin`");
    assert_eq!(
        error("string"),
        "at position 0: unknown type `string`; did you mean `String`?"
    );
    assert_eq!(
        error("Array(String"),
        "at position 12: expected `,` or `)`, found the end"
    );
    assert_eq!(
        error("Map(String)"),
        "at position 10: expected `,` and the type of the map's values, found `)`"
    );
    assert_eq!(
        error("String) ENGINE=URL('http://x')"),
        "at position 6: expected the end of the type, found `) ENGINE=URL('http:/`"
    );
    assert_eq!(
        error("AggregateFunction(sum, UInt8)"),
        "at position 0: unknown type `AggregateFunction`"
    );
    assert_eq!(
        error("Decimal(77, 2)"),
        "at position 0: Decimal(77, 2): precision is 1 to 76, scale 0 to precision"
    );
    assert_eq!(
        error("Tuple(a UInt8, String)"),
        "at position 0: either all elements of a Tuple have names or none has"
    );
    assert_eq!(error(""), "at position 0: expected the name of a type, found the end");
    assert!(error("Enum8('a' = 300)").contains("300"));
    assert!(error("DateTime('UTC").contains("not closed"));
}

#[test]
fn hostile_types_are_refused_in_bounded_space() {
    let deep = format!("{}UInt8{}", "Array(".repeat(50_000), ")".repeat(50_000));
    assert!(matches!(
        deep[..200_000].parse::<DataType>(),
        Err(ParseTypeError::TooDeep { .. })
    ));
    assert!(matches!(deep.parse::<DataType>(), Err(ParseTypeError::TooLong { .. })));
    let allowed = format!(
        "{}UInt8{}",
        "Array(".repeat(MAX_TYPE_DEPTH - 1),
        ")".repeat(MAX_TYPE_DEPTH - 1)
    );
    assert!(allowed.parse::<DataType>().is_ok());
}

proptest::proptest! {
    #[test]
    fn never_panics(text in "[A-Za-z0-9(),'`\" =\\\\.é-]{0,60}") {
        if let Ok(parsed) = text.parse::<DataType>() {
            let printed = parsed.to_string();
            proptest::prop_assert_eq!(printed.parse::<DataType>(), Ok(parsed));
        }
    }

    #[test]
    fn quoting_round_trips(name in "\\PC*") {
        let element = TupleElement { name: Some(name), data_type: DataType::UInt8 };
        let tuple = DataType::Tuple(vec![element]);
        proptest::prop_assert_eq!(tuple.to_string().parse::<DataType>(), Ok(tuple));
    }
}

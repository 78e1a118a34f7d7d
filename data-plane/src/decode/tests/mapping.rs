//! Where columns take their values from: pointers, constants, what is required, what is flattened, and what nobody asked for.

use millrace_common::pipe::UnknownFieldPolicy;

use super::*;

/// Columns by name, type and source: `=` before a constant, `/` before a pointer, `!` before what is required.
fn compile(columns: &[(&str, &str, &str)], options: &Options) -> Result<Arc<Plan>, PlanError> {
    let column = |(name, data_type, source): &(&str, &str, &str)| {
        let (required, source) = source.strip_prefix('!').map_or((false, *source), |rest| (true, rest));
        MappedColumn {
            name: (*name).to_owned(),
            data_type: data_type.parse().unwrap(),
            has_default: false,
            source: if let Some(json) = source.strip_prefix('=') {
                FieldSource::Constant(json.to_owned())
            } else if source.starts_with('/') {
                FieldSource::Pointer(source.parse().unwrap())
            } else {
                source
                    .parse()
                    .map_or_else(|_| FieldSource::Key(source.to_owned()), FieldSource::Virtual)
            },
            required,
        }
    };
    Plan::compile_with(columns.iter().map(column).collect(), options).map(Arc::new)
}

fn flat(separator: &str) -> Options {
    Options {
        flatten_separator: Some(separator.to_owned()),
        ..Options::default()
    }
}

fn refusing() -> Options {
    Options {
        on_unknown_field: UnknownFieldPolicy::Reject,
        ..Options::default()
    }
}

/// The records are these rows of texts.
fn check(plan: &Arc<Plan>, rows: &[(&str, &[&str])]) {
    let (mut bench, mut wanted) = (Bench::new(plan), Block::new(plan));
    // Twice, so that keys are predicted, too.
    for (record, row) in rows.iter().chain(rows) {
        bench
            .decode(record.as_bytes())
            .unwrap_or_else(|error| panic!("{record}: {error}"));
        let row: Vec<Value<'_>> = row.iter().map(|text| Value::Bytes(text.as_bytes())).collect();
        wanted.append_row(&row).unwrap();
        assert_eq!(bench.block.digest(), wanted.digest(), "{record}");
    }
}

#[test]
fn pointers_lead_into_objects_and_arrays() {
    let columns = [
        ("a", "String", "/x/y"),
        ("b", "String", "/x/z/1/w"),
        ("c", "String", "/x~1y"),
        ("d", "String", "/_key"),
        ("e", "String", "/l/0"),
        ("f", "String", "/x/0"),
    ];
    let plan = compile(&columns, &Options::default()).unwrap();
    check(
        &plan,
        &[
            (
                r#"{"x":{"y":"1","z":[0,{"v":[],"w":"2"}],"0":"6"},"x/y":"3","_key":"4","l":["5",9]}"#,
                &["1", "2", "3", "4", "5", "6"],
            ),
            (
                r#"{"x.y":"no","x":{"z":[{"w":"no"}]},"l":[]}"#,
                &["", "", "", "", "", ""],
            ),
            (
                r#"{"x":["0",{"y":"no"}],"l":{"0":"key"}}"#,
                &["", "", "", "", "key", "0"],
            ),
            (r#"{"x":7,"l":"text"}"#, &["", "", "", "", "", ""]),
        ],
    );
}

#[test]
fn constants_are_in_every_row() {
    let columns = [("a", "String", "a"), ("r", "LowCardinality(String)", "=\"eu\"")];
    check(
        &compile(&columns, &Options::default()).unwrap(),
        &[(r#"{"a":"1","r":"no"}"#, &["1", "eu"]), ("{}", &["", "eu"])],
    );
    // Without a column from its JSON, a record need not be any.
    let plan = compile(
        &[("r", "String", "=\"eu\""), ("raw", "String", "_raw_message")],
        &Options::default(),
    )
    .unwrap();
    check(&plan, &[("no json", &["eu", "no json"])]);
    for (data_type, json, why) in [
        ("UInt8", "300", "between 0 and 255"),
        ("UInt8", "\"x\"", "\"x\""),
        ("UInt8", "1 2", "more than one JSON value"),
        ("Array(UInt8)", "[1", "expected"),
    ] {
        let error = compile(&[("a", data_type, &format!("={json}"))], &Options::default()).unwrap_err();
        assert!(matches!(error, PlanError::Constant { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let required = compile(&[("a", "UInt8", "!=1")], &Options::default()).unwrap_err();
    assert!(matches!(required, PlanError::AlwaysThere { .. }));
}

#[test]
fn what_is_required_is_there() {
    let columns = [
        ("a", "Nullable(String)", "!a"),
        ("b", "String", "!/x/y"),
        ("c", "String", "c"),
    ];
    let plan = compile(&columns, &Options::default()).unwrap();
    let mut bench = Bench::new(&plan);
    bench.decode(br#"{"a":"1","x":{"y":"2"}}"#).unwrap();
    for (record, message) in [
        (
            r#"{"x":{"y":"2"}}"#,
            "`a` is not in the record, and the pipe's mapping requires it",
        ),
        (
            r#"{"a":null,"x":{"y":"2"}}"#,
            "`a` is null, and the pipe's mapping requires it",
        ),
        (
            r#"{"a":"1","x":{}}"#,
            "`/x/y` is not in the record, and the pipe's mapping requires it",
        ),
        (
            r#"{"a":"1","x":{"y":null}}"#,
            "`/x/y` is null, and the pipe's mapping requires it",
        ),
    ] {
        let rejection = bench.decode(record.as_bytes()).unwrap_err();
        assert_eq!(
            (rejection.kind, rejection.message.as_str()),
            (RejectionKind::MissingRequired, message)
        );
    }
    assert_eq!(bench.block.rows(), 1);
}

#[test]
fn objects_are_flattened() {
    let columns = [
        ("id", "String", "id"),
        ("user_id", "String", "user_id"),
        ("user_name_first", "String", "user_name_first"),
        ("tags", "String", "tags"),
    ];
    let plan = compile(&columns, &flat("_")).unwrap();
    check(
        &plan,
        &[
            (
                r#"{"id":"1","user":{"id":"2","name":{"first":"3","last":"no"},"x":{"id":"no"}},"tags":{"a":1}}"#,
                &["1", "2", "3", r#"{"a":1}"#],
            ),
            (
                r#"{"user_id":"2","user_name":{"first":"3"},"user":{}}"#,
                &["", "2", "3", ""],
            ),
            (r#"{"user":7,"user_name":[{"first":"no"}]}"#, &["", "", "", ""]),
        ],
    );
    let twice = Bench::new(&plan)
        .decode(br#"{"user":{"id":"1"},"user_id":"2"}"#)
        .unwrap_err();
    assert_eq!(twice.kind, RejectionKind::DuplicateKey);
    let pointer = compile(&[("a", "UInt8", "/a/b")], &flat("_")).unwrap_err();
    assert!(matches!(pointer, PlanError::FlatPointer { .. }));
}

#[test]
fn unknown_keys_are_kept_where_they_are_wanted() {
    for data_type in ["String", "LowCardinality(Nullable(String))"] {
        let plan = compile(
            &[("a", "String", "a"), ("rest", data_type, "_unmapped")],
            &Options::default(),
        )
        .unwrap();
        check(
            &plan,
            &[
                (r#"{"a":"1"}"#, &["1", "{}"]),
                (
                    r#"{"x" : [1, {"a":2}],"a":"1","y":{ "z":null }}"#,
                    &["1", r#"{"x" : [1, {"a":2}],"y":{ "z":null }}"#],
                ),
                ("{}", &["", "{}"]),
            ],
        );
    }
    let plan = compile(
        &[("user_id", "String", "user_id"), ("rest", "String", "_unmapped")],
        &flat("_"),
    )
    .unwrap();
    check(
        &plan,
        &[(
            r#"{"user":{"id":"1","x\"":2},"other":{"id":3}}"#,
            &["1", r#"{"user_x\"":2,"other":{"id":3}}"#],
        )],
    );
    // What a JSON column cannot hold costs the document, not the block.
    let plan = compile(
        &[("a", "String", "a"), ("rest", "JSON", "_unmapped")],
        &Options::default(),
    )
    .unwrap();
    let mut bench = Bench::new(&plan);
    let rejection = bench.decode(br#"{"a":"1","x":1,"x":2}"#).unwrap_err();
    assert_eq!(
        (rejection.kind, rejection.field_path.as_str()),
        (RejectionKind::DuplicateKey, "rest")
    );
    let rejection = bench.decode(br#"{"a":"1","x":1e999}"#).unwrap_err();
    assert_eq!(
        rejection.message,
        "a value of it is too large for a number in a JSON column"
    );
    assert_eq!(bench.block.rows(), 0);
    bench.decode(br#"{"a":"1","x":{"y":1}}"#).unwrap();
    let wanted = br#"{"x":{"y":1}}"#;
    assert!(bench.native().windows(wanted.len()).any(|window| window == wanted));
}

#[test]
fn unknown_keys_are_refused_where_they_are_not_wanted() {
    let plan = compile(&[("a", "String", "a"), ("b", "String", "x.y")], &refusing()).unwrap();
    let mut bench = Bench::new(&plan);
    bench.decode(br#"{"a":"1","x":{"y":"2","z":3}}"#).unwrap();
    let long = "k".repeat(1000);
    for key in ["c", "A", &long] {
        let rejection = bench
            .decode(format!("{{\"a\":\"1\",\"{key}\":2}}").as_bytes())
            .unwrap_err();
        assert_eq!(rejection.kind, RejectionKind::UnknownField);
        assert!(
            rejection.message.len() < 200 && rejection.message.contains(&key[..1]),
            "{rejection}"
        );
    }
    // Text that is no JSON is called that.
    let rejection = bench.decode(br#"{"c":1,"a":}"#).unwrap_err();
    assert_eq!(rejection.kind, RejectionKind::MalformedJson);
    assert_eq!(bench.block.rows(), 1);
    let options = Options {
        flatten_separator: Some(".".to_owned()),
        ..refusing()
    };
    let plan = compile(&[("x.y", "String", "x.y")], &options).unwrap();
    let rejection = Bench::new(&plan).decode(br#"{"x":{"y":"2","z":3}}"#).unwrap_err();
    assert_eq!(
        (rejection.kind, rejection.field_path.as_str()),
        (RejectionKind::UnknownField, "x.z")
    );
}

//! Tokens: what is JSON and what is not, as another parser says it.

use proptest::prelude::*;

use super::*;

fn is_json(text: &[u8]) -> Result<(), RejectionKind> {
    let mut cursor = Cursor::new(text);
    cursor.skip_space();
    cursor.skip_value().map_err(|fail| fail.kind())?;
    cursor.skip_space();
    if cursor.peek().is_some() {
        Err(RejectionKind::MalformedJson)
    } else {
        Ok(())
    }
}

#[test]
fn strings_are_found_and_resolved() {
    let cases: [(&str, &str); 6] = [
        (r#""""#, ""),
        (
            r#""plain and long enough for two words""#,
            "plain and long enough for two words",
        ),
        (r#""a\"b\\c\/d\b\f\n\r\te""#, "a\"b\\c/d\u{8}\u{c}\n\r\te"),
        (r#""\u0041\u00e9\u20ac\ud83d\ude00""#, "Aé€😀"),
        (r#""\u0000x""#, "\0x"),
        ("\"é€😀\u{2028}\"", "é€😀\u{2028}"),
    ];
    for (json, wanted) in cases {
        let mut cursor = Cursor::new(json.as_bytes());
        let text = cursor.string().unwrap();
        assert_eq!(text.len(), wanted.len(), "{json}");
        assert_eq!(text.resolve().as_ref(), wanted.as_bytes(), "{json}");
        assert_eq!(cursor.position(), json.len());
    }
}

#[test]
fn broken_json_is_refused() {
    for json in [
        "",
        " ",
        "{",
        "[1,]",
        "{\"a\":1,}",
        "[,1]",
        "{\"a\" 1}",
        "{a:1}",
        "'a'",
        "01",
        "+1",
        "1.",
        ".5",
        "1e",
        "1e+",
        "-",
        "NaN",
        "Infinity",
        "tru",
        "nulll",
        "\"a",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\ud83d\"",
        "\"\\udc00\"",
        "\"\\ud83d\\u0041\"",
        "\"a\tb\"",
        "[1 2]",
        "{\"a\":1 \"b\":2}",
        "1_0",
        "0x1",
        "[1}",
        "{\"a\":1]",
        "// x",
        "{}{}",
        "]",
    ] {
        assert_eq!(is_json(json.as_bytes()), Err(RejectionKind::MalformedJson), "{json}");
    }
}

#[test]
fn depth_is_bounded_without_stack() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(is_json(nested(MAX_DEPTH as usize).as_bytes()), Ok(()));
    assert_eq!(
        is_json(nested(MAX_DEPTH as usize + 1).as_bytes()),
        Err(RejectionKind::TooDeep)
    );
    assert_eq!(is_json(nested(1_000_000).as_bytes()), Err(RejectionKind::TooDeep));
    assert_eq!(
        is_json("{\"a\":".repeat(200_000).as_bytes()),
        Err(RejectionKind::TooDeep)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The verdict on any text is serde_json's, apart from depth.
    #[test]
    fn agrees_with_serde_json(text in r#"[\[\]{}",:0-9eE+.a\\nutrlfs -]{0,24}"#) {
        let wanted = serde_json::from_str::<Box<serde_json::value::RawValue>>(&text).is_ok();
        prop_assert_eq!(is_json(text.as_bytes()).is_ok(), wanted, "{}", text);
    }

    #[test]
    fn strings_round_trip(wanted in any::<String>()) {
        let json = serde_json::to_string(&wanted).unwrap();
        let mut cursor = Cursor::new(json.as_bytes());
        let text = cursor.string().unwrap();
        prop_assert_eq!(text.len(), wanted.len());
        let resolved = text.resolve();
        prop_assert_eq!(resolved.as_ref(), wanted.as_bytes());
    }
}

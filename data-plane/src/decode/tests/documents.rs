//! Records of several documents: each is a row or is refused by itself, and nothing of a record gets lost.

use proptest::prelude::*;

use super::*;

/// What becomes of a record: the values of the column `a`, and what is refused, by text and class.
fn read(record: &[u8]) -> (Vec<u8>, Vec<(String, &'static str, u64)>) {
    let plan = plan(&[("a", "UInt8", "a"), ("n", "UInt64", "_sub_sequence_number")]);
    let (mut decoder, mut block) = (Decoder::new(plan.clone()), Block::new(&plan));
    let mut refused = Vec::new();
    let documents = decoder.decode(record, &META, &mut block, &mut |part| {
        refused.push((
            String::from_utf8_lossy(part.text).into_owned(),
            part.rejection.kind.as_str(),
            part.sub_sequence_number,
        ));
    });
    assert_eq!(documents.documents as usize, block.rows() + refused.len());
    // One byte for each row, and then eight for each.
    let mut native = Vec::new();
    block.write_native(&mut native);
    let start = native
        .windows(8)
        .position(|window| window == b"\x01a\x05UInt8")
        .unwrap()
        + 8;
    (native[start..start + block.rows()].to_vec(), refused)
}

fn rows(record: &str) -> Vec<u8> {
    let (rows, refused) = read(record.as_bytes());
    assert_eq!(refused, [], "{record}");
    rows
}

fn refused(record: &str) -> (Vec<u8>, Vec<(String, &'static str)>) {
    let (rows, refused) = read(record.as_bytes());
    (rows, refused.into_iter().map(|(text, kind, _)| (text, kind)).collect())
}

#[test]
fn documents_follow_each_other_or_stand_in_an_array() {
    for record in [
        r#"{"a":1}{"a":2}"#,
        "{\"a\":1}\n{\"a\":2}\n",
        "{\"a\":1}\r\n\r\n{\"a\":2}",
        r#"{"a":1},{"a":2}"#,
        r#" {"a":1} , {"a":2} , "#,
        r#"[{"a":1},{"a":2}]"#,
        "[\n  {\"a\":1},\n  {\"a\":2}\n]\n",
        r#"[{"a":1} {"a":2}]"#,
        "[{\"a\":1}]\n[{\"a\":2}]",
        r#"[{"a":1}]{"a":2}"#,
    ] {
        assert_eq!(rows(record), [1, 2], "{record}");
    }
}

#[test]
fn a_document_that_does_not_fit_is_refused_alone() {
    let (rows, refused) = read(br#"{"a":1} {"a":"x"} {"a":3} 7 {"a":4}"#);
    assert_eq!(rows, [1, 3, 4]);
    assert_eq!(
        refused,
        [
            (r#"{"a":"x"}"#.to_owned(), "type_mismatch", 1),
            ("7".to_owned(), "malformed_json", 3)
        ]
    );
    let (rows, refused) = super::documents::refused(r#"[{"a":1},null,[{"a":2}],{"a":300}]"#);
    assert_eq!(rows, [1]);
    assert_eq!(
        refused,
        [
            ("null".to_owned(), "malformed_json"),
            (r#"[{"a":2}]"#.to_owned(), "malformed_json"),
            (r#"{"a":300}"#.to_owned(), "out_of_range"),
        ]
    );
}

#[test]
fn a_damaged_line_does_not_cost_the_others() {
    let (rows, refused) = refused("{\"a\":1}\n{\"a\":2\n{\"a\":3}\n{\"a\":4}}\n{\"a\":5}\n");
    assert_eq!(rows, [1, 3, 4, 5]);
    assert_eq!(
        refused,
        [
            ("{\"a\":2\n".to_owned(), "malformed_json"),
            ("}\n".to_owned(), "malformed_json"),
        ]
    );
    let (rows, refused) = super::documents::refused("[\n{\"a\":1},\n{\"a\":x},\n{\"a\":3}\n]");
    assert_eq!(rows, [1, 3]);
    assert_eq!(refused, [("{\"a\":x},\n".to_owned(), "malformed_json")]);
}

#[test]
fn the_rest_of_a_record_is_refused_as_it_is() {
    for (record, wanted, rest) in [
        (r#"{"a":1} x {"a":2}"#, &[1][..], r#"x {"a":2}"#),
        (r#"{"a":1},,{"a":2}"#, &[1], r#",{"a":2}"#),
        (r#"[{"a":1},]"#, &[1], "]"),
        (r#"{"a":1}]"#, &[1], "]"),
        (r#",{"a":1}"#, &[], r#",{"a":1}"#),
        (r#"[{"a":1}"#, &[1], r#"[{"a":1}"#),
        (r#" {"a":1 "#, &[], r#" {"a":1 "#),
        ("\u{feff}{\"a\":1}", &[], "\u{feff}{\"a\":1}"),
    ] {
        let (rows, refused) = refused(record);
        assert_eq!(rows, wanted, "{record}");
        assert_eq!(refused, [(rest.to_owned(), "malformed_json")], "{record}");
    }
    for record in ["", " \n", "[]", " [ ] "] {
        assert_eq!(refused(record), (vec![], vec![(record.to_owned(), "empty_record")]));
    }
    assert_eq!(
        refused(r#"[]{"a":1}"#),
        (vec![1], vec![("[]".to_owned(), "empty_record")])
    );
}

#[test]
fn one_line_that_is_not_utf8_does_not_cost_the_others() {
    let (rows, refused) = read(b"{\"a\":1}\n{\"a\":2,\"b\":\"\xff\"}\n{\"a\":3}");
    assert_eq!(rows, [1, 3]);
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].1, refused[0].2), ("invalid_utf8", 1));
    let (rows, refused) = read(b"{\"a\":1} \xff");
    assert_eq!((rows.len(), refused.len()), (0, 1));
}

#[test]
fn many_short_documents_that_are_refused_do_not_cost_the_others() {
    let wrong = "{\"a\":300}\n".repeat(20);
    let (rows, refused) = read(&[wrong.as_bytes(), b"{\"a\":\xff}\n{\"a\":1}"].concat());
    assert_eq!((rows, refused.len()), (vec![1], 21));

    let wrong: &[u8] = br#"{"a":300}"#;
    let messages: Vec<_> = std::iter::repeat_n(("key", wrong), 20)
        .chain([("key", &b"{\"a\":1}"[..])])
        .collect();
    let (rows, refused) = read(&super::super::unpack::tests::packed(&messages));
    assert_eq!((rows, refused.len()), (vec![1], 20));
}

#[test]
fn the_raw_message_of_one_of_several_is_its_own() {
    let plan = plan(&[("raw", "String", "_raw_message"), ("a", "UInt8", "a")]);
    let mut bench = Bench::new(&plan);
    let record = b" {\"a\":1} [{\"a\" : 2}, {\"a\":3}]\n";
    assert_eq!(
        bench
            .decoder
            .decode(record, &META, &mut bench.block, &mut |part| panic!("{part:?}")),
        Decoded {
            documents: 3,
            bytes: record.len(),
            out_of_range: 0,
        }
    );
    let mut wanted = Block::new(&plan);
    for (raw, a) in [(&b"{\"a\":1}"[..], 1), (b"{\"a\" : 2}", 2), (b"{\"a\":3}", 3)] {
        wanted.append_row(&[Value::Bytes(raw), Value::Unsigned(a)]).unwrap();
    }
    assert_eq!(bench.block.digest(), wanted.digest());
}

#[test]
fn what_one_record_may_do_is_bounded() {
    const MOST_SECONDS: u64 = 20;
    let plan = plan(&[("a", "UInt8", "a"), ("wide", "FixedString(200)", "w")]);
    let began = std::time::Instant::now();
    let openers = "{\"a\":[\n".repeat(127);
    let starts = "{\"a\":[{},\n".repeat(40_000);
    for record in [
        "0 ".repeat(1 << 20),
        "{\"a\":x}\n".repeat(1 << 17),
        "{\"a\":\"x\"}".repeat(1 << 17),
        "{}".repeat(1 << 20),
        "[".repeat(1 << 20),
        " ".repeat(1 << 20) + &"{}".repeat(1 << 16),
        ",\n{".repeat(1 << 19),
        format!("{openers}{}", "{},\n".repeat(1 << 18)),
        starts,
    ] {
        let mut block = Block::new(&plan);
        let (mut reports, mut bytes, mut last) = (0, 0, String::new());
        Decoder::new(plan.clone()).decode(record.as_bytes(), &META, &mut block, &mut |part| {
            reports += 1;
            bytes += part.text.len();
            last = part.rejection.kind.as_str().to_owned();
        });
        let start = &record[..16];
        assert!(reports <= 1001, "{reports} reports of {start}");
        assert!(bytes <= record.len(), "{bytes} bytes of {start}");
        assert!(
            block.encoded_bytes() < 34 << 20,
            "{} bytes of rows of {start}",
            block.encoded_bytes()
        );
        if reports > 1 && !start.starts_with('{') {
            assert_eq!(last, "too_many_documents", "{start}");
        }
    }
    let took = began.elapsed();
    assert!(took.as_secs() < MOST_SECONDS, "{took:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// However documents are put together, each becomes what it would have become alone.
    #[test]
    fn documents_are_what_they_are_alone(
        records in prop::collection::vec(any_record(), 1..8),
        separators in prop::collection::vec(prop_oneof![Just(""), Just("\n"), Just(","), Just(" ,\r\n\t")], 8),
        in_array in any::<bool>(),
    ) {
        let plan = wide_plan();
        let mut alone = Bench::new(&plan);
        let verdicts: Vec<Option<(String, String)>> = records
            .iter()
            .map(|record| alone.decode(record.as_bytes()).err().map(|rejection| (record.clone(), rejection.to_string())))
            .collect();
        let mut together = String::new();
        for (index, (record, separator)) in records.iter().zip(&separators).enumerate() {
            together.push_str(record);
            if index + 1 < records.len() {
                together.push_str(separator);
            }
        }
        if in_array {
            together = format!(" [ {together}\n] ");
        }
        let mut bench = Bench::new(&plan);
        let mut refused = Vec::new();
        let count = bench.decoder.decode(together.as_bytes(), &META, &mut bench.block, &mut |part| {
            refused.push((part.sub_sequence_number as usize, part.rejection.to_string(), part.text.to_vec()));
        });
        prop_assert_eq!(count.documents as usize, records.len());
        let wanted: Vec<(usize, &(String, String))> = verdicts
            .iter()
            .enumerate()
            .filter_map(|(index, verdict)| Some((index, verdict.as_ref()?)))
            .collect();
        prop_assert_eq!(refused.len(), wanted.len());
        for ((place, message, text), (index, (record, alone))) in refused.iter().zip(wanted) {
            prop_assert_eq!(*place, index);
            prop_assert_eq!(message, alone);
            prop_assert_eq!(text.trim_ascii(), if records.len() == 1 && !in_array { together.trim().as_bytes() } else { record.as_bytes() });
        }
        prop_assert_eq!(bench.native(), alone.native());
    }

    /// Every byte of any record is in a row or in what is refused: at most punctuation and space are in neither.
    #[test]
    fn nothing_gets_lost(bytes in prop::collection::vec(prop_oneof![
        Just(&b"{\"a\":1}"[..]), Just(&b"{\"a\":\"x\"}"[..]), Just(&b"{"[..]), Just(&b"}"[..]), Just(&b"["[..]),
        Just(&b"]"[..]), Just(&b","[..]), Just(&b"\n"[..]), Just(&b"\n{"[..]), Just(&b" "[..]), Just(&b"7"[..]),
        Just(&b"\xff"[..]), Just(&b"\"q"[..]),
    ], 0..24)) {
        let record = bytes.concat();
        let plan = plan(&[("raw", "String", "_raw_message"), ("a", "UInt8", "a")]);
        let mut bench = Bench::new(&plan);
        let mut found = Vec::new();
        bench.decoder.decode(&record, &META, &mut bench.block, &mut |part| found.extend_from_slice(part.text));
        let significant = |bytes: &[u8]| bytes.iter().filter(|byte| !b" \n,[]".contains(byte)).count();
        // Each raw message has its length before it, and a byte for `a`.
        let rows = bench.block.rows();
        let taken = bench.block.encoded_bytes() - Block::new(&plan).encoded_bytes() - 2 * rows;
        prop_assert!(significant(&found) + taken >= significant(&record), "{:?}", String::from_utf8_lossy(&record));
    }
}

#[test]
fn messages_of_other_shards_take_no_place_from_what_is_refused() {
    use crate::decode::unpack::tests::packed_with_hash_keys;
    let column = MappedColumn {
        name: "a".to_owned(),
        data_type: "UInt8".parse().unwrap(),
        has_default: false,
        source: FieldSource::Key("a".to_owned()),
        required: false,
    };
    let options = Options {
        on_out_of_range: millrace_common::pipe::OutOfRangePolicy::Reject,
        ..Options::default()
    };
    let plan = Arc::new(Plan::compile_with(vec![column], &options).unwrap());
    let meta = RecordMeta {
        hash_keys: Some(crate::source::HashKeyRange { first: 0, last: 9 }),
        ..META
    };
    // Strangers first, own messages behind them: the strangers must not cost those.
    for (strangers, own, pieces) in [(5_000, 10, 5_000), (100_000, 3, 100_000), (100_050, 3, 100_001)] {
        let keys: Vec<u128> = std::iter::repeat_n(77, strangers)
            .chain(std::iter::repeat_n(7, own))
            .collect();
        let record = packed_with_hash_keys(&keys);
        let (mut block, mut kinds, mut last) = (Block::new(&plan), std::collections::BTreeMap::new(), String::new());
        let decoded = Decoder::new(plan.clone()).decode(&record, &meta, &mut block, &mut |refused| {
            *kinds.entry(refused.rejection.kind.as_str()).or_insert(0) += 1;
            last = refused.rejection.message;
        });
        assert_eq!((decoded.out_of_range, block.rows()), (strangers as u64, own));
        assert_eq!(kinds, [("out_of_hash_range", pieces)].into(), "{strangers}");
        assert_eq!(decoded.documents as usize, own + pieces);
        assert_eq!(last.starts_with("50 more messages"), strangers > 100_000, "{last}");
    }
}

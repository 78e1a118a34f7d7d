//! Blocks filled by hand: layout, cutting back, digest.

use super::*;

fn error_like() -> Block {
    let columns = [
        ("at", "DateTime64(3)".parse().unwrap()),
        ("kind", "LowCardinality(String)".parse().unwrap()),
        ("path", "Nullable(String)".parse().unwrap()),
        ("shard", "LowCardinality(Nullable(String))".parse().unwrap()),
        ("n", "UInt16".parse().unwrap()),
    ];
    Block::with_columns(&columns).unwrap()
}

fn row(index: u64) -> [Value<'static>; 5] {
    [
        Value::Signed(1_700_000_000_000 - index as i64),
        Value::Bytes([&b"a"[..], b"bb", b"", b"dddd"][index as usize % 4]),
        if index.is_multiple_of(3) {
            Value::Default
        } else {
            Value::Bytes(b"x.y")
        },
        if index.is_multiple_of(2) {
            Value::Default
        } else {
            Value::Bytes(b"")
        },
        Value::Unsigned(index),
    ]
}

#[test]
fn layout_is_native() {
    let mut block = Block::with_columns(&[("a", DataType::UInt8), ("b", DataType::String)]).unwrap();
    block.append_row(&[Value::Unsigned(7), Value::Bytes(b"hi")]).unwrap();
    let mut native = Vec::new();
    block.write_native(&mut native);
    assert_eq!(native, b"\x02\x01\x01a\x05UInt8\x07\x01b\x06String\x02hi");
    assert_eq!(block.encoded_bytes(), native.len());
    assert_eq!(block.digest(), Block::digest_of(&native));
}

#[test]
fn cut_back_rows_leave_no_trace() {
    let mut digests = vec![error_like().digest()];
    let mut block = error_like();
    for index in 0..200 {
        block.append_row(&row(index)).unwrap();
        digests.push(block.digest());
        let mut native = Vec::new();
        block.write_native(&mut native);
        assert_eq!(block.encoded_bytes(), native.len());
    }
    for rows in (0..200).rev() {
        block.truncate(rows);
        assert_eq!(block.rows(), rows);
        assert_eq!(block.digest(), digests[rows], "{rows} rows");
    }
    for index in 0..5 {
        block.append_row(&row(index)).unwrap();
    }
    block.clear();
    block.append_row(&row(0)).unwrap();
    assert_eq!(block.digest(), digests[1]);
}

#[test]
fn values_that_do_not_fit_change_nothing() {
    let mut block = error_like();
    block.append_row(&row(1)).unwrap();
    let before = block.digest();
    let mut wrong = row(2);
    wrong[4] = Value::Unsigned(1 << 16);
    assert_eq!(
        block.append_row(&wrong),
        Err(AppendError::Type { column: "n".to_owned() })
    );
    assert_eq!(
        block.append_row(&wrong[..2]),
        Err(AppendError::Width { columns: 5, values: 2 })
    );
    wrong[4] = Value::Bytes(b"1");
    assert!(block.append_row(&wrong).is_err());
    assert_eq!(block.digest(), before);
}

#[test]
fn dictionaries_grow_past_one_byte() {
    let mut block = Block::with_columns(&[("a", DataType::low_cardinality(DataType::String))]).unwrap();
    for value in 0..70_000u32 {
        block.append_row(&[Value::Bytes(&value.to_be_bytes())]).unwrap();
    }
    let full = block.digest();
    let mut native = Vec::new();
    block.write_native(&mut native);
    assert_eq!(block.encoded_bytes(), native.len());
    block.truncate(300);
    for value in 300..70_000u32 {
        block.append_row(&[Value::Bytes(&value.to_be_bytes())]).unwrap();
    }
    assert_eq!(block.digest(), full);
}

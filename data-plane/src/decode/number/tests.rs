//! Numbers at their limits.

use proptest::prelude::*;

use super::*;

#[test]
fn whole_numbers() {
    for (text, value) in [
        ("0", 0),
        ("-0", 0),
        ("+5", 5),
        ("007", 7),
        ("1e3", 1000),
        ("1.0", 1),
        ("12.50e1", 125),
        ("100e-2", 1),
    ] {
        assert_eq!(parse_i128(text.as_bytes(), false), Ok(value), "{text}");
    }
    assert_eq!(parse_i128(b"18446744073709551616", false), Ok(1 << 64));
    assert_eq!(parse_i128(b"1.5", false), Err(NumberError::NotWhole));
    assert_eq!(parse_i128(b"1e-1", false), Err(NumberError::NotWhole));
    assert_eq!(parse_i128(b"1.0", true), Err(NumberError::NotWhole));
    assert_eq!(parse_i128(b"1e400000000000000000000", false), Err(NumberError::Range));
    assert_eq!(parse_i128(b"0e400000000000000000000", false), Ok(0));
    assert_eq!(parse_i128(&b"9".repeat(1_000_000), false), Err(NumberError::Range));
    for text in [
        "", "-", "+", ".", "e5", "1e", "1e+", "1x", "0x10", "1 ", " 1", "--1", "inf",
    ] {
        assert_eq!(parse_i128(text.as_bytes(), false), Err(NumberError::Syntax), "{text}");
    }
}

#[test]
fn wide_whole_numbers() {
    let max = U256::MAX.to_string();
    assert_eq!(parse_wide(max.as_bytes(), false), Ok((false, U256::MAX)));
    assert_eq!(
        parse_wide(format!("-{max}.000").as_bytes(), false),
        Ok((true, U256::MAX))
    );
    assert_eq!(
        parse_wide((max.clone() + "0").as_bytes(), false),
        Err(NumberError::Range)
    );
    let above = format!("{}6", &max[..max.len() - 1]);
    assert_eq!(parse_wide(above.as_bytes(), false), Err(NumberError::Range));
    assert_eq!(parse_wide("9".repeat(78).as_bytes(), false), Err(NumberError::Range));
}

#[test]
fn decimals() {
    let parse = |text: &str, precision, scale| parse_decimal(text.as_bytes(), precision, scale).map(|v| v.as_i128());
    assert_eq!(parse("1.999", 9, 2), Ok(199));
    assert_eq!(parse("-1.999", 9, 2), Ok(-199));
    assert_eq!(parse("1e2", 9, 2), Ok(10_000));
    assert_eq!(parse("1e-400", 9, 2), Ok(0));
    assert_eq!(parse("9999999.999", 9, 2), Ok(999_999_999));
    assert_eq!(parse("10000000", 9, 2), Err(NumberError::Range));
    assert_eq!(parse("0000000000000000000001", 9, 2), Ok(100));
    assert_eq!(parse("1e400", 9, 2), Err(NumberError::Range));
    assert_eq!(parse("x", 9, 2), Err(NumberError::Syntax));
    let nines = "9".repeat(76);
    assert_eq!(parse_decimal(nines.as_bytes(), 76, 0).map(|v| v.to_string()), Ok(nines));
}

#[test]
fn floats() {
    assert_eq!(parse_f64(b"0.1"), Ok(0.1));
    assert!(parse_f64(b"-0").is_ok_and(|value| value == 0.0 && value.is_sign_negative()));
    assert_eq!(parse_f64(b"1e400"), Err(NumberError::Range));
    assert_eq!(parse_f64(b"-Infinity"), Ok(f64::NEG_INFINITY));
    assert!(parse_f64(b"NaN").is_ok_and(f64::is_nan));
    assert_eq!(parse_f32(b"1e39"), Err(NumberError::Range));
    assert_eq!(parse_f64(b""), Err(NumberError::Syntax));
}

proptest! {
    #[test]
    fn every_i128_in_every_spelling(value: i64, zeros in 0usize..5) {
        let plain = value.to_string();
        prop_assert_eq!(parse_i128(plain.as_bytes(), true), Ok(i128::from(value)));
        let spelled = format!("{plain}.{}", "0".repeat(zeros + 1));
        prop_assert_eq!(parse_i128(spelled.as_bytes(), false), Ok(i128::from(value)));
        let scientific = format!("{plain}{}e-{zeros}", "0".repeat(zeros));
        prop_assert_eq!(parse_i128(scientific.as_bytes(), false), Ok(i128::from(value)));
    }

    #[test]
    fn wide_numbers_agree_with_their_printing(high: u128, low: u128) {
        let value = U256::from_words(high, low);
        prop_assert_eq!(parse_wide(value.to_string().as_bytes(), true), Ok((false, value)));
    }
}

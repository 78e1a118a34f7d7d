//! Spellings of instants.

use super::*;

fn utc(text: &str) -> Option<i64> {
    parse(text.as_bytes(), &Zone::Utc, Style::Any).map(|instant| instant.seconds)
}

#[test]
fn many_spellings_of_one_instant() {
    for text in [
        "2024-02-29 10:11:12",
        "2024-02-29T10:11:12Z",
        "2024-02-29T12:11:12+02:00",
        "2024-02-29T12:11:12 +0200",
        "2024/02/29 10:11:12",
        "20240229101112",
        "20240229T101112Z",
        "Feb 29 2024 10:11:12",
        "29 Feb 2024 10:11:12",
        "Thu, 29 Feb 2024 10:11:12 GMT",
        "29/02/2024 10:11:12",
        "02/29/2024 10:11:12",
        "29-Feb-2024 10:11:12",
        "February 29 2024 10:11:12 AM",
        "2024-02-29 10:11:12.999",
        " 2024-02-29 10:11:12 ",
        "1709201472",
        "1709201472123",
    ] {
        assert_eq!(utc(text), Some(1_709_201_472), "{text}");
    }
    assert_eq!(utc("2024-02-29 10:11:12 PM"), Some(1_709_201_472 + 12 * 3600));
    assert_eq!(utc("2024"), Some(1_704_067_200));
    assert_eq!(utc("2024-02-29 24:00:60"), utc("2024-03-01 00:01:00"));
}

#[test]
fn fractions_keep_their_digits() {
    let parsed = parse(b"2024-02-29T10:11:12.0345Z", &Zone::Utc, Style::Any).unwrap();
    assert_eq!((parsed.fraction, parsed.digits), (345, 4));
    let parsed = parse(b"1700000000.5", &Zone::Utc, Style::Any).unwrap();
    assert_eq!((parsed.seconds, parsed.fraction, parsed.digits), (1_700_000_000, 5, 1));
}

#[test]
fn what_is_no_instant() {
    for text in [
        "",
        "abc",
        "-1",
        "2023-02-29",
        "2024-13-01",
        "10:11:12",
        "Mar 3 01:33:48",
        "12345",
        "1.7e9",
        "2024-02-29 10:11:12abc",
        "2024-02-29T10:11:12,345Z",
        "0000-00-00 00:00:00",
        "2024-02-29 10:11:12 Married",
        "12345678901",
    ] {
        assert_eq!(utc(text), None, "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn never_panics(text in "[0-9TZ:., +/a-zA-Z-]{0,30}") {
        let _ = parse(text.as_bytes(), &Zone::Utc, Style::Any);
        let _ = parse(text.as_bytes(), &Zone::Utc, Style::Strict);
    }
}

//! What a refused insert means: one table by ClickHouse's numeric error code, one by HTTP status where there is no
//! code. Codes are parsed as numbers, never matched as text: "Code: 53" is also how 530 begins.
//!
//! The class says what to do with the *same* batch, token and bytes. A code that is not in the table is retried: waiting
//! loses nothing, and an unknown error must never send rows elsewhere.

use millrace_common::reason;

/// What to do with an insert that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Send the same again, with backoff.
    Retry,
    /// The same, and slow down.
    Load,
    /// The table no longer fits the block: describe it again.
    Schema,
    /// A person has to change something at the destination; probe now and then.
    Pause,
    /// Rows that the server cannot take, which should have been judged before.
    Poison,
    /// A defect of Millrace.
    Bug,
}

/// ClickHouse's codes that this module names.
pub(super) mod code {
    pub(in super::super) const NO_SUCH_COLUMN_IN_TABLE: u32 = 16;
    pub(in super::super) const UNKNOWN_TABLE: u32 = 60;
    pub(in super::super) const UNKNOWN_DATABASE: u32 = 81;
    pub(in super::super) const UNKNOWN_SETTING: u32 = 115;
    pub(in super::super) const TOO_MANY_PARTS: u32 = 252;
    pub(in super::super) const INSERT_WAS_DEDUPLICATED: u32 = 389;
    pub(in super::super) const ACCESS_DENIED: u32 = 497;
    pub(in super::super) const AUTHENTICATION_FAILED: u32 = 516;
}

/// The class of a code, if it is in the table. `message` tells apart the two meanings of code 252.
#[rustfmt::skip]
pub fn by_code(code: u32, message: &str) -> Option<Class> {
    Some(match code {
        // Too many partitions in one block is permanent for that block until the server's limit is raised; too many
        // parts passes as merges catch up.
        code::TOO_MANY_PARTS if message.contains("Too many partitions") => Class::Pause,
        3 | 32 | 74 | 75 | 95 | 96 | 107 | 198 | 203 | 209 | 210 | 216 | 225 | 236 | 242 | 244 | 254 | 265 | 279 | 285 | 286
        | 289 | 297 | 319 | 341 | 369 | 384 | 394 | 416 | 425 | 439 | 473 | 499 | 519 | 529 | 571 | 722 | 733 | 734 | 735
        | 738 | 999 | 1000 | 1002 => Class::Retry,
        159 | 160 | 173 | 202 | 241 | 243 | 252 | 290 | 364 | 574 | 692 | 745 | 749 => Class::Load,
        8 | 10 | 15 | 16 | 20 | 33 | 44 | 47 | 53 | 70 | 117 | 122 | 131 | 455 | 524 => Class::Schema,
        60 | 81 | 115 | 164 | 192..=195 | 201 | 218 | 291 | 344 | 359 | 392 | 395 | 452 | 497 | 516 | 700 | 720 => Class::Pause,
        6 | 27 | 38 | 41 | 69 | 72 | 190 | 321 | 349 | 376 | 407 | 469 | 691 => Class::Poison,
        1 | 36 | 40 | 62 | 101 | 102 | 261 | 271 | 373 => Class::Bug,
        _ => return None,
    })
}

/// The class of an answer without a code: it comes from a proxy, or ClickHouse did not get far.
pub fn by_status(status: u16) -> Class {
    match status {
        429 | 503 => Class::Load,
        // Redirects are not followed: credentials go to the endpoint that was named and nowhere else.
        300..=399 | 401 | 403 | 404 | 405 | 407 | 410 | 411 | 413 | 414 | 421 | 431 | 451 => Class::Pause,
        _ => Class::Retry,
    }
}

/// The stable reason for a class and code.
pub(super) fn reason(class: Class, code: Option<u32>) -> &'static str {
    match (class, code) {
        (_, Some(code::UNKNOWN_TABLE | 218)) => reason::DESTINATION_TABLE_NOT_FOUND,
        (_, Some(code::UNKNOWN_DATABASE)) => reason::DESTINATION_DATABASE_NOT_FOUND,
        (_, Some(192..=195 | code::AUTHENTICATION_FAILED | 720)) => reason::DESTINATION_AUTHENTICATION_FAILED,
        (_, Some(164 | 291 | code::ACCESS_DENIED)) => reason::DESTINATION_ACCESS_DENIED,
        (_, Some(code::NO_SUCH_COLUMN_IN_TABLE)) => reason::DESTINATION_COLUMN_NOT_FOUND,
        (Class::Load, _) => reason::DESTINATION_OVERLOADED,
        (Class::Schema, _) => reason::DESTINATION_SCHEMA_CHANGED,
        (Class::Retry, _) => reason::DESTINATION_UNREACHABLE,
        (Class::Bug, _) => reason::INTERNAL,
        (Class::Pause | Class::Poison, _) => reason::DESTINATION_INSERT_FAILED,
    }
}

/// What to do about it.
pub(super) fn remedy(class: Class, code: Option<u32>) -> &'static str {
    match (class, code) {
        (_, Some(code::UNKNOWN_TABLE | 218)) => "create the table again; Millrace goes on by itself",
        (_, Some(code::UNKNOWN_DATABASE)) => "create the database again; Millrace goes on by itself",
        (_, Some(192..=195 | code::AUTHENTICATION_FAILED | 720)) => "correct the ClickHouse credential",
        (_, Some(164 | 291 | code::ACCESS_DENIED)) => "GRANT INSERT on the table and its error table to the user",
        (_, Some(code::TOO_MANY_PARTS)) if class == Class::Pause => {
            "raise max_partitions_per_insert_block for the user, or partition the table more coarsely"
        }
        (Class::Retry, _) => "Millrace keeps trying",
        (Class::Load, _) => "Millrace slows down and keeps trying",
        (Class::Schema, _) => "undo the change of the table, or update the pipe to fit it",
        (Class::Pause, _) => "mend what the server says; Millrace goes on by itself",
        (Class::Poison | Class::Bug, _) => "this is a defect of Millrace: please report it",
    }
}

/// The code in a text such as `Code: 60. DB::Exception: …`, wherever in the text that is.
pub(super) fn code_in(text: &[u8]) -> Option<u32> {
    const LABEL: &[u8] = b"Code: ";
    memchr::memmem::find_iter(text, LABEL).find_map(|at| {
        let rest = &text[at + LABEL.len()..];
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        // The full stop belongs to it: "Code: 60" alone may be a cut "Code: 605.".
        (rest.get(digits) == Some(&b'.')).then(|| std::str::from_utf8(&rest[..digits]).ok()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_has_its_codes() {
        let cases: [(Class, &[u32]); 6] = [
            (Class::Retry, &[3, 209, 210, 216, 225, 242, 279, 319, 999, 1002]),
            (Class::Load, &[159, 202, 241, 252, 745]),
            (Class::Schema, &[16, 20, 33, 53, 117, 122]),
            (Class::Pause, &[60, 81, 115, 164, 192, 193, 194, 195, 395, 497, 516]),
            (Class::Poison, &[27, 38, 41, 69, 349, 469, 691]),
            (Class::Bug, &[36, 40, 62, 271]),
        ];
        for (class, codes) in cases {
            for code in codes {
                assert_eq!(by_code(*code, "Code"), Some(class), "{code}");
            }
        }
        for unknown in [0, 530, 9_999, u32::MAX] {
            assert_eq!(by_code(unknown, ""), None, "{unknown}");
        }
    }

    #[test]
    fn code_252_means_two_things() {
        assert_eq!(
            by_code(252, "Code: 252. DB::Exception: Too many parts (3000) in table"),
            Some(Class::Load)
        );
        let partitions = "Code: 252. DB::Exception: Too many partitions for single INSERT block (more than 100)";
        assert_eq!(by_code(252, partitions), Some(Class::Pause));
    }

    #[test]
    fn codes_are_numbers() {
        assert_eq!(code_in(b"Code: 53. DB::Exception: x"), Some(53));
        assert_eq!(code_in(b"Code: 530. DB::Exception: x"), Some(530));
        assert_eq!(
            code_in(b"\r\n__exception__\r\nabc\r\nCode: 395. DB::Exception: boom"),
            Some(395)
        );
        assert_eq!(code_in(b"Code: x. Code: 60. y"), Some(60));
        for none in [&b"Code: 60"[..], b"", b"Code: .", b"Code: 99999999999999.", b"Error 60"] {
            assert_eq!(code_in(none), None, "{}", String::from_utf8_lossy(none));
        }
    }

    #[test]
    fn statuses_without_a_code() {
        let cases = [
            (429, Class::Load),
            (503, Class::Load),
            (408, Class::Retry),
            (500, Class::Retry),
            (502, Class::Retry),
            (504, Class::Retry),
            (301, Class::Pause),
            (401, Class::Pause),
            (404, Class::Pause),
            (413, Class::Pause),
        ];
        for (status, class) in cases {
            assert_eq!(by_status(status), class, "{status}");
        }
    }

    #[test]
    fn reasons_and_remedies() {
        assert_eq!(reason(Class::Pause, Some(60)), reason::DESTINATION_TABLE_NOT_FOUND);
        assert_eq!(
            reason(Class::Pause, Some(516)),
            reason::DESTINATION_AUTHENTICATION_FAILED
        );
        assert_eq!(reason(Class::Pause, Some(497)), reason::DESTINATION_ACCESS_DENIED);
        assert_eq!(reason(Class::Schema, Some(53)), reason::DESTINATION_SCHEMA_CHANGED);
        assert_eq!(reason(Class::Load, Some(252)), reason::DESTINATION_OVERLOADED);
        assert_eq!(reason(Class::Retry, None), reason::DESTINATION_UNREACHABLE);
        assert!(remedy(Class::Pause, Some(252)).contains("max_partitions_per_insert_block"));
    }
}

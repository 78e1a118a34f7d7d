//! What a refused insert means: one table by ClickHouse's numeric error code, one by HTTP status where there is no
//! code. Codes are parsed as numbers, never matched as text: "Code: 53" is also how 530 begins.
//!
//! The class says what to do with the *same* batch, token and bytes. A code that is not in the table is retried: waiting
//! loses nothing, and an unknown error must never send rows elsewhere. If it stays, a person is asked to look.

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
    /// Rows that the server does not take: a constraint, an expression of the table that throws. Nobody can judge them but
    /// the server. They are found, and go to the error table.
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

/// ClickHouse's codes by what they mean for an insert, with the names that ClickHouse gives them: a number that meant
/// something else in some version would be seen by comparing names. 389 (INSERT_WAS_DEDUPLICATED) is missing because it is
/// an acknowledgement.
#[rustfmt::skip]
pub const CODES: [(Class, &[(u32, &str)]); 6] = [
    (
        Class::Retry,
        &[
            (3, "UNEXPECTED_END_OF_FILE"), (32, "ATTEMPT_TO_READ_AFTER_EOF"),
            (74, "CANNOT_READ_FROM_FILE_DESCRIPTOR"), (75, "CANNOT_WRITE_TO_FILE_DESCRIPTOR"),
            (95, "CANNOT_READ_FROM_SOCKET"), (96, "CANNOT_WRITE_TO_SOCKET"), (107, "FILE_DOESNT_EXIST"),
            (198, "DNS_ERROR"), (203, "NO_FREE_CONNECTION"), (209, "SOCKET_TIMEOUT"), (210, "NETWORK_ERROR"),
            (216, "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING"), (225, "NO_ZOOKEEPER"), (236, "ABORTED"),
            (242, "TABLE_IS_READ_ONLY"), (244, "UNEXPECTED_ZOOKEEPER_ERROR"), (254, "NO_ACTIVE_REPLICAS"),
            (265, "NO_AVAILABLE_REPLICA"), (279, "ALL_CONNECTION_TRIES_FAILED"), (285, "TOO_FEW_LIVE_REPLICAS"),
            (286, "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE"), (289, "REPLICA_IS_NOT_IN_QUORUM"),
            (297, "SHARD_HAS_NO_CONNECTIONS"), (319, "UNKNOWN_STATUS_OF_INSERT"), (341, "UNFINISHED"),
            (369, "ALL_REPLICAS_ARE_STALE"), (384, "PART_IS_TEMPORARILY_LOCKED"), (394, "QUERY_WAS_CANCELLED"),
            (410, "EXTERNAL_SERVER_IS_NOT_RESPONDING"), (416, "REPLICA_STATUS_CHANGED"), (425, "SYSTEM_ERROR"),
            (439, "CANNOT_SCHEDULE_TASK"), (473, "DEADLOCK_AVOIDED"), (499, "S3_ERROR"),
            (500, "AZURE_BLOB_STORAGE_ERROR"), (519, "NO_REMOTE_SHARD_AVAILABLE"), (529, "NOT_A_LEADER"),
            (571, "DATABASE_REPLICATION_FAILED"), (677, "THREAD_WAS_CANCELED"), (696, "ASYNC_LOAD_CANCELED"),
            (722, "ASYNC_LOAD_WAIT_FAILED"), (733, "TABLE_IS_BEING_RESTARTED"),
            (734, "CANNOT_WRITE_AFTER_BUFFER_CANCELED"), (735, "QUERY_WAS_CANCELLED_BY_CLIENT"),
            (738, "PART_IS_LOCKED"), (999, "KEEPER_EXCEPTION"), (1000, "POCO_EXCEPTION"),
            (1002, "UNKNOWN_EXCEPTION"),
        ],
    ),
    (
        Class::Load,
        &[
            (159, "TIMEOUT_EXCEEDED"), (160, "TOO_SLOW"), (173, "CANNOT_ALLOCATE_MEMORY"),
            (202, "TOO_MANY_SIMULTANEOUS_QUERIES"), (241, "MEMORY_LIMIT_EXCEEDED"), (243, "NOT_ENOUGH_SPACE"),
            (252, "TOO_MANY_PARTS"), (290, "LIMIT_EXCEEDED"), (364, "RECEIVED_ERROR_TOO_MANY_REQUESTS"),
            (574, "DISTRIBUTED_TOO_MANY_PENDING_BYTES"), (692, "TOO_MANY_MUTATIONS"), (745, "SERVER_OVERLOADED"),
            (749, "TCP_CONNECTION_LIMIT_REACHED"), (762, "HTTP_CONNECTION_LIMIT_REACHED"),
            (776, "RESOURCE_LIMIT_EXCEEDED"), (777, "MEMORY_RESERVATION_KILLED"),
            (778, "MEMORY_RESERVATION_FAILED"),
        ],
    ),
    (
        Class::Schema,
        &[
            (8, "THERE_IS_NO_COLUMN"), (10, "NOT_FOUND_COLUMN_IN_BLOCK"), (15, "DUPLICATE_COLUMN"),
            (16, "NO_SUCH_COLUMN_IN_TABLE"), (20, "NUMBER_OF_COLUMNS_DOESNT_MATCH"), (33, "CANNOT_READ_ALL_DATA"),
            (44, "ILLEGAL_COLUMN"), (47, "UNKNOWN_IDENTIFIER"), (53, "TYPE_MISMATCH"),
            (70, "CANNOT_CONVERT_TYPE"), (117, "INCORRECT_DATA"), (122, "INCOMPATIBLE_COLUMNS"),
            (131, "TOO_LARGE_STRING_SIZE"), (455, "SUSPICIOUS_TYPE_FOR_LOW_CARDINALITY"),
            (524, "ALTER_OF_COLUMN_IS_FORBIDDEN"),
        ],
    ),
    (
        Class::Pause,
        &[
            (48, "NOT_IMPLEMENTED"), (60, "UNKNOWN_TABLE"), (81, "UNKNOWN_DATABASE"), (115, "UNKNOWN_SETTING"),
            (164, "READONLY"), (192, "UNKNOWN_USER"), (193, "WRONG_PASSWORD"), (194, "REQUIRED_PASSWORD"),
            (195, "IP_ADDRESS_NOT_ALLOWED"), (201, "QUOTA_EXCEEDED"), (218, "TABLE_IS_DROPPED"),
            (291, "DATABASE_ACCESS_DENIED"), (344, "SUPPORT_IS_DISABLED"),
            (359, "TABLE_SIZE_EXCEEDS_MAX_DROP_SIZE_LIMIT"), (392, "QUERY_IS_PROHIBITED"),
            (395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"), (452, "SETTING_CONSTRAINT_VIOLATION"),
            (472, "READONLY_SETTING"), (497, "ACCESS_DENIED"), (516, "AUTHENTICATION_FAILED"),
            (700, "USER_SESSION_LIMIT_EXCEEDED"), (720, "USER_EXPIRED"), (764, "DEDUPLICATION_IS_NOT_POSSIBLE"),
            (774, "TABLE_IS_PERMANENTLY_READ_ONLY"),
        ],
    ),
    (
        Class::Poison,
        &[
            (6, "CANNOT_PARSE_TEXT"), (27, "CANNOT_PARSE_INPUT_ASSERTION_FAILED"), (38, "CANNOT_PARSE_DATE"),
            (41, "CANNOT_PARSE_DATETIME"), (69, "ARGUMENT_OUT_OF_BOUND"), (72, "CANNOT_PARSE_NUMBER"),
            (190, "SIZES_OF_ARRAYS_DONT_MATCH"), (321, "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE"),
            (349, "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN"), (376, "CANNOT_PARSE_UUID"), (407, "DECIMAL_OVERFLOW"),
            (469, "VIOLATED_CONSTRAINT"), (691, "UNKNOWN_ELEMENT_OF_ENUM"),
        ],
    ),
    (
        Class::Bug,
        &[
            (1, "UNSUPPORTED_METHOD"), (36, "BAD_ARGUMENTS"), (40, "CHECKSUM_DOESNT_MATCH"), (62, "SYNTAX_ERROR"),
            (101, "UNEXPECTED_PACKET_FROM_CLIENT"), (102, "UNEXPECTED_PACKET_FROM_SERVER"),
            (261, "UNKNOWN_BLOCK_INFO_FIELD"), (271, "CANNOT_DECOMPRESS"), (373, "SESSION_IS_LOCKED"),
        ],
    ),
];

/// The class of a code, if it is in the table. `message` tells apart the two meanings of code 252.
pub fn by_code(code: u32, message: &str) -> Option<Class> {
    if code == code::TOO_MANY_PARTS && message.contains("Too many partitions") {
        // Too many partitions in one block is permanent for that block until the server's limit is raised; too many
        // parts passes as merges catch up.
        return Some(Class::Pause);
    }
    let in_class = |(_, codes): &&(Class, &[(u32, &str)])| codes.iter().any(|(known, _)| *known == code);
    CODES.iter().find(in_class).map(|(class, _)| *class)
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

/// Whether a code is one that the table does not have.
pub(super) fn is_unknown(code: Option<u32>) -> bool {
    code.is_some_and(|code| by_code(code, "").is_none())
}

/// The stable reason for a class and code.
pub(super) fn reason(class: Class, code: Option<u32>) -> &'static str {
    match (class, code) {
        (_, code) if is_unknown(code) => reason::DESTINATION_INSERT_FAILED,
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
        (_, Some(164 | 291 | code::ACCESS_DENIED)) => {
            "GRANT INSERT on the table and its error table to the user, whose profile must allow inserts with settings"
        }
        (_, Some(395)) => {
            "an expression of the table or of one of its materialized views throws: mend or drop it; Millrace goes on by itself"
        }
        (_, Some(774)) => "the table is set read-only: MODIFY SETTING table_readonly = 0; Millrace goes on by itself",
        (_, code) if is_unknown(code) => {
            "Millrace does not know this error and keeps trying: look at what the server says"
        }
        (_, Some(code::TOO_MANY_PARTS)) if class == Class::Pause => {
            "let the user set max_partitions_per_insert_block, raise it, or partition the table more coarsely"
        }
        (Class::Retry, _) => "Millrace keeps trying",
        (Class::Load, _) => "Millrace slows down and keeps trying",
        (Class::Schema, _) => "undo the change of the table, or update the pipe to fit it",
        (Class::Pause, _) => "mend what the server says; Millrace goes on by itself",
        (Class::Poison, _) => {
            "some of its rows are against a rule of the table: change the rule, and Millrace goes on by itself"
        }
        (Class::Bug, _) => "this is a defect of Millrace: please report it",
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
    fn each_code_has_one_class() {
        let mut seen = std::collections::BTreeSet::new();
        for (class, codes) in CODES {
            assert!(codes.is_sorted(), "{class:?}");
            for (code, name) in codes {
                assert!(seen.insert(*code), "{code} twice");
                assert_eq!(by_code(*code, "Code"), Some(class), "{name}");
            }
        }
        assert!(
            !seen.contains(&code::INSERT_WAS_DEDUPLICATED),
            "an acknowledgement is no error"
        );
        // LOGICAL_ERROR is a defect of the server: nobody knows what it did.
        for unknown in [0, 49, 389, 530, 9_999, u32::MAX] {
            assert_eq!(by_code(unknown, ""), None, "{unknown}");
            assert!(is_unknown(Some(unknown)));
        }
        assert!(!is_unknown(None));
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
        assert_eq!(reason(Class::Retry, Some(49)), reason::DESTINATION_INSERT_FAILED);
        for (class, codes) in CODES {
            for (code, name) in codes {
                assert!(reason::ALL.contains(&reason(class, Some(*code))), "{name}");
                assert!(!remedy(class, Some(*code)).is_empty(), "{name}");
            }
        }
        assert!(remedy(Class::Pause, Some(252)).contains("max_partitions_per_insert_block"));
    }
}

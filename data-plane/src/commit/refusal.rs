//! What may be done with a batch that ClickHouse has refused. Pure.
//!
//! A batch that was sent stands for its rows under its token, so nothing else may be sent in its place unless it is certain
//! that nothing of it was applied, and that nothing will be. That takes all of this:
//! - every attempt of it here was answered, after its whole block had been delivered, with an error that comes before
//!   anything is written. An attempt without an answer, or with one that was found out by asking again, says nothing, and
//!   no later answer mends that: a constraint is looked at before the token;
//! - the table is a MergeTree that no materialized view reads: a view that throws, a table that only passes rows on, may
//!   have taken a part;
//! - if an earlier owner may have sent it, what that owner was told, or will be: the same refusal. That is certain only if
//!   the table, the server and its settings for this user are what they were before the batch was recorded (the fingerprint
//!   is recorded with it), and the table judges by nothing but the row.
//!
//! In doubt the same bytes are sent again under the same token, for ever.
//!
//! A block that was made for the table as it was before somebody altered it is refused as well. If the pipe was changed since,
//! the batch is encoded anew for the newer revision, under a new id and under the same conditions, unless records of it are in
//! the error table: what the newer revision would reject is not what was rejected.
//!
//! What is not covered: a request of a dead owner that is still on its way when somebody alters the table so that it takes the
//! rows.

use millrace_common::batch::Counts;

use crate::sink::clickhouse::{Class, Definition, InsertError};

/// Broken contents of a value, such as a JSON document with a path twice; or a block that is not what the table takes.
const INCORRECT_DATA: u32 = 117;
/// Too many partitions, or too many parts.
const TOO_MANY_PARTS: u32 = 252;
/// A throwing function; also what a view throws.
const FUNCTION_THROW_IF: u32 = 395;
/// What is found out before the block is cut into parts: its columns do not fit, a value cannot be read, a CHECK constraint,
/// a NULL where none may be.
const BEFORE_PARTS: &[u32] = &[16, 20, 53, INCORRECT_DATA, 349, 469];
/// What is found out before the block is looked at: who asks, and with which settings.
const BEFORE_ALL: &[u32] = &[115, 192, 193, 194, 195, 452, 472, 516, 720];
/// What the server says of a block that was made for the table as it was: a column is gone, or has another type.
const OTHER_TABLE: &[u32] = &[16, 53];
/// How the server begins to tell where in a chain of views something went wrong.
const IN_A_VIEW: &str = "while pushing to view";

const NO_DEFINITION: &str = "; it is not made smaller because the table's definition cannot be read";
const VIEWS: &str =
    "; it is not made smaller because a materialized view reads the table, and may have taken part of it";
const NO_MERGE_TREE: &str =
    "; it is not made smaller because the table is no MergeTree, and may have passed part of it on";
const IN_DOUBT: &str = "; it is not made smaller because it is not certain that nothing of it was applied before";
const INHERITED: &str =
    "; it is not made smaller because an earlier worker may have sent it when the table was another";
const AT_LEAST_ONCE: &str = "; it is not made smaller because it is delivered at least once";

const OTHER_MAKE: &str = "; it is not encoded anew for the table as it is now because it is not certain that nothing of it was \
     applied before";
const REJECTED: &str =
    "; it is not encoded anew for the table as it is now because some of its records are in the error table";

/// Why another batch has to be put in the place of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// There are rows in it that the server does not take.
    Rows,
    /// Its rows belong to more partitions than one block may have.
    Partitions,
    /// Its block was made for the table as it was before it was altered, and the pipe has been changed since.
    Table,
}

/// What would become of a batch that was made for a table as it is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Newer {
    /// The pipe is as it was, or writes into another table now.
    None,
    /// There is a newer revision for the same table.
    Fits,
}

/// Who can have sent a batch before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Past {
    /// Nobody: it was recorded here.
    None,
    /// An earlier owner.
    Replayed,
    /// It was never recorded, so that nothing can be put in its place.
    Unrecorded,
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Send the same again; and why it was not made smaller, for people, if it might have been.
    Same(&'static str),
    /// Send the same again, and tell the server that it may have any number of partitions.
    AnyPartitions,
    /// Put smaller batches in its place.
    Replace(Cause),
}

/// The attempts of one block, and what they can have left behind.
#[derive(Debug)]
pub(super) struct Attempts<'a> {
    past: Past,
    /// Fingerprint of the table before the batch was recorded.
    recorded: &'a str,
    counts: Counts,
    /// One of them may have been applied.
    in_doubt: bool,
}

impl<'a> Attempts<'a> {
    /// None yet of a batch of so many records.
    pub(super) fn new(past: Past, recorded: &'a str, counts: Counts) -> Self {
        Self {
            past,
            recorded,
            counts,
            in_doubt: false,
        }
    }

    /// One has failed. `table` is what is known of the table just after it, if that was asked.
    /// `newer` tells whether the block could be made for the table as it is now.
    pub(super) fn refused(&mut self, error: &InsertError, table: Option<&Definition>, newer: Newer) -> Way {
        let cause = self.cause(error, table);
        self.in_doubt |= !leaves_nothing(error, cause, table);
        match (cause, self.may_replace(table)) {
            (None, may) if is_of_another_table(error) => match (newer, may) {
                (_, Err(_)) => Way::Same(OTHER_MAKE),
                // They are there under this batch's token, and would come again under another.
                (_, Ok(())) if self.counts.rejected_records > 0 => Way::Same(REJECTED),
                (Newer::None, Ok(())) => Way::Same(""),
                (Newer::Fits, Ok(())) => Way::Replace(Cause::Table),
            },
            (None, _) => Way::Same(""),
            // One record cannot be made smaller.
            (Some(Cause::Partitions), _) if self.counts.records < 2 => Way::AnyPartitions,
            (Some(cause), Ok(())) => Way::Replace(cause),
            (Some(Cause::Partitions), Err(_)) => Way::AnyPartitions,
            (Some(Cause::Rows | Cause::Table), Err(why)) => Way::Same(why),
        }
    }

    /// Whether the server refuses the rows as they are, whoever sends them.
    fn cause(&self, error: &InsertError, table: Option<&Definition>) -> Option<Cause> {
        match (error.class, error.code?) {
            (Class::Pause, TOO_MANY_PARTS) => Some(Cause::Partitions),
            (Class::Poison, _) | (_, FUNCTION_THROW_IF) => Some(Cause::Rows),
            // Of a table that is what it was, it is a value and not the shape of the block.
            (_, INCORRECT_DATA) if table.is_some_and(|table| table.fingerprint == self.recorded) => Some(Cause::Rows),
            _ => None,
        }
    }

    fn may_replace(&self, table: Option<&Definition>) -> Result<(), &'static str> {
        let table = table.ok_or(NO_DEFINITION)?;
        if table.has_views {
            return Err(VIEWS);
        }
        if !table.is_merge_tree {
            return Err(NO_MERGE_TREE);
        }
        if self.in_doubt {
            return Err(IN_DOUBT);
        }
        match self.past {
            Past::None => Ok(()),
            Past::Replayed if was_always_refused(self.recorded, table) => Ok(()),
            Past::Replayed => Err(INHERITED),
            Past::Unrecorded => Err(AT_LEAST_ONCE),
        }
    }
}

/// Whether a block is refused because the table is not the one that it was made for.
pub(super) fn is_of_another_table(error: &InsertError) -> bool {
    error.class == Class::Schema && error.code.is_some_and(|code| OTHER_TABLE.contains(&code))
}

/// Whether what is to be done about an error depends on the table.
pub(super) fn depends_on_table(error: &InsertError) -> bool {
    let code = error.code.unwrap_or_default();
    error.is_certain
        && (matches!(error.class, Class::Poison | Class::Schema)
            || code == FUNCTION_THROW_IF
            || (error.class == Class::Pause && code == TOO_MANY_PARTS))
}

/// Whether it is certain that a failed attempt has left nothing behind. `table` is what is known of the table just after
/// it.
fn leaves_nothing(error: &InsertError, cause: Option<Cause>, table: Option<&Definition>) -> bool {
    let Some(code) = error.code.filter(|_| error.is_certain) else {
        return false;
    };
    if error.message.contains(IN_A_VIEW) {
        return false;
    }
    if BEFORE_ALL.contains(&code) {
        return true;
    }
    let Some(table) = table.filter(|table| !table.has_views && table.is_merge_tree) else {
        return false;
    };
    match cause {
        Some(Cause::Partitions) => true,
        // One part is written or not.
        Some(Cause::Rows | Cause::Table) => !table.is_partitioned || BEFORE_PARTS.contains(&code),
        None => BEFORE_PARTS.contains(&code),
    }
}

/// Whether a batch that an earlier owner may have sent was refused to that owner as well. `recorded` is the fingerprint of
/// the table before the batch was recorded.
fn was_always_refused(recorded: &str, table: &Definition) -> bool {
    !recorded.is_empty() && table.is_steady && table.fingerprint == recorded
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Definition = Definition {
        fingerprint: String::new(),
        has_views: false,
        is_partitioned: false,
        is_merge_tree: true,
        is_steady: true,
    };

    const NINE: Counts = records(9);

    const fn records(records: u64) -> Counts {
        Counts {
            rows: records,
            rejected_records: 0,
            records,
            bytes: 0,
        }
    }

    /// A table with the fingerprint that was recorded.
    fn named(mut table: Definition) -> Definition {
        "f".clone_into(&mut table.fingerprint);
        table
    }

    fn error(class: Class, code: Option<u32>) -> InsertError {
        InsertError {
            class,
            code,
            status: code.map(|_| 500),
            message: String::new(),
            is_certain: code.is_some(),
        }
    }

    fn first(error: &InsertError, table: Option<&Definition>) -> Way {
        Attempts::new(Past::None, "f", NINE).refused(error, table, Newer::None)
    }

    #[test]
    fn only_a_clear_refusal_of_a_merge_tree_without_views_is_replaced() {
        let check = error(Class::Poison, Some(469));
        let thrown = error(Class::Pause, Some(395));
        let json = error(Class::Schema, Some(117));
        let partitions = error(Class::Pause, Some(252));
        let plain = named(PLAIN);
        let parted = named(Definition {
            is_partitioned: true,
            ..PLAIN
        });
        let viewed = named(Definition {
            has_views: true,
            ..PLAIN
        });
        let passing = named(Definition {
            is_merge_tree: false,
            ..PLAIN
        });
        let rows = Way::Replace(Cause::Rows);
        for (error, table, expected) in [
            (&check, Some(&plain), rows),
            (&check, Some(&parted), rows),
            (&check, Some(&viewed), Way::Same(VIEWS)),
            (&check, Some(&passing), Way::Same(NO_MERGE_TREE)),
            (&check, None, Way::Same(NO_DEFINITION)),
            (&thrown, Some(&plain), rows),
            (&thrown, Some(&parted), Way::Same(IN_DOUBT)),
            (&json, Some(&parted), rows),
            (&json, None, Way::Same("")),
            (&partitions, Some(&parted), Way::Replace(Cause::Partitions)),
            (&partitions, Some(&viewed), Way::AnyPartitions),
            (&error(Class::Load, Some(252)), Some(&parted), Way::Same("")),
            (&error(Class::Retry, None), Some(&plain), Way::Same("")),
        ] {
            assert_eq!(first(error, table), expected, "{error:?} {table:?}");
        }
        let altered = Definition {
            fingerprint: "g".to_owned(),
            ..PLAIN
        };
        assert_eq!(first(&json, Some(&altered)), Way::Same(""), "the shape may be wrong");
        assert_eq!(first(&check, Some(&altered)), rows, "all attempts are known");
    }

    #[test]
    fn what_may_have_been_applied_is_never_replaced() {
        let table = named(PLAIN);
        let check = error(Class::Poison, Some(469));
        let mut uncertain = error(Class::Poison, Some(469));
        uncertain.is_certain = false;
        let mut in_a_view = error(Class::Poison, Some(469));
        "Violated constraint: while pushing to view d.v".clone_into(&mut in_a_view.message);
        for doubtful in [
            error(Class::Retry, None),
            error(Class::Retry, Some(209)),
            error(Class::Load, Some(241)),
            error(Class::Pause, Some(60)),
            error(Class::Schema, Some(70)),
            error(Class::Bug, Some(36)),
            uncertain,
            in_a_view,
        ] {
            let mut attempts = Attempts::new(Past::None, "f", NINE);
            assert!(
                !matches!(attempts.refused(&doubtful, Some(&table), Newer::None), Way::Replace(_)),
                "{doubtful:?}"
            );
            assert_eq!(
                attempts.refused(&check, Some(&table), Newer::None),
                Way::Same(IN_DOUBT),
                "{doubtful:?}"
            );
            let partitions = error(Class::Pause, Some(252));
            assert_eq!(
                attempts.refused(&partitions, Some(&table), Newer::None),
                Way::AnyPartitions,
                "{doubtful:?}"
            );
        }
        for harmless in [error(Class::Pause, Some(516)), error(Class::Schema, Some(16))] {
            let mut attempts = Attempts::new(Past::None, "f", NINE);
            assert!(matches!(
                attempts.refused(&harmless, Some(&table), Newer::None),
                Way::Same(_)
            ));
            assert_eq!(
                attempts.refused(&check, Some(&table), Newer::None),
                Way::Replace(Cause::Rows),
                "{harmless:?}"
            );
        }
    }

    #[test]
    fn an_earlier_owner_was_refused_by_the_same_table_only() {
        let check = error(Class::Poison, Some(469));
        let replay = |recorded: &str, table: Definition| {
            Attempts::new(Past::Replayed, recorded, NINE).refused(&check, Some(&named(table)), Newer::None)
        };
        assert_eq!(replay("f", PLAIN), Way::Replace(Cause::Rows));
        assert_eq!(replay("", PLAIN), Way::Same(INHERITED), "not known");
        assert_eq!(replay("g", PLAIN), Way::Same(INHERITED), "altered");
        let is_steady = false;
        assert_eq!(replay("f", Definition { is_steady, ..PLAIN }), Way::Same(INHERITED));
        let mut unrecorded = Attempts::new(Past::Unrecorded, "f", NINE);
        assert_eq!(
            unrecorded.refused(&check, Some(&named(PLAIN)), Newer::None),
            Way::Same(AT_LEAST_ONCE)
        );
    }

    #[test]
    fn one_record_of_many_partitions_is_sent_whole() {
        let mut attempts = Attempts::new(Past::None, "f", records(1));
        let partitions = error(Class::Pause, Some(252));
        assert_eq!(
            attempts.refused(&partitions, Some(&named(PLAIN)), Newer::None),
            Way::AnyPartitions
        );
    }

    #[test]
    fn a_block_for_another_table_is_made_anew_for_a_newer_revision() {
        let altered = Definition {
            fingerprint: "g".to_owned(),
            ..PLAIN
        };
        for code in [16, 53] {
            let error = error(Class::Schema, Some(code));
            let mut attempts = Attempts::new(Past::None, "f", NINE);
            let mut refused = |newer| attempts.refused(&error, Some(&altered), newer);
            assert_eq!(refused(Newer::None), Way::Same(""));
            assert_eq!(
                refused(Newer::Fits),
                Way::Replace(Cause::Table),
                "whenever the pipe is changed"
            );
            let counts = Counts {
                rejected_records: 1,
                ..NINE
            };
            let mut attempts = Attempts::new(Past::None, "f", counts);
            assert_eq!(
                attempts.refused(&error, Some(&altered), Newer::Fits),
                Way::Same(REJECTED)
            );
        }
    }

    #[test]
    fn what_may_have_been_applied_is_not_made_anew() {
        let gone = error(Class::Schema, Some(16));
        let altered = Definition {
            fingerprint: "g".to_owned(),
            ..PLAIN
        };
        let reset = InsertError {
            is_certain: false,
            ..error(Class::Retry, None)
        };
        let mut doubtful = Attempts::new(Past::None, "f", NINE);
        assert_eq!(doubtful.refused(&reset, None, Newer::Fits), Way::Same(""));
        assert_eq!(
            doubtful.refused(&gone, Some(&altered), Newer::Fits),
            Way::Same(OTHER_MAKE)
        );
        for past in [Past::Replayed, Past::Unrecorded] {
            let mut attempts = Attempts::new(past, "f", NINE);
            assert_eq!(
                attempts.refused(&gone, Some(&altered), Newer::Fits),
                Way::Same(OTHER_MAKE),
                "{past:?}"
            );
        }
        let has_views = true;
        let viewed = Definition { has_views, ..altered };
        let mut attempts = Attempts::new(Past::None, "f", NINE);
        assert_eq!(
            attempts.refused(&gone, Some(&viewed), Newer::Fits),
            Way::Same(OTHER_MAKE)
        );
    }
}

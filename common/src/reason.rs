//! Stable reasons of pipe faults and API errors. They are part of the API: once published, a reason keeps its meaning.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* pub const $name: &str = stringify!($name);)*
        /// All of them.
        pub const ALL: &[&str] = &[$($name),*];
    };
}

reasons! {
    /// The stream does not exist under that name, region and account.
    SOURCE_STREAM_NOT_FOUND;
    /// The AWS identity may not do what a pipe needs.
    SOURCE_ACCESS_DENIED;
    /// AWS does not know the keys, or they have expired.
    SOURCE_CREDENTIAL_INVALID;
    /// The pipe's credential is the identity that Millrace itself runs under, and its operator does not allow that.
    SOURCE_AMBIENT_NOT_ALLOWED;
    /// Kinesis cannot be reached, or does not answer.
    SOURCE_UNREACHABLE;
    /// Of a check of access: whether an action is allowed was not tried, because there was no way to.
    SOURCE_NOT_TRIED;
    /// Kinesis has refused reads of a shard for being too many for a while.
    SOURCE_THROTTLED;
    /// Enhanced fan-out is asked for and cannot be used, so the stream is read by polling.
    SOURCE_FAN_OUT_UNAVAILABLE;
    /// The stream was deleted and created again under its name.
    SOURCE_STREAM_RECREATED;
    /// The position is older than what the stream still holds.
    SOURCE_POSITION_EXPIRED;
    /// ClickHouse cannot be reached, or does not answer.
    DESTINATION_UNREACHABLE;
    /// ClickHouse refuses the user or its password.
    DESTINATION_AUTHENTICATION_FAILED;
    /// The ClickHouse user may not do what a pipe needs.
    DESTINATION_ACCESS_DENIED;
    /// No such database.
    DESTINATION_DATABASE_NOT_FOUND;
    /// No such table.
    DESTINATION_TABLE_NOT_FOUND;
    /// A mapped column is not in the table, or cannot be inserted into.
    DESTINATION_COLUMN_NOT_FOUND;
    /// A column's type does not parse, or cannot be filled from JSON.
    DESTINATION_TYPE_UNSUPPORTED;
    /// The table no longer fits the pipe.
    DESTINATION_SCHEMA_CHANGED;
    /// ClickHouse asks for fewer or slower inserts.
    DESTINATION_OVERLOADED;
    /// ClickHouse refuses a block for a reason of its own.
    DESTINATION_INSERT_FAILED;
    /// More records were rejected than may be before a person looks.
    REJECTED_LIMIT_REACHED;
    /// A replayed batch is not what was prepared.
    BATCH_DIVERGED;
    /// An open batch was made by a release whose batches this worker cannot build again.
    BATCH_FORMAT_UNKNOWN;
    /// The control plane does not take what workers have to store, so nothing can be committed.
    CONTROL_PLANE_UNAVAILABLE;
    /// No worker is connected.
    NO_WORKERS;
    /// All workers that are connected are of a release that does not know what the pipe asks for.
    WORKERS_TOO_OLD;
    /// The control plane that was asked does not take worker sessions: another one does.
    NOT_LEADER;
    /// A defect of Millrace.
    INTERNAL;
}

/// Metadata of [`NOT_LEADER`]: the URL of the control plane that takes sessions, if it is known.
pub const LEADER_METADATA: &str = "leader";

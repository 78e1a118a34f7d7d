//! The control plane's database: the same tests on SQLite in memory, on an SQLite file and on a real PostgreSQL, through
//! the public interface of `Store` only.

#[path = "store/bed.rs"]
mod bed;
#[path = "store/concurrent.rs"]
mod concurrent;
#[path = "store/credentials.rs"]
mod credentials;
#[path = "store/kill.rs"]
mod kill;
#[path = "store/pipes.rs"]
mod pipes;
#[path = "store/protocol.rs"]
mod protocol;

/// Makes a test per database out of each function that takes a [`bed::Database`].
macro_rules! on_every_database {
    ($($module:ident :: $test:ident),* $(,)?) => {
        mod sqlite_memory {
            $(#[tokio::test]
            async fn $test() {
                super::$module::$test(super::bed::Database::memory().await).await;
            })*
        }

        mod sqlite_file {
            $(#[tokio::test]
            async fn $test() {
                super::$module::$test(super::bed::Database::file().await).await;
            })*
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$module::$test(super::bed::Database::postgres().await).await;
            })*
        }
    };
}

on_every_database!(
    pipes::a_pipe_is_stored_as_it_was_given,
    pipes::pipes_are_listed_in_name_order,
    pipes::a_name_is_taken_once,
    pipes::an_update_makes_a_revision_and_an_etag,
    pipes::observations_leave_the_etag,
    pipes::a_deleted_pipe_is_gone,
    credentials::secrets_come_back_as_they_went,
    credentials::a_credential_in_use_stays,
    credentials::an_old_revision_goes_with_its_credential,
    protocol::a_batch_is_counted_once,
    protocol::a_takeover_fences_the_old_owner,
    protocol::open_batches_come_back_as_they_were_prepared,
    protocol::refusals_change_nothing,
    protocol::a_reshard_waits_for_its_parents,
    protocol::a_listing_is_taken_in_once,
    protocol::at_least_once_moves_the_checkpoint_alone,
    protocol::committed_batches_are_remembered_for_a_while,
    protocol::a_wide_batch_goes_through,
    concurrent::one_of_many_grants_wins,
    concurrent::many_workers_keep_the_slices_apart,
    concurrent::creating_and_deleting_meet_working_lanes,
);

//! The control plane's database: the same tests on SQLite in memory, on an SQLite file and on a real PostgreSQL, through
//! the public interface of `Store` only.

#[path = "store/bed.rs"]
mod bed;
#[path = "store/cancel.rs"]
mod cancel;
#[path = "store/concurrent.rs"]
mod concurrent;
#[path = "store/consumers.rs"]
mod consumers;
#[path = "store/credentials.rs"]
mod credentials;
#[path = "store/events.rs"]
mod events;
#[path = "store/keys.rs"]
mod keys;
#[path = "store/kill.rs"]
mod kill;
#[path = "store/leader.rs"]
mod leader;
#[path = "store/late.rs"]
mod late;
#[path = "store/pipes.rs"]
mod pipes;
#[path = "store/positions.rs"]
mod positions;
#[path = "store/protocol.rs"]
mod protocol;
#[path = "store/replace.rs"]
mod replace;
#[path = "store/requests.rs"]
mod requests;

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
    pipes::old_revisions_go_but_for_those_of_open_batches,
    consumers::a_consumer_is_noted_until_it_is_known_to_be_gone,
    consumers::only_what_a_pipe_wants_is_noted,
    credentials::secrets_come_back_as_they_went,
    credentials::a_credential_in_use_stays,
    credentials::an_old_revision_goes_with_its_credential,
    protocol::a_batch_is_counted_once,
    protocol::a_takeover_fences_the_old_owner,
    protocol::open_batches_come_back_as_they_were_prepared,
    protocol::refusals_change_nothing,
    protocol::a_reshard_waits_for_its_parents,
    protocol::a_listing_is_taken_in_once,
    protocol::a_thousand_shards_end_at_once,
    protocol::at_least_once_moves_the_checkpoint_alone,
    protocol::committed_batches_are_remembered_for_a_while,
    protocol::a_wide_batch_goes_through,
    replace::parts_stand_where_the_batch_stood,
    requests::a_request_is_noted_with_what_it_does,
    concurrent::one_of_many_grants_wins,
    concurrent::many_workers_keep_the_slices_apart,
    concurrent::creating_and_deleting_meet_working_lanes,
    events::events_tell_what_was_done,
    positions::a_reset_moves_fences_and_tells,
    positions::another_stream_is_taken_with_its_own_shards,
    positions::a_gap_is_passed_once_by_its_holder_only,
    positions::what_is_complete_only_grows_and_is_inherited,
    events::an_observation_is_told_once_and_old_events_go,
    leader::one_leads_the_others_follow,
    leader::a_leader_that_was_followed_changes_nothing,
    leader::terms_never_fall_back,
    leader::changes_are_counted_and_what_is_observed_is_replaced,
    late::a_commit_after_half_of_the_seconds_is_flagged,
    late::a_commit_after_half_of_the_blocks_is_flagged,
    late::without_a_known_window_nothing_is_late,
);

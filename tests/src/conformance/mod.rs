//! The conformance suite of the exactly-once protocol: what every store must do, run against each.
//!
//! A new store implements [`Subject`](subject::Subject) for a fixture, and calls the macro
//! [`conformance`](crate::conformance!) with it; see `tests/tests/stores.rs`.

pub mod subject;
pub mod feed;
pub mod suite;

/// Declares the tests of the suite in a module. The expression makes a fixture with a new database; `None` skips the test.
#[macro_export]
macro_rules! conformance {
    ($module:ident, $fixture:expr) => {
        $crate::conformance! { $module, $fixture,
            rows_cursor_and_counters_move_together
            flushing_a_batch_twice_stores_it_once
            an_older_epoch_is_fenced
            a_writer_continues_through_its_own_runs_and_rejects_a_copy
            own_frames_of_a_stale_copy_are_stored_once
            a_journal_older_than_the_database_gets_its_lanes_reset
            a_newer_journal_that_reappears_forks_only_what_was_not_stored
            a_fork_inside_of_a_frame_stores_only_the_rest_of_it
            after_a_restore_to_before_the_takeover_the_lease_is_reacquired
            a_lane_that_is_reset_under_an_open_connection_is_reopened
            a_moved_cursor_is_reported_and_a_reused_sequence_number_stops_the_lane
            inconsistent_counts_are_rejected_with_their_numbers
            records_that_the_journal_lost_are_counted
            the_histogram_equals_a_group_by_over_the_rows
            a_row_that_violates_a_users_constraint_is_dead_lettered_and_can_be_replayed
            old_dead_letters_are_purged
            a_repeated_request_is_stored_once_whichever_writer_gets_it
            a_key_with_two_bodies_is_two_requests
            the_rest_of_a_request_is_stored_by_the_next_frame_that_has_it
            a_lane_that_is_reset_stores_the_rest_of_a_request
            a_fork_inside_of_a_request_stores_the_rest_of_it
            keys_expire_and_are_deleted
            a_batch_divided_in_any_way_with_unknown_outcomes_is_stored_once
            a_frame_that_is_committed_in_part_goes_on_only_with_the_same_frame
            a_journal_without_the_rest_of_a_frame_that_is_committed_in_part_gets_its_lane_reset
            fifty_opens_use_one_lane_id
            a_constraint_that_refuses_many_rows_does_not_stop_the_lane
            a_row_that_is_refused_after_it_was_inserted_is_a_dead_letter_and_not_stored
            a_table_that_refuses_every_row_stops_the_lane_until_it_is_fixed
            records_that_a_trigger_drops_are_dead_letters
            a_dead_letter_is_the_record_that_was_refused
            a_record_refused_alone_is_dead_lettered_only_if_the_table_takes_another
        }
    };
    ($module:ident, $fixture:expr, $($name:ident)*) => {
        mod $module {
            use super::*;

            $(
                #[tokio::test]
                async fn $name() {
                    if let Some(fixture) = $fixture {
                        $crate::conformance::suite::$name(fixture).await;
                    }
                }
            )*
        }
    };
}

//! Which test holds which promise: every fault that befalls `wal push` and `wal fetch`, what must come of it, and the
//! tests that break when it does not.
//!
//! *OK*: success after retries. *E*: a clear error that PostgreSQL tries again. *F*: an exit above 125 in recovery, 1 on
//! a standby, never *absent*. *Q*: both kept, an alarm, E.

use std::fs;
use std::path::Path;

/// A cell of the matrix: what must come of the fault, and the tests of it, as `file::test`.
struct Cell {
    outcome: &'static str,
    tests: &'static [&'static str],
}

/// One fault, and the two columns. `None`: it cannot befall that command.
struct Row {
    fault: &'static str,
    push: Option<Cell>,
    fetch: Option<Cell>,
}

const fn row(fault: &'static str, push: Option<Cell>, fetch: Option<Cell>) -> Row {
    Row { fault, push, fetch }
}

const fn cell(outcome: &'static str, tests: &'static [&'static str]) -> Option<Cell> {
    Some(Cell { outcome, tests })
}

/// Every operation of the store, in every way, for each of the two.
const PUSH_POINTS: &str =
    "src/archive/push/tests.rs::whatever_fails_what_was_acknowledged_is_there_and_what_is_there_is_whole";
const FETCH_POINTS: &str = "src/archive/fetch/tests.rs::no_failure_of_the_store_is_ever_an_absence";
const PUSH_EXITS: &str = "tests/it/exit_status.rs::a_push_that_fails_is_neither_success_nor_the_archivers_death";
const FETCH_EXITS: &str = "tests/it/exit_status.rs::a_fetch_that_fails_never_looks_like_the_end_of_the_log";
const PUSH_CALLS: &str = "tests/it/crash_points.rs::a_push_that_is_struck_stores_the_segment_or_says_that_it_did_not";
const AGENT_CALLS: &str =
    "tests/it/crash_points.rs::a_push_through_an_agent_that_is_struck_stores_the_segment_or_says_that_it_did_not";
const FETCH_CALLS: &str = "tests/it/crash_points.rs::a_fetch_that_is_struck_never_says_that_the_log_ends";
const REPLIES: &str = "tests/it/bucket_journeys.rs::a_push_is_right_whatever_its_replies_come_to";
const RANDOM: &str = "tests/it/failing_store.rs::a_busy_server_loses_no_row_while_its_store_fails_at_random";
const STOPS: &str = "tests/it/faults.rs::no_fault_passes_for_the_end_without_target_and_plan";
const ABSENCE: &str = "tests/it/buckets.rs::absence_is_what_the_store_itself_says_of_the_key_and_nothing_else";

const CLOCK: &str = "tests/it/bucket_journeys.rs::a_clock_that_is_an_hour_off_is_named_and_never_an_absence";

const MATRIX: [Row; 20] = [
    row(
        "1 time-out before the body",
        cell(
            "OK or E",
            &[PUSH_POINTS, PUSH_EXITS, "tests/it/buckets.rs::a_server_that_hangs_costs_the_budget_and_no_more"],
        ),
        cell("OK or F", &[FETCH_POINTS, FETCH_EXITS]),
    ),
    row(
        "2 reply lost after commit",
        cell("OK", &[PUSH_POINTS, REPLIES, "tests/it/buckets.rs::a_lost_reply_becomes_existing_with_our_own_bytes"]),
        cell("OK or F", &[FETCH_POINTS]),
    ),
    row(
        "3 burst of 500, 503, 429",
        cell(
            "OK within the budget, else E",
            &[REPLIES, RANDOM, "tests/it/buckets.rs::what_may_pass_is_tried_again_and_nothing_else"],
        ),
        cell("OK or F", &[FETCH_POINTS, ABSENCE]),
    ),
    row("4 status 200 with an error inside", cell("E", &[REPLIES, RANDOM]), None),
    row(
        "5 body cut",
        cell(
            "E, nothing visible",
            &[PUSH_POINTS, "tests/it/push_kill.rs::a_push_that_dies_at_any_moment_leaves_nothing_half"],
        ),
        cell(
            "F",
            &[
                FETCH_POINTS,
                STOPS,
                "tests/it/buckets.rs::a_body_that_breaks_off_is_read_again_and_never_handed_out_short",
            ],
        ),
    ),
    row(
        "6 bit flipped at rest",
        None,
        cell("F", &[STOPS, "tests/it/damage.rs::a_damaged_repository_restores_and_serves_the_same_or_nothing"]),
    ),
    row(
        "7 object missing in the middle",
        None,
        cell("F, a hole", &[STOPS, "src/archive/fetch/tests.rs::what_must_exist_is_a_hole_for_a_recovery"]),
    ),
    row(
        "8 true end of the archive",
        None,
        cell("1", &["tests/it/fetch.rs::the_end_of_the_archive_is_proven_and_a_hole_is_not_the_end"]),
    ),
    row(
        "9 error of the store for a history",
        cell("E", &["tests/it/failover.rs::a_store_that_is_gone_at_the_promotion_is_tried_again_with_the_next_file"]),
        cell(
            "F, never 1",
            &[FETCH_POINTS, "src/archive/own_history.rs::only_a_sound_history_is_taken_from_the_servers_own_directory"],
        ),
    ),
    row(
        "10 403, credentials that ended",
        cell("E, no storm of retries", &[PUSH_EXITS, REPLIES, "src/store/tests.rs::what_cannot_pass_is_asked_once"]),
        cell("F", &[FETCH_POINTS, ABSENCE]),
    ),
    row("11 clock an hour off", cell("E, which names the clock", &[CLOCK]), cell("F, which names the clock", &[CLOCK])),
    row(
        "12 page of a listing lost",
        None,
        // A page that fails is an error. A store whose listings lie, whole and with success, is believed.
        cell("F", &[FETCH_POINTS, "tests/it/buckets.rs::listings_are_complete_however_short_their_pages"]),
    ),
    row(
        "13 conditions ignored",
        cell(
            "found at init; nothing overwritten",
            &[
                "tests/it/buckets.rs::a_server_that_ignores_conditions_is_found_out",
                "tests/it/bucket_journeys.rs::other_bytes_under_a_name_are_refused_and_kept_in_every_mode",
            ],
        ),
        None,
    ),
    row("14 local disk full", cell("E", &[PUSH_EXITS, PUSH_CALLS]), cell("F", &[FETCH_EXITS, FETCH_CALLS])),
    row(
        "15 kill -9 at every operation",
        cell(
            "done again, OK",
            &[
                PUSH_POINTS,
                PUSH_CALLS,
                AGENT_CALLS,
                "tests/it/push_kill.rs::a_push_that_dies_at_any_moment_leaves_nothing_half",
            ],
        ),
        cell("done again", &[FETCH_CALLS, "tests/it/agent.rs::an_agent_that_is_killed_again_and_again_costs_no_row"]),
    ),
    row(
        "16 power cut",
        cell(
            "as 15",
            &[
                "tests/it/push_kill.rs::a_server_that_loses_power_while_it_archives_loses_nothing_of_the_archive",
                "src/store/volume/tests.rs::an_object_is_synced_before_it_has_its_name_and_its_directories_up_to_the_root_with_it",
            ],
        ),
        None,
    ),
    row(
        "17, 18 second writer, same bytes and others",
        cell(
            "OK; Q",
            &[
                "tests/it/push.rs::the_same_bytes_again_are_a_success_and_change_nothing",
                "tests/it/push.rs::other_bytes_under_a_taken_name_are_kept_apart_and_the_first_stay",
                "src/archive/push/tests.rs::a_history_of_another_promotion_under_the_same_number_is_found_out_and_both_are_kept",
            ],
        ),
        cell(
            "the first writer's",
            &["src/archive/push/tests.rs::other_bytes_under_a_taken_name_are_kept_apart_and_the_first_stay"],
        ),
    ),
    row(
        "19 another system or segment size",
        cell(
            "E",
            &[PUSH_EXITS, "src/archive/push/tests.rs::a_file_of_another_server_or_another_place_in_the_log_is_refused"],
        ),
        cell("F", &[STOPS, FETCH_EXITS]),
    ),
    row(
        "20 promotion meanwhile",
        cell("OK, and back-fill", &["tests/it/failover.rs::what_only_the_standby_held_is_pushed_by_the_new_primary"]),
        cell(
            "follows the branch",
            &[
                "tests/it/fork.rs::the_branch_that_was_left_is_not_replayed",
                "src/agent/tests.rs::a_branch_that_comes_to_light_stops_what_was_fetched_ahead",
            ],
        ),
    ),
    row(
        "24, 25 malicious or unknown bytes",
        cell("E or stored and marked", &["tests/it/any_bytes.rs::any_bytes_are_read_without_harm", PUSH_EXITS]),
        cell(
            "F",
            &[
                "tests/it/any_bytes.rs::real_bytes_that_were_changed_are_read_without_harm",
                "tests/it/damage.rs::the_program_itself_refuses_a_damaged_repository",
            ],
        ),
    ),
];

#[test]
fn every_cell_of_the_fault_matrix_has_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cells = 0;
    for Row { fault, push, fetch } in &MATRIX {
        assert!(push.is_some() || fetch.is_some(), "{fault}");
        for Cell { outcome, tests } in [push, fetch].into_iter().flatten() {
            cells += 1;
            assert!(!outcome.is_empty() && !tests.is_empty(), "{fault}");
            for test in *tests {
                let (file, name) = test.split_once("::").expect("file::test");
                let source = fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
                let at = source.find(&format!("fn {name}(")).unwrap_or_else(|| panic!("{fault}: no {test}"));
                let before = source[..at].trim_end().rsplit('\n').next().unwrap_or_default();
                assert!(before.trim_start().starts_with("#["), "{test} is no test");
            }
        }
    }
    assert_eq!(cells, 33, "a cell was added or left out: say so here");
}

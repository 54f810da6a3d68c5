"""For each severe event there is a test in which a real failure causes it, through the code that reports it.

The table names the test. It is checked here that the test exists and asks for the event by its name, in its own lines
or in the parts of its file that it uses. That the event comes is asserted by the test itself. A row of RUNS is of a
whole run, and one of DRILLS names the drill whose whole run has the event. A row of PARTS is of the component that
reports the event; no test has a whole run with such a failure.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from esper.telemetry import events

TESTS = Path(__file__).resolve().parents[1]
GATES, HALTS, MATRIX = "actors/test_gates_on_actors.py", "flow/test_halt_anywhere.py", "actors/test_recovery_matrix.py"
REFUSED, RECOVERY = "flow/test_refused_commands.py", "actors/test_recovery.py"
NOT_PASSED = f"{GATES}::test_what_no_gate_may_pass_is_culled_and_a_mesh_that_is_absent_ends_the_run"
DEAD_TRAINER = f"{RECOVERY}::test_a_dead_trainer_is_replaced_and_the_recovery_is_timed"
INBOX, QUEUE, FOLDER = (f"emergency/test_{name}.py" for name in ("inbox_folder", "queue", "queue_folder"))
SERVICE, REPORTS, TRAINER = "tamiyo/test_service.py", "tamiyo/test_field_reports.py", "tolaria/test_trainer.py"
BROKEN = "flow/test_events_of_runs.py"
BROKEN_SINK = f"{BROKEN}::test_a_sink_that_fails_and_an_inbox_that_is_removed_are_told_by_the_run"

RUNS = {
    "gate_failure": NOT_PASSED,
    "mesh_coverage_missing": NOT_PASSED,
    "tamiyo_fallback_requested": NOT_PASSED,
    "rollback_fast": NOT_PASSED,
    "command_rejected": f"{REFUSED}::test_a_refused_command_ends_the_run_and_changes_nothing",
    "command_validation_failed": NOT_PASSED,
    "policy_timeout": "actors/test_launch.py::test_a_policy_beyond_its_deadline_is_killed",
    "dependency_violation": "integration/test_tamiyo_kasmina_annotations.py"
    "::test_a_run_ends_with_the_refusal_of_a_blend_and_its_registry_is_as_it_was",
    "emergency_signals_undelivered": "actors/test_halt.py"
    "::test_a_halt_of_the_last_moment_stays_in_the_queue_for_a_resume",
    "emergency_level_changed": f"{HALTS}"
    "::test_a_run_that_was_careful_and_stopped_ends_with_the_bits_of_one_that_was_careful_only",
    "emergency_halt": f"{HALTS}::test_a_halt_within_a_step_stops_the_run_before_the_next_step",
    "emergency_halt_cleared": f"{HALTS}"
    "::test_a_halt_comes_before_a_requested_stop_and_is_not_lost_behind_another_failure",
    "emergency_requests_unread": "cli/test_emergency_commands.py"
    "::test_a_request_that_was_not_read_is_told_at_the_end_and_stays_for_the_resume",
    "guard_tripped": f"{BROKEN}::test_a_loss_that_is_not_a_number_ends_the_run_with_the_event_on_its_step",
    "emergency_signal_retried": BROKEN_SINK,
    "emergency_signal_dead_lettered": BROKEN_SINK,
    "emergency_inbox_unreadable": BROKEN_SINK,
    "journal_damaged": "flow/test_going_on.py::test_damage_of_a_journal_is_told_to_people_and_as_a_severe_event",
    "actor_died_starting": f"{MATRIX}::test_an_actor_that_dies_as_the_run_starts_is_restarted",
    "actor_restarted": DEAD_TRAINER,
    "trainer_rank_lost": DEAD_TRAINER,
    "fault_fired": DEAD_TRAINER,
    "other_cpu": "flow/test_resuming.py::test_a_run_that_goes_on_on_another_processor_says_so",
    "other_hash_seed": "ground/test_hash_seed.py"
    "::test_a_random_order_that_matters_is_refused_and_one_that_does_not_is_said",
}
PARTS = {
    "isolation_violated": f"{TRAINER}::test_a_leak_in_the_live_host_is_told_once_and_seen_until_it_is_judged",
    "adoption_mismatch": "tolaria/test_adopting.py::test_an_adoption_of_other_weights_or_of_another_plan_is_refused",
    "loss_device_mismatch": "tolaria/test_loss.py"
    "::test_outputs_and_targets_on_two_devices_are_told_once_and_nothing_is_moved",
    "field_report_invalid": f"{REPORTS}::test_a_report_that_lacks_what_it_must_carry_is_refused_and_told",
    "emergency_signal_rejected": f"{QUEUE}::test_a_refusal_is_counted_once_and_told_once_with_the_id",
    "emergency_signal_dropped": f"{QUEUE}::test_each_retry_dead_letter_and_drop_is_counted_and_told_with_the_id",
    "emergency_signal_unconfirmed": "actors/test_publisher.py::test_after_the_deadline_the_first_error_is_the_cause",
    "emergency_queue_damaged": f"{FOLDER}::test_a_damaged_record_costs_one_signal_and_is_told",
    "emergency_queue_disk_full": f"{FOLDER}::test_a_full_disk_is_a_severe_event_and_stops_no_attempt",
    "emergency_answer_lost": f"{INBOX}::test_no_harm_to_the_answers_stops_the_service",
    "emergency_inbox_crowded": f"{INBOX}::test_a_halt_is_found_in_a_crowd_of_strangers",
    "emergency_inbox_stuck": f"{INBOX}::test_a_file_that_cannot_be_removed_is_read_once_and_told",
    "emergency_reserve_hollow": f"{FOLDER}"
    "::test_a_reserve_that_a_copy_has_emptied_of_its_blocks_is_allocated_again_and_it_is_told",
}
DRILLS = {
    "fallback_status_rejected": "fallback_rejected",
    "policy_no_candidates": "no_candidates",
    "policy_failed": "policy_fails",
    "field_reports_damaged": "reports_damaged",
    "rollback_full": "rollbacks_compared",
    "checkpoint_rejected": "checkpoint_damaged",
}


def texts_of(path: Path, test: str) -> set[str]:
    """The words of the texts in a test, and in the functions and names of its file that it uses."""
    parts: dict[str, ast.AST] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            parts[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            parts |= {name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    assert test in parts, f"{path.name} has no {test}"
    todo, seen, found = [test], set(), set()
    while todo:
        name = todo.pop()
        seen.add(name)
        for node in ast.walk(parts[name]):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"\w+", node.value))
            used = (
                node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg | ast.keyword) else None
            )
            if used is not None:
                found.add(used)
                todo += [used] if used in parts and used not in seen else []
    return found


def test_every_severe_event_has_one_row() -> None:
    assert sorted([*RUNS, *DRILLS, *PARTS]) == sorted(events.NAMES)


@pytest.mark.parametrize("event", sorted({**PARTS, **RUNS}))
def test_the_test_of_an_event_asks_for_it_by_name(event: str) -> None:
    file, _, test = {**PARTS, **RUNS}[event].partition("::")
    assert event in texts_of(TESTS / file, test)


@pytest.mark.parametrize("event", sorted(DRILLS))
def test_the_drill_of_an_event_asks_for_it_by_name(event: str) -> None:
    drill = TESTS.parent / "drills" / "catalogue" / f"{DRILLS[event]}.py"
    expected = [
        node
        for node in ast.walk(ast.parse(drill.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant | ast.keyword)
    ]
    assert event in {node.arg if isinstance(node, ast.keyword) else node.value for node in expected}


def test_a_test_that_does_not_ask_for_an_event_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.write_text('SAID = ["fault_fired"]\ndef ask(): assert SAID\ndef test_a(): ask()\ndef test_b(): "fault"\n')
    assert "fault_fired" in texts_of(file, "test_a")
    assert "fault_fired" not in texts_of(file, "test_b")
    with pytest.raises(AssertionError, match="has no test_c"):
        texts_of(file, "test_c")

"""No failure hides in our source, and no test is skipped in silence, but for what is listed here with its reason."""

from __future__ import annotations

import textwrap
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from strictness import scan

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("esper", "actors", "drills", "tests", "tools")

ALLOWED: dict[str, str] = {
    "esper/setup/rehearsal.py rehearse: answers DivergenceUnrecoverable": "the run has a guard for it; None is the answer",
    "esper/setup/candidates.py _first_enough: answers ConfigError": "a setting that is refused is no advice",
    "esper/kasmina/host/padding_masks.py positional_names: answers ValueError": "no signature; masks by name are still read",
    "esper/kasmina/incubation/incubator.py _gradients: answers IsolationViolation": "G1 refuses a probe with its leaves",
    "esper/tolaria/unkept.py _at: .get with a default": "the survey saw nothing of it change",
    "esper/user_code/attributes.py _slots_of: .get with a default": "a class without them has none to read",
    "esper/config/joined.py load_config: .get with a default": "a file may be empty; other keys are refused",
    "tests/actors/test_clean_ends.py test_ctrl_c_in_a_round_ends_with_130_and_one_line_and_an_impatient_one_does_not_disturb_the_end: time.sleep in a test": "between keys",
    "tests/actors/test_clean_ends.py Started.processes: swallows (FileNotFoundError, ProcessLookupError)": "gone",
    "actors/joined_ray.py JoinedRay.__init__: .get with a default": "Ray leaves out resources of which there are none",
    "actors/joined_ray.py JoinedRay.__init__: says type: ignore": "Ray leaves it untyped",
    "actors/embedded_ray.py put_back: .pop with a default": "a variable that a test took away is gone already",
    "esper/leyline/base.py PublicMessage: says type: ignore": "a mark of pydantic on a function",
    "actors/embedded_ray.py EmbeddedRay.close: ignore_errors=True": "a late log line; tests look",
    "esper/emergency/emergency_service.py _when_free: answers RunDirectoryError": "the owner is ending; raised after ENDING_S",
    "actors/ray_private.py read_environment_again: says type: ignore x2": "Ray's compiled part has no stubs",
    "actors/ray_private.py folder_of_logs: says type: ignore": "Ray's own node is there while it runs",
    "actors/ray_private.py guarded_start: says type: ignore x6": "Ray's compiled part has no stubs",
    "actors/ray_private.py _asked_until.asked: answers RuntimeError": "asked again, within the deadline of the start",
    "actors/temporary_folders.py _is_left: answers OSError": "not ours, or going this very moment",
    "actors/temporary_folders.py sweep: ignore_errors=True": "what stays is not returned",
    "actors/starting.py _fill: answers BaseException": "raised in the thread that waits",
    "tests/actors/test_clean_ends.py "
    "test_a_ray_that_dies_while_it_starts_ends_the_run_with_3_and_its_last_words.killed: time.sleep in a test": "a moment that is drawn; what is asserted holds at every moment",
    "tests/actors/test_clean_ends.py "
    "test_a_second_signal_ends_a_start_of_ray_that_does_not_end: time.sleep in a test": "signals closer together are one",
    "tests/actors/test_clean_ends.py "
    "test_without_a_loopback_device_a_run_ends_at_the_deadline_of_its_start: pytest.skip": "no rights",
    "tests/durable/kit/full_disk.py mount_when_claimed: says type: ignore": "a process of its own",
    "tests/durable/test_full_disk.py told_and_printed: pytest.skip": "no rights",
    "actors/leftovers.py end_users_of: suppress": "gone by itself is what was wanted",
    "esper/cli/run_command.py in_child: answers OSError": "said as a failure of the run, which ends with its exit code",
    "actors/witness.py Witness.leave: suppress": "standard error is closed; the exit code tells what it can",
    "actors/actor_process.py _room: .get with a default x2": "Ray leaves out what it has none of",
    "actors/leftovers.py _opened: answers FileNotFoundError": "nothing is open there",
    "actors/leftovers.py _uses: answers (FileNotFoundError, ProcessLookupError, PermissionError)": "not ours",
    "actors/actor_process.py _not_up: .get with a default": "Ray leaves out what it has none of",
    "actors/actor_process.py _not_up: says type: ignore": "Ray leaves them untyped",
    "actors/process_output.py _tail: answers FileNotFoundError": "nothing is left to read; the death itself is told",
    "actors/process_output.py _tail: errors='replace'": "for people",
    "actors/process_output.py _target: answers (FileNotFoundError, ProcessLookupError, PermissionError)": "it has ended",
    "actors/shell.py relinked: .pop with a default": "most errors have no cause",
    "tests/emergency/test_legacy_queue.py ClearsAtTheCap.publish: answers EmergencyQueueFull": "the fault of this double",
    "tests/tamiyo/test_legacy_pause.py PausingPolicy.decide: answers Exception": "the fault of this double",
    "tests/tamiyo/test_legacy_pause.py PausingTamiyo.decide: answers EsperError": "the fault of this double",
    "tests/flow/test_resuming.py : test_a_changed_task_file_is_refused asserts nothing": "in refused()",
    "tests/flow/test_resuming.py : test_a_run_in_use_is_refused_with_its_holder asserts nothing": "in refused()",
    "tests/flow/test_resuming.py : test_a_run_of_other_versions_is_refused_by_their_names asserts nothing": "in refused()",
    "esper/flow/proof.py compare: .get with a default x2": "a round that is missing differs from one that is there",
    "esper/archive/backup.py _copied: answers FileNotFoundError": "False; the caller reads again, or raises",
    "tests/flow/test_proof.py test_the_first_step_that_went_astray_is_named_with_both_losses: says type: ignore": "JSON",
    "actors/run_actors.py RunActors._gpu_share: .get with a default": "Ray leaves out what it has none of",
    "actors/run_actors.py RunActors._gpu_share: says type: ignore": "Ray leaves it untyped",
    "tools/golden.py main: answers Drained": "asked for",
    "tools/golden.py main: ignore_errors=True": "there may be none",
    "tests/actors/test_recovery.py Hogs.fence: says type: ignore": "Ray leaves it untyped",
    "esper/tamiyo/field_reports.py FieldReportStore.__init__: answers StoreCorrupt": "said as a severe event; the segment stays",
    "esper/tamiyo/field_reports.py load_reports: answers StoreCorrupt": "returned as unread",
    "esper/archive/backup.py _copy_inbox: suppress": "the run has taken the request; the queue is copied later",
    "esper/archive/backup.py _copy_words: suppress": "a segment that the run removed holds no waiting signal",
    "esper/archive/history.py level_history: .get with a default": "older journals have no fence for a signal: fence 0",
    "esper/archive/damage.py read_identity: answers StoreCorrupt": "returned as damage",
    "esper/export/exporting.py _check_place: answers OSError": "a full disk: the write of the export tells of it",
    "esper/export/programs.py _refused: ignores warnings": "what torch says while it tries; the outputs of the program are compared",
    "esper/export/loading.py _read: answers CheckpointCorrupt": "raised, unless the run has gone on and dropped it",
    "tests/export/test_loading.py test_a_copy_and_a_pickle_are_the_network_and_stand_alone: pickle.loads": "own",
    "esper/archive/history.py _readable: answers StoreCorrupt": "returned as damage",
    "esper/archive/generations.py as_recorded: .get with a default": "nobody has taken over from it",
    "esper/archive/inspection.py _state: .get with a default": "by any other error it has failed",
    "esper/archive/inspection.py _state: errors='replace'": "a holder that is none of ours is nobody",
    "esper/archive/generations.py valid_lengths: .get with a default": "the first length there is",
    "esper/archive/history.py _journaled_identity: answers ValidationError": "its run.json is named as damage",
    "esper/archive/journal_schema.py misfit: .get with a default": "of the other kinds nothing is asked",
    "esper/archive/journal_schema.py misfit: answers ValidationError": "returned as the reason",
    "tests/flow/test_resuming.py : test_a_journal_with_a_record_of_another_version_is_refused_by_what_it_lacks asserts nothing": "in refused()",
    "esper/ground/closing.py noted_on: answers Exception": "noted on the first failure, which its caller raises",
    "esper/flow/proof.py prove: suppress": "asked for, at the last fence that the run passed",
    "tests/flow/test_resuming.py : test_a_run_is_not_made_shorter asserts nothing": "in refused()",
    "actors/shell.py _unsendable: answers Exception": "named in what is sent instead",
    "esper/flow/going_back.py GoingBack.outlive: answers EsperError": "recovered from, or raised",
    "esper/flow/checkpoints.py Checkpoints.give_up: suppress": "its trainer's death is what is being recovered from",
    "actors/actor_start.py ActorStart._await: answers ActorLost": "returned as a death",
    "actors/ray_crew.py RayCrew._dead: answers ActorLost": "told to the supervisor",
    "actors/ray_crew.py RayCrew.mend: answers ActorLost": "replaced, or raised if it is no manager",
    "actors/remote_incubator.py RemoteIncubator._repeated: answers ActorLost": "replaced and done again, or raised",
    "actors/remote_incubator.py RemoteIncubator._clear: suppress": "the next call to that manager raises it again",
    "tests/actors/test_remote_incubator.py attempt: answers ActorLost": "what it was of is looked at",
    "tests/actors/test_remote_incubator.py test_a_closed_incubator_gives_up_what_waits_and_joins_once_its_managers_are_gone: says type: ignore": "a fake",
    "actors/remote_incubator.py RemoteIncubator._ask_the_living: suppress": "`RayCrew.mend` finds it",
    "tests/actors/test_recovery.py Looks.fence: suppress": "there is no actor of this name",
    "tests/kasmina/test_seed_manager.py Sequence.command: suppress": "a refusal, which must change nothing, is checked below",
    "esper/trace/event_log.py _event: answers (ValueError, KeyError, TypeError, RecursionError, OverflowError)": "counted and shown",
    "esper/trace/otlp_json.py _only_resource: answers (ValueError, RecursionError)": "the whole line is decoded then",
    "esper/trace/span_files.py lines: answers OSError": "counted and shown",
    "esper/trace/span_files.py open_regular: answers OSError": "counted and shown",
    "esper/trace/span_store.py every_span: answers SpanUnreadable": "counted and shown",
    "esper/cli/log_commands.py _is_json: answers (ValueError, RecursionError)": "no JSON; shown as hex",
    "esper/archive/damage.py read_identity: answers RunDirectoryError": "returned as damage",
    "esper/setup/mixing.py find_mixing: answers Exception": "None: the user's code does not take a batch of other content",
    "esper/tolaria/companions.py depends_on_batch: answers Exception": "None: it takes no smaller batch",
    "esper/archive/damage.py damage_of_summary: answers OSError": "returned as damage",
    "esper/archive/damage.py damage_of_summary: answers (ValueError, RecursionError, StoreCorrupt)": "returned as damage",
    "esper/user_code/process_state.py _older.read: answers RuntimeError": "the setting that contradicts it is told in its place",
    "esper/setup/survey.py _tried: answers TaskError": "left out and said, or raised",
    "esper/kasmina/host/slot_patterns.py Matched.trying: answers TaskError": "left out and said, or raised if it was named",
    "esper/archive/identity.py _refuse_other_version: .get with a default x2": "a run.json without versions says no other one",
    "esper/archive/identity.py identity_of: suppress": "no JSON, or no config; the validation that follows tells it",
    "esper/archive/identity.py _refuse_other_version: suppress": "no JSON; the caller refuses it as damaged",
    "esper/cli/log_commands.py _read: answers StoreCorrupt": "named as damage, so that the other logs are shown",
    "esper/tolaria/checkpoint_file.py _verdict: answers CheckpointCorrupt": "returned as the verdict",
    "tests/flow/test_trial_restore.py Kept.sealed: swallows (StoreCorrupt, RuntimeError)": "a part that no digest is made of",
    "esper/tolaria/checkpoint_file.py _Tried.passes: answers Exception": "kept; severe or raised, as the earlier ones show",
    "esper/tolaria/checkpoint_file.py restore_latest: answers CheckpointCorrupt": "severe; the one before, or RestoreImpossible",
    "tests/durable/kit/checks.py refused: answers kind": "the refusal is what is asked",
    "tests/durable/kit/checks.py an_error_of_the_disk_is_told_even_if_the_producer_hides_it.hiding: answers OSError": "it hides",
    "tests/durable/kit/filling.py fill: answers StoreWriteFailed x3": "recorded, judged by the test",
    "tests/durable/kit/queue_checks.py full: answers EmergencyQueueFull": "the refusal is what is asked",
    "tests/durable/kit/queue_workload.py refused: answers StoreWriteFailed": "planted; raises if nothing surfaced",
    "tests/durable/test_thousand_signals.py World.publish: answers EmergencyQueueFull": "a refusal is one of the ends",
    "tests/durable/test_thousand_signals.py World.run: answers Killed": "the planted kill",
    "tests/emergency/test_queue_model.py QueueMachine.drop: .pop with a default": "an unknown id is dropped, too",
    "tests/emergency/test_queue_model.py QueueMachine.what_is_due_is_in_order_and_nothing_waits_for_ever: "
    ".get with a default": "only some wait",
    "tests/durable/kit/torture.py Torture._killed: answers Killed": "the planted kill",
    "tests/durable/kit/workloads.py _append_failing: answers StoreWriteFailed x2": "planted; raises if nothing surfaced",
    "tests/durable/kit/workloads.py _run_failing_sync: answers StoreWriteFailed": "the records stay in doubt",
    "tests/durable/kit/workloads.py _run_files: answers StoreWriteFailed": "its cause is checked",
    "tests/durable/test_disk_errors.py closing: answers StoreWriteFailed": "its cause is checked",
    "tests/durable/test_disk_errors.py stubborn: answers EsperError x2": "noted as not acknowledged",
    "tests/durable/test_disk_errors.py stubborn: swallows EsperError": "opened again at the next step",
    "tests/durable/test_disk_errors.py stubborn_files: answers StoreWriteFailed x2": "then old or new are both allowed",
    "tests/durable/test_disk_errors.py stubborn_shrinking: answers (StoreWriteFailed, StoreCorrupt)": "nothing need go then",
    "tests/durable/test_disk_errors.py test_a_disk_that_is_full_loses_nothing_and_goes_on_when_there_is_room: pytest.skip": "no rights",
    "tests/durable/test_models.py OneLog.die_in_an_append: answers Killed": "the planted kill",
    "tests/durable/test_mutants.py finds: answers Exception": "whatever it raises, the mutant was found",
    "actors/shell.py _unsendable: says type: ignore": "cloudpickle leaves it untyped",
    "actors/policy_transport.py SentPolicy.of: says type: ignore": "cloudpickle leaves it untyped",
    "actors/task_transport.py TaskSource.of: says type: ignore": "cloudpickle leaves it untyped",
    "tests/actors/conftest.py launch_tiny: says type: ignore": "a function with an attribute",
    "tests/actors/test_shell.py test_a_cause_that_cannot_be_sent_does_not_take_its_error_with_it: pickle.loads": "own",
    "tests/actors/test_shell.py test_an_error_that_was_raised_from_itself_has_an_end: pickle.loads": "own",
    "tests/actors/test_shell.py test_a_chain_of_causes_that_is_too_long_to_send_is_cut_with_a_note: pickle.loads": "own",
    "tests/actors/test_shell.py test_a_group_of_errors_one_of_which_was_caused_by_the_group_is_sent: pickle.loads": "own",
    "tests/test_errors.py test_a_loop_of_causes_is_walked_once_and_survives_pickling: pickle.loads": "own",
    "actors/emergency_link.py EmergencyLink._outliving: answers ActorLost": "replaced and called again, or raised",
    "actors/emergency_link.py EmergencyGuard._run: suppress": "the conductor gets the same error at its next call",
    "tests/kit/kept_signals.py Course.run: answers EmergencyQueueFull": "noted as refused",
    "tests/emergency/test_kills.py serve: answers EmergencyQueueFull": "sent to the test",
    "actors/publisher.py Publisher.publish: answers (ActorError, OSError)": "asked again, within the deadline",
    "actors/actor_process.py _with_groups: says type: ignore": "Ray's types do not know concurrency_groups here",
    "drills/drill_context.py DrillContext._attempt: answers Exception": "kept, for the drill judges it",
    "drills/drill_context.py DrillContext.await_command: answers subprocess.TimeoutExpired": "killed; its code tells so",
    "drills/leaks.py _environment: answers OSError": "the process has ended",
    "drills/memory_watch.py _private_bytes: answers (OSError, ValueError)": "the process has ended",
    "drills/leaks.py _parent: answers (OSError, ValueError, IndexError)": "the process has ended",
    "drills/leaks.py _title: answers OSError": "the process has ended",
    "drills/drill_runner.py DrillRunner.run_one: answers Exception": "the drill has failed, and says why",
    "drills/drill_runner.py DrillRunner.run_one: answers EsperError": "the drill has failed, and says why",
    "actors/remote.py Remote._progress: answers GetTimeoutError": "patience ends it",
    "esper/flow/emergency_watch.py SignalWatch._explained: answers ActorError": "the stop is raised all the same, with a note",
    "actors/remote.py Remote._wait: answers RayError": "raised as what it really was",
    "actors/remote.py Remote.ask_within: answers RayError": "raised as what it really was",
    "actors/remote.py Process.await_end: answers ProcessLookupError": "gone is what was wanted",
    "actors/actor_process.py check_room: .get with a default": "a Ray without GPUs names none",
    "actors/actor_process.py check_room: says type: ignore": "Ray leaves it untyped",
    "drills/catalogue/driver_paused.py act: answers RunDirectoryError": "the refusal is expected, and noted",
    "drills/catalogue/no_room.py absent: says type: ignore": "Ray leaves it untyped",
    "drills/catalogue/no_room.py taken: says type: ignore": "Ray leaves it untyped",
    "tests/drills/test_planted_bugs.py swallowing.careless: answers StoreWriteFailed": "the planted bug",
    "drills/small_disk.py fill: answers OSError": "a full disk is what is wanted; other errors are raised",
    "tests/test_faults.py test_the_first_write_to_the_file_after_its_point_is_broken_and_no_other: answers OSError": (
        "the refusal is what is asked"
    ),
    "esper/faults/arming.py _due: .get with a default": "a point at which nothing is armed",
    "esper/faults/arming.py _changed: .get with a default": "a point at which nothing is armed",
    "esper/faults/fault_checks.py _check_kind: .get with a default": "a fault that any point allows",
    "esper/kasmina/blueprints/flops.py _cpu_attention_backward_flops: says type: ignore": "torch leaves it untyped",
    "esper/kasmina/blueprints/flops.py _cpu_attention_flops: says type: ignore": "torch leaves it untyped",
    "esper/kasmina/incubation/incubator.py _Entry.train: answers DivergenceUnrecoverable": "it fails G2 by it",
    "esper/ground/random_streams.py seed_by: says type: ignore": "torch leaves it untyped",
    "esper/ground/random_streams.py seed_on_cpu: answers TypeError": "another kind of generator; numpy's own function seeds it",
    "tests/actors/test_remote.py Component.raise_chain: answers RuntimeError": "raised on as the cause of a planted error",
    "tests/actors/test_errors_across_processes.py example: .get with a default": "any tuple will do as an argument",
    "esper/ground/machine.py process_began: answers (FileNotFoundError, ProcessLookupError)": "gone is the answer",
    "tests/kasmina/registry/test_admission.py test_nobody_else_makes_an_admitted_command: getattr with a default": "a probe",
    "tests/kasmina/incubation/test_incubator.py GradedFork.sample_losses: .get with a default": "most forks have no gain",
    "tests/kasmina/incubation/test_incubator.py GradedFork.train_to: .get with a default": "most forks do not burst",
    "esper/cli/main.py _answered: answers ConfigError": "said, and exit code 2",
    "esper/cli/main.py _answered: answers EsperError": "said, and exit code 3",
    "esper/cli/main.py _answered: answers Exception": "said with its traceback; exit code 3",
    "esper/cli/main.py _answered: answers (KeyboardInterrupt, typer.Abort)": "said, and exit code 130",
    "esper/cli/main.py _answered: answers typer.exceptions.TyperException": "said, and exit code 2",
    "esper/config/joined.py parse_override: answers tomllib.TOMLDecodeError": "a bare word is text; its field checks it",
    "esper/durable/files.py DirectoryLease._take: errors='replace'": "the holder's name, read for a message only",
    "esper/emergency/queue.py EmergencyQueue._append: answers StoreWriteFailed": "severe; the reserve is given up, once",
    "esper/emergency/queue.py EmergencyQueue._compact: answers StoreWriteFailed": "severe; a full disk, and the log is whole",
    "esper/emergency/queue.py EmergencyQueue._fill_reserve: answers StoreWriteFailed": "severe; a full disk",
    "esper/emergency/queue.py EmergencyQueue._write_unsynced: answers StoreWriteFailed": "severe; costs a repetition",
    "esper/emergency/reading.py _records: answers StoreCorrupt": "returned as damage",
    "esper/emergency/reading.py _measured: answers OSError on some path": "the owner has removed it",
    "esper/emergency/reading.py read_queue: answers StoreCorrupt": "the owner has removed it; raised in the end",
    "esper/emergency/courier.py Courier.deliver_due: swallows SinkFailed": "`_send` has recorded it in the queue, on its span",
    "esper/emergency/inbox_folder.py InboxFolder._refuse: errors='replace'": "a stranger's file, repeated for people",
    "esper/emergency/inbox_folder.py InboxFolder._reject: errors='replace'": "the words of a stranger's file, for people",
    "esper/emergency/inbox_folder.py InboxFolder._remove: answers OSError": "severe, unless a folder took its place",
    "esper/emergency/inbox_folder.py InboxFolder._mend: answers StoreWriteFailed": "severe before; tried at each look",
    "esper/emergency/inbox_folder.py InboxFolder._is_halt: answers (OSError, ValidationError)": "only the order of reading",
    "esper/emergency/inbox_folder.py InboxFolder.names: answers OSError": "severe; tried again at the next look",
    "esper/emergency/request_answers.py Answers._add: answers (OSError, StoreWriteFailed)": "severe; the queue has its own record",
    "esper/emergency/inbox_folder.py InboxFolder._take: answers (ConfigError, DependencyViolationError, EmergencyQueueFull)": "refused, with the reason in a file",
    "esper/emergency/inbox_folder.py InboxFolder._take: answers ValidationError": "refused, with the reason in a file",
    "esper/emergency/inbox_folder.py InboxFolder.take: answers FileNotFoundError": "whoever put it there took it back",
    "esper/emergency/inbox_folder.py InboxFolder.take: answers OSError": "refused, with the reason in a file",
    "esper/emergency/requests.py withdraw: answers FileNotFoundError": "returned as false",
    "esper/emergency/requests.py refusal: answers FileNotFoundError": "there is none, which is what was asked",
    "esper/ground/addresses.py _parts: answers ValueError": "returned as the mend, without the address",
    "esper/emergency/unread_requests.py report_unread: answers FileNotFoundError": "no inbox, no request",
    "esper/emergency/unread_requests.py report_unread: answers OSError": "severe, and told in a line",
    "esper/emergency/unread_requests.py _in_words: answers (OSError, ValidationError)": "told by the name of the file",
    "esper/emergency/webhook.py WebhookSink._failure: answers Exception": "returned, raised without what may show a secret",
    "esper/emergency/webhook.py WebhookSink._failure: answers TimeoutError": "returned, and raised by the caller",
    "esper/emergency/worker.py Worker._run: answers BaseException": "raised where the call was made",
    "tests/emergency/kit/services.py until: asyncio.sleep in a test": "waits for what a thread does, with no limit of its own",
    "tests/emergency/test_hosting.py test_a_forked_process_is_told_that_it_has_no_service: answers EmergencyUnavailable": "its exit code",
    "tests/emergency/kit/servers.py by_drops: asyncio.sleep in a test": "the server is slow on purpose",
    "tests/emergency/kit/servers.py serving.serve: answers ConnectionError": "the client may leave; noted on its request",
    "tests/emergency/kit/servers.py serving: return_exceptions=True": "they were cancelled here",
    "tests/emergency/test_service_chaos.py Sender.send: answers EmergencyQueueFull": "counted, and sent again",
    "tests/emergency/test_service_chaos.py test_each_signal_is_delivered_refused_or_a_dead_letter_however_often_the_service_ends: asyncio.sleep in a test x2": "lets the service work for a while",
    "tests/kit/collector.py Collector.take: time.sleep in a test": "a slow receiver",
    "tests/kit/collector.py _http.Handler.do_POST: answers OSError": "the exporter did not wait for the answer",
    "tests/telemetry/test_otlp.py send: time.sleep in a test": "spans of several batches; what is asserted holds at every pace",
    "tests/emergency/test_sinks_of_a_run.py SendsOne.fence: time.sleep in a test": "waits for what a thread does, with no limit of its own",
    "tests/emergency/test_webhook.py test_no_error_and_no_log_shows_the_address_or_the_token: answers SinkFailed": "shown",
    "esper/emergency/records.py decoded: answers ValidationError": "returned as damage",
    "esper/durable/log.py FramedLog._take_back: answers OSError": "noted on the first error, which its caller raises",
    "esper/durable/log.py _create: answers StoreWriteFailed": "raises unless another made the same file first",
    "esper/ground/machine.py is_alive: answers PermissionError": "the process is there, and somebody else's",
    "esper/ground/machine.py is_alive: answers ProcessLookupError": "that there is none is the answer",
    "esper/archive/journal.py read: answers (ValueError, RecursionError)": "returned with its place, beside the records that could be read",
    "esper/setup/trial.py try_backward: says type: ignore": "torch leaves it untyped",
    "esper/tolaria/task_metrics.py Metric.check_mean: answers TaskError": "nothing to compare; its values are taken as they are",
    "esper/setup/trial.py try_growth: answers DivergenceUnrecoverable": "a run tells it with its own guard",
    "tests/actors/test_zoo_on_actors.py : .get with a default": "today's five, unless a day is asked for",
    "tests/actors/test_zoo_on_actors.py test_a_task_of_the_zoo_ends_on_actors_with_the_bits_of_one_process: ignores warnings": "torch's own",
    "tests/actors/test_zoo_on_actors.py test_a_task_of_the_zoo_ends_on_actors_with_the_bits_of_one_process: pytest.mark.filterwarnings": "torch's own",
    "tests/tolaria/test_compiling.py : ignores warnings": "torch's own, as it compiles",
    "tests/tolaria/test_compiling.py : pytest.mark.filterwarnings": "torch's own, as it compiles",
    "tests/zoo/test_hosts.py : ignores warnings": "torch's own, at what users write",
    "tests/zoo/test_hosts.py : pytest.mark.filterwarnings": "torch's own, at what users write",
    "esper/leyline/base.py GrownMessage._without_unused: .pop with a default": "a field that a caller excludes is absent already",
    "tests/actors/test_adoption_on_actors.py : test_any_number_of_managers_adopts_with_the_bits_of_one_process asserts nothing": "in compare()",
    "tests/actors/test_adoption_on_actors.py test_a_death_of_a_manager_or_of_the_trainer_in_an_adoption_changes_no_bit: .get with a default": "a fault without times fires once",
    "tests/actors/test_emergency_kills.py sent_by_value: says type: ignore x2": "cloudpickle has no types",
    "tests/config/test_generated_configs.py sound: getattr with a default": "an annotation that is a class has none",
    "tests/flow/test_adoption.py TakenBack.decide: says type: ignore": "the arguments of the base class",
    "tests/tolaria/test_adopting.py test_a_compiled_host_calls_the_seed_of_the_fork_that_it_adopted: ignores warnings": "torch's own, as it compiles",
    "tests/tolaria/test_adopting.py test_a_compiled_host_calls_the_seed_of_the_fork_that_it_adopted: pytest.mark.filterwarnings": "torch's own, as it compiles",
    "tests/zoo/test_copies.py : ignores warnings": "torch's own, at what users write",
    "tests/zoo/test_copies.py : pytest.mark.filterwarnings": "torch's own, at what users write",
    "tests/zoo/test_zoo.py : ignores warnings": "torch's own, at what users write",
    "tests/zoo/test_padding.py : pytest.mark.filterwarnings": "torch's own, at what users write",
    "tests/zoo/test_padding.py : ignores warnings": "torch's own, at what users write",
    "tests/kasmina/host/test_layouts.py test_compiled_layers_tell_their_layout_and_nothing_is_compiled_for_that: pytest.mark.filterwarnings": "torch's own, as it compiles",
    "tests/kasmina/host/test_layouts.py test_compiled_layers_tell_their_layout_and_nothing_is_compiled_for_that: ignores warnings": "torch's own, as it compiles",
    "tests/kasmina/host/test_padded_hosts.py test_a_compiled_host_gives_its_seeds_the_same_padding_in_one_graph: pytest.mark.filterwarnings": "torch's own, as it compiles",
    "tests/kasmina/host/test_padded_hosts.py test_a_compiled_host_gives_its_seeds_the_same_padding_in_one_graph: ignores warnings": "torch's own, as it compiles",
    "tests/kasmina/host/test_padded_hosts.py test_in_every_mode_and_form_the_seeds_of_torchs_encoder_see_the_same_padding: pytest.mark.filterwarnings": "torch's own, of its encoder",
    "tests/zoo/test_zoo.py : pytest.mark.filterwarnings": "torch's own, at what users write",
    "esper/cli/output.py _Stream.flush: answers (OSError, ValueError)": "said once on the other stream; it is only output",
    "esper/cli/output.py _Stream.write: answers (OSError, ValueError)": "said once on the other stream; it is only output",
    "esper/cli/output.py _point_at_nothing: answers (OSError, ValueError)": "it has no descriptor that could be replaced",
    "esper/cli/output.py hold_standard_descriptors: answers OSError": "that it is closed is the answer",
    "esper/user_code/task_reference.py import_task: getattr with a default": "a module that is built in comes from no file",
    "esper/tamiyo/field_reports.py load_reports: answers FieldReportInvalid": "returned with its place, and counted",
    "esper/tasks/stdlib_text.py read_corpus: answers UnicodeDecodeError": "the file is listed as left out",
    "esper/ground/workplace.py from_here: answers ConfigError": "a deleted folder is no start; who needs it will say so",
    "esper/user_code/their_code.py _takes_note: answers Exception": "False; what passes is told by an error that takes notes",
    "esper/errors.py _written: answers BaseException": "a foreign __str__ broke; the text says so",
    "esper/telemetry/file_exporter.py FileSpanExporter._write: answers Exception": "lost spans are counted and told",
    "esper/telemetry/batches.py _Counted.arrived: answers Exception": "lost spans and log records are counted and told",
    "tests/kit/collector.py saying.Handler.handle: suppress": "the exporter has gone away; what it counted is asserted",
    "esper/telemetry/events.py severe: answers OSError": "the event is counted as lost and printed",
    "esper/telemetry/last_span.py last_traceparent: answers OSError": "the resume has no link; a run does not depend on its telemetry",
    "esper/trace/otlp_json.py parsed: answers ValueError": "the other parser reads it, and its failure is the one that is told",
    "esper/telemetry/otlp_settings.py _installed: answers ModuleNotFoundError": "False; the run is refused by name",
    "esper/archive/inspection.py _metrics_url: answers (FileNotFoundError, NotADirectoryError, ValidationError)": "no endpoint, or not to be trusted; the state of the run is shown",
    "esper/telemetry/event_tally.py EventTally._read_on: answers OSError": "what the processes reported counts",
    "esper/telemetry/event_tally.py _name_of: answers (ValueError, KeyError, TypeError)": "no name; a full disk may have cut the line",
    "esper/telemetry/endpoint.py _Server.rendered: .get with a default": "it was not rendered yet",
    "esper/telemetry/endpoint.py _end: answers OSError": "the client has gone, as was wanted",
    "esper/telemetry/exposition.py _counters: .get with a default x2": "a snapshot leaves zeros out",
    "esper/telemetry/exposition.py _gauges: .get with a default": "a gauge that was not set has no value",
    "esper/telemetry/exposition.py _histograms: .get with a default x2": "a snapshot leaves zeros out",
    "tests/actors/test_shell.py test_an_answer_carries_the_actors_metrics_and_so_does_an_error: pickle.loads": "what Ray does with an error",
    "tests/telemetry/test_endpoint.py test_hostile_clients_cost_a_bounded_part_of_a_core_and_do_not_keep_prometheus_out: swallows OSError": "the endpoint has ended this client",
    "esper/tolaria/data.py _items_of: getattr with a default": "an optional method of torch's data sets",
    "esper/tolaria/data.py _own_groups: getattr with a default": "an optional method of a data set; see Samples",
    "esper/tolaria/loss.py sample_loss: getattr with a default": "a name for a message",
    "esper/tolaria/loss.py _unreduced: answers ValueError": "no signature, so no `reduction`; the caller raises",
    "esper/tolaria/loss.py _unreduced: says type: ignore": "that the loss takes `reduction` is seen two lines above",
    "esper/tolaria/loss.py _unreduced: says noqa": "torch types a module's attribute as Tensor or Module",
    "esper/tolaria/measured_host.py MeasuredHost.probe_gradients: says type: ignore": "torch leaves backward untyped",
    "esper/tolaria/measured_host.py MeasuredHost._audited: answers IsolationViolation": "returned: a severe event, evidence for G1",
    "esper/kasmina/incubation/incubator.py _Entry.graft: answers IsolationViolation": "evidence for G2, which fails",
    "esper/setup/trial.py _graft_cheapest: suppress": "the probe of the candidate finds it again, and gate G1 refuses it",
    "esper/tamiyo/decision_checks.py malformed: answers ValidationError": "returned as the problem, which is raised",
    "esper/flow/growth.py Growth._apply: answers IsolationViolation": "G3 fails, and the seed is culled; the trainer told the event",
    "esper/tolaria/host_state.py GrownHost.remove: .pop with a default x3": "a seed that leaked nothing has no entry",
    "tests/tasks/test_stdlib_text.py test_a_window_is_the_next_65_characters_of_its_one_file: .get with a default": (
        "a file's first window starts at 0"
    ),
    "tests/test_architecture.py cycle: answers CycleError": "the cycle is the answer",
    "tests/test_faults.py passages: answers FaultInjected": "which passages raise is what is asked",
    "tests/flow/test_agreement.py test_no_value_of_a_state_can_be_altered_unseen: swallows (ValidationError, StoreCorrupt, ValueError)": (
        "that it is refused is what is asked"
    ),
    "tests/test_errors.py test_error_survives_pickling_with_args_fields_notes_and_cause: pickle.loads": "own bytes",
}
"""`file function: what` (and ` xN` where it does so N times) -> why it may stand there."""


@cache
def places() -> frozenset[str]:
    found = Counter(
        f"{path.relative_to(ROOT)} {place.where}: {place.what}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for place in scan(path.read_text(encoding="utf-8"), is_test=folder == "tests")
    )
    return frozenset(place if times == 1 else f"{place} x{times}" for place, times in found.items())


def test_every_place_where_a_failure_may_hide_is_allowed_by_name() -> None:
    assert sorted(places() - ALLOWED.keys()) == []


def test_every_allowance_is_used() -> None:
    assert sorted(ALLOWED.keys() - places()) == []


# -- the scanner itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("try: f()\nexcept OSError: pass", "swallows OSError"),
        ("try: f()\nexcept: ...", "swallows everything"),
        ("try: f()\nexcept* OSError: 'fine'", "swallows OSError"),
        ("while True:\n    try: f()\n    except (OSError, KeyError): continue", "swallows (OSError, KeyError)"),
        ("try: f()\nexcept Exception: x = 0", "answers Exception"),
        ("def f():\n    try: g()\n    except OSError as error: return error", "answers OSError"),
        ("try: f()\nexcept OSError:\n    if x: raise", "answers OSError"),
        (
            "def f():\n    try: g()\n    except OSError:\n        if x: return 0\n        raise",
            "answers OSError on some path",
        ),
        ("def f():\n    try: g()\n    finally: return 0", "leaves by finally"),
        ("with contextlib.suppress(OSError): f()", "suppress"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("from torch import load", "torch.load imported bare"),
        ("from time import sleep", "time.sleep imported bare"),
        ("from unittest import mock", "mock"),
        ("from unittest.mock import patch", "mock"),
        ("pickle.loads(data)", "pickle.loads"),
        ("time.sleep(1)", "time.sleep in a test"),
        ("pytest.importorskip('ray')", "pytest.importorskip"),
        ("@pytest.mark.skipif(True, reason='later')\ndef test_x(): assert x", "pytest.mark.skipif"),
        ("pytestmark = pytest.mark.xfail", "pytest.mark.xfail"),
        ("getattr(x, 'y', 0)", "getattr with a default"),
        ("limits.get('z', 0)", ".get with a default"),
        ("limits.pop('z', default=0)", ".pop with a default"),
        ("warnings.simplefilter('ignore')", "ignores warnings"),
        ("Actor.options(max_restarts=-1)", "max_restarts is not 0"),
        ("shutil.rmtree(path, ignore_errors=True)", "ignore_errors=True"),
        ("asyncio.gather(a, return_exceptions=True)", "return_exceptions=True"),
        ("data.decode(errors='replace')", "errors='replace'"),
        ("raise NotImplementedError", "NotImplementedError"),
        ("x = 1  # TODO later", "says TODO"),
        ("x = y  # type: ignore[misc]", "says type: ignore"),
        ("def test_nothing(): f()", "test_nothing asserts nothing"),
    ],
)
def test_planted_place_is_found(source: str, what: str) -> None:
    assert [place.what for place in scan(source, is_test=True)] == [what]


@pytest.mark.parametrize(
    "source",
    [
        "try: f()\nexcept OSError as error: raise StoreCorrupt(path, 'cut') from error",
        "try: f()\nexcept OSError:\n    if x: raise A() from None\n    else: raise",
        "try: f()\nexcept OSError:\n    with undo(): raise",
        "torch.load(path, weights_only=True)",
        "Actor.options(max_restarts=0, max_task_retries=0)",
        "queue.get()\nlimits['z']\ngetattr(x, 'y')",
        "def test_refusal():\n    with pytest.raises(OSError): f()",
        "text = '# TODO in a string is text'",
    ],
)
def test_planted_honest_source_passes(source: str) -> None:
    assert not scan(source, is_test=True)


def test_sleep_outside_tests_is_no_place() -> None:
    assert not scan("time.sleep(1)", is_test=False)


def test_place_names_its_line_and_function() -> None:
    source = "class A:\n    async def f(self):\n        x = getattr(self, 'y', 0)\n        return x  # TODO\n# FIXME"
    assert [(place.line, place.where) for place in scan(source, is_test=False)] == [(3, "A.f"), (4, "A.f"), (5, "")]


# -- skips -------------------------------------------------------------------------------------------------------

SKIPS = {
    "at run time": "import pytest\ndef test_x(): pytest.skip('no browser')",
    "by mark": "import pytest\n@pytest.mark.skip(reason='no browser')\ndef test_x(): pass",
    "whole module": "import pytest\npytest.skip('no browser', allow_module_level=True)",
    "expected failure": "import pytest\n@pytest.mark.xfail(reason='no browser')\ndef test_x(): assert False",
}


def exit_status(pytester: pytest.Pytester, source: str, allowed: str = "") -> int:
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8") + textwrap.dedent(allowed))
    pytester.makepyfile(test_passes="def test_passes(): pass", test_planted=source)
    return int(pytester.runpytest_inprocess("-p", "no:asyncio", "-p", "no:hypothesispytest").ret)


@pytest.mark.parametrize("source", SKIPS.values(), ids=SKIPS)
def test_skip_fails_the_run_unless_its_reason_is_listed(pytester: pytest.Pytester, source: str) -> None:
    assert exit_status(pytester, source) == pytest.ExitCode.TESTS_FAILED
    assert exit_status(pytester, source, "ALLOWED_SKIPS['no browser'] = 'the machine has none'") == pytest.ExitCode.OK


def test_run_without_skips_passes(pytester: pytest.Pytester) -> None:
    assert exit_status(pytester, "def test_x(): pass") == pytest.ExitCode.OK

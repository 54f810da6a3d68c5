"""Sabotages: changes of esper's source that make it wrong in silence. The drill that is named must fail with each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Change:
    """In a source file, the text `old`, which occurs once, becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Sabotage:
    """One planted mistake.

    Attributes:
        drill: The drill that must fail.
        missed: Part of what this drill must say that it expected or found.
    """

    name: str
    drill: str
    missed: str
    changes: tuple[Change, ...]


def sabotaged(sabotage: Sabotage, folder: Path) -> Path:
    """Copy the source of esper into a folder, with the mistake. Return the folder.

    Raises:
        ValueError: a text does not occur exactly once, so this would not be the mistake that was meant.
    """
    for room in ("esper", "actors", "drills"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for change in sabotage.changes:
        file = folder / change.file
        source = file.read_text(encoding="utf-8")
        if source.count(change.old) != 1:
            raise ValueError(f"{change.file} has {source.count(change.old)} times: {change.old!r}")
        file.write_text(source.replace(change.old, change.new), encoding="utf-8")
    return folder


def drilled(tree: Path, drill: str) -> subprocess.CompletedProcess[str]:
    """Run a drill with the code of a tree. All its processes use this code."""
    return subprocess.run(
        [sys.executable, "-c", "from esper.cli.main import main; main()", "drill", "run", drill, "--json"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )


GROWTH, SERVICE, CHECKPOINT = "esper/flow/growth.py", "esper/tamiyo/service.py", "esper/tolaria/checkpoint_file.py"
QUEUE, HOST, CREW = "esper/emergency/queue.py", "esper/tolaria/host_state.py", "actors/ray_crew.py"
DECIDE = "        verdict = self.components.tamiyo.decide(self.at.round_state(training))\n"
HOLD = """        from esper.errors import EsperError
        from esper.leyline.decisions import HoldReason, Verdict
        try:
            verdict = self.components.tamiyo.decide(self.at.round_state(training))
        except EsperError as error:
            hold = Hold(fence=fence, reason=HoldReason.POLICY_CHOICE, detail=str(error))
            verdict = Verdict(outcome=hold, decision=None)
"""
UNVERIFIED = Change(
    CHECKPOINT,
    "        with open_verified(path, length, crc, algorithm, disk=disk) as file:\n",
    '        with open(path, "rb") as file:\n',
)
OTHER_BITS = Change(
    HOST,
    "        load_tensors(self._all_tensors(), snapshot.tensors)\n",
    "        load_tensors(self._all_tensors(), snapshot.tensors)\n"
    "        if self.fence >= 5:\n"
    "            next(self.host.parameters()).data.add_(1e-6)\n",
)

FROZEN = Change(
    "actors/remote.py",
    "                if patience.is_over(self._progress(here), time.monotonic()):\n",
    "                if False:\n",
)

IN_PROCESS = (
    Sabotage("a Hold made in an except", "no-candidates", "expected NoSeedCandidates", (Change(GROWTH, DECIDE, HOLD),)),
    Sabotage(
        "a pause if there is no candidate",
        "no-candidates",
        "expected exit codes 3",
        (
            Change(
                SERVICE,
                "                self._check_pairs(decision, pairs)\n",
                "                if not decision.pairs:\n"
                "                    hold = Hold(fence=state.fence, reason=HoldReason.POLICY_CHOICE, detail='none')\n"
                "                    return Verdict(outcome=hold, decision=None)\n",
            ),
        ),
    ),
    Sabotage(
        "an event after the raise, which is never reached",
        "no-candidates",
        "expected severe events policy_no_candidates 1; found none",
        (
            Change(
                SERVICE,
                '            raise reported(none, "policy_no_candidates", Severity.CRITICAL, **asked)\n',
                "            raise none\n"
                '            reported(none, "policy_no_candidates", Severity.CRITICAL, **asked)\n',
            ),
        ),
    ),
    Sabotage(
        "a failure with the exit code of success",
        "no-candidates",
        "expected exit codes 3; found exit codes 0",
        (
            Change(
                "esper/ground/exit_codes.py",
                "    return DRAINED if isinstance(error, Drained) else STRICT_FAILURE",
                "    return DRAINED if isinstance(error, Drained) else DONE",
            ),
        ),
    ),
    Sabotage(
        "a failure without its trace in the journal",
        "no-candidates",
        "expected a journalled NoSeedCandidates with its trace",
        (Change("esper/flow/runner.py", '"trace_id": trace, "fence"', '"trace_id": "", "fence"'),),
    ),
    Sabotage(
        "a span that ends well although its work failed",
        "no-candidates",
        "expected a trace esper round >> tamiyo decide with NoSeedCandidates",
        (
            Change(
                "esper/telemetry/context.py",
                "            _record(opened, error)\n            raise\n",
                "            raise\n",
            ),
        ),
    ),
    Sabotage(
        "another blend mode instead of the one without its vector",
        "no-channel-vector",
        "found no error",
        (
            Change(
                SERVICE,
                "        problem = malformed(decision) or unsound(decision, state)\n",
                "        if decision.blend is not None and decision.blend.mode == 'CHANNEL':\n"
                "            other = decision.blend.model_copy(update={'mode': type(decision.blend.mode)('CONVEX')})\n"
                "            decision = decision.model_copy(update={'blend': other})\n"
                "        problem = malformed(decision) or unsound(decision, state)\n",
            ),
        ),
    ),
    Sabotage(
        "a refused command is executed",
        "no-channel-vector",
        "expected severe events command_validation_failed 1",
        (
            Change(
                "esper/kasmina/host/blending.py",
                "        raise DependencyViolationError(what, missing, detail)\n\n\ndef _problems",
                "        return\n\n\ndef _problems",
            ),
        ),
    ),
    Sabotage(
        "an unverified checkpoint is loaded",
        "checkpoint-damaged",
        "expected severe events checkpoint_rejected 3",
        (UNVERIFIED, Change(CHECKPOINT, '        _check_equal("its network", inner, vars(written))\n', "")),
    ),
    Sabotage(
        "a file that is no checkpoint is unpickled",
        "checkpoint-damaged",
        "the hostile pickle was executed",
        (
            UNVERIFIED,
            Change(
                CHECKPOINT,
                '        if "unable to mmap" not in str(error):\n            raise\n',
                '        if "unable to mmap" not in str(error):\n'
                '            return __import__("pickle").loads(open(f"/proc/self/fd/{file.fileno()}", "rb").read())\n',
            ),
        ),
    ),
    Sabotage(
        "a damaged checkpoint is passed over in silence",
        "checkpoint-damaged",
        "expected severe events checkpoint_rejected 3; found none",
        (
            Change(
                CHECKPOINT,
                '    severe("checkpoint_rejected", Severity.ERROR, **told)\n',
                "",
            ),
        ),
    ),
    Sabotage(
        "a damaged checkpoint is deleted instead of put aside",
        "checkpoint-damaged",
        "expected 3 checkpoints in quarantine",
        (Change(CHECKPOINT, "        path.rename(moved_to)\n", "        path.unlink()\n"),),
    ),
    Sabotage(
        "a resume from the oldest checkpoint",
        "reports-damaged",
        "expected at most steps_redone 0; found steps_redone",
        (
            Change(
                CHECKPOINT,
                "    for written in reversed(commits):\n        try:\n            tried",
                "    for written in sorted(commits, key=lambda one: one.fence == 0):\n        try:\n            tried",
            ),
        ),
    ),
    Sabotage(
        "other bits after a restore",
        "reports-damaged",
        "expected the bits of the undisturbed run; found other bits",
        (OTHER_BITS,),
    ),
    Sabotage(
        "a damaged field report is passed over in silence",
        "reports-damaged",
        "expected severe events field_reports_damaged 1; found none",
        (
            Change(
                "esper/tamiyo/field_reports.py",
                '    severe("field_reports_damaged", Severity.ERROR, **where, reason=entry.reason)\n',
                "    del where\n",
            ),
        ),
    ),
    Sabotage(
        "a cleared queue",
        "sink-down",
        "80 signals sent, none lost",
        (
            Change(
                "esper/emergency/emergency_service.py",
                "            left = await self._worker.call(self._undelivered)\n",
                "            names = [courier.name for courier in self._couriers]\n"
                "            ids = [held.signal.signal_id for held in self._queue.outstanding()]\n"
                "            for name in names:\n"
                "                await self._worker.call(self._queue.acknowledge, name, ids)\n"
                "            left = await self._worker.call(self._undelivered)\n",
            ),
        ),
    ),
    Sabotage(
        "a signal confirmed although its sink failed",
        "sink-down",
        "80 signals sent, none lost",
        (
            Change(
                "esper/emergency/courier.py",
                "self._worker.call(self._queue.failed, self.name, signal.signal_id, failed.why)",
                "self._worker.call(self._queue.acknowledge, self.name, [signal.signal_id])",
            ),
        ),
    ),
    Sabotage(
        "a signal beyond the cap is lost",
        "queue-capped",
        "80 signals sent, none lost",
        (
            Change(
                QUEUE,
                "        try:\n            self._accept(signal, signal_json, needed)\n",
                "        if len(self._state.held) >= 70:\n            return self._state.published\n"
                "        try:\n            self._accept(signal, signal_json, needed)\n",
            ),
        ),
    ),
    Sabotage(
        "the cap is ignored",
        "queue-capped",
        "deliveries in any 59 s",
        (
            Change(
                "esper/emergency/schedule.py",
                "        room = most if self._cap is None else min(most, self._cap - self._used(now))\n",
                "        room = most\n",
            ),
        ),
    ),
    Sabotage(
        "a full queue refuses in silence",
        "queue-full",
        "some refused; found",
        (
            Change(
                QUEUE,
                '            severe("emergency_signal_rejected", Severity.CRITICAL, '
                "signal_id=signal_id, why=why, held=held)\n",
                "            del held\n",
            ),
        ),
    ),
    Sabotage(
        "a fallback to the CPU",
        "device-absent",
        "expected exit codes 2, 0; found exit codes 0",
        (
            Change(
                "esper/setup/survey.py",
                "    _check_device(config.run.device)\n",
                "    try:\n        _check_device(config.run.device)\n    except ConfigError:\n"
                '        cpu = config.run.model_copy(update={"device": "cpu"})\n'
                '        config = config.model_copy(update={"run": cpu})\n',
            ),
        ),
    ),
    Sabotage(
        "a run directory that two processes may use at once",
        "driver-paused",
        "the resume was refused",
        (
            Change(
                "esper/durable/files.py",
                "        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
                "        del descriptor\n",
            ),
        ),
    ),
)
ON_ACTORS = (
    Sabotage("a swallowed error", "policy-fails", "expected PolicyFailed", (Change(GROWTH, DECIDE, HOLD),)),
    Sabotage(
        "a fault that does not fire",
        "policy-late",
        "expected faults fired 1 times; found 0 times",
        (Change(SERVICE, '            faults.point("tamiyo.decide", round=state.fence)\n', ""),),
    ),
    Sabotage(
        "an error of the policy that no event tells of",
        "policy-fails",
        "expected severe events policy_failed 1; found none",
        (
            Change(
                SERVICE,
                "        reported(error, event, Severity.CRITICAL, error=type(error).__name__, message=text_of(error))",
                "        del event",
            ),
        ),
    ),
    Sabotage(
        "a leaked process",
        "policy-fails",
        "expected nothing left behind; found",
        (
            Change(
                CREW,
                "            for remote in reversed(remotes):\n                each.callback(remote.process.kill)\n",
                "            for remote in reversed(remotes[1:]):\n"
                "                each.callback(remote.process.kill)\n",
            ),
            Change(
                CREW,
                "            for remote in reversed(remotes):\n"
                "                each.callback(remote.process.await_end)\n",
                "            for remote in reversed(remotes[1:]):\n"
                "                each.callback(remote.process.await_end)\n",
            ),
        ),
    ),
    Sabotage(
        "a late decision answered by a Hold",
        "policy-late",
        "expected PolicyDeadlineExceeded",
        (Change(GROWTH, DECIDE, HOLD),),
    ),
    Sabotage(
        "a restart without bound",
        "restarts-exceeded",
        "expected RestartIntensityExceeded",
        (Change("actors/supervision.py", "        if len(self.deaths_s) > limits.deaths:\n", "        if False:\n"),),
    ),
    Sabotage(
        "a restart without progress and without bound",
        "no-progress",
        "expected RestartIntensityExceeded",
        (
            Change(
                "actors/supervision.py",
                "        if self.at_fence >= limits.without_progress:\n",
                "        if False:\n",
            ),
        ),
    ),
    Sabotage(
        "a lost cause",
        "no-progress",
        "expected RestartIntensityExceeded caused by TrainerRankLost",
        (Change("actors/supervision.py", "            exceeded.__cause__ = error\n", ""),),
    ),
    Sabotage(
        "an acknowledgement before the journal",
        "emergency-killed",
        "80 signals sent, none lost",
        (
            Change(
                QUEUE,
                "        self._append(encoded or record.encoded(), last_resort=last_resort or bool(ends))\n",
                "        if not isinstance(record, Put):\n"
                "            self._append(encoded or record.encoded(), last_resort=last_resort or bool(ends))\n",
            ),
        ),
    ),
    Sabotage(
        "other bits after a rollback",
        "rollbacks-compared",
        "expected the bits of the undisturbed run in each checkpoint",
        (OTHER_BITS,),
    ),
    Sabotage(
        "an emergency actor that does not restart while its sink is down",
        "emergency-killed",
        "expected restarts of emergency; found restarts of none",
        (
            Change(
                "esper/emergency/sinks.py",
                "    if isinstance(config, FileSinkConfig):\n",
                "    if isinstance(config, FileSinkConfig):\n"
                "        _check_file(Path(config.path), 'path') if config.path else None\n",
            ),
        ),
    ),
    Sabotage(
        "an interrupt taken for a request to stop",
        "interrupted",
        "expected exit codes 130, 0",
        (
            Change(
                "esper/cli/run_command.py",
                "            last_s = now_s\n            raise KeyboardInterrupt\n",
                "            last_s = now_s\n            drain.ask()\n",
            ),
        ),
    ),
    Sabotage(
        "a dead trainer that no event tells of",
        "trainer-killed",
        "expected severe events actor_restarted 4, trainer_rank_lost 4; found actor_restarted 4",
        (
            Change(
                CREW,
                '                severe("trainer_rank_lost", Severity.ERROR, rank=name, pid=death.process, '
                "detail=str(death))\n",
                "                pass\n",
            ),
        ),
    ),
    Sabotage(
        "a restart that no counter counts",
        "trainer-killed",
        "expected counters esper.actor.restarts 4; found counters esper.actor.restarts 0",
        (
            Change(
                "esper/flow/death_log.py",
                '                count("esper.actor.restarts", role=role)\n',
                "",
            ),
        ),
    ),
    Sabotage(
        "a dead manager that takes the whole run back",
        "manager-killed",
        "expected manager-0 replaced alone; found none replaced alone",
        (Change(CREW, "            if self._whole:\n", "            if True:\n"),),
    ),
    Sabotage(
        "a frozen manager that is waited for without end",
        "manager-frozen",
        "expected restarts of manager-0; found restarts of none",
        (FROZEN,),
    ),
    Sabotage(
        "a frozen emergency actor that is waited for without end",
        "emergency-frozen",
        "expected restarts of emergency; found restarts of none",
        (FROZEN,),
    ),
    Sabotage(
        "a killed driver with the exit code of success",
        "driver-killed",
        "expected exit codes 3, 0; found exit codes 0, 0",
        (
            Change(
                "esper/cli/run_command.py",
                "    return STRICT_FAILURE\n\n\ndef _kept(",
                "    return 0\n\n\ndef _kept(",
            ),
        ),
    ),
    Sabotage(
        "a cluster without room that is called slow",
        "no-room",
        "expected PlacementUnavailable",
        (
            Change(
                "actors/actor_process.py",
                '        raise PlacementUnavailable("ray", f"{detail}; lower',
                '        raise StartDeadlineExceeded("ray", f"{detail}; lower',
            ),
        ),
    ),
    Sabotage(
        "a place that is taken and is called slow",
        "room-taken",
        "expected PlacementUnavailable",
        (
            Change(
                "actors/actor_process.py",
                "    if all(free.get(name, 0.0) >= amount for name",
                "    if True or all(free.get(name, 0.0) >= amount for name",
            ),
        ),
    ),
    Sabotage(
        "a stale command that is carried out",
        "command-stale",
        "expected exit codes 3, 0; found exit codes 0, 0",
        (Change("esper/kasmina/registry/admission.py", "    if age_s > STALE_S:\n", "    if False:\n"),),
    ),
    Sabotage(
        "other bits after a recovery in a random schedule",
        "random-schedule",
        "the bits of the undisturbed run; found other bits",
        (OTHER_BITS,),
    ),
)
SABOTAGES = (*IN_PROCESS, *ON_ACTORS)

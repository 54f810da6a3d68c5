"""Settings of growth: limits and sizes. Tamiyo chooses seeds within these limits."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    Strict,
    ValidationInfo,
    field_validator,
    model_validator,
)

from esper.leyline.base import Count, PositiveInt, Settings
from esper.leyline.commands import MAX_COPIES

MOST_MANAGERS = 512
"""Upper limit of `growth.managers`. Each manager is a process. Many more processes would exhaust a machine."""
MOST_PLACEBOS = 64
"""Upper limit of `growth.placebos`. Each placebo trains in a fork."""
Share = Annotated[float, Field(gt=0, lt=1)]
Ratio = Annotated[float, Field(gt=0)]


Names = Annotated[tuple[str, ...], Strict(False)]


class BlueprintChoice(Settings):
    """The blueprints to try in some slots. They are the blueprints in `only`, or all blueprints that fit the slot and
    are not in `exclude`.
    """

    only: Names | None = None
    exclude: Names | None = None


def _table(value: object) -> object:
    """Return the value unchanged. Raises: ValueError: the value is not a table."""
    if not isinstance(value, dict):
        raise ValueError('give a table, such as { "blocks.*" = ["mlp"] }')
    return value


def _with_key(value: object) -> object:
    """Return a choice as a table. A bare list of names becomes the value of `only`.

    Raises:
        ValueError: the value must be a list of names, or a table with exactly one of `only` and `exclude`. The list
            must not be empty.
    """
    if isinstance(value, BlueprintChoice):
        return value
    told = {"only": value} if isinstance(value, list | tuple) else value
    given = {key: names for key, names in told.items() if names is not None} if isinstance(told, dict) else {}
    for key, names in given.items():
        if key in ("only", "exclude") and len(given) == 1 and isinstance(names, list | tuple) and names:
            return {key: names}
    raise ValueError("give a list of blueprints, or { exclude = [...] }")


Choices = Annotated[dict[str, Annotated[BlueprintChoice, BeforeValidator(_with_key)]], BeforeValidator(_table)]


Rungs = Annotated[tuple[PositiveInt, ...], Strict(False), Field(min_length=1, max_length=16)]
NONE_WORD = BeforeValidator(lambda value: None if value == "none" else value)
"""Marks a key of a preset that can be switched off by the text "none", because TOML has no value for it."""


FULL: Mapping[str, object] = {
    "copies": 4,
    "candidates": 24,
    "placebos": 8,
    "first_step": 40,
    "rungs": (30, 60, 120),
    "rung_samples": (128, 256, 512),
    "probe_ramp_steps": 20,
    "probe_warmup_steps": 10,
    "margin": 0.005,
    "max_loss_variation": 1.0,
    "tests": "tournaments",
    "max_tournaments": 2,
    "best_again": 4,
    "replicas": 1,
    "entry": "adopt",
    "finish": "better",
    "parameter_budget": 6.0,
    "parameter_floor": 20_000,
    "cost_budget": 8.0,
}
LEAN: Mapping[str, object] = {
    **{key: value for key, value in FULL.items() if key != "best_again"},  # there is one tournament
    "candidates": 12,
    "placebos": 6,
    "rungs": (30, 60),
    "rung_samples": (128, 512),
    "max_tournaments": 1,
}
PRESETS: Mapping[str, Mapping[str, object]] = {"none": {}, "lean": LEAN, "full": FULL}
"""Name of a preset -> its values by key of [growth]. With `none` each key has its own default."""
PRESET: Literal["none", "lean", "full"] = "full"
"""The preset of a config that names none."""


def _left_out(key: str, value: object) -> tuple[str, ...]:
    """Return the keys of a preset that a given key would contradict, or whose place it takes."""
    rungs = ("rungs", "rung_samples")
    match key, value:
        case "due_rounds" | "halving_step", _:
            return rungs
        case "probe_steps", _:
            return rungs if value is None else (*rungs, "entry")
        case "rungs" | "judge_samples", _:
            return ("rung_samples",)
        case "first_fence", _:
            return ("first_step",)
        case "max_tests", _:
            return ("tests",)
        case "max_tournaments", 1:
            return ("best_again",)
        case "twin", False:
            return ("finish",)
        case "isolate_until", "blended" | "fossilized":
            return ("entry",)
    return ()


class GrowthConfig(Settings):
    """[growth]"""

    preset: Literal["none", "lean", "full"] = Field(
        PRESET, description="a set of values for keys of this table; a key that is given wins; see docs/growth.md"
    )
    enabled: bool = Field(True, description="false: train the host without growth, as --no-growth does")
    managers: Annotated[int, Field(ge=1, le=MOST_MANAGERS)] = Field(
        1, description="number of processes that train forks; changes no result"
    )
    blueprints: Choices = Field(
        default_factory=dict,
        description="by slot or pattern: a list of blueprints to try, or { exclude = [...] }; default: all that fit",
    )
    copies: Annotated[int, Field(ge=1, le=MAX_COPIES)] = Field(
        1, description="number of modules of the blueprint in each seed; all of them get one verdict"
    )
    entry: Literal["graft", "adopt"] = Field(
        "graft",
        description="graft: an accepted seed is put into the live host; adopt: its fork becomes the live host",
    )
    beside: Count = Field(
        0,
        description="number of candidates of a refused tournament that train on beside the live host and are judged"
        " again, until the first seed is accepted; needs growth.entry=adopt",
    )
    max_looks: Annotated[Count | None, NONE_WORD] = Field(
        None,
        description="growth.beside: largest number of times that the candidates of a refused tournament are judged"
        " again; default: as often as the run allows",
    )
    placebos: Annotated[int, Field(ge=0, le=MOST_PLACEBOS)] = Field(
        0, description="number of useless seeds in each tournament; G2 compares the best candidate with them"
    )
    candidates: PositiveInt = Field(18, description="largest number of candidates in one tournament")
    due_rounds: PositiveInt = Field(1, description="rounds between the snapshot of a tournament and its verdict")
    probe_steps: PositiveInt | None = Field(
        None, description="optimizer steps of a fork; default: those of due_rounds rounds"
    )
    halving_step: PositiveInt = Field(18, description="step of the forks after which only the better half continues")
    rungs: Annotated[Rungs | None, NONE_WORD] = Field(
        None,
        description="steps of the forks at which they are judged, such as [30, 60, 120]; the last is the end of the"
        " tournament, at most 0.4 of the run; replaces due_rounds, probe_steps and halving_step",
    )
    rung_samples: Annotated[Rungs | None, NONE_WORD] = Field(
        None, description="number of samples, or of groups, that each rung judges on; default: judge_samples"
    )
    probe_ramp_steps: PositiveInt = Field(20, description="steps in which alpha rises from 0 to 1 in a fork")
    probe_warmup_steps: PositiveInt = Field(10, description="steps of warm-up of a seed's learning rate in a fork")
    first_fence: PositiveInt = Field(
        1, description="first fence at which a seed may germinate; set it after the learning rate's warm-up"
    )
    first_step: Count = Field(
        0, description="optimizer step before which no seed germinates; it moves first_fence to a later fence"
    )
    after_warmup: bool = Field(
        False,
        description="true: first_step is at least the step of the last rise of the learning rate before its first fall",
    )
    best_again: Annotated[PositiveInt | None, NONE_WORD] = Field(
        None,
        description="number of pairs in each tournament after the first: the best of the first, those of different"
        " slots first; default: all pairs that were not tried a short while ago",
    )
    ramp_steps: PositiveInt = Field(75, description="steps in which alpha rises from 0 to 1 in the live host")
    warmup_steps: PositiveInt = Field(20, description="steps of warm-up of a seed's learning rate in the live host")
    probation_rounds: PositiveInt = Field(2, description="rounds for which a seed is watched before it is fossilised")
    embargo_rounds: PositiveInt = Field(
        2, description="rounds before a (slot, blueprint) pair culled from the host may be tried again"
    )
    margin: Ratio = Field(0.002, description="G2: least mean gain, as a share of the control's loss")
    false_pass: Share = Field(0.05, description="G2: chance that at least one useless seed passes in a whole run")
    max_tests: PositiveInt = Field(
        400,
        description="largest number of candidates judged in a run; with growth.tests=candidates it determines the limit"
        " of G2 for z",
    )
    tests: Literal["candidates", "tournaments"] = Field(
        "candidates",
        description="G2: number of tests among which false_pass is divided: candidates (max_tests), or the tournaments"
        " that the run can hold, because each tournament tests only its first; a later look counts as a tenth",
    )
    max_tournaments: Annotated[PositiveInt | None, NONE_WORD] = Field(
        None, description="largest number of tournaments in a run, without those of replicas; default: all that fit"
    )
    max_cost: Ratio | None = Field(
        None,
        description="largest modelled GFLOP of a whole run: live host, incubation and twin; no tournament begins that"
        " could exceed it",
    )
    min_samples: int = Field(128, ge=2, description="least number of samples, or of groups, that a gate needs to judge")
    judge_samples: PositiveInt = Field(
        128, description="number of samples, or of groups, that a fence draws from a shard to judge on"
    )
    group_samples: PositiveInt = Field(2, description="largest number of samples of one group that a fence draws")
    harm_z: float = Field(
        -3.0, lt=0, description="G2 of a replica, and G4 with entry=graft and finish=live: z below this is harm"
    )
    max_loss_variation: Ratio = Field(
        0.5, description="G2: largest scatter of a fork's training loss about its trend, over its mean"
    )
    max_gradient_norm: Ratio = Field(1e3, description="G1: largest global gradient norm of a seed")
    stack: PositiveInt = Field(6, description="largest number of seeds in one slot")
    replicas: PositiveInt = Field(6, description="largest number of seeds of one winning pair, the winner included")
    twin: bool = Field(
        True, description="continue to train the control of the first accepted tournament, as the twin of the live host"
    )
    finish: Literal["live", "better"] = Field(
        "live",
        description="network of the run: the live host, or the better of live host and twin on pick and gate shards",
    )
    finish_samples: PositiveInt = Field(
        4096, description="largest number of samples of pick, and of gate, on which growth.finish=better compares"
    )
    isolate_until: Literal["none", "blended", "fossilized"] = Field(
        "blended",
        description="stage until which a seed's gradient does not reach the host; always none if growth.entry is adopt",
    )
    isolation_audit_steps: PositiveInt = Field(200, description="optimizer steps between two audits of isolation")
    parameter_budget: Ratio = Field(
        4.0, description="largest number of parameters of all seeds together, over the host's"
    )
    cost_budget: Ratio = Field(2.0, description="largest modelled FLOPs of one seed, over the host's")
    memory_budget: Ratio = Field(4.0, description="largest number of parameter bytes of one seed, over the host's")
    parameter_floor: Count = Field(
        0,
        description="number of parameters that seeds may always have: no budget over the host's size or FLOPs is below"
        " this number over the host's parameters",
    )

    def parameters_within(self, host_parameters: int) -> int:
        """Return the number of parameters that all seeds together may have."""
        return max(int(self.parameter_budget * host_parameters), self.parameter_floor)

    def cost_within(self, host_parameters: int) -> float:
        """Return the limit of the modelled FLOPs of one seed, over the host's."""
        return max(self.cost_budget, self.parameter_floor / host_parameters)

    def cost_unit(self, host_parameters: int) -> float:
        """Return the number of hosts whose FLOPs are the unit of a tournament's cost: 1, or more if the host has fewer
        parameters than `parameter_floor`.
        """
        return max(1.0, self.parameter_floor / host_parameters)

    def memory_within(self, host_parameters: int) -> float:
        """Return the limit of the parameter bytes of one seed, over the host's."""
        return max(self.memory_budget, self.parameter_floor / host_parameters)

    @field_validator("rungs")
    @classmethod
    def _ascending(cls, rungs: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if rungs is not None and any(before >= after for before, after in pairwise(rungs)):
            raise ValueError("give ascending steps, such as [20, 60, 120]")
        return rungs

    @field_validator("rung_samples")
    @classmethod
    def _one_per_rung(cls, samples: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        rungs = info.data.get("rungs")
        if samples is not None and (rungs is None or len(rungs) != len(samples)):
            raise ValueError(f"give one number for each of the {len(rungs or ())} rungs in growth.rungs")
        return samples

    @model_validator(mode="before")
    @classmethod
    def _joint_if_adopted(cls, given: object) -> object:
        """Return the settings, with `isolate_until` set to "none" if the entry is "adopt" and it is not given."""
        if isinstance(given, dict) and given.get("entry") == "adopt":
            return {"isolate_until": "none", **given}
        return given

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: Any) -> Any:  # Any: the table as it was given
        """Add the keys of the preset that are not given. This runs before the other validators, which come earlier."""
        if not isinstance(given, dict):
            return given
        given = {"preset": PRESET, **given}
        if given["preset"] is None:  # as in the run.json of a run that named no preset
            given["preset"] = "none"
        name = given["preset"]
        if not isinstance(name, str) or name not in PRESETS:
            return given
        gone = {one for key, value in given.items() for one in _left_out(key, value)}
        return {**{key: value for key, value in PRESETS[name].items() if key not in gone}, **given}

    @model_validator(mode="wrap")
    @classmethod
    def _with_given(cls, given: object, check_table: ModelWrapValidatorHandler[Self]) -> Self:
        """Let `model_fields_set` be the keys that were given, without those that the validators above add."""
        checked = check_table(given)
        if isinstance(given, dict):
            checked.model_fields_set.intersection_update(given)
        return checked

    @field_validator("isolate_until", "probe_steps", mode="after")
    @classmethod
    def _check_adoption(cls, value: str | int | None, info: ValidationInfo) -> str | int | None:
        """Return the value. Raises: ValueError: it contradicts the entry "adopt"."""
        if info.data.get("entry") == "adopt":
            if isinstance(value, str) and value != "none":
                raise ValueError("use none with growth.entry=adopt: a fork trains the host together with the seed")
            if isinstance(value, int):
                raise ValueError("leave it out with growth.entry=adopt: a fork trains for growth.due_rounds rounds")
        return value

    @field_validator("placebos", mode="after")
    @classmethod
    def _check_placebos(cls, value: int) -> int:
        """Return the value. Raises: ValueError: the spread of one gain is not known."""
        if value == 1:
            raise ValueError("use 0, or 2 or more: one placebo does not show how far gains differ")
        return value

    @field_validator("beside", mode="after")
    @classmethod
    def _check_beside(cls, value: int, info: ValidationInfo) -> int:
        """Return the value. Raises: ValueError: no fork of this run could be adopted."""
        if value and info.data.get("entry") == "graft":
            raise ValueError("use 0 with growth.entry=graft: only a fork that may be adopted can be judged later")
        return value

    @field_validator("finish", mode="after")
    @classmethod
    def _check_finish(cls, value: str, info: ValidationInfo) -> str:
        """Return the value. Raises: ValueError: the run has no twin to choose."""
        if value == "better" and info.data.get("twin") is False:
            raise ValueError("use live with growth.twin=false: there is no twin to compare with")
        return value

    @property
    def of_preset(self) -> dict[str, tuple[object, object]]:
        """Return the keys of the preset, with the preset's value and the value of this config. Empty: the preset sets
        none."""
        return {key: (value, getattr(self, key)) for key, value in PRESETS[self.preset].items()}

    @property
    def preset_left_out(self) -> dict[str, dict[str, object]]:
        """Return each given key that leaves keys of the preset out, with the preset's values of these keys. Empty: none
        does, or each key was given, as in a `run.json`."""
        given, preset = self.model_fields_set, PRESETS[self.preset]
        found = {key: _left_out(key, getattr(self, key)) for key in type(self).model_fields if key in given}
        mine = {key: {one: preset[one] for one in gone if one in preset.keys() - given} for key, gone in found.items()}
        return {key: values for key, values in mine.items() if values}

    @property
    def without_effect(self) -> dict[str, str]:
        """Return each given key that has no effect, with the setting that is the reason. If each key is given, as in a
        `run.json`, it is not known which ones the user gave. Then a key at its default is left out."""
        whys: dict[str, tuple[str, ...]] = {
            f"entry={self.entry}": ("ramp_steps", "warmup_steps") if self.entry == "adopt" else (),
            "rungs": ("due_rounds", "probe_steps", "halving_step") if self.rungs is not None else (),
            f"finish={self.finish}": ("finish_samples",) if self.finish == "live" else (),
            f"max_tournaments={self.max_tournaments}": ("best_again",) if self.max_tournaments == 1 else (),
            f"beside={self.beside}": () if self.beside else ("max_looks",),
            f"max_looks={self.max_looks}": ("beside",) if self.max_looks == 0 else (),
            f"replicas={self.replicas} and {self._no_cull}": ("harm_z",) if self._no_cull and self.replicas < 2 else (),
        }
        fields, given = type(self).model_fields, self.model_fields_set
        all_given = all(key in given or getattr(self, key) is None for key in fields)
        return {
            key: f"growth.{why}"
            for why, keys in whys.items()
            for key in keys
            if getattr(self, key) != fields[key].default or (key in given and not all_given)
        }

    @property
    def _no_cull(self) -> str:
        """The setting for which G4 removes no seed behind the twin. Empty: G4 does."""
        if self.entry == "adopt":
            return "entry=adopt"
        return "" if self.finish == "live" else f"finish={self.finish}"

    @property
    def culls_behind_twin(self) -> bool:
        """True if G4 removes a seed with which the host is worse than its twin. With `finish=better` a worse host costs
        nothing, because the run ends with the twin. With `entry=adopt` host and seed trained together, so without the
        seed the host would be worse still.
        """
        return not self._no_cull

    @property
    def ramp_key(self) -> str:
        """Name of the setting with the ramp of the policy heuristic's seeds. With entry=adopt, the ramp begins in the
        fork."""
        return "probe_ramp_steps" if self.entry == "adopt" else "ramp_steps"

    @property
    def entry_ramp_steps(self) -> int:
        """Steps in which the alpha of the policy heuristic's seeds rises."""
        return self.probe_ramp_steps if self.entry == "adopt" else self.ramp_steps

"""Builds each component of a run from its survey, in the same way in one process and on Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from esper.ground.clock import Clock
from esper.kasmina.incubation.incubator import Incubator
from esper.kasmina.registry.registrar import KasminaRegistrar
from esper.kasmina.registry.run_facts import RunFacts
from esper.kasmina.registry.seed_registry import SeedRegistry
from esper.leyline.host_ports import ForkFactory, ProbedFork
from esper.leyline.ports import Policy
from esper.setup.survey import Survey
from esper.setup.total_cost import run_flops
from esper.tamiyo.command_builder import CommandBuilder
from esper.tamiyo.cost_limit import CostLimit
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.tamiyo.risk import ForkCosts
from esper.tamiyo.service import Tamiyo
from esper.tolaria.snapshot import HostSnapshot
from esper.tolaria.trainer import Trainer, never


@dataclass(frozen=True)
class RunKey:
    """Values that all components of a run share: its id, its generation, and the secret that signs its commands."""

    run_id: str
    generation: int
    secret: bytes = field(repr=False)


def make_trainer(survey: Survey, key: RunKey, halted: Callable[[], bool] = never) -> Trainer:
    """Return a trainer with the live host at step 0. It calls `halted` at every step boundary."""
    trainer = survey.trainer(key.run_id, key.generation, "tolaria", halted)
    trainer.refuse_unkept(survey.changing)
    return trainer


def make_kasmina(survey: Survey, key: RunKey, clock: Clock) -> KasminaRegistrar:
    """Return Kasmina's registry without seeds."""
    facts = RunFacts(
        run_id=key.run_id,
        generation=key.generation,
        run_seed=survey.config.run.seed,
        batch_size=survey.data.batch_size,
        fence_steps=survey.fence_steps,
        host_parameters=survey.host_parameters,
        host_bytes=survey.host_bytes,
        host_flops=survey.host_flops,
    )
    growth, blueprints = survey.resolved.growth, survey.blueprints
    registry = SeedRegistry(facts, growth, survey.specs, survey.options, blueprints, key=key.secret, clock=clock)
    return KasminaRegistrar(registry)


def make_fork_factory(survey: Survey, key: RunKey, halted: Callable[[], bool] = never) -> ForkFactory[ProbedFork]:
    """Return a function that makes forks of snapshots in this process. Each fork calls `halted` at every step
    boundary."""

    def fork(snapshot: HostSnapshot) -> ProbedFork:
        trainer = survey.trainer(key.run_id, key.generation, "kasmina", halted)
        trainer.become(snapshot)
        return trainer

    return fork


def make_incubator(
    survey: Survey, key: RunKey, halted: Callable[[], bool] = never, live: Trainer | None = None
) -> Incubator:
    """Return Kasmina's incubation with forks in this process; see `make_fork_factory`.

    Args:
        live: The trainer of the live host, if it is in this process, too.
    """
    fork = make_fork_factory(survey, key, halted)
    return Incubator(fork, {spec.path: spec for spec in survey.specs}, survey.blueprints, live)


def make_tamiyo(survey: Survey, key: RunKey, clock: Clock, policy: Policy | None = None) -> Tamiyo:
    """Return Tamiyo with `policy`, which may choose any ramp.

    None: a `HeuristicPolicy`, whose ramps have `GrowthConfig.entry_ramp_steps` steps.
    """
    config, growth = survey.config, survey.config.growth
    ramp = growth.entry_ramp_steps
    return Tamiyo(
        policy
        if policy is not None
        else HeuristicPolicy(growth.candidates, growth.replicas, ramp, growth.best_again, survey.looks),
        CommandBuilder(key.secret, clock, ramp),
        survey.growth_window(ramp if policy is None else 1),
        config.risk,
        costs=ForkCosts(
            survey.host_flops, survey.host_flops * growth.cost_unit(survey.host_parameters), growth.placebos
        ),
        deadline_s=config.policy.deadline_s,
        clock=clock,
        cost=CostLimit(growth.max_cost, partial(run_flops, survey)) if growth.max_cost is not None else None,
    )

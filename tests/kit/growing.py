"""Slots, plans, probes, commands and results that tests of several folders build: sound, but for the fields given."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from esper.ground.tensors import blob_digest
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, BlueprintRegistry
from esper.kasmina.incubation.planning import plan_seed
from esper.kasmina.registry.run_facts import RunFacts
from esper.kasmina.registry.seed_record import SeedRecord
from esper.kasmina.registry.seed_registry import SeedRegistry
from esper.kasmina.settings import GrowthConfig
from esper.leyline.commands import BlendSpec, Candidate, Command, Operation, sign
from esper.leyline.decisions import Pair
from esper.leyline.evidence import (
    GradientProbe,
    HostObservation,
    PairedLosses,
    ResetProbe,
    SampleLosses,
    SanityProbe,
    SeedObservation,
)
from esper.leyline.incubation import CandidateProbe, ForkResult, IncubationOrder, IncubationResult
from esper.leyline.reports import GraftPlan
from esper.leyline.slots import Kind, SlotSpec
from esper.leyline.state import RegistryView, SeedState
from esper.testing import EPOCH, FakeClock, tiny_config

KEY = b"a key of a test's own, 32 bytes."
RUN = "6f1c1c60-6b3b-4c19-9a43-0f3a7f3d8f10"
ROUND = 10
"""Steps from fence to fence of a registry made here."""
GROWTH = tiny_config().growth
THREE: dict[str, Any] = {"growth__blueprints": {"*": ["low_rank", "mlp", "norm"]}}
"""Config values with which the slot "body" of `TinyHost` has three candidates."""
BLEND = BlendSpec(mode="RESIDUAL", ramp_steps=30)
CLEAN = SanityProbe(
    parameters=50,
    parameter_bytes=200,
    parameters_finite=True,
    output_shape=(8,),
    slot_shape=(8,),
    output_dtype="torch.float32",
    causality_leak=None,
    sample_leak=0.0,
)
ALIVE = GradientProbe(batches=2, nonfinite=0, norm=1.0, reachable_host_parameters=())
DEAD = ALIVE.model_copy(update={"norm": 0.0})
FORKED, CONTROLLED = "f" * 64, "c" * 64
"""Digests of the weights of a fork to adopt and of its control, in results made here."""
SPOTLESS = ResetProbe(
    seed_left=False, optimizers_left=0, hooks_left=0, output_equal=True, flags_equal=True, names_equal=True
)
DRAWN: dict[str, bytes] = {}
"""The weights of every plan of `drawn_plan`, by digest."""


class Look(nn.Module):
    """A function as a module."""

    def __init__(self, see: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.see = see

    def forward(self, x: Tensor) -> object:
        return self.see(x)


def slot(path: str = "body", kind: Kind = Kind.NC, shape: tuple[int, ...] = (8,), **fields: Any) -> SlotSpec:
    """The slot "body" of `TinyHost`, or another."""
    sound = {"dtype": "torch.float32", "device": "cpu", "causal": False, "samples_independent": True}
    return SlotSpec(path=path, kind=kind, shape=shape, **(sound | fields))


def drawn_plan(
    spec: SlotSpec, name: str, number: int = 0, *, blueprints: BlueprintRegistry = BLUEPRINTS, **fields: Any
) -> GraftPlan:
    """The plan of seed `seed-<number>`, at full alpha from step 0 on. Its weights are in `DRAWN`."""
    ids = {"run_id": RUN, "generation": 1, "command_id": f"command-{number}", "fence": 1, "ordinal": number}
    course = {"run_seed": 0, "step": 0, "blend": BLEND.model_copy(update={"ramp_steps": 1}), "warmup_steps": 1}
    candidate = Candidate(slot=spec.path, blueprint_id=name, seed_id=f"seed-{number}")
    made, blob = plan_seed(candidate, spec, blueprints.get(name), **(ids | course | fields))
    DRAWN[made.weights_digest] = blob
    return made


def graft_plan(weights: bytes = b"", **fields: Any) -> GraftPlan:
    ids = {"command_id": "command-1", "run_id": RUN, "generation": 1, "seed_id": "seed-1", "fence": 1}
    place = {"slot": "body", "ordinal": 0, "blueprint_id": "planted", "asked_device": "cpu"}
    course = {"blend": BLEND, "start_step": 0, "isolated": True, "warmup_steps": 1}
    return GraftPlan(**(ids | place | course | {"weights_digest": blob_digest(weights)} | fields))


def a_record(seed_id: str = "seed-1") -> SeedRecord:
    """A dormant seed."""
    return SeedRecord(
        seed_id=seed_id,
        slot="body",
        blueprint_id="mlp",
        command_id="command-1",
        policy_version="scripted-1",
        replica_of=None,
        required_mesh=("body",),
        parameters=1,
        parameter_bytes=4,
        flops=1,
        germinated_fence=1,
        since_fence=1,
    )


def a_registry(
    *,
    run_id: str = RUN,
    generation: int = 1,
    key: bytes = KEY,
    clock: FakeClock,
    slots: Sequence[SlotSpec] = (slot(),),
    growth: GrowthConfig = GROWTH,
    blueprints: BlueprintRegistry = BLUEPRINTS,
    fences: int = 20,
) -> SeedRegistry:
    """A registry at a run's start. A seed has 50 parameters, the host 100."""
    facts = RunFacts(
        run_id=run_id,
        generation=generation,
        run_seed=0,
        batch_size=8,
        fence_steps=tuple(range(0, (fences + 1) * ROUND, ROUND)),
        host_parameters=100,
        host_bytes=400,
        host_flops=1_000,
    )
    options = [
        Pair(slot=spec.path, blueprint_id=made.name, parameters=50, flops=100, risk=0.1, mesh=(spec.path,))
        for spec in slots
        for made in blueprints.for_kind(Kind.NC)
    ]
    return SeedRegistry(facts, growth, list(slots), options, blueprints, key=key, clock=clock)


def signed(command: Command, key: bytes = KEY) -> Command:
    return command.model_copy(update={"signature": sign(command, key)})


def a_command(operation: Operation, name: object = "1", *, key: bytes = KEY, **fields: Any) -> Command:
    """A signed command with its ids, and of the rest what is given."""
    ids = {"command_id": f"command-{name}", "run_id": RUN, "generation": 1, "nonce": f"nonce-{name}"}
    origin = {"issued_at": EPOCH, "issued_by": "tamiyo", "feature_coverage": 1.0, "policy_version": "scripted-1"}
    return signed(Command(operation=operation, **(ids | origin | fields)), key)


def probed(plans: Iterable[GraftPlan], gradient: GradientProbe = ALIVE) -> list[CandidateProbe]:
    """What probing sound candidates shows."""
    return [CandidateProbe(seed_id=plan.seed_id, sanity=CLEAN, gradient=gradient, fallbacks=()) for plan in plans]


def pairs(z: float, fence: int, shard: str = "gate") -> PairedLosses:
    return PairedLosses(
        shard=shard, fence=fence, count=256, grouped=False, mean=0.02 * z, sd=0.32, z=z, control_mean=1.0
    )


def losses(values: Iterable[float], fence: int) -> SampleLosses:
    return SampleLosses(shard="gate", fence=fence, losses=tuple(values))


def live_and_twin(fence: int, gain: float) -> tuple[SampleLosses, SampleLosses]:
    """The losses of live host and twin on 256 samples; `gain` in standard errors."""
    twin = [2.0 + 0.1 * (-1.0) ** place + gain * 0.1 / 16 for place in range(256)]
    return losses([2.0] * 256, fence), losses(twin, fence)


def result_of(order: IncubationOrder, ranked: Sequence[str], z: float = 8.0) -> IncubationResult:
    """The result of an order: the named seeds ended in this order; the others left at the halving."""
    ranks = {seed_id: place + 1 for place, seed_id in enumerate(ranked)}
    forks = [
        ForkResult(
            seed_id=plan.seed_id,
            steps=10 if plan.seed_id in ranks else 5,
            required_steps=10,
            rank=(rank := ranks.get(plan.seed_id)),
            pick=pairs(z - (rank or len(order.plans)) + 1, order.due_fence, "pick"),
            gate=pairs(z, order.due_fence) if rank == 1 else None,
            loss_variation=0.1 if rank == 1 else None,
            fallbacks=() if rank == 1 else None,
            weights_sha256=FORKED if order.adopts and rank == 1 else None,
            control_sha256=CONTROLLED if order.adopts and rank == 1 else None,
        )
        for plan in order.plans
    ]
    ids = {"order_id": order.order_id, "generation": order.generation, "fence": order.due_fence}
    return IncubationResult(forks=tuple(forks), fork_steps=10, flops=10, **ids)


def observation_of(view: RegistryView, fence: int, broken: Container[str] = (), **fields: Any) -> HostObservation:
    """Every seed in the host as a sound trainer would have seen it. `broken` ones leak and do not fit any more."""
    asked = {f"{when}{what}": how for when in ("", "asked_") for what, how in (("device", "cpu"), ("path", "eager"))}
    size = {"output_shape": (8,), "parameter_bytes": 400, "output_dtype": "torch.float32"}
    course = {"alpha_target": 1.0, "calls": 3, "asked_dtype": "torch.float32", "isolated": True, "isolation_leaks": ()}
    unsound = {"output_shape": (7,), "isolation_leaks": ("body.weight",)}

    def seen(seed: SeedState) -> SeedObservation:
        own = {name: getattr(seed, name) for name in ("seed_id", "slot", "stage", "alpha")}
        return SeedObservation(**(own | asked | size | course | (unsound if seed.seed_id in broken else {}) | fields))

    seeds = tuple(seen(seed) for seed in view.seeds if seed.alpha is not None)
    return HostObservation(fence=fence, registered_layers=("body", "head"), seeds=seeds)

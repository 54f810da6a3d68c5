"""A drill of one's own: `esper drill run --file examples/own_drill.py:drill --task my_task.py:task`."""

from drills import Drill, DrillContext, breaking, expect


def act(run: DrillContext) -> None:
    """Kill the trainer in the step in the middle of the run."""
    run.run(breaking.kill("tolaria.step", step=run.undisturbed.middle_step))


drill = Drill(
    name="my-trainer-dies",
    what="The trainer dies in the middle of the run, and the run ends with the same bits.",
    act=act,
    follows=(expect.exit_codes(0), expect.restarted("tolaria"), expect.same_bits()),
)

"""Where the command line begins, as `esper` and as `python -m esper`: the order of sets is fixed before all else."""

from __future__ import annotations

import sys

from esper.cli.command_table import may_load_task
from esper.ground.hash_seed import fix_hash_seed


def main() -> None:
    """Entry point: run the command line and leave with its exit code."""
    if may_load_task(sys.argv[1:]):
        fix_hash_seed()
    from esper.cli.main import main as command_line  # after a restart by `fix_hash_seed`: it is imported once

    command_line()


if __name__ == "__main__":
    main()

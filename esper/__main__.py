"""The start of the command line, as `esper` and as `python -m esper`. Before anything else, it makes the order of sets
the same in every process.
"""

from __future__ import annotations

import sys

from esper.cli.command_table import may_load_task
from esper.ground.hash_seed import fix_hash_seed


def main() -> None:
    """Entry point: run the command line and exit with its code."""
    if may_load_task(sys.argv[1:]):
        fix_hash_seed()
    from esper.cli.main import main as command_line  # imported after `fix_hash_seed`, which may start the program again

    command_line()


if __name__ == "__main__":
    main()

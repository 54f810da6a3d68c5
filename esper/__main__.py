"""Where the command line begins, as `esper` and as `python -m esper`: the order of sets is fixed before all else."""

from __future__ import annotations

from esper.ground.hash_seed import fix_hash_seed


def main() -> None:
    """Entry point: run the command line and leave with its exit code."""
    fix_hash_seed()
    from esper.cli.main import main as command_line  # it imports torch: a second or two, which one start should pay

    command_line()


if __name__ == "__main__":
    main()

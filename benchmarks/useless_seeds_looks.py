"""As `useless_seeds.py`, with two later looks at the refused seeds of each tournament (`growth.beside`)."""

from functools import partial

from _common import main
from useless_seeds import measure

LOOKS = {"growth.beside": 2, "growth.max_looks": 2}

if __name__ == "__main__":
    main("useless_seeds_looks", __doc__, partial(measure, more=LOOKS), repetitions=36)

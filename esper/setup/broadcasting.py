"""Refuses a task if torch warns that its loss broadcasts an output and a target of different shapes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from esper.errors import causes, text_of
from esper.tolaria.loss import broadcast_refused

WARNED = r"Using a target size .* that is different to the input size .* due to broadcasting"
"""Pattern of the warning of torch's losses, such as `mse_loss`, `l1_loss` and `huber_loss`."""

_SIZES = re.compile(r"torch\.Size\((\[[^]]*\])\)")
"""The two shapes in that warning. The first is the shape of the target, the second the shape of the model's output."""


@contextmanager
def broadcasts_refused() -> Iterator[None]:
    """Within the block, a loss of torch that broadcasts raises an error.

    Raises:
        TaskError: a loss of torch broadcasts. The error names both shapes.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=WARNED, category=UserWarning)
        try:
            yield
        except Exception as error:
            warned = next((one for one in causes(error) if isinstance(one, UserWarning)), None)
            sizes = _SIZES.findall(text_of(warned)) if warned and re.match(WARNED, text_of(warned)) else []
            if len(sizes) != 2:
                raise
            target, output = sizes
            raise broadcast_refused(output, target) from warned

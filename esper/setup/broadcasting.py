"""Refuses a task whose loss got an output and a target of different shapes and warned that torch broadcasts them."""

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
"""The shapes in that warning: first that of the target, then that of the input, which is the output of the model."""


@contextmanager
def broadcasts_refused() -> Iterator[None]:
    """Within the block, a loss of torch that would warn of a broadcast raises the warning, and so gives no value.

    Raises:
        TaskError: a loss warned; the text names both shapes.
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

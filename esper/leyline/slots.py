"""What is known of a place in the host where seeds may grow. Measured by Kasmina's dry run, never guessed."""

from __future__ import annotations

from enum import StrEnum

from esper.leyline.base import Message


class Kind(StrEnum):
    """Layout of a slot's output. B batch, C channels, H height, W width, T time or position."""

    NCHW = "NCHW"
    NTC = "NTC"
    NC = "NC"


class SlotSpec(Message):
    """One slot as the dry run found it."""

    path: str
    kind: Kind
    shape: tuple[int, ...]
    """Shape of one sample's output, without the batch: (C, H, W), (T, C) or (C,)."""
    dtype: str
    device: str
    causal: bool
    """No output before position t moves when the input at t does. Always False outside NTC."""
    samples_independent: bool
    """No sample's output moves when another sample does, in training mode."""
    samples_independent_evaluated: bool = False
    """The same in evaluation mode, where a host with batch norm does not mix; False: not shown."""
    autocast: str | None = None
    """Type to which the host's own autocast casts where the slot is called; None: there is none."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Has one sample's output this layout and as many channels? Lengths, heights and widths may vary by batch."""
        channel = 0 if self.kind is Kind.NCHW else -1
        return len(shape) == len(self.shape) and shape[channel] == self.shape[channel]

"""Properties of the modules of the host at which seeds may grow, as Kasmina's dry run measured them."""

from __future__ import annotations

from enum import StrEnum

from esper.leyline.base import Message


class Kind(StrEnum):
    """Layout of a slot's output. B batch, C channels, H height, W width, T time or position."""

    NCHW = "NCHW"
    NTC = "NTC"
    NC = "NC"


class SlotSpec(Message):
    """One slot, as measured by the dry run."""

    path: str
    kind: Kind
    shape: tuple[int, ...]
    """Shape of one sample's output, without the batch: (C, H, W), (T, C) or (C,)."""
    dtype: str
    device: str
    causal: bool
    """True if the input at position t changes no output before t. Always False for other kinds than NTC."""
    samples_independent: bool
    """True if, in training mode, no sample changes the output of another."""
    samples_independent_evaluated: bool = False
    """True if, in evaluation mode, no sample changes the output of another (batch norm mixes no samples then). False:
    not measured, or not independent.
    """
    autocast: str | None = None
    """Type of the host's autocast around the call of the slot. None: no autocast."""

    @property
    def channels(self) -> int:
        """Number of channels of the slot's output."""
        return self.shape[self._channel]

    @property
    def _channel(self) -> int:
        """Index of the channels in the shape of one sample's output."""
        return 0 if self.kind is Kind.NCHW else -1

    def expected(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that a sample's output should have: the slot's layout and number of channels, and the other
        sizes of `shape`.

        Args:
            shape: The shape that one sample's output had. If it has another number of dimensions, the slot's own sizes
            are used.
        """
        if len(shape) != len(self.shape):
            return self.shape
        sizes = list(shape)
        sizes[self._channel] = self.channels
        return tuple(sizes)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether one sample's output has this layout and as many channels. Lengths, heights and widths may vary."""
        return shape == self.expected(shape)

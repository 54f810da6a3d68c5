"""Slots: modules of the host at which seeds may grow. Kasmina's dry run measures their properties."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from esper.leyline.base import GrownMessage, PublicMessage


class Kind(StrEnum):
    """Layout of a slot's output: one letter for each dimension. N batch, C channels, H height, W width, T time or
    position.
    """

    NCHW = "NCHW"
    NTC = "NTC"
    NCT = "NCT"
    NC = "NC"

    @property
    def channel(self) -> int:
        """Index of the channels in the shape of one sample."""
        return self.index("C") - 1

    @property
    def time(self) -> int | None:
        """Index of the time in the shape of one sample. None: the kind has no time."""
        return self.index("T") - 1 if "T" in self else None


class SlotSpec(PublicMessage, GrownMessage):
    """One slot, as measured by the dry run."""

    LATER: ClassVar = frozenset({"padding"})

    path: str
    kind: Kind
    shape: tuple[int, ...]
    """Shape of one sample's output, without the batch: (C, H, W), (T, C), (C, T) or (C,)."""
    dtype: str
    device: str
    causal: bool
    """True if the input at position t changes no output before t. False for every kind without time."""
    samples_independent: bool
    """True if, in training mode, no sample changes the output of another."""
    samples_independent_evaluated: bool = False
    """True if, in evaluation mode, no sample changes the output of another. False: not independent, or not measured."""
    autocast: str | None = None
    """Type of the host's autocast when the slot is called. None: autocast is off."""
    padding: str | None = None
    """Name of the argument by which the host gives the slot's module a padding mask. None: it gives none whose form is
    known (`esper.kasmina.host.padding_masks`), or the kind is not NTC."""

    @property
    def channels(self) -> int:
        """Number of channels of the slot's output."""
        return self.shape[self.kind.channel]

    @property
    def per_channel(self) -> tuple[int, ...]:
        """Shape of a value per channel that broadcasts over one sample's output: (C, 1, 1), (C, 1) or (C,)."""
        return (self.channels, *[1] * len(self.shape[self.kind.channel + 1 :]))

    def expected(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that one sample's output should have. It has the layout and the number of channels of the
        slot, and the other sizes of `shape`.

        Args:
            shape: The shape that one sample's output had. If it has another number of dimensions than the slot, the
                slot's own shape is returned.
        """
        if len(shape) != len(self.shape):
            return self.shape
        sizes = list(shape)
        sizes[self.kind.channel] = self.channels
        return tuple(sizes)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether one sample's output has this layout and number of channels. Lengths, heights and widths may
        vary."""
        return shape == self.expected(shape)

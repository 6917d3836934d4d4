"""What draws of a whole posterior are made from: a mixture, and what is drawn given it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from elbowroom.density.conditional import Conditional, Split
from elbowroom.density.density import Density
from elbowroom.density.mixtures import Mixture


@dataclass(frozen=True)
class Proposal:
    """What draws of the whole unconstrained vector are made from.

    Attributes:
        mixture: Of all coordinates, or of those that are drawn first.
        blocks: Indices of the others, (blocks, k); None if there are none.
        mean: Where the search for the blocks' conditional mode begins, (D,); see `Conditional`.
        slope: How that place moves, (blocks · k, S).
    """

    mixture: Mixture
    blocks: np.ndarray | None = None
    mean: np.ndarray | None = None
    slope: np.ndarray | None = None

    def conditional(self, density: Density) -> Conditional | None:
        """The blocks given the other coordinates, if they are drawn so."""
        if self.blocks is None or self.mean is None:
            return None
        shared = np.setdiff1d(np.arange(len(self.mean)), self.blocks)
        return Conditional(density, Split(shared, self.blocks), self.mean, self.slope)

    def arrays(self) -> dict[str, np.ndarray]:
        """The proposal as named arrays."""
        found = {**vars(self.mixture), **vars(self)}
        return {
            name: np.asarray(value)
            for name, value in found.items()
            if name != "mixture" and value is not None
        }

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Proposal":
        """The proposal of named arrays."""
        mixture = Mixture(
            arrays["shares"], arrays["means"], arrays["factors"], float(arrays["freedom"])
        )
        return cls(mixture, *(arrays.get(name) for name in ("blocks", "mean", "slope")))

    @property
    def description(self) -> str | None:
        """How the coordinates were drawn, where it was not all of them together."""
        if self.blocks is None or self.mean is None:
            return None
        return (
            f"{self.blocks.size} of the {len(self.mean)} coordinates were drawn from their "
            "conditional distributions, given the others."
        )

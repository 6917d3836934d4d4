"""What an optimiser passed through: averages of its iterates, and whether they are stationary."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elbowroom.engines.svi.stepping import FlatParameters


@dataclass(frozen=True)
class IterateWindow:
    """How iterates are kept, and when their window is stationary."""

    block: int = 25
    """Steps of a block at first. Each time there are too many, blocks are joined in pairs."""
    blocks: int = 32
    """Blocks that are kept."""
    fewest_blocks: int = 8
    """Blocks of the shortest window."""
    stationary: float = 1.1
    """R-hat, of the parameters' mean ratio of variances, below which a window is stationary."""
    drifting: float = 1.7
    """R-hat of one parameter above which it is not; that of a constant drift is 2.6."""
    watched: int = 4096
    """Parameters whose spread is kept; of more, as many evenly spaced ones."""
    many: int = 100_000
    """Parameters for which every step is taken in. For more it is one step in two, or in up to
    five: successive steps are close, so the mean hardly changes."""


ITERATES = IterateWindow()


class Iterates:
    """The iterates of the parameters at one learning rate, as means of blocks of steps.

    A window of them is stationary if R-hat of its two halves, taken as chains, is below 1.1
    (Welandawe, Andersen, Vehtari and Huggins, 2024, "A framework for improving the reliability of
    black-box variational inference"). Its mean has a smaller error than the last of them (Polyak
    and Juditsky, 1992, "Acceleration of stochastic approximation by averaging").

    Attributes:
        means: Of each block, one vector (P,) for each of the parameters' vectors.
        variances: Of each block, of the watched parameters, (W,).
        length: Steps of each block.

    Args:
        parameters: That are optimised.
    """

    def __init__(self, parameters: FlatParameters) -> None:
        self._parameters = parameters
        spaced = max(1, -(-parameters.count // ITERATES.watched))
        self._watched = [
            slice(None, None, spaced) if spaced > 1 else slice(None) for _ in parameters.vectors
        ]
        self._every = min(5, 1 + parameters.count // ITERATES.many)
        self.restart()

    def restart(self) -> None:
        """Forgets them."""
        self.means: list[list[Tensor]] = []
        self.variances: list[list[Tensor]] = []
        self.length = ITERATES.block
        self._begin()

    def _begin(self) -> None:
        self._count = 0
        vectors = [vector.detach() for vector in self._parameters.vectors]
        self._means = [vector.clone() for vector in vectors]
        # Deviations from where the block begins, whose squares lose no digits.
        self._origin = [
            vector[part].clone() for vector, part in zip(vectors, self._watched, strict=True)
        ]
        self._squares = [torch.zeros_like(origin) for origin in self._origin]

    @property
    def steps(self) -> int:
        """How many whole blocks hold."""
        return len(self.means) * self.length

    def add(self) -> None:
        """Takes in the parameters as they are now."""
        self._count += 1
        if self._count % self._every == 0:
            self._take_in(self._count // self._every)
        if self._count == self.length:
            self._close()

    @property
    def room(self) -> int:
        """The steps that are left of a block."""
        return self.length - self._count

    def add_steps(self, count: int, start: Tensor, total: Tensor, squares: Tensor) -> None:
        """Takes in some steps at once, no more than there is room for, of one vector.

        Args:
            count: How many.
            start: Some point, (P,).
            total: The sum of their deviations from it, (P,).
            squares: The sum of the squares of those, (P,).
        """
        part = self._watched[0]
        self._count += count
        self._means[0].lerp_(start + total / count, count / self._count)
        shift = start[part] - self._origin[0]
        self._squares[0] += squares[part] + 2 * shift * total[part] + count * shift.square()
        if self._count == self.length:
            self._close()

    def _take_in(self, count: int) -> None:
        for vector, mean, origin, squares, part in zip(
            self._parameters.vectors, self._means, self._origin, self._squares, self._watched,
            strict=True,
        ):  # fmt: skip
            mean.lerp_(vector.detach(), 1 / count)
            deviation = vector.detach()[part] - origin
            squares.addcmul_(deviation, deviation)

    def _close(self) -> None:
        count = self._count // self._every
        self.means.append(self._means)
        self.variances.append(
            [
                squares / count - (mean[part] - origin).square()
                for squares, mean, origin, part in zip(
                    self._squares, self._means, self._origin, self._watched, strict=True
                )
            ]
        )
        if len(self.means) == ITERATES.blocks:
            pairs = range(0, ITERATES.blocks, 2)
            joined = [self._joined(i) for i in pairs]
            self.means = [mean for mean, _ in joined]
            self.variances = [variance for _, variance in joined]
            self.length *= 2
        self._begin()

    def _joined(self, first: int) -> tuple[list[Tensor], list[Tensor]]:
        means, variances = [], []
        for one, two, v, w, part in zip(
            self.means[first], self.means[first + 1],
            self.variances[first], self.variances[first + 1], self._watched, strict=True,
        ):  # fmt: skip
            means.append((one + two) / 2)
            variances.append((v + w) / 2 + ((one - two)[part] / 2).square())
        return means, variances

    def window(self) -> int | None:
        """The blocks, from the last one back, that are stationary; None if they are not.

        Of windows from the shortest to 95% of all, the one whose R-hat is the lowest. It is that
        of the mean of the parameters' ratios, not the largest, which grows by chance with their
        number; that one has a limit of its own.
        """
        longest = int(0.95 * len(self.means))
        if longest < ITERATES.fewest_blocks:
            return None
        means = torch.stack([self._flat(each) for each in self.means])  # (blocks, W)
        variances = torch.stack([torch.cat(each) for each in self.variances])
        best, lowest = None, ITERATES.stationary
        for blocks in range(ITERATES.fewest_blocks, longest + 1, 2):
            ratios = _ratios(means[-blocks:], variances[-blocks:])
            r_hat = float((1 + ratios.mean()).sqrt())
            # One parameter in a thousand may be above by chance.
            highest = float((1 + ratios.kthvalue(len(ratios) - len(ratios) // 1000)[0]).sqrt())
            if r_hat < lowest and highest < ITERATES.drifting:
                best, lowest = blocks, r_hat
        return best

    def _flat(self, vectors: list[Tensor]) -> Tensor:
        return torch.cat([v[part] for v, part in zip(vectors, self._watched, strict=True)])

    def average(self, first: int, last: int | None = None) -> list[Tensor]:
        """The mean of some blocks, as a slice of them."""
        chosen = self.means[first:last]
        return [torch.stack(parts).mean(0) for parts in zip(*chosen, strict=True)]

    def state(self) -> dict[str, Any]:
        """All that it holds."""
        return {
            "means": self.means, "variances": self.variances, "length": self.length,
            "count": self._count, "origin": self._origin, "latest": self._means,
            "squares": self._squares,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Takes in what `state` gave."""
        self.means, self.variances = state["means"], state["variances"]
        self.length, self._count = state["length"], state["count"]
        self._origin, self._means = state["origin"], state["latest"]
        self._squares = state["squares"]


def _ratios(means: Tensor, variances: Tensor) -> Tensor:
    """R-hat squared, less one, of the halves of a window, taken as chains, (W,).

    Args:
        means: Of the blocks, (blocks, W).
        variances: Within them, (blocks, W).
    """
    half = len(means) // 2
    first, second = means[:half], means[half:]
    within = variances.mean(0) + (first.var(0, correction=0) + second.var(0, correction=0)) / 2
    between = (first.mean(0) - second.mean(0)).square() / 2
    return torch.where(between > 0, between / within, 0.0)  # what stays where it is has none

"""Which rows a step of the optimiser takes."""

from typing import Any

import torch
from torch import Tensor

FEWEST = 20
"""Rows of a table below which none is held out."""
MOST = 10_000
"""Rows that are held out at most."""


def held_out_rows(rows: int, fraction: float) -> Tensor | None:
    """Rows picked at random to be held out, in order; None if they are too few."""
    count = min(round(rows * fraction), MOST)
    if rows < FEWEST or count == 0:
        return None
    return torch.randperm(rows)[:count].sort().values


class Minibatches:
    """Rows without replacement, shuffled again for each epoch; a last incomplete batch is left.

    Args:
        rows: Of the table.
        size: Of a minibatch; all rows but those held out by default.
        held: Rows that are left out.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> batches = Minibatches(5, 2, held=torch.tensor([3]))
        >>> len(batches), sorted(torch.cat([next(batches), next(batches)]).tolist())
        (2, [0, 1, 2, 4])
    """

    def __init__(self, rows: int, size: int | None, held: Tensor | None = None) -> None:
        self.count, self.rows = rows, None
        if held is not None:
            kept = torch.ones(rows, dtype=torch.bool)
            kept[held] = False
            self.rows = kept.nonzero()[:, 0]
            self.count = len(self.rows)
        self.size = self.count if size is None else min(size, self.count)
        self._order, self._next = torch.zeros(0, dtype=torch.int64), len(self)
        self._given_back: list[Tensor] = []

    def _chosen(self, numbers: Tensor) -> Tensor:
        """The rows of some numbers, counted without those held out."""
        return numbers if self.rows is None else self.rows[numbers]

    def __len__(self) -> int:
        """The minibatches of an epoch."""
        return self.count // self.size

    def __next__(self) -> Tensor:
        """The rows of the next one."""
        if self._given_back:
            return self._given_back.pop(0)
        if self._next == len(self):
            self._order, self._next = self._chosen(torch.randperm(self.count)), 0
        self._next += 1
        return self._order[(self._next - 1) * self.size : self._next * self.size]

    def give_back(self, batches: list[Tensor]) -> None:
        """Puts the last ones back, to be the next ones again."""
        self._given_back = [*batches, *self._given_back]

    def draw(self) -> Tensor:
        """The rows of one that is of no epoch, and may hold a row twice."""
        return self._chosen(torch.randint(self.count, (self.size,)))

    def state(self) -> dict[str, Any]:
        """Where it is."""
        return {"order": self._order, "next": self._next, "given_back": self._given_back}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes in what `state` gave."""
        self._order, self._next = state["order"], state["next"]
        self._given_back = state["given_back"]

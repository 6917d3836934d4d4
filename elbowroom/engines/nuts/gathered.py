"""A log density that several chains in threads ask for, each as if it were alone."""

import threading
import time

import numpy as np

from elbowroom.density.density import Density
from elbowroom.sizes import SIZES

PATIENCE = 0.3
"""For how long chains that ask for a gradient wait for the others, in evaluations' time."""


class Gathered:
    """Log density and gradient for chains in threads, taken for all that wait in one call.

    One chain at a time evaluates, for itself and for all that wait by then; before that it gives
    the missing ones a part of an evaluation's time to come. None waits longer for a chain that
    does not come, so that chains may end when they like. Turns have to be taken in any case: the
    state of Pyro belongs to the process.

    Every chain has its row in a batch of constant size. The rounding of batched operations depends
    on the size, so that otherwise a chain's draws would depend on who else was waiting. Where a
    batch does not pay, each chain is a batch of its own.
    """

    def __init__(self, density: Density, starts: np.ndarray, length: int) -> None:
        self.density = density
        self.rows = starts.copy()  # (chains, D), where each chain has asked last
        self.length, self.left = length, np.full(len(starts), length)  # draws yet to be made
        narrow = len(starts) * density.width <= SIZES.cache
        self.together = narrow and density.how != "one by one"
        self.waiting: set[int] = set()
        self.answers: dict[int, tuple[float, np.ndarray]] = {}
        self.changed = threading.Condition()
        self.busy, self.closed, self.seconds = False, False, 0.0
        self.failure: Exception | None = None

    def drawn(self, chain: int) -> None:
        """A chain has made a draw; after its last one nobody waits for it."""
        with self.changed:
            self.left[chain] -= 1
            if self._complete():
                self.changed.notify_all()

    def close(self) -> np.ndarray:
        """Chains that are to end are given a standard Normal density, which costs nothing.

        Returns:
            The draws that each chain has made, (chains,); later ones are not of this density.
        """
        with self.changed:
            self.closed = True
            return self.length - self.left

    def __call__(self, chain: int, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Log density and gradient at a point, (D,), for one of the chains.

        The log density is minus infinity if they are not finite: nutpie counts a divergence.
        """
        if self.together:
            value, gradient = self._in_company(chain, point)
        else:
            with self.changed:
                ((value, gradient),) = self._evaluate(point[None])
        return (value if np.isfinite(gradient).all() else -np.inf), gradient

    def _in_company(self, chain: int, point: np.ndarray) -> tuple[float, np.ndarray]:
        with self.changed:
            self.rows[chain] = point
            self.waiting.add(chain)
            if self._complete():
                self.changed.notify_all()
            self.changed.wait_for(lambda: chain in self.answers or not self.busy)
            if chain in self.answers:
                return self.answers.pop(chain)
            self.busy = True
            self.changed.wait_for(self._complete, timeout=PATIENCE * self.seconds)
            asked, self.waiting = self.waiting, set()
            rows = self.rows.copy()
        found = self._evaluate(rows)
        with self.changed:
            self.answers.update({each: found[each] for each in asked})
            self.busy = False
            self.changed.notify_all()
            return self.answers.pop(chain)

    def _complete(self) -> bool:
        """Whether every chain that is still drawing waits."""
        return len(self.waiting) >= int(np.count_nonzero(self.left > 0))

    def _evaluate(self, points: np.ndarray) -> list[tuple[float, np.ndarray]]:
        if not self.closed:
            began = time.perf_counter()
            try:
                values, gradients = self.density.value_and_gradient(points)
                self.seconds = time.perf_counter() - began
                return list(zip(values.tolist(), gradients, strict=True))
            except Exception as error:
                # In one of nutpie's threads it would print a trace of Rust: the caller raises it.
                self.failure, self.closed = error, True
        return [(-0.5 * float(point @ point), -point) for point in points]

"""A recording that becomes machine code once it has cost as much as that does."""

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elbowroom.recording.replay import Replay


@dataclass(frozen=True)
class Compiling:
    """When a recording is compiled."""

    operation: int = 600_000
    """Nanoseconds that it takes to compile an operation."""
    operations: int = 50_000
    """Beyond which a recording is replayed: to see whether they repeat takes long as well."""
    number: int = 1_000
    """The same of a number that it gives at a point."""
    numbers: int = 5_000_000
    """Of a point, beyond which a recording is replayed: its tensors are large enough."""
    call: int = 3_000
    """Nanoseconds of an operation beside those of its numbers, about one each."""
    agreement: float = 1e-9
    """The largest relative difference between the compiled and the recorded results."""


COMPILING = Compiling()


class SwitchingReplay:
    """A recording for batches, replayed at first and compiled when that pays.

    What it has cost is counted in calls and numbers, not in seconds: the same calls give the same
    bits.

    Args:
        replay: The recording.
        points: Two points, (2, D), at which it has been run.

    Example:
        >>> from elbowroom.recording.record import record
        >>> points = torch.linspace(-1.0, 1.0, 10, dtype=torch.float64).reshape(5, 2)
        >>> replay = record(lambda u: [u.exp().sum(-1), u.exp()], points)
        >>> switching = SwitchingReplay(replay, points[:2])
        >>> switching(points[:1])
        [tensor([...], dtype=torch.float64), tensor([[0.3679, 0.4594]], dtype=torch.float64)]
    """

    def __init__(self, replay: Replay, points: Tensor) -> None:
        self.replay, self._points = replay, points
        self.kernel: Any = None
        operations = len(replay.needed(replay.results))
        self._call = COMPILING.call * operations
        self._left = COMPILING.operation * operations + COMPILING.number * replay.numbers
        large = operations > COMPILING.operations or replay.numbers > COMPILING.numbers
        self._waits = not large and importlib.util.find_spec("llvmlite") is not None

    def __call__(self, points: Tensor, outputs: tuple[int, ...] | None = None) -> list[Tensor]:
        """The results at points, (n, D), or those of the numbers given."""
        if self.kernel is not None and len(points) >= self.kernel.least:
            found = self.kernel(points)
            return found if outputs is None else [found[each] for each in outputs]
        if self._waits:
            self.expect(1, len(points))
            if self._left <= 0:
                self._waits = False
                self._compile(points)
        return list(self.replay(points, outputs=outputs))

    def expect(self, calls: int, points: int) -> None:
        """Takes so many calls, each at so many points, for made: those that are sure to come."""
        self._left -= calls * (self._call + self.replay.numbers * points)

    def _compile(self, points: Tensor) -> None:
        """Compiles it, if it can be, and gives the same results at points."""
        # It fails in as many ways as there are operations, which then are replayed.
        try:
            from elbowroom.recording.kernel.kernel import compiled

            kernel = compiled(self.replay, self._points)
            pairs = zip(kernel(points), self.replay(points), strict=True)
            if all(_agree(*pair) for pair in pairs):
                self.kernel = kernel
        except Exception:
            return


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether results are the same but for rounding, in the rows where they are finite."""
    rows = len(expected)
    one, two = found.reshape(rows, -1), expected.reshape(rows, -1)
    if not torch.equal(one.isfinite().all(1), two.isfinite().all(1)):
        return False
    kept = two.isfinite().all(1)
    near = COMPILING.agreement
    scale = two[kept].abs().amax() if bool(kept.any()) and two.shape[1] else torch.zeros(())
    return torch.allclose(one[kept], two[kept], rtol=near, atol=near * (1 + float(scale)))

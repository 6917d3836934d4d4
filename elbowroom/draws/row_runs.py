"""Runs of a guide and its model at many draws of many rows, in parts that stay in a core's cache.

The rows are independent given the point parameters, so a part may take all draws of a few rows: the
guide's networks then run once for these, and the model's decoder as often as there are draws. One
part is recorded, and replayed for the others. What cannot be recorded is batched by `vmap` over
larger parts, and where rows depend on each other, as in a normalisation over a minibatch, a part
has all rows.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from elbowroom.guides.space import FixedRows, LatentSpace, Plate, of_each_row, sample_sites
from elbowroom.problem.mapping import map_draws, vmapped
from elbowroom.recording.record import alike, record_agreeing
from elbowroom.recording.replay import BranchError
from elbowroom.sizes import SIZES

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """The sizes of parts."""

    cached: int = 200_000
    """Numbers of one operation of a recorded part: a megabyte or less, as a core's cache holds.
    Smaller parts spend their time between operations, larger ones waiting for memory."""
    recorded: int = 8
    """Parts from which recording one, which costs as much as a few, is worth while."""
    batched: int = SIZES.memory // 20
    """Numbers of one operation of a part that is batched, of which it may hold twenty."""


PARTS = Parts()


@dataclass(frozen=True)
class Part:
    """Some draws of some rows.

    Attributes:
        draws: Which.
        rows: Which.
        values: Each (draws, rows, ...), or (draws,) of what belongs to no row.
    """

    draws: slice
    rows: slice
    values: Values


@dataclass(frozen=True)
class RowRuns:
    """A guide and its model, to be run for some of their rows.

    Attributes:
        model: The Pyro model.
        guide: The fitted guide, with its parameters in the active store.
        arguments: Keyword arguments of both.
        space: The model's latent space.
        plate: Of the rows.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    arguments: Mapping[str, Any]
    space: LatentSpace
    plate: Plate

    @property
    def shared(self) -> set[str]:
        """The latent sites that belong to no row."""
        return {site.name for site in self.space.sites} - set(self.space.local)

    def parts(
        self, of_draw: Callable[[Any, Mapping[str, Any]], Values], count: int
    ) -> Iterator[Part]:
        """What a function makes of each draw of the guide, part by part.

        Args:
            of_draw: Of a trace of the guide, and of the arguments that it was run with, to tensors
                whose first dim is that of the rows.
            count: How many draws of each row.
        """
        run = _Run(self, of_draw)
        chunk, size = self._recordable(count)
        many = -(-count // chunk) * -(-self.plate.size // size)
        apart = size == self.plate.size or self._apart()
        function: Callable[[Tensor], Values] | None = None
        # A GPU waits for operations so seldom that recording them is not worth while.
        if apart and many >= PARTS.recorded and self._on_cpu:
            function = run.recorded(chunk, size)
        if function is None:
            chunk, size = self._batchable(count, apart)
            function = run.batched(chunk)
        for rows in _slices(self.plate.size, size):
            # Every part has the same size: the last one begins among the rows before it.
            begin = max(0, min(rows.start, self.plate.size - size))
            index = torch.arange(begin, rows.stop, device=self._device)
            for draws in _slices(count, chunk):
                found = function(index)
                kept = {
                    name: value[: draws.stop - draws.start]
                    if value.dim() == 1 or name in self.shared
                    else value[: draws.stop - draws.start, rows.start - begin :]
                    for name, value in found.items()
                }
                yield Part(draws, rows, kept)

    @property
    def _device(self) -> torch.device | None:
        found = (value.device for value in self.arguments.values() if isinstance(value, Tensor))
        return next(found, None)

    @property
    def width(self) -> int:
        """Numbers that a row has in the arguments, and its latents."""
        given = [value.numel() for value in self.arguments.values() if isinstance(value, Tensor)]
        latents = 0
        if self.space.subsampled is not None:
            latents = self.space.dimension // self.space.subsampled.size
        return max(1, sum(given) // self.plate.size + latents)

    @property
    def _on_cpu(self) -> bool:
        return self._device is None or self._device.type == "cpu"

    def _recordable(self, count: int) -> tuple[int, int]:
        """Draws and rows of a part that is recorded: rather many draws of a few rows."""
        most = max(1, PARTS.cached // self.width)
        chunk = -(-count // -(-count // most))  # of about the same size
        return chunk, min(self.plate.size, max(1, most // chunk))

    def _batchable(self, count: int, apart: bool) -> tuple[int, int]:
        """The same of one that is not: rather many rows, all of them if they are not apart."""
        most = max(1, PARTS.batched // self.width)
        size = min(self.plate.size, most) if apart else self.plate.size
        return min(count, max(1, most // size)), size

    def _apart(self) -> bool:
        """Whether the densities of some rows are the same without the other ones."""
        size = self.plate.size
        if size == 1:
            return True
        few = torch.arange(size // 2, min(size, size // 2 + 3), device=self._device)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            whole = poutine.trace(self.guide).get_trace(**self.arguments)
            scored = poutine.trace(poutine.replay(self.model, trace=whole)).get_trace(
                **self.arguments
            )
            own = {
                name: node["value"].index_select(len(node["fn"].batch_shape) + self.plate.dim, few)
                for name, node in sample_sites(whole)
                if name in self.space.local
            }
            given = {**self.arguments, "batch_size": len(few)}
            with FixedRows({self.plate.name: few}):
                alone = [
                    of_each_row(poutine.trace(poutine.condition(each, own)).get_trace(**given),
                                self.plate)
                    for each in (self.guide, self.model)
                ]  # fmt: skip
            together = [of_each_row(trace, self.plate)[few] for trace in (whole, scored)]
        return all(alike(one, two) for one, two in zip(alone, together, strict=True))


@dataclass(frozen=True)
class _Run:
    """Some draws of the rows of a part."""

    runs: RowRuns
    of_draw: Callable[[Any, Mapping[str, Any]], Values]

    def _once(self, rows: Tensor) -> Callable[[Values], Values]:
        given = {**self.runs.arguments, "batch_size": len(rows)}

        def once(_: Values) -> Values:
            with FixedRows({self.runs.plate.name: rows}):
                drawn = poutine.trace(self.runs.guide).get_trace(**given)
                return self.of_draw(drawn, given)

        return once

    def batched(self, chunk: int) -> Callable[[Tensor], Values]:
        """Batched, or one by one where that is impossible."""

        def function(rows: Tensor) -> Values:
            with torch.no_grad():
                found: Values = map_draws(self._once(rows), {}, chunk, chunk)
            return found

        return function

    def recorded(self, chunk: int, size: int) -> Callable[[Tensor], Values] | None:
        """A recording of parts of one size; None if there is none that gives the same numbers."""
        names: list[str] = []

        def whole(rows: Tensor) -> list[Tensor]:
            with torch.no_grad():
                found = vmapped(self._once(rows), {}, chunk, chunk)
            names[:] = found
            return list(found.values())

        runs, last = self.runs, self.runs.plate.size - size
        tried = (0, last, last // 2)
        first, second, third = (
            torch.arange(begin, begin + size, device=runs._device) for begin in tried
        )
        replay = record_agreeing(whole, [[first], [second], [third]], [runs.model, runs.guide])
        if replay is None:
            return None

        def function(rows: Tensor) -> Values:
            state = torch.random.get_rng_state() if replay.branches else None
            try:
                values = replay(rows)
            except BranchError:  # this part is run as it stands, with the same noise
                if state is not None:
                    torch.random.set_rng_state(state)
                values = whole(rows)
            return dict(zip(names, values, strict=True))

        return function


def _slices(count: int, size: int) -> Iterator[slice]:
    """Consecutive ones, of which the last may be shorter."""
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))

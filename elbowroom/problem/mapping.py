"""A function of each draw, in one batched call where its code allows."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from elbowroom import budget
from elbowroom.problem.batchable import Batchable
from elbowroom.recording.record import BATCHES, alike, record
from elbowroom.sizes import SIZES

CHUNKS = 4
"""Batched calls of a function, beyond which it is recorded: that takes as long as a few of them."""

FEW = 10
"""Draws that are mapped however long they take."""


def map_draws(
    function: Callable[[dict[str, Tensor]], Any],
    draws: Mapping[str, Tensor],
    chunk: int = 100,
    count: int | None = None,
    least: int | None = None,
) -> Any:
    """`function` of each draw: batched by `vmap` where its code allows, one by one elsewhere.

    Args:
        function: Of a dict of tensors without the draws' dim, to a tensor, or to tuples and dicts
            of tensors.
        draws: Each (draws, ...); empty if the function needs none, such as one that draws itself.
        chunk: Draws in one batched call, for the memory's sake.
        count: How many draws; needed only where `draws` is empty.
        least: How many draws there are at least where the time is over; by default all. If they
            take far longer than that there are fewer still.

    Returns:
        The same as `function`, with a leading dim for the draws.
    """
    count = len(next(iter(draws.values()))) if count is None else count
    state = torch.get_rng_state()
    try:
        if least is None:
            return vmapped(function, draws, chunk, count)
        # What cannot be batched fails at few draws, and not after those of seconds.
        few = min(FEW, count)
        vmapped(function, {name: value[:few] for name, value in draws.items()}, chunk, few)
        torch.set_rng_state(state)
        parts = []
        for begin in range(0, count, chunk):
            if _ends(begin, least):
                break
            end = min(begin + chunk, count)
            some = {name: value[begin:end] for name, value in draws.items()}
            parts.append(vmapped(function, some, chunk, end - begin))
        return each_tensor(lambda *each: torch.cat(each), *parts)
    except Exception:
        # It fails in as many ways as there are models, which then are run draw by draw.
        torch.set_rng_state(state)
    results = []
    for i in range(count):
        if least is not None and _ends(i, least):
            break
        results.append(function({name: value[i] for name, value in draws.items()}))
    return each_tensor(lambda *each: torch.stack(each), *results)


def _ends(made: int, least: int) -> bool:
    """Whether so many draws have to do, because the time is over."""
    return (made >= least and budget.over()) or (made >= FEW and budget.exceeded())


def map_draws_recorded(
    function: Callable[[dict[str, Tensor]], Any],
    draws: Mapping[str, Tensor],
    chunk: int = 100,
    count: int | None = None,
) -> Any:
    """The same for a function that draws no random numbers, recorded where there are many draws.

    A recording leaves out all that the results do not need, such as the densities of a model of
    which only the deterministic sites are wanted.

    Args:
        function: See `map_draws`.
        draws: See `map_draws`.
        chunk: See `map_draws`.
        count: See `map_draws`.

    Example:
        >>> draws = {"x": torch.arange(1000.0)}
        >>> map_draws_recorded(lambda values: {"twice": 2 * values["x"]}, draws)["twice"].sum()
        tensor(999000.)
    """
    batched = None
    if draws and len(next(iter(draws.values()))) > CHUNKS * chunk:
        # It fails in as many ways as there are models, which then are run.
        with suppress(Exception):
            batched = _recorded(function, draws)
    if batched is None:
        return map_draws(function, draws, chunk, count)
    # Without the densities of rows, far more draws fit into the cache.
    chunk = max(chunk, SIZES.cache // batched.width)
    parts = []
    for points in _flat(draws).split(chunk):
        budget.check()
        parts.append(batched(points))
    return each_tensor(lambda *each: torch.cat(each), *parts)


def _flat(draws: Mapping[str, Tensor]) -> Tensor:
    """Draws of all sites side by side, (draws, numbers)."""
    return torch.cat([values.reshape(len(values), -1) for values in draws.values()], dim=1)


def _recorded(
    function: Callable[[dict[str, Tensor]], Any], draws: Mapping[str, Tensor]
) -> "_Replayed | None":
    """A function of each of the draws side by side; None where a recording gives other results."""
    kinds = {values.dtype for values in draws.values()}
    if len(kinds) > 1 or not next(iter(kinds)).is_floating_point:
        return None
    sizes = [values[0].numel() for values in draws.values()]
    shapes = {name: values.shape[1:] for name, values in draws.items()}
    form: Any = None

    def batched(points: Tensor) -> list[Tensor]:
        nonlocal form
        parts = zip(shapes.items(), points.split(sizes, dim=1), strict=True)
        some = {name: part.reshape(len(points), *shape) for (name, shape), part in parts}
        form = vmapped(function, some, len(points), len(points))
        return list(_tensors(form))

    points = _flat(draws)
    first = sum(BATCHES)
    replay, probes = record(batched, points[:first]), points[first : first + BATCHES[0]]
    if not all(map(_agree, replay(probes), batched(probes))):
        return None

    return _Replayed(replay, form, max(len(points[0]), replay.widest))


@dataclass(frozen=True)
class _Replayed:
    """A recording of draws side by side.

    Attributes:
        replay: The recording.
        form: Tuples and dicts of tensors, as the results are.
        width: The most numbers of a draw at once.
    """

    replay: Callable[[Tensor], Any]
    form: Any
    width: int

    def __call__(self, points: Tensor) -> Any:
        results = iter(self.replay(points))
        return each_tensor(lambda _: next(results), self.form)


def _agree(found: Tensor, expected: Tensor) -> bool:
    return alike(found, expected) if expected.is_floating_point() else torch.equal(found, expected)


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Of tuples and dicts, in the order of `each_tensor`."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(each)


def vmapped(
    function: Callable[[dict[str, Tensor]], Any],
    draws: Mapping[str, Tensor],
    chunk: int,
    count: int,
) -> Any:
    """The same by `vmap` alone, which raises what it raises where the code does not allow it.

    Args:
        function: See `map_draws`.
        draws: See `map_draws`.
        chunk: See `map_draws`.
        count: How many draws.
    """

    def of_one(values: dict[str, Tensor], _: Tensor) -> Any:
        return function(values)

    numbers = torch.zeros(count)  # vmap needs something to batch
    with warnings.catch_warnings(), Batchable():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        warnings.filterwarnings("ignore", "An output with one or more", UserWarning)
        batched = vmap(of_one, randomness="different", chunk_size=chunk)
        return batched(dict(draws), numbers)


def each_tensor(function: Callable[..., Tensor], *trees: Any) -> Any:
    """`function` of the tensors that have the same place in tuples and dicts of the same form.

    Example:
        >>> each_tensor(torch.add, ({"a": torch.ones(())}, torch.zeros(())), ({"a": 2}, 3))
        ({'a': tensor(3.)}, tensor(3.))
    """
    first = trees[0]
    if isinstance(first, dict):
        return {name: each_tensor(function, *(tree[name] for tree in trees)) for name in first}
    if isinstance(first, tuple):
        return tuple(each_tensor(function, *parts) for parts in zip(*trees, strict=True))
    return function(*trees)

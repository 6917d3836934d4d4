"""A function of each draw, in one batched call where its code allows."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from elbowroom import budget
from elbowroom.problem.batchable import Batchable


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
        least: How many draws there are at least where the time is over; by default all.

    Returns:
        The same as `function`, with a leading dim for the draws.
    """
    count = len(next(iter(draws.values()))) if count is None else count
    state = torch.get_rng_state()
    try:
        if least is None or count <= chunk:
            return vmapped(function, draws, chunk, count)
        parts = []
        for begin in range(0, count, chunk):
            if begin >= least and budget.over():
                break
            end = min(begin + chunk, count)
            some = {name: value[begin:end] for name, value in draws.items()}
            parts.append(vmapped(function, some, chunk, end - begin))
        return each_tensor(lambda *each: torch.cat(each), *parts)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        torch.set_rng_state(state)
    results = []
    for i in range(count):
        if least is not None and i >= least and budget.over():
            break
        results.append(function({name: value[i] for name, value in draws.items()}))
    return each_tensor(lambda *each: torch.stack(each), *results)


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

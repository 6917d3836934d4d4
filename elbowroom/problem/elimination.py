"""Sums over discrete sites by variable elimination on log probabilities, plates included.

As of Obermeyer et al. (2019), "Tensor variable elimination for plated factor graphs"; chains of
sites are summed over by a filter, see `elbowroom.problem.chains`.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Any

import torch
from torch import Tensor

from elbowroom.errors import ModelError
from elbowroom.problem.chains import log_total


@dataclass
class Factor:
    """A log probability whose dims have names: plates' names, and ids of enumerated sites.

    Attributes:
        log_prob: One dim for each name.
        names: Of the dims; a plate's is a string, an enumerated site's an integer.
        sites: The sites whose log probability it holds.
        scale: What the log probability is multiplied by once nothing is left to sum over; its dims
            are plates.
    """

    log_prob: Tensor
    names: tuple[Any, ...]
    sites: frozenset[str]
    scale: "Factor | None" = None

    def summed_over(self, drop: set[Any]) -> "Factor":
        """The product over some plates."""
        dims = [i for i, name in enumerate(self.names) if name in drop]
        kept = tuple(name for name in self.names if name not in drop)
        return replace(
            self, log_prob=self.log_prob.sum(dims) if dims else self.log_prob, names=kept
        )

    def scaled(self) -> "Factor":
        """The same, multiplied by its scale.

        Raises:
            ModelError: If the scale differs within a plate that was multiplied over.
        """
        if self.scale is None:
            return self
        lost = set(self.scale.names) - set(self.names)
        if lost:
            raise ModelError(
                f"site '{min(self.sites)}': poutine.scale differs within plate "
                f"'{min(lost)}', whose members share a discrete site that is summed over; "
                "give one number."
            )
        return replace(self, log_prob=self.log_prob * aligned([self.scale], self.names), scale=None)


def aligned(factors: list[Factor], names: tuple[Any, ...]) -> Tensor:
    """The sum of factors, broadcast over the named dims."""
    total: Any = 0.0
    for factor in factors:
        order = [factor.names.index(name) for name in names if name in factor.names]
        shape = iter(factor.log_prob.permute(order).shape)
        view = [next(shape) if name in factor.names else 1 for name in names]
        total = total + factor.log_prob.permute(order).reshape(view)
    return total


def _common(factors: list[Factor]) -> tuple[frozenset[str], Factor | None, tuple[Any, ...]]:
    """The sites of factors that are multiplied, their scale, and their names."""
    names = tuple(dict.fromkeys(name for factor in factors for name in factor.names))
    sites = frozenset().union(*(factor.sites for factor in factors))
    scales = [factor.scale for factor in factors]
    if any(not _same(scales[0], scale) for scale in scales[1:]):
        raise ModelError(
            f"sites {', '.join(map(repr, sorted(sites)[:4]))} are summed over together, but "
            "poutine.scale multiplies them by different numbers; put one poutine.scale around all "
            "of them."
        )
    return sites, scales[0], names


def _same(first: Factor | None, second: Factor | None) -> bool:
    """Whether two scales are the same."""
    if first is second:
        return True
    one = Factor(torch.ones(()), (), frozenset())
    first, second = first or one, second or one
    if first.names != second.names:
        return False
    with suppress(RuntimeError):  # the numbers of a batch cannot be read; those of a point can
        return bool((first.log_prob == second.log_prob).all())
    return True


def eliminate(
    factors: list[Factor],
    plates_of: Mapping[int, frozenset[str]],
    joined: dict[int, Factor] | None = None,
) -> list[Factor]:
    """Sums enumerated sites out, the most deeply plated first.

    Args:
        factors: Of the model.
        plates_of: For the id of each enumerated site, the plates it lies in.
        joined: Filled with the product of factors that each site was summed out of, in the order
            of the sums, the site's dim the last one; chains are summed over one by one then.

    Returns:
        Factors whose dims are all plates.

    Raises:
        ModelError: If discrete sites lie in crossed plates, where no order of summing is right.
    """
    held, numbers = dict(enumerate(factors)), itertools.count(len(factors))
    touching: dict[int, dict[int, None]] = {index: {} for index in plates_of}
    for number, factor in held.items():
        for name in factor.names:
            if name in touching:
                touching[name][number] = None

    def rank(index: int) -> tuple[int, int, int]:
        """The deepest first; of those, the one whose joined factor has the fewest dims."""
        names = {name for number in touching[index] for name in held[number].names}
        return -len(plates_of[index]), len(names), index

    ranks = {index: rank(index) for index in plates_of}
    waiting = [*ranks.values()]
    heapify(waiting)
    while waiting:
        first = heappop(waiting)
        index = first[-1]
        if ranks.get(index) != first:  # another one by now, or summed over
            continue
        chain = [index]
        if joined is None:
            chain = _chain_from(index, held, touching, plates_of, ranks)
        for each in chain:
            del ranks[each]
        used = dict.fromkeys(i for each in chain for i in touching.pop(each))
        parts = [_within(held[i], index, plates_of, ranks) for i in used]
        changed = {name for i in used for name in held[i].names if name in ranks}
        for i in used:
            for name in held.pop(i).names:
                if name in ranks:
                    touching[name].pop(i, None)
        if joined is not None:
            sites, scale, every = _common(parts)
            names = (*(name for name in every if name != index), index)
            joined[index] = Factor(aligned(parts, names), names, sites, scale)
        number = next(numbers)
        held[number] = made = _summed_over(chain, parts)
        for name in made.names:
            if name in ranks:
                touching[name][number] = None
        for name in changed:
            ranks[name] = rank(name)
            heappush(waiting, ranks[name])
    return [*held.values()]


@dataclass(frozen=True)
class Chains:
    """Which discrete sites are summed over as a chain."""

    shortest: int = 8
    """Sites of a chain: fewer are summed over one by one."""
    hub: int = 4
    """Neighbours up to which a site may be one of a chain: one with more is beside it."""


CHAINS = Chains()


def _chain_from(
    index: int,
    held: Mapping[int, Factor],
    touching: Mapping[int, Mapping[int, None]],
    plates_of: Mapping[int, frozenset[str]],
    remaining: Collection[int],
) -> list[int]:
    """The sites that are a chain with one at its end, each sharing factors with its neighbours.

    They may all share factors with a site beside the chain, such as one that tells its kind.

    Args:
        index: Of the site.
        held: The factors, by their numbers.
        touching: For each site, the numbers of the factors that it is in.
        plates_of: For each site, the plates that it is in.
        remaining: The sites that are not summed over yet.

    Returns:
        Those sites in order; the site alone where these are few, or no chain.
    """

    def near(site: int) -> set[int]:
        names = {name for i in touching[site] for name in held[i].names if name in remaining}
        return names - {site}

    def beside(site: int) -> set[int]:
        return {other for other in near(site) if len(near(other)) <= CHAINS.hub}

    def form(site: int) -> tuple[int, frozenset[str]]:
        factor = held[next(iter(touching[site]))]
        return factor.log_prob.shape[factor.names.index(site)], plates_of[site]

    chain, further = [index], beside(index)
    while len(further) == 1:
        (site,) = further
        if form(site) != form(index):
            return [index]
        chain.append(site)
        further = beside(site) - {chain[-2]}
    return chain if not further and len(chain) >= CHAINS.shortest else [index]


def _summed_over(chain: list[int], parts: list[Factor]) -> Factor:
    """The product of factors, summed over one site or over those of a chain.

    Args:
        chain: The sites, in order.
        parts: All factors of these, each of one or of two beside each other.
    """
    sites, scale, every = _common(parts)
    names = tuple(name for name in every if name not in chain)
    if len(chain) == 1:
        log_prob = aligned(parts, (*names, *chain)).logsumexp(-1)
        return Factor(log_prob, names, sites, scale)
    position = {site: step for step, site in enumerate(chain)}
    states = next(p.log_prob.shape[p.names.index(chain[0])] for p in parts if chain[0] in p.names)
    blank = Factor(parts[0].log_prob.new_zeros(states), (chain[0],), frozenset())
    single: list[list[Factor]] = [[replace(blank, names=(site,))] for site in chain]
    pairs: list[list[Factor]] = [[] for _ in chain[1:]]
    for part in parts:
        steps = [position[name] for name in part.names if name in position]
        (single if len(steps) == 1 else pairs)[min(steps)].append(part)

    def stacked(lists: list[list[Factor]], width: int) -> Tensor:
        lists = [[_once(factor) for factor in each] for each in lists]
        ends = (chain[step : step + width] for step in range(len(lists)))
        found = [aligned(each, (*names, *own)) for each, own in zip(lists, ends, strict=True)]
        return torch.stack(torch.broadcast_tensors(*found))

    sizes = {n: k for part in parts for n, k in zip(part.names, part.log_prob.shape, strict=True)}
    total = log_total(stacked(single, 1), stacked(pairs, 2))
    return Factor(total.expand([sizes[name] for name in names]), names, sites, scale)


def _once(factor: Factor) -> Factor:
    """A factor with one of the numbers that a plate repeats, for all."""
    dims = [dim for dim, name in enumerate(factor.names) if isinstance(name, str)]
    return replace(factor, log_prob=unrepeated(factor.log_prob, dims))


def _within(
    factor: Factor,
    index: int,
    plates_of: Mapping[int, frozenset[str]],
    remaining: Collection[int],
) -> Factor:
    """A factor with the product taken over the plates that a site to be summed over is not in.

    Raises:
        ModelError: If another site to be summed over is in one of these.
    """
    extra = {name for name in factor.names if isinstance(name, str)} - plates_of[index]
    if any(name in remaining and extra & plates_of[name] for name in factor.names):
        raise ModelError(
            f"site '{min(factor.sites)}' depends on discrete sites in crossed plates "
            f"({', '.join(sorted(extra | plates_of[index]))}), which cannot be summed "
            "over; sample them in a hand-written guide."
        )
    return factor.summed_over(extra)


def unrepeated(tensor: Tensor, dims: Iterable[int]) -> Tensor:
    """A tensor with one of the numbers that are repeated along dims, in the place of all.

    It is their mean: the gradient of taking the first would be a tensor of zeros as large as all.
    """
    for dim in dims:
        size = tensor.shape[dim]
        if size > 1 and tensor.stride(dim) == 0:
            tensor = tensor.sum(dim, keepdim=True) / size
    return tensor

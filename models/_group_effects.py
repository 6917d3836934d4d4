"""Group effects in a Pyro model: their standard deviations, their correlations, and their sum."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from elbowroom.models._groups import Groups
from elbowroom.models._priors import Prior
from elbowroom.models._term_priors import Priors

SIGMA_PRIOR = Prior("half_student_t", (3.0, 2.5))
"""Of a standard deviation between groups, standardised as coefficients are."""
CONCENTRATION = 1.0
"""Of the prior of correlations between the effects of a group, that of Lewandowski, Kurowicka and
Joe (2009): of two effects it is uniform."""


def sample_group_effects(
    groups: Sequence[Groups], unit: Tensor, term_priors: Priors
) -> list[list[Tensor]]:
    """Samples the effects of all groups, in the units of the linear predictor.

    Args:
        groups: Which there are.
        unit: Of the linear predictor, ().
        term_priors: Those of standard deviations that are not the default.

    Returns:
        For each of `groups` its effects, each (levels,), those of groups that were not fitted last.
    """
    return [_sampled(each, unit, dict(term_priors.sigmas)) for each in groups]


def _sampled(groups: Groups, unit: Tensor, given: dict[str, Prior]) -> list[Tensor]:
    """The effects u of each group, Normal with the covariance of their standard deviations.

    They are sampled as v = T u; see `elbowroom.models._groups.directions`. Of its elements each is
    sampled given those before, so that each is centred as far as the data tell of it.
    """
    names = groups.names()
    units = unit / torch.tensor(groups.spread)  # (effects,)
    sigmas = torch.stack(
        [
            pyro.sample(_hidden(_sigma(name)), given.get(name, SIGMA_PRIOR).distribution())
            for name in names
        ]
    )
    order, levels, zero = groups.order, len(groups.levels), torch.zeros(())
    across = torch.tensor(groups.directions)  # T
    factor = across @ (sigmas[order, None] * _correlation_root(groups))  # of the covariance of v
    standard: list[Tensor] = []
    moved = []
    for k, place in enumerate(order):
        loc = sum((factor[k, j] * z for j, z in enumerate(standard)), zero)
        fitted, further = loc.split([levels, groups.unseen]) if loc.shape else (loc, loc)
        with pyro.plate(f"groups of {names[place]}", levels):
            v = pyro.sample(_hidden(names[place]), dist.Normal(fitted, factor[k, k]))
        z = (v - fitted) / factor[k, k]
        if groups.unseen:
            with pyro.plate(f"new groups of {names[place]}", groups.unseen):
                noise = pyro.sample(f"{_hidden(names[place])}_unseen", dist.Normal(zero, 1.0))
            z, v = torch.cat([z, noise]), torch.cat([v, further + factor[k, k] * noise])
        standard.append(z)
        moved.append(v)
    back = np.linalg.inv(np.array(groups.directions))  # of the inverse of T, the lower half
    effects: list[Tensor] = []
    for k, name in enumerate(names):
        row = back[order.index(k)]
        parts = (float(row[j]) * moved[j] for j in range(order.index(k) + 1))
        pyro.deterministic(_sigma(name), units[k] * sigmas[k])
        effects.append(pyro.deterministic(name, units[k] * sum(parts, zero)))
    return effects


def _correlation_root(groups: Groups) -> Tensor:
    """The Cholesky factor of the correlations of the effects in their order, (effects, effects)."""
    count = len(groups.effects)
    if not groups.correlated:
        return torch.eye(count)
    root = pyro.sample(
        f"{groups.factor}_correlation_root", dist.LKJCholesky(count, torch.tensor(CONCENTRATION))
    )
    places = torch.tensor([groups.order.index(k) for k in range(count)])
    low = places[torch.tril_indices(count, count, -1)]
    pyro.deterministic(f"{groups.factor}_correlation", (root @ root.mT)[..., low[0], low[1]])
    return root


def added(
    groups: Sequence[Groups], effects: Sequence[Sequence[Tensor]], codes: Tensor, values: Tensor
) -> Tensor:
    """What the effects of its groups add to the linear predictor of each row, (rows,).

    Args:
        groups: Which there are.
        effects: Of each, (levels,) each.
        codes: The group of each row, (rows, groups).
        values: What the effects are multiplied by, (rows, all effects).
    """
    parts = values.split([len(own) for own in effects], dim=-1)
    found = torch.zeros(())
    for each, own, code, part in zip(groups, effects, codes.unbind(-1), parts, strict=True):
        for name, effect, column in zip(each.effects, own, part.unbind(-1), strict=True):
            found = found + (effect[code] if name == "1" else effect[code] * column)
    return found


def described(
    groups: Sequence[Groups],
) -> tuple[dict[str, tuple[str, ...]], dict[str, list[str]], tuple[str, ...]]:
    """The dims of the sites, the labels of these, and the sites that are not shown."""
    dims: dict[str, tuple[str, ...]] = {}
    coords: dict[str, list[str]] = {}
    for each in groups:
        coords[each.dim] = list(each.levels)
        dims |= dict.fromkeys(each.names(), (each.dim,))
        dims |= dict.fromkeys(map(_sigma, each.names()), ())
        if each.correlated:
            dims[f"{each.factor}_correlation"] = (f"{each.factor}_pair",)
            coords[f"{each.factor}_pair"] = each.pairs
    return dims, coords, tuple(_internal(groups))


def _internal(groups: Sequence[Groups]) -> Iterator[str]:
    for each in groups:
        yield from (_hidden(_sigma(name)) for name in each.names())
        yield from map(_hidden, each.names())
        if each.correlated:
            yield f"{each.factor}_correlation_root"


def _sigma(name: str) -> str:
    """The name of the standard deviation of an effect."""
    return f"{name}_sigma"


def _hidden(name: str) -> str:
    """The name of the site that is sampled for what is reported."""
    return f"standardised_{name}"

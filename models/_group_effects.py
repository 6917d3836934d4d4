"""Group effects in a Pyro model: their standard deviations, their correlations, and their sum."""

from collections.abc import Iterator, Sequence
from typing import Any

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
) -> list[Tensor]:
    """Samples the effects of all groups, in the units of the linear predictor.

    Args:
        groups: Which there are.
        unit: Of the linear predictor, ().
        term_priors: Those of standard deviations that are not the default.

    Returns:
        For each of `groups`, (levels, effects).
    """
    return [_sampled(each, unit, dict(term_priors.sigmas)) for each in groups]


def _sampled(groups: Groups, unit: Tensor, given: dict[str, Prior]) -> Tensor:
    names = groups.names()
    units = unit / torch.tensor(groups.spread)  # (effects,)
    sigmas = torch.stack(
        [
            pyro.sample(_hidden(_sigma(name)), given.get(name, SIGMA_PRIOR).distribution())
            for name in names
        ]
    )
    if groups.correlated:
        effects = _correlated(groups, sigmas)
    else:
        effects = torch.stack(
            [_independent(name, groups, sigma) for name, sigma in zip(names, sigmas, strict=True)],
            dim=-1,
        )
    found = effects * units  # (levels, effects)
    for k, name in enumerate(names):
        pyro.deterministic(_sigma(name), units[k] * sigmas[k])
        pyro.deterministic(name, found[..., k])
    return found


def _independent(name: str, groups: Groups, sigma: Tensor) -> Tensor:
    """One effect, standardised, (levels,)."""
    with pyro.plate(f"groups of {name}", len(groups.levels)):
        return pyro.sample(_hidden(name), dist.Normal(torch.zeros(()), sigma))


def _correlated(groups: Groups, sigmas: Tensor) -> Tensor:
    """Effects of a group that are correlated, standardised, (levels, effects)."""
    count, name = len(groups.effects), _together(groups)
    root = pyro.sample(
        f"{groups.factor}_correlation_root", dist.LKJCholesky(count, torch.tensor(CONCENTRATION))
    )
    low = torch.tril_indices(count, count, -1)
    pyro.deterministic(f"{groups.factor}_correlation", (root @ root.mT)[..., low[0], low[1]])
    fn: Any = dist.MultivariateNormal(torch.zeros(count), scale_tril=sigmas[:, None] * root)
    with pyro.plate(f"groups of {name}", len(groups.levels)):
        return pyro.sample(_hidden(name), fn)


def added(effects: Sequence[Tensor], codes: Tensor, values: Tensor) -> Tensor:
    """What the effects of its groups add to the linear predictor of each row, (rows,).

    Args:
        effects: For each term, (levels, effects).
        codes: The group of each row, (rows, terms).
        values: What the effects are multiplied by, (rows, all effects).
    """
    parts = values.split([each.shape[-1] for each in effects], dim=-1)
    several = zip(effects, parts, codes.unbind(-1), strict=True)
    return sum(((part * own[code]).sum(-1) for own, part, code in several), torch.zeros(()))


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
        if each.correlated:
            yield from (f"{each.factor}_correlation_root", _hidden(_together(each)))
        else:
            yield from map(_hidden, each.names())


def _sigma(name: str) -> str:
    """The name of the standard deviation of an effect."""
    return f"{name}_sigma"


def _hidden(name: str) -> str:
    """The name of the standardised value of what is reported."""
    return f"standardised_{name}"


def _together(groups: Groups) -> str:
    """The name of all effects of a factor."""
    return f"{', '.join(groups.effects)}|{groups.factor}"

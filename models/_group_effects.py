"""Group effects in a Pyro model: their standard deviations, their correlations, and their sum."""

from collections.abc import Iterator, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from elbowroom.models._groups import Groups
from elbowroom.models._priors import SIGMA_PRIOR, Prior
from elbowroom.models._term_priors import Priors

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
    return [_sampled(each, unit, dict(term_priors.scales)) for each in groups]


def _sampled(groups: Groups, unit: Tensor, given: dict[str, Prior]) -> list[Tensor]:
    """The effects of each group: Normal, with the covariance of their sds and correlations."""
    names = groups.names()
    units = unit / torch.tensor(groups.spread)  # (effects,)
    sigmas = [
        pyro.sample(_hidden(_sigma(name)), given.get(_sigma(name), SIGMA_PRIOR).distribution())
        for name in names
    ]
    site, plate = _hidden(_together(groups)), f"groups of {_together(groups)}"
    count, unseen = len(names), groups.unseen
    if count == 1:
        root = sigmas[0].reshape(1, 1)
        with pyro.plate(plate, len(groups.levels)):
            u = pyro.sample(site, dist.Normal(torch.zeros(()), sigmas[0])).unsqueeze(-1)
    else:
        root = torch.stack(sigmas)[:, None] * _correlation_root(groups)
        with pyro.plate(plate, len(groups.levels)):
            u = pyro.sample(site, dist.MultivariateNormal(torch.zeros(count), scale_tril=root))
    if unseen:
        with pyro.plate(f"new {plate}", unseen):
            noise = pyro.sample(f"{site}_unseen", dist.Normal(torch.zeros(count), 1.0).to_event(1))
        u = torch.cat([u, noise @ root.mT])
    effects: list[Tensor] = []
    for k, name in enumerate(names):
        pyro.deterministic(_sigma(name), units[k] * sigmas[k])
        effects.append(pyro.deterministic(name, units[k] * u[..., k]))
    return effects


def _correlation_root(groups: Groups) -> Tensor:
    """The Cholesky factor of the correlations of the effects, (effects, effects)."""
    count = len(groups.effects)
    if not groups.correlated:
        return torch.eye(count)
    root = pyro.sample(
        f"{groups.factor}_correlation_root", dist.LKJCholesky(count, torch.tensor(CONCENTRATION))
    )
    low = torch.tril_indices(count, count, -1)
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
        yield _hidden(_together(each))
        if each.correlated:
            yield f"{each.factor}_correlation_root"


def _sigma(name: str) -> str:
    """The name of the standard deviation of an effect."""
    return f"{name}_sigma"


def _together(groups: Groups) -> str:
    """The name of all effects of a group."""
    own = groups.names()
    return own[0] if len(own) == 1 else f"effects|{groups.factor}"


def _hidden(name: str) -> str:
    """The name of the site that is sampled for what is reported."""
    return f"standardised_{name}"

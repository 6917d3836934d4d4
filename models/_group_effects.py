"""Group effects in a Pyro model: their standard deviations, their correlations, and their sum."""

from collections.abc import Iterator, Sequence
from itertools import product

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
    groups: Sequence[Groups], unit: Tensor, term_priors: Priors, classes: int = 0
) -> list[list[Tensor]]:
    """Samples the effects of all groups, in the units of the linear predictor.

    Args:
        groups: Which there are.
        unit: Of the linear predictor, ().
        term_priors: Those of standard deviations that are not the default.
        classes: How many linear predictors there are, if each class has its own, and effects, their
            standard deviations and correlations with it.

    Returns:
        For each of `groups` its effects, each (levels,), or (levels, classes), those of groups that
        were not fitted last.
    """
    effects = []
    for each in groups:
        given = dict(term_priors.scales)
        parts = [_sampled(each, unit, given, of) for of in _of_classes(classes)]
        found = {
            name: torch.stack([part[name] for part in parts]) if classes else parts[0][name]
            for name in parts[0]
        }
        for name, value in found.items():
            pyro.deterministic(name, value)
        effects.append([found[name].mT if classes else found[name] for name in each.names()])
    return effects


def _of_classes(classes: int) -> list[str]:
    """What tells the sites of each class."""
    return [f"[{k + 1}]" for k in range(classes)] if classes else [""]


def _sampled(groups: Groups, unit: Tensor, given: dict[str, Prior], of: str) -> dict[str, Tensor]:
    """The effects of each group: Normal, with the covariance of their sds and correlations.

    Returns:
        What is reported, by name.
    """
    names = groups.names()
    units = unit / torch.tensor(groups.spread)  # (effects,)
    sigmas = [
        pyro.sample(_hidden(_sigma(name)) + of, given.get(_sigma(name), SIGMA_PRIOR).distribution())
        for name in names
    ]
    site, plate = _hidden(_together(groups)) + of, f"groups of {_together(groups)}{of}"
    count, unseen, reported = len(names), groups.unseen, {}
    if count == 1:
        root = sigmas[0].reshape(1, 1)
        with pyro.plate(plate, len(groups.levels)):
            u = pyro.sample(site, dist.Normal(torch.zeros(()), sigmas[0])).unsqueeze(-1)
    else:
        correlation = torch.eye(count)
        if groups.correlated:
            correlation = _correlation_root(groups, of)
            low = torch.tril_indices(count, count, -1)
            both = correlation @ correlation.mT
            reported[f"{groups.factor}_correlation"] = both[..., low[0], low[1]]
        root = torch.stack(sigmas)[:, None] * correlation
        with pyro.plate(plate, len(groups.levels)):
            u = pyro.sample(site, dist.MultivariateNormal(torch.zeros(count), scale_tril=root))
    if unseen:
        with pyro.plate(f"new {plate}", unseen):
            noise = pyro.sample(f"{site}_unseen", dist.Normal(torch.zeros(count), 1.0).to_event(1))
        u = torch.cat([u, noise @ root.mT])
    for k, name in enumerate(names):
        reported |= {_sigma(name): units[k] * sigmas[k], name: units[k] * u[..., k]}
    return reported


def _correlation_root(groups: Groups, of: str) -> Tensor:
    """The Cholesky factor of the correlations of the effects, (effects, effects)."""
    prior = dist.LKJCholesky(len(groups.effects), torch.tensor(CONCENTRATION))
    return pyro.sample(f"{groups.factor}_correlation_root{of}", prior)


def added(
    groups: Sequence[Groups], effects: Sequence[Sequence[Tensor]], codes: Tensor, values: Tensor
) -> Tensor:
    """What the effects of its groups add to the linear predictor of each row.

    Args:
        groups: Which there are.
        effects: Of each, (levels,) or (levels, classes) each.
        codes: The group of each row, (rows, groups).
        values: What the effects are multiplied by, (rows, all effects).

    Returns:
        (rows,), or (rows, classes).
    """
    parts = values.split([len(own) for own in effects], dim=-1)
    found = torch.zeros(())
    for each, own, code, part in zip(groups, effects, codes.unbind(-1), parts, strict=True):
        for name, effect, column in zip(each.effects, own, part.unbind(-1), strict=True):
            column = column.reshape(-1, *[1] * (effect.dim() - 1))
            found = found + (effect[code] if name == "1" else effect[code] * column)
    return found


def described(
    groups: Sequence[Groups], classes: int = 0
) -> tuple[dict[str, tuple[str, ...]], dict[str, list[str]], tuple[str, ...]]:
    """The dims of the sites, the labels of these, and the sites that are not shown.

    Args:
        groups: Which there are.
        classes: As of `sample_group_effects`; the dim "level" is of them.
    """
    dims: dict[str, tuple[str, ...]] = {}
    coords: dict[str, list[str]] = {}
    of_class = ("level",) if classes else ()
    for each in groups:
        coords[each.dim] = list(each.levels)
        dims |= dict.fromkeys(each.names(), (*of_class, each.dim))
        dims |= dict.fromkeys(map(_sigma, each.names()), of_class)
        if each.correlated:
            dims[f"{each.factor}_correlation"] = (*of_class, f"{each.factor}_pair")
            coords[f"{each.factor}_pair"] = each.pairs
    return dims, coords, tuple(_internal(groups, classes))


def _internal(groups: Sequence[Groups], classes: int) -> Iterator[str]:
    for each, of in product(groups, _of_classes(classes)):
        yield from (_hidden(_sigma(name)) + of for name in each.names())
        yield _hidden(_together(each)) + of
        if each.correlated:
            yield f"{each.factor}_correlation_root{of}"


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

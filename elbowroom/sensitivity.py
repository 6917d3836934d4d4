"""How much a posterior follows its prior and its likelihood, by power-scaling.

Prior or likelihood are raised to a power near one, by importance weights of the posterior's draws,
and the distance that each quantity moves is measured (Kallioinen, Paananen, Bürkner and Vehtari,
2024, "Detecting and diagnosing prior and likelihood sensitivity with power-scaling"). No model is
fitted again.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import arviz_stats
import numpy as np
import pandas as pd
import torch
import xarray
from torch import Tensor

from elbowroom.draws.groups import names_of, reported_quantities
from elbowroom.draws.of_guide import chunk_size
from elbowroom.draws.tree import build_tree
from elbowroom.errors import ModelError
from elbowroom.problem.bound import Problem
from elbowroom.problem.mapping import map_draws
from elbowroom.problem.population import population_sites
from elbowroom.problem.score import log_prior, score


@dataclass(frozen=True)
class PowerScaling:
    """How sensitivity is measured."""

    limit: float = 0.05
    """From which on it counts: a mean that moves by about 0.3 sd where the power is doubled."""
    numbers: int = 200_000_000
    """Draws times numbers of the data, at most."""
    fewest: int = 500
    """Draws that are taken whatever the data."""


POWER_SCALING = PowerScaling()


def sensitivity_of(fit: Any) -> pd.DataFrame:
    """The table of `elbowroom.result.Fit.sensitivity`, of such a fit.

    Priors of populations, such as of the effects of groups given their standard deviation, are
    not scaled, as the paper has it: the priors above them are.

    Raises:
        ModelError: If the fit has no priors, is one point, or has latents of rows.
    """
    if fit.fitted.point or fit.problem.posterior is not None:
        raise ModelError(
            f"a fit with the guide '{fit.guide.name}' has no posterior whose prior could be "
            "scaled; fit with --guide auto."
        )
    if fit.row_latents or not fit.problem.space.sites:
        raise ModelError(
            f"the model {fit.problem.model.name} has latents for each row, or none but discrete "
            "ones: there is no prior that all rows share to be scaled."
        )
    problem, sites = fit.as_written(fit.global_sites())
    step = _step(problem, len(next(iter(sites.values()))))
    few = {name: values[::step] for name, values in sites.items()}
    with problem.session(0, fit.parameters):
        likelihood, prior = _log_densities(problem, few)
        quantities = reported_quantities(problem, few)
    tree, _ = build_tree({"posterior": quantities}, names_of(problem), {})
    dims = ("chain", "draw")
    tree["log_prior"] = xarray.Dataset({"prior": (dims, prior[None])})
    tree["log_likelihood"] = xarray.Dataset({"data": (dims, likelihood[None])})
    with _quiet():
        table = arviz_stats.psense_summary(tree, threshold=POWER_SCALING.limit, round_to=6)
    words = table["diagnosis"].str.replace("potential ", "", regex=False)
    words = words.where(words.str.contains("prior"), "")  # else it is a tick
    return table.assign(diagnosis=words).rename_axis("quantity")


def _step(problem: Problem, draws: int) -> int:
    """Every how many-th draw is taken."""
    numbers = sum(v.numel() for v in problem.arguments.values() if isinstance(v, Tensor))
    most = max(POWER_SCALING.fewest, POWER_SCALING.numbers // max(1, numbers))
    return -(-draws // most)


def _log_densities(problem: Problem, sites: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """The log likelihood and the log prior that is scaled at each draw, (draws,)."""
    population = set(population_sites(problem))
    model, arguments, space = problem.function, problem.arguments, problem.space

    def of(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        prior = log_prior(model, arguments, values, space)
        zero = torch.zeros(())
        scaled = [each for name, each in prior.items() if population.isdisjoint(name.split(", "))]
        whole = score(model, arguments, values, space).log_joint
        return whole - sum(prior.values(), zero), sum(scaled, zero)

    device = problem.device
    given = {name: values.to(device) for name, values in space.given(sites).items()}
    with torch.no_grad():
        found = map_draws(of, given, chunk_size(arguments, space))
    likelihood, prior = (each.double().cpu().numpy() for each in found)
    return likelihood, prior


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the line that arviz-stats logs beside its table, which says the same."""
    logger = logging.getLogger("arviz_stats.psense")
    before: Any = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before

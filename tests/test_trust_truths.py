"""The truths of `benchmarks/trust.py` by a second derivation, from the models' own densities."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import vmap

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.trust import make
from benchmarks.trust_models import FAMILIES
from benchmarks.trust_truths import Case, quadrature
from elbowroom.density.density import Density
from elbowroom.density.landscape import density_of
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.isolation import isolated

COUNT = 20_000
"""Points of a truth that are looked at."""
ERRORS = 5.0
"""Standard errors by which an identity may fail."""
FAST = ("product", "needle", "unequal_mixture", "hierarchy", "change_point")


def smallest(family: str) -> Case:
    """The first case of at most two dimensions, whose modes' shares a quadrature tells; or any."""
    cases = (make(family, number, seed=1) for number in range(6))
    first = next(cases)
    for case in (first, *cases):
        if sum(values[0].size for values in case.points.values()) <= 2:
            return case
    return first


def density_and_points(case: Case, random: np.random.Generator) -> tuple[Density, np.ndarray]:
    """The model's density, and unconstrained points of the truth."""
    problem, _, _ = bind_model(case.model, case.data, {})
    with isolated(0, dtype=torch.float64, threads=1):
        density = density_of(problem)
        total = len(next(iter(case.points.values())))
        picked = random.choice(total, size=COUNT, p=case.weights)
        sites = {name: torch.tensor(values[picked]) for name, values in case.points.items()}
        return density, vmap(density.space.unconstrain)(sites).numpy()


@pytest.mark.parametrize(
    "family", [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_truth(family: str) -> None:
    """The score identities at its points; in two dimensions or fewer its moments by quadrature."""
    case = smallest(family)
    density, points = density_and_points(case, np.random.default_rng(0))
    with isolated(0, dtype=torch.float64, threads=1):
        gradient = density.value_and_gradient(points)[1]
        if family not in ("change_point", "lasso"):  # with jumps, whose gradient is no density's
            centred = points - np.median(points, axis=0)
            for found, expected in ((gradient, 0.0), (centred * gradient, -1.0)):
                error = found.std(axis=0) / np.sqrt(COUNT)
                assert np.all(np.abs(found.mean(axis=0) - expected) < ERRORS * error + 1e-9)
        if density.dimension > 2:
            return
        low, high = points.min(axis=0), points.max(axis=0)
        margin = 0.1 * (high - low) + 1e-9
        grid, weights = quadrature(
            density.value, [*zip(low - margin, high + margin, strict=True)],
            (1000, 1000) if density.dimension == 2 else (100_000,),
        )  # fmt: skip
        sites = {name: value.numpy() for name, value in density.constrained(grid).items()}
    again = Case({}, case.model, case.data, sites, weights, case.heavy, case.named).truths()
    for name, truth in case.truths().items():
        if truth.resolved:
            assert abs(again[name].mean - truth.mean) < 0.02 * truth.sd
            assert abs(np.log(again[name].sd / truth.sd)) < 0.02
        near = 0.005 * (truth.quantiles[-1] - truth.quantiles[0]) + 2 * truth.quantile_noise
        assert np.all(np.abs(again[name].quantiles - truth.quantiles) < near)

"""How far groups are centred: as the data tell, and the same posterior in either form."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.density.landscape import density_of
from elbowroom.pipeline.centring import partly_centred
from elbowroom.problem.bound import Problem, bind, resolve_model
from elbowroom.problem.isolation import isolated

READINGS = torch.tensor([0.25, 100.0] * 35, dtype=torch.float64)
"""Of each of 70 groups: every other one is known well."""


def hierarchy(readings: Tensor, y: Tensor) -> None:
    spread = pyro.sample("spread", dist.LogNormal(np.log(2.0), 0.02))
    with pyro.plate("groups", len(y)):
        level = pyro.sample("level", dist.Normal(1.0, spread))
        pyro.sample("y", dist.Normal(level, 2 / readings.sqrt()), obs=y)


def bound() -> Problem:
    random = np.random.default_rng(0)
    level = 1 + 2 * random.normal(size=70)
    y = torch.tensor(level + 2 / READINGS.numpy() ** 0.5 * random.normal(size=70))
    data = {"readings": READINGS, "y": y}
    return bind(resolve_model(hierarchy), data, None, torch.float64, torch.device("cpu"))


def test_groups_that_the_data_know_stay_as_they_are() -> None:
    """With a spread of two, the data's information is that of the readings: 0.25 and 100."""
    problem = bound()
    centred, landscape = partly_centred(problem, 0)
    assert landscape.starts is not None
    with isolated(0, dtype=torch.float64):
        points = torch.as_tensor(landscape.starts)
        values = [centred.space.constrain(point) for point in points]
        density = density_of(centred)
        before = density_of(problem)
        # The same places in the model as it is written: the density there and its Jacobian.
        share = _shares(centred)
        for u, known in zip(landscape.starts, values, strict=True):
            spread, moved = known["spread"], known["level_decentered"]
            level = 1.0 + spread.pow(1 - share) * (moved - share)
            own = problem.space.unconstrain({"spread": spread, "level": level})
            jacobian = float(((1 - share) * spread.log()).sum())
            (value,) = before.value(own.double().numpy()[None])
            assert density.at(u)[0] == pytest.approx(value + jacobian, abs=1e-8)
            # They are draws of the posterior, about: known groups are where their data are.
            y = problem.arguments["y"]
            assert float((level - y)[1::2].abs().max()) < 0.9  # 4.5 of their sds
    assert float(share[0::2].max()) < 0.3
    assert float((share[1::2] - (100 - 1) / (100 + 1)).abs().max()) < 0.008


def _shares(problem: Problem) -> Tensor:
    """Of each group, by how its prior changes with the spread: its sd is spread^share."""
    with problem.session(0):
        model = pyro.poutine.condition(problem.function, {"spread": torch.tensor(2.0)})
        trace = pyro.poutine.trace(model).get_trace(**problem.arguments)
    fn: Any = trace.nodes["level_decentered"]["fn"]
    return torch.as_tensor(fn.scale.log() / np.log(2.0))


def test_groups_of_which_little_is_known_are_standardised() -> None:
    problem = bound()
    few = {**problem.arguments, "readings": torch.full((70,), 0.25, dtype=torch.float64)}
    model = resolve_model(hierarchy)
    centred, _ = partly_centred(bind(model, few, None, torch.float64, torch.device("cpu")), 0)
    assert float(_shares(centred).abs().max()) == 0.0


def test_a_wide_hierarchy_is_trusted_and_right() -> None:
    """Given the spread, which its prior holds at two, every group's posterior is known."""
    problem = bound()
    fit = er.fit(hierarchy, dict(problem.arguments), seed=1)
    assert fit.verdict.trusted, str(fit.verdict)
    assert (fit.guide.name, fit.origin) == ("markov", "chains")
    assert fit.evidence.mixing is not None
    assert "Markov chains from 8 places" in fit.verdict.reasons[0]
    found = fit.posterior["posterior"]["level"].values[0]
    precision = (1 + READINGS.numpy()) / 4
    mean = (1 / 4 + problem.arguments["y"].numpy() * READINGS.numpy() / 4) / precision
    noise = 4 / fit.measures["corrected_effective_sample_size"] ** 0.5
    assert np.abs((found.mean(0) - mean) * precision**0.5).max() < noise + 0.02
    assert np.abs(np.log(found.std(0) * precision**0.5)).max() < noise + 0.02
    again = fit.sample(200, seed=3)["level"].values[0]
    assert again.shape == (200, 70)
    assert np.isin(again[:, 0], found[:, 0]).all()  # draws of the chains, taken anew

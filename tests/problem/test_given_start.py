"""A start of the user's: checked by site, and the first of a fit's starts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal
from torch import Tensor

import elbowroom as er
from elbowroom.density.landscape import explore, unexplored
from elbowroom.errors import ElbowroomError, OptionError
from elbowroom.pipeline.fitting import bind_model, resolve_guide, started


def model(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0)))
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    place = pyro.sample("place", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("kind", dist.Bernoulli(torch.tensor(0.5)))
    pyro.sample("y", dist.Normal(place.sum() + share[0], scale), obs=y)


DATA = {"y": torch.tensor(0.3)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scales": 1.0}, "no latent site 'scales'; did you mean 'scale'"),
        ({"kind": 1.0}, "'kind' is discrete"),
        ({"scale": [1.0, 2.0]}, r"'scale' has shape \(2,\), and the site \(\)"),
        ({"scale": -1.0}, "'scale' is -1, and must be 0 or above"),
        ({"share": [0.5, 0.4, 0.4]}, "'share' is"),
        ({"place": [0.0, np.nan]}, "'place' is nan"),
        ({"place": ["a", "b"]}, "'place' is not numeric"),
        ([1.0], "it is a list"),
    ],
)
def test_a_start_that_cannot_be_is_refused_by_its_site(given: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        er.fit(model, DATA, start=given)


@pytest.mark.parametrize("from_file", [False, True])
def test_a_start_is_the_first_and_what_it_leaves_out_is_the_origin(
    from_file: bool, tmp_path: Path
) -> None:
    given: Any = {"scale": 2.0, "share": [0.2, 0.3, 0.5]}
    if from_file:
        (tmp_path / "start.json").write_text(json.dumps(given))
        given = tmp_path / "start.json"
    problem = started(bind_model(model, DATA, {})[0], given, "auto")
    first = torch.as_tensor(explore(problem, 1, seed=1).first)
    values = problem.space.constrain(first)
    assert float(values["scale"]) == pytest.approx(2.0)
    assert values["share"].tolist() == pytest.approx([0.2, 0.3, 0.5])
    assert values["place"].tolist() == [0.0, 0.0]


def far(y: Tensor) -> None:
    """A density that is zero but between 70 and 74, where no start of ours comes."""
    place = pyro.sample("place", dist.Normal(torch.tensor(0.0), 1.0).mask(False))
    distance = (place - 72.0).abs()
    pyro.factor("inside", torch.where(distance < 2.0, 0.0, -torch.inf))
    pyro.sample("y", dist.Normal(place, 0.2), obs=y)


def test_a_density_that_is_found_from_a_start_alone_is_fitted() -> None:
    data = {"y": torch.tensor(72.1)}
    with pytest.raises(ElbowroomError):
        er.fit(far, data, seed=1, engine="svi", guide="mean_field", steps=10)
    for options in ({}, {"engine": "svi", "guide": "mean_field", "steps": 3000}):
        fit = er.fit(far, data, seed=1, start={"place": 71.5}, **options)  # type: ignore[arg-type]
        drawn = fit.posterior["posterior"]["place"].values[0]
        assert drawn.mean() == pytest.approx(72.1, abs=4 * 0.2 / 1000**0.5)
        assert drawn.std() == pytest.approx(0.2, rel=0.1)


def test_guides_of_pyro_begin_at_it_and_those_of_the_user_refuse_it() -> None:
    data = {"y": torch.tensor(72.1)}
    problem = started(bind_model(far, data, {})[0], {"place": 71.5}, AutoDiagonalNormal)
    with problem.session(0):
        guide = resolve_guide(AutoDiagonalNormal, problem).build(problem.space, None)  # type: ignore[arg-type]
        guide(**problem.arguments)
        assert pyro.param("AutoDiagonalNormal.loc").item() == pytest.approx(71.5)
    with pytest.raises(OptionError, match="a guide of your own begins where its parameters do"):
        er.fit(far, data, guide=lambda y: None, start={"place": 71.5})


def test_a_search_that_ran_out_of_time_leaves_the_start() -> None:
    problem = started(bind_model(model, DATA, {})[0], {"place": [1.0, -2.0]}, "auto")
    first = torch.as_tensor(unexplored(problem).first)
    values = problem.space.constrain(first)
    assert values["place"].tolist() == [1.0, -2.0]
    assert float(values["scale"]) == pytest.approx(1.0)

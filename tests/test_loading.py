"""A fit that is read back from its folder, and one that goes on from it: field by field."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import elbowroom as er
from elbowroom import loading
from elbowroom.density.mixtures import Mixture
from elbowroom.draws.proposal import Proposal
from elbowroom.engines.protocol import Trained
from elbowroom.errors import ModelError, OptionError, RunFolderError
from elbowroom.models import get_model
from elbowroom.pipeline.fitting import Work
from elbowroom.result import Fit
from elbowroom.run import folder as run_folder
from elbowroom.run.unfinished import Request, unfinished


def normal(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def guide(y: Tensor) -> None:
    location = pyro.param("location", torch.zeros(()))
    spread = pyro.param("spread", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("mean", dist.Normal(location, spread))


@pytest.fixture(scope="module")
def line() -> Fit:
    """A small regression, as the command line takes it."""
    x = np.linspace(-1.0, 1.0, 12)
    table = pd.DataFrame({"x": x, "y": 2 * x + np.cos(9 * x)})
    table.attrs = {"roles": {"y": "target"}}
    return er.fit("bayesian_regression", table, "laplace", formula="y ~ x", seed=3, draws=100)


@pytest.fixture(scope="module")
def own() -> Fit:
    """A user's own model and guide."""
    data = {"y": torch.tensor([0.5, 1.5, 2.0])}
    return er.fit(normal, data, guide, seed=4, steps=30, draws=100)


@pytest.fixture(scope="module")
def changed(line: Fit) -> Fit:
    """The same with another value of whatever it is that a folder holds."""
    trained = Trained(
        "budget", "it used up its steps.", np.array([-3.0, -2.5]), np.array([0.1, 0.05]), 2, 1.5, 7
    )
    mixture = Mixture(np.array([0.25, 0.75]), np.eye(2, 3), np.stack([np.eye(3)] * 2), 5.0)
    return replace(
        line,
        fitted=replace(line.fitted, trained=trained, objective=("iwae", "because"), engine="svi"),
        settings=replace(line.settings, particles=3, of_objectives={"alpha": 0.5}),
        evidence=replace(line.evidence, unresolved=("a quantity.",), reference=("so", False)),
        remarks=("a remark",),
        origin="corrected",
        proposal=Proposal(mixture, mean=np.arange(3.0)),
    )


def test_everything_of_a_fit_comes_back(changed: Fit, tmp_path: Path) -> None:
    again = er.load(changed.save(tmp_path / "run"))
    assert vars(again.trained).keys() == vars(changed.trained).keys()
    for name, value in vars(changed.trained).items():
        np.testing.assert_array_equal(getattr(again.trained, name), value)
    assert again.objective == ("iwae", "because")
    assert again.engine == "svi"
    assert (again.seed, again.origin) == (3, "corrected")
    assert again.guide is changed.guide
    assert again.fitted.point == changed.fitted.point
    assert again.settings.flat() == changed.settings.flat()
    assert again.evidence == changed.evidence
    assert again.notes == changed.notes
    assert again.notes[0] == "a remark"
    assert again.diagnostics == changed.diagnostics
    assert again.verdict == changed.verdict
    for name in ("location", "precision"):
        assert torch.equal(getattr(again.start, name), getattr(changed.start, name))
    assert again.start.scale is None
    names = set(changed.parameters.values)
    assert set(again.parameters.values) == names
    for name in names:
        assert torch.equal(again.parameters.values[name], changed.parameters.values[name])
    assert again.proposal is not None
    expected = changed.proposal.arrays()  # type: ignore[union-attr]
    found = again.proposal.arrays()
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    problem = changed.problem
    assert again.problem.options == problem.options
    assert again.problem.dtype == problem.dtype
    assert again.problem.reparameterised == problem.reparameterised
    pd.testing.assert_frame_equal(again.problem.data, problem.data)
    assert again.problem.data.attrs == {"roles": {"y": "target"}}
    assert again.folder is None


def test_a_folder_says_what_was_asked_and_how_it_went(changed: Fit, tmp_path: Path) -> None:
    path = changed.save(tmp_path / "run")
    config = json.loads((path / "config.json").read_text())
    expected = {
        "model": "bayesian_regression", "registered_model": True, "guide": "laplace", "seed": 3,
        "engine": "svi", "objective": ["iwae", "because"],
        "attributes": {"roles": {"y": "target"}}, "reparameterised": [],
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    assert config["options"]["formula"] == "y ~ x"
    assert (config["settings"]["particles"], config["settings"]["alpha"]) == (3, 0.5)
    run = json.loads((path / "run.json").read_text())
    expected = {
        "status": "budget", "reason": "it used up its steps.", "skipped": 2, "seconds": 1.5,
        "parameters": 7, "origin": "corrected", "notes": changed.notes,
        "versions": run_folder.versions(),
    }  # fmt: skip
    assert {name: run[name] for name in expected} == expected
    assert run["verdict"]["level"] == changed.verdict.level
    history = pd.read_csv(path / "history.csv")
    assert history[["step", "elbo", "learning_rate"]].to_dict("list") == {
        "step": [1, 2], "elbo": [-3.0, -2.5], "learning_rate": [0.1, 0.05],
    }  # fmt: skip
    assert history.columns[3:].tolist() == ["expected_log_likelihood", "kl_to_prior"]
    assert history["kl_to_prior"].isna().tolist() == [True, False]  # taken at the end alone


def test_a_fit_of_float32_is_read_as_such(own: Fit, tmp_path: Path) -> None:
    path = own.save(tmp_path / "run")
    with pytest.raises(ModelError, match=r"your own model 'normal'.*model="):
        er.load(path)
    with pytest.raises(ModelError, match=r"your own guide 'guide'.*guide="):
        er.load(path, normal)
    again = er.load(path, normal, guide)
    assert again.problem.dtype == own.problem.dtype
    np.testing.assert_array_equal(again.problem.arguments["y"], own.problem.arguments["y"])
    assert again.callable is guide
    assert again.sample(5).equals(own.sample(5))
    config = json.loads((path / "config.json").read_text())
    assert not config["registered_model"]
    assert config["options"] == {}
    assert config["attributes"] == {}


def test_a_parameter_that_is_missing_is_named(own: Fit, tmp_path: Path) -> None:
    run = own._run()
    values = {name: run.parameters.pop(f"parameter.{name}") for name in ("location", "spread")}
    run_folder.save(run, tmp_path / "run")
    with pytest.raises(RunFolderError, match="parameter 'location' is missing"):
        er.load(tmp_path / "run", normal, guide)
    run.parameters.update({f"parameter.{name}": value for name, value in values.items()})
    run.parameters["parameter.another"] = torch.tensor(0.5)  # which nothing asks for
    run_folder.save(run, tmp_path / "run", overwrite=True)
    assert set(er.load(tmp_path / "run", normal, guide).parameters.values) == set(values)


def test_options_that_contain_code_are_read_if_they_are_trusted() -> None:
    declaration = get_model("bayesian_regression")
    plain = loading.trusted_options("p", declaration, {"formula": "y ~ x", "steps": 3}, False)
    assert plain.formula == "y ~ x"
    given = {"formula": "y ~ np.square(x)"}
    with pytest.raises(RunFolderError, match=r"would run code, 'y ~ np\.square\(x\)'"):
        loading.trusted_options("p", declaration, given, False)
    assert loading.trusted_options("p", declaration, given, True).formula == given["formula"]
    mixture = get_model("gaussian_mixture")  # none of whose options is code
    assert loading.trusted_options("p", mixture, {"components": 4}, False).components == 4
    assert loading.trusted_options("p", replace(mixture, options=None), {}, False) is None


ASKED: dict[str, Any] = {
    "model": "bayesian_regression", "registered_model": True, "guide": "mean_field",
    "engine": "svi", "seed": 7, "draws": 300, "keep_local": True, "reference": True,
    "fallback": "nuts", "options": {"formula": "y ~ x", "steps": 30, "learning_rate": 0.02},
}  # fmt: skip
TABLE = pd.DataFrame({"x": [1.0, 2.0, 4.0], "y": [1.0, 3.0, 2.0]})


def stopped(path: Path, data: Any = TABLE, **changes: Any) -> Path:
    """A folder in which a run was stopped."""
    with unfinished(path, Request({**ASKED, **changes}, data)):
        pass
    return path


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of the work that goes on, which is not done."""
    calls: list[Any] = []

    def record(work: Work, task: Any, path: Path, request: Any, **named: Any) -> str:
        calls.append((work, task, path, request, named))
        return "a fit"

    monkeypatch.setattr(Work, "kept", record)
    return calls


def test_a_run_goes_on_as_it_was_asked_for(kept: list[Any], tmp_path: Path) -> None:
    path = stopped(tmp_path / "run")

    def ignored(*_: Any) -> None:
        pass

    def other(*_: Any) -> None:
        pass

    def third(*_: Any) -> None:
        pass

    found = er.resume(str(path), announce=ignored, progress=other, report=third)
    assert found == "a fit"
    ((work, task, where, request, named),) = kept
    assert work == Work("mean_field", "svi", True, "nuts", third)
    assert (where, request, named) == (path, None, {"changes": {}})
    assert (task.seed, task.draws, task.keep_local) == (7, 300, True)
    assert (task.announce, task.progress) == (ignored, other)
    assert (task.settings.steps, task.settings.learning_rate) == (30, 0.02)
    assert task.problem.options.formula == "y ~ x"
    pd.testing.assert_frame_equal(task.problem.data, TABLE)


@pytest.mark.parametrize(
    ("changes", "steps", "epochs"),
    [
        ({"steps": 90}, 90, None),
        ({"epochs": 5}, None, 5),
        ({"steps": None, "epochs": None}, 30, None),
        ({"steps": 90, "epochs": None}, 90, None),
    ],
)
def test_steps_or_epochs_can_be_changed_and_nothing_else(
    changes: Any, steps: Any, epochs: Any, kept: list[Any], tmp_path: Path
) -> None:
    er.resume(stopped(tmp_path / "run"), **changes)
    _, task, _, _, named = kept[0]
    assert (task.settings.steps, task.settings.epochs) == (steps, epochs)
    assert task.settings.learning_rate == 0.02
    assert named["changes"] == {k: v for k, v in changes.items() if v is not None}
    with pytest.raises(OptionError, match="--learning-rate cannot be changed"):
        er.resume(tmp_path / "run", steps=3, seed=1, learning_rate=0.1)


def test_ones_own_functions_are_given_again_to_go_on(kept: list[Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "normal", "registered_model": False, "options": {}}
    path = stopped(tmp_path / "run", {"y": torch.zeros(3)}, guide=None, **options)
    with pytest.raises(ModelError, match=r"your own model 'normal'"):
        er.resume(path)
    with pytest.raises(ModelError, match="your own guide"):
        er.resume(path, normal)
    er.resume(path, normal, guide)
    work, task, *_ = kept[0]
    assert work.guide is guide
    assert task.problem.model.name == "normal"
    other = stopped(tmp_path / "other", {"y": torch.zeros(3)}, **options)
    er.resume(other, normal)
    assert kept[1][0].guide == "mean_field"


def test_code_in_a_run_that_goes_on_is_trusted_or_refused(kept: list[Any], tmp_path: Path) -> None:
    path = stopped(tmp_path / "run", options={"formula": "y ~ np.square(x)"})
    with pytest.raises(RunFolderError, match="would run code"):
        er.resume(path)
    assert not kept
    er.resume(path, trust=True)
    assert len(kept) == 1


def test_points_are_still_points(line: Fit, tmp_path: Path) -> None:
    fit = er.fit(line.problem.model.name, line.problem.data, "map", formula="y ~ x", seed=3)
    again = er.load(fit.save(tmp_path / "points"))
    assert (line.fitted.point, fit.fitted.point, again.fitted.point) == (False, True, True)
    assert er.load(line.save(tmp_path / "line")).fitted.point is False


def test_what_a_request_cannot_ask_for_is_said_of_its_file(tmp_path: Path) -> None:
    path = stopped(tmp_path / "run", guide="collapsed")
    with pytest.raises(RunFolderError, match=r"request\.json' cannot be used: the guide 'coll"):
        er.resume(path)
    for given in ({"steps": 90}, {"guide": "collapsed"}):  # which may be what is wrong
        with pytest.raises(OptionError, match="the guide 'collapsed' was written for"):
            er.resume(path, **given)

"""What the public functions hand on, and what they refuse themselves."""

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from elbowroom import api
from elbowroom.comparison import compare
from elbowroom.errors import ModelError, OptionError, RunFolderError
from elbowroom.pipeline.fitting import Work

Y = torch.linspace(-1.0, 1.0, 6)


def means(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Work and tasks, and for a fit with checkpoints what is kept; nothing is fitted."""
    found: list[Any] = []

    def finish(work: Work, task: Any) -> str:
        found.append((work, task))
        return "fit"

    def keep(work: Work, task: Any, path: Path, request: Any, overwrite: bool) -> str:
        found.append((work, task, path, request, overwrite))
        return "kept"

    monkeypatch.setattr(Work, "done", finish)
    monkeypatch.setattr(Work, "kept", keep)
    return found


def test_a_fit_by_default_is_auto_and_has_a_new_seed(done: list[Any]) -> None:
    for _ in range(2):
        assert api.fit(means, {"y": Y}) == "fit"
    (work, task), (_, other) = done
    assert work == Work("auto", "auto", reference=False, fallback=None, report=None)
    assert task.seed != other.seed
    assert (task.draws, task.keep_local, task.announce, task.progress) == (None, False, None, None)
    assert task.problem.arguments["y"].tolist() == Y.double().tolist()


def test_a_fit_hands_on_what_it_is_asked(done: list[Any]) -> None:
    said: list[Any] = []
    api.fit(
        means, {"y": Y}, "map", engine="svi", seed=3, draws=300, keep_local=True, reference=True,
        fallback="nuts", announce=said.append, progress=print, report=said.extend, steps=9,
    )  # fmt: skip
    ((work, task),) = done
    assert work == Work("map", "svi", True, "nuts", said.extend)
    assert (task.seed, task.draws, task.keep_local) == (3, 300, True)
    assert (task.announce, task.progress) == (said.append, print)
    assert task.settings.steps == 9


def test_draws_are_those_that_the_model_suggests(
    done: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = api.bind_model
    monkeypatch.setattr(api, "bind_model", lambda *given: (*whole(*given)[:2], 250))
    for draws, taken in ((None, 250), (100, 100)):
        api.fit(means, {"y": Y}, seed=1, draws=draws)
        assert done[-1][1].draws == taken


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"fallback": "nutz"}, "did you mean 'nuts'"),
        ({"fallback": ""}, "fallback"),
        ({"seed": -1}, "--seed -1"),
        ({"draws": 99}, "--draws 99"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_fitted(
    done: list[Any], wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        api.fit(means, {"y": Y}, **wrong)
    assert done == []


class Mean:
    """A model as a method, which others forget to name."""

    def model(self, y: Tensor) -> None:
        means(y)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        *((each, "is no model: give the name of one, FILE.py:FUNCTION, or a Pyro model function")
          for each in (3, None, True, ["means"], {"means": means}, b"means", Path("means.py"),
                       torch.zeros(2), torch, Mean(), max, torch.sin)),
        *((each, "is a class: give an instance of it") for each in (Mean, dict, dist.Normal)),
        (dist.Normal(0.0, 1.0), r"Normal.* is a distribution, and no model: give a function"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("data", [{"y": Y}, None])
def test_what_is_no_model_is_refused_with_what_to_give(
    done: list[Any], given: Any, said: str, data: Any
) -> None:
    calls: list[Any] = [api.fit, api.check, api.estimators]
    for call in calls:
        with pytest.raises(OptionError, match=said):
            call(given, data)
    with pytest.raises(OptionError, match=said):
        compare(given, data)
    assert done == []


def test_names_of_data_that_are_no_arguments_are_told_with_the_edit(done: list[Any]) -> None:
    def two(y: Tensor, x: Tensor) -> None:
        means(y + x)

    with pytest.raises(ModelError, match="The model has no argument 'y': add it to the function"):
        api.fit(lambda: None, {"y": Y})
    with pytest.raises(ModelError, match="The model takes 'x': add it to the data"):
        api.fit(two, {"y": Y})
    with pytest.raises(ModelError, match="there is nothing to infer"):
        api.fit(lambda: None)

    def any_names(**data: Tensor) -> None:
        raise TypeError("of its own")

    with pytest.raises(ModelError, match=r"TypeError: of its own \(line [^)]*\)\)$"):
        api.fit(any_names, {"y": Y})
    assert done == []


def test_what_was_asked_is_kept_beside_the_checkpoints(done: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "run"
    given: dict[str, Any] = {
        "engine": "svi", "seed": 3, "draws": 300, "keep_local": True, "reference": True,
        "fallback": "nuts",
    }  # fmt: skip
    start = {"mean": 0.5}
    found = api.fit(means, {"y": Y}, "map", checkpoints=str(path), steps=9, start=start, **given)
    assert found == "kept"
    api.fit("bayesian_regression", guide=means, checkpoints=path, overwrite=True, seed=3)
    first, second = done
    _, task, where, request, overwrite = first
    assert (where, overwrite) == (path, False)
    assert request.asked == {
        "model": "means", "registered_model": False, "guide": "map", "options": {"steps": 9},
        "start": start, **given,
    }  # fmt: skip
    assert request.data is task.problem.data
    _, _, where, request, overwrite = second
    assert (where, overwrite) == (path, True)
    # A function cannot be written down.
    assert (request.asked["registered_model"], request.asked["guide"]) == (True, None)
    assert request.asked["model"] == "bayesian_regression"


def test_a_check_is_of_the_guide_and_the_seed_that_are_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def checks(problem: Any, guide: Any, settings: Any, seed: int) -> list[str]:
        seen.append((guide.name, settings.steps, seed))
        return ["ok"]

    monkeypatch.setattr(api, "run_checks", checks)
    assert api.check(means, {"y": Y}, seed=3, steps=9) == ["ok"]
    api.check(means, {"y": Y}, "mean_field", seed=4)
    assert seen == [("full_rank", 9, 3), ("mean_field", None, 4)]


def test_estimators_are_measured_by_fifty_gradients_at_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def measured(problem: Any, guide: Any, settings: Any, seed: int, gradients: int) -> str:
        seen.append((guide.name, settings.particles, seed, gradients))
        return "table"

    monkeypatch.setattr(api, "measure", measured)
    found = api.estimators(means, {"y": Y}, "mean_field", seed=3, gradients=50, particles=4)
    assert found == "table"
    assert seen == [("mean_field", 4, 3, 50)]
    with pytest.raises(OptionError, match="--gradients 49: give a whole number from 50"):
        api.estimators(means, {"y": Y}, gradients=49)
    assert len(seen) == 1


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(RunFolderError):
        api.fit(means, {"y": Y}, "map", seed=1, checkpoints=tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.txt"]

"""Which fits a comparison makes, where they begin, and what its lines and files hold."""

import json
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from torch import Tensor

from elbowroom import comparison
from elbowroom.comparison import Comparison, compare
from elbowroom.engines.settings import Settings, make_settings
from elbowroom.engines.task import Task
from elbowroom.errors import DataError, GuideError, OptionError, RunFolderError
from elbowroom.guides import get_guide
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.bound import Problem

Y = torch.linspace(-1.0, 1.0, 6)


def means(y: Tensor, batch_size: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=pyro.subsample(y, event_dim=0))


def of_points(y: Tensor) -> None:
    level = pyro.param("level", torch.tensor(0.0))
    with pyro.plate("rows", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("y", dist.Normal(level + kind, 1.0), obs=y)


@cache
def bound(model: Any = means) -> Problem:
    return bind_model(model, {"y": Y}, {})[0]


@dataclass(frozen=True)
class Made:
    """As much of a fit as a comparison looks at."""

    name: str
    mean: float = 0.0
    origin: str = "raw"
    status: str = "converged"
    local: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    diagnostics: dict[str, Any] = field(default_factory=dict)
    objective: tuple[str, str] = ("trace", "as asked")
    converged: bool = False
    rows: tuple[int, float] | None = None

    @property
    def verdict(self) -> Any:
        return SimpleNamespace(level="trusted", advice="")

    @property
    def evidence(self) -> Any:
        return SimpleNamespace(weights=SimpleNamespace(rows=self.rows))

    @property
    def trained(self) -> Any:
        return SimpleNamespace(status=self.status)

    @property
    def problem(self) -> Any:
        return SimpleNamespace(space=SimpleNamespace(local=self.local))

    @property
    def posterior(self) -> Any:
        def group(draws: Any) -> xarray.Dataset:
            return xarray.Dataset(dict.fromkeys(("mean", "z"), (("chain", "draw"), draws)))

        draws = np.array([[-1.0, 1.0]])
        groups = {"/posterior": group(self.mean + draws)}
        if self.origin != "raw":
            groups["/raw_posterior"] = group(self.mean + 3 * draws)
        return xarray.DataTree.from_dict(groups)

    def with_remarks(self, *said: str) -> "Made":
        return replace(self, notes=[*self.notes, *said])

    def save(self, path: Path) -> None:
        path.mkdir()
        (path / "name.txt").write_text(self.name)


class Fits:
    """What a comparison fits, in the place of fits.

    Attributes:
        given: For each its guide, its engine, where it begins, and its task.
        results: For each guide another result than a fit of ELBO -1, -2 and on.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[tuple[Any, str, Any, Task]] = []
        self.results: dict[Any, Any] = {}

        def fit_task(task: Task, guide: Any, engine: str = "auto", landscape: Any = None) -> Any:
            self.given.append((guide, engine, landscape, task))
            found = self.results.get(guide, Made(str(guide)))
            if isinstance(found, Exception):
                raise found
            bound = {"elbo": -float(len(self.given)), "seconds": 2.0}
            return replace(found, diagnostics={**found.diagnostics, **bound})

        def add_reference(fit: Made, take: bool = False) -> Made:
            assert take
            found: Made = self.results.get("nuts", replace(fit, origin="nuts", mean=5.0))
            return replace(found, diagnostics={**fit.diagnostics, "reference_seconds": 3.0})

        monkeypatch.setattr(comparison, "fit_task", fit_task)
        monkeypatch.setattr(comparison, "add_reference", add_reference)
        monkeypatch.setattr(comparison, "explore", lambda *given: ("explored", *given[1:]))
        monkeypatch.setattr(comparison, "leave_one_out", lambda _: {"elpd_loo": -7.0})
        monkeypatch.setattr(comparison, "held_out_scores", self.scores)

    def scores(self, fit: Made, test: Any) -> dict[str, float]:
        if fit.name == "map":
            raise GuideError("a point has none.")
        return {"test_log_density": -float(len(test))}


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Fits:
    return Fits(monkeypatch)


def lines(found: Comparison) -> Any:
    return found.table.set_index("guide")


def test_every_fit_begins_at_the_users_start(fits: Fits, tmp_path: Path) -> None:
    path = tmp_path / "start.json"
    path.write_text('{"mean": 0.5}')
    for start in ({"mean": 0.5}, path):
        compare(means, {"y": Y}, ["mean_field", "map"], seed=3, start=start)
    assert [task.problem.start["mean"].item() for *_, task in fits.given] == [0.5] * 4
    with pytest.raises(OptionError, match="a guide of your own begins where its parameters do"):
        compare(means, {"y": Y}, ["map", lambda y: None], start=path)


def test_every_guide_is_fitted_alike_from_one_start(fits: Fits) -> None:
    found = compare(
        means, {"y": Y}, ["mean_field", "flow", "auto"], seed=3, draws=300, restarts=2
    )  # fmt: skip
    assert [guide for guide, *_ in fits.given] == ["mean_field", "flow", "auto"]
    assert {engine for _, engine, *_ in fits.given} == {"auto"}
    assert {landscape for *_, landscape, _ in fits.given} == {("explored", 2, 3)}
    assert {(task.seed, task.draws) for *_, task in fits.given} == {(3, 300)}
    assert len({id(task.problem) for *_, task in fits.given}) == 1
    table = lines(found)
    assert table["elbo"].to_dict() == {"mean_field": -1.0, "flow": -2.0, "auto": -3.0}
    assert (table["objective"] == "trace").all()
    assert (table["verdict"] == "trusted").all()
    assert not table["converged"].any()
    assert (found.seed, found.best, found.baseline) == (3, "mean_field", "mean_field")
    assert list(found.fits) == ["mean_field", "flow", "auto"]
    assert found.differences["quantity"].tolist() == ["mean", "z"] * 3


def test_each_fit_shows_its_own_progress(fits: Fits) -> None:
    def progress(name: str) -> Any:
        return None if name == "flow" else name.upper

    compare(means, {"y": Y}, ["laplace", "flow"], seed=1, progress=progress)
    assert [getattr(task.progress, "__self__", None) for *_, task in fits.given] == [
        "laplace", None,
    ]  # fmt: skip
    compare(means, {"y": Y}, ["laplace"], seed=1)
    assert fits.given[-1][3].progress is None


def test_draws_are_those_that_the_model_suggests(
    fits: Fits, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = comparison.bind_model
    monkeypatch.setattr(comparison, "bind_model", lambda *given: (*whole(*given)[:2], 250))
    for draws, taken in ((None, 250), (100, 100)):
        compare(means, {"y": Y}, ["laplace"], seed=1, draws=draws)
        assert fits.given[-1][3].draws == taken


def test_a_guide_that_fails_is_a_line_and_the_others_go_on(fits: Fits) -> None:
    fits.results["laplace"] = GuideError("no mode.")
    found = compare(means, {"y": Y}, ["laplace", "map"], seed=1)
    assert lines(found).loc["laplace", "error"] == "no mode."
    assert list(found.fits) == ["map"]
    assert found.table["guide"].tolist() == ["map", "laplace"]
    fits.results["map"] = GuideError("no use.")
    none = compare(means, {"y": Y}, ["laplace", "map"], seed=1)
    assert (none.best, none.baseline, none.fits) == (None, None, {})
    assert none.differences.empty


def test_ctrl_c_ends_the_comparison_with_what_there_is(fits: Fits) -> None:
    fits.results["laplace"] = Made("laplace", status="interrupted")
    found = compare(means, {"y": Y}, ["map", "laplace", "mean_field"], seed=1)
    assert list(found.fits) == ["map", "laplace"]


def test_nuts_begins_at_auto_and_has_no_bound(fits: Fits) -> None:
    found = compare(means, {"y": Y}, ["mean_field", "nuts"], seed=1, draws=300)
    guide, engine, landscape, task = fits.given[1]
    assert (guide, engine, landscape, task.draws) == ("auto", "auto", None, None)
    line = lines(found).loc["nuts"]
    assert np.isnan(line["elbo"])
    assert (line["objective"], line["elpd_loo"], line["seconds"]) == ("sampled", -7.0, 5.0)
    assert (line["parameters"], line["verdict"]) == (0, "trusted")
    assert line["converged"]
    assert (found.best, found.baseline) == ("mean_field", "nuts")
    shifts = found.differences.groupby("guide")["mean_shift"].max()
    assert shifts.to_dict() == {"mean_field": -5.0, "nuts": 0.0}


def test_nuts_that_has_not_mixed_is_a_failure(fits: Fits) -> None:
    fits.results["nuts"] = Made("nuts", notes=["first.", "NUTS has not converged."])
    found = compare(means, {"y": Y}, ["mean_field", "nuts"], seed=1)
    assert lines(found).loc["nuts", "error"] == "NUTS has not converged."
    assert (list(found.fits), found.baseline) == (["mean_field"], "mean_field")


def test_own_draws_are_those_before_the_correction(fits: Fits) -> None:
    fits.results["mean_field"] = Made("mean_field", origin="corrected")
    found: Any = compare(means, {"y": Y}, ["mean_field", "map"], seed=1).differences
    ratios = found[found["quantity"] == "mean"].set_index("guide")
    assert ratios["sd_ratio"].to_dict() == {"mean_field": 3.0, "map": 1.0}
    assert ratios.loc["mean_field", "corrected_sd_ratio"] == 1.0
    assert np.isnan(ratios.loc["map", "corrected_sd_ratio"])
    nuts: Any = compare(means, {"y": Y}, ["mean_field", "nuts"], seed=1).differences
    assert nuts.set_index("guide").loc["nuts", "sd_ratio"].tolist() == [1.0, 1.0]


def test_rows_with_weights_of_their_own_have_their_columns(fits: Fits) -> None:
    measures = {"log_evidence": -30.0, "log_evidence_se": 0.5, "active_units": 2}
    fits.results["map"] = Made("map", diagnostics=measures, rows=(6, 0.25))
    line = lines(compare(means, {"y": Y}, ["map", "laplace"], seed=1)).loc["map"]
    assert line[["nll", "nll_se", "good_rows"]].tolist() == pytest.approx([5.0, 0.5 / 6, 0.75])
    assert line["active_units"] == 2
    assert "nll" not in compare(means, {"y": Y}, ["laplace"], seed=1).table


def test_latents_of_rows_are_no_quantities(fits: Fits) -> None:
    fits.results["map"] = Made("map", local=("z", "absent"))
    found = compare(means, {"y": Y}, ["map"], seed=1)
    assert found.differences["quantity"].tolist() == ["mean"]


# Rows held out.

TABLE = pd.DataFrame({"y": np.linspace(-1.0, 1.0, 10)})


def test_rows_held_out_are_scored_and_not_fitted(fits: Fits) -> None:
    found = compare(means, TABLE, ["laplace", "map"], seed=1, test_size=0.3)
    fitted = {len(task.problem.data) for *_, task in fits.given}
    assert fitted == {7}
    assert lines(found)["test_log_density"].to_dict() == {
        "laplace": -3.0, "map": pytest.approx(np.nan, nan_ok=True)
    }  # fmt: skip
    said = "The test rows could not be scored: a point has none."
    assert [fit.notes for fit in found.fits.values()] == [[], [said]]
    other = compare(means, TABLE, ["laplace"], seed=2, test_size=3)
    assert other.fits["laplace"].notes == []
    (_, _, _, first), *_, (_, _, _, last) = fits.given
    assert len(last.problem.data) == 7
    assert set(first.problem.data["y"]) != set(last.problem.data["y"])
    whole = compare(means, TABLE, ["laplace"], seed=1)
    assert "test_log_density" not in whole.table
    assert len(fits.given[-1][3].problem.data) == 10


def test_rows_are_held_out_of_a_table(fits: Fits) -> None:
    with pytest.raises(OptionError, match="the data are not a table"):
        compare(means, {"y": Y}, ["map"], seed=1, test_size=0.3)
    with pytest.raises(OptionError, match="the data are not a table"):
        compare(means, None, ["map"], seed=1, test_size=0.3)
    compare("bayesian_regression", None, ["map"], seed=1, test_size=42)
    assert len(fits.given[0][3].problem.data) == 400  # of the bundled table's 442
    compare("bayesian_regression", "diabetes", ["map"], seed=1, test_size=0.5)
    assert len(fits.given[1][3].problem.data) == 221


def test_what_is_predicted_must_be_in_the_table(
    fits: Fits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Problem, "new_arguments", lambda *_: ({"y": Y}, False))
    with pytest.raises(DataError, match="no column with the observed values"):
        compare(means, TABLE, ["laplace"], seed=1, test_size=0.3)
    compare(means, TABLE, ["laplace"], seed=1)
    assert len(fits.given) == 1


# Methods.


def methods(*guides: Any, engine: str = "auto", model: Any = means, **given: Any) -> list[Any]:
    problem = bound(model)
    return comparison._methods(guides or None, problem, make_settings(given), engine)


def test_a_method_is_a_guide_with_its_engine_and_what_it_reads() -> None:
    free, stochastic = methods("mean_field", "mean_field:trace", steps=9, particles=4)
    assert (free.name, free.guide, free.chosen) == ("mean_field", "mean_field", "svi")
    assert (free.settings.steps, free.settings.elbo) == (9, None)
    assert (stochastic.name, stochastic.guide) == ("mean_field:trace", "mean_field")
    assert (stochastic.engine, stochastic.chosen) == ("auto", "svi")
    assert stochastic.settings.elbo == "trace"
    assert stochastic.settings.particles == 4
    found, nuts = methods("linear_response", "nuts", "mean_field")[:2]
    assert (found.chosen, nuts.chosen, nuts.guide) == ("fixed_draws", "nuts", "nuts")
    by_svi, sampler = methods("mean_field", "nuts", engine="svi", steps=9)
    assert (by_svi.engine, by_svi.chosen, by_svi.settings.steps) == ("svi", "svi", 9)
    assert (sampler.engine, sampler.settings.steps) == ("svi", None)


def test_an_objective_takes_the_options_that_are_its_own() -> None:
    renyi, trace = methods("mean_field:renyi", "mean_field:trace", alpha=0.3, particles=4)
    assert renyi.settings.of_objectives == {"alpha": 0.3}
    assert trace.settings.of_objectives == {}
    assert {each.settings.particles for each in (renyi, trace)} == {4}
    linear, _ = methods("linear_response", "mean_field:trace", steps=9)
    assert (linear.chosen, linear.settings.steps) == ("fixed_draws", None)
    with pytest.raises(OptionError, match="--alpha would have no effect"):
        methods("mean_field:trace", "nuts", alpha=0.3)
    with pytest.raises(OptionError, match="--steps would have no effect"):
        methods("linear_response", "nuts", steps=9)
    assert [each.chosen for each in methods("nuts", steps=9)] == ["nuts"]


def test_an_objective_is_that_of_stochastic_gradients_whatever_else_is_given() -> None:
    """Over fixed draws it would not be read."""
    free, asked = methods("mean_field", "mean_field:trace_mean_field", restarts=3)
    assert (free.chosen, asked.chosen) == ("fixed_draws", "svi")
    assert (asked.settings.elbo, asked.settings.restarts) == ("trace_mean_field", 3)
    assert "elbo" in asked.settings.given  # a fit by these settings takes it so too
    with pytest.raises(OptionError, match="--elbo would have no effect"):
        methods("mean_field:trace", "flow", engine="fixed_draws")
    with pytest.raises(OptionError, match=r"renyi needs several draws; give --particles"):
        methods("mean_field:renyi")


def test_a_method_that_makes_no_sense_is_refused() -> None:
    wrongs = {
        ("linear_response:trace",): "the guide 'linear_response' is fitted in another way",
        (
            "mean_field:tarce",
        ): "mean_field:tarce: there is no objective 'tarce'; give one of trace, ",
        ("map", "laplace", "map"): "--guide map is given twice",
        ("nuts:trace",): "guide",
    }
    for guides, said in wrongs.items():
        with pytest.raises(OptionError, match=said):
            methods(*guides)
    both = methods("mean_field", "mean_field:trace")
    assert [each.name for each in both] == ["mean_field", "mean_field:trace"]


def test_functions_are_named_by_themselves() -> None:
    def mine(y: Tensor) -> None:
        """Draws nothing."""

    (found,) = methods(mine)
    assert (found.name, found.guide, found.chosen) == ("mine", mine, "svi")
    with pytest.raises(OptionError, match="--guide mine is given twice"):
        methods(mine, mine)


def test_by_default_all_guides_are_compared_that_fit_the_latents() -> None:
    assert "mle" in [each.name for each in methods()]
    # Points alone have no posterior, nor priors to be left out.
    assert [each.name for each in methods(model=of_points)] == ["map"]


# Starts.


def starts(monkeypatch: pytest.MonkeyPatch, problem: Any) -> Any:
    begun: list[Any] = []

    def explore(*given: Any) -> str:
        begun.append(given)
        return "explored"

    def start(task: Task, guide: Any) -> str:
        begun.append((task.seed, guide))
        return "fixed"

    engine = SimpleNamespace(start=start, stochastic=False, explores=True)
    monkeypatch.setattr(comparison, "explore", explore)
    monkeypatch.setitem(comparison.ENGINES, "fixed_draws", engine)
    found = comparison._Starts(problem, make_settings({"restarts": 5}), 4)
    return lambda name: found.of(name, get_guide("laplace", None)), begun


def test_modes_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = bound()
    start, begun = starts(monkeypatch, problem)
    assert [start(name) for name in ("svi", "fixed_draws", "svi")] == ["explored"] * 3
    assert begun == [(problem, 5, 4)]
    assert start("em") is None


@pytest.mark.parametrize("why", ["points", "engine"])
def test_where_engines_begin_apart_stochastic_ones_find_their_own(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    points = bound(of_points)
    of_a_model = replace(bound(), model=replace(bound().model, engine="svi"))
    start, begun = starts(monkeypatch, points if why == "points" else of_a_model)
    found = [start(name) for name in ("svi", "fixed_draws", "em", "fixed_draws")]
    assert found == [None, "fixed", None, "fixed"]
    assert begun == [(4, get_guide("laplace", None))]


# Files.


def comparison_of(*names: str) -> Comparison:
    made: dict[str, Any] = {name: Made(name) for name in names}
    table = pd.DataFrame(
        {
            "guide": names, "best": [i == 1 for i in range(len(names))], "elbo": -1.5,
            "seconds": 2.0, "verdict": "trusted", "error": "",
        }
    )  # fmt: skip
    differences = pd.DataFrame({"guide": names, "mean_shift": 0.25})
    return Comparison(table, differences, made, 3, names[-1])


def test_the_best_of_several_that_tie_is_the_fastest() -> None:
    found = comparison_of("a", "b")
    assert found.best == "b"
    assert comparison_of("a").best is None
    table = found.table.assign(best=True, seconds=[1.0, 2.0])
    assert replace(found, table=table).best == "a"


def test_a_folder_holds_the_tables_and_each_fit(tmp_path: Path) -> None:
    path = tmp_path / "out"
    found = comparison_of("a", "b:trace")
    assert found.save(str(path)) == path
    table = pd.read_csv(path / "comparison.csv")
    assert table[["guide", "best", "elbo"]].to_dict("list") == {
        "guide": ["a", "b:trace"], "best": [False, True], "elbo": [-1.5, -1.5]
    }  # fmt: skip
    differences = pd.read_csv(path / "differences.csv")
    assert differences.to_dict("list") == {"guide": ["a", "b:trace"], "mean_shift": [0.25, 0.25]}
    text = (path / "comparison.json").read_text()
    assert text.endswith("}\n")
    assert text.startswith('{\n "seed"')  # a line each, for people
    usual = {"elbo": -1.5, "seconds": 2.0, "verdict": "trusted", "error": ""}
    assert json.loads(text) == {
        "seed": 3,
        "best": "b:trace",
        "baseline": "b:trace",
        "recommendation": "Take b:trace: it is trusted, and its ELBO is the highest of the trusted "
        "guides.",
        "guides": [
            {"guide": "a", "best": False, **usual}, {"guide": "b:trace", "best": True, **usual}
        ],
        "differences": [
            {"guide": "a", "mean_shift": 0.25}, {"guide": "b:trace", "mean_shift": 0.25}
        ],
    }  # fmt: skip
    assert (path / "b-trace" / "name.txt").read_text() == "b:trace"
    assert (path / "a" / "name.txt").read_text() == "a"


def test_a_folder_is_replaced_only_if_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "out"
    comparison_of("a", "b").save(path)
    with pytest.raises(RunFolderError, match="--overwrite"):
        comparison_of("c", "d").save(path)
    assert (path / "a").exists()
    comparison_of("c", "d").save(path, overwrite=True)
    assert not (path / "a").exists()
    assert (path / "c").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(RunFolderError):
        comparison_of("a", "b").save(tmp_path / "mine", overwrite=True)


def test_settings_of_a_comparison_are_those_of_its_fits(fits: Fits) -> None:
    compare(means, {"y": Y}, ["mean_field:trace"], seed=1, steps=9)
    given: Settings = fits.given[0][3].settings
    assert (given.steps, given.elbo) == (9, "trace")

"""The way of a fit: which guide, which engine, which options, and what is done when one fails."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from elbowroom.engines.settings import make_settings
from elbowroom.engines.task import Task
from elbowroom.errors import GuideError, NoModeError, OptionError, RunFolderError, as_given
from elbowroom.guides import Guide, get_guide
from elbowroom.pipeline import fitting
from elbowroom.pipeline.fitting import Work, bind_model, chosen_engine, resolve_guide
from elbowroom.problem.bound import Problem
from elbowroom.run.unfinished import Request

Y = torch.linspace(-1.0, 1.0, 6)


def means(y: Tensor, size: int = 1, batch_size: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(size), 1.0).to_event(1))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        pyro.sample("y", dist.Normal(mean[0], 1.0), obs=pyro.subsample(y, event_dim=0))


def of_rows(y: Tensor, batch_size: int | None = None) -> None:
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=pyro.subsample(y, event_dim=0))


def of_points(y: Tensor) -> None:
    level = pyro.param("level", torch.tensor(0.0))
    with pyro.plate("rows", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("y", dist.Normal(level + kind, 1.0), obs=y)


@cache
def bound(model: Callable[..., Any] = means, **data: Any) -> Problem:
    return bind_model(model, {"y": Y, **data}, {})[0]


# Guides.


def test_a_guide_s_own_settings_give_way_to_what_the_user_gave() -> None:
    def guided(suggested: dict[str, Any], **given: Any) -> Any:
        own = replace(get_guide("mean_field", None), suggested=suggested)
        return fitting.suited(make_settings(given, {"learning_rate": 0.005}), own)

    assert guided({"learning_rate": 0.02}).learning_rate == 0.02  # and not the model's
    assert guided({"learning_rate": 0.02}, learning_rate=0.1).learning_rate == 0.1
    assert guided({}).learning_rate == 0.005
    warm = {"kl_warm_up": 1000}
    assert guided(warm).kl_warm_up == 1000
    assert guided(warm, kl_warm_up=5).kl_warm_up == 5
    # A short run has time to end its warm-up; an objective without a KL term has none.
    assert guided(warm, steps=400).kl_warm_up == 100
    assert guided(warm, steps=2).kl_warm_up == 1
    assert guided(warm, elbo="wake_sleep").kl_warm_up is None


def test_a_fit_takes_its_guide_s_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(fitting, "fit_guide", lambda task, *_: taken.append(task.settings))
    suggesting = replace(get_guide("mean_field", None), suggested={"particles": 3})
    task = Task(bound(), make_settings({"steps": 9}), 1)
    fitting.fit_task(task, suggesting, "svi")
    assert (taken[0].particles, taken[0].steps) == (3, 9)
    for model in ("vae", "conditional_vae"):
        assert get_guide("local", model).suggested == {"learning_rate": 0.02}
    assert get_guide("bayes_by_backprop", "bayesian_neural_network").suggested


def test_auto_is_the_guide_that_the_model_s_latents_allow() -> None:
    assert resolve_guide("auto", bound(size=200)).name == "full_rank"
    assert resolve_guide("auto", bound(size=201)).name == "mean_field"
    assert resolve_guide("auto", bound(of_rows)).name == "mean_field"
    assert resolve_guide("auto", bound(of_points)).name == "map"
    named, *_ = bind_model("bayesian_regression", "diabetes", {})
    assert resolve_guide("auto", named).name == "structured"


def test_a_guide_s_declaration_stays_as_it_is() -> None:
    guide = get_guide("laplace", None)
    assert resolve_guide(guide, bound()) is guide
    assert resolve_guide("laplace", bound()) is guide
    assert resolve_guide("map", bound(of_points)).name == "map"
    with pytest.raises(OptionError, match="the model has none; fit with --guide auto"):
        resolve_guide("laplace", bound(of_points))


def test_a_users_own_guide_is_what_it_says() -> None:
    def mine(y: Tensor) -> None:
        """Draws nothing."""

    problem = bound()
    for amortised in (False, True):
        if amortised:
            mine.amortised = True  # type: ignore[attr-defined]
        found = resolve_guide(mine, problem)
        assert (found.name, found.amortised, found.engines) == ("mine", amortised, ("svi",))
        assert as_given(found.build(problem.space, None)) is mine  # type: ignore[arg-type]

    class Mine:
        def __call__(self, y: Tensor) -> None:
            """Draws nothing."""

    assert resolve_guide(Mine(), problem).name == "Mine"
    with pytest.raises(OptionError, match="3 is not a guide"):
        resolve_guide(3, problem)


def test_a_class_of_guides_is_built_for_the_model_s_continuous_sites() -> None:
    problem = bound(of_points)
    found = resolve_guide(AutoNormal, problem)
    assert found.name == "AutoNormal"
    assert not found.amortised
    with problem.session(0):
        built: Any = found.build(problem.space, None)  # type: ignore[arg-type]
        blocked = pyro.poutine.trace(built.model).get_trace(**problem.arguments)
    assert isinstance(built, AutoNormal)
    assert "kind" not in blocked.nodes
    assert "y" in blocked.nodes


# Options.


def suggesting(**suggested: Any) -> Any:
    return SimpleNamespace(suggested=suggested)


def test_a_users_options_go_before_the_model_s() -> None:
    model = suggesting(draws=300, epochs=5, learning_rate=0.1)
    settings, draws = fitting.resolve_settings(model, {"learning_rate": None})
    assert (draws, settings.epochs, settings.learning_rate) == (300, 5, 0.1)
    settings, _ = fitting.resolve_settings(model, {"learning_rate": 0.3, "epochs": None})
    assert (settings.epochs, settings.learning_rate) == (5, 0.3)
    assert settings.given == {"learning_rate"}
    for given in ({"steps": 9}, {"epochs": 9}):
        for own in (model, suggesting(steps=4)):
            settings, _ = fitting.resolve_settings(own, given)
            assert (settings.steps, settings.epochs) == (given.get("steps"), given.get("epochs"))
    assert fitting.resolve_settings(suggesting(), {})[1] is None
    assert model.suggested == {"draws": 300, "epochs": 5, "learning_rate": 0.1}


def test_a_suggested_minibatch_gives_way_to_a_small_table(monkeypatch: pytest.MonkeyPatch) -> None:
    own = fitting.resolve_model

    def suggests(size: int) -> None:
        def resolve(model: Any) -> Any:
            return replace(own(model), suggested={"batch_size": size})

        monkeypatch.setattr(fitting, "resolve_model", resolve)

    for size, taken in ((5, 5), (6, None), (7, None)):
        suggests(size)
        assert bind_model(of_rows, {"y": Y}, {})[1].batch_size == taken
        # Asked for, it is the user's.
        asked = bind_model(of_rows, {"y": Y}, {"batch_size": size})[1]
        assert asked.batch_size == size
    suggests(7)
    assert bind_model(of_points, {"y": Y}, {})[1].batch_size == 7  # which has no minibatches
    monkeypatch.setattr(fitting, "resolve_model", own)
    assert bind_model(of_rows, {"y": Y}, {})[1].batch_size is None


def test_a_model_is_bound_by_its_own_options_and_the_fit_s_numbers() -> None:
    problem, settings, draws = bind_model(
        "bayesian_regression", "diabetes",
        {"formula": "progression ~ bmi", "dtype": "float32", "device": "cpu", "restarts": 3},
    )  # fmt: skip
    assert problem.options.formula == "progression ~ bmi"
    assert (problem.dtype, problem.device) == (torch.float32, torch.device("cpu"))
    assert (settings.restarts, draws) == (3, None)
    assert bound().options is None
    assert bound().dtype == torch.float64


@pytest.mark.parametrize(("size", "few"), [(2000, True), (2001, False)])
def test_correlations_are_chosen_where_not_all_are_taken(size: int, few: bool) -> None:
    data = {"y": Y, "size": size}
    if few:
        with pytest.raises(OptionError, match="2000 latent dimensions, few enough for all"):
            bind_model(means, data, {"correlated": "mean"})
    else:
        assert bind_model(means, data, {"correlated": "mean"})[1].correlated == "mean"
    assert bind_model(means, data, {})[1].correlated is None


# Engines.


def engine_of(guide: str | None, asked: str = "auto", given: Any = (), **model: Any) -> str:
    """The engine of a fit of the means, which may be asked for and given options."""
    problem = bound(**{k: v for k, v in model.items() if k == "size"})
    declared = replace(
        problem.model, **{k: v for k, v in model.items() if k in ("engine", "suggested")}
    )
    problem = replace(problem, model=declared)
    found = None if guide is None else resolve_guide(guide, problem)
    return chosen_engine(asked, found, problem, make_settings(dict(given)))


@pytest.mark.parametrize(
    ("engine", "asked"),
    [
        ("fixed_draws", {"guide": None}),
        ("fixed_draws", {"guide": "mean_field"}),
        ("svi", {"guide": "flow"}),
        # Options that stochastic gradients alone read ask for these, also a model's own.
        ("svi", {"guide": "mean_field", "given": {"steps": 9}}),
        ("svi", {"guide": None, "given": {"learning_rate": 0.1}}),
        ("svi", {"guide": "mean_field", "suggested": {"epochs": 9}}),
        ("fixed_draws", {"guide": "mean_field", "given": {"fixed_draws": 64, "dtype": "float64"}}),
        ("fixed_draws", {"guide": "mean_field", "suggested": {"draws": 9, "restarts": 3}}),
        # More dimensions than covariances are held whole in.
        ("svi", {"guide": "full_rank", "size": 2001}),
        ("fixed_draws", {"guide": "mean_field", "size": 2001}),
        # A model's engine is that of `auto`.
        ("svi", {"guide": None, "engine": "svi"}),
        ("fixed_draws", {"guide": "mean_field", "engine": "svi"}),
        # What is asked for is taken, and looked at later.
        ("svi", {"guide": "mean_field", "asked": "svi"}),
        ("fixed_draws", {"guide": "flow", "asked": "fixed_draws"}),
        ("em", {"guide": None, "asked": "em"}),
    ],
)
def test_the_engine_is_the_one_that_model_guide_and_options_allow(
    engine: str, asked: dict[str, Any]
) -> None:
    assert engine_of(**asked) == engine


def test_a_guide_of_one_engine_has_it_whatever_the_options() -> None:
    guide = Guide("steps", "", lambda *_: lambda **_: None, engines=("em",))
    assert chosen_engine("auto", guide, bound(), make_settings({"learning_rate": 0.1})) == "em"
    with pytest.raises(OptionError, match="did you mean 'svi'"):
        engine_of(None, "svii")


def test_an_engine_s_own_guide_goes_by_its_name() -> None:
    assert fitting._engines_own("auto", "em") == "em"
    assert fitting._engines_own("auto", "svi") == "auto"
    assert fitting._engines_own("map", "em") == "map"
    assert fitting._engines_own(resolve_guide, "em") is resolve_guide


# A fit of one guide, and of `auto`.


class Fits:
    """What is fitted, in the place of fits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: Any = None) -> None:
        self.made: list[tuple[str, str, Any]] = []
        self.climbs: list[Any] = []
        self.auto: list[bool] = []

        def fit_guide(task: Any, guide: Any, engine: str, landscape: Any) -> Any:
            self.made.append((guide.name, engine, landscape))
            self.auto.append(task.auto)
            if fail is not None and len(self.made) == 1:
                raise fail
            return SimpleNamespace(with_remarks=lambda *said: ("fit", *said))

        def climb(task: Any, fit_one: Any, report: Any) -> str:
            assert fit_one is fit_guide
            self.climbs.append(report)
            assert task.auto
            return "climbed"

        monkeypatch.setattr(fitting, "fit_guide", fit_guide)
        monkeypatch.setattr(fitting, "climb_ladder", climb)


def task(problem: Problem | None = None, draws: int | None = None, **given: Any) -> Task:
    return Task(problem or bound(), make_settings(given), 1, draws)


WHERE: Any = "landscape"


def test_auto_climbs_the_ladder_where_fixed_draws_fit_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits, said = Fits(monkeypatch), print
    assert fitting.fit_task(task(), "auto", report=said) == "climbed"
    assert (fits.made, fits.climbs) == ([], [said])
    with pytest.raises(OptionError, match="--steps would have no effect"):
        fitting.fit_task(task(steps=9), "auto", "fixed_draws")
    fitting.fit_task(task(steps=9), "auto")
    fitting.fit_task(task(bound(of_rows)), "auto")
    assert fits.made == [("full_rank", "svi", None), ("mean_field", "svi", None)]
    with pytest.raises(OptionError, match="latents for each row; fit with --engine svi"):
        fitting.fit_task(task(bound(of_rows)), "auto", "fixed_draws")
    assert fits.climbs == [said]
    assert fits.auto == [True, True]


def test_a_guide_that_was_asked_for_is_fitted_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = Fits(monkeypatch)
    fitting.fit_task(task(), "mean_field", landscape=WHERE)
    fitting.fit_task(task(), "full_rank", "svi")
    assert fits.made == [("mean_field", "fixed_draws", WHERE), ("full_rank", "svi", None)]
    assert fits.climbs == []
    assert fits.auto == [False, False]
    with pytest.raises(OptionError, match="--learning-rate would have no effect"):
        fitting.fit_task(task(learning_rate=0.1), "mean_field", "fixed_draws")
    with pytest.raises(OptionError, match="--fixed-draws would have no effect"):
        fitting.fit_task(task(fixed_draws=64), "laplace")
    with pytest.raises(OptionError, match="the guide 'flow' needs --engine svi"):
        fitting.fit_task(task(), "flow", "fixed_draws")
    with pytest.raises(OptionError, match="the guide 'mean_field' needs --engine fixed_draws"):
        fitting.fit_task(task(), "mean_field", "em")  # or svi, which `auto` takes second
    assert len(fits.made) == 2


def test_a_guide_that_is_the_posterior_is_taken_by_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """At given points; so is the guide of expectation-maximisation by its engine."""
    fits = Fits(monkeypatch)
    problem, settings, _ = bind_model("factor_analysis", "iris", {})
    fitting.fit_task(Task(problem, settings, 1), "auto")
    fitting.fit_task(Task(problem, make_settings({}), 1), "auto", "em")
    exact, by_steps = fits.made
    assert resolve_guide("auto", problem).exact
    assert exact[0] == resolve_guide("auto", problem).name
    assert by_steps == ("em", "em", None)
    assert fits.climbs == []


NO_MODE = NoModeError("the density has no mode; fit with another guide")


def test_without_a_mode_stochastic_gradients_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = Fits(monkeypatch, NO_MODE)
    found: Any = fitting.fit_task(task(), "mean_field", landscape=WHERE)
    assert found == ("fit", "Fitted with --engine svi, not fixed_draws: the density has no mode.")
    assert fits.made == [("mean_field", "fixed_draws", WHERE), ("mean_field", "svi", None)]


@pytest.mark.parametrize(
    ("guide", "engine", "given"),
    [
        ("mean_field", "fixed_draws", {}),  # asked for
        ("mean_field", "auto", {"learning_rate": 0.1}),  # they were those already
        ("linear_response", "auto", {}),  # which they do not fit
    ],
)
def test_else_there_is_no_fit(
    monkeypatch: pytest.MonkeyPatch, guide: str, engine: str, given: Any
) -> None:
    fits = Fits(monkeypatch, NO_MODE)
    with pytest.raises(NoModeError):
        fitting.fit_task(task(**given), guide, engine)
    assert len(fits.made) == 1
    other = Fits(monkeypatch, GuideError("no use."))
    with pytest.raises(GuideError, match="no use"):
        fitting.fit_task(task(), "mean_field")
    assert len(other.made) == 1


def test_a_fit_is_planned_begun_fitted_drawn_and_concluded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimpleNamespace(
        draws=4000,
        plan=lambda task, guide: ("plan", guide),
        start=lambda task, guide: ("start", guide),
        fit=lambda task, guide, start: ("fitted", guide, start),
    )
    monkeypatch.setitem(fitting.ENGINES, "fixed_draws", engine)
    monkeypatch.setattr(fitting, "by_row", lambda fitted: fitted)
    monkeypatch.setattr(fitting, "draw_posterior", lambda task, *given: ("drawn", *given))
    monkeypatch.setattr(fitting, "conclude", lambda task, *given: given)
    announced: list[Any] = []
    guide: Any = SimpleNamespace(name="guide")
    for draws, count in ((None, 4000), (300, 300)):
        given = replace(task(draws=draws), announce=announced.append)
        found: Any = fitting.fit_guide(given, guide, "fixed_draws", None)
        start = ("start", guide)
        fitted = ("fitted", guide, start)
        assert found == (fitted, ("drawn", fitted, start, count), start)
    assert announced == [("plan", guide)] * 2
    found = fitting.fit_guide(task(), guide, "fixed_draws", WHERE)
    assert found[0] == ("fitted", guide, WHERE)


# What follows a fit.


class Followed:
    """What is done after a fit of some status and verdict."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trusted: bool, status: str) -> None:
        verdict = SimpleNamespace(trusted=trusted)
        self.fit = SimpleNamespace(trained=SimpleNamespace(status=status), verdict=verdict)
        self.given: list[Any] = []

        def fit_task(task: Any, guide: Any, engine: str, report: Any) -> Any:
            self.given.append((task.seed, guide, engine, report))
            return self.fit

        monkeypatch.setattr(fitting, "fit_task", fit_task)
        monkeypatch.setattr(
            fitting, "add_reference", lambda fit, take=False: "taken" if take else "compared"
        )

    def by(self, reference: bool, fallback: str | None, guide: Any = "map") -> Any:
        return Work(guide, "svi", reference, fallback, print).done(task())


@pytest.mark.parametrize(
    ("trusted", "status", "reference", "fallback", "result"),
    [
        (True, "converged", False, None, "fit"),
        (True, "converged", True, None, "compared"),
        (False, "converged", True, None, "compared"),
        (False, "converged", False, None, "fit"),
        (True, "converged", False, "nuts", "fit"),
        (True, "converged", True, "nuts", "compared"),
        (False, "budget", False, "nuts", "taken"),
        (False, "budget", True, "nuts", "taken"),
        (False, "interrupted", True, "nuts", "fit"),
        (True, "interrupted", True, None, "fit"),
    ],
)
def test_nuts_is_run_where_it_is_asked_for_and_taken_as_a_fallback(
    monkeypatch: pytest.MonkeyPatch,
    trusted: bool,
    status: str,
    reference: bool,
    fallback: str | None,
    result: str,
) -> None:
    followed = Followed(monkeypatch, trusted, status)
    found = followed.by(reference, fallback)
    assert found == (followed.fit if result == "fit" else result)
    assert followed.given == [(1, "map", "svi", print)]


@pytest.mark.parametrize(
    ("reference", "fallback", "option"),
    [(True, None, "--reference"), (False, "nuts", "--fallback nuts"), (True, "nuts", "--ref")],
)
def test_nuts_needs_the_priors(
    monkeypatch: pytest.MonkeyPatch, reference: bool, fallback: str | None, option: str
) -> None:
    followed = Followed(monkeypatch, True, "converged")
    with pytest.raises(OptionError, match=f"^{option}.*'mle' leaves the priors out"):
        followed.by(reference, fallback, "mle")
    assert followed.given == []
    assert followed.by(False, None, "mle") is followed.fit
    # Without NUTS a guide is not looked at yet.
    assert followed.by(False, None, "no such guide") is followed.fit


@dataclass(frozen=True)
class Told:
    """As much of a fit as is changed when its checkpoints are done."""

    said: tuple[str, ...] = ()
    folder: Path | None = None

    def with_remarks(self, *said: str) -> "Told":
        return replace(self, said=(*self.said, *said))


@pytest.mark.parametrize("failed", [None, "the disk is full"])
def test_a_fit_with_checkpoints_knows_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failed: str | None
) -> None:
    seen: list[Any] = []
    changed: list[Any] = []

    def done(work: Work, task: Task) -> Any:
        assert task.checkpoints is not None
        seen.append((task.checkpoints.folder, task.checkpoints.say))
        task.checkpoints.failure = failed
        return Told()

    monkeypatch.setattr(Work, "done", done)
    monkeypatch.setattr(fitting, "change_request", lambda *given: changed.append(given))
    work, path = Work("map", "svi", False, None, print), tmp_path / "run"
    found: Any = work.kept(task(), path, Request({"model": "m"}, {"y": Y}))
    sentence = "the last checkpoint could not be written: the disk is full."
    assert found == Told(() if failed is None else (sentence,), path)
    assert seen == [(path / "unfinished" / "checkpoints", print)]
    assert changed == []
    with pytest.raises(RunFolderError, match="give --overwrite"):
        work.kept(task(), path, Request({"model": "m"}, {"y": Y}))
    work.kept(task(), path, Request({"model": "m"}, {"y": Y}), overwrite=True)
    work.kept(task(), path, None, changes={"steps": 9})
    assert changed == [(path, {"steps": 9})]

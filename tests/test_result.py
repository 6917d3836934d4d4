"""A fit's part in what it is asked: which draws, whose rows, which seed, and what is refused."""

import inspect
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, replace
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

from elbowroom import result
from elbowroom.assess.evidence import Evidence, Optimum, Weights
from elbowroom.commands import COMMANDS
from elbowroom.density.mixtures import Mixture
from elbowroom.draws.adaptive import AdaptiveImportance
from elbowroom.draws.proposal import Proposal
from elbowroom.draws.row_weights import Shared
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.engines.settings import Settings
from elbowroom.errors import DataError, GuideError, OptionError
from elbowroom.options import declared
from elbowroom.problem.bound import bind, resolve_model
from elbowroom.problem.isolation import Parameters
from elbowroom.result import Fit
from elbowroom.rows import Imputed
from elbowroom.run.folder import Run
from elbowroom.run.unfinished import Request

GOOD = Evidence(Optimum(True, "converged."), Weights(0.1, 4000, 3000.0, True))


def site(name: str, transform: Any = lambda values: values) -> Any:
    return SimpleNamespace(name=name, transform=transform)


def made(rows: Any = None, amortised: bool = False, **given: Any) -> Fit:
    """A fit whose parts are made; `given` are those of its space, its problem and of itself."""
    usual = {
        "local_continuous": False, "per_observation": (), "rows_only": False, "sites": [],
        "local": ("z",), "subsampled": None, "parameters": SimpleNamespace(initial={}),
    }  # fmt: skip
    space = {name: given.pop(name, value) for name, value in usual.items()}
    sessions: list[Any] = []

    @contextmanager
    def session(*what: Any) -> Any:
        sessions.append(what)
        yield None

    problem = SimpleNamespace(
        space=SimpleNamespace(**space), session=session, sessions=sessions, dtype=torch.float64,
        function="the model", arguments={"own": True}, model_name="vae", original=None,
        model=SimpleNamespace(name="vae", verbs=("score",)), forms={},
        prepared=SimpleNamespace(effects=None),
        new_arguments=given.pop("new_arguments", lambda data, _=None: ({"new": data}, True)),
    )  # fmt: skip
    fitted: Any = SimpleNamespace(
        problem=problem, guide=SimpleNamespace(name="g", amortised=amortised),
        callable="the guide", parameters="the parameters",
    )  # fmt: skip
    weights = replace(GOOD.weights, rows=rows)
    evidence = given.pop("evidence", replace(GOOD, weights=weights))
    tree = xarray.DataTree.from_dict({"posterior": xarray.Dataset()})
    usual_parts: dict[str, Any] = {
        "settings": Settings(), "seed": 5, "measures": {"draws": 300, "elpd_loo": -1.0},
        "complete": lambda: (tree, []),
    }  # fmt: skip
    return Fit(fitted=fitted, evidence=evidence, **{**usual_parts, **given})


@pytest.mark.parametrize(
    ("given", "latents", "apart"),
    [
        ({}, False, False),
        ({"local_continuous": True}, True, False),
        ({"per_observation": ("k",)}, False, True),
        ({"rows": (9, 0.0)}, True, True),
    ],
)
def test_whether_rows_have_latents_of_their_own(given: Any, latents: bool, apart: bool) -> None:
    assert (made(**given).row_latents, made(**given).rows_apart) == (latents, apart)
    for amortised in (False, True):
        for rows_only in (False, True):
            fit = made(amortised=amortised, rows_only=rows_only, **given)
            assert fit.amortised == (rows_only and (amortised or not apart))


def test_a_verdict_in_the_tree_is_that_of_all_evidence() -> None:
    parts = {"/": xarray.Dataset(attrs={"verdict": "old"}),
             "posterior": xarray.Dataset(attrs={"verdict": "old", "model": "m"}),
             "prior": xarray.Dataset(attrs={"model": "m"})}  # fmt: skip
    tree = xarray.DataTree.from_dict(parts)
    fit = made(complete=lambda: (tree, ["of the tree"]), remarks=("one",))
    assert fit.notes == ["one", "of the tree"]
    assert fit.posterior is tree
    assert tree.attrs["verdict"] == tree["posterior"].attrs["verdict"] == fit.verdict.level
    assert fit.verdict.level == "trusted"
    assert "verdict" not in tree["prior"].attrs
    assert fit.with_remarks("two", "three").notes == ["one", "two", "three", "of the tree"]
    assert repr(fit) == "Fit(vae, g, trusted, seed=5)"


def test_a_fit_tells_how_its_optimiser_went() -> None:
    history = np.array([-3.0, -2.0])
    trained: Any = SimpleNamespace(converged=False, elbo_history=history)
    plain = made()
    fitted: Any = SimpleNamespace(**{**vars(plain.fitted), "trained": trained, "engine": "svi",
                                "objective": ("trace", "why"), "start": "begun"})  # fmt: skip
    fit = replace(plain, fitted=fitted)
    assert fit.elbo_history is history
    assert (fit.converged, fit.trained) == (False, trained)
    assert (fit.engine, fit.objective, fit.start) == ("svi", ("trace", "why"), "begun")
    assert (fit.guide.name, fit.callable, fit.parameters) == ("g", "the guide", "the parameters")


def test_leave_one_out_is_taken_when_it_was_not_at_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def taken(tree: Any) -> dict[str, float]:
        seen.append(tree)
        return {"elpd_loo": -2.0}

    monkeypatch.setattr(result, "leave_one_out", taken)
    assert made().diagnostics == {"draws": 300, "elpd_loo": -1.0}
    assert not seen
    fit = made(measures={"draws": 300})
    assert fit.diagnostics == {"draws": 300, "elpd_loo": -2.0}
    assert fit.diagnostics["elpd_loo"] == -2.0
    assert len(seen) == 1  # once
    assert fit.measures == {"draws": 300}


def test_points_are_in_their_own_space() -> None:
    positive = torch.distributions.constraints.positive
    parameters = Parameters(
        {"constraints": {"scale": positive, "guide.scale": positive}},
        {"scale": torch.tensor(0.0), "guide.scale": torch.tensor(1.0)},
    )
    fit = made(parameters=SimpleNamespace(initial={"scale": None}))
    fit.fitted.parameters = parameters  # type: ignore[misc]
    assert fit.model_parameters == {"scale": 1.0}  # exp(0); the guide's own are none of them


class Asked:
    """Notes what a function is asked, and gives an answer."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.calls = answer, []  # type: ignore[var-annotated]

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.calls.append((*given, *sorted(named.items())))
        return self.answer(*given) if callable(self.answer) else self.answer


def equal(count: int, values: Any, name: str = "x") -> WeightedDraws:
    return WeightedDraws({name: torch.as_tensor(values)}, np.zeros(count), np.zeros(count))


def test_draws_are_of_its_own_rows_or_of_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Asked(lambda *_: WeightedDraws({}, np.array([1.0, 3.0]), np.zeros(2)))
    monkeypatch.setattr(result, "draw", drawn)
    fit = made()
    fit.draw(7)
    fit.draw(7, seed=3)
    space = fit.problem.space
    assert drawn.calls == [("the model", "the guide", {"own": True}, space, 7)] * 2
    assert fit.problem.sessions == [(0, "the parameters"), (3, "the parameters")]  # type: ignore[attr-defined]
    amortised = made(rows_only=True, amortised=True, rows=(9, 0.0))
    amortised.draw(7, 3, "rows")
    assert drawn.calls[-1][2] == {"new": "rows"}
    with pytest.raises(GuideError, match=r"'g' knows only the fitted rows.*--guide encoder \("):
        made(rows_only=True, rows=(9, 0.0)).draw(7, 3, "rows")
    # The mean of the log weights, and the sd of two over the square root of 2.
    assert fit.elbo(draws=2) == pytest.approx((2.0, 1.0))
    assert drawn.calls[-1][-1] == 2
    fit.elbo()
    assert drawn.calls[-1][-1] == 1000


def fresh(fit: Fit, count: int = 60, seed: int = 3) -> torch.Tensor:
    return fit._fresh(count, seed)["x"]


def test_fresh_draws_are_corrected_where_the_posterior_is(monkeypatch: pytest.MonkeyPatch) -> None:
    log_p = np.log(np.array([1.0, 3.0] * 120))
    values = torch.tensor([5.0, 6.0] * 120)

    def some(fit: Fit, count: int, seed: int) -> WeightedDraws:
        return WeightedDraws({"x": values[:count]}, log_p[:count], np.zeros(count))

    drawn = Asked(some)
    monkeypatch.setattr(Fit, "draw", lambda *given: drawn(*given))
    assert fresh(made()).tolist() == [5.0, 6.0] * 30  # the guide's own
    assert drawn.calls[-1][1:] == (60, 3)
    corrected = fresh(made(origin="corrected"))
    assert drawn.calls[-1][1:] == (240, 3)  # of four times as many
    assert len(corrected) == 60
    assert float((corrected == 6).double().mean()) == pytest.approx(0.75, abs=0.1)
    assert torch.equal(fresh(made(origin="corrected")), corrected)
    weighed = Asked(lambda *_: equal(240, torch.arange(240.0)))
    monkeypatch.setattr(Fit, "weigh_rows", lambda *given: weighed(*given))
    found = fresh(made(origin="corrected", rows=(9, 0.0)))
    assert weighed.calls[-1][1:] == (None, 240, 3, ("z",))
    assert len(found) == len(set(found.tolist())) == 60


def normal(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=y.dtype), 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_fresh_draws_of_a_proposal_have_the_posterior_s_moments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a proposal that is off by two sds: mean and sd of the Normal that the posterior is."""
    y = torch.tensor([0.5, 1.5, 2.5, 1.0])
    precision = 1 / 4 + len(y)
    mean, sd = float(y.sum()) / precision, precision**-0.5
    off = Mixture(np.ones(1), np.array([[mean + 2 * sd]]), np.array([[[2 * sd]]]), 5.0)
    problem = bind(resolve_model(normal), {"y": y}, None, torch.float32, torch.device("cpu"))
    fit = made(origin="corrected", proposal=Proposal(off))
    fit.fitted.problem = problem  # type: ignore[misc]
    fit.fitted.parameters = Parameters({"constraints": {}}, {})  # type: ignore[misc]
    counts: list[int] = []
    whole = AdaptiveImportance.round

    def counted(self: Any, count: int) -> Any:
        counts.append(count)
        return whole(self, count)

    monkeypatch.setattr(AdaptiveImportance, "round", counted)
    found = fit._fresh(4000, 3)["mean"]
    assert (len(found), found.dtype) == (4000, torch.float32)
    assert counts == [16_000]  # of four times as many, too
    assert abs(float(found.mean()) - mean) < 5 * sd / np.sqrt(4000)
    assert float(found.std()) == pytest.approx(sd, rel=5 / np.sqrt(2 * 4000))


def test_a_sample_has_every_site_by_the_labels_of_the_posterior(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canonical = Asked(lambda problem, drawn, reference: f"{drawn} like {reference}")
    tree = xarray.DataTree.from_dict({"posterior": xarray.Dataset({"x": 1.0})})
    made_tree = Asked((tree, ["a note"]))
    fresh_draws = Asked(lambda self, count, seed: "fresh")
    monkeypatch.setattr(result, "canonical_sites", canonical)
    monkeypatch.setattr(result, "posterior_tree", made_tree)
    monkeypatch.setattr(Fit, "global_sites", lambda self: "the posterior's")
    monkeypatch.setattr(Fit, "_fresh", lambda *given: fresh_draws(*given))
    fit = made()
    assert fit.sample(7, 3).identical(xarray.Dataset({"x": 1.0}))
    fit.sample()
    assert [call[1:] for call in fresh_draws.calls] == [(7, 3), (1000, 0)]
    group = {"posterior": "fresh like the posterior's"}
    # Latents of rows are kept, however large.
    assert made_tree.calls[0] == (fit.problem, group, {}, ("keep_local", True))
    assert fit.problem.sessions == [(3, "the parameters"), (0, "the parameters")]  # type: ignore[attr-defined]


def test_points_of_the_model_are_copies_of_what_was_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    trace = SimpleNamespace(nodes={"p": {"value": value}, "held": {"value": value}})
    monkeypatch.setattr(result, "trace_model", lambda *given: trace)
    monkeypatch.setattr(result, "fitted_names", lambda trace: ["p"])
    found = made().point_parameters
    assert list(found) == ["p"]
    found["p"][0] = 9.0
    assert value.tolist() == [1.0, 2.0]


def test_fresh_draws_of_a_sampler_are_among_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(300.0)
    monkeypatch.setattr(Fit, "global_sites", lambda self: {"x": values})
    fit = made(origin="nuts")
    found = fresh(fit, 1000)
    assert len(found) == 1000
    assert set(found.tolist()) <= set(values.tolist())
    assert len(set(found.tolist())) > 250  # 300 (1 - exp(-10/3)) are expected: 289
    assert torch.equal(fresh(fit, 1000), found)
    assert not torch.equal(fresh(fit, 1000, seed=4), found)


def test_sites_of_the_posterior_are_one_chain_after_the_other() -> None:
    group = {
        "a.b": (("chain", "draw", "k"), np.arange(12.0).reshape(2, 3, 2)),
        "c": (("chain", "draw"), np.arange(6.0).reshape(2, 3)),
    }
    tree = xarray.DataTree.from_dict({"unconstrained_posterior": xarray.Dataset(group)})
    sites = [site("a/b", lambda values: values + 100), site("c"), site("gone")]
    found = made(complete=lambda: (tree, []), sites=sites).global_sites()
    assert list(found) == ["a/b", "c"]
    expected = np.arange(12.0).reshape(6, 2) + 100
    np.testing.assert_array_equal(found["a/b"], expected)
    np.testing.assert_array_equal(found["c"], np.arange(6.0))
    single = made(complete=lambda: (tree, []), sites=sites)
    single.problem.dtype = torch.float32  # type: ignore[misc]
    assert {found["c"].dtype, single.global_sites()["c"].dtype} == {torch.float64, torch.float32}
    assert made(sites=sites).global_sites() == {}


def test_rows_are_described_at_the_posterior_or_at_their_own_latents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    described = Asked(pd.DataFrame({"mean": [1.0]}))
    monkeypatch.setattr(result, "predict_rows", described)
    monkeypatch.setattr(Fit, "global_sites", lambda self: "the posterior's")
    drawn = Asked(lambda self, count, seed, data: SimpleNamespace(sites="the rows' own"))
    monkeypatch.setattr(Fit, "draw", lambda *given: drawn(*given))
    fit = made()
    assert fit.predict() is described.answer
    fit.predict("rows", 0.5, 3, scale="linear", draws=7)
    problem = fit.problem
    assert described.calls == [
        (problem, {"own": True}, "the posterior's", 0.9, True, None, None),
        (problem, {"new": "rows"}, "the posterior's", 0.5, True, "linear", 7),
    ]
    assert problem.sessions == [(0, "the parameters"), (3, "the parameters")]  # type: ignore[attr-defined]
    unseen = made(new_arguments=lambda data, _=None: ({"new": data}, False))
    unseen.predict("rows")
    assert described.calls[-1][4] is False
    amortised = made(rows=(9, 0.0), rows_only=True, amortised=True)
    amortised.predict("rows", seed=3)
    assert described.calls[-1][2] == "the rows' own"
    assert drawn.calls[-1][1:] == (300, 3, "rows")  # as many as the posterior has
    local = made(rows=(9, 0.0), rows_only=True)
    local.predict()
    with pytest.raises(GuideError, match="knows only the fitted rows"):
        local.predict("rows")
    with pytest.raises(OptionError, match="--interval 2"):
        fit.predict(interval=2)
    with pytest.raises(OptionError, match="--seed -1"):
        fit.predict(seed=-1)


def test_the_density_of_a_row_is_exact_where_it_has_no_latents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    densities = Asked("densities")
    monkeypatch.setattr(result, "log_density_of_rows", densities)
    monkeypatch.setattr(Fit, "global_sites", lambda self: "the posterior's")
    fit = made()
    assert fit.log_density("rows") == "densities"
    assert densities.calls == [(fit.problem, {"new": "rows"}, "the posterior's")]
    assert fit.problem.sessions == [(0, "the parameters")]  # type: ignore[attr-defined]
    with pytest.raises(GuideError, match=r"use its bound, Fit\.elbo"):
        made(local_continuous=True).log_density("rows")
    with pytest.raises(GuideError, match="knows only the fitted rows"):
        made(per_observation=("k",)).log_density("rows")
    made(per_observation=("k",), rows_only=True, amortised=True).log_density("rows")
    with pytest.raises(DataError, match="lack the observed column"):
        made(new_arguments=lambda data: ({}, False)).log_density("rows")


def test_a_score_is_the_log_of_the_mean_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights 1 and 3, ten of each: their mean is 2, and Kish's size (10 · 4)² / (10 · 10)."""
    pair = np.log(np.array([[1.0, 2.5, 4.0, 8.0], [3.0, 2.5, 4.0, 8.0]]))
    fitted, new = np.tile(pair, (10, 1)), np.tile(pair[:, :2], (10, 1))
    new[:, 1] = np.log(2.25)
    asked: list[Any] = []

    def weighed(fit: Fit, data: Any, draws: int, seed: int, keep: Any = ()) -> WeightedDraws:
        asked.append((data, draws, seed))
        values = fitted if data is None else new
        return WeightedDraws({}, values, np.zeros_like(values))

    monkeypatch.setattr(Fit, "weigh_rows", weighed)
    fit = made()
    found = fit.score()
    assert asked == [(None, None, 0)]
    assert list(found) == ["log_density", "standard_error", "effective_sample_size", "k_hat"]
    np.testing.assert_allclose(found["log_density"], np.log([2.0, 2.5, 4.0, 8.0]))
    np.testing.assert_allclose(found["effective_sample_size"], [16, 20, 20, 20])
    error = 0.5 / np.sqrt(20)  # relative, of the mean
    np.testing.assert_allclose(found["standard_error"], [error, 0, 0, 0], rtol=0.03, atol=1e-12)
    # A third of the way from the first of four to the last is the second, which is not below it.
    assert fit.score(quantile=1 / 3)["flagged"].tolist() == [True, False, False, False]
    assert fit.score(quantile=0.5)["flagged"].tolist() == [True, True, False, False]
    asked.clear()
    assert fit.score("rows", 50, 3, quantile=0.5)["flagged"].tolist() == [True, True]
    assert asked == [("rows", 50, 3), (None, 50, 3)]  # flagged by the fitted rows
    assert fit.score("rows", quantile=0.01)["flagged"].tolist() == [True, False]
    for share in (0.0, 1.0, -0.5, 1.5):
        with pytest.raises(OptionError, match="--quantile"):
            fit.score(quantile=share)


def test_arguments_of_rows_whose_latents_the_guide_gives() -> None:
    assert made(rows=(9, 0.0)).row_arguments(None) == {"own": True}
    assert made().row_arguments("rows") == {"new": "rows"}
    with pytest.raises(GuideError, match="knows only the fitted rows"):
        made(rows=(9, 0.0)).row_arguments("rows")
    with pytest.raises(DataError, match="their latents depend on these"):
        made(new_arguments=lambda data: ({}, False)).row_arguments("rows")


def test_rows_are_weighed_by_the_guide_or_at_the_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    weighed = Asked("weighed")
    monkeypatch.setattr(result.row_weights, "weigh_rows", weighed)
    values = np.log(np.array([[1.0, 2.0], [3.0, 2.0]]))
    likelihood = Asked(lambda *_: values)
    monkeypatch.setattr(result, "row_log_likelihood", likelihood)
    monkeypatch.setattr(Fit, "global_sites", lambda self: "the posterior's")
    fit = made(rows=(9, 0.0))
    assert fit.weigh_rows(None, 50, 3) == "weighed"
    fit.weigh_rows(None, 50, 3, ["z"])
    space = fit.problem.space
    call = ("the model", "the guide", {"own": True}, space, 50)
    assert weighed.calls == [(*call, (), Shared()), (*call, ["z"], Shared())]
    assert fit.problem.sessions == [(3, "the parameters")] * 2  # type: ignore[attr-defined]
    # By default as many as a minute allows.
    for columns, draws in ((1, 1000), (784, 229), (100_000, 100)):
        fit.problem.arguments["x"] = torch.empty(10_000, columns, device="meta")
        fit.weigh_rows(None, None, 3)
        assert weighed.calls[-1][4] == draws
    plain = made()
    found = plain.weigh_rows("rows", 50, 3)
    assert likelihood.calls == [(plain.problem, {"new": "rows"}, "the posterior's")]
    np.testing.assert_allclose(found.log_density()[0], np.log([2.0, 2.0]))
    assert plain.problem.sessions == [(0, "the parameters")]  # type: ignore[attr-defined]
    with pytest.raises(GuideError, match="no importance weights for single rows"):
        made(local_continuous=True).weigh_rows(None, 50, 3)


@pytest.mark.parametrize(
    ("folder", "overwrite", "replaced", "kept"),
    [
        (None, False, False, False),
        (None, True, True, False),
        (Path("a/run"), False, True, True),  # its own checkpoints make room
        (Path("another"), False, False, False),
        (Path("another"), True, True, False),
    ],
)
def test_a_fit_takes_the_place_of_its_own_checkpoints(
    folder: Any, overwrite: bool, replaced: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = Asked(None)
    monkeypatch.setattr(result.run_folder, "save", saved)
    monkeypatch.setattr(Fit, "_run", lambda self: "the run")
    assert made(folder=folder).save("a/run", overwrite) == Path("a/run")
    assert saved.calls == [("the run", Path("a/run"), replaced, ("keep", kept))]
    made(folder=Path("another")).save(Path("a/run"))
    assert saved.calls[1][2] is False  # unless it is asked for


def test_verbs_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the draws, steps and sizes that the command line has by default."""
    for verb in ("embed", "reconstruct", "interpolate", "manifold", "impute"):
        asked = Asked("an answer")
        monkeypatch.setattr(result.verbs, verb, asked)
        own = inspect.signature(getattr(Fit, verb)).parameters
        usual = {option.name: option.default for option in declared(COMMANDS[verb])}
        given = {"begin": 1, "end": 4, "data": "rows"}
        required = {k: v for k, v in given.items() if k in own}
        fit = made()
        assert getattr(fit, verb)(**required) == "an answer"
        expected: list[Any] = [fit]
        for name in list(own)[1:]:
            expected.append(required.get(name, usual.get(name)))
        assert asked.calls == [tuple(expected)]
        if own.get("data") is not None and own["data"].default is None:
            del required["data"]
            getattr(fit, verb)(**required)
            assert None in asked.calls[-1]  # by default the fit's own rows
    made_rows = Asked("rows")
    monkeypatch.setattr(result.verbs, "generate", made_rows)
    fit = made()
    fit.generate()
    fit.generate(7, "rows", given={"a": 1}, expected=True, prior=True, seed=3)
    assert made_rows.calls == [
        (fit, 1, None, None, False, False, 0), (fit, 7, "rows", {"a": 1}, True, True, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [Fit, Imputed, Run, Request])
def test_what_was_found_is_a_value(kind: Any) -> None:
    found = object.__new__(kind)
    with pytest.raises(FrozenInstanceError):
        found.anything = 1


def test_a_summary_has_an_interval_of_nine_tenths() -> None:
    draws = np.linspace(0.0, 1.0, 101)[None]
    group = xarray.Dataset({"x": (("chain", "draw"), draws)})
    tree = xarray.DataTree.from_dict({"posterior": group})
    fit = made(complete=lambda: (tree, []))
    summary: Any = fit.summary()
    assert summary.loc["x"].tolist() == pytest.approx([0.5, 12**-0.5, 0.05, 0.95], rel=0.02)
    summary = fit.summary(0.5)
    assert summary.loc["x"].tolist()[2:] == pytest.approx([0.25, 0.75])
    with pytest.raises(OptionError, match="--interval 0"):
        fit.summary(0)

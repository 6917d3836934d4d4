"""From draws to a fit: which draws the posterior consists of, and what is said beside them."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from elbowroom.assess.evidence import Evidence, Optimum, Weights
from elbowroom.density.importance import k_hat_threshold
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.engines.protocol import Fitted, Trained
from elbowroom.engines.task import Task
from elbowroom.guides import get_guide
from elbowroom.pipeline import concluding
from elbowroom.pipeline.collecting import Collected, Shown
from elbowroom.pipeline.drawing import Drawn
from elbowroom.pipeline.fitting import bind_model
from elbowroom.result import Fit


def one_mean(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    pyro.deterministic("twice", 2 * mean)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def many_means(y: Tensor, batch_size: int | None = None) -> None:
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=pyro.subsample(y, event_dim=0))


GOOD = Evidence(Optimum(True, "converged."), Weights(0.1, 4000, 3000.0, True))
DRAWS = 200
"""Of each kind. Their log densities are numbers that only they have."""
OWN = WeightedDraws(
    {"mean": torch.linspace(-1.0, 1.0, DRAWS, dtype=torch.float64)},
    np.full(DRAWS, -5.0), np.full(DRAWS, -1.0),
)  # fmt: skip


def source(usable: bool) -> Any:
    """What draws were resampled from."""
    sites = {"mean": torch.full((3,), 7.0, dtype=torch.float64)}
    return SimpleNamespace(usable=usable, per_row=False, sites=sites)


def resampled(usable: bool) -> WeightedDraws:
    sites = {"mean": torch.linspace(2.0, 4.0, DRAWS, dtype=torch.float64)}
    return WeightedDraws(
        sites, np.full(DRAWS, -6.0), np.full(DRAWS, -2.0), source=source(usable)
    )  # fmt: skip


class Concluded:
    """A fit, and what its evidence was collected from."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, drawn: Drawn, model: Any = one_mean,
        landscape: Any = None, keep_local: bool = False, reparameterised: tuple[str, ...] = (),
        **fitted: Any,
    ) -> None:  # fmt: skip
        def collect(task: Any, fitted: Any, drawn: Any, landscape: Any, shown: Shown) -> Collected:
            self.shown, self.seed = shown, torch.initial_seed()
            return Collected(GOOD, {"log_evidence": -3.0}, ["Collected."])

        monkeypatch.setattr(concluding, "collect", collect)
        y = torch.linspace(-1.0, 1.0, 5)
        problem, settings, _ = bind_model(model, {"y": y}, {"dtype": "float32", "steps": 7})
        problem = problem.reparameterise(reparameterised)
        trained = Trained("budget", "It ran out.", np.arange(2500.0), np.zeros(2500), 0, 1.5, 3)
        usual: dict[str, Any] = {
            "problem": problem, "guide": get_guide("mean_field", None), "callable": None,
            "sites": None, "start": None, "parameters": None, "trained": trained,
            "objective": ("trace", "as asked"), "engine": "svi", "remarks": ("Of the engine.",),
        }  # fmt: skip
        nowhere: Any = SimpleNamespace(likelihood=None, density=None)
        self.fit: Fit = concluding.conclude(
            Task(problem, settings, 3, keep_local=keep_local), Fitted(**{**usual, **fitted}), drawn,
            landscape or nowhere,
        )  # fmt: skip

    def values(self, group: str, name: str = "mean") -> Any:
        return self.fit.posterior[group][name].to_numpy()


def test_evidence_and_predictions_have_random_numbers_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fit has those of seed 3; the evidence follows from those of the draws."""
    seeds = []

    def posterior_tree(*given: Any) -> Any:
        seeds.append(torch.initial_seed())
        return whole(*given)

    whole = concluding.posterior_tree
    monkeypatch.setattr(concluding, "posterior_tree", posterior_tree)
    made = Concluded(monkeypatch, Drawn(OWN))
    assert (made.seed, seeds) == (4, [])
    assert "posterior" in made.fit.posterior.children
    assert seeds == [5]


@pytest.mark.parametrize("usable", [True, False])
def test_the_posterior_consists_of_corrected_draws_where_weights_are_usable(
    monkeypatch: pytest.MonkeyPatch, usable: bool
) -> None:
    made = Concluded(monkeypatch, Drawn(OWN, resampled(usable)))
    own, corrected = (np.linspace(*ends, DRAWS)[None] for ends in ((-1.0, 1.0), (2.0, 4.0)))
    posterior, beside = (corrected, own) if usable else (own, corrected)
    other = "raw_posterior" if usable else "corrected_posterior"
    np.testing.assert_allclose(made.values("posterior"), posterior, atol=1e-6)
    np.testing.assert_allclose(made.values("posterior", "twice"), 2 * posterior, atol=1e-6)
    np.testing.assert_allclose(made.values(other), beside, atol=1e-6)
    groups = {"raw_posterior", "corrected_posterior"}.intersection(made.fit.posterior.children)
    assert groups == {other}
    assert set(made.values("sample_stats", "log_p").ravel()) == {-6.0 if usable else -5.0}
    assert set(made.values("sample_stats", "log_q").ravel()) == {-2.0 if usable else -1.0}
    assert made.fit.origin == ("corrected" if usable else "raw")
    shown = made.shown
    np.testing.assert_allclose(shown.own["mean"], own[0], atol=1e-6)
    np.testing.assert_allclose(shown.posterior["mean"], posterior[0], atol=1e-6)
    assert shown.weighted["mean"].tolist() == [7.0] * 3
    assert {values.dtype for values in shown.weighted.values()} == {np.dtype("float64")}
    # In the fit's own numbers.
    assert {shown.own["mean"].dtype, shown.posterior["mean"].dtype} == {torch.float32}
    assert made.values("posterior").dtype == made.values(other).dtype == np.dtype("float32")


def test_a_point_is_its_own_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Concluded(monkeypatch, Drawn(OWN), point=True)
    np.testing.assert_allclose(made.values("posterior")[0], np.linspace(-1, 1, DRAWS), atol=1e-6)
    assert not {"raw_posterior", "corrected_posterior"} & set(made.fit.posterior.children)
    assert (made.fit.origin, made.shown.weighted) == ("raw", {})
    # It has neither a bound nor leave-one-out.
    assert np.isnan([made.fit.measures[name] for name in ("elbo", "k_hat", "elpd_loo")]).all()
    assert made.fit.diagnostics["log_evidence"] == -3.0


def test_the_numbers_are_those_of_the_guide_and_of_the_evidence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Concluded(monkeypatch, Drawn(OWN, resampled(True)), loss=0.25)
    measures = made.fit.measures
    assert (measures["draws"], measures["elbo"]) == (DRAWS, -4.0)
    assert measures["elbo_se"] == 0.25  # the draws' own error is zero
    assert (measures["k_hat"], round(measures["effective_sample_size"])) == (-np.inf, DRAWS)
    assert (measures["seconds"], measures["parameters"]) == (1.5, 3)
    assert measures["log_evidence"] == -3.0
    assert "elpd_loo" not in measures
    assert "elbo_parts" not in measures
    made.fit = replace(made.fit, parts=lambda: {"elbo_parts": 1})
    assert made.fit.diagnostics["elbo_parts"] == 1
    assert np.isfinite(made.fit.diagnostics["elpd_loo"])


def test_rows_with_latents_have_their_own_weights_and_no_leave_one_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five rows, 400 draws of each, all of the same weight."""
    values = torch.linspace(-1.0, 1.0, 400)[:, None].expand(400, 5)
    rows = WeightedDraws(
        {"mean": values}, np.full((400, 5), -5.0), np.full((400, 5), -1.0), axes={"mean": 0}
    )  # fmt: skip
    random = np.random.default_rng(0)
    given = Drawn(rows.together.first(DRAWS), rows.resample(DRAWS, random))
    made = Concluded(monkeypatch, given, many_means, keep_local=True)
    measures = made.fit.measures
    assert (measures["elbo"], measures["draws"]) == (-20.0, DRAWS)
    assert measures["k_hat_threshold"] == k_hat_threshold(400)
    assert measures["effective_sample_size"] == pytest.approx(400.0)
    assert np.isnan(measures["elpd_loo"])
    assert made.fit.origin == "corrected"
    assert made.shown.weighted == {}
    assert made.values("posterior").shape == (1, DRAWS, 5)


def test_draws_of_all_latents_of_a_row_have_no_leave_one_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sites = {"mean": torch.linspace(-1.0, 1.0, DRAWS)[:, None].expand(DRAWS, 5)}
    whole = WeightedDraws(sites, np.full(DRAWS, -5.0), np.full(DRAWS, -1.0))
    made = Concluded(monkeypatch, Drawn(whole), many_means)
    assert np.isnan(made.fit.measures["elpd_loo"])
    assert made.fit.measures["k_hat"] == -np.inf


def test_the_tree_says_what_it_was_made_by(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Concluded(monkeypatch, Drawn(OWN, resampled(True)))
    found = made.fit.posterior.attrs
    words = {"model": "one_mean", "guide": "mean_field", "engine": "svi", "seed": 3,
             "elbo_objective": "trace", "converged": 0, "status": "It ran out.",
             "verdict": "trusted", "draws": "corrected"}  # fmt: skip
    assert {name: found[name] for name in words} == words
    settings = json.loads(found["settings"])
    assert (settings["steps"], settings["dtype"]) == (7, "float32")
    assert json.loads(found["options"]) == {}
    assert json.loads(found["versions"])["torch"] == torch.__version__
    # Every third of 2,500.
    assert json.loads(found["elbo_history"]) == list(range(0, 2500, 3))


@pytest.mark.parametrize(("length", "kept"), [(0, 0), (1, 1), (1000, 1000), (1001, 501)])
def test_a_long_history_is_thinned_to_a_thousand_values(length: int, kept: int) -> None:
    found = concluding._thinned(np.arange(float(length)))
    assert len(found) == kept
    assert found == [float(i * (2 if length > 1000 else 1)) for i in range(kept)]


def test_options_of_a_registered_model_are_among_the_attributes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = {"formula": "progression ~ bmi"}
    problem, settings, _ = bind_model("bayesian_regression", "diabetes", options)
    trained = SimpleNamespace(converged=True, reason="converged.", elbo_history=np.zeros(0))
    fitted: Any = SimpleNamespace(
        problem=problem, trained=trained, guide=SimpleNamespace(name="map"), engine="svi",
        objective=("trace", ""),
    )  # fmt: skip
    found = concluding._attributes(Task(problem, settings, 1), fitted, "trusted", "raw")
    assert found["options"]["formula"] == "progression ~ bmi"
    assert found["converged"] == 1


def test_remarks_begin_with_those_of_the_engine_and_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = SimpleNamespace(
        likelihood=SimpleNamespace(note="Of points."), density=SimpleNamespace(note="Of a density.")
    )
    proposal = SimpleNamespace(description="Drawn in two steps.")
    importance: Any = SimpleNamespace(proposal=proposal)
    made = Concluded(monkeypatch, Drawn(OWN, resampled(True), importance), landscape=begun)
    assert made.fit.remarks == (
        "Of the engine.", "Of points.", "Of a density.", "Collected.", "Drawn in two steps.",
    )  # fmt: skip
    assert made.fit.proposal is proposal
    proposal.description = None
    begun.density.note = None
    made = Concluded(monkeypatch, Drawn(OWN, resampled(True), importance), landscape=begun)
    assert made.fit.remarks == ("Of the engine.", "Of points.", "Collected.")
    made = Concluded(monkeypatch, Drawn(OWN, resampled(True)))
    assert (made.fit.remarks, made.fit.proposal) == (("Of the engine.", "Collected."), None)


def centred(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones(())))
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), scale))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_standardised_sites_are_shown_by_their_own_values(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = WeightedDraws(
        {"scale": torch.full((DRAWS,), 3.0), "mean_decentered": torch.full((DRAWS,), 0.5)},
        np.full(DRAWS, -5.0), np.full(DRAWS, -1.0),
    )  # fmt: skip
    again = draws.resample(DRAWS, np.random.default_rng(0))
    made = Concluded(monkeypatch, Drawn(draws, again), centred, reparameterised=("mean",))
    for shown in (made.shown.own, made.shown.weighted):
        assert set(shown) == {"scale", "mean"}
        assert set(shown["mean"].tolist()) == {1.5}


def test_exchangeable_parts_are_in_one_order_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Corrected and weighted draws follow the labels of the guide's own."""
    seen: list[Any] = []

    def canonical(sites: Any, reference: Any, arguments: Any) -> Any:
        assert set(arguments) == {"y"}
        seen.append(None if reference is None else reference["mean"][0].item())
        return {name: values + 100 for name, values in sites.items()}

    problem, _, _ = bind_model(one_mean, {"y": torch.zeros(5)}, {"dtype": "float32"})
    problem = replace(problem, model=replace(problem.model, canonical=canonical))
    made = Concluded(monkeypatch, Drawn(OWN, resampled(True)), problem=problem)
    assert seen == [None, 99.0, 99.0]
    assert made.shown.weighted["mean"].tolist() == [107.0] * 3
    assert made.shown.posterior["mean"][0] == 102.0


def test_labels_of_classes_stay_whole_numbers() -> None:
    given = {"z": torch.tensor([0, 2]), "x": torch.zeros(2, dtype=torch.float64)}
    found = concluding._as(given, torch.float32)
    assert (found["z"].dtype, found["x"].dtype) == (torch.int64, torch.float32)

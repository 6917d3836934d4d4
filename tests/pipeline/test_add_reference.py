"""A fit beside NUTS: where the chains begin, what is measured, and whose draws are taken."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.engines.nuts.sampler import NutsDraws
from elbowroom.errors import OptionError
from elbowroom.pipeline import reference
from elbowroom.pipeline.reference import add_reference
from elbowroom.problem.isolation import isolated
from elbowroom.result import Fit

LENGTH = 150
"""Draws of each of four chains."""


def spread(y: Tensor) -> None:
    """A scale whose logarithm is what NUTS draws, by a name that a tree writes with a point."""
    scale = pyro.sample("part/scale", dist.LogNormal(torch.zeros(()), 1.0))
    level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.0))
    pyro.deterministic("variance", scale**2)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(level, scale), obs=y)


@pytest.fixture(scope="module")
def fit() -> Fit:
    y = torch.linspace(-2.0, 2.0, 20)
    return er.fit(spread, {"y": y}, "laplace", seed=1, draws=4 * LENGTH, dtype="float32")


def points(shift: float = 0.0) -> np.ndarray:
    """Log scales and levels of four chains, (4, draws, 2), without autocorrelation."""
    values = np.linspace(-0.3, 0.7, 4 * LENGTH)
    random = np.random.default_rng(0)
    both = [random.permutation(values).reshape(4, LENGTH) for _ in range(2)]
    return np.stack(both, axis=-1) + np.array([shift, 0.0])


class Nuts:
    """Chains in the place of NUTS's, and what it was asked."""

    def __init__(self, converged: bool, divergences: int, shift: float) -> None:
        self.r_hat = 1.001 if converged else 1.5
        self.divergences, self.shift = divergences, shift
        self.starts = np.zeros(0)
        self.asked: dict[str, Any] = {}

    def __call__(self, density: Any, starts: np.ndarray, **asked: Any) -> NutsDraws:
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_num_threads() == 1
        self.starts, self.asked = starts, asked
        return NutsDraws(
            points(self.shift),
            self.divergences,
            np.array([self.r_hat, 1.0]),
            np.array([580.0, 600.0]),
            2.5,
            "nutpie",
            "complete",
        )


@pytest.fixture
def threads() -> Iterator[None]:
    """More than a small problem takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, threads: None) -> Any:
    """Adds such chains to a fit."""

    def add(
        fit: Fit, converged: bool = True, divergences: int = 0, shift: float = 0.0, **given: Any
    ) -> tuple[Fit, Nuts]:
        nuts = Nuts(converged, divergences, shift)
        monkeypatch.setattr(reference, "sample_nuts", nuts)
        with isolated(0, dtype=torch.float32):
            return add_reference(fit, **given), nuts

    return add


def test_four_chains_begin_at_different_draws_of_the_fit(fit: Fit, run: Any) -> None:
    _, nuts = run(fit)
    group = fit.posterior["unconstrained_posterior"]
    drawn = np.stack([group[name].to_numpy()[0] for name in ("part.scale", "level")], axis=1)
    assert (nuts.starts.shape, nuts.starts.dtype) == ((4, 2), np.dtype("float64"))
    assert len({tuple(start) for start in nuts.starts} & {tuple(d) for d in drawn.tolist()}) == 4
    assert nuts.asked == {"draws": 1000, "seed": 1, "progress": None, "threads": 1}
    _, other = run(fit, draws=107, seed=5, progress=print)
    assert other.asked == {"draws": 107, "seed": 5, "progress": print, "threads": 1}
    assert set(other.starts[:, 0]) != set(nuts.starts[:, 0])
    np.testing.assert_array_equal(run(fit)[1].starts, nuts.starts)
    with pytest.raises(OptionError, match="--seed -1"):
        run(fit, seed=-1)


def test_two_chains_of_few_draws_would_begin_alike_and_do_not(fit: Fit, run: Any) -> None:
    group = fit.posterior["unconstrained_posterior"].to_dataset()
    few = fit.posterior.copy()
    few["unconstrained_posterior"] = group.isel(draw=slice(4))
    _, nuts = run(replace(fit, complete=lambda: (few, [])))
    assert sorted(nuts.starts[:, 0]) == sorted(group["part.scale"].to_numpy()[0, :4])


def test_the_reference_is_in_the_user_s_quantities_chain_by_chain(fit: Fit, run: Any) -> None:
    found, _ = run(fit)
    group = found.posterior["reference_posterior"]
    assert set(group.data_vars) == {"part.scale", "level", "variance"}
    np.testing.assert_allclose(group["level"], points()[..., 1], rtol=1e-5)
    np.testing.assert_allclose(group["part.scale"], np.exp(points()[..., 0]), rtol=1e-6)
    np.testing.assert_allclose(group["variance"], np.exp(2 * points()[..., 0]), rtol=1e-5)
    assert group["part.scale"].dtype == np.dtype("float32")
    # The posterior stays the fit's, and the fit as it was.
    np.testing.assert_array_equal(
        found.posterior["posterior"]["part.scale"], fit.posterior["posterior"]["part.scale"]
    )
    assert "reference_posterior" not in fit.posterior.children
    assert (found.origin, fit.evidence.reference) == (fit.origin, None)


def test_the_numbers_of_the_comparison_are_kept(fit: Fit, run: Any) -> None:
    found, _ = run(fit)
    measures = found.diagnostics
    lines = {line["quantity"]: line for line in measures["reference"]}
    assert set(lines) == {"part.scale", "level", "variance"}
    own = fit.posterior["posterior"]["variance"].to_numpy()
    wanted = np.exp(2 * points()[..., 0])
    shift = (own.mean() - wanted.mean()) / wanted.std()
    assert lines["variance"]["mean_shift"] == pytest.approx(shift, abs=1e-4)
    assert (measures["reference_seconds"], measures["reference_r_hat"]) == (2.5, 1.001)
    assert measures["reference_effective_sample_size"] == 580.0
    assert (measures["reference_divergences"], measures["reference_sampler"]) == (0, "nutpie")
    assert measures["draws"] == fit.diagnostics["draws"] == 4 * LENGTH
    assert measures["elbo"] == fit.diagnostics["elbo"]


def test_a_reference_that_differs_is_evidence_against_the_fit(fit: Fit, run: Any) -> None:
    found, _ = run(fit, shift=3.0)
    sentence, agrees = found.evidence.reference
    assert not agrees
    assert "differs from NUTS" in sentence
    assert not found.verdict.trusted
    assert found.notes == fit.notes


def test_chains_that_have_not_mixed_say_nothing(fit: Fit, run: Any) -> None:
    """More than 1 % of the draws diverged."""
    found, _ = run(fit, divergences=7)
    assert found.evidence.reference is None
    assert found.notes[:-1] == fit.notes
    assert found.notes[-1] == (
        "NUTS has not converged (R-hat 1.001, 580 effective draws, 7 divergences), so it "
        "says nothing about the fit; run 'elbowroom reference RUN' with more --draws."
    )
    kept, _ = run(fit, converged=False, take=True)
    assert kept.origin == fit.origin
    assert kept.diagnostics["draws"] == 4 * LENGTH
    assert "raw_posterior" in kept.posterior.children or fit.origin == "raw"


def test_draws_of_nuts_are_taken_as_the_posterior(fit: Fit, run: Any) -> None:
    found, _ = run(fit, shift=3.0, take=True)
    assert (found.origin, found.verdict.trusted) == ("nuts", True)
    mixed = "The posterior consists of the draws of NUTS (R-hat 1.001, 580 effective draws)."
    assert found.evidence.reference == (mixed, True)
    tree = found.posterior
    expected = np.exp(points(3.0)[..., 0])
    np.testing.assert_allclose(tree["posterior"]["part.scale"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        tree["unconstrained_posterior"]["part.scale"], points(3.0)[..., 0], rtol=1e-4
    )
    assert tree["log_likelihood"]["y"].shape[:2] == (4, LENGTH)
    assert tree["sample_stats"]["log_p"].shape == (4, LENGTH)
    assert np.isnan(tree["sample_stats"]["log_q"]).all()
    # A prior is no draw of the posterior's chains.
    assert tree["prior"]["part.scale"].sizes["chain"] == 1
    assert tree.attrs["draws"] == "nuts"
    assert "effective_draws" not in tree.attrs
    assert {"log_p", "log_q"} < set(tree["raw_posterior"].data_vars)
    assert tree.attrs["model"] == "spread"
    assert found.diagnostics["draws"] == 4 * LENGTH
    own = fit.posterior.children.get("raw_posterior", fit.posterior["posterior"])
    np.testing.assert_array_equal(tree["raw_posterior"]["part.scale"], own["part.scale"])


@pytest.mark.parametrize("origin", ["corrected", "nuts"])
def test_draws_are_counted_anew_where_they_are_taken(fit: Fit, run: Any, origin: str) -> None:
    """A posterior that consists of NUTS's draws already keeps them beside a second run."""
    before = replace(fit, measures={**fit.measures, "draws": 7}, origin=origin)
    assert run(before, take=True)[0].diagnostics["draws"] == 4 * LENGTH
    assert run(before)[0].diagnostics["draws"] == 7


def test_the_guide_s_own_draws_stay_beside_those_of_nuts(fit: Fit, run: Any) -> None:
    tree = fit.posterior.copy()
    own = tree["posterior"].to_dataset() + 100.0
    tree["raw_posterior"] = own
    found, _ = run(replace(fit, complete=lambda: (tree, [])), take=True)
    np.testing.assert_array_equal(found.posterior["raw_posterior"]["variance"], own["variance"])
    del tree["raw_posterior"]
    own, densities = tree["posterior"].to_dataset(), tree["sample_stats"].to_dataset()
    found, _ = run(replace(fit, complete=lambda: (tree, [])), take=True)
    for name in ("log_p", "log_q"):
        np.testing.assert_array_equal(found.posterior["raw_posterior"][name], densities[name])
    np.testing.assert_array_equal(found.posterior["raw_posterior"]["variance"], own["variance"])


def test_there_is_no_reference_without_priors_or_a_density(fit: Fit) -> None:
    problem = replace(fit.problem, posterior=fit.problem)
    without_priors = replace(fit, fitted=replace(fit.fitted, problem=problem))
    with pytest.raises(OptionError, match="the guide 'laplace' leaves the priors out"):
        add_reference(without_priors)
    space: Any = SimpleNamespace(local_continuous=True)
    problem = replace(fit.problem, space=space)
    with pytest.raises(
        OptionError, match=r"NUTS cannot be run for this fit: .*latents for each row"
    ):
        add_reference(replace(fit, fitted=replace(fit.fitted, problem=problem)))


def test_what_is_left_out_of_the_draws_of_nuts_is_told(
    fit: Fit, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reference.posterior_tree

    def told(problem: Any, drawn: Any, attributes: Any, keep_local: bool) -> Any:
        assert keep_local
        tree, _ = whole(problem, drawn, attributes, keep_local)
        return tree, ["The prior is left out."]

    monkeypatch.setattr(reference, "posterior_tree", told)
    found, _ = run(fit, take=True)
    assert found.notes == [*fit.notes, "The prior is left out."]

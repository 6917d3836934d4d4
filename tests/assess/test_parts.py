"""The parts of the ELBO: closed forms, sums that are exact at the same draws, and sites apart."""

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
from elbowroom.assess import parts as module
from elbowroom.assess.parts import Parts, PartSizes, elbo_parts
from elbowroom.draws.of_guide import draw
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated

DRAWS = 4000
Y = torch.linspace(-1.0, 2.0, 5, dtype=torch.float64)


@pytest.fixture(autouse=True)
def apart() -> Any:
    with isolated(3, dtype=torch.float64):
        yield


def found(model: Any, guide: Any, count: int = DRAWS) -> tuple[Parts, WeightedDraws]:
    """The parts at a guide's draws, and the draws."""
    arguments = {"y": Y}
    space = LatentSpace.of(model, arguments)
    draws = draw(model, guide, arguments, space, count)
    return elbo_parts(model, guide, arguments, space, draws), draws


def mean(y: Tensor) -> None:
    at = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(at, 1.0), obs=y)


def test_the_parts_of_a_normal_are_those_in_closed_form() -> None:
    def guide(y: Tensor) -> None:
        pyro.sample("mean", dist.Normal(torch.tensor(0.3), 0.5))

    parts, draws = found(mean, guide)
    np.testing.assert_allclose(parts.elbo, draws.log_weights, rtol=1e-12)
    measures = parts.measures()
    y = Y.numpy()
    constant = 0.5 * np.log(2 * np.pi)
    exact = {
        "expected_log_likelihood": float(-(constant + 0.5 * ((y - 0.3) ** 2 + 0.25)).sum()),
        "kl_to_prior": 0.5 * (0.25 + 0.09 - 1) - np.log(0.5),
        "entropy": constant + 0.5 + np.log(0.5),
    }
    for name, value in exact.items():
        assert abs(measures[name] - value) < 4 * measures[f"{name}_se"], name
    # The sd of -x²/2 of a standard Normal x is the root of a half.
    assert measures["entropy_se"] == pytest.approx((0.5 / DRAWS) ** 0.5, rel=0.1)
    by_site = measures["elbo_parts"]
    assert by_site["draws"] == DRAWS
    assert by_site["elbo"] == pytest.approx(draws.elbo()[0], rel=1e-12)
    assert by_site["log_likelihood"] == {"y": pytest.approx(measures["expected_log_likelihood"])}
    assert by_site["kl_to_prior"] == {"mean": pytest.approx(measures["kl_to_prior"])}
    assert by_site["entropy"] == {"mean": pytest.approx(measures["entropy"])}
    log_prior = -constant - 0.5 * (0.25 + 0.09)
    assert by_site["log_prior"]["mean"] == pytest.approx(log_prior, abs=0.05)


def two(y: Tensor) -> None:
    width = pyro.sample("width", dist.Gamma(torch.tensor(2.0), 1.0))
    at = pyro.sample("at", dist.Normal(torch.zeros(()), 2.0))
    pyro.factor("penalty", -at.abs())
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(at, width), obs=y)


def test_sites_that_a_guide_draws_apart_have_their_own_divergences() -> None:
    def guide(y: Tensor) -> None:
        pyro.sample("width", dist.Gamma(torch.tensor(3.0), 2.0))
        pyro.sample("at", dist.Normal(torch.tensor(0.1), 0.5))

    parts, draws = found(two, guide)
    np.testing.assert_allclose(parts.elbo, draws.log_weights, rtol=1e-10)
    by_site = parts.measures()["elbo_parts"]
    for name, own, prior in (
        ("width", dist.Gamma(3.0, 2.0), dist.Gamma(2.0, 1.0)),
        ("at", dist.Normal(0.1, 0.5), dist.Normal(0.0, 2.0)),
    ):
        exact = float(torch.distributions.kl_divergence(own, prior))
        values = parts.log_guide[name] - parts.log_prior[name]
        assert abs(by_site["kl_to_prior"][name] - exact) < 4 * values.std() / DRAWS**0.5
        assert by_site["entropy"][name] == pytest.approx(float(own.entropy()), abs=0.06)
    penalty = -draws.sites["at"].abs().numpy()
    np.testing.assert_allclose(parts.log_likelihood["factors"], penalty, rtol=1e-6)
    assert set(by_site["log_likelihood"]) == {"y", "factors"}


def test_sites_that_are_drawn_together_have_one_entropy() -> None:
    """By fixed draws all sites are one Normal in unconstrained coordinates."""
    fit = er.fit(two, {"y": Y}, "full_rank", seed=1, draws=1000)
    by_site = fit.diagnostics["elbo_parts"]
    assert set(by_site["entropy"]) == {"width, at"}
    assert by_site["kl_to_prior"] == {}
    assert set(by_site["log_prior"]) == {"width", "at"}
    assert by_site["elbo"] == pytest.approx(fit.diagnostics["elbo"], rel=1e-9)
    apart = er.fit(two, {"y": Y}, "mean_field", seed=1, draws=1000).diagnostics
    assert set(apart["elbo_parts"]["kl_to_prior"]) == {"width", "at"}
    total = apart["expected_log_likelihood"] - apart["kl_to_prior"]
    assert total == pytest.approx(apart["elbo"], rel=1e-9)
    # The log of the width is Normal: its entropy in the width's own unit is that and its mean.
    values = er.fit(two, {"y": Y}, "mean_field", seed=1, draws=1000)
    log_width = np.log(values.posterior["raw_posterior"]["width"].to_numpy())
    exact = 0.5 * np.log(2 * np.pi * np.e * log_width.var()) + log_width.mean()
    assert apart["elbo_parts"]["entropy"]["width"] == pytest.approx(exact, abs=0.1)


LOCATIONS = torch.tensor([-1.0, 1.5], dtype=torch.float64)
SHARES = torch.tensor([0.3, 0.7], dtype=torch.float64)


def mixture(y: Tensor) -> None:
    shift = pyro.sample("shift", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y)):
        kind = pyro.sample("kind", dist.Categorical(SHARES))
        pyro.sample("y", dist.Normal(LOCATIONS[kind] + shift, 1.0), obs=y)


def test_discrete_sites_that_are_summed_out_are_in_the_likelihood() -> None:
    def guide(y: Tensor) -> None:
        pyro.sample("shift", dist.Normal(torch.tensor(0.2), 0.3))

    parts, draws = found(mixture, guide, 50)
    np.testing.assert_allclose(parts.elbo, draws.log_weights, rtol=1e-10)
    shift = draws.sites["shift"]
    normal = dist.Normal(LOCATIONS + shift[:, None, None], 1.0)  # (draws, rows, components)
    exact = (normal.log_prob(Y[:, None]) + SHARES.log()).logsumexp(-1).sum(-1)
    np.testing.assert_allclose(parts.log_likelihood["y"], exact, rtol=1e-10)
    assert set(parts.log_prior) == {"shift"}
    np.testing.assert_allclose(parts.log_prior["shift"], dist.Normal(0.0, 1.0).log_prob(shift))


def test_discrete_sites_that_the_guide_draws_have_a_divergence() -> None:
    def guide(y: Tensor) -> None:
        pyro.sample("shift", dist.Normal(torch.tensor(0.2), 0.3))
        with pyro.plate("rows", len(y)):
            pyro.sample("kind", dist.Categorical(torch.tensor([0.5, 0.5])))

    parts, draws = found(mixture, guide, 500)
    np.testing.assert_allclose(parts.elbo, draws.log_weights, rtol=1e-10)
    exact = len(Y) * float(np.log(0.5) - 0.5 * SHARES.log().sum())
    assert parts.measures()["elbo_parts"]["kl_to_prior"]["kind"] == pytest.approx(exact, abs=0.3)


def test_latents_that_share_a_summed_out_site_have_one_prior() -> None:
    """Of a two-component prior of the latent itself the density is a mixture's."""

    def model(y: Tensor) -> None:
        kind = pyro.sample("kind", dist.Categorical(SHARES))
        at = pyro.sample("at", dist.Normal(LOCATIONS[kind], 0.5))
        scale = pyro.sample("scale", dist.Gamma(2.0 + kind, torch.tensor(1.0)))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(at, scale), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("at", dist.Normal(torch.tensor(0.2), 0.3))
        pyro.sample("scale", dist.Gamma(torch.tensor(3.0), 2.0))

    parts, draws = found(model, guide, 50)
    np.testing.assert_allclose(parts.elbo, draws.log_weights, rtol=1e-10)
    at, scale = draws.sites["at"][:, None], draws.sites["scale"][:, None]
    joint = dist.Normal(LOCATIONS, 0.5).log_prob(at) + dist.Gamma(
        torch.tensor([2.0, 3.0]), 1.0
    ).log_prob(scale)
    exact = (joint + SHARES.log()).logsumexp(-1)
    np.testing.assert_allclose(parts.log_prior["at, scale"], exact, rtol=1e-10)


def test_many_rows_are_decomposed_at_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    def guide(y: Tensor) -> None:
        pyro.sample("mean", dist.Normal(torch.tensor(0.3), 0.5))

    monkeypatch.setattr(module, "PART_SIZES", PartSizes(numbers=5 * 30))
    parts, draws = found(mean, guide, 100)
    assert len(parts.elbo) == 30
    np.testing.assert_allclose(parts.elbo, draws.log_weights[:30], rtol=1e-12)
    monkeypatch.setattr(module, "PART_SIZES", PartSizes(numbers=1))
    assert len(found(mean, guide, 100)[0].elbo) == 20


def test_a_fit_has_its_parts_and_its_file_too(tmp_path: Any) -> None:
    def guide(y: Tensor) -> None:
        location = pyro.param("location", torch.tensor(0.0, dtype=torch.float64))
        scale = pyro.param(
            "scale", torch.tensor(1.0, dtype=torch.float64), constraint=constraints.positive
        )
        pyro.sample("mean", dist.Normal(location, scale))

    fit = er.fit(mean, {"y": Y}, guide, seed=1, steps=30, draws=200)
    measures = fit.diagnostics
    total = measures["expected_log_likelihood"] - measures["kl_to_prior"]
    assert total == pytest.approx(measures["elbo"], rel=1e-9)
    assert measures["elbo_parts"]["draws"] == 200
    folder = fit.save(tmp_path / "run")
    history = pd.read_csv(folder / "history.csv")
    for name in ("expected_log_likelihood", "kl_to_prior"):
        assert history[name].iloc[-1] == pytest.approx(measures[name])
        assert history[name][:-1].isna().all()
    loaded = er.load(folder, model=mean, guide=guide)
    assert loaded.diagnostics["elbo_parts"] == measures["elbo_parts"]
    point = er.fit(mean, {"y": Y}, "map", seed=1, steps=30)
    assert "elbo_parts" not in point.diagnostics

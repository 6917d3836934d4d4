"""What is told of rows' latents, from models and guides whose numbers are closed forms."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from elbowroom.assess import latent_health as health
from elbowroom.assess.latent_health import compared, latent_health, mutual_information
from elbowroom.draws.row_weights import plate_of_rows, weigh_rows
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.bound import Problem


def tensor(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def bound(model: Callable[..., Any], **data: Any) -> Problem:
    return bind_model(model, {name: tensor(values) for name, values in data.items()}, {})[0]


def told(
    problem: Problem, guide: Callable[..., Any], draws: int, amortised: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """The health of a guide without parameters."""
    given = problem.function, guide, problem.arguments, problem.space
    with problem.session(0):
        weighed = weigh_rows(*given, draws, problem.space.local)
        return latent_health(*given, weighed, amortised)


# The gap of an encoder, in its parts.

LOADINGS = np.array([[1.0, 0.9], [0.8, 1.0], [0.6, -0.2]])
PRECISION = np.eye(2) + LOADINGS.T @ LOADINGS
"""Of a row's posterior."""
OF_FORM = 0.5 * (np.log(np.diag(PRECISION)).sum() - np.linalg.slogdet(PRECISION)[1])
"""The divergence of the best independent Normals from it."""
ROWS = 80


def mixed(x: Tensor, shift: Tensor, batch_size: int | None = None) -> None:
    """Two latents at one site, of which three columns are sums, with noise of variance one."""
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        seen = pyro.subsample(x, event_dim=1)
        pyro.sample("x", dist.Normal(z @ tensor(LOADINGS.T), 1.0).to_event(1), obs=seen)


def mixed_guide(x: Tensor, shift: Tensor, batch_size: int | None = None) -> None:
    """The best independent Normals, but for a shift of their means."""
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        seen, off = pyro.subsample(x, event_dim=1), pyro.subsample(shift, event_dim=1)
        mean = seen @ tensor(LOADINGS @ np.linalg.inv(PRECISION)) + off
        sd = tensor(np.diag(PRECISION) ** -0.5)
        pyro.sample("z", dist.Normal(mean, sd).to_event(1))


def test_the_gap_of_an_encoder_is_that_of_its_means_and_that_of_its_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The divergence is half of δᵀPδ, and of what the determinant of P lacks to its diagonal's.

    All rows are given a posterior of their own, which each must find with its own data.
    """
    monkeypatch.setattr(
        health, "LATENTS", replace(health.LATENTS, steps=100)
    )  # the shifts are small
    random = np.random.default_rng(0)
    shift = 0.35 * random.standard_normal((ROWS, 2))
    x = random.standard_normal((ROWS, 2)) @ LOADINGS.T + random.standard_normal((ROWS, 3))
    measures, sentences = told(bound(mixed, x=x, shift=shift), mixed_guide, 500, amortised=True)
    of_means = 0.5 * ((shift @ PRECISION) * shift).sum(1)
    diagonal = np.diag(PRECISION)
    assert measures["amortisation_gap"] == pytest.approx(of_means.mean(), abs=0.03)
    assert measures["approximation_gap"] == pytest.approx(OF_FORM, abs=0.03)
    error = of_means.std(ddof=1) / ROWS**0.5
    assert measures["amortisation_gap_se"] == pytest.approx(error, rel=0.1)
    parts = measures["amortisation_gap"] + measures["approximation_gap"]
    assert measures["inference_gap"] == pytest.approx(parts, abs=1e-9)
    # The guide's means and variances, and their divergence from the prior.
    means, variances = x @ LOADINGS @ np.linalg.inv(PRECISION) + shift, 1 / diagonal
    divergence = 0.5 * (means**2 + variances - 1 - np.log(variances)).mean(0)
    np.testing.assert_allclose(measures["kl_per_latent"], divergence, rtol=0.02)
    assert measures["kl_per_row"] == pytest.approx(divergence.sum(), abs=0.05)
    assert measures["active_units"] == 2
    said = (parts, measures["amortisation_gap"], measures["approximation_gap"])
    assert sentences[-1] == (
        "The ELBO is {:.2g} nats per row below log p(x): {:.2g} because one encoder serves all "
        "rows, and {:.2g} because the posteriors do not have the guide's form.".format(*said)
    )


def test_the_gap_of_many_rows_is_that_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best bound of each is its closed form; what is begun at are the row's own Normals."""
    random = np.random.default_rng(0)
    shift, x = 0.5 * random.standard_normal((ROWS, 2)), random.standard_normal((ROWS, 3))
    log_p = stats.multivariate_normal(np.zeros(3), np.eye(3) + LOADINGS @ LOADINGS.T).logpdf(x)
    seen: list[Any] = []

    def best(
        model: Any, arguments: Any, plate: Any, name: str, means: Tensor, sds: Tensor, rows: Tensor
    ) -> np.ndarray:
        seen.append(rows.numpy())
        expected = x @ LOADINGS @ np.linalg.inv(PRECISION) + shift
        np.testing.assert_allclose(means.numpy(), expected[rows], atol=0.1)
        own = np.tile(np.diag(PRECISION) ** -0.5, (30, 1))
        np.testing.assert_allclose(sds.numpy(), own, rtol=0.1)
        return log_p[rows] - 0.25

    monkeypatch.setattr(health, "LATENTS", replace(health.LATENTS, refitted_rows=30))
    monkeypatch.setattr(health, "own_bound", best)
    problem = bound(mixed, x=x, shift=shift)
    measures, _ = told(problem, mixed_guide, 4000, amortised=True)
    (rows,) = seen
    assert len(set(rows)) == 30
    below = 0.5 * ((shift @ PRECISION) * shift).sum(1) + OF_FORM  # what the guide's bound is
    gained = below[rows] - 0.25
    assert measures["amortisation_gap"] == pytest.approx(gained.mean(), abs=0.03)
    error = gained.std(ddof=1) / 30**0.5
    assert measures["amortisation_gap_se"] == pytest.approx(error, rel=0.1)
    assert measures["approximation_gap"] == pytest.approx(0.25, abs=0.05)
    assert measures["inference_gap"] == pytest.approx(below.mean(), abs=0.03)
    # A guide of the fitted rows alone has no encoder's gap to be told.
    measures, sentences = told(problem, mixed_guide, 100)
    assert "amortisation_gap" not in measures
    assert not any("ELBO" in sentence for sentence in sentences)


# Latents of which some are standard Normal.


def scaled(means: Tensor, batch_size: int | None = None) -> None:
    """Of the sites of rows one alone has a standard Normal for its prior."""
    with pyro.plate("rows", len(means), subsample_size=batch_size):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        wide = pyro.sample("wide", dist.Normal(torch.zeros(()), 2.0))
        moved = pyro.sample("moved", dist.Normal(torch.ones(()), 1.0))
        total = z + wide + moved
        pyro.sample("x", dist.Normal(total, 1.0), obs=pyro.subsample(means, event_dim=0))


def scaled_guide(means: Tensor, batch_size: int | None = None) -> None:
    with pyro.plate("rows", len(means), subsample_size=batch_size):
        mean = pyro.subsample(means, event_dim=0)
        pyro.sample("z", dist.Normal(mean, 0.5))
        pyro.sample("wide", dist.Normal(mean, 2.0))
        pyro.sample("moved", dist.Normal(mean, 1.0))


def test_of_several_sites_those_count_that_are_standard_normal() -> None:
    means = np.random.default_rng(0).permutation(np.linspace(-1.5, 1.5, 300))
    measures, sentences = told(bound(scaled, means=means), scaled_guide, 100, amortised=True)
    divergence = 0.5 * (np.square(means).mean() + 0.25 - 1) - math.log(0.5)
    assert measures["kl_per_latent"] == [pytest.approx(divergence, rel=0.02)]
    # Ten draws of each of 300 rows: the log ratio has a sd of about 0.9.
    assert measures["kl_per_row"] == pytest.approx(divergence, abs=4 * 0.9 / 3000**0.5)
    assert measures["mutual_information_limit"] == pytest.approx(math.log(300))
    assert sentences[0].startswith("1 of 1 latents are active")
    assert "amortisation_gap" not in measures  # the other sites have gaps as well


@pytest.mark.parametrize(
    ("fn", "standard"),
    [
        (dist.Normal(0.0, 1.0), True),
        (dist.Normal(torch.zeros(3), 1.0).to_event(1), True),
        (dist.Normal(0.0, 1.0).expand([4]).to_event(1), True),
        (dist.Normal(torch.tensor([0.0, 0.1]), 1.0), False),
        (dist.Normal(0.0, torch.tensor([1.0, 2.0])).to_event(1), False),
        (dist.StudentT(3.0, 0.0, 1.0), False),
    ],
)
def test_a_standard_normal_is_one_at_every_number(fn: Any, standard: bool) -> None:
    assert health.is_standard_normal(fn) is standard


# Draws of rows given other rows.


@pytest.mark.parametrize(
    ("pairs", "most_rows", "rows", "draws"),
    [
        (10**6, 100, 40, 200),  # five draws of each row are all that there are
        (40 * 130, 100, 40, 130),
        (40, 100, 40, 100),
        (10**6, 15, 15, 75),
    ],
)
def test_draws_are_compared_with_all_rows_or_as_many_as_can_be_afforded(
    monkeypatch: pytest.MonkeyPatch, pairs: int, most_rows: int, rows: int, draws: int
) -> None:
    chosen = replace(health.LATENTS, pairs=pairs, most_rows=most_rows)
    monkeypatch.setattr(health, "LATENTS", chosen)
    means = np.linspace(-1.0, 1.0, 40)
    problem = bound(scaled, means=means)
    given = problem.function, scaled_guide, problem.arguments, problem.space
    with problem.session(0):
        weighed = weigh_rows(*given, 5, ["z", "wide", "moved"])
        plate = plate_of_rows(scaled_guide, problem.arguments, problem.space)
        found = compared(scaled_guide, problem.arguments, plate, ["z"], weighed)
    assert found.log_q.shape == (draws, rows)
    assert len(set(found.rows)) == rows
    own = found.rows[found.owners]
    pairs_of = set(zip(own.tolist(), found.draws.tolist(), strict=True))
    assert len(pairs_of) == draws  # no draw twice
    each = weighed.sites["z"].numpy()[found.draws, own]
    gaps = (each[:, None] - means[found.rows]) / 0.5
    np.testing.assert_allclose(
        found.log_q, -0.5 * gaps**2 - math.log(0.5) - 0.5 * math.log(2 * math.pi), rtol=1e-5
    )


def test_more_than_ten_draws_of_a_row_are_not_compared() -> None:
    problem = bound(scaled, means=np.linspace(-1.0, 1.0, 6))
    given = problem.function, scaled_guide, problem.arguments, problem.space
    with problem.session(0):
        weighed = weigh_rows(*given, 25, ["z", "wide", "moved"])
        plate = plate_of_rows(scaled_guide, problem.arguments, problem.space)
        found = compared(scaled_guide, problem.arguments, plate, ["z"], weighed)
    assert np.bincount(found.owners).tolist() == [10] * 6
    assert set(found.draws) == set(range(10))


def test_the_bounds_of_the_information_by_hand() -> None:
    """Three draws of two rows and a third row, by the ratios of their densities."""
    q = np.array([[4.0, 1.0, 1.0], [1.0, 2.0, 1.0], [8.0, 2.0, 2.0]])
    lower, error, upper = mutual_information(np.log(q), np.array([0, 1, 0]))
    below = np.log([4 / 2, 2 / (4 / 3), 8 / 4])
    above = np.log([4 / 1, 2 / 1, 8 / 2])
    assert lower == pytest.approx(below.mean())
    assert upper == pytest.approx(above.mean())
    by_row = np.array([(below[0] + below[2]) / 2, below[1]])
    assert error == pytest.approx(abs(by_row[0] - by_row[1]) / 2)


# The sentences.

MEASURES = {
    "kl_per_row": 2.5, "mutual_information": 1.0, "mutual_information_upper": 1.5,
    "mutual_information_limit": 5.0, "inference_gap": 0.5,
}  # fmt: skip


def sentences(active: int, silent: int, **changed: float) -> list[str]:
    mask = np.array([False] * silent + [True] * active)
    return health._sentences({**MEASURES, **changed}, mask)


def test_what_latents_carry_is_told_and_the_limit_where_it_is_near() -> None:
    assert sentences(3, 0) == [
        "3 of 3 latents are active. The KL divergence of all latents from their prior is 2.5 nats "
        "per row; their mutual information with the row is between 1 and 1.5 nats."
    ]
    near = "(the number of rows compared cannot show more than 5)"
    assert near in sentences(3, 0, mutual_information=4.1)[0]
    assert near not in sentences(3, 0, mutual_information=3.9)[0]


@pytest.mark.parametrize(
    ("silent", "listed"),
    [(1, "0"), (5, "0, 1, 2, 3, 4"), (6, "0, 1, 2, 3, 4, ...")],
)
def test_silent_latents_are_listed_but_no_more_than_a_few(silent: int, listed: str) -> None:
    said = sentences(2, silent)
    assert said[0].startswith(f"2 of {silent + 2} latents are active")
    told = f"{silent} of {silent + 2} latents carry no information ({listed}, counted from 0)"
    assert told in said[1]


@pytest.mark.parametrize(("gap", "told"), [(0.011, True), (0.009, False)])
def test_a_gap_of_a_hundredth_of_a_nat_is_told(gap: float, told: bool) -> None:
    parts = {"amortisation_gap": 0.3, "approximation_gap": 0.14}
    said = sentences(1, 0, inference_gap=gap, **parts)
    assert len(said) == 1 + told
    assert not told or "is 0.44 nats per row below log p(x): 0.3 because" in said[-1]
    # Of a guide whose gap has no parts, nothing is told.
    assert len(sentences(1, 0, inference_gap=gap)) == 1


# Binary latents.


def on_and_off(draws: int, spread: float, *shares: list[float]) -> tuple[Any, list[str]]:
    """Two sites of latents that are on in a share of a row's draws, and weights e^±spread."""
    log_p = np.repeat(np.resize([-spread, spread], draws)[:, None], len(shares[0]), 1)
    values = {}
    for i, share in enumerate(shares):
        on = torch.arange(draws)[:, None] < torch.tensor(share) * draws
        values[f"on{i}"] = on.double()
    weighed = WeightedDraws(values, log_p - 3.0, np.zeros_like(log_p))
    return health._binary_health(list(values), weighed)


def test_the_information_of_binary_latents_is_a_difference_of_entropies() -> None:
    """On in half of the rows; in three quarters or a quarter of each's draws; alike in all."""
    shares = [0.0, 1.0, 0.0, 1.0], [0.75, 0.25, 0.75, 0.25], [0.25] * 4
    measures, said = on_and_off(400, 0.0, *shares)
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    expected = [math.log(2), math.log(2) - quarter, 0.0]
    np.testing.assert_allclose(measures["information_per_latent"], expected, atol=1e-12)
    assert measures["active_units"] == 2
    assert measures["inference_gap"] == pytest.approx(0.0, abs=1e-12)
    assert len(said) == 2
    assert said[0] == "2 of 3 binary latents are active."
    assert "1 of 3 latents carry no information" in said[1]


@pytest.mark.parametrize(("spread", "told"), [(0.17, True), (0.1, False)])
def test_the_gap_of_binary_latents_is_that_of_their_weights(spread: float, told: bool) -> None:
    """The log of the mean weight is log cosh of the spread; the mean log weight is zero."""
    measures, said = on_and_off(400, spread, [0.0, 1.0])
    gap = math.log(math.cosh(spread))
    assert measures["inference_gap"] == pytest.approx(gap)
    assert said[0] == "1 of 1 binary latents are active."
    assert said[1:] == ([f"The ELBO is {gap:.2g} nats per row below log p(x)."] * told)


@pytest.mark.parametrize(("share", "active"), [(0.62, 1), (0.58, 0)])
def test_the_noise_of_few_draws_is_no_variation_of_binary_latents(
    share: float, active: int
) -> None:
    """Of ten draws a share of a half has variance 1 / 40; what is beyond it must reach 0.01."""
    deviation = share - 0.5
    measures, _ = on_and_off(50, 0.0, [0.5 - deviation, 0.5 + deviation])
    variance = 2 * deviation**2 - (0.25 - deviation**2) / 50
    assert (variance > 0.01) == bool(active)
    assert measures["active_units"] == active


def test_two_binary_latents_at_one_site_are_those_of_two_sites() -> None:
    on = (torch.arange(40)[:, None] < torch.tensor([0.0, 40.0, 10.0, 30.0])).double()
    other = (torch.arange(40)[:, None] < torch.tensor([20.0, 0.0, 20.0, 40.0])).double()
    log_p = np.zeros((40, 4))

    def health_of(sites: dict[str, Tensor]) -> dict[str, Any]:
        return health._binary_health(list(sites), WeightedDraws(sites, log_p, log_p))[0]

    apart, together = (
        health_of({"a": on, "b": other}),
        health_of({"z": torch.stack([on, other], 2)}),
    )
    np.testing.assert_array_equal(
        together["information_per_latent"], apart["information_per_latent"]
    )
    assert together["active_units"] == apart["active_units"] == 2


def test_rows_without_latents_of_a_known_kind_have_no_health() -> None:
    assert health._binary_health([], on_draws()) == ({}, [])


def on_draws() -> WeightedDraws:
    return WeightedDraws({}, np.zeros((10, 2)), np.zeros((10, 2)))


def switches(x: Tensor, batch_size: int | None = None) -> None:
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        on = pyro.sample("on", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
        pyro.sample("x", dist.Normal(on, 1.0), obs=pyro.subsample(x, event_dim=0))


def switches_guide(x: Tensor, batch_size: int | None = None) -> None:
    """Their posterior, whose log odds are x - 1/2."""
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        pyro.sample("on", dist.Bernoulli(logits=pyro.subsample(x, event_dim=0) - 0.5))


def test_binary_latents_of_a_model_have_the_health_of_binary_ones() -> None:
    problem = bound(switches, x=np.repeat([-9.5, 10.5], 10))
    measures, said = told(problem, switches_guide, 50)
    assert measures["information_per_latent"] == [pytest.approx(math.log(2), abs=0.02)]
    assert measures["inference_gap"] == pytest.approx(0.0, abs=1e-9)
    assert said == ["1 of 1 binary latents are active."]

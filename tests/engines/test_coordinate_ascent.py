"""Coordinate ascent: no update lowers the ELBO, and its value is that of others."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import Trace_ELBO
from scipy.special import gammaln, logsumexp
from scipy.stats import invgamma
from sklearn.datasets import load_wine
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor

import elbowroom as er
from elbowroom import budget
from elbowroom.engines.coordinate_ascent.ascent import SWEEPING, Ascended, ascend, best_of
from elbowroom.errors import GuideError, OptionError
from elbowroom.guides import Start, get_guide
from elbowroom.guides.bayesian_regression import coordinates as regression_coordinates
from elbowroom.guides.conjugate_families import Dirichlet, Wisharts
from elbowroom.guides.factor_analysis import FactorCoordinates
from elbowroom.guides.gaussian_mixture import MixtureCoordinates
from elbowroom.models._wishart import Wishart
from elbowroom.models.factor_analysis import CONJUGATE as FACTOR_PRIORS
from elbowroom.models.factor_analysis import below, canonical, filled
from elbowroom.models.gaussian_mixture import CONJUGATE
from elbowroom.pipeline.fitting import bind_model, in_closed_form, resolve_guide
from elbowroom.problem.bound import Problem

SHAPES = ("full", "diagonal", "spherical")
ERRORS = 4.0
"""Monte Carlo standard errors by which two numbers may differ."""
DRAWS = 60
"""Estimates of an ELBO by Pyro."""
SAME_BOUND = 2e-7
"""Relative: scikit-learn adds 1e-15 to the rows of each component, and stops at a tolerance."""


def bound(model: str, data: Any, **options: Any) -> tuple[Problem, Any]:
    """A model bound to its data, and its updates."""
    problem, _, _ = bind_model(model, data, options)
    guide = get_guide("coordinate_ascent", model, model == "factor_analysis")
    assert guide.coordinates is not None
    return problem, guide.coordinates(problem.arguments)


def table(seed: int, rows: int, columns: int) -> dict[str, Any]:
    """Rows in two groups, whose columns hang together."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(rows, columns)) @ random.normal(size=(columns, columns))
    x = torch.tensor(mixed + 3 * random.integers(0, 2, size=(rows, 1)))
    return {"x": x, "centre": x.mean(0) + 0.5, "spread": x.std(0)}  # not quite in the middle


def mixture(seed: int, rows: int, columns: int, components: int, shape: str) -> Any:
    arguments = {**table(seed, rows, columns), "components": components, "conjugate": True}
    return MixtureCoordinates.of({**arguments, "covariance_type": shape})


def factors(seed: int, rows: int, columns: int, latent: int, shared: bool) -> Any:
    own = {"latent": min(latent, columns - 1), "shared": shared, "conjugate": True}
    return FactorCoordinates.of({**table(seed, rows, columns), **own})


def regression(seed: int, rows: int, columns: int, intercept: bool = True) -> Any:
    own = table(seed, rows, columns)
    random = np.random.default_rng(seed + 1)
    response = own["x"].sum(1) + torch.tensor(random.normal(size=rows))
    return regression_coordinates({
        "predictors": own["x"], "centre": own["centre"], "spread": own["spread"],
        "response": response, "response_centre": response.mean(),
        "response_spread": response.std(), "has_intercept": intercept,
    })  # fmt: skip


def check_updates(coordinates: Any, start: Any, sweeps: int = 6) -> None:
    """No update lowers the ELBO, none does anything when it is taken again, each says its name."""
    state = start
    for _ in range(sweeps):
        for name, update in coordinates.updates.items():
            before = coordinates.elbo(state)
            state = update(state)
            after = coordinates.elbo(state)
            slack = SWEEPING.rounding * (1 + abs(before))
            assert after >= before - slack, name
            assert coordinates.elbo(update(state)) == pytest.approx(after, rel=1e-11), name


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(8, 40),
    columns=st.integers(1, 3),
    components=st.integers(1, 4),
    shape=st.sampled_from(SHAPES),
)
def test_no_update_of_a_mixture_lowers_the_elbo(
    seed: int, rows: int, columns: int, components: int, shape: str
) -> None:
    coordinates = mixture(seed, rows, columns, components, shape)
    check_updates(coordinates, coordinates.starts(1, seed)[0])


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(3, 40),
    columns=st.integers(2, 6),
    latent=st.integers(1, 3),
    shared=st.booleans(),
)
def test_no_update_of_factor_analysis_lowers_the_elbo(
    seed: int, rows: int, columns: int, latent: int, shared: bool
) -> None:
    coordinates = factors(seed, rows, columns, latent, shared)
    check_updates(coordinates, coordinates.starts(1, seed)[0])


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(3, 40),
    columns=st.integers(1, 5),
    intercept=st.booleans(),
)
def test_no_update_of_a_regression_lowers_the_elbo(
    seed: int, rows: int, columns: int, intercept: bool
) -> None:
    coordinates = regression(seed, rows, columns, intercept)
    check_updates(coordinates, coordinates.starts(1, seed)[0])


MADE: dict[str, Callable[[], Any]] = {
    "mixture full": lambda: mixture(1, 30, 3, 3, "full"),
    "mixture diagonal": lambda: mixture(1, 30, 3, 3, "diagonal"),
    "mixture spherical": lambda: mixture(1, 30, 3, 3, "spherical"),
    "factors shared": lambda: factors(1, 30, 5, 2, True),
    "factors separate": lambda: factors(1, 30, 5, 2, False),
    "regression": lambda: regression(1, 30, 3),
}


def moved(state: Any, by: float, random: torch.Generator) -> list[Any]:
    """The state with one part moved a little, for each part of it."""
    found = []
    for name, value in vars(state).items():
        if isinstance(value, Tensor):
            noise = torch.randn(value.shape, generator=random, dtype=value.dtype)
            if name == "responsibilities":
                new = (value.log() + by * noise).softmax(-1)
            elif name in ("covariance", "spread", "scatter"):
                scales = 1 + by * noise[..., 0]
                new = value * scales.unsqueeze(-1) * scales.unsqueeze(-2)
            else:
                new = value * (1 + by * noise)
            found.append(replace(state, **{name: new}))
        elif hasattr(value, "__dataclass_fields__"):
            found += [replace(state, **{name: each}) for each in moved(value, by, random)]
    return found


@pytest.mark.parametrize("kind", list(MADE))
def test_it_ends_at_an_optimum_of_every_factor(kind: str) -> None:
    coordinates = MADE[kind]()
    found = ascend(coordinates, coordinates.starts(1, 0)[0], 3000)
    assert found.status == "converged"
    for state in [found.factors]:
        for update in coordinates.updates.values():
            state = update(state)  # to the last digits
        best = coordinates.elbo(state)
        for by in (1e-2, -1e-2):
            others = moved(state, by, torch.Generator().manual_seed(0))
            assert len(others) >= 4
            for other in others:
                assert coordinates.elbo(other) < best + 1e-6


@pytest.mark.parametrize("kind", list(MADE))
def test_a_fault_in_an_update_is_seen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinates = MADE[kind]()
    start = coordinates.starts(1, 0)[0]
    settled = ascend(coordinates, start, 300).factors
    check_updates(coordinates, settled, 1)
    for name in coordinates.updates:
        right = getattr(type(coordinates), name)

        def wrong(self: Any, state: Any, right: Any = right) -> Any:
            """Off by a third in one part of what it sets."""
            new = right(self, state)
            mine = [key for key, value in vars(new).items() if value is not vars(state)[key]]
            others = moved(new, 0.3, torch.Generator().manual_seed(1))
            return next(
                other
                for other in others
                if any(vars(other)[key] is not vars(new)[key] for key in mine)
            )

        with monkeypatch.context() as patch:
            patch.setattr(type(coordinates), name, wrong)
            with pytest.raises(AssertionError):
                check_updates(coordinates, settled, 1)
            ended = ascend(coordinates, settled, 50)
        assert ended.status == "diverged", name
        assert "the ELBO fell from" in ended.cause


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("gaussian_mixture", {"components": 2}),
    "diagonal": ("gaussian_mixture", {"components": 2, "covariance_type": "diagonal"}),
    "spherical": ("gaussian_mixture", {"components": 2, "covariance_type": "spherical"}),
    "shared": ("factor_analysis", {"latent": 2}),
    "separate": ("factor_analysis", {"latent": 2, "noise": "separate", "columns": "abcdef"}),
    "regression": ("bayesian_regression", {"response": "a"}),
    "conjugate": ("conjugate", {"response": "a", "likelihood": "regression"}),
}


def rows(count: int = 20, columns: int = 4) -> pd.DataFrame:
    return pd.DataFrame(table(3, count, columns)["x"].numpy(), columns=list("abcdef")[:columns])


def estimated(problem: Problem, guide: Any, values: dict[str, Tensor], elbo: float) -> bool:
    """Whether Pyro estimates an ELBO by draws of the guide with some parameters."""
    with problem.session(0):
        called = guide.build(problem.space, Start(torch.zeros(problem.space.dimension)))
        called(**problem.arguments)
        for name, value in values.items():
            pyro.get_param_store()[f"guide.{name}"] = value.clone()
        loss = Trace_ELBO().loss
        with torch.no_grad():
            found = [-loss(problem.function, called, **problem.arguments) for _ in range(DRAWS)]
    error = np.std(found) / len(found) ** 0.5
    assert error < 1.0
    return bool(abs(np.mean(found) - elbo) < ERRORS * error + 1e-6)


@pytest.mark.parametrize("kind", list(MODELS))
def test_the_elbo_in_closed_form_is_that_of_pyro(kind: str) -> None:
    """At the first sweep, where a mistake does not vanish, and at the end."""
    model, options = MODELS[kind]
    if model != "conjugate":
        options = {**options, "priors": "conjugate"}
    columns = len(options.pop("columns", "abcd")) if "columns" in options else 4
    problem, coordinates = bound(model, rows(columns=columns), **options)
    guide = get_guide("coordinate_ascent", model, model == "factor_analysis")
    (first,) = coordinates.starts(1, 0)
    for state in (first, ascend(coordinates, first, 200).factors):
        assert estimated(problem, guide, coordinates.parameters(state), coordinates.elbo(state))


def test_labels_leave_a_row_one_component_and_the_elbo_is_that_of_pyro() -> None:
    data = rows().assign(kind=["one", "two", ""] * 6 + ["one", ""])
    problem, coordinates = bound("gaussian_mixture", data, labels="kind", priors="conjugate")
    known = problem.arguments["labels"]
    (start,) = coordinates.starts(1, 0)
    check_updates(coordinates, start, 3)
    found = ascend(coordinates, start).factors
    shares = found.responsibilities[known >= 0]
    torch.testing.assert_close(shares, torch.eye(2).double()[known[known >= 0]])
    guide = get_guide("coordinate_ascent", "gaussian_mixture")
    assert estimated(problem, guide, coordinates.parameters(found), coordinates.elbo(found))


@pytest.mark.parametrize("kind", ["full", "shared"])
def test_the_guide_of_a_minibatch_has_its_rows(kind: str) -> None:
    model, options = MODELS[kind]
    problem, _ = bound(model, rows(), **options, priors="conjugate")
    guide = get_guide("coordinate_ascent", model, model == "factor_analysis")
    with problem.session(0):
        called = guide.build(problem.space, Start(torch.zeros(problem.space.dimension)))
        trace = pyro.poutine.trace(called).get_trace(**problem.arguments, batch_size=5)
    (local,) = problem.space.local
    value = trace.nodes[local]["value"]
    assert isinstance(value, Tensor)
    assert len(value) == 5


def sklearn_difference(rows: int, columns: int, components: int) -> float:
    """What scikit-learn leaves out of its bound: the priors' normalisers, and that of the rows."""
    degrees = columns + CONJUGATE.freedom
    wishart = degrees * columns / 2 * math.log(CONJUGATE.variance)
    # It leaves the powers of pi of the Wisharts out, which those of the guide have as well.
    wishart -= degrees * columns / 2 * math.log(2)
    wishart -= gammaln((degrees - np.arange(columns)) / 2).sum()
    means = columns / 2 * math.log(CONJUGATE.rows)
    return float(
        gammaln(components * CONJUGATE.concentration)
        - components * gammaln(CONJUGATE.concentration)
        + components * (wishart + means)
        - rows * columns / 2 * math.log(2 * math.pi)
    )


def wine() -> pd.DataFrame:
    return pd.DataFrame(load_wine().data[:, [0, 6, 9, 12]], columns=list("abcd"))


@pytest.mark.filterwarnings("ignore:.*did not converge:Warning")
@pytest.mark.parametrize(
    ("data", "components", "kind", "names"),
    [
        ("iris", 3, "full", None),
        (wine(), 3, "full", None),
        ("breast_cancer", 2, "full", None),
        ("iris", 2, "diagonal", ("petal_width",)),
        ("iris", 2, "spherical", ("petal_length",)),
    ],
    ids=["iris", "wine", "breast cancer", "diagonal", "spherical"],
)
def test_the_bound_of_a_mixture_is_that_of_scikit_learn(
    data: Any, components: int, kind: str, names: tuple[str, ...] | None
) -> None:
    """Sweep for sweep from the same responsibilities.

    Its diagonal and spherical bounds take the expected logarithms of a Wishart, which are right for
    one column alone.
    """
    _, coordinates = bound(
        "gaussian_mixture", data, components=components, covariance_type=kind, columns=names,
        priors="conjugate",
    )  # fmt: skip
    x = coordinates.x.numpy()
    count, columns = x.shape
    prior = {"full": CONJUGATE.variance * np.eye(columns), "spherical": CONJUGATE.variance}
    labels = np.random.default_rng(0).integers(0, components, count)
    labels[x[:, 0] > 0] = 0
    shares = np.eye(components)[labels]
    state = coordinates.begun(torch.tensor(shares))
    done = 0
    for sweeps in (1, 2, 5, 30):
        peer = BayesianGaussianMixture(
            n_components=components,
            covariance_type={"diagonal": "diag"}.get(kind, kind),
            max_iter=sweeps, tol=0.0, reg_covar=0.0,
            weight_concentration_prior_type="dirichlet_distribution",
            weight_concentration_prior=CONJUGATE.concentration,
            mean_precision_prior=CONJUGATE.rows,
            mean_prior=np.zeros(columns),
            degrees_of_freedom_prior=columns + CONJUGATE.freedom,
            covariance_prior=prior.get(kind, np.full(columns, CONJUGATE.variance)),
        )  # fmt: skip
        # It begins at the responsibilities that are given, not at those of k-means.
        peer._initialize_parameters = lambda own, *_, peer=peer, **__: peer._initialize(own, shares)
        peer.fit(x)
        while done < sweeps:
            for update in coordinates.updates.values():
                state = update(state)
            done += 1
        wanted = peer.lower_bound_ + sklearn_difference(count, columns, components)
        found = coordinates.elbo(state) + coordinates.units
        assert found == pytest.approx(wanted, rel=SAME_BOUND), sweeps


def test_the_families_are_those_of_torch() -> None:
    """Divergences from priors against torch's, and against draws where it has none."""
    one, other = torch.tensor([1.5, 2.5, 4.0]), torch.tensor([1.0, 1.0, 0.5])
    wanted = torch.distributions.kl_divergence(dist.Dirichlet(one), dist.Dirichlet(other))
    torch.testing.assert_close(Dirichlet(one).divergence(Dirichlet(other)), wanted)
    random = torch.Generator().manual_seed(0)
    root = torch.randn(2, 3, 3, generator=random, dtype=torch.float64)
    scatter = root @ root.mT + torch.eye(3, dtype=torch.float64)
    freedom = torch.tensor([5.5, 9.0], dtype=torch.float64)
    guide, prior = Wisharts(freedom, scatter), Wisharts(freedom[:1] - 1, scatter[1:] / 2)
    torch.manual_seed(0)
    own, its = (Wishart(each.freedom, torch.linalg.inv(each.scatter)) for each in (guide, prior))
    drawn = own.sample((4000,))
    ratios = own.log_prob(drawn) - its.log_prob(drawn)
    error = ratios.std(0) / len(drawn) ** 0.5
    assert ((ratios.mean(0) - guide.divergence(prior)).abs() < ERRORS * error).all()
    logs = torch.linalg.slogdet(drawn).logabsdet
    error = logs.std(0) / len(drawn) ** 0.5
    assert ((logs.mean(0) - guide.mean_log_determinant).abs() < ERRORS * error).all()
    vector = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    square = freedom * (vector @ torch.linalg.inv(scatter) @ vector)
    torch.testing.assert_close(guide.expected_square(vector.expand(2, 3)), square)


def evidence_of_regression(coordinates: Any) -> float:
    """By quadrature over the variance, given which the response is Normal."""
    design, y = coordinates.design.numpy(), coordinates.y.numpy()
    shape, scale = float(coordinates.prior.shape), float(coordinates.prior.rate)
    unit = np.eye(len(y)) + coordinates.prior_scale**2 * design @ design.T
    mean = design @ coordinates.prior_mean.numpy()
    logs = np.linspace(-12, 6, 4000)
    factor = np.linalg.cholesky(unit)
    square = np.square(np.linalg.solve(factor, y - mean)).sum()
    half = len(y) / 2 * (math.log(2 * math.pi) + logs) + np.log(np.diag(factor)).sum()
    density = -half - square / 2 * np.exp(-logs)
    density += invgamma(shape, scale=scale).logpdf(np.exp(logs)) + logs
    return float(logsumexp(density) + math.log(logs[1] - logs[0])) - coordinates.units


@pytest.mark.parametrize("intercept", [True, False])
def test_a_regression_has_the_exact_means_and_bounds_the_evidence(intercept: bool) -> None:
    coordinates = regression(2, 12, 3, intercept)
    found = ascend(coordinates, coordinates.starts(1, 0)[0])
    weight = coordinates.prior_scale**-2
    design = coordinates.design
    gram = design.T @ design + weight * torch.eye(design.shape[1]).double()
    exact = torch.linalg.solve(gram, design.T @ coordinates.y)  # of every variance
    torch.testing.assert_close(found.factors.location, exact, rtol=1e-9, atol=1e-9)
    gap = evidence_of_regression(coordinates) - found.elbo[-1]
    assert 0 < gap < 0.5


def evidence_of_factors(coordinates: Any, state: Any) -> tuple[float, float]:
    """By importance sampling of mean, loadings and log precision, without the latents.

    The proposal begins at the guide, and is moved to its own weighted draws.
    """
    columns, latent = coordinates.x.shape[1], coordinates.latent
    rows, places = below(columns, latent)
    covariance = state.covariance
    location = torch.cat([
        state.location[:, -1], state.location[rows, places], state.precision.mean.log()
    ])  # fmt: skip
    root = torch.cat([
        covariance[:, -1, -1].sqrt(), covariance[rows, places, places].sqrt(),
        state.precision.shape.rsqrt(),
    ]).diag()  # fmt: skip
    wide = dist.Normal(0.0, FACTOR_PRIORS.width)
    gamma = dist.Gamma(FACTOR_PRIORS.shape, FACTOR_PRIORS.rate)
    for count in (4000, 4000, 4000, 20_000):
        proposal = dist.MultivariateStudentT(7.0, location, 1.3 * root)
        points = proposal.sample((count,))
        mean, free, logs = points.split([columns, len(rows), len(state.precision.shape)], -1)
        loadings = filled(free, columns, latent)
        normal = dist.LowRankMultivariateNormal(
            mean, loadings, (-logs).exp().expand(count, columns)
        )
        values = normal.log_prob(coordinates.x.unsqueeze(1)).sum(0)
        values = values + wide.log_prob(mean).sum(-1) + wide.log_prob(free).sum(-1)
        values = values + (gamma.log_prob(logs.exp()) + logs).sum(-1)
        weights = values - proposal.log_prob(points)
        shares = weights.softmax(0)
        location = shares @ points
        apart = points - location
        root = torch.linalg.cholesky((shares.unsqueeze(-1) * apart).T @ apart)
    ratios = (weights - weights.max()).exp()
    error = float(ratios.std() / ratios.mean()) / count**0.5
    return float(weights.logsumexp(0)) - math.log(count) - coordinates.units, error


def factor_evidence() -> tuple[Problem, Ascended, float, float]:
    """A problem, where its ascent ends, and its evidence with the error."""
    problem, coordinates = bound("factor_analysis", rows(20, 3), latent=1, priors="conjugate")
    found = ascend(coordinates, coordinates.starts(1, 0)[0])
    torch.manual_seed(0)
    return problem, found, *evidence_of_factors(coordinates, found.factors)


def test_the_bound_of_factor_analysis_is_below_the_evidence() -> None:
    _, found, evidence, error = factor_evidence()
    assert error < 0.02
    assert evidence - 6 < found.elbo[-1] < evidence - 0.1


@pytest.mark.slow
def test_the_fit_of_a_factor_analysis_has_the_evidence() -> None:
    problem, found, evidence, error = factor_evidence()
    fit = er.fit(problem.model, problem.data, engine="coordinate_ascent", seed=1, latent=1,
                 priors="conjugate", restarts=2)  # fmt: skip
    assert fit.verdict.level == "trusted after correction"
    own = float(np.hypot(error, fit.measures["log_evidence_se"]))
    assert abs(fit.measures["log_evidence"] - evidence) < ERRORS * own
    assert any("0.6931 nats larger" in remark for remark in fit.remarks)
    assert np.all(np.diff(fit.elbo_history) >= -1e-7)
    assert fit.elbo_history[-1] == pytest.approx(found.elbo[-1], abs=1e-3)
    elbo = fit.diagnostics["elbo"]
    assert abs(elbo - fit.elbo_history[-1]) < ERRORS * fit.diagnostics["elbo_se"]
    loadings = fit.posterior["posterior"]["loadings"].to_numpy()[0]
    assert loadings.mean(0)[0, 0] > 0
    with pytest.raises(GuideError, match=r"'mean' is shared .* em and --priors none\.$"):
        fit.embed(rows(3, 3))


def test_generated_rows_have_latents_of_their_own() -> None:
    """Whose means and sds are about those of the table, where the loadings have draws."""
    data = rows(20, 3)
    fit = er.fit("factor_analysis", data, "map", latent=1, priors="conjugate", seed=1, steps=200,
                 draws=100)  # fmt: skip
    made = fit.generate(200, seed=1)
    assert made.shape == (200, 3)
    assert 0.7 < float((made.std() / data.std()).min()) < 1.4


def test_signs_are_those_of_the_reference() -> None:
    torch.manual_seed(0)
    free = torch.randn(5) + 3.0  # 3 columns, 2 latents
    drawn = free + 0.1 * torch.randn(50, 5)
    z = torch.randn(50, 4, 2)
    signs = torch.where(torch.rand(50, 2) < 0.5, -1.0, 1.0)
    _, places = below(3, 2)
    sites = {
        "mean": torch.zeros(50, 3), "free_loadings": drawn * signs[:, places],
        "z": z * signs[:, None],
    }  # fmt: skip
    turned = canonical(sites, {"free_loadings": free.expand(2, 5)}, {"latent": 2})
    torch.testing.assert_close(turned["free_loadings"], drawn)
    torch.testing.assert_close(turned["z"], z)
    flipped = canonical({**sites, "free_loadings": -drawn, "z": -z}, None, {"latent": 2})
    torch.testing.assert_close(flipped["free_loadings"], drawn)
    torch.testing.assert_close(flipped["z"], z)
    points = {"z": z}
    assert canonical(points, None, {"latent": 2})["z"] is z


def test_the_fit_of_a_regression_is_trusted_and_has_the_exact_posterior() -> None:
    data = rows(30, 3)
    fit = er.fit("conjugate", data, engine="coordinate_ascent", response="a",
                 likelihood="regression", seed=1, restarts=2)  # fmt: skip
    assert fit.verdict.trusted
    assert (fit.engine, fit.guide.name) == ("coordinate_ascent", "coordinate_ascent")
    assert fit.trained.reason.startswith(f"converged after {len(fit.elbo_history) - 1} sweeps")
    arguments = fit.problem.arguments
    design, y = arguments["design"], arguments["y"]
    first, second = arguments["prior"]
    weight = arguments["prior_scale"] ** -2
    gram = design.T @ design + weight * torch.eye(3).double()
    mean = torch.linalg.solve(gram, design.T @ y + weight * arguments["prior_mean"])
    misfit = (y - design @ mean).square().sum()
    misfit = misfit + weight * (mean - arguments["prior_mean"]).square().sum()
    shape, scale = float(first) + len(y) / 2, float(second + misfit / 2)
    drawn = fit.posterior["posterior"]
    spread = (torch.linalg.inv(gram).diagonal() * scale / (shape - 1)).sqrt()
    own = drawn["coefficients"].to_numpy()[0] * arguments["spread"].numpy()
    effective = fit.measures["corrected_effective_sample_size"]
    error = ERRORS / effective**0.5
    sds = spread[1:].numpy()
    np.testing.assert_array_less(np.abs(own.mean(0) - mean[1:].numpy()) / sds, error)
    np.testing.assert_array_less(np.abs(np.log(own.std(0) / sds)), error)
    variance = np.square(drawn["sigma"].to_numpy()[0])
    exact = invgamma(shape, scale=scale)
    assert abs(variance.mean() - exact.mean()) < error * exact.std()


def test_a_mixture_begins_at_several_starts_and_its_draws_are_corrected(tmp_path: Path) -> None:
    fit = er.fit("gaussian_mixture", rows(40, 2), engine="coordinate_ascent", components=2,
                 covariance_type="spherical", priors="conjugate", seed=1, restarts=3)  # fmt: skip
    assert fit.verdict.trusted
    assert any("of 3 starts ended at the best ELBO" in remark for remark in fit.remarks)
    assert abs(fit.diagnostics["elbo"] - fit.elbo_history[-1]) < ERRORS * fit.diagnostics["elbo_se"]
    assert fit.measures["log_evidence"] > fit.elbo_history[-1]
    assert set(fit.parameters.values) == {
        f"guide.{name}" for name in (
            "weights.concentration", "means.location", "means.count", "precisions.shape",
            "precisions.rate", "assignments.probabilities",
        )
    }  # fmt: skip
    probabilities = fit.predict().filter(like="probability").to_numpy()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    loaded = er.load(fit.save(tmp_path / "run"))
    np.testing.assert_allclose(loaded.elbo_history, fit.elbo_history)


class Uphill:
    """A factor that is half of what is left nearer to one after each update."""

    def __init__(self, best: dict[float, float] | None = None) -> None:
        self.best = best or {}

    @property
    def updates(self) -> dict[str, Callable[[Any], Any]]:
        return {"only": lambda state: (state[0], (1 + state[1]) / 2)}

    def starts(self, count: int, seed: int) -> list[Any]:
        return [(float(k), 0.0) for k in range(count)]

    def elbo(self, state: Any) -> float:
        return float(state[1] + self.best.get(state[0], 0.0))


def test_the_best_of_the_starts_is_taken_and_the_number_that_reached_it() -> None:
    found = best_of(Uphill({1.0: 5.0, 3.0: 5.0}), 4, 0)  # type: ignore[arg-type]
    assert (found.factors[0], found.reached, found.tried) == (1.0, 2, 4)
    assert found.status == "converged"
    assert found.elbo[0] == 5.0
    assert found.elbo[-1] == pytest.approx(6.0, abs=1e-4)


def test_it_ends_with_the_sweeps_or_the_time() -> None:
    few = best_of(Uphill(), 2, 0, sweeps=3)  # type: ignore[arg-type]
    assert (few.status, len(few.elbo), few.tried, few.cut) == ("budget", 4, 2, False)
    with budget.limited(1e-9):
        cut = best_of(Uphill(), 8, 0)  # type: ignore[arg-type]
    assert (cut.status, len(cut.elbo), cut.tried, cut.cut) == ("budget", 2, 1, True)


def test_an_interruption_keeps_what_was_found() -> None:
    def interrupt(sweep: int, most: int, elbo: float) -> None:
        if sweep == 2:
            raise KeyboardInterrupt

    found: Ascended = best_of(Uphill(), 8, 0, progress=interrupt)  # type: ignore[arg-type]
    assert (found.status, len(found.elbo), found.tried) == ("interrupted", 3, 1)


def test_a_fit_whose_time_is_over_says_so() -> None:
    fit = er.fit("bayesian_regression", rows(20, 3), engine="coordinate_ascent", response="a",
                 priors="conjugate", seed=1, steps=1, draws=100)  # fmt: skip
    assert fit.trained.status == "budget"
    assert fit.trained.reason == (
        "stopped after 1 sweep, since that was the budget: the ELBO still rose."
    )


def own_model(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfCauchy(torch.tensor(1.0)))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)


@pytest.mark.parametrize(
    ("model", "data", "options", "said"),
    [
        ("gaussian_mixture", "iris", {}, "'standardised_scales' are not conjugate; give --priors"),
        ("bayesian_regression", "diabetes", {"response": "bmi"}, "Exponential prior of 'stand"),
        ("factor_analysis", "iris", {}, "points, which have no priors; give --priors conjugate"),
        ("conjugate", "heights", {}, "--guide exact; give --likelihood regression"),
        ("hierarchical_normal", "eight_schools", {}, "'sd', HalfCauchy, is conjugate to no like"),
        (own_model, {"y": torch.ones(5)}, {}, "model of your own, and the prior of 'scale', HalfC"),
        ("factor_analysis", "iris", {"guide": "em", "priors": "conjugate"}, "give --priors none"),
        ("factor_analysis", "iris", {"guide": "map"}, "'map' needs --engine svi"),
    ],
)  # fmt: skip
def test_what_is_not_conjugate_is_named(model: Any, data: Any, options: Any, said: str) -> None:
    own = {"engine": "auto" if options.get("guide") == "em" else "coordinate_ascent", **options}
    with pytest.raises(OptionError, match=said.replace("(", "[(]")):
        er.fit(model, data, own.pop("guide", "auto"), **own)


def test_auto_takes_a_guide_that_suits_the_priors() -> None:
    for priors, wanted, own in (
        ("none", "exact", None),
        ("conjugate", "local", "coordinate_ascent"),
    ):
        problem, _, _ = bind_model("factor_analysis", "iris", {"priors": priors})
        assert in_closed_form(problem) == own
        assert resolve_guide("auto", problem).name == wanted

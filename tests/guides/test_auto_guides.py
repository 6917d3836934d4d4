"""The density of every guide that fits any model, against closed forms and numerical integrals."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

import elbowroom as er
from elbowroom.density.curvature import Curvature
from elbowroom.density.density import Density
from elbowroom.density.modes import find_modes
from elbowroom.draws.of_guide import draw
from elbowroom.errors import ElbowroomError, GuideError, NoModeError
from elbowroom.guides import Guide, Start, get_guide
from elbowroom.guides.families import FixedDraws, Normal, sampled, scales
from elbowroom.guides.sites import read_guide
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated
from elbowroom.problem.mapping import map_draws

EXACT: Any = {"rtol": 1e-8, "atol": 1e-8}
"""Of a log density computed in two ways in float64, by way of a transform's inverse."""
DATA = {"y": torch.tensor([0.5, 1.5, -0.2, 2.0], dtype=torch.float64)}


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def constrained(y: Tensor) -> None:
    """Sites of every shape that matters: real, positive, a simplex, and one in a plate."""
    level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.0))
    scale = pyro.sample("scale", dist.Gamma(torch.tensor(2.0), 2.0))
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", len(y)):
        bound = pyro.sample("bound", dist.Beta(torch.tensor(2.0), 3.0))
        pyro.sample("y", dist.Normal(level + bound * share[0], scale), obs=y)


def conjugate(y: Tensor) -> None:
    with pyro.plate("groups", 2):
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.5), 2.0))
    total = pyro.sample("total", dist.Normal(mean.sum(), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(total + mean[0], 0.7), obs=y)


def log_evidence(y: Tensor) -> float:
    """Of `conjugate`: y is linear in four kinds of Normal noise."""
    # y = (2 m_0 + m_1) + e_total + e_y
    shared = 2.0**2 * (4 + 1) + 1.0
    covariance = 0.7**2 * torch.eye(len(y)) + shared
    mean = torch.full((len(y),), 1.5)
    return float(dist.MultivariateNormal(mean, covariance).log_prob(y))


def some_start(space: LatentSpace) -> Start:
    root = torch.randn(space.dimension, space.dimension)
    return Start(torch.randn(space.dimension), root @ root.mT + torch.eye(space.dimension))


def built(name: str, space: LatentSpace, start: Start) -> Callable[..., Any]:
    return get_guide(name, None).build(space, start)


def randomised(guide: Callable[..., Any], arguments: dict[str, Any], by: float = 0.3) -> None:
    """Moves every parameter of a guide away from where it begins."""
    guide(**arguments)
    with torch.no_grad():
        for value in dict(pyro.get_param_store().named_parameters()).values():
            value.add_(by * torch.randn(value.shape))


def parameter(name: str) -> Tensor:
    """The one parameter whose name ends so, whatever a guide puts before it."""
    (value,) = [v for k, v in pyro.get_param_store().items() if f".{k}".endswith(f".{name}")]
    return value.detach()


def normal_of(name: str, space: LatentSpace, start: Start) -> dist.TorchDistribution:
    """The Normal in unconstrained coordinates that a guide's parameters stand for."""
    assert start.precision is not None
    location = start.location
    covariance = torch.linalg.inv(start.precision)
    widths = start.precision.diagonal().rsqrt()
    if name == "laplace":
        return dist.MultivariateNormal(location, precision_matrix=start.precision)
    if name == "mean_field":
        ratios = torch.cat([parameter(f"{s.name}.log_ratio").reshape(-1) for s in space.sites])
        location = location + torch.linalg.cholesky(covariance) @ parameter("offset")
        return dist.Normal(location, widths * ratios.exp()).to_event(1)
    if name == "full_rank":
        whitening = torch.linalg.cholesky(covariance)
        factor = whitening @ parameter("factor")
        location = location + whitening @ parameter("offset")
        return dist.MultivariateNormal(location, factor @ factor.mT)
    factor = widths.unsqueeze(-1) * parameter("factor")
    own = (widths * parameter("log_ratio").exp()).square()
    location = location + torch.linalg.cholesky(covariance) @ parameter("offset")
    return dist.MultivariateNormal(location, factor @ factor.mT + own.diag())


@pytest.mark.parametrize("name", ["laplace", "mean_field", "full_rank", "low_rank"])
def test_log_q_is_the_normals_with_the_jacobian(name: str) -> None:
    space = LatentSpace.of(constrained, DATA)
    start = some_start(space)
    guide = built(name, space, start)
    randomised(guide, DATA)
    drawn = draw(constrained, guide, DATA, space, 20)
    normal = normal_of(name, space, start)
    for i, log_q in enumerate(drawn.log_q):
        values = {key: value[i] for key, value in drawn.sites.items()}
        u = space.unconstrain(values)
        parts = space.split(u)
        jacobian = sum(
            site.log_abs_det_jacobian(parts[site.name], values[site.name]).sum()
            for site in space.sites
        )
        torch.testing.assert_close(torch.tensor(log_q), normal.log_prob(u) - jacobian, **EXACT)


@pytest.mark.parametrize("name", ["laplace", "mean_field", "full_rank", "low_rank"])
def test_draws_have_the_moments_of_that_normal(name: str) -> None:
    space = LatentSpace.of(constrained, DATA)
    start = some_start(space)
    guide = built(name, space, start)
    randomised(guide, DATA)
    count = 1000

    def sample(_: dict[str, Tensor]) -> Tensor:
        nodes: Any = poutine.trace(guide).get_trace(**DATA).nodes
        return space.unconstrain({site.name: nodes[site.name]["value"] for site in space.sites})

    with torch.no_grad():
        u = map_draws(sample, {}, count, count)
    normal = normal_of(name, space, start)
    mean, sd = normal.mean, normal.variance.sqrt()
    # Five standard errors of a mean and of a standard deviation, over seven coordinates.
    assert ((u.mean(0) - mean).abs() / sd).max() < 5 / count**0.5
    assert (u.std(0) / sd - 1).abs().max() < 5 / (2 * count) ** 0.5


def two_sites(y: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.0))
    scale = pyro.sample("scale", dist.Exponential(torch.ones(())))
    pyro.sample("y", dist.Normal(level, scale).expand([4]).to_event(1), obs=y)


def test_the_flows_density_integrates_to_one_over_the_sites_values() -> None:
    space = LatentSpace.of(two_sites, DATA)
    precision = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
    start = Start(torch.tensor([0.4, -0.3]), precision)
    guide = built("flow", space, start)
    randomised(guide, DATA, 0.05)  # far from the identity, and smooth on the grid below
    whitening = torch.linalg.cholesky(torch.linalg.inv(precision))
    side = 150
    level = torch.linspace(-4, 5, side)
    scale = torch.linspace(-5, 3.5, side).exp()
    grid = torch.cartesian_prod(level, scale)  # (points, 2)
    u = torch.stack([grid[:, 0], grid[:, 1].log()], -1)
    whitened = torch.linalg.solve(whitening, (u - start.location).mT).mT

    (site,) = [n for n in poutine.trace(guide).get_trace(**DATA).nodes if n.endswith("whitened")]

    def log_q(values: dict[str, Tensor]) -> Tensor:
        trace = poutine.trace(poutine.condition(guide, values)).get_trace(**DATA)
        return torch.as_tensor(trace.log_prob_sum())

    with torch.no_grad():
        density = map_draws(log_q, {site: whitened}, 2000).exp().reshape(side, side)
    total = torch.trapezoid(torch.trapezoid(density, scale, dim=1), level)
    # The error of the trapezoid rule on a spline's kinks.
    assert float(total) == pytest.approx(1.0, abs=0.003)
    laplace = normal_of("laplace", space, start).log_prob(u).exp().reshape(side, side) / scale
    assert (density - laplace).abs().max() > 0.1 * laplace.max()


def test_the_flow_begins_as_the_laplace_approximation() -> None:
    space = LatentSpace.of(constrained, DATA)
    start = some_start(space)
    drawn = draw(constrained, built("flow", space, start), DATA, space, 50)
    normal = normal_of("laplace", space, start)
    for i, log_q in enumerate(drawn.log_q):
        u = space.unconstrain({name: value[i] for name, value in drawn.sites.items()})
        parts, values = space.split(u), space.constrain(u)
        jacobian = sum(
            site.log_abs_det_jacobian(parts[site.name], values[site.name]).sum()
            for site in space.sites
        )
        # The network's last layer begins at a hundredth of its usual size, not at zero.
        assert log_q == pytest.approx(float(normal.log_prob(u) - jacobian), abs=0.5)


@pytest.mark.parametrize("name", ["laplace", "full_rank"])
def test_the_exact_posterior_gives_the_log_evidence_at_every_draw(name: str) -> None:
    space = LatentSpace.of(conjugate, DATA)
    density = Density(conjugate, DATA, space)
    (mode,) = find_modes(density, Curvature(density), np.zeros((1, space.dimension)))
    start = Start(torch.as_tensor(mode.location), torch.as_tensor(mode.precision))
    drawn = draw(conjugate, built(name, space, start), DATA, space, 200)
    evidence = log_evidence(DATA["y"])
    # The start's Newton decrement of 1e-6 nats, a few standard deviations out.
    assert drawn.log_weights == pytest.approx(evidence, abs=1e-4)
    assert drawn.elbo()[0] == pytest.approx(evidence, abs=1e-5)


def test_map_is_the_mode_of_the_values_and_not_of_the_unconstrained_ones() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("scale", dist.LogNormal(torch.ones(()), 0.5))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    options: dict[str, Any] = {"steps": 400, "schedule": "cosine", "draws": 100}
    fit = er.fit(model, {"y": torch.tensor(0.3)}, guide="map", seed=0, **options)
    # The mode of a LogNormal is exp(mean - variance); that of its logarithm is at exp(mean).
    mode = math.exp(1 - 0.5**2)
    assert float(fit.posterior["posterior"]["scale"].mean()) == pytest.approx(mode, rel=0.01)


def test_laplace_without_curvature_is_refused_with_another_guide() -> None:
    def model(y: Tensor) -> None:
        flat = dist.Normal(torch.zeros(2), 1.0).mask(False)
        parts = pyro.sample("parts", flat.to_event(1))
        pyro.sample("y", dist.Normal(parts.sum(), 1.0), obs=y)

    with pytest.raises(GuideError, match=r"positive curvature.*--guide mean_field"):
        er.fit(model, {"y": torch.tensor(1.0)}, guide="laplace", seed=0, draws=100)


def test_guides_in_a_plate_hold_a_minibatch() -> None:
    def model(y: Tensor, batch_size: int | None = None) -> None:
        with pyro.plate("rows", len(y), subsample_size=batch_size):
            batch = pyro.subsample(y, event_dim=0)
            z = pyro.sample("z", dist.Gamma(torch.tensor(2.0), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=batch)

    space = LatentSpace.of(model, DATA)
    start = Start(torch.arange(4.0))
    for name in ("mean_field", "map"):
        pyro.clear_param_store()
        guide = built(name, space, start)
        trace: Any = poutine.trace(guide).get_trace(**DATA, batch_size=2)
        rows = trace.nodes["rows"]["value"]
        assert trace.nodes["z"]["value"].shape == (2,)
        assert parameter("z.offset").shape == (4,)
        assert len(rows) == 2


def test_a_dense_guide_is_refused_for_latents_of_every_row() -> None:
    with pytest.raises(ElbowroomError, match=r"'full_rank' needs every latent at once"):
        get_guide("full_rank", "vae", local_latents=True)
    with pytest.raises(ElbowroomError, match=r"was written for conditional_vae, vae, not for"):
        get_guide("encoder", "bayesian_regression")


def test_importing_zuko_leaves_validation_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "zuko" or name == "pyro.contrib.zuko":
            monkeypatch.delitem(sys.modules, name)
    space = LatentSpace.of(two_sites, DATA)
    for validates in (True, False):
        monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", validates)
        built("flow", space, Start(torch.zeros(2)))
        assert torch.distributions.Distribution._validate_args is validates
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, -1.0)


def test_guides_of_correlations_are_valid_cholesky_factors() -> None:
    def model(y: Tensor) -> None:
        correlation = pyro.sample("correlation", dist.LKJCholesky(3, torch.ones(())))
        likelihood = dist.MultivariateNormal(torch.zeros(3), scale_tril=correlation)
        pyro.sample("y", likelihood, obs=y)

    data = {"y": torch.tensor([0.4, -0.3, 1.0])}
    space = LatentSpace.of(model, data)
    for name in ("mean_field", "full_rank"):
        pyro.clear_param_store()
        guide = built(name, space, some_start(space))
        randomised(guide, data)
        factors = draw(model, guide, data, space, 30).sites["correlation"]
        assert constraints.corr_cholesky.check(factors).all()


@pytest.mark.parametrize("guide", ["mean_field", "full_rank", "low_rank", "flow", "laplace", "map"])
def test_a_model_may_name_its_sites_as_a_guide_names_its_parameters(guide: str) -> None:
    names = {"offset", "factor", "log_ratio", "unconstrained", "whitened", "flow"}

    def model(y: Tensor) -> None:
        total = sum(pyro.sample(name, dist.Normal(torch.zeros(()), 1.0)) for name in sorted(names))
        pyro.sample("y", dist.Normal(total, 1.0).expand([4]).to_event(1), obs=y)

    space = LatentSpace.of(model, DATA)
    called = built(guide, space, Start(torch.zeros(6), torch.eye(6)))
    assert read_guide(called, DATA, space).names == names
    assert draw(model, called, DATA, space, 3).sites.keys() == names


def test_where_the_mode_is_no_use_auto_goes_by_stochastic_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise NoModeError("mean_field needs a mode; do something else.")

    monkeypatch.setattr("elbowroom.engines.fixed_draws.engine.approximate", fail)
    options: dict[str, Any] = {"formula": "progression ~ bmi", "seed": 1}
    found = er.fit("bayesian_regression", None, "mean_field", **options)
    assert found.engine == "svi"
    assert "Fitted with --engine svi, not fixed_draws: mean_field needs a mode." in found.notes
    for guide, engine in (("mean_field", "fixed_draws"), ("laplace", "auto")):
        with pytest.raises(GuideError, match="needs a mode"):
            er.fit("bayesian_regression", None, guide, engine=engine, **options)


def test_a_guide_says_what_fixed_draws_do_with_it_if_and_only_if_they_fit_it() -> None:
    def build(space: LatentSpace, start: Start) -> Callable[..., Any]:
        return lambda **_: None

    assert Guide("stochastic", "", build).engines == ("svi",)
    assert Guide("both", "", build, fixed_draws=FixedDraws()).engines == ("fixed_draws", "svi")
    with pytest.raises(GuideError, match="'half': give fixed_draws="):
        Guide("half", "", build, engines=("fixed_draws",))
    with pytest.raises(GuideError, match="'half': give fixed_draws="):
        Guide("half", "", build, engines=("svi",), fixed_draws=FixedDraws())


class OneScale:
    """Independent Normals of one common width: a family that no file of the package knows."""

    def __init__(self, space: LatentSpace, start: Start) -> None:
        self.start, self.widths = start, scales(start)
        self.parameters = {"offset": constraints.real, "width": constraints.positive}

    def initial(self, width: float = 1.0) -> dict[str, Tensor]:
        return {"offset": torch.zeros(len(self.widths)), "width": torch.tensor(width)}

    def normal(self, values: Mapping[str, Tensor]) -> Normal:
        location = self.start.location + self.widths * values["offset"]
        return Normal(location, self.widths * values["width"])

    def curvature(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}


def test_a_family_from_elsewhere_is_fitted_by_both_engines() -> None:
    """Of a correlated Normal with unit conditional variances, all optimal variances are one."""
    precision = torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.0, -0.5], [0.0, -0.5, 1.0]])
    mean = torch.tensor([1.0, -2.0, 0.5])

    def model(y: Tensor) -> None:
        u = pyro.sample("u", dist.MultivariateNormal(mean, precision_matrix=precision))
        pyro.sample("y", dist.Normal(0.0 * u.sum(), 1.0), obs=y)

    def build(space: LatentSpace, start: Start) -> Callable[..., Any]:
        return sampled(space, OneScale(space, start))

    declared = FixedDraws(OneScale)
    guide = Guide("one_scale", "one width", build, dense=True, fixed_draws=declared)
    gap = 0.5 * float(torch.linalg.slogdet(precision)[1])  # of the widest to the narrower Normal
    evidence = float(dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)))
    runs: tuple[tuple[str, dict[str, Any]], ...] = (("fixed_draws", {}), ("svi", {"steps": 2000}))
    for engine, settings in runs:
        fit = er.fit(model, {"y": torch.tensor(0.0)}, guide, engine=engine, seed=1, **settings)
        values = fit.parameters.values
        assert set(values) == {"guide.offset", "guide.width"}
        assert fit.engine == engine
        # The fixed optimum is flat to 1e-4 nats; the stochastic one has its steps' noise.
        near = 0.02 if engine == "fixed_draws" else 0.1
        assert abs(float(values["guide.width"])) < near  # its logarithm
        assert float(values["guide.offset"].abs().max()) < near
        assert (
            abs(fit.measures["elbo"] - (evidence + gap)) < 3.5 * fit.measures["elbo_se"] + near**2
        )

"""Missing cells of grey images: shares are drawn as shares, and as far apart as the data's."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from elbowroom.draws.imputing import dispersion_of_shares, from_chains, shares
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated

ROWS = 400


@pytest.fixture(autouse=True)
def apart() -> Any:
    with isolated(5, dtype=torch.float64):
        yield


def model(x: Tensor, batch_size: int | None = None) -> None:
    """Two pixels, dark in half of the rows and bright in the others."""
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        bright = torch.where(z > 0, 0.8, 0.2).expand(*z.shape[:-1], 2)
        emission = dist.Bernoulli(bright, validate_args=False).to_event(1)
        pyro.sample("x", emission, obs=pyro.subsample(x, event_dim=1))


def guide(x: Tensor, batch_size: int | None = None) -> None:
    """It knows from the first pixel which half a row is of."""
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        batch = pyro.subsample(x, event_dim=1)
        sign = torch.where(batch[:, :1] > 0.5, 1.0, -1.0)
        pyro.sample("z", dist.Normal(2 * sign, 0.5).to_event(1))


def grey(dispersion: float) -> Tensor:
    bright = torch.where(torch.arange(ROWS)[:, None] % 2 == 0, 0.8, 0.2).expand(ROWS, 2)
    return shares(bright.double(), dispersion)


def test_draws_of_shares_have_the_mean_and_variance_that_they_are_asked_for() -> None:
    for mean, dispersion in ((0.5, 0.02), (0.1, 0.3), (0.9, 0.7)):
        drawn = shares(torch.full((100_000,), mean), dispersion)
        variance = dispersion * mean * (1 - mean)
        assert abs(float(drawn.mean()) - mean) < 4 * (variance / 1e5) ** 0.5
        assert float(drawn.var()) == pytest.approx(variance, rel=0.03)
    edge = shares(torch.tensor([0.0, 1.0]), 0.1)
    assert edge.tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert torch.isfinite(shares(torch.tensor([0.5]), 2.0)).all()


def test_the_dispersion_is_that_of_the_residuals() -> None:
    found = dispersion_of_shares(model, guide, {"x": grey(0.05)}, "x")
    assert found == pytest.approx(0.05, rel=0.25)
    binary = (grey(0.05) > 0.5).double()
    assert dispersion_of_shares(model, guide, {"x": binary}, "x") is None


def test_missing_shares_are_drawn_as_far_apart_as_those_that_are_there() -> None:
    x = grey(0.05)
    missing = torch.zeros_like(x, dtype=torch.bool)
    missing[:, 1] = True
    given = {"x": torch.where(missing, 0.5, x)}
    space = LatentSpace.of(model, given)

    def drawn(*dispersion: float) -> Tensor:
        found, _ = from_chains(model, guide, given, "x", missing, space, 60, *dispersion)
        return torch.as_tensor(found)[:, ::2]  # the bright rows

    plain, share = drawn(), drawn(0.05)
    assert set(plain[..., 1].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(share[..., 0], x[::2, 0].expand(60, -1))  # what is there stays
    inside = (share[..., 1] > 0.6) & (share[..., 1] < 0.95)
    # Of the latents that the first pixel leaves open a few are of the other half.
    assert float(inside.double().mean()) > 0.7
    assert abs(float(share[..., 1].mean() - plain[..., 1].mean())) < 0.02

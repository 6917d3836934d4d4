"""Supports of matrices, which torch has no bijection for."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import elbowroom as er
from elbowroom.guides.transforms import CholeskyFactor, PositiveDefinite

EXACT: Any = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize("kind", [CholeskyFactor, PositiveDefinite])
@given(size=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_the_jacobian_is_autograds_and_the_inverse_inverts(kind: Any, size: int, seed: int) -> None:
    transform = kind()
    generator = torch.Generator().manual_seed(seed)
    count = size * (size + 1) // 2
    x = torch.randn(count, generator=generator, dtype=torch.float64)
    y = transform(x)
    assert y.shape == transform.forward_shape(x.shape) == (size, size)
    assert transform.inverse_shape(y.shape) == x.shape
    torch.testing.assert_close(transform.inv(y), x, **EXACT)
    rows, columns = torch.tril_indices(size, size)
    jacobian = torch.func.jacrev(lambda v: transform(v)[rows, columns])(x)
    wanted = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), wanted, **EXACT)


def test_a_wishart_prior_has_its_conjugate_posterior() -> None:
    """Normal rows of known mean with a Wishart precision: the mean of the posterior is closed."""
    rows = torch.tensor([[1.0, 0.5], [-0.5, 1.5], [2.0, 1.0], [-1.0, -2.0], [0.3, 0.2]]).double()

    def model(y: Tensor) -> None:
        prior = dist.Wishart(torch.tensor(4.0), torch.eye(2))
        precision = pyro.sample("precision", prior)
        with pyro.plate("rows", len(y)):
            pyro.sample(
                "y", dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision), obs=y
            )

    fit = er.fit(model, {"y": rows}, seed=1, draws=8000)
    assert fit.verdict.trusted
    freedom = 4.0 + len(rows)
    scale = torch.linalg.inv(torch.eye(2).double() + rows.T @ rows)
    found = torch.tensor(fit.posterior["posterior"]["precision"].to_numpy()[0])
    # Var[W_ij] = freedom (V_ij² + V_ii V_jj).
    variance = freedom * (scale**2 + torch.outer(scale.diag(), scale.diag()))
    errors = (found.mean(0) - freedom * scale).abs() / variance.sqrt()
    # 8,000 draws of about half that worth: five standard errors.
    assert errors.max() < 5 / 4000**0.5
    torch.testing.assert_close(found.var(0), variance, rtol=0.15, atol=0.0)

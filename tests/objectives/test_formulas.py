"""Objectives whose parts have a formula, term by term."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from elbowroom.guides.space import FixedRows, LatentSpace
from elbowroom.objectives.elbo import make_objective
from elbowroom.objectives.estimators import FreeBitsOptions, LeaveOneOut

ROWS, LATENTS = 12, 2


def rows(x: Tensor, batch_size: int | None = None) -> None:
    with pyro.plate("rows", ROWS, subsample_size=batch_size):
        batch = pyro.subsample(x, event_dim=0)
        z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(0 * z.sum(-1), 1.0), obs=batch)


def shifted(means: list[float]) -> Any:
    """A guide whose divergence from the prior is half the square of each mean, in every row."""

    def guide(x: Tensor, batch_size: int | None = None) -> None:
        with pyro.plate("rows", ROWS, subsample_size=batch_size):
            pyro.sample("z", dist.Normal(torch.tensor(means), 1.0).to_event(1))

    return guide


@pytest.mark.parametrize("batch_size", [None, 3, 4])
@pytest.mark.parametrize(
    ("means", "nats"),
    [([0.0, 2.0], 0.5 + 2.0), ([0.2, 0.4], 0.5 + 0.5), ([2.0, 4.0], 2.0 + 8.0)],
)
def test_half_a_nat_of_each_latent_of_each_row_is_free(
    means: list[float], nats: float, batch_size: int | None
) -> None:
    """Of all rows and, by the minibatch's scale, of any minibatch of them."""
    arguments = {"x": torch.zeros(ROWS)}
    space = LatentSpace.of(rows, arguments)
    objective = make_objective("trace_mean_field", 1, space, FreeBitsOptions(0.5))
    if batch_size is not None:
        arguments["batch_size"] = batch_size  # type: ignore[assignment]
    with FixedRows({"rows": torch.arange(batch_size or ROWS)}):
        loss, _ = objective.loss_and_surrogate(rows, shifted(means), arguments)
    likelihood = ROWS * 0.5 * np.log(2 * np.pi)  # each row is zero
    assert float(loss) == pytest.approx(likelihood + ROWS * nats, rel=1e-6)


def test_the_signal_of_a_draw_is_the_bound_less_what_the_other_draws_make_of_it() -> None:
    """Mnih and Rezende, 2016, equations 7 and 8: the geometric mean of the others is put in."""
    draws, count = 4, 3
    random = np.random.default_rng(0)
    log_p, log_q = random.normal(size=(2, draws, count))
    q = torch.tensor(log_q, requires_grad=True)
    p = torch.tensor(log_p, requires_grad=True)
    objective = LeaveOneOut(draws, 1)
    terms = {"p": p, "q": q}
    objective.surrogate(terms, objective.combined(p - q)).sum().backward()
    weights = log_p - log_q
    bound = logsumexp(weights, axis=0) - np.log(draws)
    shares = np.exp(weights - logsumexp(weights, axis=0))
    for i in range(draws):
        others = np.delete(weights, i, axis=0)
        instead = np.vstack([others, others.mean(0)])
        signal = bound - (logsumexp(instead, axis=0) - np.log(draws))
        assert q.grad is not None
        assert p.grad is not None
        np.testing.assert_allclose(q.grad[i], signal - shares[i], atol=1e-12)
        np.testing.assert_allclose(p.grad[i], shares[i], atol=1e-12)

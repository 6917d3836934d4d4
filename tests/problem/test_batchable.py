"""What is written out for a batch has the values and slopes of torch's and Pyro's own."""

from decimal import Decimal
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.ops import special
from torch import Tensor
from torch.nn import functional

from elbowroom.problem.batchable import Batchable

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def test_pyros_safe_log_is_the_same_in_a_batch() -> None:
    x = torch.tensor([0.0, 1e-30, 0.3, 2.0], dtype=torch.float64)

    def logarithm(value: Tensor) -> Tensor:
        return special.safe_log(value)

    alone = x.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(logarithm(alone).sum(), alone)
    with Batchable(), Batchable():
        batched = torch.func.vmap(torch.func.grad_and_value(logarithm))(x)
        curved = torch.func.vmap(torch.func.grad(torch.func.grad(logarithm)))(x[2:])
    torch.testing.assert_close(batched, (slopes, x.log()), **EXACT)
    torch.testing.assert_close(curved, -1 / x[2:] ** 2, **EXACT)
    assert "apply" not in vars(special._SafeLog)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_bernoulli_logits_far_out_and_at_zero(value: float) -> None:
    """By decimal numbers of 28 digits: value x - log(1 + e^x), its slope and its bend."""
    logits = torch.tensor([-800.0, -39.0, -1.0, 0.0, 1e-9, 2.0, 21.0, 39.0, 41.0, 800.0]).double()

    def density(logit: Tensor) -> Tensor:
        return dist.Bernoulli(logits=logit, validate_args=False).log_prob(logit.new_tensor(value))

    with Batchable():
        slopes, values = torch.func.vmap(torch.func.grad_and_value(density))(logits)
        bends = torch.func.vmap(torch.func.grad(torch.func.grad(density)))(logits)
    points = [Decimal(x) for x in logits.tolist()]
    exact = logits.new_tensor([float(Decimal(value) * x - (1 + x.exp()).ln()) for x in points])
    shares = [1 / (1 + (-x).exp()) for x in points]
    torch.testing.assert_close(values, exact, **EXACT)
    torch.testing.assert_close(slopes, value - logits.new_tensor([*map(float, shares)]), **EXACT)
    curved = logits.new_tensor([-float(share * (1 - share)) for share in shares])
    torch.testing.assert_close(bends, curved, **EXACT)


def test_weights_and_means_of_a_cross_entropy_are_torchs_own() -> None:
    logits, values, weights = torch.linspace(-2, 2, 15).double().reshape(3, 5).unbind()
    entropy = functional.binary_cross_entropy_with_logits
    options: list[dict[str, Any]] = [
        {},
        {"reduction": "sum"},
        {"weight": weights, "reduction": "none"},
        {"pos_weight": weights, "reduction": "none"},
    ]
    expected = [entropy(logits, values, **each) for each in options]
    with Batchable():
        found = [entropy(logits, values, **each) for each in options]
    torch.testing.assert_close(found, expected, **EXACT)

"""Sites in coordinates between their values and standardised ones, beside Pyro's own."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from elbowroom.problem.informed import written
from elbowroom.problem.isolation import isolated
from elbowroom.problem.partly_centred import PartlyCentred

LOC = torch.tensor([[0.3], [-2.0]], dtype=torch.float64)
SCALE = torch.tensor([0.2, 3.0, 11.0], dtype=torch.float64)
EXACT: Any = {"rtol": 1e-12, "atol": 1e-12}
FAMILIES = {
    "normal": dist.Normal(LOC, SCALE),
    "student_t": dist.StudentT(torch.tensor(3.0, dtype=torch.float64), LOC, SCALE),
    "cauchy": dist.Cauchy(LOC, SCALE),
    "laplace": dist.Laplace(LOC, SCALE),
}
EACH = torch.tensor([[0.0, 0.5, 1.0], [0.9, 0.1, 0.2]], dtype=torch.float64)
SHARES = {
    "one number": torch.tensor(0.3, dtype=torch.float64),
    "each its own": EACH,
    "standardised": None,
}


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("fn", FAMILIES.values(), ids=FAMILIES)
def test_it_is_pyros_own_form(fn: Any, share: Tensor | None) -> None:
    """The density of a model with it and its values are those of `LocScaleReparam`."""

    def model() -> None:
        pyro.sample("f", fn.expand((4, 2, 3)).to_event(2))

    with isolated(1, dtype=torch.float64):
        u = torch.randn(4, 2, 3)
        reparam = LocScaleReparam(centered=0.0 if share is None else share)
        models = (
            poutine.reparam(model, config={"f": reparam}),
            written(model, {"f": share}, lambda *_: (u, u)),
        )
        pyros, ours = (
            poutine.trace(poutine.condition(each, {"f_decentered": u})).get_trace()
            for each in models
        )
        value: Any = ours.nodes["f"]["value"]
        torch.testing.assert_close(value, pyros.nodes["f"]["value"], **EXACT)
        torch.testing.assert_close(ours.log_prob_sum(), pyros.log_prob_sum(), **EXACT)
        own = PartlyCentred(fn, share)
        torch.testing.assert_close(own.of_value(value), u, **EXACT)


def test_draws_are_of_its_density() -> None:
    with isolated(0, dtype=torch.float64):
        own = PartlyCentred(FAMILIES["normal"], EACH)
        draws = own.rsample((40_000,))
        mean, sd = EACH * LOC, SCALE**EACH
        errors = (draws.mean(0) - mean) / sd * len(draws) ** 0.5
    assert float(errors.abs().max()) < 4.0
    assert float((draws.std(0) / sd - 1).abs().max()) < 4.0 / (2 * len(draws)) ** 0.5

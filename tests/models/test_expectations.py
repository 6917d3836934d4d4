"""What is expected of a row of each family: the mean of very many draws of it."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from elbowroom.models._distributions import Weighted
from elbowroom.models._expectations import expected, of_population
from elbowroom.models._families import FAMILIES, Predicted


@dataclass(frozen=True)
class Drawn:
    """The rows of each family."""

    draws: int = 200_000
    errors: float = 5.0
    """Standard errors that a mean of so many draws may be off."""


DRAWN = Drawn()
PARAMETERS = {
    "sigma": 0.6, "nu": 6.0, "slant": 3.0, "precision": 4.0, "overdispersion": 0.5,
    "zero_probability": 0.3, "shape": 3.0,
}  # fmt: skip


def row(family: str, link: str) -> tuple[Any, torch.Tensor, dict[str, Any]]:
    """The distribution of two rows, their linear predictors and the arguments."""
    eta = torch.tensor([-0.4, 0.9], dtype=torch.float64)
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in PARAMETERS.items()}
    values["thresholds"] = torch.tensor([-1.0, 0.5], dtype=torch.float64)
    trials = torch.tensor([7.0, 3.0], dtype=torch.float64)
    if FAMILIES[family].classes:
        eta = torch.stack([eta, eta.flip(0)], 1)  # of the second and third class
    made = Predicted(eta, link, values, trials, 0.8)
    arguments = {"family": family, "link": link, "trials": trials}
    return FAMILIES[family].distribution(made), eta, arguments


@pytest.mark.parametrize(
    ("family", "link"), [(f.name, link) for f in FAMILIES.values() for link in f.links]
)
def test_it_is_the_mean_of_draws(family: str, link: str) -> None:
    """Of levels the share of each; of `quantile` the number that this share of draws is below."""
    torch.manual_seed(1)
    distribution, eta, arguments = row(family, link)
    found = expected(distribution, eta, arguments)
    draws = distribution.sample((DRAWN.draws,)).double()
    if family == "quantile":
        draws, found = (draws <= found).double(), torch.full((2,), 0.8, dtype=torch.float64)
    elif FAMILIES[family].several:
        draws = torch.nn.functional.one_hot(draws.long(), 3).double()
        weighted = Weighted(distribution, torch.tensor([2.0, 5.0]))
        assert torch.equal(expected(weighted, eta, arguments), found)
    error = draws.std(0) / DRAWN.draws**0.5
    assert ((draws.mean(0) - found).abs() < DRAWN.errors * error).all()


def test_a_row_of_the_population_has_one_trial_and_no_group() -> None:
    asked = {"groups": ("g",), "group_codes": 1, "group_values": 2, "link": "logit"}
    found = of_population({**asked, "trials": torch.tensor([7.0, 3.0])})
    assert found["trials"].tolist() == [1.0, 1.0]
    assert [found[name] for name in asked] == [(), None, None, "logit"]

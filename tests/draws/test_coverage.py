"""Components about places that draws have missed."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from elbowroom.draws import coverage
from elbowroom.sizes import Sizes


@pytest.mark.parametrize("products", [300, 1])
def test_a_component_has_the_curvature_of_its_place(
    monkeypatch: pytest.MonkeyPatch, products: int
) -> None:
    """Where only sds of the draws are known as well, since the dimension is large.

    The precision of the draws is 1 and 1/4, of which sixteen times as much is added.
    """
    monkeypatch.setattr(coverage, "SIZES", Sizes(products=products))
    points = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]) * 2**0.5
    draws: Any = SimpleNamespace(
        counting=points, points=points, weights=np.full(4, 0.25), effective_sample_size=1e9
    )
    local = np.array([[[3.0, 0.0], [0.0, 5.0]]])
    curvature: Any = lambda places, scales: local  # noqa: E731
    found = coverage.local_components(draws, np.array([[7.0, 8.0]]), curvature)
    covariance = found.factors[0] @ found.factors[0].T
    np.testing.assert_allclose(found.means, [[7.0, 8.0]])
    np.testing.assert_allclose(np.linalg.inv(covariance), np.diag([3 + 16.0, 5 + 4.0]), rtol=1e-6)

"""Small tables that several models are tested with; see `elbowroom.models.Recipe`."""

from typing import Any

import numpy as np
import pandas as pd

SMALL_NETWORK: dict[str, Any] = {
    "response": "noise", "hidden": (1,), "activation": "tanh", "prior_scale": 0.2,
}  # fmt: skip
"""With a response of noise, priors that leave little but a line: one mode, nearly Normal."""


def line() -> pd.DataFrame:
    """Forty rows, in which y is linear in a and b, whose units are far apart."""
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 2))
    y = 3 + 2 * x[:, 0] - x[:, 1] + random.normal(size=40)
    return pd.DataFrame({"a": x[:, 0], "b": 100 * x[:, 1] + 7, "y": y})


def unrelated() -> pd.DataFrame:
    """The same predictors, and a response of noise."""
    noise = np.random.default_rng(1).normal(size=40)
    return line()[["a", "b"]].assign(noise=noise)


def groups() -> pd.DataFrame:
    """Two groups of twenty rows, well apart."""
    random = np.random.default_rng(2)
    rows = random.normal(size=(40, 2)) + np.repeat([[0.0], [6.0]], 20, axis=0)
    return pd.DataFrame(rows, columns=["u", "v"])


def pixels() -> pd.DataFrame:
    """Thirty rows of five numbers between zero and one."""
    return pd.DataFrame(np.random.default_rng(3).uniform(size=(30, 5)), columns=list("pqrst"))

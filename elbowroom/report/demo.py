"""The demonstration: a fit to trust, a guide not to trust, and what that would have changed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elbowroom.api import fit
from elbowroom.result import Fit

MODEL, DATA = "bayesian_regression", "diabetes"
FOLDERS = TRUSTED, DOUBTFUL = ("trusted", "doubtful")
"""Of its two fits."""
COMMANDS = (
    'elbowroom fit bayesian_regression --data YOURS.csv --formula "y ~ x1 + x2"',
    "elbowroom compare hierarchical_normal --guide auto --guide mean_field --guide nuts",
    "elbowroom fit YOURS.py:model --data YOURS.csv",
)
"""What to go on with."""


@dataclass(frozen=True)
class Shown:
    """What the demonstration fits.

    Attributes:
        formula: Blood values s1 to s4 that tell nearly the same: the posterior of their
            coefficients is strongly correlated, which independent Normals cannot follow.
        seed: Of both fits.
        guide: The one that is not trusted, by stochastic gradients, as it is mostly used.
    """

    formula: str = "progression ~ age + sex + bmi + bp + s1 + s2 + s3 + s4 + s5 + s6"
    seed: int = 1
    guide: str = "mean_field"


SHOWN = Shown()


def trusted_fit(folder: Path) -> Fit:
    """A regression by the guide `auto`, saved in the folder `trusted`."""
    found = fit(MODEL, DATA, formula=SHOWN.formula, seed=SHOWN.seed)
    found.save(folder / TRUSTED, overwrite=True)
    return found


def doubtful_fit(folder: Path, progress: Callable[..., Any] | None = None) -> Fit:
    """The same by mean field and stochastic gradients, saved in the folder `doubtful`.

    Args:
        folder: Of the demonstration.
        progress: As `elbowroom.fit` takes it.
    """
    found = fit(
        MODEL, DATA, SHOWN.guide, engine="svi", formula=SHOWN.formula, seed=SHOWN.seed,
        progress=progress,
    )  # fmt: skip
    found.save(folder / DOUBTFUL, overwrite=True)
    return found


def answers(trusted: Fit, doubtful: Fit) -> pd.DataFrame:
    """What each of two fits says of every coefficient.

    Returns:
        A line a coefficient, by its label: the 90% interval of the trusted posterior
        (trusted_lower, trusted_upper) and of the other one's own draws (lower, upper); sd_ratio,
        the sd of the other over the trusted one's; and changed, whether the other interval has one
        sign and the trusted one both, or the other way round.
    """
    right, wrong = (_of_coefficients(each) for each in (trusted, doubtful))
    found = pd.DataFrame(
        {
            "trusted_lower": right["eti90_lb"], "trusted_upper": right["eti90_ub"],
            "lower": wrong["eti90_lb"], "upper": wrong["eti90_ub"],
            "sd_ratio": wrong["sd"] / right["sd"],
        }
    )  # fmt: skip
    sure_right = np.sign(found["trusted_lower"]) == np.sign(found["trusted_upper"])
    sure_wrong = np.sign(found["lower"]) == np.sign(found["upper"])
    return found.assign(changed=sure_right != sure_wrong)


def _of_coefficients(found: Fit) -> pd.DataFrame:
    summary = found.summary()
    names = summary.index.to_series().str.extract(r"^coefficients\[(.+)\]$")[0]
    return summary[names.notna()].rename(index=lambda label: names[label])

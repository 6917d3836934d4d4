"""What the estimators share: the call of `elbowroom.fit`, its warning, and pickling."""

import warnings
from collections.abc import Collection, Iterator, Mapping
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from elbowroom.api import fit as fit_model
from elbowroom.commands import LARGEST_SEED
from elbowroom.errors import OptionError, shown
from elbowroom.loading import load
from elbowroom.result import Fit

NUMBERS_AT_ONCE = 2**19
"""How many numbers of rows and draws are computed together: they stay in the processor's cache."""
OF_TABLE = ("formula", "response", "columns", "exclude", "labels", "weights", "new_groups")
"""Options by which a model picks from a table: the estimators give it X and y as they are."""


class NotTrustedWarning(ConvergenceWarning):
    """The verdict on a fit is `not trusted`; the reasons and the advice follow."""


def seed_of(random_state: Any) -> int:
    """A seed, as scikit-learn's estimators take it: a number, a generator or None."""
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(LARGEST_SEED + 1))


def free_name(name: str, taken: Collection[str]) -> str:
    """A name for one more column."""
    while name in taken:
        name += "_"
    return name


def draws_of(fit: Fit) -> dict[str, np.ndarray]:
    """The posterior draws of every quantity, each (draws, ...)."""
    tree = fit.posterior["posterior"]
    return {
        str(name): values.values.reshape(-1, *values.shape[2:]).astype(np.float64)
        for name, values in tree.data_vars.items()
    }


def some_rows(x: np.ndarray, numbers: int) -> Iterator[np.ndarray]:
    """Rows, a few at a time: as many as do not make too many numbers, `numbers` for each."""
    size = max(1, NUMBERS_AT_ONCE // numbers)
    return (x[first : first + size] for first in range(0, len(x), size))


class Estimator(BaseEstimator):
    """What the estimators share: the call of `elbowroom.fit`, its warning, and pickling."""

    def _names(self) -> list[str]:
        return list(
            getattr(self, "feature_names_in_", [f"x{j}" for j in range(self.n_features_in_)])
        )

    def _rows(self, X: Any) -> np.ndarray:
        """New rows, (rows, features)."""
        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=np.float64)

    def _fit_table(self, model: str, table: pd.DataFrame, **own: Any) -> None:
        given = {
            "model": model, "data": table, "guide": self.guide, "engine": self.engine,
            "draws": self.draws, "fallback": self.fallback, "seed": seed_of(self.random_state),
            **own,
        }  # fmt: skip
        if self.time is not None:
            given["time"] = self.time
        options = {} if self.options is None else self.options
        if not isinstance(options, Mapping):
            raise OptionError(f"options {shown(options)}: give a dict, such as {{'restarts': 8}}.")
        for name in options:
            if name in given or name in OF_TABLE:
                raise OptionError(
                    f"options: '{name}' is what the parameters of the constructor, X and y say; "
                    "leave it out of the dict."
                )
        self.fit_ = fit_model(**given, **options)
        self.verdict_ = self.fit_.verdict.level

    def _concluded(self) -> Any:
        """The estimator, with a warning where its verdict is no."""
        verdict = self.fit_.verdict
        if not verdict.trusted:
            warnings.warn(f"{type(self).__name__}: {verdict}", NotTrustedWarning, stacklevel=3)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The fit as the files of its run folder."""
        state = dict(super().__getstate__())
        if "fit_" in state:
            with TemporaryDirectory() as made:
                folder = state["fit_"].save(Path(made) / "run")
                state["fit_"] = {file.name: file.read_bytes() for file in folder.iterdir()}
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        state = dict(state)
        if "fit_" in state:
            guide = None if isinstance(state["guide"], str) else state["guide"]
            with TemporaryDirectory() as folder:
                for name, content in state["fit_"].items():
                    (Path(folder) / name).write_bytes(content)
                state["fit_"] = load(folder, guide=guide, trust=True)
        super().__setstate__(state)

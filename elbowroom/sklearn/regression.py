"""A regression and a classifier, by `bayesian_regression`."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data

from elbowroom.errors import DataError, OptionError
from elbowroom.models._families import FAMILIES, LINKS, NUMBERS
from elbowroom.models.bayesian_regression import responses
from elbowroom.problem.process import alone
from elbowroom.sklearn.estimator import Estimator, draws_of, free_name, seed_of, some_rows

ONE_COLUMN = ("number", "positive", "count", "share")
"""What the families of a regressor take; see `elbowroom.models._families.NUMBERS`."""


class _Regression(Estimator):
    """What the regressor and the classifier share: columns, weights, and the response of rows."""

    def __init__(
        self,
        *,
        link: str | None = None,
        priors: str | Mapping[str, str] = "weak",
        guide: Any = "auto",
        engine: str = "auto",
        draws: int | None = None,
        time: float | None = None,
        fallback: str | None = None,
        options: Mapping[str, Any] | None = None,
        random_state: Any = None,
    ) -> None:
        self.link = link
        self.priors = priors
        self.guide = guide
        self.engine = engine
        self.draws = draws
        self.time = time
        self.fallback = fallback
        self.options = options
        self.random_state = random_state

    def _fit_response(
        self, x: np.ndarray, y: np.ndarray, name: Any, sample_weight: Any, **own: Any
    ) -> dict[str, np.ndarray]:
        """Fits the regression, and gives the draws of its quantities."""
        names = np.array(self._names(), dtype=object)
        self._varying = (x != x[0]).any(axis=0)  # (features,)
        if not self._varying.all():
            listed = ", ".join(f"'{each}'" for each in names[~self._varying][:5])
            warnings.warn(
                f"the same in every row, and left out with a coefficient of zero: {listed}",
                UserWarning, stacklevel=3,
            )  # fmt: skip
        table = pd.DataFrame(x[:, self._varying], columns=names[self._varying])
        own["response"] = free_name(name if isinstance(name, str) and name else "y", names)
        table[own["response"]] = y
        if sample_weight is not None:
            own["weights"] = free_name("sample_weight", table.columns)
            table[own["weights"]] = _check_sample_weight(
                sample_weight, x, dtype=np.float64, ensure_non_negative=True
            )
        self._fit_table("bayesian_regression", table, link=self.link, priors=self.priors, **own)
        return draws_of(self.fit_)

    @alone
    def _of_responses(
        self,
        x: np.ndarray,
        wanted: Callable[[Any], torch.Tensor],
        picked: Any = slice(None),
        seed: int = 0,
    ) -> np.ndarray:
        """Something of the distribution of the response of each row, (..., rows).

        Args:
            x: Rows, (rows, features).
            wanted: Of the distributions at each draw, (draws, some rows).
            picked: Which draws.
            seed: Of what is drawn.
        """
        problem = self.fit_.problem
        quantities = {k: torch.tensor(v[picked]) for k, v in draws_of(self.fit_).items()}
        count = len(next(iter(quantities.values())))
        with problem.session(seed, self.fit_.parameters), torch.no_grad():
            return np.concatenate(
                [
                    wanted(responses(problem.arguments, quantities, torch.tensor(some))).numpy()
                    for some in some_rows(x[:, self._varying], count)
                ],
                axis=-1,
            )

    def _all_columns(self, values: np.ndarray) -> np.ndarray:
        """Values of the columns that vary, and zeros for the others, (features,)."""
        found = np.zeros(self.n_features_in_)
        found[self._varying] = values
        return found


class BayesianRegressor(RegressorMixin, _Regression):
    """A regression with a posterior: `bayesian_regression` for a response of one column.

    Args:
        family: Distribution of the response; by default normal, with a remark in the verdict where
            the response does not look like it.
        link: Of the linear predictor; by default the family's first.
        quantile: Which one the family `quantile` predicts; by default 0.5.
        priors: "weak", "conjugate", or a dict in the units of the columns, such as
            {"bmi": "normal(0, 10)"}.
        guide, engine, draws, time, fallback, options, random_state: See `elbowroom.sklearn`.

    Attributes:
        coef_: Posterior means of the coefficients, (features,).
        intercept_: Posterior mean of the intercept.

    Example:
        >>> import elbowroom as er
        >>> table = er.load_dataset("diabetes")
        >>> model = er.sklearn.BayesianRegressor(random_state=1)
        >>> model = model.fit(table[["bmi", "bp"]], table["progression"])
        >>> model.verdict_, model.coef_.round(0).tolist()
        ('trusted', [9.0, 1.0])
        >>> mean, std = model.predict(table[["bmi", "bp"]].head(2), return_std=True)
        >>> mean.round(-2).tolist(), std.round(-2).tolist()
        ([200.0, 100.0], [100.0, 100.0])
    """

    def __init__(
        self,
        *,
        family: str | None = None,
        link: str | None = None,
        quantile: float | None = None,
        priors: str | Mapping[str, str] = "weak",
        guide: Any = "auto",
        engine: str = "auto",
        draws: int | None = None,
        time: float | None = None,
        fallback: str | None = None,
        options: Mapping[str, Any] | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            link=link, priors=priors, guide=guide, engine=engine, draws=draws, time=time,
            fallback=fallback, options=options, random_state=random_state,
        )  # fmt: skip
        self.family = family
        self.quantile = quantile

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BayesianRegressor":
        """Fits the posterior.

        Args:
            X: Rows of numbers, (rows, features).
            y: The response, (rows,).
            sample_weight: How often each row counts, (rows,).

        Raises:
            DataError, OptionError: As `elbowroom.fit`; both are ValueErrors.
        """
        family = FAMILIES.get(self.family or "normal")
        if family is not None and family.takes not in ONE_COLUMN:
            instead = "BayesianClassifier" if family.of_probability else "er.fit"
            raise OptionError(
                f"the response of the family {family.name} is {NUMBERS[family.takes].words}; use "
                f"{instead}, or give BayesianRegressor another family."
            )
        x, values = validate_data(
            self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2
        )
        found = self._fit_response(
            x, np.asarray(values, np.float64), getattr(y, "name", None), sample_weight,
            family=self.family, quantile=self.quantile,
        )  # fmt: skip
        self.coef_ = self._all_columns(found["coefficients"].mean(0))
        self.intercept_ = float(found["intercept"].mean())
        return self._concluded()

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The posterior predictive mean of each row, and its standard deviation.

        For the family `quantile`, the posterior mean of that quantile.

        Args:
            X: New rows, (rows, features).
            return_std: Whether to give the standard deviations of new responses too: of their
                noise and of the parameters. That of `student_t` is infinite where the posterior
                has less than two degrees of freedom.

        Returns:
            (rows,), or two of them.

        Raises:
            OptionError: For standard deviations of the family `quantile`.
        """
        x = self._rows(X)
        arguments = self.fit_.problem.arguments
        family = FAMILIES[arguments["family"]]
        linear = LINKS[arguments["link"]].scaled and not family.logarithm
        if linear and not return_std:
            return x @ self.coef_ + self.intercept_
        if return_std and family.name == "quantile":
            raise OptionError(
                "the family quantile says nothing of the spread of responses; leave return_std "
                "out, or fit a second quantile."
            )

        def moments(fn: Any) -> torch.Tensor:
            means = fn.mean
            within = fn.variance.nan_to_num(nan=torch.inf).mean(0)
            return torch.stack([means.mean(0), (within + means.var(0, correction=0)).sqrt()])

        mean, deviation = self._of_responses(x, moments)
        mean = x @ self.coef_ + self.intercept_ if linear else mean
        return (mean, deviation) if return_std else mean

    def sample(self, X: Any, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draws of the responses of rows from the posterior predictive distribution.

        Args:
            X: New rows, (rows, features).
            n_samples: Draws of each; the rows of one draw have the same parameters.
            random_state: Of the draws; by default the estimator's.

        Returns:
            (rows, n_samples), as `GaussianProcessRegressor.sample_y`.
        """
        x = self._rows(X)
        seed = seed_of(self.random_state if random_state is None else random_state)
        total = self.fit_.posterior["posterior"].sizes
        picked = np.random.default_rng(seed).integers(
            total["chain"] * total["draw"], size=n_samples
        )
        return self._of_responses(x, lambda fn: fn.sample(), picked, seed).T


class BayesianClassifier(ClassifierMixin, _Regression):
    """A logistic regression with a posterior, for two classes or more.

    Of more than two each but the first has a linear predictor of its own, and the first has zero.

    Args:
        link: Of two classes: "logit", the default, "probit" or "cloglog".
        priors: As for `BayesianRegressor`.
        guide, engine, draws, time, fallback, options, random_state: See `elbowroom.sklearn`.

    Attributes:
        classes_: The classes, in order; of two the model is of the probability of the second.
        coef_: Posterior means of the coefficients, (1, features); of more than two classes
            (classes, features), zero for the first.
        intercept_: Posterior means of the intercepts, (1,) or (classes,), alike.

    Example:
        >>> import elbowroom as er
        >>> table = er.load_dataset("breast_cancer")
        >>> columns = ["mean_radius", "mean_texture"]
        >>> model = er.sklearn.BayesianClassifier(random_state=1)
        >>> model = model.fit(table[columns], table["diagnosis"])
        >>> model.classes_.tolist(), round(model.score(table[columns], table["diagnosis"]), 1)
        (['benign', 'malignant'], 0.9)
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BayesianClassifier":
        """Fits the posterior.

        Args:
            X: Rows of numbers, (rows, features).
            y: The class of each row, (rows,).
            sample_weight: How often each row counts, (rows,).

        Raises:
            DataError: If there is one class, or a column cannot be used.
            OptionError: As `elbowroom.fit`.
        """
        x, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        found = self._fit_response(
            x, codes.astype(np.float64), getattr(y, "name", None), sample_weight,
            family=self._family(),
        )  # fmt: skip
        slopes = np.atleast_2d(found["coefficients"].mean(0))
        coefficients = np.stack([self._all_columns(each) for each in slopes])
        intercepts = np.atleast_1d(found["intercept"].mean(0))
        first = int(len(self.classes_) > 2)  # which has zeros
        self.coef_ = np.pad(coefficients, ((first, 0), (0, 0)))
        self.intercept_ = np.pad(intercepts, (first, 0))
        return self._concluded()

    # What depends on the number of classes: their family, and the probabilities that it gives.

    def _family(self) -> str:
        count = len(self.classes_)
        if count == 1:
            raise DataError(
                f"y has one class, '{self.classes_[0]}', and a classifier needs two; add rows of "
                "the other."
            )
        return "bernoulli" if count == 2 else "categorical"

    def predict_proba(self, X: Any) -> np.ndarray:
        """The posterior predictive probability of each class, (rows, classes)."""
        x = self._rows(X)
        if len(self.classes_) > 2:
            return self._of_responses(x, lambda fn: fn.probs.mean(0).mT).T
        second = self._of_responses(x, lambda fn: fn.mean.mean(0))
        return np.stack([1 - second, second], axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, (rows,)."""
        likeliest = self.predict_proba(X).argmax(axis=1)
        return self.classes_[likeliest]

"""A mixture of Normals, by `gaussian_mixture`."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp, softmax
from sklearn.base import DensityMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from elbowroom.sklearn.estimator import Estimator, draws_of, seed_of, some_rows


class GaussianMixture(DensityMixin, Estimator):
    """A mixture of Normals with a posterior: `gaussian_mixture`.

    What is told of rows is averaged over the posterior; means, covariances and weights are
    posterior means. Components are in the order of their means in the first column.

    Args:
        n_components: Components of the mixture.
        covariance_type: "full", "diag" or "spherical".
        priors: "weak" or "conjugate".
        guide, engine, draws, time, fallback, options, random_state: See `elbowroom.sklearn`.

    Attributes:
        means_: (components, features).
        covariances_: (components, features, features); (components, features) for "diag",
            (components,) for "spherical".
        weights_: (components,).

    Example:
        >>> import elbowroom as er
        >>> lengths = er.load_dataset("iris")[["petal_length"]].to_numpy()
        >>> model = er.sklearn.GaussianMixture(2, covariance_type="diag", random_state=1)
        >>> model.fit(lengths).means_.round(1).ravel().tolist()
        [1.5, 4.9]
        >>> model.predict_proba([[1.4], [5.0]]).round(2).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        priors: str = "weak",
        guide: Any = "auto",
        engine: str = "auto",
        draws: int | None = None,
        time: float | None = None,
        fallback: str | None = None,
        options: Mapping[str, Any] | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.priors = priors
        self.guide = guide
        self.engine = engine
        self.draws = draws
        self.time = time
        self.fallback = fallback
        self.options = options
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "GaussianMixture":
        """Fits the posterior.

        Args:
            X: Rows of numbers, (rows, features).
            y: Not used.

        Raises:
            DataError, OptionError: As `elbowroom.fit`; both are ValueErrors.
        """
        x = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        names = self._names()
        kind = "diagonal" if self.covariance_type == "diag" else self.covariance_type
        self._fit_table(
            "gaussian_mixture", pd.DataFrame(x, columns=names), columns=names,
            components=self.n_components, covariance_type=kind, priors=self.priors,
        )  # fmt: skip
        weights, means, factors = self._components()
        covariances = factors**2 if factors.ndim == 3 else factors @ factors.swapaxes(-1, -2)
        self.weights_, self.means_ = weights.mean(0), means.mean(0)
        self.covariances_ = covariances.mean(0)
        if kind == "spherical":
            self.covariances_ = self.covariances_[:, 0]
        elif kind == "full" and covariances.ndim == 3:  # of one column
            self.covariances_ = self.covariances_[..., np.newaxis]
        return self._concluded()

    def _components(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws of the weights, the means, and the standard deviations or Cholesky factors.

        (draws, components), (draws, components, features), and the same or (draws, components,
        features, features).
        """
        found = draws_of(self.fit_)
        means = found["means"]
        if "covariances" in found:
            return found["weights"], means, np.linalg.cholesky(found["covariances"])
        deviations = found["standard_deviations"].reshape(*means.shape[:2], -1)
        return found["weights"], means, np.broadcast_to(deviations, means.shape)

    def _log_joint(self, X: Any) -> Iterator[np.ndarray]:
        """The log density of some rows with each component, (some rows, draws, components)."""
        x = self._rows(X)
        weights, means, factors = self._components()
        full = factors.ndim == 4
        whiten = np.linalg.inv(factors) if full else 1 / factors
        scales = np.diagonal(whiten, axis1=-2, axis2=-1) if full else whiten
        shift = np.einsum("skij,skj->ski", whiten, means) if full else whiten * means
        constant = np.log(weights) + np.log(scales).sum(-1) - x.shape[1] / 2 * np.log(2 * np.pi)
        for some in some_rows(x, shift.size):
            if full:
                moved = (some @ whiten.reshape(-1, x.shape[1]).T).reshape(-1, *shift.shape)
            else:
                moved = some[:, np.newaxis, np.newaxis] * whiten
            moved -= shift
            yield constant - 0.5 * np.einsum("nski,nski->nsk", moved, moved)

    def score_samples(self, X: Any) -> np.ndarray:
        """The log posterior predictive density of each row, (rows,)."""
        found = [
            logsumexp(each, axis=(1, 2)) - np.log(each.shape[1]) for each in self._log_joint(X)
        ]
        return np.concatenate(found)

    def score(self, X: Any, y: Any = None) -> float:
        """The mean log posterior predictive density of rows."""
        return float(self.score_samples(X).mean())

    def predict_proba(self, X: Any) -> np.ndarray:
        """The posterior probability of each component for each row, (rows, components)."""
        return np.concatenate([softmax(each, axis=2).mean(1) for each in self._log_joint(X)])

    def predict(self, X: Any) -> np.ndarray:
        """The most probable component of each row, (rows,)."""
        return self.predict_proba(X).argmax(axis=1)

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fits the posterior, and gives the most probable component of each row, (rows,)."""
        return self.fit(X).predict(X)

    def sample(self, n_samples: int = 1, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """New rows from the posterior predictive distribution.

        Args:
            n_samples: How many.
            random_state: Of the rows; by default the estimator's.

        Returns:
            The rows, (n_samples, features), and their components, (n_samples,).
        """
        check_is_fitted(self)
        random = np.random.default_rng(
            seed_of(self.random_state if random_state is None else random_state)
        )
        weights, means, factors = self._components()
        draw = random.integers(len(weights), size=n_samples)
        beyond = weights[draw].cumsum(1) < random.random((n_samples, 1))
        component = np.minimum(beyond.sum(1), weights.shape[1] - 1)
        noise = random.standard_normal((n_samples, means.shape[-1]))
        factor = factors[draw, component]
        moved = np.einsum("nij,nj->ni", factor, noise) if factor.ndim == 3 else factor * noise
        return means[draw, component] + moved, component

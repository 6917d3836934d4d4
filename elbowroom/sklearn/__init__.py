"""Estimators for scikit-learn: regression, classification and mixtures by `elbowroom.fit`.

They go into pipelines, `cross_val_score` and `GridSearchCV`, and can be cloned and pickled. A fit
that cannot be trusted gives a `NotTrustedWarning`. Their constructors share these parameters:

    guide, engine, draws, fallback: As for `elbowroom.fit`.
    time: Seconds that a fit may take; by default 300.
    options: A dict of further options of `elbowroom.fit`, such as {"restarts": 8}.
    random_state: An int is the fit's seed; otherwise one is drawn, as scikit-learn does.

and their fits these attributes:

    fit_: The `elbowroom.Fit`, with `fit_.verdict`, `fit_.posterior` and `fit_.summary()`.
    verdict_: "trusted", "trusted after correction" or "not trusted".
    n_features_in_, feature_names_in_: As scikit-learn has them.
"""

from elbowroom.sklearn.estimator import NotTrustedWarning
from elbowroom.sklearn.mixture import GaussianMixture
from elbowroom.sklearn.regression import BayesianClassifier, BayesianRegressor

__all__ = ["BayesianClassifier", "BayesianRegressor", "GaussianMixture", "NotTrustedWarning"]

_WEIGHTED = {
    "check_sample_weight_equivalence_on_dense_data": "a row of weight 2 has the likelihood of two "
    "such rows, but the posterior consists of random draws, and the default priors are in standard "
    "deviations of the rows as they are given"
}
EXPECTED_FAILED_CHECKS: dict[str, dict[str, str]] = {
    "BayesianRegressor": _WEIGHTED,
    "BayesianClassifier": _WEIGHTED,
    "GaussianMixture": {},
}
"""The checks of scikit-learn that an estimator does not pass, with the reason."""

"""The estimators for scikit-learn: its own checks, and their numbers by other derivations."""

import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks

import elbowroom as er
from elbowroom.errors import DataError, OptionError
from elbowroom.models._families import FAMILIES
from elbowroom.sklearn import (
    EXPECTED_FAILED_CHECKS,
    BayesianClassifier,
    BayesianRegressor,
    GaussianMixture,
    NotTrustedWarning,
)

ESTIMATORS = [
    BayesianRegressor(), BayesianClassifier(), GaussianMixture(covariance_type="diag"),
]  # fmt: skip
ESSENTIAL = {
    "check_estimator_cloneable", "check_estimator_tags_renamed", "check_valid_tag_types",
    "check_no_attributes_set_in_init", "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimators_unfitted", "check_dont_overwrite_parameters", "check_mixin_order",
    "check_n_features_in_after_fitting", "check_complex_data", "check_get_params_invariance",
    "check_estimators_empty_data_messages", "check_classifiers_one_label", "check_set_params",
    "check_classifiers_regression_target", "check_supervised_y_no_nan", "check_requires_y_none",
    "check_parameters_default_constructible",
    "check_methods_subset_invariance", "check_fit2d_1sample", "check_fit1d",
    "check_dict_unchanged",
}  # fmt: skip
"""Checks that take at most one small fit, and see most of what can go wrong."""


@dataclass(frozen=True)
class Wide:
    """Priors that say nothing beside the data."""

    standard_errors: float = 0.1
    """How far a posterior mean may be from the estimate: six standard errors of 4,000 draws."""


WIDE = Wide()


def expected(estimator: Any) -> dict[str, str]:
    return EXPECTED_FAILED_CHECKS[type(estimator).__name__]


def essential() -> Iterator[Any]:
    for each in ESTIMATORS:
        for estimator, check in estimator_checks_generator(each):
            name = getattr(check, "func", check).__name__
            if name in ESSENTIAL:
                yield pytest.param(estimator, check, id=f"{type(each).__name__}-{name}")


@pytest.mark.parametrize(("estimator", "check"), list(essential()))
def test_essential_checks_of_scikit_learn(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::elbowroom.sklearn.NotTrustedWarning")
@parametrize_with_checks([*ESTIMATORS, GaussianMixture()], expected_failed_checks=expected)
def test_all_checks_of_scikit_learn(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


def test_checks_that_are_left_out_have_their_reason_in_the_documents() -> None:
    page = Path(__file__).resolve().parents[1] / "docs/usage.md"
    rows = [line for line in page.read_text("utf-8").splitlines() if "| `check_" in line]
    listed = {
        (estimator, check, reason.strip())
        for _, estimators, checks, reason, _ in (row.split("|") for row in rows)
        for estimator in re.findall(r"`(\w+)`", estimators)
        for check in re.findall(r"`(\w+)`", checks)
    }
    assert listed == {
        (estimator, check, reason)
        for estimator, left_out in EXPECTED_FAILED_CHECKS.items()
        for check, reason in left_out.items()
    }


@pytest.fixture(scope="module")
def diabetes() -> tuple[pd.DataFrame, pd.Series]:
    table = er.load_dataset("diabetes")
    return table.drop(columns="progression"), table["progression"]


@pytest.fixture(scope="module")
def counts() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    x = random.normal(size=(60, 2))
    return x, random.poisson(np.exp(0.5 + x @ [0.4, -0.3]))


def draws_of(fit: Any, name: str) -> np.ndarray:
    values = fit.posterior["posterior"][name].values
    return values.reshape(-1, *values.shape[2:])


def test_conjugate_regression_is_the_closed_form(diabetes: Any) -> None:
    """The Normal-inverse-Gamma posterior of the scaled rows, and its t predictive distribution."""
    x, y = diabetes[0].iloc[:60, :3], diabetes[1].iloc[:60]
    model = BayesianRegressor(priors="conjugate", random_state=1).fit(x, y)
    z = np.column_stack([np.ones(60), (x - x.mean()) / x.std()])
    scaled = (y - y.mean()) / y.std()
    precision = z.T @ z + np.eye(4) / 2.5**2
    centre = np.linalg.solve(precision, z.T @ scaled)
    shape = 0.5 + 60 / 2
    scale = 0.01 + (scaled @ scaled - centre @ precision @ centre) / 2
    variance = scale / (shape - 1)
    of_mean = variance * np.einsum("ni,ij,nj->n", z, np.linalg.inv(precision), z)
    mean, std = model.predict(x, return_std=True)
    error = np.sqrt(of_mean / 3000) * y.std()
    assert np.all(np.abs(mean - (y.mean() + y.std() * z @ centre)) < 5 * error)
    # The relative sd of a variance's draws is 1 / sqrt(shape - 2).
    tolerance = 5 * 0.5 / np.sqrt((shape - 2) * 3000)
    assert np.allclose(std, y.std() * np.sqrt(variance + of_mean), rtol=tolerance)
    assert np.allclose(model.predict(x), mean)


@pytest.mark.parametrize("repeated", [False, True])
def test_wide_priors_give_least_squares(diabetes: Any, repeated: bool) -> None:
    x, y = diabetes[0].iloc[:200], diabetes[1].iloc[:200]
    times = np.where(repeated, 1 + np.arange(200) % 3, 1)
    model = BayesianRegressor(
        priors={"coefficients": "normal(0, 1e5)", "intercept": "normal(0, 1e6)"}, random_state=1
    )
    model.fit(x, y, sample_weight=times if repeated else None)
    known = sm.OLS(y.repeat(times), sm.add_constant(x.loc[x.index.repeat(times)])).fit()
    apart = (np.r_[model.intercept_, model.coef_] - known.params) / known.bse
    assert np.abs(apart).max() < WIDE.standard_errors
    assert np.allclose(model.predict(x), model.intercept_ + x @ model.coef_)


def test_wide_priors_give_logistic_regression() -> None:
    table = er.load_dataset("breast_cancer")
    x, y = table[["mean_texture", "mean_smoothness"]], table["diagnosis"]
    model = BayesianClassifier(
        priors={"coefficients": "normal(0, 1e4)", "intercept": "normal(0, 1e4)"}, random_state=1
    )
    model.fit(x, y)
    malignant = (y == "malignant").astype(float)
    known = sm.Logit(malignant, sm.add_constant(x)).fit(disp=0)
    # The posterior mean is beside the mode, by the third derivatives there.
    design, p = sm.add_constant(x).to_numpy(), known.predict()
    covariance = known.cov_params().to_numpy()
    third = p * (1 - p) * (1 - 2 * p) * np.einsum("ni,ij,nj->n", design, covariance, design)
    centre = known.params - covariance @ design.T @ third / 2
    apart = (np.r_[model.intercept_, model.coef_[0]] - centre) / known.bse
    assert np.abs(apart).max() < WIDE.standard_errors
    assert model.classes_.tolist() == ["benign", "malignant"]
    probability = model.predict_proba(x)
    assert np.abs(probability[:, 1] - known.predict()).max() < 0.01
    assert np.allclose(probability.sum(1), 1)
    assert model.score(x, y) == pytest.approx(
        np.mean((known.predict() > 0.5) == malignant), abs=0.01
    )


def test_more_than_two_classes_are_a_multinomial_regression() -> None:
    random = np.random.default_rng(4)
    x = random.normal(size=(3000, 2)) * [1.0, 5.0]
    weights = np.exp(x @ [[0.0, 0.7, -0.4], [0.0, 0.1, 0.2]] + [0.0, 0.3, -0.5])
    shares = weights / weights.sum(1, keepdims=True)
    y = np.array(["a", "b", "c"])[(random.random((3000, 1)) > shares.cumsum(1)).sum(1)]
    wide = {"coefficients": "normal(0, 1e4)", "intercept": "normal(0, 1e4)"}
    model = BayesianClassifier(priors=wide, random_state=1).fit(x, y)
    known = sm.MNLogit(np.unique(y, return_inverse=True)[1], sm.add_constant(x)).fit(disp=0)
    found = np.column_stack([model.intercept_, model.coef_])
    assert (found[0] == 0).all()
    apart = (found[1:].T - known.params) / known.bse
    assert np.abs(apart).max() < WIDE.standard_errors
    assert model.classes_.tolist() == ["a", "b", "c"]
    new = np.array([[0.0, 0.0], [1.0, -4.0], [-2.0, 3.0]])
    level, slopes = draws_of(model.fit_, "intercept"), draws_of(model.fit_, "coefficients")
    eta = level[:, None] + np.einsum("dkj,nj->dnk", slopes, new)
    eta = np.concatenate([np.zeros_like(eta[..., :1]), eta], axis=-1)  # (draws, rows, classes)
    expected_shares = (np.exp(eta) / np.exp(eta).sum(-1, keepdims=True)).mean(0)
    assert np.allclose(model.predict_proba(new), expected_shares)
    assert set(model.predict(new)) <= set("abc")


@pytest.mark.parametrize(
    ("family", "mean", "variance"),
    [
        ("poisson", lambda eta, _: np.exp(eta), lambda eta, _: np.exp(eta)),
        (
            "negative_binomial",
            lambda eta, _: np.exp(eta),
            lambda eta, p: np.exp(eta) + p("overdispersion") * np.exp(2 * eta),
        ),
        ("gamma", lambda eta, _: np.exp(eta), lambda eta, p: np.exp(2 * eta) / p("shape")),
        (
            "lognormal",
            lambda eta, p: np.exp(eta + p("sigma") ** 2 / 2),
            lambda eta, p: np.expm1(p("sigma") ** 2) * np.exp(2 * eta + p("sigma") ** 2),
        ),
    ],
)
def test_predictions_average_over_the_posterior(
    counts: Any, family: str, mean: Any, variance: Any
) -> None:
    x, y = counts
    y = y + 0.5 if FAMILIES[family].takes == "positive" else y
    model = BayesianRegressor(family=family, random_state=1).fit(x, y)
    new = np.array([[0.0, 0.0], [1.0, -1.0], [-2.0, 0.5]])
    eta = draws_of(model.fit_, "intercept") + new @ draws_of(model.fit_, "coefficients").T

    def of(name: str) -> np.ndarray:
        return draws_of(model.fit_, name)

    means, within = mean(eta, of), variance(eta, of)
    found, std = model.predict(new, return_std=True)
    assert np.allclose(found, means.mean(1))
    assert np.allclose(found, model.predict(new))
    assert np.allclose(std, np.sqrt(within.mean(1) + means.var(1)))
    drawn = model.sample(new, 4000)
    assert drawn.shape == (3, 4000)
    assert np.all(np.abs(drawn.mean(1) - found) < 5 * std / np.sqrt(4000))
    assert (model.sample(new, 5, random_state=2) == model.sample(new, 5, random_state=2)).all()


def test_a_quantile_is_predicted_as_such() -> None:
    random = np.random.default_rng(1)
    x = random.uniform(size=(400, 1))
    y = 2 * x[:, 0] + random.exponential(size=400)
    model = BayesianRegressor(family="quantile", quantile=0.9, random_state=1).fit(x, y)
    known = sm.QuantReg(y, sm.add_constant(x)).fit(q=0.9)
    assert np.abs(model.predict(x) - known.predict()).max() < 2 * known.bse[0]
    assert np.mean(y < model.predict(x)) == pytest.approx(0.9, abs=0.015)
    with pytest.raises(OptionError, match="fit a second quantile"):
        model.predict(x, return_std=True)


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
def test_a_mixture_is_scipys_normals_averaged_over_the_posterior(kind: str) -> None:
    x = er.load_dataset("iris")[["petal_length", "petal_width"]]
    model = GaussianMixture(2, covariance_type=kind, draws=500, random_state=1).fit(x)
    new = x.to_numpy()[::25]
    given = x.iloc[::25]
    weights, means = draws_of(model.fit_, "weights"), draws_of(model.fit_, "means")
    if kind == "full":
        covariances = draws_of(model.fit_, "covariances")
    else:
        deviations = draws_of(model.fit_, "standard_deviations").reshape(len(weights), 2, -1)
        covariances = deviations[..., np.newaxis] ** 2 * np.eye(2)
    logs = np.array(
        [
            [np.log(w[k]) + multivariate_normal(m[k], c[k]).logpdf(new) for k in range(2)]
            for w, m, c in zip(weights, means, covariances, strict=True)
        ]
    )  # (draws, components, rows)
    assert np.allclose(model.score_samples(given), logsumexp(logs, (0, 1)) - np.log(len(logs)))
    share = np.exp(logs - logsumexp(logs, 1, keepdims=True)).mean(0).T
    assert np.allclose(model.predict_proba(given), share)
    assert model.score(given) == pytest.approx(model.score_samples(given).mean())
    wanted = {
        "full": covariances, "diag": np.diagonal(covariances, axis1=2, axis2=3),
        "spherical": covariances[..., 0, 0],
    }[kind]  # fmt: skip
    assert np.allclose(model.covariances_, wanted.mean(0))
    assert np.allclose(model.means_, means.mean(0))
    rows, component = model.sample(4000)
    assert rows.shape == (4000, 2)
    error = np.sqrt(model.weights_[1] * model.weights_[0] / 4000)
    assert abs(component.mean() - model.weights_[1]) < 5 * error
    for k in range(2):
        own = rows[component == k]
        spread = covariances[:, k].mean(0) + np.cov(means[:, k].T)
        assert np.all(np.abs(own.mean(0) - means[:, k].mean(0)) < 5 * own.std(0) / len(own) ** 0.5)
        # An element of a covariance has the variance (v_ii v_jj + v_ij²) / n.
        size = np.sqrt((np.outer(*[spread.diagonal()] * 2) + spread**2) / len(own))
        assert np.all(np.abs(np.cov(own.T) - spread) < 6 * size)


def test_pipelines_searches_and_named_columns(diabetes: Any) -> None:
    x, y = diabetes[0].iloc[:100, :3], diabetes[1].iloc[:100]
    regressor = BayesianRegressor(random_state=1)
    pipeline = make_pipeline(StandardScaler().set_output(transform="pandas"), regressor)
    assert cross_val_score(pipeline, x, y, cv=2).shape == (2,)
    link = "bayesianclassifier__link"
    search = GridSearchCV(
        make_pipeline(StandardScaler(), BayesianClassifier(random_state=1)),
        {link: ["logit", "probit"]}, cv=2, scoring="neg_log_loss",
    )  # fmt: skip
    search.fit(x, y > 140)
    assert search.best_params_[link] in ("logit", "probit")
    fitted = pipeline.fit(x, y)[-1]
    assert fitted.feature_names_in_.tolist() == list(x.columns)
    assert fitted.fit_.summary().index[1] == f"coefficients[{x.columns[0]}]"
    assert "progression" in fitted.fit_.posterior["observed_data"]
    assert clone(fitted).get_params() == regressor.get_params()


def test_a_pickle_has_the_fit(counts: Any) -> None:
    model = BayesianRegressor(family="poisson", random_state=7).fit(*counts)
    restored = pickle.loads(pickle.dumps(model))
    assert np.array_equal(restored.predict(counts[0]), model.predict(counts[0]))
    assert restored.fit_.seed == 7
    assert restored.fit_.verdict == model.fit_.verdict
    pd.testing.assert_frame_equal(restored.fit_.summary(), model.fit_.summary())
    assert pickle.loads(pickle.dumps(restored)).verdict_ == model.verdict_


def test_a_fit_that_is_not_trusted_warns(counts: Any) -> None:
    model = GaussianMixture(2, covariance_type="spherical", guide="em", random_state=1)
    with pytest.warns(
        NotTrustedWarning, match="(?s)GaussianMixture: not trusted: .*next: "
    ) as seen:
        model.fit(counts[0])
    assert seen[0].filename == __file__
    assert model.verdict_ == "not trusted"


def test_columns_without_information_are_left_out_and_named(counts: Any) -> None:
    x, y = counts
    table = pd.DataFrame({"y": x[:, 0], "same": 4.0, "sample_weight": x[:, 1]})
    with pytest.warns(UserWarning, match="coefficient of zero: 'same'"):
        model = BayesianRegressor(random_state=1).fit(table, y, sample_weight=np.ones(60))
    assert model.coef_[1] == 0
    plain = BayesianRegressor(random_state=1).fit(x, y)
    assert np.allclose(model.predict(table), plain.predict(x), atol=0.05)


def test_the_state_of_random_numbers_is_scikit_learns(counts: Any) -> None:
    x, y = counts
    np.random.seed(5)
    first = BayesianRegressor().fit(x, y)
    np.random.seed(5)
    again = BayesianRegressor().fit(x, y)
    given = BayesianRegressor(random_state=np.random.RandomState(5)).fit(x, y)
    assert first.fit_.seed == again.fit_.seed == given.fit_.seed
    assert first.intercept_ == again.intercept_


@pytest.mark.parametrize(
    ("model", "y", "error", "says"),
    [
        (BayesianClassifier(), [1] * 6, DataError, "one class, '1', and a classifier needs two"),
        (BayesianClassifier(link="probit"), [1, 2, 3] * 2, OptionError, "has the link softmax"),
        (BayesianRegressor(family="bernoulli"), [0, 1] * 3, OptionError, "BayesianClassifier"),
        (BayesianRegressor(family="binomial"), [0, 1] * 3, OptionError, "use er.fit"),
        (BayesianRegressor(family="poison"), [0, 1] * 3, OptionError, "'poisson'"),
        (BayesianRegressor(family="poisson"), [0.5, 1] * 3, DataError, "counts"),
        (BayesianRegressor(options={"seed": 1}), [0, 1] * 3, OptionError, "'seed' is what"),
        (BayesianRegressor(options={"columns": "a"}), [0, 1] * 3, OptionError, "'columns' is"),
        (BayesianRegressor().set_params(options=[8]), [0, 1] * 3, OptionError, "give a dict"),
        (BayesianRegressor(options={"restart": 1}), [0, 1] * 3, OptionError, "--restarts"),
        (GaussianMixture(covariance_type="tied"), None, OptionError, "full, diagonal or spherical"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_said(model: Any, y: Any, error: Any, says: str) -> None:
    x = np.random.default_rng(0).normal(size=(6, 2))
    with pytest.raises(error, match=says):
        model.fit(x, y)

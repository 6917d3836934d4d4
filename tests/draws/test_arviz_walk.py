"""Every public function of ArviZ and arviz-stats over a regression, a hierarchy and a mixture."""

import inspect
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arviz
import arviz_stats
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray
from arviz_stats.base import array_stats

import elbowroom as er
from elbowroom.errors import RunFolderError
from elbowroom.result import Fit

INFERENCE_DATA = vars(arviz).get("InferenceData", xarray.DataTree) is not xarray.DataTree
"""Whether ArviZ is the one before 1.0."""

# For each model, its options; an observed column, one to draw it over, and variables of one number.
FITS: dict[str, tuple[dict[str, Any], str, str, list[str]]] = {
    "bayesian_regression": (
        {"formula": "progression ~ bmi + bp"}, "progression", "bmi", ["sigma", "intercept"],
    ),
    "hierarchical_normal": ({}, "effect", "standard_error", ["mean", "sd"]),
    "gaussian_mixture": (
        {"restarts": 2, "components": 2, "covariance_type": "diagonal"},
        "petal_width", "petal_length", ["weights"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def fit(request: pytest.FixtureRequest) -> Fit:
    options = FITS[request.param][0]
    table = {
        "bayesian_regression": er.load_dataset("diabetes").head(60),
        "gaussian_mixture": er.load_dataset("iris")[["petal_length", "petal_width"]],
    }.get(request.param)
    return er.fit(request.param, table, guide="laplace", seed=1, draws=200, **options)


@dataclass
class Given:
    """What the functions are called with.

    Attributes:
        data: The fit, as the installed ArviZ takes it.
        tree: The fit as a tree.
        y: An observed variable.
        likelihood: The one of the log likelihood.
        x: A predictor, or another variable with a value a row.
        names: Variables of the posterior, of few numbers.
        folder: For files.
    """

    data: Any
    tree: Any
    y: str
    likelihood: str
    x: str
    names: list[str]
    folder: Path

    @property
    def values(self) -> Any:
        return self.tree["posterior"][self.names[0]].values

    @property
    def reference(self) -> float:
        return float(self.values.mean())

    @property
    def replicates(self) -> np.ndarray:
        drawn = self.tree["posterior_predictive"][self.y].values
        return drawn.reshape(-1, drawn.shape[-1])

    @property
    def observed(self) -> np.ndarray:
        return self.tree["observed_data"][self.y].values

    @property
    def weights(self) -> Any:
        """The log weights that leave out each row."""
        values = self.tree["log_likelihood"][self.likelihood].stack(__sample__=("chain", "draw"))
        return arviz.psislw(-values)[0]


@pytest.fixture
def given(fit: Fit, tmp_path: Path) -> Given:
    _, y, x, names = FITS[fit.problem.model.name]
    (likelihood,) = fit.posterior["log_likelihood"].data_vars
    return Given(fit.to_arviz(), fit.posterior, y, likelihood, x, names, tmp_path)


def _lm(g: Given) -> Any:
    constants = g.data.constant_data
    return arviz.plot_lm(g.y, g.data, x=constants.get(g.x, g.data.observed_data.get(g.x)))


# Of the functions before 1.0.
OF_ARVIZ: dict[str, Callable[[Given], Any]] = {
    "autocorr": lambda g: arviz.autocorr(g.values),
    "autocov": lambda g: arviz.autocov(g.values),
    "bayes_factor": lambda g: arviz.bayes_factor(g.data, g.names[0], g.reference),
    "compare": lambda g: arviz.compare({"a": g.data, "b": g.data}),
    "concat": lambda g: arviz.concat([g.data, g.data], dim="chain", inplace=False),
    "convert_to_dataset": lambda g: arviz.convert_to_dataset(g.data),
    "convert_to_inference_data": lambda g: arviz.convert_to_inference_data(g.data),
    "ess": lambda g: arviz.ess(g.data),
    "extract": lambda g: arviz.extract(g.data),
    "from_datatree": lambda g: arviz.from_datatree(g.tree),
    "from_json": lambda g: arviz.from_json(arviz.to_json(g.data, str(g.folder / "a.json"))),
    "from_netcdf": lambda g: arviz.from_netcdf(arviz.to_netcdf(g.data, str(g.folder / "a.nc"))),
    "hdi": lambda g: arviz.hdi(g.data),
    "kde": lambda g: arviz.kde(g.values),
    "loo": lambda g: arviz.loo(g.data),
    "loo_pit": lambda g: arviz.loo_pit(g.data, y=g.y, log_weights=g.weights),
    "mcse": lambda g: arviz.mcse(g.data),
    "plot_autocorr": lambda g: arviz.plot_autocorr(g.data, g.names[:1]),
    "plot_bf": lambda g: arviz.plot_bf(g.data, g.names[0], ref_val=g.reference),
    "plot_bpv": lambda g: arviz.plot_bpv(g.data, data_pairs={g.y: g.y}),
    "plot_compare": lambda g: arviz.plot_compare(arviz.compare({"a": g.data, "b": g.data})),
    "plot_density": lambda g: arviz.plot_density(g.data, var_names=g.names[:1]),
    "plot_dist": lambda g: arviz.plot_dist(g.values),
    "plot_dist_comparison": lambda g: arviz.plot_dist_comparison(g.data, var_names=g.names[:1]),
    "plot_dot": lambda g: arviz.plot_dot(g.values),
    "plot_ecdf": lambda g: arviz.plot_ecdf(
        g.values.ravel(), eval_points=np.linspace(g.values.min(), g.values.max(), 20)
    ),
    "plot_elpd": lambda g: arviz.plot_elpd({"a": g.data, "b": g.data}),
    "plot_ess": lambda g: arviz.plot_ess(g.data, g.names[:1], kind="evolution"),
    "plot_forest": lambda g: arviz.plot_forest(g.data, var_names=g.names[:1], ess=True),
    "plot_hdi": lambda g: arviz.plot_hdi(np.arange(g.replicates.shape[1]), g.replicates[None]),
    "plot_kde": lambda g: arviz.plot_kde(g.values),
    "plot_khat": lambda g: arviz.plot_khat(arviz.loo(g.data, pointwise=True)),
    "plot_lm": _lm,
    "plot_loo_pit": lambda g: arviz.plot_loo_pit(g.data, g.y, log_weights=g.weights),
    "plot_mcse": lambda g: arviz.plot_mcse(g.data, g.names[:1]),
    "plot_pair": lambda g: arviz.plot_pair(g.data, var_names=g.names),
    "plot_posterior": lambda g: arviz.plot_posterior(g.data, var_names=g.names[:1]),
    "plot_ppc": lambda g: arviz.plot_ppc(g.data, var_names=[g.y], num_pp_samples=20),
    "plot_rank": lambda g: arviz.plot_rank(g.data, g.names[:1]),
    "plot_separation": lambda g: arviz.plot_separation(g.data, y=g.y),
    "plot_trace": lambda g: arviz.plot_trace(g.data, g.names[:1]),
    "plot_ts": lambda g: arviz.plot_ts(g.data, y=g.y, num_samples=5),
    "plot_violin": lambda g: arviz.plot_violin(g.data, var_names=g.names[:1]),
    "psens": lambda g: [arviz.psens(g.data, component=each) for each in ("prior", "likelihood")],
    "psislw": lambda g: g.weights,
    "r2_samples": lambda g: arviz.r2_samples(g.observed, g.replicates),
    "r2_score": lambda g: arviz.r2_score(g.observed, g.replicates),
    "rhat": lambda g: arviz.rhat(g.data),
    "summary": lambda g: arviz.summary(g.data),
    "to_datatree": lambda g: arviz.to_datatree(g.data),
    "to_json": lambda g: arviz.to_json(g.data, str(g.folder / "b.json")),
    "to_netcdf": lambda g: arviz.to_netcdf(g.data, str(g.folder / "b.nc")),
    "waic": lambda g: arviz.waic(g.data),
    "weight_predictions": lambda g: arviz.weight_predictions([g.data, g.data], [0.5, 0.5]),
}
# Why a function is not for draws of a fit.
NOT_OF_ARVIZ = {
    **dict.fromkeys(("bfmi", "plot_energy", "plot_parallel"), "of energies and divergences of HMC"),
    **dict.fromkeys(("reloo",), "refits, by a wrapper of a sampler"),
    **dict.fromkeys(("from_zarr", "to_zarr"), "refuses Zarr 3; see the test of Zarr below"),
    **dict.fromkeys(("to_cds", "output_file", "output_notebook", "show_layout"), "of Bokeh"),
    **dict.fromkeys(
        (
            "from_beanmachine", "from_cmdstan", "from_cmdstanpy", "from_dict", "from_emcee",
            "from_numpyro", "from_pyjags", "from_pyro", "from_pystan", "from_pytree",
            "dict_to_dataset", "numpy_to_data_array", "pytree_to_dataset", "load_arviz_data",
            "list_datasets", "clear_data_home",
        ),
        "takes other things than a fit",
    ),
    **dict.fromkeys(
        ("create_layout", "interactive_backend", "make_ufunc", "rc_context", "smooth_data",
         "wrap_xarray_ufunc"),
        "a tool of its own functions",
    ),
    "apply_test_function": "a tool for a function of the user's",
    "extract_dataset": "the old name of extract",
    "ColumnDataSource": "of Bokeh",
}  # fmt: skip
OF_STATS: dict[str, Callable[[Given], Any]] = {
    "bayes_factor": lambda g: arviz_stats.bayes_factor(g.tree, g.names[0], ref_vals=g.reference),
    "residual_r2": lambda g: arviz_stats.residual_r2(
        g.tree, pred_mean=g.y, obs_name=g.y, group="posterior_predictive"
    ),
    "ci_in_rope": lambda g: arviz_stats.ci_in_rope(g.tree, rope=(-1.0, 1.0)),
    "compare": lambda g: arviz_stats.compare({"a": g.tree, "b": g.tree}),
    "ess": lambda g: arviz_stats.ess(g.tree),
    "eti": lambda g: arviz_stats.eti(g.tree),
    "hdi": lambda g: arviz_stats.hdi(g.tree),
    "histogram": lambda g: arviz_stats.histogram(g.tree),
    "kde": lambda g: arviz_stats.kde(g.tree, var_names=g.names[:1]),
    "kl_divergence": lambda g: arviz_stats.kl_divergence(
        g.tree, g.tree, var_names=g.names[:1], num_samples=100
    ),
    "loo": lambda g: arviz_stats.loo(g.tree),
    "loo_approximate_posterior": lambda g: arviz_stats.loo_approximate_posterior(
        g.tree, g.tree["sample_stats"]["log_p"], g.tree["sample_stats"]["log_q"]
    ),
    "loo_i": lambda g: arviz_stats.loo_i(0, g.tree),
    "loo_subsample": lambda g: arviz_stats.loo_subsample(g.tree, observations=5),
    "mcse": lambda g: arviz_stats.mcse(g.tree),
    "mean": lambda g: arviz_stats.mean(g.tree),
    "median": lambda g: arviz_stats.median(g.tree),
    "metrics": lambda g: arviz_stats.metrics(g.tree, var_name=g.y),
    "mode": lambda g: arviz_stats.mode(g.tree),
    "psense": lambda g: arviz_stats.psense(g.tree),
    "psense_summary": lambda g: arviz_stats.psense_summary(g.tree),
    "qds": lambda g: arviz_stats.qds(g.tree, var_names=g.names[:1]),
    "rhat": lambda g: arviz_stats.rhat(g.tree),
    "rhat_nested": lambda g: arviz_stats.rhat_nested(g.tree),
    "summary": lambda g: arviz_stats.summary(g.tree),
    "thin": lambda g: arviz_stats.thin(g.tree),
    "wasserstein": lambda g: arviz_stats.wasserstein(
        g.tree, g.tree, var_names=g.names[:1], num_samples=100
    ),
    "get_log_likelihood": lambda g: arviz_stats.get_log_likelihood(g.tree),
    "ecdf": lambda g: arviz_stats.ecdf(g.tree["posterior"].dataset, var_names=g.names[:1]),
    "loo_expectations": lambda g: arviz_stats.loo_expectations(g.tree, var_name=g.y),
    "loo_metrics": lambda g: arviz_stats.loo_metrics(g.tree, var_name=g.y),
    "loo_pit": lambda g: arviz_stats.loo_pit(g.tree, var_names=g.y),
    "loo_r2": lambda g: arviz_stats.loo_r2(g.tree, var_name=g.y),
    "loo_score": lambda g: arviz_stats.loo_score(g.tree, var_name=g.y),
    "weight_predictions": lambda g: arviz_stats.weight_predictions([g.tree, g.tree]),
    "update_subsample": lambda g: arviz_stats.update_subsample(
        arviz_stats.loo_subsample(g.tree, observations=5, pointwise=True), g.tree, observations=3
    ),
}
# They take the observed variable's own log likelihood; several columns have theirs together.
NOT_OF_MIXTURES = {
    "bayes_factor": "of one number",
    "psense_summary": "its own dim has the name of the mixture's, component; see psense",
}
OF_ONE_COLUMN = ("loo_expectations", "loo_metrics", "loo_pit", "loo_r2", "loo_score")
NOT_OF_STATS = {
    "bayesian_r2": "of a mean of the rows that the model reports",
    "bfmi": "of the energies of HMC",
    "get_function": "a tool of its own functions",
    **dict.fromkeys(("generate_survival_curves", "kaplan_meier"), "of times with censoring"),
    **dict.fromkeys(("loo_kfold", "loo_moment_match", "reloo"), "takes functions of the model"),
}


def public(module: Any) -> set[str]:
    """The names of a module's functions."""
    found = {name: vars(module)[name] for name in dir(module) if not name.startswith("_")}
    return {name for name, each in found.items() if inspect.isfunction(each)}


def run(calls: dict[str, Callable[[Given], Any]], given: Given) -> list[str]:
    """Calls each function, and gives a line for each that raises or warns of ours."""
    failed = []
    for name, call in calls.items():
        several = given.y != given.likelihood
        if calls is OF_STATS and several and name in (*OF_ONE_COLUMN, *NOT_OF_MIXTURES):
            continue
        with warnings.catch_warnings():
            # Of rows with a high Pareto k, which is the model's, and of other packages.
            warnings.filterwarnings("ignore", "Estimated shape parameter", UserWarning)
            warnings.filterwarnings("ignore", "For one or more samples", UserWarning)
            warnings.filterwarnings("ignore", "The inplace keyword", Warning)
            warnings.filterwarnings("ignore", "rcParams", UserWarning)
            warnings.simplefilter("ignore", FutureWarning)
            try:
                call(given)
            except (Exception, SystemExit) as error:
                failed.append(f"{name}: {type(error).__name__}: {error}")
        plt.close("all")
    return failed


OLD = pytest.mark.skipif(not INFERENCE_DATA, reason="ArviZ 1.x has those of arviz-stats")
ALL = pytest.mark.parametrize("fit", FITS, indirect=True)


@OLD
def test_every_function_of_arviz_is_known() -> None:
    assert public(arviz) - set(OF_ARVIZ) - set(NOT_OF_ARVIZ) == set()


@OLD
@ALL
def test_every_function_of_arviz_works_and_says_nothing_of_one_chain(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, said = vars(arviz)["_log"], list[str]()
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    monkeypatch.setattr(log, "handlers", [handler])
    monkeypatch.setattr(log, "cache", [])  # of what was said before
    assert run({k: v for k, v in OF_ARVIZ.items() if not k.startswith("plot_")}, given) == []
    assert not any("Shape validation" in each for each in said)
    log.warning("Shape validation failed: input_shape: (2, 3), minimum_shape: (chains=2, draws=4)")
    assert len([each for each in said if "Shape validation" in each]) == 1  # of chains too short


@OLD
@pytest.mark.parametrize(
    "fit",
    [name if "regression" in name else pytest.param(name, marks=pytest.mark.slow) for name in FITS],
    indirect=True,
)
def test_every_plot_of_arviz_works(given: Given) -> None:
    assert run({k: v for k, v in OF_ARVIZ.items() if k.startswith("plot_")}, given) == []


@ALL
def test_every_function_of_arviz_stats_works(given: Given) -> None:
    assert public(arviz_stats) - set(OF_STATS) - set(NOT_OF_STATS) == set()
    assert run(OF_STATS, given) == []


@ALL
def test_a_zarr_store_is_the_tree(fit: Fit, tmp_path: Path) -> None:
    written = fit.to_zarr(tmp_path / "posterior.zarr")
    with xarray.open_datatree(written, engine="zarr") as found:
        xarray.testing.assert_identical(found.load(), fit.posterior)
        if INFERENCE_DATA:
            opened = arviz.InferenceData.from_datatree(found)
            summaries = [arviz.summary(each).sort_index() for each in (opened, fit.to_arviz())]
            assert summaries[0].equals(summaries[1])
    with pytest.raises(RunFolderError, match=r"posterior.zarr' exists; choose another path"):
        fit.to_zarr(written)


@ALL
def test_the_elbo_and_k_hat_can_be_computed_again_from_the_file(fit: Fit, tmp_path: Path) -> None:
    fit.save(tmp_path / "run")
    with xarray.open_datatree(tmp_path / "run" / "posterior.nc", engine="h5netcdf") as tree:
        group = "raw_posterior" if fit.origin == "corrected" else "sample_stats"
        raw = tree[group].to_dataset().load()
    log_weights = (raw["log_p"] - raw["log_q"]).values[0]
    assert log_weights.mean() == pytest.approx(fit.diagnostics["elbo"], rel=1e-12)
    # Numbers stay Python's own, which ArviZ writes as JSON.
    attributes = er.load(tmp_path / "run").posterior.attrs
    assert attributes == fit.posterior.attrs
    assert type(attributes["seed"]) is int
    k_hat = array_stats.psislw(-log_weights)[1]
    assert float(k_hat) == pytest.approx(fit.diagnostics["k_hat"], abs=1e-9)

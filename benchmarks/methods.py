"""Every model by every method on its bundled data: bound, held-out density, time and verdict.

Run `python benchmarks/methods.py`; half an hour on one core. `--only` takes a part of a model's
name, `--output` writes the table as JSON, and `--table` as Markdown (`methods.md` is such a one).

A quarter of the rows is held out of all fits. `test` is the mean log density of these in nats,
with its standard error: of the posterior predictive, or where rows have latents, by importance
sampling; `unreliable` is the share of rows whose importance weights are poor. `coverage` is the
share of them in their intervals of 90%, `spread` the predictions' mean sd over that of what came,
`calibration` the distance of probabilities from frequencies. `ELBO` and `log lik` are of all rows
that were learned from. `shift` and `sd ratio` are to NUTS, where it can be had, else to the guide
with the best ELBO.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import elbowroom as er

RANDOM = np.random.default_rng(0)
COINS = pd.DataFrame({"heads": RANDOM.binomial(1, 0.3, size=60)})
COUNTS = pd.DataFrame({"count": RANDOM.poisson(3.0, size=60)})

GENERAL = ("mean_field", "full_rank", "laplace", "map", "mle")
CONJUGATE = ("exact", "linear_response", *GENERAL, "nuts")
NETWORK = ("bayes_by_backprop", "map", "mle")
OBJECTIVES = ("wake_sleep", "score_function", "reweighted_wake_sleep", "vimco")

CASES: dict[str, tuple[str, Any, tuple[str, ...], dict[str, Any]]] = {
    "conjugate, normal": ("conjugate", "heights", CONJUGATE, {}),
    "conjugate, bernoulli": ("conjugate", COINS, CONJUGATE, {"likelihood": "bernoulli"}),
    "conjugate, poisson": ("conjugate", COUNTS, CONJUGATE, {"likelihood": "poisson"}),
    "conjugate, regression": ("conjugate", "diabetes", CONJUGATE, {"likelihood": "regression"}),
    "bayesian_regression": (
        "bayesian_regression", "diabetes", ("auto", "structured", *GENERAL, "nuts"), {},
    ),
    "hierarchical_normal, non-centred": (
        "hierarchical_normal", "eight_schools",
        ("auto", "mean_field", "full_rank", "laplace", "map", "nuts"), {},
    ),
    "hierarchical_normal, centred": (
        "hierarchical_normal", "eight_schools",
        ("auto", "mean_field", "full_rank", "laplace", "map", "nuts"),
        {"parameterisation": "centered"},
    ),
    "gaussian_mixture": (
        "gaussian_mixture", "iris",
        ("auto", "collapsed", "local", "mean_field", "map", "mle", "em"), {},
    ),
    "gaussian_mixture, two columns": (  # NUTS takes a quarter of an hour and more for all of them
        "gaussian_mixture", "iris", ("auto", "collapsed", "map", "em", "nuts"),
        {"columns": "petal_length,sepal_length", "covariance_type": "diagonal", "components": 2},
    ),
    "factor_analysis, shared": (
        "factor_analysis", "iris", ("exact", "em", "linear", "local", "map"), {},
    ),
    "factor_analysis, separate": (
        "factor_analysis", "breast_cancer", ("exact", "em", "linear", "local"),
        {"noise": "separate", "latent": 5},
    ),
    "bayesian_neural_network, numbers": (
        "bayesian_neural_network", "diabetes", NETWORK, {"hidden": "10", "steps": 10_000},
    ),
    "bayesian_neural_network, classes": (
        "bayesian_neural_network", "iris", NETWORK,
        {"response": "species", "hidden": "10", "steps": 10_000},
    ),
    "mixture_density_network": (
        "mixture_density_network", "inverse_problem", NETWORK,
        {"prior_scale": 3.0, "activation": "tanh", "steps": 10_000},
    ),
    "vae": ("vae", "digits", ("encoder", "local", "encoder:iwae"), {"particles": 5, "epochs": 100}),
    "conditional_vae": ("conditional_vae", "digits", ("encoder", "local"), {"epochs": 100}),
    "helmholtz_machine": (
        "helmholtz_machine", "digits",
        tuple(f"recognition:{objective}" for objective in OBJECTIVES),
        {"baseline": "neural", "learning_rate": 0.03, "epochs": 100, "schedule": "constant"},
    ),
}  # fmt: skip
"""A model, its data, its methods and the options of all."""
SMALL = {"hierarchical_normal": 2}
"""Rows held out, where a quarter is too many."""


def row(name: str, line: dict[str, Any], differences: pd.DataFrame) -> dict[str, Any]:
    """One method's line of the table."""
    own = differences[differences["guide"] == line["guide"]]
    shift, ratio = own["mean_shift"].abs().max(), own["sd_ratio"]
    return {
        "model": name, "method": line["guide"], "test": line.get("test_log_density"),
        "test_se": line.get("test_log_density_se"), "unreliable": line.get("test_unreliable"),
        "coverage": line.get("test_coverage"),
        "spread": line.get("test_spread"), "calibration": line.get("test_calibration_error"),
        "ELBO": line["elbo"], "log lik": line["log_likelihood"],
        "amortised": line.get("amortisation_gap"), "shift": shift, "sd ratio, lowest": ratio.min(),
        "sd ratio, highest": ratio.max(), "seconds": line["seconds"], "verdict": line["verdict"],
        "error": line["error"],
    }  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows by model, each with the columns that one of its methods has a number in."""
    parts = []
    for name, lines in pd.DataFrame(rows).groupby("model", sort=False):
        table = lines.drop(columns=["model", "error"]).dropna(axis=1, how="all")
        cells = [list(table.columns), ["---"] * table.shape[1]]
        cells += [[_cell(value) for value in line] for line in table.itertuples(index=False)]
        said = [f"\n{r['method']} failed: {r['error']}" for r in rows
                if r["model"] == name and r["error"]]  # fmt: skip
        body = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        parts.append(f"## {name}\n\n{body}\n" + "".join(f"{each}\n" for each in said))
    return "\n".join(parts)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.3f}"
    return "" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare every model's methods.")
    parser.add_argument("--only", default="", help="a part of the models' names")
    parser.add_argument("--output", type=Path, help="where to write the table, as JSON")
    parser.add_argument("--table", type=Path, help="where to write it as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    rows = []
    for name, (model, data, methods, given) in CASES.items():
        if options.only not in name:
            continue
        found = er.compare(
            model, data, list(methods), seed=1, test_size=SMALL.get(model, 0.25), **given
        )
        rows += [row(name, dict(line), found.differences) for _, line in found.table.iterrows()]
        shown = pd.DataFrame(rows[-len(methods) :]).drop(columns="model").dropna(axis=1, how="all")
        print(f"\n{name}\n{shown.round(3).to_string(index=False)}", flush=True)
        if options.output is not None:
            options.output.write_text(json.dumps(rows, indent=1, default=float) + "\n")
        if options.table is not None:
            options.table.write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()

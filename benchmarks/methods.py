"""Every model by every method on its bundled data: bound, predictive density, time and verdict.

Run `python benchmarks/methods.py`; about a quarter of an hour on one core. `--only` takes a part of
a model's name, `--output` writes the table as JSON.

`elpd` is the leave-one-out log predictive density of a row, with its standard error; models with
latents for each row have none. `shift` and `sd ratio` are to NUTS, where it can be had.
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

CASES: dict[str, tuple[str, Any, tuple[str, ...], dict[str, Any]]] = {
    "conjugate, normal": (
        "conjugate", "heights",
        ("exact", "linear_response", "mean_field", "full_rank", "laplace", "map", "nuts"), {},
    ),
    "conjugate, bernoulli": (
        "conjugate", COINS,
        ("exact", "linear_response", "mean_field", "full_rank", "laplace", "map", "nuts"),
        {"likelihood": "bernoulli"},
    ),
    "conjugate, poisson": (
        "conjugate", COUNTS,
        ("exact", "linear_response", "mean_field", "full_rank", "laplace", "map", "nuts"),
        {"likelihood": "poisson"},
    ),
    "conjugate, regression": (
        "conjugate", "diabetes",
        ("exact", "linear_response", "mean_field", "full_rank", "laplace", "map", "nuts"),
        {"likelihood": "regression"},
    ),
    "bayesian_regression": (
        "bayesian_regression", "diabetes",
        ("auto", "structured", "mean_field", "full_rank", "laplace", "map", "nuts"), {},
    ),
    "hierarchical_normal, non-centered": (
        "hierarchical_normal", "eight_schools",
        ("auto", "mean_field", "full_rank", "laplace", "map", "nuts"), {},
    ),
    "hierarchical_normal, centered": (
        "hierarchical_normal", "eight_schools",
        ("auto", "mean_field", "full_rank", "laplace", "map", "nuts"),
        {"parameterisation": "centered"},
    ),
    "gaussian_mixture": (
        "gaussian_mixture", "iris", ("auto", "collapsed", "local", "mean_field", "map", "nuts"), {},
    ),
    "factor_analysis, shared": (
        "factor_analysis", "iris", ("exact", "linear", "local", "map"), {},
    ),
    "vae": ("vae", "digits", ("encoder", "local"), {}),
}  # fmt: skip


def row(name: str, line: dict[str, Any], differences: pd.DataFrame) -> dict[str, Any]:
    """One method's line of the table."""
    own = differences[differences["guide"] == line["guide"]]
    shift, ratio = own["mean_shift"].abs().max(), own["sd_ratio"]
    return {
        "model": name, "method": line["guide"], "elbo": line["elbo"], "elbo_se": line["elbo_se"],
        "elpd": line["elpd_loo"], "elpd_se": line["elpd_loo_se"], "shift": shift,
        "sd ratio, lowest": ratio.min(), "sd ratio, highest": ratio.max(),
        "seconds": line["seconds"], "verdict": line["verdict"], "error": line["error"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare every model's methods.")
    parser.add_argument("--only", default="", help="a part of the models' names")
    parser.add_argument("--output", type=Path, help="where to write the table, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    rows = []
    for name, (model, data, methods, given) in CASES.items():
        if options.only not in name:
            continue
        found = er.compare(model, data, list(methods), seed=1, **given)
        rows += [row(name, dict(line), found.differences) for _, line in found.table.iterrows()]
        shown = pd.DataFrame(rows[-len(methods) :]).drop(columns=["model", "error"])
        print(f"\n{name}\n{shown.round(3).to_string(index=False)}", flush=True)
        if options.output is not None:
            options.output.write_text(json.dumps(rows, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()

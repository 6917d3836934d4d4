"""One Helmholtz machine learned in six ways on the same rows and budget.

Run `python benchmarks/helmholtz.py --output helmholtz.json`; some minutes a seed on one core.

The bundled digits, their pixels drawn as ink or paper once; 1,437 rows to learn from and 360 held
out. All have the same draws of the latents for each row and step, minibatches, Adam, a cosine rate
and the same epochs. `nll` is minus the log probability of a held-out row in nats, by importance
sampling with 2,000 draws of the row's latents, and `bound` minus its ELBO: lower is better. Their
difference is what the recognition network gives away. `nll_sd` is the spread over the seeds, of
which the mean's standard error is taken; paired differences to the first method come last.

`--rates` tries several learning rates for each way, and takes the one with the best bound on the
rows that are learned from, as one would without a held-out set.

1. `wake_sleep`: the guide learns from the model's dreams (Hinton et al., 1995).
2. `score_function`, no baseline.
3. `score_function`, a neural baseline: in the way of NVIL (Mnih and Gregor, 2014).
4. `reweighted_wake_sleep`, from data and dreams in equal parts (Bornschein and Bengio, 2015).
5. `reweighted_wake_sleep`, from data alone.
6. `vimco` (Mnih and Rezende, 2016).
"""

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

# The checkout that the benchmark lies in, whether or not it is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import elbowroom as er

TRAINING_ROWS = 1437
DRAWS = 2000
METHODS: dict[str, dict[str, Any]] = {
    "wake_sleep": {"elbo": "wake_sleep"},
    "score_function, no baseline": {"elbo": "score_function", "baseline": "none"},
    "score_function, neural baseline": {"elbo": "score_function", "baseline": "neural"},
    "reweighted_wake_sleep, half asleep": {"elbo": "reweighted_wake_sleep", "insomnia": 0.5},
    "reweighted_wake_sleep": {"elbo": "reweighted_wake_sleep"},
    "vimco": {"elbo": "vimco"},
}


def measured(
    name: str, train: pd.DataFrame, test: pd.DataFrame, rates: list[float], given: dict[str, Any]
) -> dict[str, Any]:
    """The fit with the best bound on its own rows, and what it makes of those held out."""
    fits = [
        er.fit(
            "helmholtz_machine", train, learning_rate=rate, schedule="cosine", draws=100,
            **METHODS[name], **given,
        )
        for rate in rates
    ]  # fmt: skip
    best = max(fits, key=lambda fit: fit.diagnostics["elbo"])
    scored = best.score(test, draws=DRAWS)
    weights = best.weigh_rows(test, DRAWS, seed=1)
    return {
        "method": name, "rate": best.settings.learning_rate, "seed": given["seed"],
        "nll": -float(scored["log_density"].mean()),
        "nll_se": float(np.hypot.reduce(scored["standard_error"]) / len(test)),
        "bound": -float(weights.elbo.mean()),
        "effective": float(scored["effective_sample_size"].median()),
        "active": best.diagnostics["active_units"],
        "seconds": best.trained.seconds, "verdict": best.verdict.level,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Ways to learn a Helmholtz machine.")
    parser.add_argument("--output", type=Path, help="where to write the numbers, as JSON")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--particles", type=int, default=10)
    parser.add_argument("--units", default="30,10")
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-3, 1e-2])
    parser.add_argument("--only", nargs="+", default=list(METHODS), help="names, or parts of them")
    options = parser.parse_args()

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    digits = er.load_dataset("digits")
    order = np.random.default_rng(0).permutation(len(digits))
    train, test = digits.iloc[order[:TRAINING_ROWS]], digits.iloc[order[TRAINING_ROWS:]]
    names = [name for name in METHODS if any(part in name for part in options.only)]
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        given = {
            "seed": seed, "epochs": options.epochs, "particles": options.particles,
            "units": options.units,
        }  # fmt: skip
        for name in names:
            rows.append(measured(name, train, test, options.rates, given))
            print(
                "  ".join(
                    f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in rows[-1].items()
                ),
                flush=True,
            )
            if options.output is not None:
                asked = {key: str(value) for key, value in vars(options).items()}
                options.output.write_text(json.dumps({**asked, "rows": rows}, indent=1) + "\n")
    table = pd.DataFrame(rows)
    by_method = table.groupby("method", sort=False)
    shown = by_method[["nll", "bound", "effective", "active", "seconds"]].mean()
    shown.insert(1, "nll_sd", by_method["nll"].std())
    shown.insert(3, "gap", shown["bound"] - shown["nll"])
    print(f"\n{shown.round(3).to_string()}")
    by_seed = table.pivot_table(index="seed", columns="method", values="nll", sort=False)
    less = by_seed.sub(by_seed[names[0]], axis=0)
    error = less.std() / len(less) ** 0.5
    print(f"\nnll, less that of {names[0]}, and its standard error over the seeds")
    print(pd.DataFrame({"difference": less.mean(), "error": error}).round(3).to_string())


if __name__ == "__main__":
    main()

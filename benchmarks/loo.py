"""Leave-one-out densities of approximate posteriors beside those of NUTS.

Run `python benchmarks/loo.py --output loo.json`, with nutpie installed; some minutes on one core.

Six models are fitted by `er.fit(model, data, seed=1)` with all defaults, and sampled by NUTS from
there as by `elbowroom reference`: four chains of `--draws` kept draws. The elpd of each model
(PSIS-LOO, in nats) comes from these draws, too:

- `corrected`: the fit's posterior, draws of equal weight, which `elbowroom fit` and
  `compare-models` take;
- `by row`: the guide's own draws, whose weights log p - log q go into those of each row (Magnusson
  et al., 2019);
- `own`: the guide's own draws as they are;
- `fitted again`: where there are at most `--again` rows, each of them left out by fitting again, as
  `compare-models --refit` does with some.

Each has its distance from the elpd of NUTS in nats, which is to be compared with the standard error
of NUTS's elpd over the rows (`se`); the largest distance of a row (`row`); and the number of rows
whose Pareto k is above the limit (`k`).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray

# The checkout that the benchmark lies in, whether or not it is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import elbowroom as er
from elbowroom.assess.measures import high_k, rows_left_out
from elbowroom.draws.predict import row_log_likelihood
from elbowroom.pipeline.leaving_out import log_density_without
from elbowroom.pipeline.reference import add_reference
from elbowroom.result import Fit


def regression(data: str, formula: str, **given: Any) -> Callable[[], Fit]:
    return lambda: er.fit("bayesian_regression", data, formula=formula, seed=1, **given)


MODELS: dict[str, Callable[[], Fit]] = {
    "normal regression": regression("diabetes", "progression ~ bmi + bp + s5"),
    "logistic regression": regression(
        "breast_cancer", 'diagnosis["malignant"] ~ mean_radius + mean_texture + mean_smoothness'
    ),
    "gamma regression": regression("diabetes", "progression ~ bmi + bp + s5", family="gamma"),
    "negative binomial regression": lambda: er.fit("negative_binomial", "linnerud", seed=1),
    "hierarchy: eight schools": lambda: er.fit("hierarchical_normal", "eight_schools", seed=1),
    "mixture of two Normals": lambda: er.fit(
        "gaussian_mixture", "iris", components=2, columns="petal_length,petal_width", seed=1
    ),
}


def own_draws(fit: Fit, count: int) -> xarray.DataTree:
    """The guide's own draws with the rows' log likelihood at each."""
    drawn = fit.draw(count, seed=2)
    with fit.problem.session(0, fit.parameters):
        values = row_log_likelihood(fit.problem, fit.problem.arguments, drawn.sites)
    dims = ("chain", "draw")
    groups = {
        "posterior": xarray.Dataset({"log_p": (dims, drawn.log_p[None])}),
        "sample_stats": xarray.Dataset(
            {"log_p": (dims, drawn.log_p[None]), "log_q": (dims, drawn.log_q[None])}
        ),
        "log_likelihood": xarray.Dataset({"y": ((*dims, "rows"), values[None])}),
    }
    return xarray.DataTree.from_dict(
        {
            name: each.assign_coords(draw=np.arange(count), chain=[0])
            for name, each in groups.items()
        }
    )


def measured(name: str, draws: int, again: int) -> dict[str, Any]:
    began = time.perf_counter()
    fit = MODELS[name]()
    corrected = rows_left_out(fit.posterior)
    seconds = time.perf_counter() - began
    sampled = add_reference(fit, draws=draws, take=True)
    exact = rows_left_out(sampled.posterior)
    own = own_draws(fit, fit.diagnostics["draws"])
    plain = rows_left_out(own)
    own.attrs["draws"] = "raw"
    by_row = rows_left_out(own)
    assert exact is not None
    line: dict[str, Any] = {
        "model": name, "rows": int(exact.n_data_points), "verdict": fit.verdict.level,
        "nuts": sampled.origin == "nuts", "seconds": seconds,
        "nuts_seconds": sampled.diagnostics["reference_seconds"],
        "elpd": float(exact.elpd), "se": float(exact.se), "p": float(exact.p),
        "k": int(high_k(exact).sum()),
    }  # fmt: skip
    for kind, found in (("corrected", corrected), ("by row", by_row), ("own", plain)):
        assert found is not None
        line[kind] = {
            "off": float(found.elpd - exact.elpd), "p": float(found.p),
            "row": float(np.abs(np.ravel(found.elpd_i) - np.ravel(exact.elpd_i)).max()),
            "k": int(high_k(found).sum()),
        }  # fmt: skip
    if exact.n_data_points <= again:
        rows = np.array([log_density_without(fit, row) for row in range(exact.n_data_points)])
        line["fitted again"] = {
            "off": float(rows.sum() - exact.elpd),
            "row": float(np.abs(rows - np.ravel(exact.elpd_i)).max()),
        }
    return line


def shown(line: dict[str, Any]) -> str:
    cells = [line["model"], f"{line['rows']}", line["verdict"]]
    cells += [f"{line['elpd']:.2f} ± {line['se']:.2f}", f"{line['p']:.2f}", f"{line['k']}"]
    for kind in ("corrected", "by row", "own"):
        one = line[kind]
        cells += [f"{one['off']:+.2f}", f"{one['row']:.2f}", f"{one['k']}"]
    one = line.get("fitted again")
    cells += ["", ""] if one is None else [f"{one['off']:+.2f}", f"{one['row']:.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=4000, help="kept draws of each chain of NUTS")
    parser.add_argument("--again", type=int, default=20, help="rows up to which all are refitted")
    parser.add_argument("--only", default="", help="models whose names contain this")
    parser.add_argument("--output", type=Path, help="a JSON file of all numbers")
    asked = parser.parse_args()
    lines = []
    for name in MODELS:
        if asked.only in name:
            lines.append(measured(name, asked.draws, asked.again))
            print(shown(lines[-1]), flush=True)
            if not lines[-1]["nuts"]:
                print(f"{name}: the chains of NUTS have not mixed", flush=True)
    if asked.output is not None:
        asked.output.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

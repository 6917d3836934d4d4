"""The time and the memory of a regression by its number of rows.

Run `python benchmarks/rows_of_regressions.py --rows 10000,100000,1000000`; alone on a machine some
minutes for a million rows. A row of the table is a process of its own, which makes the table in
memory, imports what a fit needs, and fits with all defaults and `seed=1`:

- `normal`: five columns;
- `logistic`: five columns, half of the rows ones;
- `hierarchical logistic`: five columns and an intercept and a slope for each of `rows / 25` groups,
  2,000 at most: `(x | group)`.

The columns: seconds of the fit by the wall clock and of the processor, without the imports; the
most memory that the process held, and how much of it was there before the fit; and the verdict.
Under the table stands the exponent of the processor's seconds in the rows, between the least and
the most.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

# The checkout that the benchmark lies in, whether or not it is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

COLUMNS = ["x", "a", "b", "c", "d"]
MOST_GROUPS, ROWS_A_GROUP = 2000, 25


def predictors(rows: int, random: np.random.Generator) -> pd.DataFrame:
    return pd.DataFrame(random.normal(size=(rows, len(COLUMNS))), columns=COLUMNS)


def linear(data: pd.DataFrame) -> np.ndarray:
    found: np.ndarray = data[COLUMNS].to_numpy() @ np.linspace(-0.5, 0.5, len(COLUMNS))
    return found


def normal(rows: int, random: np.random.Generator) -> pd.DataFrame:
    data = predictors(rows, random)
    return data.assign(y=3 + linear(data) + random.normal(size=rows))


def logistic(rows: int, random: np.random.Generator) -> pd.DataFrame:
    data = predictors(rows, random)
    return data.assign(y=random.random(rows) < 1 / (1 + np.exp(-linear(data))))


def hierarchical(rows: int, random: np.random.Generator) -> pd.DataFrame:
    data = predictors(rows, random)
    groups = min(MOST_GROUPS, rows // ROWS_A_GROUP)
    own = random.multivariate_normal([0, 0], [[0.6, 0.15], [0.15, 0.2]], size=groups)
    group = random.integers(groups, size=rows)
    eta = linear(data) + own[group, 0] + own[group, 1] * data["x"].to_numpy()
    return data.assign(group=group, y=random.random(rows) < 1 / (1 + np.exp(-eta)))


Table = Callable[[int, np.random.Generator], pd.DataFrame]
MODELS: dict[str, tuple[Table, str]] = {
    "normal": (normal, "y ~ x + a + b + c + d"),
    "logistic": (logistic, "y ~ x + a + b + c + d"),
    "hierarchical logistic": (hierarchical, "y ~ x + a + b + c + d + (x | group)"),
}


def gigabytes() -> float:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def measured(name: str, rows: int) -> dict[str, Any]:
    """A row of the table, in this process."""
    import elbowroom as er

    make, formula = MODELS[name]
    er.fit("bayesian_regression", "diabetes", formula="progression ~ bmi")  # pays for imports
    data = make(rows, np.random.default_rng(0))
    before, began, used = gigabytes(), time.perf_counter(), time.process_time()
    family = "normal" if name == "normal" else "bernoulli"
    fit = er.fit("bayesian_regression", data, formula=formula, family=family, seed=1)
    return {
        "model": name, "rows": rows, "wall": time.perf_counter() - began,
        "processor": time.process_time() - used, "peak": gigabytes(), "before": before,
        "verdict": fit.verdict.level, "engine": fit.posterior["posterior"].attrs["guide"],
    }  # fmt: skip


def apart(name: str, rows: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--rows", str(rows)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(run.stderr)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="10000,100000,1000000", help="numbers of rows")
    parser.add_argument("--only", help="models, with commas between them; by default all")
    parser.add_argument("--output", type=Path, help="a JSON file of all numbers")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    sizes = sorted(int(each) for each in asked.rows.split(","))
    if asked.one:
        print(json.dumps(measured(asked.one, sizes[0])))
        return
    names = asked.only.split(",") if asked.only else list(MODELS)
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        parser.error(f"--only: there is no model {', '.join(unknown)}; write {', '.join(MODELS)}")
    lines = []
    for name in names:
        for rows in sizes:
            lines.append(line := apart(name, rows))
            print(
                f"| {name} | {rows:,} | {line['wall']:.1f} | {line['processor']:.1f} | "
                f"{line['peak']:.2f} | {line['before']:.2f} | {line['verdict']} |", flush=True
            )  # fmt: skip
        own = [line for line in lines if line["model"] == name]
        if len(own) > 1:
            grown = math.log(own[-1]["processor"] / own[0]["processor"])
            print(f"{name}: rows ** {grown / math.log(own[-1]['rows'] / own[0]['rows']):.2f}")
    if asked.output is not None:
        asked.output.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

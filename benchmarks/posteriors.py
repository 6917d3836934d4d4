"""Accuracy, trust and time of the default fit, beside NUTS and this project's own SVI.

Run `python benchmarks/posteriors.py --output posteriors.json`; about ten minutes on one core, with
nutpie installed. `--folder FOLDER` adds posteriors with known answers in the layout of a checkout
that holds `index.json`, `data`, `models` and `reference`, read by its own `check.load`.

Each posterior is fitted in turn, in this process, by

1. `auto`: `er.fit(model, data)` with all defaults;
2. `nuts`: nutpie over the same recorded log density, four chains of 800 tuning and 1,000 kept
   draws, from draws of fit 1; where the model has location-scale sites, over the density of their
   standardised values, from random points, since its chains mix badly in a funnel;
3. `mean_field` and `full_rank`: the same model and guides by stochastic gradients, `engine="svi"`.

The errors are in units of the reference's standard deviation, the worst over all scalar sites:
`mean` is |mean - mean_ref| / sd_ref and `sd` is |log(sd / sd_ref)|. The reference is the folder's,
or the run of NUTS (whose own Monte Carlo error is then part of both). A fit is right if both are
below 0.1, usable if below 0.3; `silent` is one that is trusted and not usable, `false alarm` one
that is right and not trusted.

`equal` is the time that NUTS needs for draws worth as many as fit 1's, by its smallest bulk
effective sample size: its tuning, and as much of its sampling as that takes. `ratio` is that time
over fit 1's. The first fit of a process pays for imports: one is made before the clock starts.
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

# The checkout that the benchmark lies in, whether or not it is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import elbowroom as er
from elbowroom.density.landscape import density_of
from elbowroom.engines.nuts.sampler import sample_nuts
from elbowroom.problem.isolation import isolated

CHAINS, DRAWS, TUNE = 4, 1000, 800
METHODS = ("auto", "mean_field", "full_rank")


@dataclass(frozen=True)
class Case:
    """A posterior: its model, data, and reference moments of named scalars if there are any."""

    name: str
    model: Callable[..., Any]
    data: dict[str, Tensor]
    named: Callable[[dict[str, Tensor]], dict[str, Any]]
    reference: dict[str, tuple[float, float]] | None


def _scalars(sites: dict[str, Tensor]) -> dict[str, np.ndarray]:
    found = {}
    for name, values in sites.items():
        for j, column in enumerate(values.reshape(len(values), -1).T):
            found[f"{name}[{j}]"] = np.asarray(column)
    return found


def regression(x: Tensor, y: Tensor) -> None:
    slopes = pyro.sample(
        "slopes", dist.Normal(torch.zeros(x.shape[1]), 1.0).mask(False).to_event(1)
    )
    sigma = pyro.sample("sigma", dist.HalfCauchy(50.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ slopes, sigma), obs=y)


def logistic(x: Tensor, y: Tensor) -> None:
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 2.5).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ slopes), obs=y)


def centred(y: Tensor, sigma: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mean, spread))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def bundled() -> list[Case]:
    """Posteriors of the project's own tables."""
    diabetes = er.load_dataset("diabetes")
    predictors = diabetes.drop(columns="progression").to_numpy(float)
    design = np.column_stack([np.ones(len(predictors)), predictors])
    cancer = er.load_dataset("breast_cancer")
    measured = cancer.select_dtypes("number").iloc[:, :6].to_numpy(float)
    measured = (measured - measured.mean(0)) / measured.std(0)
    schools = er.load_dataset("eight_schools")
    label = next(name for name in cancer.columns if cancer[name].nunique() == 2)
    positive = (cancer[label] == cancer[label].iloc[0]).to_numpy(float)
    return [
        Case(
            "diabetes regression",
            regression,
            {"x": torch.tensor(design), "y": torch.tensor(diabetes["progression"].to_numpy(float))},
            _scalars,
            None,
        ),
        Case(
            "breast cancer logistic",
            logistic,
            {
                "x": torch.tensor(np.column_stack([np.ones(len(measured)), measured])),
                "y": torch.tensor(positive),
            },
            _scalars,
            None,
        ),
        Case(
            "eight schools, centred",
            centred,
            {
                "y": torch.tensor(schools["effect"].to_numpy(float)),
                "sigma": torch.tensor(schools["standard_error"].to_numpy(float)),
            },
            _scalars,
            None,
        ),
    ]


def from_folder(folder: Path) -> list[Case]:
    """Posteriors of a folder with known answers."""
    sys.path.insert(0, str(folder))
    check = importlib.import_module("check")
    cases = []
    for name in json.loads((folder / "index.json").read_text()):
        model, data, moments, constrained = check.load(name)
        cases.append(Case(name, model, data, constrained, moments))
    return cases


def moments(case: Case, sites: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    named = case.named({name: values.double() for name, values in sites.items()})
    return {n: (float(np.mean(v)), float(np.std(v))) for n, v in named.items()}


def sites_of(fit: Any) -> dict[str, Tensor]:
    group = fit.posterior["posterior"]
    return {
        str(k): torch.as_tensor(v.values.reshape(-1, *v.shape[2:]))
        for k, v in group.data_vars.items()
    }


def errors(
    found: dict[str, tuple[float, float]], reference: dict[str, tuple[float, float]]
) -> tuple[float, float]:
    shared = [name for name in reference if name in found]
    mean = max(abs(found[n][0] - reference[n][0]) / reference[n][1] for n in shared)
    sd = max(abs(np.log(max(found[n][1], 1e-300) / reference[n][1])) for n in shared)
    return float(mean), float(sd)


def timed_fit(case: Case, method: str, seed: int) -> tuple[Any, float]:
    engine = "auto" if method == "auto" else "svi"
    began = time.perf_counter()
    fit = er.fit(case.model, case.data, guide=method, engine=engine, seed=seed)
    return fit, time.perf_counter() - began


def run_nuts(fit: Any, seed: int) -> tuple[dict[str, Tensor], Any, float]:
    """Draws of the model's sites by NUTS, how it went, and the seconds with recording."""
    unconstrained, random = fit.posterior["unconstrained_posterior"], np.random.default_rng(seed)
    problem = fit.problem
    if problem.space.location_scale and not problem.reparameterised:
        problem = problem.reparameterise(problem.space.location_scale)
        starts = random.normal(size=(CHAINS, problem.space.dimension))
    else:
        picked = random.choice(unconstrained.sizes["draw"], CHAINS, replace=False)
        parts = [unconstrained[site.name].values[0, picked] for site in problem.space.sites]
        starts = np.concatenate([part.reshape(CHAINS, -1) for part in parts], axis=1)
    began = time.perf_counter()
    with isolated(seed, dtype=torch.float64, threads=1):
        density = density_of(problem)
        nuts = sample_nuts(density, starts, draws=DRAWS, tune=TUNE, seed=seed, threads=1)
        seconds = time.perf_counter() - began
        sites = density.constrained(nuts.points.reshape(-1, density.dimension))
        if problem.reparameterised or problem.space.deterministic_plates:
            from elbowroom.draws.groups import reported_quantities

            sites = {**sites, **reported_quantities(problem, sites)}
    return sites, nuts, seconds


def measure(case: Case, seed: int) -> dict[str, Any]:
    auto, seconds = timed_fit(case, "auto", seed)
    sites, nuts, nuts_seconds = run_nuts(auto, seed)
    by_nuts = moments(case, sites)
    reference = by_nuts if case.reference is None else case.reference
    worth = auto.measures.get("corrected_effective_sample_size", float(auto.measures["draws"]))
    drawing = nuts_seconds * DRAWS / (DRAWS + TUNE)
    equal = nuts_seconds - drawing + drawing * worth / nuts.fewest_effective
    row: dict[str, Any] = {
        "case": case.name,
        "seconds": seconds,
        "verdict": auto.verdict.level,
        "errors": errors(moments(case, sites_of(auto)), reference),
        "effective": worth,
        "nuts_seconds": nuts_seconds,
        "nuts_effective": nuts.fewest_effective,
        "nuts_r_hat": nuts.worst_r_hat,
        "nuts_errors": errors(by_nuts, reference),
        "equal": equal,
        "ratio": equal / seconds,
    }
    for method in METHODS[1:]:
        fit, svi_seconds = timed_fit(case, method, seed)
        row[method] = {
            "seconds": svi_seconds,
            "verdict": fit.verdict.level,
            "errors": errors(moments(case, sites_of(fit)), reference),
        }
    return row


def judged(mean: float, sd: float) -> str:
    worst = max(mean, sd)
    return "right" if worst < 0.1 else "usable" if worst < 0.3 else "wrong"


def show(rows: list[dict[str, Any]]) -> None:
    head = f"{'posterior':42s} {'s':>6s} {'mean':>6s} {'sd':>6s}  {'verdict':14s} {'NUTS s':>7s} "
    print(f"{head}{'mean':>6s} {'sd':>6s} {'equal':>7s} {'ratio':>6s}  SVI mean_field, full_rank")
    for row in rows:
        svi = ", ".join(
            f"{judged(*row[m]['errors'])} {'trusted' if 'not' not in row[m]['verdict'] else 'no'} "
            f"{row[m]['seconds']:.0f} s"
            for m in METHODS[1:]
        )
        print(
            f"{row['case']:42.42s} {row['seconds']:6.2f} {row['errors'][0]:6.3f} "
            f"{row['errors'][1]:6.3f}  {row['verdict'][:14]:14s} {row['nuts_seconds']:7.1f} "
            f"{row['nuts_errors'][0]:6.3f} {row['nuts_errors'][1]:6.3f} {row['equal']:7.1f} "
            f"{row['ratio']:6.0f}  {svi}"
        )
    trusted = [row for row in rows if row["verdict"] != "not trusted"]
    right = [row for row in rows if judged(*row["errors"]) == "right"]
    silent = [row for row in trusted if judged(*row["errors"]) == "wrong"]
    alarms = [row for row in right if row not in trusted]
    print(
        f"{len(right)} of {len(rows)} right, {len(silent)} silent, {len(alarms)} false alarms; "
        f"median {median(row['seconds'] for row in rows):.2f} s, median ratio "
        f"{median(row['ratio'] for row in rows):.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="posteriors with known answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = bundled()
    if arguments.folder is not None:
        cases += from_folder(arguments.folder)
    timed_fit(cases[0], "auto", arguments.seed)
    rows = []
    for case in cases:
        rows.append(measure(case, arguments.seed))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    show(rows)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

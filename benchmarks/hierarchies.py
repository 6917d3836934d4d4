"""Hierarchies and time series of 50 to 3,000 dimensions: trust, accuracy and time beside NUTS.

Run `python benchmarks/hierarchies.py --output hierarchies.json`, with nutpie installed; about an
hour on one core, nearly all of it for NUTS. `--references FOLDER` keeps the long runs of NUTS, and
reads those that are there; `--only crossed,rasch` takes some posteriors, `--list` names them.

Each posterior (see `hierarchy_models.py`) is fitted by `er.fit(model, data, seed=...)` with all
defaults. Its reference is a long run of nutpie over the same recorded log density: four chains of
1,000 tuning and 4,000 kept draws, or what `--kept` gives. Where the model has location-scale sites,
nutpie is tried on these as written and standardised, 1,000 kept draws each, and the faster way that
mixes is taken.

The error of a mean is |mean - reference| / sd, that of an sd |log(sd / reference)|, each less four
standard errors of the two sets of draws, so that chance alone decides nothing among thousands of
scalars; the worst over all scalars of all sites counts. A fit is right below 0.1. The columns:

- `s`: seconds of the processor of the fit, on one thread;
- `effective`: how many independent draws its own are worth, for the means and, where this is less,
  the spreads;
- `NUTS s`: seconds of the processor that nutpie needs, tuning included, for draws worth as many,
  by the smallest bulk effective sample size of its unconstrained coordinates. The long run tells
  how many evaluations of the density these take; a short run of nutpie before the fit, and another
  after it, tell what one costs, compiled as it is for the fit;
- `ratio`: of that to the fit's;
- `replayed`: the same ratio where nutpie has the recording that is not compiled, operation by
  operation, as in the tables of earlier versions.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

# The checkout that the benchmark lies in, whether or not it is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import elbowroom as er
from benchmarks.hierarchy_models import POSTERIORS, Posterior
from elbowroom.density.landscape import density_of
from elbowroom.draws.groups import reported_quantities
from elbowroom.engines.nuts.sampler import mixing, sample_nuts
from elbowroom.errors import ElbowroomError
from elbowroom.problem.bound import Problem, bind, resolve_model
from elbowroom.problem.isolation import isolated
from elbowroom.recording.kernel import switching
from elbowroom.recording.kernel.switching import COMPILING

CHAINS, TUNE, SHORT, LONG = 4, 1000, 1000, 4000
PRICE = 3.0
"""Seconds of each short run that tells what an evaluation costs nutpie, about."""
RIGHT, ERRORS = 0.1, 4.0


def bound(made: Posterior) -> Problem:
    declaration = resolve_model(made.model)
    return bind(declaration, made.data, None, torch.float64, torch.device("cpu"))


def forms(problem: Problem) -> Iterator[tuple[str, Problem]]:
    yield "as written", problem
    if problem.space.location_scale:
        yield "standardised", problem.reparameterise(problem.space.location_scale)


@dataclass(frozen=True)
class Cost:
    """Processor seconds, and calls of the density, each for as many chains as wait."""

    seconds: float
    calls: int


def run_nuts(
    problem: Problem, draws: int, seed: int, tune: int = TUNE
) -> tuple[dict[str, np.ndarray], Any, Cost]:
    """The model's own scalars at the draws, (chains, draws); how it went; what it cost."""
    with isolated(seed, dtype=torch.float64, threads=1):
        density = density_of(problem)
        starts = np.random.default_rng(seed).uniform(-1, 1, (CHAINS, density.dimension))
        taken, calls = density.value_and_gradient, itertools.count()

        def counted(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            next(calls)
            return taken(points)

        density.value_and_gradient = counted  # type: ignore[method-assign]
        began = time.process_time()
        nuts = sample_nuts(density, starts, draws=draws, tune=tune, seed=seed, threads=1)
        cost = Cost(time.process_time() - began, next(calls))
        sites = density.constrained(nuts.points.reshape(-1, density.dimension))
    if problem.reparameterised:
        with problem.session(seed):
            sites = {**sites, **reported_quantities(problem, sites)}
    shape = nuts.points.shape[:2]
    found = {}
    for name, values in sites.items():
        for j, column in enumerate(values.reshape(len(values), -1).T):
            found[f"{name}[{j}]"] = column.numpy().reshape(shape)
    return found, nuts, cost


def price(problem: Problem, before: dict[str, Any], seed: int) -> np.ndarray:
    """Seconds of the processor of one call of the density by nutpie, here and now.

    Of the compiled density, and of the one that is replayed.
    """
    found = []
    for limits in (COMPILING, replace(COMPILING, numbers=-1)):
        with mock.patch.object(switching, "COMPILING", limits):
            share = PRICE / before["seconds"]
            draws = max(4, int(share * (TUNE + before["kept"])))
            _, _, cost = run_nuts(problem, draws, seed, tune=draws)
            found.append(cost.seconds / cost.calls)
    return np.array(found)


def reference(made: Posterior, seed: int, kept: int) -> dict[str, Any]:
    """Moments of a long run of NUTS with their effective draws, and its time."""
    problem = bound(made)
    tried = [(run_nuts(each, SHORT, seed)[1:], form, each) for form, each in forms(problem)]
    rated = {
        form: (not nuts.converged, cost.seconds / max(nuts.fewest_effective, 1e-9))
        for (nuts, cost), form, _ in tried
    }
    (_, form, best) = min(tried, key=lambda each: rated[each[1]])
    draws, nuts, cost = run_nuts(best, kept, seed + 1)
    _, effective = mixing(np.stack([*draws.values()]))
    _, spread = mixing(np.stack([(v - v.mean()) ** 2 for v in draws.values()]))
    return {
        "form": form,
        "kept": kept,
        "seconds": cost.seconds,
        "calls": cost.calls,
        "r_hat": nuts.worst_r_hat,
        "effective": nuts.fewest_effective,
        "divergences": nuts.divergences,
        "moments": {
            name: [float(v.mean()), float(v.std()), float(e), float(s)]
            for (name, v), e, s in zip(draws.items(), effective, spread, strict=True)
        },
    }


def kept_reference(
    name: str, made: Posterior, seed: int, folder: Path | None, kept: int = LONG
) -> dict[str, Any]:
    if folder is None:
        return reference(made, seed, kept)
    path = folder / f"{name}-{seed}.json"
    if not path.exists():
        path.write_text(json.dumps(reference(made, seed, kept)))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def errors(fit: Any, moments: dict[str, list[float]], worth: float) -> tuple[float, float, str]:
    """The worst error of a mean and of an sd beyond chance, and of which scalar."""
    group, found = fit.posterior["posterior"], []
    named = {name.partition("[")[0] for name in moments}
    for site in named.intersection(map(str, group.data_vars)):
        values = group[site].values.astype(float)
        values = values.reshape(values.shape[0] * values.shape[1], -1)
        for j, column in enumerate(values.T):
            name = f"{site}[{j}]"
            mean, sd, effective, spread = moments[name]
            if not sd > 0:
                continue
            draws = min(worth, len(column))
            noise = ERRORS * np.sqrt(1 / draws + 1 / effective)
            # Of an sd, by the kurtosis of the draws themselves.
            standard = (column - column.mean()) / column.std()
            kurtosis = np.sqrt((np.mean(standard**4) - 1) / 4)
            wide = ERRORS * kurtosis * np.sqrt(1 / draws + 1 / spread)
            off = abs(column.mean() - mean) / sd - noise
            scale = abs(np.log(column.std() / sd)) - wide
            found.append((max(off, scale), off, scale, name))
    _, off, scale, name = max(found)
    return max(off, 0.0), max(scale, 0.0), name


def measure(name: str, seed: int, folder: Path | None, kept: int) -> dict[str, Any]:
    made = POSTERIORS[name](np.random.default_rng(0))
    nuts = kept_reference(name, made, seed, folder, kept)
    row: dict[str, Any] = {
        "name": name, "form": nuts["form"], "nuts_r_hat": nuts["r_hat"],
        "nuts_effective": nuts["effective"], "nuts_seconds": nuts["seconds"],
    }  # fmt: skip
    problem = dict(forms(bound(made)))[nuts["form"]]
    before = price(problem, nuts, seed)
    began, wall = time.process_time(), time.perf_counter()
    try:
        fit = er.fit(made.model, made.data, seed=seed)
    except ElbowroomError as error:
        return row | {"verdict": f"refused: {error}", "seconds": time.process_time() - began}
    seconds, wall = time.process_time() - began, time.perf_counter() - wall
    call, replayed = (before + price(problem, nuts, seed)) / 2
    worth = fit.measures.get("corrected_effective_sample_size", float(fit.measures["draws"]))
    share = TUNE / (TUNE + nuts["kept"])
    calls = nuts["calls"] * (share + (1 - share) * worth / nuts["effective"])
    off, scale, worst = errors(fit, nuts["moments"], worth)
    return row | {
        "dimension": bound(made).space.dimension,
        "seconds": seconds,
        "wall": wall,
        "verdict": fit.verdict.level,
        "reason": "" if fit.verdict.trusted else fit.verdict.reasons[0],
        "guide": fit.posterior["posterior"].attrs["guide"],
        "trusted": fit.verdict.trusted,
        "mean": off,
        "sd": scale,
        "worst": worst,
        "effective": worth,
        "equal": call * calls,
        "ratio": call * calls / seconds,
        "replayed": replayed * calls / seconds,
    }


def show(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'posterior':26s}{'D':>6s}{'s':>8s}{'effective':>11s}{'mean':>7s}{'sd':>7s}  "
        f"{'verdict':26s}{'NUTS s':>8s}{'ratio':>7s}{'replayed':>9s}  NUTS"
    )
    for row in rows:
        if "trusted" not in row:
            print(f"{row['name']:26s}{'':6s}{row['seconds']:8.1f}  {row['verdict']}")
            continue
        print(
            f"{row['name']:26s}{row['dimension']:6d}{row['seconds']:8.1f}{row['effective']:11.0f}"
            f"{row['mean']:7.2f}{row['sd']:7.2f}  {row['verdict']:26s}{row['equal']:8.1f}"
            f"{row['ratio']:7.1f}{row['replayed']:9.1f}  {row['form']}, "
            f"R-hat {row['nuts_r_hat']:.3f}"
        )
    fits = [row for row in rows if "trusted" in row]
    trusted = [row for row in fits if row["trusted"]]
    right = [row for row in trusted if max(row["mean"], row["sd"]) < RIGHT]
    print(
        f"{len(right)} of {len(rows)} trusted and right, {len(trusted) - len(right)} trusted and "
        f"not right, {sum(row['ratio'] >= 10 for row in right)} of the right ones in a tenth of "
        f"the time of NUTS ({sum(row['replayed'] >= 10 for row in right)} if that is replayed)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="names, with commas between them; by default all")
    parser.add_argument("--references", type=Path, help="a folder for the long runs of NUTS")
    parser.add_argument("--kept", type=int, default=LONG, help="draws of each chain of NUTS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--list", action="store_true", help="name the posteriors and end")
    arguments = parser.parse_args()
    if arguments.list:
        for name, make in POSTERIORS.items():
            print(f"{name:26s}{make.__doc__}")
        return
    names = arguments.only.split(",") if arguments.only else list(POSTERIORS)
    unknown = [name for name in names if name not in POSTERIORS]
    if unknown:
        parser.error(f"--only: there is no posterior {', '.join(unknown)}; see --list")
    torch.set_num_threads(1)
    er.fit("bayesian_regression", "diabetes", formula="progression ~ bmi")  # pays for imports
    rows = []
    for name in names:
        rows.append(measure(name, arguments.seed, arguments.references, arguments.kept))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        if arguments.output is not None:
            arguments.output.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()

"""The price of the diagnostics: what part of a small fit's time they take.

Run `python benchmarks/price.py`; a minute on one core. Each model is fitted several times in turn,
in this process, with the clock inside each diagnostic running: `validity` (the plain model under
Pyro's and torch's validation, and posterior draws by it), `search` (candidates for more modes),
`chains` (short Markov chains from the importance draws) and `labels` (the evidence of all
labellings). The price is their processor time over that of the rest of the fit, the median of
the repetitions. A fit that another one made ready is not measured: the first of each model.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

# The checkout that the benchmark lies in, whether or not it is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import elbowroom as er
from elbowroom.density.starts import Starts
from elbowroom.draws import refining
from elbowroom.pipeline import collecting
from elbowroom.problem import bound as problem

spent: dict[str, float] = defaultdict(float)


def timed(name: str, owner: Any, attribute: str) -> None:
    """Has a function's time counted."""
    function = getattr(owner, attribute)

    def counted(*given: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return function(*given, **named)
        finally:
            spent[name] += time.process_time() - began

    setattr(owner, attribute, counted)


def regression(x: Tensor, y: Tensor) -> None:
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ slopes, sigma), obs=y)


def logistic(x: Tensor, y: Tensor) -> None:
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 2.5).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ slopes), obs=y)


def schools(y: Tensor, error: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean + spread * offset, error), obs=y)


def rate(count: Tensor) -> None:
    level = pyro.sample("level", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(count)):
        pyro.sample("count", dist.Poisson(level), obs=count)


def cases() -> list[tuple[str, Callable[..., Any], dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    y = y + torch.randn(100, generator=generator, dtype=torch.float64)
    table = er.load_dataset("eight_schools")
    effect = torch.tensor(table["effect"].to_numpy(float))
    error = torch.tensor(table["standard_error"].to_numpy(float))
    count = torch.poisson(torch.full((40,), 3.0, dtype=torch.float64), generator=generator)
    return [
        ("regression, 4 dimensions", regression, {"x": x, "y": y}),
        ("logistic, 3 dimensions", logistic, {"x": x, "y": (y > 0).double()}),
        ("eight schools, 10 dimensions", schools, {"y": effect, "error": error}),
        ("rate, 1 dimension", rate, {"count": count}),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    timed("validity", problem, "validate")
    timed("validity", collecting, "invalid_draws")
    timed("search", Starts, "unexplained")
    timed("chains", refining, "look_beyond")
    timed("labels", collecting, "of_all_labellings")
    names = ("validity", "search", "chains", "labels")
    rows = defaultdict(list)
    for repeat in range(repeats + 1):
        for name, model, data in cases():
            spent.clear()
            began = time.process_time()
            er.fit(model, data, seed=repeat)
            whole = time.process_time() - began
            if repeat:
                rest = whole - sum(spent.values())
                rows[name].append([whole, *(spent[each] / rest for each in names)])
    print(f"{'model':30s} {'fit ms':>8s} " + " ".join(f"{each:>9s}" for each in [*names, "all"]))
    for name, found in rows.items():
        seconds, *parts = [median(column) for column in zip(*found, strict=True)]
        total = median(sum(row[1:]) for row in found)
        shown = " ".join(f"{part:9.1%}" for part in [*parts, total])
        print(f"{name:30s} {1e3 * seconds:8.0f} {shown}")


if __name__ == "__main__":
    main()

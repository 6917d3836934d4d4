"""Rows a second of a regression of 10 million rows by 20 columns, by minibatches from memory.

The shared runner beside the loop that one would write by hand in torch for this model alone: both
shuffle all rows for an epoch and select a minibatch of them by their indices, in single precision.
They are timed in turn in one process on one core; what is shown are medians, and their ratio.

    python benchmarks/rows.py [--rows 10000000] [--batch 1000] [--rounds 5] [--compile]
"""

import argparse
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from elbowroom.engines.settings import Settings
from elbowroom.engines.svi.loop import run_svi
from elbowroom.guides import Start
from elbowroom.objectives.elbo import make_objective, marked
from elbowroom.pipeline.fitting import bind_model, resolve_guide
from elbowroom.problem.bound import Problem

COLUMNS = 20
RATE = 1e-3


def regression(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    """Normal priors on the coefficients, a half-Normal one on the noise."""
    b = pyro.sample("b", dist.Normal(torch.zeros(COLUMNS).to(x), 10.0).to_event(1))
    s = pyro.sample("s", dist.HalfNormal(torch.tensor(5.0).to(x)))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        rows, seen = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(rows @ b, s), obs=seen)


def by_hand(data: dict[str, Tensor], batch: int, steps: int) -> float:
    """Seconds of so many steps."""
    x, y = data["x"], data["y"]
    size, weight = COLUMNS + 1, len(y) / batch
    mean = torch.zeros(size, requires_grad=True)
    log_scale = torch.full((size,), -1.0, requires_grad=True)
    optimizer = torch.optim.Adam([mean, log_scale], lr=RATE, fused=True)

    def step(rows: Tensor) -> float:
        u = mean + log_scale.exp() * torch.randn(size)
        b, s = u[:-1], u[-1].exp()
        residual = y.index_select(0, rows) - x.index_select(0, rows) @ b
        fit = 0.5 * (residual / s).square().sum() + batch * u[-1]
        prior = 0.5 * (b / 10).square().sum() + 0.5 * (s / 5).square() - u[-1]
        loss = weight * fit + prior - log_scale.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    began = time.perf_counter()
    for number in range(steps):
        place = number * batch % (len(y) // batch * batch)
        if place == 0:
            order = torch.randperm(len(y))
        step(order[place : place + batch])
    return time.perf_counter() - began


def by_runner(problem: Problem, batch: int, steps: int, compiled: bool) -> float:
    """The same; what is done once for a run is left out, but not the first epoch's shuffling."""
    times: dict[int, float] = {}

    def seen(step: int, *_: Any) -> None:
        times[step] = time.perf_counter()

    with problem.session(0):
        guide = resolve_guide("mean_field", problem)
        called = guide.build(problem.space, Start(torch.zeros(problem.space.dimension)))
        pair = marked("trace", problem.function, called)
        objective = make_objective("trace", 1, problem.space)
        whole = steps + 200
        settings = Settings(
            learning_rate=RATE, schedule="constant", batch_size=batch, steps=whole,
            compile=compiled,
        )  # fmt: skip
        plate = problem.space.subsampled
        run_svi(*pair, problem.arguments, objective, settings, plate, progress=seen)
    first = min(step for step in times if step >= 200)
    return (times[whole] - times[first]) * steps / (whole - first)


def main() -> None:
    """Times both in turn and prints the table."""
    parser = argparse.ArgumentParser(description="Times rows.")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compiled steps too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.manual_seed(0)
    x = torch.randn(options.rows, COLUMNS)
    data = {"x": x, "y": x @ torch.linspace(-1, 1, COLUMNS) + torch.randn(options.rows)}
    problem = bind_model(regression, data, {"dtype": "float32"})[0]
    steps = options.rows // options.batch  # an epoch
    ways: dict[str, Callable[[], float]] = {
        "by hand": lambda: by_hand(data, options.batch, steps),
        "runner": lambda: by_runner(problem, options.batch, steps, False),
    }
    if options.compile:
        ways["compiled"] = lambda: by_runner(problem, options.batch, steps, True)
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, timed in ways.items():
            found[way].append(steps * options.batch / timed())
    for way, rates in found.items():
        each = [rate / other for rate, other in zip(rates, found["by hand"], strict=True)]
        print(f"{way:10s}{median(rates) / 1e6:8.2f} million rows a second{median(each):8.2f}")


if __name__ == "__main__":
    main()

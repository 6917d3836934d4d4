"""The time of one step of stochastic variational inference, beside hand-written torch and Pyro.

Each case is one model with one guide: the shared runner as users run it, Pyro's `SVI.step` on the
same model and guide, and the loop that one would write by hand in torch for this model alone, with
its log density simplified on paper and torch's fused Adam; with `--compile`, the runner's compiled
steps too; and NumPyro and PyMC where they are installed. All are timed in turn in one process on
one core; what is shown are medians, and the runner's ratios to the loop by hand.

    python benchmarks/steps.py [--rounds 5] [--compile]
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import peers
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from elbowroom.engines.settings import Settings
from elbowroom.engines.svi.loop import run_svi
from elbowroom.guides import Start
from elbowroom.objectives.elbo import make_objective, marked
from elbowroom.pipeline.fitting import bind_model, resolve_guide
from elbowroom.problem.bound import Problem

RATE = 1e-3
BEFORE = 1000
"""Steps of a run that are not timed: in the first of them it is looked at more often."""


@dataclass(frozen=True)
class Case:
    """A model with a guide.

    Attributes:
        name: In the table.
        steps: Timed at a time.
        hand: Makes a step written by hand.
        problem: The model bound to its data.
        guide: The guide.
        objective: The name of its ELBO.
        size: Rows of a minibatch.
        others: By library, what makes a run of it.
    """

    name: str
    steps: int
    hand: Callable[[], Callable[[], float]]
    problem: Problem
    guide: Any
    objective: str = "trace"
    size: int | None = None
    others: dict[str, Callable[[], peers.Run]] = field(default_factory=dict)


def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=RATE, fused=True)


def stepped(loss_of: Callable[[], Tensor], parameters: list[Tensor]) -> Callable[[], float]:
    """The loop that one writes by hand."""
    optimizer = adam(parameters)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


# A regression with 434 rows and four coefficients.

ROWS = 434


def regression(x: Tensor, y: Tensor) -> None:
    """Normal priors on the coefficients, a half-Normal one on the noise."""
    b = pyro.sample("b", dist.Normal(torch.zeros(4).to(x), 10.0).to_event(1))
    s = pyro.sample("s", dist.HalfNormal(torch.tensor(5.0).to(x)))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ b, s), obs=y)


def regression_data() -> dict[str, Tensor]:
    random = np.random.default_rng(0)
    x = np.concatenate([np.ones((ROWS, 1)), random.normal(size=(ROWS, 3))], axis=1)
    y = x @ [1.0, 2.0, -1.0, 0.5] + random.normal(size=ROWS)
    return {"x": torch.tensor(x), "y": torch.tensor(y)}


def log_joint(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    """Of the regression, up to its constant."""
    b, s = u[:4], u[4].exp()
    fit = -0.5 * ((y - x @ b) / s).square().sum() - ROWS * u[4]
    return fit - 0.5 * (b / 10).square().sum() - 0.5 * (s / 5).square() + u[4]


def mean_field_by_hand() -> Callable[[], float]:
    data = regression_data()
    mean = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    log_scale = torch.full((5,), -1.0, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        u = mean + log_scale.exp() * torch.randn(5, dtype=torch.float64)
        return -log_joint(data["x"], data["y"], u) - log_scale.sum()

    return stepped(loss, [mean, log_scale])


def full_rank_by_hand() -> Callable[[], float]:
    data = regression_data()
    mean = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    log_diagonal = torch.full((5,), -1.0, dtype=torch.float64, requires_grad=True)
    below = torch.zeros(5, 5, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        factor = below.tril(-1) + log_diagonal.exp().diag()
        u = mean + factor @ torch.randn(5, dtype=torch.float64)
        return -log_joint(data["x"], data["y"], u) - log_diagonal.sum()

    return stepped(loss, [mean, log_diagonal, below])


# A mixture of three Normals of 10,000 rows and four columns.

COMPONENTS = 3


@config_enumerate
def mixture(x: Tensor) -> None:
    """Independent columns within a component."""
    size = x.shape[1]
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(COMPONENTS).to(x)))
    with pyro.plate("components", COMPONENTS):
        means = pyro.sample("means", dist.Normal(torch.zeros(size).to(x), 5.0).to_event(1))
        scales = pyro.sample("scales", dist.LogNormal(torch.zeros(size).to(x), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        kind = pyro.sample("kind", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(means[kind], scales[kind]).to_event(1), obs=x)


def mixture_data() -> dict[str, Tensor]:
    random = np.random.default_rng(1)
    centres = random.normal(size=(COMPONENTS, 4)) * 3
    kinds = random.integers(COMPONENTS, size=10_000)
    return {"x": torch.tensor(centres[kinds] + random.normal(size=(10_000, 4)))}


def mixture_by_hand() -> Callable[[], float]:
    x = mixture_data()["x"]
    sizes = (2, COMPONENTS * 4, COMPONENTS * 4)
    mean = torch.randn(sum(sizes), dtype=torch.float64, requires_grad=True)
    log_scale = torch.full((sum(sizes),), -1.0, dtype=torch.float64, requires_grad=True)
    stick = torch.distributions.biject_to(torch.distributions.constraints.simplex)

    def loss() -> Tensor:
        u = mean + log_scale.exp() * torch.randn(sum(sizes), dtype=torch.float64)
        z, means, log_scales = u.split(sizes)
        weights = stick(z)
        jacobian = stick.log_abs_det_jacobian(z, weights)
        means, log_scales = means.view(COMPONENTS, 4), log_scales.view(COMPONENTS, 4)
        prior = -0.5 * (means / 5).square().sum() - 0.5 * log_scales.square().sum()
        standard = (x[:, None] - means) * (-log_scales).exp()
        each = -0.5 * standard.square().sum(-1) - log_scales.sum(-1) + weights.log()
        return -(each.logsumexp(-1).sum() + prior + jacobian) - log_scale.sum()

    return stepped(loss, [mean, log_scale])


# A network with posterior weights: 8 inputs, 50 hidden units, 1,000 rows.

INPUTS, HIDDEN, POINTS = 8, 50, 1000


def network(x: Tensor, y: Tensor) -> None:
    """One hidden layer, standard Normal weights, unit noise."""
    shapes = (INPUTS + 1, HIDDEN), (HIDDEN + 1,)
    priors = [dist.Normal(torch.zeros(shape).to(x), 1.0).to_event(len(shape)) for shape in shapes]
    first, second = pyro.sample("first", priors[0]), pyro.sample("second", priors[1])
    hidden = torch.tanh(x @ first[:-1] + first[-1])
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(hidden @ second[:-1] + second[-1], 1.0), obs=y)


def network_data() -> dict[str, Tensor]:
    random = np.random.default_rng(2)
    x = random.normal(size=(POINTS, INPUTS))
    return {"x": torch.tensor(x), "y": torch.tensor(np.sin(x[:, 0]) + random.normal(size=POINTS))}


def network_by_hand() -> Callable[[], float]:
    data, count = network_data(), (INPUTS + 1) * HIDDEN + HIDDEN + 1
    x, y = data["x"], data["y"]
    mean = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    log_scale = torch.full((count,), -1.0, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        w = mean + log_scale.exp() * torch.randn(count, dtype=torch.float64)
        first, second = w.split(((INPUTS + 1) * HIDDEN, HIDDEN + 1))
        first = first.view(INPUTS + 1, HIDDEN)
        hidden = torch.tanh(torch.addmm(first[-1], x, first[:-1]))
        residual = y - hidden @ second[:-1] - second[-1]
        return 0.5 * residual.square().sum() + 0.5 * w.square().sum() - log_scale.sum()

    return stepped(loss, [mean, log_scale])


# A variational autoencoder of 784 binary pixels, 400 hidden units and 50 latents.

PIXELS, UNITS, LATENTS, IMAGES, BATCH = 784, 400, 50, 10_000, 256


class Networks(nn.Module):
    """Encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(PIXELS, UNITS), nn.Softplus(), nn.Linear(UNITS, 2 * LATENTS)
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENTS, UNITS), nn.Softplus(), nn.Linear(UNITS, PIXELS)
        )


def vae_data() -> dict[str, Tensor]:
    random = np.random.default_rng(3)
    return {"x": torch.tensor((random.uniform(size=(IMAGES, PIXELS)) < 0.13).astype("float32"))}


def vae() -> tuple[Callable[..., Any], Callable[..., Any]]:
    networks = Networks()

    def model(x: Tensor, batch_size: int | None = None) -> None:
        pyro.module("networks", networks)
        with pyro.plate("rows", len(x), subsample_size=batch_size):
            batch = pyro.subsample(x, event_dim=1)
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
            logits = networks.decoder(z)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=batch)

    def guide(x: Tensor, batch_size: int | None = None) -> None:
        pyro.module("networks", networks)
        with pyro.plate("rows", len(x), subsample_size=batch_size):
            mean, raw = networks.encoder(pyro.subsample(x, event_dim=1)).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(mean, softplus(raw)).to_event(1))

    return model, guide


def vae_by_hand() -> Callable[[], float]:
    networks, x = Networks(), vae_data()["x"]
    weight = IMAGES / BATCH

    def loss() -> Tensor:
        batch = x[torch.randint(IMAGES, (BATCH,))]
        mean, raw = networks.encoder(batch).chunk(2, dim=-1)
        scale = softplus(raw)
        logits = networks.decoder(mean + scale * torch.randn_like(scale))
        fit = binary_cross_entropy_with_logits(logits, batch, reduction="sum")
        divergence = 0.5 * (mean.square() + scale.square() - 1).sum() - scale.log().sum()
        return weight * (fit + divergence)

    return stepped(loss, list(networks.parameters()))


def cases() -> list[Case]:
    """All of them."""
    bound = {
        name: bind_model(model, data, {})[0]
        for name, model, data in (
            ("regression", regression, regression_data()),
            ("mixture", mixture, mixture_data()),
            ("network", network, network_data()),
        )
    }
    model, guide = vae()
    own = bind_model(model, vae_data(), {"dtype": "float32"})[0]

    def both(kind: str, data: dict[str, Tensor], option: Any) -> dict[str, Any]:
        return {
            library: partial(getattr(peers, f"{library.lower()}_{kind}"), data, RATE, option)
            for library in ("NumPyro", "PyMC")
        }

    return [
        Case("regression 434 x 4, mean_field", 1000, mean_field_by_hand,
             bound["regression"], "mean_field",
             others=both("regression", regression_data(), "mean_field")),
        Case("regression 434 x 4, full_rank", 1000, full_rank_by_hand,
             bound["regression"], "full_rank",
             others=both("regression", regression_data(), "full_rank")),
        Case("mixture 10,000 x 4, mean_field", 100, mixture_by_hand,
             bound["mixture"], "mean_field", "trace_enum",
             others=both("mixture", mixture_data(), COMPONENTS)),
        Case("network 8-50-1, 1,000 rows, mean_field", 300, network_by_hand,
             bound["network"], "mean_field", "trace_mean_field",
             others=both("network", network_data(), HIDDEN)),
        Case("VAE 784-400-50, batch of 256", 2 * (IMAGES // BATCH), vae_by_hand,
             own, guide, "trace_mean_field", BATCH,
             {"NumPyro": partial(peers.numpyro_vae, vae_data(), RATE, (UNITS, LATENTS), BATCH)}),
    ]  # fmt: skip


def seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def by_hand(case: Case) -> float:
    """Seconds for each step of the loop by hand."""
    step = case.hand()
    for _ in range(5):
        step()
    return seconds(lambda: [step() for _ in range(case.steps)]) / case.steps


def pair_of(case: Case) -> tuple[Callable[..., Any], Callable[..., Any]]:
    guide = resolve_guide(case.guide, case.problem)
    called = guide.build(case.problem.space, Start(torch.zeros(case.problem.space.dimension)))
    return marked(case.objective, case.problem.function, called)


def by_pyro(case: Case) -> float:
    """Seconds for each of Pyro's own."""
    kinds = {
        "trace": Trace_ELBO,
        "trace_enum": TraceEnum_ELBO,
        "trace_mean_field": TraceMeanField_ELBO,
    }
    problem = case.problem
    with problem.session(0):
        elbo = kinds[case.objective](max_plate_nesting=problem.space.max_plate_nesting)
        svi = SVI(*pair_of(case), pyro.optim.Adam({"lr": RATE}), elbo)
        extra = {} if case.size is None else {"batch_size": case.size}

        def step() -> None:
            svi.step(**problem.arguments, **extra)

        for _ in range(5):
            step()
        return seconds(lambda: [step() for _ in range(case.steps)]) / case.steps


def by_runner(case: Case, compiled: bool = False) -> float:
    """Seconds for each step of the shared runner, whatever it does once for a run left out."""
    problem, times = case.problem, {}

    def seen(step: int, *_: Any) -> None:
        times[step] = time.perf_counter()

    # The run is looked at every 200 steps, which is a part of them.
    steps = 200 * max(1, case.steps // 200) * (10 if compiled and case.size is None else 1)
    settings = Settings(
        learning_rate=RATE, schedule="constant", batch_size=case.size, steps=BEFORE + steps,
        compile=compiled,
    )  # fmt: skip
    with problem.session(0):
        pair = pair_of(case)
        objective = make_objective(case.objective, 1, problem.space)
        plate = problem.space.subsampled
        trained = run_svi(*pair, problem.arguments, objective, settings, plate, progress=seen)
    assert trained.uncompiled is None, trained.uncompiled
    first = min(step for step in times if step >= BEFORE)
    return (times[BEFORE + steps] - times[first]) / (BEFORE + steps - first)


def by_peer(library: str) -> Callable[[Case], float]:
    """Seconds for each step of another library; compiled once for all rounds."""
    runs: dict[str, peers.Run] = {}

    def timed(case: Case) -> float:
        if library not in case.others:
            return float("nan")
        steps = case.steps if case.size is not None else max(case.steps, 10 * peers.CHUNK)
        if case.name not in runs:
            runs[case.name] = case.others[library]()
            runs[case.name](case.steps)
        return seconds(lambda: runs[case.name](steps)) / steps

    return timed


def main() -> None:
    """Times all cases in turn and prints the table."""
    parser = argparse.ArgumentParser(description="Times a step.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compiled steps too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    ways: dict[str, Callable[[Case], float]] = {
        "by hand": by_hand, "Pyro": by_pyro, "runner": by_runner,
    }  # fmt: skip
    if options.compile:
        ways["compiled"] = partial(by_runner, compiled=True)
    for library in ("NumPyro", "PyMC"):
        if peers.installed(library.lower()):
            ways[library] = by_peer(library)
    ratios = [way for way in ("runner", "compiled") if way in ways]
    print(f"{'ms a step':40s}" + "".join(f"{way:>10s}" for way in [*ways, *ratios]))
    for case in cases():
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, timed in ways.items():
                found[way].append(1e3 * timed(case))
        line = "".join(f"{median(times):10.4f}" for times in found.values())
        for way in ratios:
            each = (a / b for a, b in zip(found[way], found["by hand"], strict=True))
            line += f"{f'x {median(each):.2f}':>10s}"
        print(f"{case.name:40s}{line}", flush=True)


if __name__ == "__main__":
    main()

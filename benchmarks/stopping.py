"""How often a stochastic fit stops too early, and how often it never says that it is done.

Run `python benchmarks/stopping.py`; about half an hour on one core.

Each model and guide is fitted with the defaults from several seeds. Where it should have ended is
known from outside the runner:

- `mean_field` and `full_rank`: the optimum of the deterministic engine over 4,096 fixed draws, as
  mean and covariance in unconstrained coordinates.
- `map`: the mode, by the same search.
- Guides of amortised models: the ELBO of rows that no fit has seen, beside that of the same run
  with four times the patience.

`off` is the largest distance of a mean from the reference, in standard deviations, or
of the logarithms of the standard deviations; `false stop` is a run that says "converged" and is off
by more than 0.3 (three tolerances), or whose held-out ELBO is lower by more than 0.1 nats a row;
`never` is one that reached the budget. Runs that are still on their way (`--steps 300` from afar)
are in the table too: every one of them must end as "budget".
"""

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.result import Fit

DRAWS = 4000
OFF, NATS = 0.3, 0.1


def random_table(rows: int, columns: int, correlation: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    shared = random.normal(size=(rows, 1))
    own = random.normal(size=(rows, columns))
    return correlation**0.5 * shared + (1 - correlation) ** 0.5 * own


def logistic(x: Tensor, y: Tensor) -> None:
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 2.5).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ slopes), obs=y)


def unscaled(x: Tensor, y: Tensor) -> None:
    """A regression whose columns differ in scale by a million."""
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 1e4).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.tensor(10.0)))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x @ slopes, sigma), obs=y)


def schools(effect: Tensor, error: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("school", len(effect)):
        offset = pyro.sample("offset", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("effect", dist.Normal(mean + spread * offset, error), obs=effect)


def poisson(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    """By minibatches of 100 of 2,000 rows."""
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        rows = pyro.subsample(x, event_dim=1)
        counts = pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Poisson((rows @ slopes).exp()), obs=counts)


def random_walk(y: Tensor) -> None:
    """A level for each of a hundred steps: a hundred and one correlated latents."""
    noise = pyro.sample("noise", dist.HalfNormal(torch.tensor(1.0)))
    steps = pyro.sample("steps", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(0.3 * steps.cumsum(-1), noise), obs=y)


@dataclass(frozen=True)
class Case:
    name: str
    model: Any
    data: Any
    guides: tuple[str, ...]
    options: dict[str, Any]


def cases() -> list[Case]:
    random = np.random.default_rng(1)
    x = random_table(300, 6, 0.5)
    chosen = random.random(300) < 1 / (1 + np.exp(-x @ np.linspace(-1, 1, 6)))
    scales = np.array([1e-3, 1.0, 1e3])
    wide = random.normal(size=(200, 3)) * scales
    y = wide @ (1 / scales) + random.normal(size=200)
    counted = random_table(2000, 4, 0.3, 2)
    counts = random.poisson(np.exp(counted @ [0.5, -0.5, 0.2, 0.0]))
    walk = np.cumsum(0.3 * random.normal(size=100)) + 0.5 * random.normal(size=100)
    effects = {"effect": [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0],
               "error": [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]}  # fmt: skip

    def tensors(**arrays: Any) -> dict[str, Tensor]:
        return {name: torch.as_tensor(np.asarray(a, dtype=float)) for name, a in arrays.items()}

    both = ("mean_field", "full_rank")
    return [
        Case("bayesian_regression", "bayesian_regression", None, (*both, "map"), {}),
        Case("gaussian_mixture, 2", "gaussian_mixture", None, ("mean_field",), {"components": 2}),
        Case("logistic 300 x 6", logistic, tensors(x=x, y=chosen), both, {}),
        Case("unscaled regression", unscaled, tensors(x=wide, y=y), both, {}),
        Case("eight schools", schools, tensors(**effects), both, {}),
        Case("poisson, minibatches", poisson, tensors(x=counted, y=counts), both,
             {"batch_size": 100}),
        Case("random walk, 101 latents", random_walk, tensors(y=walk), both, {}),
    ]  # fmt: skip


def moments(fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every latent in unconstrained coordinates."""
    drawn = fit.draw(DRAWS, seed=7).sites
    columns = [
        site.transform.inv(drawn[site.name].double()).reshape(DRAWS, -1)
        for site in fit.problem.space.sites
    ]
    flat = torch.cat(columns, 1).numpy()
    return flat.mean(0), flat.std(0)


def off(fit: Fit, reference: tuple[np.ndarray, np.ndarray], scale: np.ndarray) -> float:
    """The largest distance from the reference, less what the draws' own error may be."""
    mean, sd = moments(fit)
    shift = np.abs(mean - reference[0]) / scale
    spread = sd > 1e-9 * reference[1]  # a point has none
    ratio = np.abs(np.log(sd / reference[1])) if spread.all() else np.zeros(1)
    return float(max(shift.max(), ratio.max()))


def run(case: Case, guide: str, seeds: int, steps: int | None) -> dict[str, Any]:
    exact = {k: v for k, v in case.options.items() if k != "batch_size"}
    engine: dict[str, Any] = {} if guide == "map" else {"fixed_draws": 4096}
    if guide == "map":
        reference = er.fit(case.model, case.data, "laplace", seed=100, **exact)
    else:
        reference = er.fit(
            case.model, case.data, guide, engine="fixed_draws", seed=100, **exact, **engine
        )
    centre = moments(reference)
    results = []
    for seed in range(seeds):
        extra = {} if steps is None else {"steps": steps}
        fit = er.fit(
            case.model, case.data, guide, engine="svi", seed=seed, draws=200, **case.options,
            **extra,
        )  # fmt: skip
        distance = off(fit, centre, centre[1])
        results.append((fit.trained.status, distance, len(fit.elbo_history), fit.trained.seconds))
    status = [each[0] for each in results]
    distances = np.array([each[1] for each in results])
    converged = np.array([each == "converged" for each in status])
    return {
        "model": case.name, "guide": guide, "runs": seeds, "steps allowed": steps or "default",
        "false stops": int((converged & (distances > OFF)).sum()),
        "never": int((~converged).sum()),
        "off, median": round(float(np.median(distances)), 3),
        "off, worst": round(float(distances.max()), 3),
        "steps": int(np.median([each[2] for each in results])),
        "seconds": round(float(np.median([each[3] for each in results])), 1),
    }  # fmt: skip


def amortised(seeds: int) -> dict[str, Any]:
    """The VAE on digits, of which a fifth of the rows is in no fit."""
    digits = er.load_dataset("digits")
    order = np.random.default_rng(0).permutation(len(digits))
    unseen, seen = digits.iloc[order[:360]], digits.iloc[order[360:]]
    unseen.attrs = seen.attrs = digits.attrs

    def bound(fit: Fit) -> float:
        return fit.elbo(unseen, draws=100)[0] / len(unseen)

    results = [er.fit("vae", seen, "encoder", seed=seed) for seed in range(seeds)]
    patient = [
        er.fit("vae", seen, "encoder", seed=seed, patience=40, steps=200_000)
        for seed in range(seeds)
    ]
    lacking = np.array([bound(b) - bound(a) for a, b in zip(results, patient, strict=True)])
    converged = np.array([fit.trained.status == "converged" for fit in results])
    return {
        "model": "vae, digits", "guide": "encoder", "runs": seeds, "steps allowed": "default",
        "false stops": int((converged & (lacking > NATS)).sum()),
        "never": int((~converged).sum()),
        "off, median": round(float(np.median(lacking)), 3),
        "off, worst": round(float(lacking.max()), 3),
        "steps": int(np.median([len(fit.elbo_history) for fit in results])),
        "seconds": round(float(np.median([fit.trained.seconds for fit in results])), 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="False stops and fits that never stop.")
    parser.add_argument("--output", type=Path, help="where to write the table, as JSON")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="a part of the models' names")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    rows: list[dict[str, Any]] = []

    def add(make: Callable[[], dict[str, Any]]) -> None:
        rows.append(make())
        print(rows[-1], flush=True)

    for case in cases():
        if options.only and options.only not in case.name:
            continue
        for guide in case.guides:
            add(lambda case=case, guide=guide: run(case, guide, options.seeds, None))
    if not options.only or options.only in "vae, digits":
        add(lambda: amortised(options.seeds))
    print(pd.DataFrame(rows).to_string(index=False))
    if options.output is not None:
        options.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

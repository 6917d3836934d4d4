"""VAE and IWAE on images of 28 x 28 pixels, beside an equal VAE in plain torch.

Run `python benchmarks/vae_mnist.py t10k-images-idx3-ubyte.gz --output vae_mnist.json`; about an
hour on one core, nearly all of it for the importance-weighted one.

The first 8,000 images of an IDX file are learned from, and the next 2,000 held out, whose pixels
are drawn as ink or paper once (Burda, Grosse and Salakhutdinov, 2016, "Importance weighted
autoencoders"); those that are learned from are drawn anew at each step. All networks are
784-200-200-50 with tanh units, and all fits have Adam, minibatches of 100, as many epochs, the same
seeds, and a rate that falls as a cosine: at a constant one the last steps alone move the held-out
bound by half a nat up or down.

1. `torch`: a loop by hand, nothing of Elbowroom in it.
2. `vae`: `er.fit("vae", ...)` with the same settings.
3. `iwae`: the same with `elbo="iwae"` and 50 draws of each row.

`bound` is minus the ELBO of a held-out image in nats, from 100 draws; `nll` is minus the log
density by importance sampling with 5,000 draws of each image, as the paper has it; lower is better.
Of the `vae` it is taken where there is an `iwae` beside it. `--only torch vae --seeds 8` compares
these two, which differ from seed to seed by a third of a nat; `vae_same_noise.py` does so
on the same random numbers.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

# The checkout that the benchmark lies in, whether or not it is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import elbowroom as er
from elbowroom.data.tables import read_table

TRAINING_ROWS, HELD_OUT_ROWS = 8000, 2000
LATENT, HIDDEN, BATCH = 50, 200, 100
DRAWS, MANY = 100, 5000


def network(inputs: int, outputs: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, HIDDEN), torch.nn.Tanh(),
        torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.Tanh(),
        torch.nn.Linear(HIDDEN, outputs),
    )  # fmt: skip


class TorchVAE(torch.nn.Module):
    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.encode, self.decode = network(pixels, 2 * LATENT), network(LATENT, pixels)

    def bound(self, x: Tensor) -> Tensor:
        """Minus the ELBO of each row, with the divergence in closed form."""
        location, log_scale = self.encode(x).chunk(2, -1)
        z = location + log_scale.exp() * torch.randn_like(location)
        distortion = binary_cross_entropy_with_logits(self.decode(z), x, reduction="none").sum(-1)
        rate = 0.5 * (location**2 + (2 * log_scale).exp() - 1) - log_scale
        return distortion + rate.sum(-1)


def by_hand(shares: Tensor, held_out: Tensor, epochs: int, seed: int, rate: float) -> dict:
    began = time.perf_counter()
    torch.manual_seed(seed)
    model = TorchVAE(shares.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(shares) // BATCH)
    for _ in range(epochs):
        for rows in torch.randperm(len(shares)).split(BATCH):
            batch = shares[rows]
            x = (torch.rand_like(batch) < batch).to(batch)
            optimizer.zero_grad()
            model.bound(x).mean().backward()
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        bounds = torch.stack([model.bound(held_out).mean() for _ in range(DRAWS)])
    return {"bound": float(bounds.mean()), "seconds": seconds}


def by_elbowroom(train: Any, test: Any, settings: dict[str, Any], scored: bool) -> dict[str, float]:
    fit = er.fit(
        "vae", train, guide="encoder", latent=LATENT, hidden=(HIDDEN, HIDDEN), activation="tanh",
        binarise="dynamic", batch_size=BATCH, schedule="cosine", draws=100, device="cpu",
        **settings,
    )  # fmt: skip
    found = {
        "bound": -float(fit.elbo(test, draws=DRAWS)[0]) / len(test),
        "seconds": fit.diagnostics["seconds"],
    }
    if not scored:
        return found
    rows = fit.score(test, draws=MANY)
    return {
        **found,
        "nll": -float(rows["log_density"].mean()),
        "nll_se": float(np.hypot.reduce(rows["standard_error"]) / len(test)),
        "effective": float(rows["effective_sample_size"].median()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="VAE and IWAE on MNIST beside plain torch.")
    parser.add_argument("images", help="an IDX file with 10,000 images or more")
    parser.add_argument("--output", type=Path, help="where to write the numbers, as JSON")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--particles", type=int, default=50)
    parser.add_argument("--only", nargs="+", default=["torch", "vae", "iwae"])
    options = parser.parse_args()

    torch.set_num_threads(1)
    table = read_table(options.images)
    train = table.iloc[:TRAINING_ROWS]
    test = table.iloc[TRAINING_ROWS : TRAINING_ROWS + HELD_OUT_ROWS]
    given = {"epochs": options.epochs, "learning_rate": options.learning_rate}
    quick = er.fit("vae", train, binarise="dynamic", steps=1, draws=100, hidden=(1,), device="cpu")
    shares = torch.as_tensor(train.filter(like="pixel").to_numpy() / 255, dtype=torch.float32)
    held_out = quick.problem.new_arguments(test)[0]["x"]

    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        methods = {
            "torch": lambda s=seed: by_hand(
                shares, held_out, options.epochs, s, options.learning_rate
            ),
            "vae": lambda s=seed: by_elbowroom(
                train, test, {**given, "seed": s}, "iwae" in options.only
            ),
            "iwae": lambda s=seed: by_elbowroom(
                train, test,
                {**given, "seed": s, "elbo": "iwae", "particles": options.particles}, True,
            ),
        }  # fmt: skip
        for name in options.only:
            rows.append({"method": name, "seed": seed, **methods[name]()})
            print(
                "  ".join(
                    f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in rows[-1].items()
                ),
                flush=True,
            )
            if options.output is not None:
                options.output.write_text(json.dumps({**given, "rows": rows}, indent=1) + "\n")

    def average(method: str, key: str) -> float:
        return mean(row[key] for row in rows if row["method"] == method)

    if {"torch", "vae"} <= set(options.only):
        ours, theirs = (
            np.array([row["bound"] for row in rows if row["method"] == name])
            for name in ("vae", "torch")
        )
        error = np.hypot(ours.std(ddof=1), theirs.std(ddof=1)) / len(ours) ** 0.5
        print(f"bound, vae - torch: {ours.mean() - theirs.mean():+.3f}, standard error {error:.3f}")
    if {"vae", "iwae"} <= set(options.only):
        print(f"nll, iwae - vae: {average('iwae', 'nll') - average('vae', 'nll'):+.3f}")


if __name__ == "__main__":
    main()

"""Held-out nats per image of `vae` on the bundled digits, beside an equal VAE in plain torch.

Run `python benchmarks/vae_digits.py --output vae_digits.json`; about ten minutes on one core.

The 1,797 images are split once into 1,437 training and 360 held-out rows. Every method gives a row
a negative log likelihood in nats, or an upper bound on it, under Bernoulli pixels whose grey values
are taken as probabilities; lower is better. With such targets even a perfect reconstruction costs
the entropy of the grey values, the `floor` of the table, so only differences mean something.

1. `independent pixels`: each pixel its own rate, the training rows' mean with one added to the ink
   and one to the paper.
2. `pca`: scikit-learn's principal components of the training pixels, as many as the VAE has
   latents, read as probabilistic PCA (Tipping and Bishop, 1999) with Bernoulli pixels. For a noise
   variance t and v_k the variance of the training scores, the prior of z_k is Normal(0, v_k - t),
   components with v_k < t dropping out; the code of a row with scores s_k is
   Normal(s_k (v_k - t) / v_k, t (v_k - t) / v_k); the rate of pixel j is
   clip(mean_j + sum_k z_k w_kj, eps, 1 - eps). Distortion is the expected cross-entropy of the row
   under its code, rate is KL(code || prior), and their sum is a true bound for this model, as the
   VAEs' is for theirs. eps and t are the best on a grid, by the same sum over the training rows.
3. `torch`: a VAE in torch alone. Softplus units, encoder 64-200-2d, decoder d-200-64,
   `torch.nn.Linear`'s initial weights, analytic KL, Adam, shuffled minibatches with the last
   incomplete one left out, float32.
4. `elbowroom`: `er.fit("vae", train, guide="encoder")` with the same rate, schedule, epochs and
   batch as 3.
5. `elbowroom, as suggested`: the same with the settings that the model suggests, stopped by rows
   held out of the training rows.

3, 4 and 5 are evaluated alike, by the mean over `DRAWS` draws of log p(x, z) - log q(z | x), and
run in turn for each seed, so that a busy machine slows all. `seconds` are those of the optimiser;
`whole` adds what else `er.fit` does: checks, posterior draws and diagnostics. Method 3 has no more.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

# The checkout that the benchmark lies in, whether or not it is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import elbowroom as er
from elbowroom.engines.settings import Settings
from elbowroom.problem.bound import resolve_model

TRAINING_ROWS = 1437
HIDDEN = 200
EPOCHS = 600
DRAWS = 500
TOLERANCE = 0.01
"""The largest difference from torch that passes, as a share of torch's nats per image."""


def cross_entropy(x: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Of each row's pixels under Bernoulli rates, in nats, (..., rows)."""
    return -(x * np.log(rates) + (1 - x) * np.log1p(-rates)).sum(-1)


def independent_pixels(train: np.ndarray, test: np.ndarray) -> float:
    rates = (train.sum(0) + 1) / (len(train) + 2)
    return float(cross_entropy(test, rates).mean())


def pca(train: np.ndarray, test: np.ndarray, latent: int, draws: int = 100) -> tuple[float, float]:
    """Distortion and rate of the held-out rows, in nats per image."""
    fitted = PCA(latent).fit(train)

    def bound(x: np.ndarray, noise: float, clip: float, draws: int) -> tuple[float, float]:
        kept = fitted.explained_variance_ > noise
        ratio = noise / fitted.explained_variance_[kept]  # of the code's variance to the prior's
        prior = fitted.explained_variance_[kept] - noise
        location, variance = fitted.transform(x)[:, kept] * (1 - ratio), prior * ratio
        rate = 0.5 * (ratio + location**2 / prior - 1 - np.log(ratio)).sum(1).mean()
        normal = np.random.default_rng(0).standard_normal((draws, *location.shape))
        z = location + np.sqrt(variance) * normal  # (draws, rows, kept)
        rates = np.clip(z @ fitted.components_[kept] + fitted.mean_, clip, 1 - clip)
        return float(cross_entropy(x, rates).mean()), float(rate)

    grid = itertools.product(np.geomspace(0.02, 2, 13), np.geomspace(1e-4, 0.1, 13))
    best = min(grid, key=lambda setting: sum(bound(train, *setting, draws=4)))
    return bound(test, *best, draws=draws)


class TorchVAE(torch.nn.Module):
    def __init__(self, pixels: int, latent: int) -> None:
        super().__init__()
        self.encode = torch.nn.ModuleList(
            [torch.nn.Linear(pixels, HIDDEN), torch.nn.Linear(HIDDEN, 2 * latent)]
        )
        self.decode = torch.nn.ModuleList(
            [torch.nn.Linear(latent, HIDDEN), torch.nn.Linear(HIDDEN, pixels)]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A draw z, its code's location and log scale, and the cross-entropy of each row."""
        encoded = self.encode[1](softplus(self.encode[0](x)))
        location, log_scale = encoded.chunk(2, -1)  # (rows, latent) each
        z = location + log_scale.exp() * torch.randn_like(location)
        logits = self.decode[1](softplus(self.decode[0](z)))  # (rows, pixels)
        distortion = binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        return z, location, log_scale, distortion

    def loss(self, x: Tensor) -> Tensor:
        _, location, log_scale, distortion = self(x)
        rate = 0.5 * (location**2 + (2 * log_scale).exp() - 1) - log_scale
        return distortion.mean() + rate.sum(-1).mean()

    @torch.no_grad()
    def held_out(self, x: Tensor) -> float:
        total = 0.0
        for _ in range(DRAWS):
            z, location, log_scale, distortion = self(x)
            log_ratio = 0.5 * ((z - location) / log_scale.exp()) ** 2 + log_scale - 0.5 * z**2
            total += float((distortion - log_ratio.sum(-1)).mean())
        return total / DRAWS


def fit_torch(x: Tensor, latent: int, seed: int, settings: Settings) -> tuple[TorchVAE, float]:
    """The fitted model and the seconds it took."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    model = TorchVAE(x.shape[1], latent)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    size = settings.batch_size
    steps = settings.epochs * (len(x) // size)
    scheduler = None
    if settings.schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(x)).split(size):
            if len(rows) < size:
                continue
            optimizer.zero_grad()
            model.loss(x[rows]).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
    return model, time.perf_counter() - began


def main() -> None:
    suggested = dict(resolve_model("vae").suggested)
    suggested.pop("draws", None)
    usual = Settings(**suggested)
    parser = argparse.ArgumentParser(description="VAE on digits: Elbowroom beside plain torch.")
    parser.add_argument("--output", type=Path, help="where to write the numbers, as JSON")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--latent", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--schedule", choices=["constant", "cosine"], default="cosine")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--learning-rate", type=float, default=usual.learning_rate)
    options = parser.parse_args()
    names = ("schedule", "epochs", "learning_rate")
    equal = {**suggested, **{name: getattr(options, name) for name in names}}
    settings = Settings(**equal)

    torch.set_num_threads(1)
    table = er.load_dataset("digits")
    order = np.random.default_rng(0).permutation(len(table))
    train, test = table.iloc[order[:TRAINING_ROWS]], table.iloc[order[TRAINING_ROWS:]]
    pixels = [name for name in table.columns if name.startswith("pixel")]
    x, new = (part[pixels].to_numpy() / 16 for part in (train, test))
    x32, new32 = (torch.tensor(part, dtype=torch.float32) for part in (x, new))
    floor = float(cross_entropy(new, np.clip(new, 1e-12, 1 - 1e-12)).mean())

    def run_torch(latent: int, seed: int) -> dict[str, float]:
        model, seconds = fit_torch(x32, latent, seed, settings)
        return {"nats": model.held_out(new32), "seconds": seconds, "whole": seconds}

    def run_elbowroom(latent: int, seed: int, **given: object) -> dict[str, float]:
        began = time.perf_counter()
        fit = er.fit("vae", train, guide="encoder", latent=latent, seed=seed, device="cpu", **given)
        whole = time.perf_counter() - began
        elbo, _ = fit.elbo(test, draws=DRAWS)
        return {"nats": -elbo / len(test), "seconds": fit.diagnostics["seconds"], "whole": whole}

    methods = {
        "torch": run_torch,
        "elbowroom": lambda latent, seed: run_elbowroom(latent, seed, **equal),
    }
    if settings != usual:
        methods["elbowroom, as suggested"] = run_elbowroom
    run_elbowroom(2, 0, epochs=2)  # what is done once in a process is in no method's seconds

    print(f"Held-out nats per image, lower is better; {len(x)} training rows, {len(new)} held out.")
    print(f"{settings}\n")
    print(f"{'method':<26}{'latent':>6}{'nats':>9}{'sd':>8}{'seconds':>9}{'whole':>8}")

    def line(name: str, latent: object, nats: float, rest: str = "") -> None:
        print(f"{name:<26}{latent:>6}{nats:>9.3f}{rest}", flush=True)

    independent = independent_pixels(x, new)
    line("floor", "-", floor)
    line("independent pixels", "-", independent)
    report = {
        "settings": equal,
        "seeds": options.seeds,
        "floor": floor,
        "independent pixels": independent,
        "latent": {},
    }
    for latent in options.latent:
        distortion, rate = pca(x, new, latent)
        line("pca", latent, distortion + rate, f"  = distortion {distortion:.3f} + rate {rate:.3f}")
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
        for seed in range(options.seeds):
            for name, method in methods.items():
                runs[name].append(method(latent, seed))
        summary = {}
        for name, rows in runs.items():
            nats = [row["nats"] for row in rows]
            spread = stdev(nats) if len(nats) > 1 else float("nan")
            seconds, whole = (median(row[key] for row in rows) for key in ("seconds", "whole"))
            summary[name] = {"mean": mean(nats), "sd": spread, "seconds": seconds, "whole": whole}
            line(name, latent, mean(nats), f"{spread:>8.3f}{seconds:>9.2f}{whole:>8.2f}")
        by_hand, ours = summary["torch"], summary["elbowroom"]
        difference = (ours["mean"] - by_hand["mean"]) / by_hand["mean"]
        ratio = {key: ours[key] / by_hand[key] for key in ("seconds", "whole")}
        verdict = "pass" if abs(difference) <= TOLERANCE else "FAIL"
        print(
            f"  elbowroom - torch: {difference:+.2%} of torch's nats, {verdict} "
            f"(at most {TOLERANCE:.0%}); time {ratio['seconds']:.2f} x torch's, "
            f"whole {ratio['whole']:.2f} x",
            flush=True,
        )
        report["latent"][latent] = {
            "pca": {"distortion": distortion, "rate": rate, "nats": distortion + rate},
            "runs": runs,
            "summary": summary,
            "difference": difference,
            "ratio": ratio,
            "verdict": verdict,
        }
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

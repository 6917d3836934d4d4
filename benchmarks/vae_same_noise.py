"""The VAE of `vae_mnist.py` and the loop by hand on the very same random numbers.

Run `python benchmarks/vae_same_noise.py t10k-images-idx3-ubyte.gz`; two minutes on one core.

Fits with different random numbers differ by a third of a nat in their held-out bound. Here the loop
by hand begins at Elbowroom's weights and draws rows, pixels and noise as its runner did, step by
step: what is left is rounding. Printed are the relative differences of the ELBO at some steps, and
minus the bound of a held-out image in nats for both.
"""

import argparse
from unittest import mock

import numpy as np
import pyro
import torch
from vae_mnist import BATCH, DRAWS, HELD_OUT_ROWS, HIDDEN, LATENT, TRAINING_ROWS, TorchVAE

from elbowroom.data.tables import read_table
from elbowroom.engines.svi.loop import Optimisation
from elbowroom.guides import Start, get_guide
from elbowroom.guides.space import trace_model
from elbowroom.objectives.elbo import make_objective, marked
from elbowroom.pipeline.fitting import bind_model


def values() -> dict[str, torch.Tensor]:
    """Copies of the networks' weights in the active parameter store."""
    named = pyro.get_param_store().named_parameters()
    return {name: value.detach().clone() for name, value in named}


def filled(weights: dict[str, torch.Tensor], pixels: int) -> TorchVAE:
    """The model by hand with some weights."""
    model = TorchVAE(pixels)
    for prefix, network in (("encoder", model.encode), ("decoder", model.decode)):
        layers = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
        for i, layer in enumerate(layers):
            layer.weight.data.copy_(weights[f"{prefix}.{i}.weight"])
            layer.bias.data.copy_(weights[f"{prefix}.{i}.bias"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="A VAE twice, on the same random numbers.")
    parser.add_argument("images", help="an IDX file with 10,000 images or more")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    torch.set_num_threads(1)
    table = read_table(options.images)
    problem, settings, _ = bind_model(
        "vae", table.iloc[:TRAINING_ROWS],
        {
            "latent": LATENT, "hidden": (HIDDEN, HIDDEN), "activation": "tanh",
            "binarise": "dynamic", "batch_size": BATCH, "schedule": "cosine",
            "steps": options.steps, "learning_rate": 1e-3, "device": "cpu",
        },
    )  # fmt: skip
    shares = problem.arguments["shares"]
    begun: dict[str, object] = {}
    advance, draw_rows = Optimisation._advance, Optimisation._draw_rows

    def remembering(self: Optimisation, *given: object) -> str:
        if not begun:
            begun.update(random=torch.get_rng_state(), weights=values())
        return advance(self, *given)

    def apart(self: Optimisation) -> torch.Tensor | None:
        with torch.random.fork_rng(devices=[]):  # rows that are of no step
            return draw_rows(self)

    with (
        problem.session(options.seed),
        mock.patch.object(Optimisation, "_advance", remembering),
        mock.patch.object(Optimisation, "_draw_rows", apart),
    ):
        guide = get_guide("encoder", "vae", True).build(problem.space, Start(torch.zeros(0)))
        trace_model(problem.function, problem.arguments)
        guide(**problem.arguments)
        trained = Optimisation(
            *marked("trace_mean_field", problem.function, guide), problem.arguments,
            make_objective("trace_mean_field", 1, problem.space), settings,
            problem.space.subsampled, local=True,
        ).run()  # fmt: skip
        ours = filled(values(), shares.shape[1])
    assert trained.eager is None
    model = filled(begun["weights"], shares.shape[1])
    torch.set_rng_state(begun["random"])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    elbo, batches = [], []
    for _ in range(options.steps):
        batches = batches or list(torch.randperm(len(shares)).split(BATCH))
        batch = shares[batches.pop(0)]
        x = (torch.rand_like(batch) < batch).to(batch)
        optimizer.zero_grad()
        loss = model.bound(x).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        elbo.append(-loss.item() * len(shares))
    off = np.abs(np.array(elbo) / trained.elbo_history - 1)
    for step in (1, 10, 100, 1000, options.steps):
        if step <= options.steps:
            print(f"step {step}: relative difference of the ELBO {off[step - 1]:.1e}")
    rows = table.iloc[TRAINING_ROWS : TRAINING_ROWS + HELD_OUT_ROWS]
    held_out = problem.new_arguments(rows)[0]["x"]
    for name, each in (("by hand", model), ("Elbowroom", ours)):
        torch.manual_seed(0)
        with torch.no_grad():
            bound = torch.stack([each.bound(held_out).mean() for _ in range(DRAWS)]).mean()
        print(f"{name}: {bound:.4f} nats of a held-out image")


if __name__ == "__main__":
    main()

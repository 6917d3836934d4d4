"""How far a guide lies from where it was, in standard deviations of the posterior."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from elbowroom.engines.svi.stepping import Step
from elbowroom.engines.svi.stopping import STOPPING
from elbowroom.guides.sites import is_delta
from elbowroom.guides.space import sample_sites
from elbowroom.problem.isolation import reseed
from elbowroom.problem.mapping import map_draws

DRAWS = 50
"""Draws of each guide that the other's density is taken at."""
EVALUATIONS = 32
"""Evaluations of the ELBO that two sets of point parameters are compared by."""
SEED = 0x0DD5_EED5


class _Given(Messenger):
    """Gives sites the values of another run."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


class Movement:
    """The distance between two sets of parameters.

    Of the guide it is the square root of the symmetrised Kullback-Leibler divergence for each
    number of a site, the largest of all sites and their elements: for Normals that differ in
    their means alone, these means' distance in standard deviations. The divergence is taken to
    second order, as the variance of the log ratio of the densities, whose relative error does not
    depend on how small it is. Of a site with few values, such as the assignment of a row, it is
    how far their probabilities lie apart in all, which is 0.1 where one of two is off by 0.05. Of
    points, and of the model's own parameters, which have no
    density, it is the difference of their ELBOs at the same noise.

    Args:
        step: Of the optimiser, with its guide and parameters.
        rows: Draws the rows of a minibatch; None where there are none.
    """

    def __init__(self, step: Step, rows: Callable[[], Tensor | None] = lambda: None) -> None:
        self.step, self.rows = step, rows

    def __call__(self, one: list[Tensor], two: list[Tensor], tolerance: float) -> float:
        """The distance as a multiple of the tolerance, in posterior standard deviations.

        That of ELBOs is a multiple of 0.01 nats and twice the standard error of the difference.
        """
        parameters = self.step.parameters
        before = parameters.copy()
        try:
            with torch.random.fork_rng(devices=parameters.cuda), torch.no_grad():
                distance, pointless = self._of_guide(one, two)
                distance = distance / tolerance
                if not pointless:
                    distance = max(distance, self._of_elbo(one, two))
        finally:
            parameters.assign(before)
        return distance

    def rises_beyond(self, one: list[Tensor], two: list[Tensor]) -> bool:
        """Whether the ELBO rises where the way from one set of parameters to the other leads.

        The way is gone on for ten, a hundred and a thousand times its length: what drifts slowly,
        for a learning rate that is too small, has far to go.
        """
        parameters = self.step.parameters
        before = parameters.copy()
        try:
            with torch.random.fork_rng(devices=parameters.cuda), torch.no_grad():
                for times in (10, 100, 1000):
                    far = [b + times * (b - a) for a, b in zip(one, two, strict=True)]
                    try:
                        rise, error = self._rise(two, far)
                    except (ArithmeticError, RuntimeError, ValueError):
                        break  # there is no ELBO so far away
                    if rise > STOPPING.negligible + 3 * error:
                        return True
        finally:
            parameters.assign(before)
        return False

    def _of_guide(self, one: list[Tensor], two: list[Tensor]) -> tuple[float, bool]:
        """The distance of the guides; and whether it speaks for every parameter."""
        self.step.parameters.assign(one)
        trace = poutine.trace(self.step.guide).get_trace(**self.step.arguments)
        trace.compute_log_prob()
        sites = {name: node for name, node in sample_sites(trace) if not node["is_observed"]}
        random = {name for name, node in sites.items() if not is_delta(node["fn"])}
        used = {name for name, node in trace.nodes.items() if node["type"] == "param"}
        pointless = bool(random) and set(self.step.parameters.named) <= used
        if not random:
            return 0.0, False
        ratios, moved, apart = self._differences(one, two, sites, random)
        back, *_ = self._differences(two, one, sites, random)
        distance = max(map(_largest, apart), default=0.0)
        for name in ratios.keys() & back.keys():
            size = max(1, prod(sites[name]["fn"].event_shape))
            spread = (ratios[name].var(0) + back[name].var(0)) / 2 / size
            distance = max(distance, _largest(spread.sqrt()))
        for displacement, value in moved.values():
            spread, far = value.std(0), displacement.square().mean(0).sqrt()
            drawn = spread > 1e-9 * (1e-9 + value.abs().mean(0))
            pointless = pointless and bool((drawn | (far == 0)).all())
            if drawn.any():
                distance = max(distance, _largest(far[drawn] / spread[drawn]))
        return distance, pointless

    def _differences(
        self, own: list[Tensor], others: list[Tensor], sites: dict[str, Any], random: set[str]
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]], list[Tensor]]:
        """The log ratios of the random sites' densities to the other guide's, at draws of its own.

        And of the sites that follow from these, how far they move, with their values; and how far
        the probabilities of sites with few values lie apart. What only some runs of the guide
        sample, an auxiliary site, is left out.
        """
        guide, arguments = self.step.guide, self.step.arguments
        few = {name for name in random if sites[name]["fn"].has_enumerate_support}

        def run(given: dict[str, Tensor]) -> tuple[dict[str, Tensor], ...]:
            """Each site's value, whether the run has it, its log density and probabilities."""
            with _Given({name: given[name] for name in random if name in given}):
                trace = poutine.trace(guide).get_trace(**arguments)
            trace.compute_log_prob()
            nodes = {name: trace.nodes.get(name, site) for name, site in sites.items()}
            probabilities = {}
            for name in few & set(trace.nodes):
                fn = nodes[name]["fn"]
                values = fn.enumerate_support(expand=False)
                probabilities[name] = fn.log_prob(values).exp()
            return (
                {name: node["value"] for name, node in nodes.items()},
                {name: torch.tensor(float(name in trace.nodes)) for name in nodes},
                {name: node["log_prob"] for name, node in nodes.items() if name in random},
                probabilities,
            )

        reseed(SEED)
        self.step.parameters.assign(own)
        values, there, log_q, shares = map_draws(run, {}, DRAWS, DRAWS)
        self.step.parameters.assign(others)
        new_values, new_there, new_log_q, new_shares = map_draws(run, values, DRAWS)
        whole = {name for name in sites if there[name].all() and new_there[name].all()}
        ratios = {name: log_q[name] - new_log_q[name] for name in (random - few) & whole}
        apart = [(shares[name] - new_shares[name]).abs().mean(0).sum(0) for name in few & whole]
        moved = {
            name: (new_values[name] - values[name], values[name])
            for name in whole - random
            if values[name].is_floating_point()
        }
        return ratios, moved, apart

    def _of_elbo(self, one: list[Tensor], two: list[Tensor]) -> float:
        rise, error = self._rise(one, two)
        return abs(rise) / (STOPPING.negligible + 2 * error)

    def _rise(self, one: list[Tensor], two: list[Tensor]) -> tuple[float, float]:
        """Of the ELBO from one set of parameters to another, and its standard error."""
        reseed(SEED)
        chosen = [self.rows() for _ in range(EVALUATIONS)]
        losses = []
        for values in (one, two):
            self.step.parameters.assign(values)
            losses.append(
                torch.tensor([self.step.loss(rows, SEED + i) for i, rows in enumerate(chosen)])
            )
        difference = losses[0] - losses[1]
        return float(difference.mean()), float(difference.std()) / EVALUATIONS**0.5


def _largest(values: Tensor) -> float:
    """The largest; infinite where one is not a number."""
    return float(torch.nan_to_num(values, nan=torch.inf).max())

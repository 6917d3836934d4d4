"""Estimates of the ELBO and of its gradient from draws of the guide.

Each gives the loss, minus the ELBO, and a surrogate whose gradient is an unbiased estimate of the
loss's. Both are tensors, and nothing is read out of one, so that a whole step can be recorded; the
numbers and gradients are those of Pyro's objectives of the same name.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import MultiFrameTensor, get_plate_stacks, is_identically_zero
from torch import Tensor
from torch.distributions import kl_divergence

Estimate = tuple[Any, Any]
"""An ELBO and its surrogate."""


class Objective:
    """The ELBO of a model and a guide, estimated by some draws.

    Attributes:
        recordable: Whether a step can be recorded: not where it keeps numbers of its own.

    Args:
        particles: How many draws.
        nesting: The number of dims that plates take.
    """

    recordable = True

    def __init__(self, particles: int, nesting: int) -> None:
        self.particles, self.nesting = particles, nesting

    def loss_and_surrogate(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Minus the ELBO, (), and what to differentiate for its gradient, ().

        Example:
            >>> import pyro, pyro.distributions as dist
            >>> def model():
            ...     pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
            >>> def guide():
            ...     mean = pyro.param("mean", torch.tensor(2.0))
            ...     pyro.sample("x", dist.Normal(mean, 1.0))
            >>> loss, surrogate = Analytic(1, 0).loss_and_surrogate(model, guide, {})
            >>> float(loss), float(torch.autograd.grad(surrogate, pyro.param("mean"))[0])
            (2.0, 2.0)
        """
        loss: Any = 0.0
        surrogate: Any = 0.0
        for elbo, differentiable in self.estimates(model, guide, arguments):
            loss = loss - elbo / self.particles
            surrogate = surrogate - differentiable / self.particles
        return torch.as_tensor(loss).detach(), torch.as_tensor(surrogate)

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], **arguments: Any) -> float:
        """Minus the ELBO."""
        with torch.no_grad():
            return float(self.loss_and_surrogate(model, guide, arguments)[0])

    def estimates(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> Iterator[Estimate]:
        """One for each draw."""
        for _ in range(self.particles):
            yield self.estimate(
                *get_importance_trace("flat", self.nesting, model, guide, (), arguments)
            )

    def estimate(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Estimate:
        """Of one draw."""
        raise NotImplementedError


def _samples(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    return ((name, node) for name, node in trace.nodes.items() if node["type"] == "sample")


class Sampled(Objective):
    """Every term is taken at the draws: `trace`.

    Sites that are reparameterised give pathwise gradients (Kingma and Welling, 2014,
    "Auto-encoding variational Bayes"), the others score-function gradients with the terms of the
    ELBO that lie in their plates (Ranganath, Gerrish and Blei, 2014, "Black box variational
    inference").
    """

    def estimate(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Estimate:
        """Of one draw."""
        elbo: Any = 0.0
        surrogate: Any = 0.0
        reward: MultiFrameTensor | None = None
        for _, site in _samples(model_trace):
            elbo, surrogate = elbo + site["log_prob_sum"], surrogate + site["log_prob_sum"]
        for _, site in _samples(guide_trace):
            _, score, entropy = site["score_parts"]
            elbo = elbo - site["log_prob_sum"]
            if not is_identically_zero(entropy):
                surrogate = surrogate - entropy.sum()
            if not is_identically_zero(score):
                reward = _reward(model_trace, guide_trace) if reward is None else reward
                surrogate = surrogate + (reward.sum_to(site["cond_indep_stack"]) * score).sum()
        return elbo, surrogate


def _reward(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> MultiFrameTensor:
    """The terms of the ELBO by the plates that they lie in."""
    reward, stacks = MultiFrameTensor(), get_plate_stacks(model_trace)
    for name, site in _samples(model_trace):
        term = site["log_prob"]
        if not site["is_observed"]:
            term = term - guide_trace.nodes[name]["log_prob"]
        reward.add((stacks[name], term.detach()))
    return reward


class Analytic(Objective):
    """Divergences of sites in closed form, where there is one: `trace_mean_field`."""

    def estimate(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Estimate:
        """Of one draw."""
        elbo: Any = 0.0
        for name, site in _samples(model_trace):
            if site["is_observed"]:
                elbo = elbo + site["log_prob_sum"]
                continue
            own: Any = guide_trace.nodes[name]
            try:
                divergence = kl_divergence(own["fn"], site["fn"])
            except NotImplementedError:
                elbo = elbo + site["log_prob_sum"] - own["score_parts"].entropy_term.sum()
                continue
            divergence = scale_and_mask(divergence, scale=own["scale"], mask=own["mask"])
            if not isinstance(divergence, Tensor):
                divergence = torch.full(own["fn"].batch_shape, float(divergence))
            elbo = elbo - divergence.sum()
        for name, own in _samples(guide_trace):
            if name not in model_trace.nodes:  # auxiliary
                elbo = elbo - own["score_parts"].entropy_term.sum()
        return elbo, elbo


class Landing(Objective):
    """The gradient along the draws' paths alone: `sticking_the_landing`.

    The score of the guide, whose mean is nothing, is left out of the gradient: its variance falls
    to nothing as the guide comes to be the posterior (Roeder, Wu and Duvenaud, 2017, "Sticking the
    landing: simple, lower-variance gradient estimators for variational inference").
    """

    def estimates(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> Iterator[Estimate]:
        """One for each draw."""
        for _ in range(self.particles):
            model_trace, guide_trace = get_importance_trace(
                "flat", self.nesting, model, guide, (), arguments
            )
            elbo, log_q = model_trace.log_prob_sum(), guide_trace.log_prob_sum()
            still = guide_trace.copy()
            for name, node in _samples(still):
                still.nodes[name] = {**node, "value": node["value"].detach()}
            again = poutine.trace(poutine.replay(guide, trace=still)).get_trace(**arguments)
            # The same number, whose gradient is the score.
            yield elbo - log_q, elbo - log_q + again.log_prob_sum()


class Summed(Objective):
    """Discrete sites that are marked for it are summed over: `trace_enum`, Pyro's."""

    def loss_and_surrogate(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Minus the ELBO, (), and what to differentiate for its gradient, ()."""
        pyros = TraceEnum_ELBO(num_particles=self.particles, max_plate_nesting=self.nesting)
        if not torch.is_grad_enabled():
            return (torch.as_tensor(pyros.loss(model, guide, **arguments)),) * 2
        loss = pyros.differentiable_loss(model, guide, **arguments)
        return loss.detach(), loss


class Graph(Objective):
    """Score functions with the terms downstream of a site, and its baselines: `trace_graph`.

    Pyro's (Schulman et al., 2015, "Gradient estimation using stochastic computation graphs"). The
    baselines are kept in the parameter store, so that no step is like another.
    """

    recordable = False

    def __init__(self, particles: int, nesting: int) -> None:
        super().__init__(particles, nesting)
        self.pyros = TraceGraph_ELBO(num_particles=particles, max_plate_nesting=nesting)

    def loss_and_surrogate(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Minus the ELBO, (), and what to differentiate for its gradient, ()."""
        elbo, surrogate = self.pyros._loss_and_surrogate_loss(model, guide, (), arguments)
        return torch.as_tensor(-elbo).detach(), torch.as_tensor(surrogate)


OBJECTIVES: dict[str, type[Objective]] = {
    "trace": Sampled,
    "trace_graph": Graph,
    "trace_enum": Summed,
    "trace_mean_field": Analytic,
    "sticking_the_landing": Landing,
}

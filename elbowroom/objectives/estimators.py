"""Estimates of the ELBO and of its gradient from draws of the guide.

Each gives the loss, minus the ELBO, and a surrogate whose gradient is an unbiased estimate of the
loss's. Both are tensors, and nothing is read out of one, so that a whole step can be recorded; the
numbers and gradients are those of Pyro's objectives of the same name.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Annotated, Any, ClassVar

import torch
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import MultiFrameTensor, get_plate_stacks, is_identically_zero
from torch import Tensor
from torch.distributions import kl_divergence
from torch.overrides import TorchFunctionMode

from elbowroom.errors import OptionError
from elbowroom.guides.sites import GuideSites
from elbowroom.guides.space import FixedRows, LatentSpace, Plate, SeenRows, base_of, of_each_row
from elbowroom.objectives import register
from elbowroom.problem.mapping import map_draws

Estimate = tuple[Any, Any]
"""An ELBO and its surrogate."""


class Objective:
    """The ELBO of a model and a guide, estimated by some draws.

    Attributes:
        name: As it is registered.
        several: Whether it takes several draws together.
        of_its_loss: Whether its gradient is that of the loss.
        of_rows: Whether it is for models whose latents are all the rows'.
        enumerates: Whether it sums over discrete sites, those that the guide leaves out too.
        pathwise: Whether it needs draws that can be differentiated by the guide's parameters.
        closed: Whether it takes divergences in closed form, site by site.
        scoreless: Whether it leaves the score of the guide out.
        as_drawn: Whether it takes draws as they are, without the paths that lead to them.
        of_scores: Whether it differs from `trace` only at sites that cannot be reparameterised.
        options_kind: The options that it reads, a dataclass of Fields.
        asked_by_option: Whether an option of its own, given without an objective, asks for it.

    Args:
        particles: How many draws.
        nesting: The number of dims that plates take.
        rows: The plate of the rows, where all latents are theirs.
        observed: The observed sites.
        options: Of the class `options_kind`; its defaults if there are none.
    """

    name: ClassVar[str] = ""
    several: ClassVar[bool] = False
    of_its_loss: ClassVar[bool] = True
    of_rows: ClassVar[bool] = False
    enumerates: ClassVar[bool] = False
    pathwise: ClassVar[bool] = False
    closed: ClassVar[bool] = False
    scoreless: ClassVar[bool] = False
    as_drawn: ClassVar[bool] = False
    of_scores: ClassVar[bool] = False
    options_kind: ClassVar[type | None] = None
    asked_by_option: ClassVar[bool] = False

    def __init__(
        self,
        particles: int,
        nesting: int,
        rows: Plate | None = None,
        observed: Sequence[str] = (),
        options: Any = None,
    ) -> None:
        self.particles, self.nesting = particles, nesting
        self.rows, self.observed = rows, observed
        if options is None and self.options_kind is not None:
            options = self.options_kind()
        self.options = options

    @classmethod
    def why_not(cls, space: LatentSpace, sites: GuideSites) -> str | None:
        """What it needs that a model and a guide do not have, in addition to its flags; or None."""
        return None

    @classmethod
    def variants(cls) -> dict[str, Any]:
        """Options that are worth comparing beside each other, by what to call them."""
        return {}

    @classmethod
    def without_parameters(cls, options: Any) -> Any:
        """The options nearest to the given ones with which it has no parameters of its own."""
        return options

    @classmethod
    def said(cls, options: Any) -> str:
        """What a reader should know of a fit by it; empty where there is nothing."""
        return ""

    def goal(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> Tensor:
        """What is maximised, (), where it is no longer differentiated: mostly the ELBO."""
        return -self.loss_and_surrogate(model, guide, arguments)[0]

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
        for traces in self.traces(model, guide, arguments):
            yield self.estimate(*traces)

    def traces(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> Iterator[tuple[poutine.Trace, poutine.Trace]]:
        """The traces of the model and the guide at each draw."""
        for _ in range(self.particles):
            yield get_importance_trace("flat", self.nesting, model, guide, (), arguments)

    def estimate(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Estimate:
        """Of one draw."""
        raise NotImplementedError


def _samples(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    return ((name, node) for name, node in trace.nodes.items() if node["type"] == "sample")


class Detached(SeenRows):
    """Draws that do not depend on the parameters they are drawn with, in the traces within."""

    def _pyro_post_sample(self, msg: Any) -> None:
        super()._pyro_post_sample(msg)
        if not msg["is_observed"] and isinstance(msg["value"], Tensor):
            msg["value"] = msg["value"].detach()


@register("trace")
class Sampled(Objective):
    """The ELBO, with every term evaluated at the draws: `trace`.

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
                reward = reward_by_plates(model_trace, guide_trace) if reward is None else reward
                surrogate = surrogate + (reward.sum_to(site["cond_indep_stack"]) * score).sum()
        return elbo, surrogate


def reward_by_plates(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> MultiFrameTensor:
    """The terms of the ELBO by the plates that they lie in."""
    reward, stacks = MultiFrameTensor(), get_plate_stacks(model_trace)
    for name, site in _samples(model_trace):
        term = site["log_prob"]
        if not site["is_observed"]:
            term = term - guide_trace.nodes[name]["log_prob"]
        reward.add((stacks[name], term.detach()))
    stacks = get_plate_stacks(guide_trace)
    for name, site in _samples(guide_trace):
        if name not in model_trace.nodes:  # auxiliary
            reward.add((stacks[name], -site["log_prob"].detach()))
    return reward


@dataclass(frozen=True)
class FreeBitsOptions:
    """What `trace_mean_field` reads."""

    free_bits: Annotated[
        float,
        Field(
            ge=0,
            le=1_000_000,
            description="nats of KL divergence of each latent that are not penalised, against "
            "posterior collapse",
        ),
    ] = 0.0


@register("trace_mean_field")
class Analytic(Objective):
    """The ELBO, with KL terms in closed form where there is one: `trace_mean_field`."""

    closed = True
    pathwise = True
    asked_by_option = True
    options_kind: ClassVar[type | None] = FreeBitsOptions

    def estimate(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Estimate:
        """Of one draw."""
        elbo: Any = 0.0
        for name, site in _samples(model_trace):
            if site["is_observed"]:
                elbo = elbo + site["log_prob_sum"]
                continue
            own: Any = guide_trace.nodes[name]
            try:
                if self.options and self.options.free_bits and torch.is_grad_enabled():
                    elbo = elbo - self._beyond_free(own, site)
                    continue
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

    def _beyond_free(self, own: Any, site: Any) -> Tensor:
        """The divergence of a site, at least the free nats for each of a row's latents.

        Sums over latents of the mean over rows (Kingma et al., 2016, "Improved variational
        inference with inverse autoregressive flow").
        """
        divergence = kl_divergence(base_of(own["fn"]), base_of(site["fn"]))
        single = scale_and_mask(divergence, scale=own["scale"], mask=own["mask"])
        single = single.expand(own["value"].shape)  # (rows, latents)
        latents = single.reshape(-1, single.shape[-1]) if own["fn"].event_dim else single[..., None]
        rows = len(latents) * torch.as_tensor(own["scale"])
        return (latents.sum(0) / rows).clamp_min(self.options.free_bits).sum() * rows


@register("sticking_the_landing")
class Landing(Objective):
    """The ELBO, with the gradient through the draws alone: `sticking_the_landing`.

    The guide's score, whose mean is zero, is left out of the gradient. The variance of the gradient
    then falls to zero as the guide approaches the posterior (Roeder, Wu and Duvenaud, 2017,
    "Sticking the landing: simple, lower-variance gradient estimators for variational inference").
    """

    pathwise = True
    scoreless = True

    def estimates(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> Iterator[Estimate]:
        """One for each draw."""
        for _ in range(self.particles):
            with SeenRows() as seen:
                model_trace, guide_trace = get_importance_trace(
                    "flat", self.nesting, model, guide, (), arguments
                )
            elbo = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
            with FixedRows(seen.rows):
                again = poutine.trace(poutine.replay(guide, trace=still(guide_trace)))
                score = again.get_trace(**arguments).log_prob_sum()
            yield elbo, elbo + score  # the same number, whose gradient is the score


def still(trace: poutine.Trace) -> poutine.Trace:
    """A trace whose values no longer depend on the parameters."""
    found = trace.copy()
    for name, node in _samples(trace):
        found.nodes[name] = {**node, "value": node["value"].detach()}
    return found


class _ZerosForMissing(TorchFunctionMode):
    """Puts zeros where a mask leaves numbers out: their sums are the same, and have fixed shapes.

    Pyro's sums leave out values without probability, such as those that a label excludes.

    Example:
        >>> with _ZerosForMissing():
        ...     torch.tensor([1.0, -torch.inf]).masked_select(torch.tensor([True, False]))
        tensor([1., 0.])
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (Tensor.masked_select, torch.masked_select):
            values, mask = args
            return torch.where(mask, values, 0.0)
        return function(*args, **(kwargs or {}))


@register("trace_enum")
class Summed(Objective):
    """The ELBO, summed over discrete sites instead of drawing them: `trace_enum`, Pyro's."""

    enumerates = True

    def loss_and_surrogate(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Minus the ELBO, (), and what to differentiate for its gradient, ()."""
        pyros = TraceEnum_ELBO(num_particles=self.particles, max_plate_nesting=self.nesting)
        if not torch.is_grad_enabled():
            return (torch.as_tensor(pyros.loss(model, guide, **arguments)),) * 2
        with _ZerosForMissing():
            loss = pyros.differentiable_loss(model, guide, **arguments)
        return loss.detach(), loss


@register("trace_graph")
class Graph(Objective):
    """Score-function gradients: each site with its downstream terms and baseline: `trace_graph`.

    The score of each site is weighted by the terms downstream of it, less the site's own baseline.
    Pyro's (Schulman et al., 2015, "Gradient estimation using stochastic computation graphs").
    """

    of_scores = True

    def loss_and_surrogate(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Minus the ELBO, (), and what to differentiate for its gradient, ()."""
        pyros = TraceGraph_ELBO(num_particles=self.particles, max_plate_nesting=self.nesting)
        if not torch.is_grad_enabled():  # a look at other rows, of which baselines learn nothing
            return (torch.as_tensor(pyros.loss(model, guide, **arguments)),) * 2
        elbo, surrogate = pyros._loss_and_surrogate_loss(model, guide, (), arguments)
        return torch.as_tensor(-elbo).detach(), torch.as_tensor(surrogate)


class Weighted(Objective):
    """Several draws together, by their importance weights.

    Where every latent belongs to a row, each row has weights of its own; else the draws have them.
    The draws after the first are made in one batched call, where the model's code allows it.
    """

    several = True

    def loss_and_surrogate(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Minus the bound, (), and what to differentiate for its gradient, ()."""
        with SeenRows() as seen:
            first = self.terms(model, guide, arguments)

        def another(_: dict[str, Tensor]) -> dict[str, Tensor]:
            with FixedRows(seen.rows):  # all draws are for one minibatch
                return self.terms(model, guide, arguments)

        # Without gradients there may be many more rows, and no more memory.
        together = self.particles if torch.is_grad_enabled() else 1
        terms = {name: each[None] for name, each in first.items()}
        if self.particles > 1:
            others = map_draws(another, {}, together, self.particles - 1)
            terms = {name: torch.cat([each, others[name]]) for name, each in terms.items()}
        bound = self.combined(terms["p"] - terms["q"])
        rest = terms["rest"].mean(0)
        return (
            -(self._total(bound) + rest).detach(),
            -self._total(self.surrogate(terms, bound)) - rest,
        )

    def combined(self, weights: Tensor) -> Tensor:
        """The bound from log weights, with a leading dim for the draws."""
        raise NotImplementedError

    def surrogate(self, terms: dict[str, Tensor], bound: Tensor) -> Tensor:
        """What to differentiate, of the shape of the bound."""
        return bound

    def terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> dict[str, Tensor]:
        """The log densities of one draw: of the model `p`, of the guide `q`, and of the `rest`."""
        with Detached() if self.as_drawn else SeenRows() as seen:
            (traces,) = Objective.traces(self._single, model, guide, arguments)
        model_trace, guide_trace = traces
        if not all(self._is_of_a_row(node) for _, node in _samples(guide_trace)):
            self.rows = None
        with FixedRows(seen.rows):
            more = self.more(guide_trace, model, guide, arguments)
        return {
            "p": self._log_density(model_trace),
            "q": self._log_density(guide_trace),
            "rest": torch.as_tensor(self._rest(model_trace)),
            **more,
        }

    def more(
        self,
        guide_trace: poutine.Trace,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        arguments: dict[str, Any],
    ) -> dict[str, Tensor]:
        """What else a surrogate is made of."""
        return {}

    @property
    def _single(self) -> Objective:
        single = copy(self)
        single.particles = 1
        return single

    def _log_density(self, trace: poutine.Trace) -> Tensor:
        """Of a trace: () or, by row, (rows,), without the scale of a minibatch."""
        if self.rows is None:
            return torch.as_tensor(trace.log_prob_sum())
        return of_each_row(trace, self.rows)  # and the other sites in `_rest`

    def _is_of_a_row(self, node: Any) -> bool:
        frames = {frame.name for frame in node["cond_indep_stack"]}
        return self.rows is not None and self.rows.name in frames

    def _rest(self, trace: poutine.Trace) -> Any:
        """What a model adds outside of the rows, such as a penalty of its parameters."""
        if self.rows is None:
            return 0.0
        nodes = [node for _, node in _samples(trace) if not self._is_of_a_row(node)]
        return sum((node["log_prob_sum"] for node in nodes), 0.0)

    def _total(self, bound: Tensor) -> Tensor:
        return bound if self.rows is None else self.rows.size / len(bound) * bound.sum()


@register("iwae")
class ImportanceWeighted(Weighted):
    """The log of the mean importance weight: `iwae`.

    Burda, Grosse and Salakhutdinov, 2016, "Importance weighted autoencoders". It rises with the
    number of draws to the log evidence.
    """

    pathwise = True

    def combined(self, weights: Tensor) -> Tensor:
        """The bound from log weights, with a leading dim for the draws."""
        return weights.logsumexp(0) - math.log(len(weights))


@register("vimco")
class LeaveOneOut(ImportanceWeighted):
    """The bound of `iwae` by score functions; the other draws are each draw's baseline: `vimco`.

    The score of a draw is weighted by what the draw adds to the bound: the bound less what it would
    be if the draw's log weight were the mean of the others' (Mnih and Rezende, 2016, "Variational
    inference for Monte Carlo objectives"). Takes any site, discrete ones too.
    """

    pathwise = False
    as_drawn = True

    def surrogate(self, terms: dict[str, Tensor], bound: Tensor) -> Tensor:
        """What to differentiate, of the shape of the bound."""
        weights = terms["p"] - terms["q"]
        held = weights.detach()
        count = len(held)
        others = (held.sum(0) - held) / max(count - 1, 1)
        # Of each draw, all log weights with its own replaced.
        replaced = torch.where(
            torch.eye(count, dtype=torch.bool, device=held.device).reshape(
                count, count, *[1] * (held.dim() - 1)
            ),
            others.unsqueeze(1), held.unsqueeze(0),
        )  # fmt: skip
        added = bound.detach() - (replaced.logsumexp(1) - math.log(count))  # (draws, rows)
        return (added * terms["q"] + held.softmax(0) * weights).sum(0)


@register("dreg")
class DoublyReparameterised(ImportanceWeighted):
    """The bound of `iwae`, with a gradient that stays precise for many draws: `dreg`.

    Tucker, Lawson, Gu and Maddison, 2019, "Doubly reparameterized gradient estimators for Monte
    Carlo objectives".
    """

    scoreless = True

    def more(
        self,
        guide_trace: poutine.Trace,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        arguments: dict[str, Any],
    ) -> dict[str, Tensor]:
        """The guide's score, and the model's log density, at values that are held still."""
        values = still(guide_trace)
        again = poutine.trace(poutine.replay(guide, trace=values)).get_trace(**arguments)
        replayed = poutine.trace(poutine.replay(model, trace=values)).get_trace(**arguments)
        return {"score": self._log_density(again), "model": self._log_density(replayed)}

    def surrogate(self, terms: dict[str, Tensor], bound: Tensor) -> Tensor:
        """What to differentiate, of the shape of the bound."""
        weights = terms["p"] - terms["q"]
        shares = weights.detach().softmax(0)
        squared = shares.square()
        # Along the paths with squared shares; the model's own parameters with the shares.
        path = squared * (weights + terms["score"])
        return (path + (shares - squared) * terms["model"]).sum(0)


def _not_the_elbo(alpha: float) -> float:
    if alpha == 1:
        raise OptionError("--alpha 1 is the ELBO itself; give --elbo trace.")
    return alpha


@dataclass(frozen=True)
class RenyiOptions:
    """What `renyi` reads."""

    alpha: Annotated[
        float,
        Field(ge=0, le=1000, description="order of the Renyi divergence"),
        AfterValidator(_not_the_elbo),
    ] = 0.5


@register("renyi")
class Renyi(Weighted):
    """The bound of a Renyi divergence of order `alpha`: `renyi`.

    Li and Turner, 2016, "Renyi divergence variational inference". Orders below one cover more of
    the posterior, above one less; at zero it is `iwae`.
    """

    pathwise = True
    options_kind = RenyiOptions

    def combined(self, weights: Tensor) -> Tensor:
        """The bound from log weights, with a leading dim for the draws."""
        power = 1 - self.options.alpha
        return ((power * weights).logsumexp(0) - math.log(len(weights))) / power

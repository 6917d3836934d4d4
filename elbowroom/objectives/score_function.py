"""The score-function estimate of the ELBO's gradient, with baselines that lower its noise."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any

import pyro
import torch
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from pyro.infer.enum import get_importance_trace
from torch import Tensor

from elbowroom.errors import unknown
from elbowroom.guides.space import sample_sites
from elbowroom.objectives import baselines, register
from elbowroom.objectives.estimators import (
    Detached,
    Estimate,
    Objective,
    reward_by_plates,
)
from elbowroom.options import Name

BASELINES = ("none", "running", "decaying", "neural")
DECAY = 0.9
"""What a decaying average keeps of itself at each step."""
HIDDEN = 16
"""Units of the hidden layer of a neural baseline."""


def _known(baseline: str) -> str:
    if baseline not in BASELINES:
        raise unknown("baseline", baseline, BASELINES)
    return baseline


@dataclass(frozen=True)
class ScoreFunctionOptions:
    """What `score_function` reads."""

    baseline: Annotated[
        Name,
        Field(description="baseline of the score: none, running, decaying or neural"),
        AfterValidator(_known),
    ] = "decaying"


@register("score_function")
class ScoreFunction(Objective):
    """Score-function gradients, which need no derivative of a draw: `score_function`.

    No derivative of the model by its latents is needed, so any site can be used. The score of a
    site is weighted by the terms of the ELBO that lie in its plates (Ranganath, Gerrish and Blei,
    2014, "Black box variational inference"), less a baseline, which changes no mean: zero; the mean
    of all earlier values; a mean in which the past decays; or that and a network of the rows, which
    is fitted to what it leaves (Mnih and Gregor, 2014, "Neural variational inference and learning
    in belief networks").
    """

    as_drawn = True
    options_kind = ScoreFunctionOptions

    @classmethod
    def variants(cls) -> dict[str, Any]:
        """Each of its baselines."""
        return {
            f"{'no' if baseline == 'none' else baseline} baseline": ScoreFunctionOptions(baseline)
            for baseline in BASELINES
        }

    @classmethod
    def without_parameters(cls, options: Any) -> Any:
        """A network has parameters; a decaying average has none."""
        return ScoreFunctionOptions() if options.baseline == "neural" else options

    def estimates(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> Iterator[Estimate]:
        """One for each draw."""
        for _ in range(self.particles):
            with Detached() as seen:
                model_trace, guide_trace = get_importance_trace(
                    "flat", self.nesting, model, guide, (), arguments
                )
            log_p = model_trace.log_prob_sum()
            elbo = log_p - guide_trace.log_prob_sum()
            reward = reward_by_plates(model_trace, guide_trace)
            surrogate: Any = log_p
            for name, site in sample_sites(guide_trace):
                score = site["unscaled_log_prob"]
                if site["is_observed"] or not torch.as_tensor(score).requires_grad:
                    continue
                weight = reward.sum_to(site["cond_indep_stack"])
                baseline, misfit = self._baseline(name, site, weight, seen.rows, arguments)
                surrogate = surrogate + ((weight - baseline) * score).sum() - misfit
            yield elbo, surrogate

    def _baseline(
        self,
        name: str,
        site: Any,
        weight: Tensor,
        rows: dict[str, Tensor],
        arguments: dict[str, Any],
    ) -> tuple[Any, Any]:
        """The baseline of a site, and what fits it to the weights."""
        if self.options.baseline == "none":
            return 0.0, 0.0
        average = self._average(name, site, weight.detach())
        if self.options.baseline != "neural":
            return average, 0.0
        found = _network(name, site, weight, rows, arguments)  # what the average leaves
        misfit = (weight.detach() - average - found).square().mean()
        return average + found.detach(), misfit

    def _average(self, name: str, site: Any, weight: Tensor) -> Tensor:
        """The average of a site's weights before this one, which it takes in."""
        frames, kind = site["cond_indep_stack"], self.options.baseline
        batch = any(f.full_size is not None and f.full_size != f.size for f in frames)
        # A network tells the rows apart by itself.
        seen = weight.mean() if batch or kind == "neural" else weight
        memory = f"{baselines.PREFIX}_mean_{name}", f"{baselines.PREFIX}_count_{name}"
        kept = baselines.kept()
        before = kept.get(memory[0], torch.zeros_like(seen))
        if before.shape != seen.shape:  # all rows before, a minibatch now
            before = before.mean().expand_as(seen)
        count = kept.get(memory[1], torch.zeros_like(seen.mean())) + 1
        share = 1 / count if kind == "running" else (1 / count).clamp(min=1 - DECAY)
        after = before + share * (seen - before)
        baselines.keep(dict(zip(memory, (after, count), strict=True)))
        return before


def _network(
    name: str, site: Any, weight: Tensor, rows: dict[str, Tensor], arguments: dict[str, Any]
) -> Tensor:
    """A network of the rows for a site in their plate; a number for any other."""
    for frame in site["cond_indep_stack"]:
        inputs = _features(frame, rows.get(frame.name), arguments)
        if inputs is None:
            continue
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
        first = pyro.param(f"baseline.{name}.first", partial(_initial, inputs))
        second = pyro.param(f"baseline.{name}.second", torch.zeros(HIDDEN + 1).to(inputs))
        values = torch.tanh(inputs @ first) @ second[:-1] + second[-1]  # (rows,)
        shape = [1] * weight.dim()
        shape[frame.dim] = len(values)
        return values.reshape(shape).expand(weight.shape)
    return pyro.param(f"baseline.{name}.level", torch.zeros(()).to(weight)).expand(weight.shape)


def _initial(inputs: Tensor) -> Tensor:
    return 0.5 * torch.randn(inputs.shape[1], HIDDEN).to(inputs)


def _features(frame: Any, rows: Tensor | None, arguments: dict[str, Any]) -> Tensor | None:
    """The columns of a plate's rows, standardised, (rows, columns)."""
    size = frame.full_size or frame.size
    columns = [
        value.reshape(size, -1)
        for value in arguments.values()
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() > 0
        and len(value) == size
    ]
    if not columns:
        return None
    table = torch.cat(columns, 1)
    table = (table - table.mean(0)) / table.std(0).clamp(min=1e-6)
    return table if rows is None else table[rows]

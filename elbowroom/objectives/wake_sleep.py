"""Wake-sleep: the model learns from the data, the guide from the model's own dreams."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from pyro import poutine
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from torch import Tensor

from elbowroom.errors import ModelError
from elbowroom.guides.space import FixedRows, Plate, SeenRows, Unobserved
from elbowroom.objectives import register
from elbowroom.objectives.estimators import (
    Detached,
    Estimate,
    ImportanceWeighted,
    Objective,
    still,
)


class _AsGiven(Messenger):
    """Takes data as they are, where `elbowroom.models._fresh.Fresh` around would draw them."""

    def _pyro_fresh(self, msg: Any) -> None:
        msg["value"], msg["done"], msg["stop"] = msg["args"][0], True, True


def log_density_of_dreams(
    objective: Objective,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: dict[str, Any],
    rows: dict[str, Tensor],
) -> Any:
    """The guide's log density of the latents of rows that the model made, given these rows, ().

    The model draws latents and what is observed of them; of neither does the density know the
    parameters they were drawn with.

    Args:
        objective: Which knows the plate of the rows and the observed sites.
        model: The Pyro model.
        guide: The guide.
        arguments: Keyword arguments of both.
        rows: Of a minibatch, by the plate's name: as many are dreamt, and lie in their place.

    Raises:
        ModelError: If an observed site is not the argument of its name, so that the guide cannot be
            shown a dream. Looked at while Pyro validates.
    """
    observed, plate = objective.observed, objective.rows
    assert plate is not None
    with FixedRows(rows), _AsGiven():
        if is_validation_enabled():
            _check_arguments(model, arguments, rows, observed, plate)
        with torch.no_grad():
            dream: Any = poutine.trace(Unobserved()(model)).get_trace(**arguments)
        shown = dict(arguments)
        for name in observed:
            node, whole = dream.nodes[name], arguments[name]
            value = node["value"]
            if value.shape != whole.shape:
                axis = _axis_of_rows(node, plate)
                value = whole.index_copy(axis, rows[plate.name], value.to(whole))
            shown[name] = value
        replayed = poutine.replay(guide, trace=still(dream))
        return poutine.trace(replayed).get_trace(**shown).log_prob_sum()


def _axis_of_rows(node: Any, plate: Plate) -> int:
    """Where the rows are among the dims of a site's value."""
    return len(node["fn"].batch_shape) + plate.dim


def _check_arguments(
    model: Callable[..., Any],
    arguments: dict[str, Any],
    rows: dict[str, Tensor],
    observed: Sequence[str],
    plate: Plate,
) -> None:
    """Sees that what is observed is what the arguments of the same names hold."""
    with torch.no_grad():
        nodes: Any = poutine.trace(model).get_trace(**arguments).nodes
    for name in observed:
        value, whole = nodes[name]["value"], arguments.get(name, torch.zeros(0))
        if value.shape != whole.shape and whole.numel():
            whole = whole.index_select(_axis_of_rows(nodes[name], plate), rows[plate.name])
        if not torch.equal(value, whole):
            raise ModelError(
                f"the guide cannot be trained on rows of '{name}' that the model draws: the site "
                f"must observe the model's argument of the same name, unchanged (obs={name})."
            )


@register("wake_sleep")
class WakeSleep(Objective):
    """The model learns from data, the guide from rows that the model draws: `wake_sleep`.

    In the wake phase the latents of rows are drawn by the guide, and the model's parameters follow
    the gradient of the log joint density of both, which is that of the ELBO. In the sleep phase
    rows and latents are drawn by the model, and the guide's parameters follow the gradient of its
    log density of these latents given these rows: they lower KL(p || q) over the model's rows, not
    the KL(q || p) over the data that the ELBO has. No derivative of a draw is taken, so that any
    site will do (Hinton, Dayan, Frey and Neal, 1995, "The wake-sleep algorithm for unsupervised
    neural networks"). The loss is minus the ELBO, which need not fall.
    """

    of_its_loss = False
    of_rows = True
    as_drawn = True

    def estimates(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> Iterator[Estimate]:
        """One for each draw."""
        for _ in range(self.particles):
            with Detached() as seen:
                model_trace, guide_trace = get_importance_trace(
                    "flat", self.nesting, model, guide, (), arguments
                )
            awake = model_trace.log_prob_sum()
            asleep: Any = 0.0
            if torch.is_grad_enabled():
                asleep = log_density_of_dreams(self, model, guide, arguments, seen.rows)
            yield awake - guide_trace.log_prob_sum(), awake + asleep


@dataclass(frozen=True)
class ReweightedWakeSleepOptions:
    """What `reweighted_wake_sleep` reads."""

    insomnia: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of the guide's gradient that comes from the data; the rest comes "
            "from rows that the model draws (dreams)",
        ),
    ] = 1.0


@register("reweighted_wake_sleep")
class ReweightedWakeSleep(ImportanceWeighted):
    """Model and guide learn from weighted draws of the guide: `reweighted_wake_sleep`.

    The model's parameters follow the gradient of the bound of `iwae`, and the guide's lower
    KL(p || q) at each row, both by self-normalised importance sampling from the guide: their bias
    vanishes with the number of draws. A share of 1 - `insomnia` of the guide's gradient comes from
    dreams, as in `wake_sleep` (Bornschein and Bengio, 2015, "Reweighted wake-sleep"; Le, Kosiorek,
    Siddharth, Teh and Wood, 2019, "Revisiting reweighted wake-sleep"). Takes any site, and
    minibatches.
    """

    of_its_loss = False
    of_rows = True
    pathwise = False
    as_drawn = True
    options_kind = ReweightedWakeSleepOptions

    def loss_and_surrogate(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Minus the bound, (), and what to differentiate for its gradient, ()."""
        with SeenRows() as seen:
            loss, surrogate = super().loss_and_surrogate(model, guide, arguments)
        if self.options.insomnia < 1 and torch.is_grad_enabled():
            asleep = log_density_of_dreams(self, model, guide, arguments, seen.rows)
            surrogate = surrogate - (1 - self.options.insomnia) * asleep
        return loss, surrogate

    def surrogate(self, terms: dict[str, Tensor], bound: Tensor) -> Tensor:
        """What to differentiate, of the shape of the bound."""
        shares = (terms["p"] - terms["q"]).detach().softmax(0)
        return (shares * (terms["p"] + self.options.insomnia * terms["q"])).sum(0)

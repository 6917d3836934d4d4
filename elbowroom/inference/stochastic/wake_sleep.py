"""Wake-sleep: the model learns from the data, the guide from the model's own dreams."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.infer.enum import get_importance_trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from elbowroom.errors import ModelError
from elbowroom.guides.space import FixedRows, SeenRows, Unobserved
from elbowroom.inference.stochastic.estimators import (
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
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: dict[str, Any],
    rows: dict[str, Tensor],
    observed: Any,
) -> Any:
    """The guide's log density of the latents of rows that the model made, given these rows, ().

    The model draws latents and what is observed of them; of neither does the density know the
    parameters they were drawn with.

    Args:
        model: The Pyro model.
        guide: The guide.
        arguments: Keyword arguments of both.
        rows: Of a minibatch, by the plate's name: as many are dreamt, and lie in their place.
        observed: The observed sites, each the name of an argument too.

    Raises:
        ModelError: If an observed site is no argument, so that the guide cannot be shown a dream.
    """
    missing = [name for name in observed if not isinstance(arguments.get(name), Tensor)]
    if missing:
        raise ModelError(
            f"the guide cannot be shown a dream of '{missing[0]}': give the model's argument that "
            "holds it the name of the site."
        )
    with FixedRows(rows), _AsGiven():
        with torch.no_grad():
            dream: Any = poutine.trace(Unobserved()(model)).get_trace(**arguments)
        shown = dict(arguments)
        for name in observed:
            value, whole = dream.nodes[name]["value"], arguments[name]
            if value.shape != whole.shape:
                (index,) = rows.values()
                value = whole.index_copy(0, index, value.to(whole))
            shown[name] = value
        replayed = poutine.replay(guide, trace=still(dream))
        return poutine.trace(replayed).get_trace(**shown).log_prob_sum()


class WakeSleep(Objective):
    """Data teach the model, dreams the guide: `wake_sleep`.

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
                asleep = log_density_of_dreams(model, guide, arguments, seen.rows, self.observed)
            yield awake - guide_trace.log_prob_sum(), awake + asleep


class ReweightedWakeSleep(ImportanceWeighted):
    """Several draws of the guide teach both, weighed by importance: `reweighted_wake_sleep`.

    The model's parameters follow the gradient of the bound of `iwae`, and the guide's lower
    KL(p || q) at each row, both by self-normalised importance sampling from the guide: their bias
    vanishes with the number of draws. A share of 1 - `insomnia` of the guide's gradient comes from
    dreams, as in `wake_sleep` (Bornschein and Bengio, 2015, "Reweighted wake-sleep"; Le, Kosiorek,
    Siddharth, Teh and Wood, 2019, "Revisiting reweighted wake-sleep"). Takes any site, and
    minibatches.
    """

    of_its_loss = False
    of_rows = True
    scored = True

    def loss_and_surrogate(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Minus the bound, (), and what to differentiate for its gradient, ()."""
        with SeenRows() as seen:
            loss, surrogate = super().loss_and_surrogate(model, guide, arguments)
        if self.insomnia < 1 and torch.is_grad_enabled():
            asleep = log_density_of_dreams(model, guide, arguments, seen.rows, self.observed)
            surrogate = surrogate - (1 - self.insomnia) * asleep
        return loss, surrogate

    def surrogate(self, terms: dict[str, Tensor], bound: Tensor) -> Tensor:
        """What to differentiate, of the shape of the bound."""
        shares = (terms["p"] - terms["q"]).detach().softmax(0)
        return (shares * (terms["p"] + self.insomnia * terms["q"])).sum(0)

"""InfoMax: the ELBO and a multiple of the mutual information of rows and latents.

    I(x; z) = E[log q(z | x) - log q(z)],    q(z) = mean over the N rows of q(z | x)

for a row x taken at random and z drawn from q(z | x): at most log N.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any

import pyro.distributions as dist
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from pyro import poutine
from pyro.infer.enum import get_importance_trace
from torch import Tensor

from elbowroom.errors import ModelError, OptionError
from elbowroom.guides.sites import GuideSites
from elbowroom.guides.space import FixedRows, LatentSpace, Plate, SeenRows, sample_sites
from elbowroom.objectives import register
from elbowroom.objectives.estimators import Analytic, Estimate, Objective
from elbowroom.problem.mapping import map_draws
from elbowroom.sizes import SIZES


def single(fn: Any) -> Any:
    """The distribution of one number of a site."""
    while isinstance(fn, (torch.distributions.Independent, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def is_standard_normal(fn: Any) -> bool:
    """Whether a site's numbers are independent standard Normals, as latents of rows are.

    Example:
        >>> is_standard_normal(dist.Normal(torch.zeros(2), 1.0).to_event(1))
        True
    """
    fn = single(fn)
    return isinstance(fn, dist.Normal) and bool((fn.loc == 0).all() and (fn.scale == 1).all())


def log_marginal(log_q: Tensor, owners: Tensor, share: float) -> Tensor:
    """The log of an estimate of q(z), from the rows that draws are compared with, (draws,).

    It is the `share` of the draw's own row times q(z | x) of that row, and the rest times the mean
    over the others. With the share of one of N rows, this is an unbiased estimate of the mean over
    N rows (minibatch stratified sampling: Chen, Li, Grosse and Duvenaud, 2018, "Isolating sources
    of disentanglement in variational autoencoders"), and that mean itself where all of them are
    compared. Of fewer, the log of the estimate is too low on average, and the information too high.

    Args:
        log_q: The log density of each draw given each row, (draws, rows).
        owners: The row of each draw, among those compared, (draws,).
        share: Of the draw's own row, from 0 to 1.

    Example:
        >>> log_q = torch.tensor([[0.2, 0.6], [0.1, 0.3]]).log()
        >>> log_marginal(log_q, torch.tensor([0, 1]), 0.25).exp()
        tensor([0.5000, 0.1500])
    """
    rows = log_q.shape[1]
    is_own = owners.unsqueeze(-1) == torch.arange(rows, device=log_q.device)
    own = log_q.gather(1, owners.unsqueeze(-1)).squeeze(-1)
    others = log_q.masked_fill(is_own, -torch.inf).logsumexp(1) - math.log(rows - 1)
    if share == 0:
        return others
    return torch.logaddexp(own + math.log(share), others + math.log1p(-share))


@plain_dataclass(frozen=True)
class RowDensities:
    """The guide's densities of latents given some rows.

    Attributes:
        guide: The guide, with its parameters in the active store.
        arguments: Its keyword arguments.
        plate: Of the rows.
        names: The sites whose densities count.
        axes: Of each site that is given, the axis of the rows in its value.
    """

    guide: Callable[..., Any]
    arguments: Mapping[str, Any]
    plate: Plate
    names: Collection[str]
    axes: Mapping[str, int]

    def given_each(
        self,
        drawn: Mapping[str, Tensor],
        rows: Tensor,
        beside: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The log density of latents of single rows given each of some rows, (draws, rows).

        Args:
            drawn: The latents, by site, each (draws, ...) without the axis of the rows.
            rows: Which rows, (rows,).
            beside: Values of other sites, that each row has for itself.
        """
        given = {**self.arguments, "batch_size": len(rows)}

        def of_draw(latents: dict[str, Tensor]) -> Tensor:
            data = dict(beside or {})
            for name, value in latents.items():
                data[name] = value.expand(len(rows), *value.shape).movedim(0, self.axes[name])
            with FixedRows({self.plate.name: rows}):
                trace = poutine.trace(poutine.condition(self.guide, data=data)).get_trace(**given)
            return self._of_rows(trace)

        numbers = len(rows) * sum(value[0].numel() for value in drawn.values())
        return map_draws(of_draw, drawn, max(1, SIZES.memory // numbers))

    def _of_rows(self, trace: Any) -> Tensor:
        """The log density of each row's sites, whatever the weight they have in a loss, (rows,)."""
        trace.compute_log_prob()
        total: Any = 0.0
        for name in self.names:
            term = trace.nodes[name]["unscaled_log_prob"].movedim(self.plate.dim, -1)
            total = total + term.reshape(-1, term.shape[-1]).sum(0)
        return total


@dataclass(frozen=True)
class InfoMaxOptions:
    """What `info_max` reads."""

    mutual_information: Annotated[
        float,
        Field(
            ge=0,
            le=1_000_000,
            description="weight of the mutual information of rows and latents, which is added to "
            "the ELBO against posterior collapse; the sum is no bound",
        ),
    ] = 1.0


@register("info_max")
class InfoMax(Objective):
    """The ELBO and `mutual_information` times I(x; z) of rows and latents: `info_max`.

    The sum over the rows of the ELBO and of that multiple of I(x; z) under the guide. With the
    weight a it is E[log p(x | z)] - (1 - a) E[KL(q(z | x) || p(z))] - a KL(q(z) || p(z)) for a row
    (Zhao, Song and Ermon, 2019, "InfoVAE: balancing learning and inference in variational
    autoencoders"; Rezaabad and Vishwanath, 2020, "Learning representations by maximizing mutual
    information in variational autoencoders"). The information of a minibatch is that of
    `log_marginal`: too high on average, never above log N, and right where the minibatch is all
    rows. The sum is no bound on log p(x). The loss is minus the ELBO alone, which need not fall.
    """

    of_its_loss = False
    closed = True
    asked_by_option = True
    options_kind = InfoMaxOptions

    @classmethod
    def why_not(cls, space: LatentSpace, sites: GuideSites) -> str | None:
        """What it needs that a model and a guide do not have; or None."""
        leave = "leave it out, and --mutual-information."
        if not (space.rows_only and space.local_continuous):
            discrete = ", with latents that are real numbers" if space.rows_only else ""
            return (
                " is for models whose latents all belong to rows, such as autoencoders"
                f"{discrete}; {leave}"
            )
        if sites.discrete or sites.rough:
            # log q(z) is followed along the draws of z.
            name = min(sites.discrete or sites.rough)
            return f" needs reparameterised sites, and '{name}' is none; {leave}"
        return None

    @classmethod
    def said(cls, options: Any) -> str:
        """What a reader should know of a fit by it."""
        return (
            f"The objective was the ELBO plus {options.mutual_information:g} times an estimate of "
            "the mutual information of rows and latents: no bound on log p(data). The ELBO that is "
            "reported, and its history, are the ELBO alone."
        )

    def estimates(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> Iterator[Estimate]:
        """One for each draw."""
        for elbo, information in self._terms(model, guide, arguments, torch.is_grad_enabled()):
            yield elbo, elbo + information

    def goal(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> Tensor:
        """What is maximised, ()."""
        terms = self._terms(model, guide, arguments, True)
        return torch.stack([elbo + more for elbo, more in terms]).mean()

    def _terms(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        arguments: dict[str, Any],
        informed: bool,
    ) -> Iterator[tuple[Any, Any]]:
        """The ELBO, and the weighted information of all rows if asked, at each draw."""
        plain = Analytic(1, self.nesting)
        for _ in range(self.particles):
            with SeenRows() as seen:
                of_model, of_guide = get_importance_trace(
                    "flat", self.nesting, model, guide, (), arguments
                )
            elbo, _ = plain.estimate(of_model, of_guide)
            weight, more = self.options.mutual_information, 0.0
            if informed and weight:
                told = self._information(of_model, of_guide, guide, arguments, seen.rows)
                more = weight * told
            yield elbo, more

    def _information(
        self,
        model_trace: poutine.Trace,
        guide_trace: poutine.Trace,
        guide: Callable[..., Any],
        arguments: dict[str, Any],
        seen: Mapping[str, Tensor],
    ) -> Tensor:
        """N times the information, ()."""
        plate = self.rows
        assert plate is not None
        prior = dict(sample_sites(model_trace))
        nodes = {name: node for name, node in sample_sites(guide_trace) if name in prior}
        names = [name for name in nodes if is_standard_normal(prior[name]["fn"])]
        if not names:
            raise ModelError(
                "the rows have no latents with a standard Normal prior, whose mutual information "
                "with the rows could be taken; leave --mutual-information out."
            )
        axes = {name: len(node["fn"].batch_shape) + plate.dim for name, node in nodes.items()}
        drawn = {name: nodes[name]["value"].movedim(axes[name], 0) for name in names}
        count = len(drawn[names[0]])
        if count < 2:
            raise OptionError(
                "--mutual-information compares rows, and a minibatch has only one; give a larger "
                "--batch-size."
            )
        rows = seen.get(plate.name)
        if rows is None or len(rows) != count:
            rows = torch.arange(count, device=drawn[names[0]].device)
        densities = RowDensities(guide, arguments, plate, names, axes)
        beside = {name: node["value"] for name, node in nodes.items() if name not in names}
        log_q = densities.given_each(drawn, rows, beside)  # (draws, rows)
        owners = torch.arange(count, device=log_q.device)
        own = log_q.diagonal()
        return plate.size * (own - log_marginal(log_q, owners, 1 / plate.size)).mean()

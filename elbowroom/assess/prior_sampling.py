r"""The evidence from draws of the prior, and from draws of a guide: what each wastes.

With draws $z_s$ of the prior, the mean likelihood is the evidence,

$$p(x) = E_{p(z)}[p(x \mid z)] \approx \frac1S \sum_s p(x \mid z_s),$$

but few draws come near the posterior, and these alone carry the mean. How few, their effective
number tells (Kong, 1992, "A note on importance sampling using standardized weights").
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from pyro import poutine

from elbowroom.draws.of_guide import draw
from elbowroom.draws.row_weights import weigh_rows
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.errors import ModelError
from elbowroom.guides.sites import GuideSites
from elbowroom.guides.space import Unobserved, sample_sites
from elbowroom.problem.bound import Problem
from elbowroom.problem.score import score


@dataclass(frozen=True)
class SampledEvidence:
    """Log p(data) as the mean importance weight of draws.

    Attributes:
        drawn_from: "prior" or "guide".
        draws: How many; of each row, where all latents belong to rows.
        log_evidence: In nats. In expectation it is too low, by more the fewer draws carry it.
        log_evidence_se: Its standard error, which is too small where k-hat is high.
        effective_draws: How many draws of equal weight it is worth; the mean of the rows where each
            has weights of its own.
        wasted: The share of the draws that it could do without.
        k_hat: The Pareto shape of the weights, which all rows but a few have at most.
    """

    drawn_from: str
    draws: int
    log_evidence: float
    log_evidence_se: float
    effective_draws: float
    wasted: float
    k_hat: float

    @classmethod
    def of(cls, drawn_from: str, weighted: WeightedDraws) -> "SampledEvidence":
        """What weighted draws tell.

        Example:
            >>> log_p = np.log(np.repeat([1.0, 3.0], 50))
            >>> found = SampledEvidence.of("prior", WeightedDraws({}, log_p, np.zeros(100)))
            >>> round(found.log_evidence, 3), round(found.effective_draws, 1)  # log 2, 200² / 500
            (0.693, 80.0)
        """
        draws = len(weighted.log_p)
        with np.errstate(all="ignore"):  # a draw of the prior may have no likelihood
            effective = float(np.mean(weighted.unsmoothed_effective_sample_size))
            value, error = weighted.log_evidence
        return cls(
            drawn_from, draws, value, error, effective, 1 - effective / draws, weighted.worst_k_hat
        )


def prior_as_guide(problem: Problem, guide: GuideSites) -> Callable[..., Any]:
    """The model without its observations, as a guide of the sites that a guide draws.

    Its other sites, such as discrete ones that are summed over, are drawn as well, but do not
    count.
    """
    drawn = {site.name for site in problem.space.sites} | (
        set(problem.space.discrete) & guide.discrete
    )

    @wraps(problem.function)
    def prior(**arguments: Any) -> None:
        with poutine.block(expose=list(drawn)):
            Unobserved()(problem.function)(**arguments)

    return prior


def evidence_by_sampling(
    problem: Problem, guide: Callable[..., Any], sites: GuideSites, draws: int
) -> list[SampledEvidence]:
    """The evidence by as many draws of the prior as of the guide.

    Args:
        problem: The model bound to its data.
        guide: Fitted, with its parameters and the model's in the active store.
        sites: What a run of it shows.
        draws: Of each.

    Returns:
        A line for the prior and one for the guide; the guide's alone if the prior cannot be
        sampled, or is one of continuous sites given discrete ones that are summed over.
    """
    space = problem.space
    sources: dict[str, Callable[..., Any]] = {"prior": prior_as_guide(problem, sites)}
    sources["guide"] = guide
    rows = space.rows_only and set(space.discrete) <= sites.discrete
    found = []
    for name, each in sources.items():
        given = problem.function, each, problem.arguments, space, draws
        try:
            if name == "prior":
                _check_prior(problem, each)
            weighted = weigh_rows(*given) if rows else draw(*given)
        except (NotImplementedError, ModelError, ValueError):
            if name == "guide":
                raise
            continue
        found.append(SampledEvidence.of(name, weighted))
    return found


def _check_prior(problem: Problem, prior: Callable[..., Any]) -> None:
    """Sees that the densities of the drawn sites are those that the model's own density has.

    Raises:
        ModelError: If a continuous site's density is a mixture over discrete ones.
        NotImplementedError: If a prior cannot be sampled.
    """
    with torch.no_grad():
        trace = poutine.trace(prior).get_trace(**problem.arguments)
        given: dict[str, Any] = {
            name: node["value"] for name, node in sample_sites(trace) if name in _latents(problem)
        }
        densities = score(problem.function, problem.arguments, given, problem.space).log_prior
    mixed = [site.name for site in problem.space.sites if site.name not in densities]
    if mixed:
        raise ModelError(f"the prior of '{mixed[0]}' depends on discrete sites.")


def _latents(problem: Problem) -> set[str]:
    return {site.name for site in problem.space.sites} | set(problem.space.discrete)

"""The point parameters of a model (`pyro.param`) at the maximum of their marginal likelihood.

The evidence at other values of the parameters follows from importance-weighted draws of the latents
at one, as a smooth function that is climbed as far as the draws still have weight; then they are
drawn anew (Geyer, 1994, "On the convergence of Monte Carlo maximum likelihood calculations").
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor

from elbowroom.density.density import Density
from elbowroom.density.importance import effective_sample_size
from elbowroom.density.modes import guarded_loss
from elbowroom.errors import GuideError


@dataclass(frozen=True)
class MarginalClimb:
    """How point parameters climb to their maximum marginal likelihood."""

    farthest: float = 2.0
    """How far one climb may take an unconstrained parameter."""
    kept: float = 0.3
    """The share of the effective draws that must be left where a climb ends."""
    near_enough: float = 2e-3
    """The gain of log evidence, in nats, below which a climb is the last: about a twentieth of a
    standard error."""
    climbs: int = 40
    """Climbs, at most."""
    most_draws: int = 4000
    """Draws of a climb, at most."""


MARGINAL = MarginalClimb()


@dataclass(frozen=True)
class Sample:
    """Draws of the latents at some values of the point parameters, with what they came from.

    Attributes:
        points: Unconstrained, (draws, D).
        log_q: Of each.
    """

    points: np.ndarray
    log_q: np.ndarray


@dataclass(frozen=True)
class MaximumLikelihood:
    """Point parameters at the maximum of their marginal likelihood.

    Attributes:
        values: By name, constrained, float64.
        standard_errors: Of the unconstrained numbers, by name; NaN where the likelihood has no
            curvature.
        log_evidence: There, in nats.
        converged: Whether another climb would gain nothing.
        climbs: How many there were.
    """

    values: dict[str, Tensor]
    standard_errors: dict[str, Tensor]
    log_evidence: float
    converged: bool
    climbs: int

    @property
    def note(self) -> str:
        """What they are, as a sentence."""
        shown = []
        for name, value in self.values.items():
            numbers = ", ".join(f"{number:.4g}" for number in value.reshape(-1)[:4].tolist())
            more = ", …" if value.numel() > 4 else ""
            shown.append(f"{name} = {f'[{numbers}{more}]' if value.dim() else numbers}")
        return (
            "the point parameters are at the maximum of their marginal likelihood, and the "
            f"posterior is conditional on these values: {', '.join(shown)}."
        )


def maximise(joint: Density, sample: Callable[[dict[str, Tensor]], Sample]) -> MaximumLikelihood:
    """Climbs the marginal likelihood of point parameters.

    Args:
        joint: The log density of the latents and, after them, of the parameters' flat vector; see
            the argument `with_parameters` of `Density`.
        sample: Draws the latents given the parameters' values.

    Raises:
        GuideError: If the evidence is not finite.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from elbowroom.guides.space import LatentSpace
        >>> from elbowroom.problem.isolation import isolated
        >>> def model(y):
        ...     mean = pyro.param("mean", torch.tensor(0.0))
        ...     z = pyro.sample("z", dist.Normal(mean, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> arguments = {"y": torch.tensor(3.0, dtype=torch.float64)}
        >>> with isolated(0):
        ...     space = LatentSpace.of(model, arguments)
        ...     joint = Density(model, arguments, space, with_parameters=True)
        >>> def sample(values):  # the posterior given the mean: exact draws
        ...     centre = (float(values["mean"]) + 3.0) / 2
        ...     points = centre + np.random.default_rng(0).standard_normal((1000, 1)) * 0.5**0.5
        ...     log_q = -((points[:, 0] - centre) ** 2) - 0.5 * np.log(np.pi)
        ...     return Sample(points, log_q)
        >>> found = maximise(joint, sample)
        >>> error = float(found.standard_errors["mean"])  # √2 by the closed form
        >>> round(error, 1), abs(float(found.values["mean"]) - 3.0) < 0.1 * error
        (1.4, True)
    """
    parameters = joint.space.parameters
    flat, climbs, converged = parameters.start, 0, False
    while True:
        values = parameters.constrained(torch.as_tensor(flat))
        evidence = _Evidence(joint, sample(values))
        before = evidence(flat)[0]
        if not np.isfinite(before):
            raise GuideError(
                "the marginal likelihood is not finite at the initial values of the point "
                "parameters (pyro.param); choose better initial values, or fit with --engine "
                "svi."
            )
        climbs += 1
        moved, whole = evidence.climb(flat)
        gain = evidence(moved)[0] - before
        flat, converged = moved, whole and gain < MARGINAL.near_enough
        if converged or climbs >= MARGINAL.climbs:
            break
    return MaximumLikelihood(
        parameters.constrained(torch.as_tensor(flat)),
        parameters.split(torch.as_tensor(evidence.standard_errors(flat))),
        float(evidence(flat)[0]),
        converged,
        climbs,
    )


class _Evidence:
    """The log evidence of point parameters, by draws at some values of them."""

    def __init__(self, joint: Density, sample: Sample) -> None:
        self.joint = joint
        few = joint.affordable(min(len(sample.points), MARGINAL.most_draws), 500)
        self.points, self.log_q = sample.points[:few], sample.log_q[:few]

    def _weighed(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        beside = np.broadcast_to(flat, (len(self.points), len(flat)))
        values, gradients = self.joint.value_and_gradient(
            np.concatenate([self.points, beside], axis=1)
        )
        return values - self.log_q, gradients[:, self.points.shape[1] :]

    def __call__(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        """The log evidence, and its gradient by Fisher's identity, (P,)."""
        log_weights, gradients = self._weighed(flat)
        total = logsumexp(log_weights)
        if not np.isfinite(total):
            return -np.inf, np.zeros_like(flat)
        weights = np.exp(log_weights - total)
        used = weights > 0
        return float(total - np.log(len(log_weights))), weights[used] @ gradients[used]

    def effective(self, flat: np.ndarray) -> float:
        """Draws that the weighted ones are worth."""
        return effective_sample_size(self._weighed(flat)[0])

    def climb(self, flat: np.ndarray) -> tuple[np.ndarray, bool]:
        """Where the evidence is higher, and whether all the way was gone.

        The way is shortened until enough of the draws still have weight.
        """
        bounds = list(zip(flat - MARGINAL.farthest, flat + MARGINAL.farthest, strict=True))
        options = {"maxiter": 30, "gtol": 1e-6, "ftol": 1e-12}
        end = minimize(
            guarded_loss(self), flat, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        ).x
        least, share = MARGINAL.kept * self.effective(flat), 1.0
        while share > 1e-3:
            there = flat + share * (end - flat)
            if self.effective(there) >= least and self(there)[0] >= self(flat)[0]:
                at_bound = (np.abs(there - flat) >= 0.99 * MARGINAL.farthest).any()
                return there, share == 1.0 and not at_bound
            share /= 2
        return flat, False

    def standard_errors(self, flat: np.ndarray) -> np.ndarray:
        """From the curvature, (P,)."""
        step, rows = 1e-4, []
        for unit in np.eye(len(flat)):
            ahead, behind = self(flat + step * unit)[1], self(flat - step * unit)[1]
            rows.append((behind - ahead) / (2 * step))
        information = np.array(rows)
        try:
            variances = np.diag(np.linalg.inv((information + information.T) / 2))
        except np.linalg.LinAlgError:
            variances = np.full(len(flat), np.nan)
        return np.sqrt(np.where(variances > 0, variances, np.nan))

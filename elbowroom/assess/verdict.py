"""The verdict: whether a posterior can be trusted, why, and what to do next."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from arviz_stats.base import array_stats

from elbowroom.density.importance import (
    ERRORS,
    k_hat_interval,
    k_hat_threshold,
    standard_errors,
)

SHIFT = 0.1
"""The distance of a raw mean from the corrected one, in corrected sds, and the log ratio of the
sds, up to which the guide's own draws are as good."""
FEWEST_EFFECTIVE = 400.0
"""Effective draws below which means and sds are not resolved (Vehtari et al., 2021)."""
RESOLVED = 0.1
"""The relative standard error of a sd above which it is not resolved."""
MISSING = 5.0
"""Nats of evidence that the draws may lack against Laplace's estimate at the best mode."""
ELSEWHERE = 0.1
"""Nats of evidence that draws about all modes may have beyond a guide's."""
LESS = 0.02
"""Nats that another guide may find beyond the draws; so it may `ERRORS` standard errors."""
OUTSIDE, LASTING, FEWEST_CHAINS = 0.01, 0.004, 3
"""The posterior's mass that chains from the draws may find outside, the same where components were
made there and did not help, and by how many chains."""
SLOPE = 1e-3
"""The relative error of a gradient above which it is wrong."""
HEAVY = 0.45
"""The Pareto shape of a quantity's tail at which its sd cannot be had: from 0.5 on it has none."""

NAMED = 3
"""Quantities that a verdict names."""
FARTHEST, MUCH = 1e-3, 0.06
"""The mass whose part of the variance is looked at, and what is much: of a Normal it is 0.013."""
FAR = 6.0
"""Standard deviations from the mean; a tail that ends before is not looked at."""

TRUSTED, CORRECTED, NOT_TRUSTED = "trusted", "trusted after correction", "not trusted"


@dataclass(frozen=True)
class Verdict:
    """Whether a posterior can be trusted.

    Attributes:
        level: "trusted", "trusted after correction" or "not trusted".
        reasons: Why, in sentences, the ones that decide first.
        advice: What to do next; empty where there is nothing to do.

    Example:
        >>> verdict = Verdict("not trusted", ("k-hat is 0.9.",), "elbowroom reference RUN")
        >>> verdict.trusted
        False
        >>> print(verdict)
        not trusted: k-hat is 0.9.
        next: elbowroom reference RUN
    """

    level: str
    reasons: tuple[str, ...]
    advice: str = ""

    @property
    def trusted(self) -> bool:
        """Whether it is, perhaps after correction."""
        return self.level != NOT_TRUSTED

    def __bool__(self) -> bool:
        return self.trusted

    def __str__(self) -> str:
        lines = [f"{self.level}: {' '.join(self.reasons)}"]
        return "\n".join([*lines, f"next: {self.advice}"] if self.advice else lines)

    def plain(self) -> dict[str, Any]:
        """As it is written to a file."""
        return {**asdict(self), "reasons": list(self.reasons), "trusted": self.trusted}

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Verdict":
        """As it was written to a file."""
        return cls(plain["level"], tuple(plain["reasons"]), plain["advice"])


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made of.

    Attributes:
        converged: Whether the optimum was reached.
        status: How the optimiser ended, as a sentence.
        stochastic: Whether the optimiser was the stochastic one.
        point: Whether the guide is one point.
        k_hat: Of the weights that the posterior rests on, or would rest on.
        draws: How many there are.
        effective: Draws that they are worth.
        corrected: Whether the posterior holds corrected draws.
        shift: The largest distance of a raw mean from the corrected one, in sds.
        ratio: The largest log ratio of a raw sd to the corrected one, either way.
        starts: How many there were, and how many reached the best mode; None if they say nothing.
        modes: The shares of the posterior's mass of the modes that were kept, largest first.
        relabelled: Whether modes differ by the labels of exchangeable parts.
        unresolved: Sentences of quantities whose mean or sd is not resolved.
        predictive: Sentences of statistics that the model does not reproduce.
        missing: Nats by which Laplace's evidence of the best place climbed to, a mode or where a
            climb was stopped, exceeds that of the draws.
        less: Nats of evidence that another guide of the same model found beyond the draws', and the
            standard error of the difference.
        outside: The posterior's mass of chains that began at the draws and came to where no draw
            is, and how many chains did so.
        own_starts: Whether climbs began at the model's own starts alone.
        lasting: Whether more components for what is outside were made, again and again.
        unfinished: Whether the last starts still found new modes.
        covered: Whether the draws cover wherever starts, candidates for them and chains came to, so
            that it matters no more which modes they are parts of.
        elsewhere: Nats of evidence that draws about every known mode have beyond the guide's, and
            the standard error of the difference.
        maximum: Why the likelihood has no maximum where one was looked for, as a sentence.
        mend: What to do where the optimum was not reached, or is one point, if more is known.
        invalid: What of the model is not valid at some of the draws, as a sentence.
        doubts: Sentences of what the model may be wrong for in these data.
        ladder: Whether the guide `auto` tries several for this model.
        endless: A direction in which the log density does not fall, if one was found.
        left_out: The share of the posterior at the largest known mode that has too few draws.
        slope: The largest relative difference of the density's gradient from differences of its
            values.
        reference: The comparison with a long run of NUTS, as a sentence, and whether it agrees.
        rows: Where each row has weights of its own, how many rows there are, and the share of those
            whose weights are unreliable; `k_hat` and `effective` are of all rows but a few, `shift`
            and `ratio` of half of them.
        health: Sentences of what the latents of rows carry.
    """

    converged: bool
    status: str
    stochastic: bool
    point: bool
    k_hat: float
    draws: int
    effective: float
    corrected: bool
    shift: float = 0.0
    ratio: float = 0.0
    starts: tuple[int, int] | None = None
    modes: tuple[float, ...] = ()
    relabelled: bool = False
    unresolved: tuple[str, ...] = ()
    predictive: tuple[str, ...] = ()
    missing: float = 0.0
    less: tuple[float, float] = (0.0, 0.0)
    outside: tuple[float, int] = (0.0, 0)
    own_starts: bool = False
    lasting: bool = False
    unfinished: bool = False
    covered: bool = False
    elsewhere: tuple[float, float] = (0.0, 0.0)
    endless: str | None = None
    left_out: float = 0.0
    slope: float = 0.0
    reference: tuple[str, bool] | None = None
    rows: tuple[int, float] | None = None
    health: tuple[str, ...] = ()
    ladder: bool = True
    maximum: str = ""
    mend: str = ""
    invalid: str = ""
    doubts: tuple[str, ...] = ()

    @property
    def lacking(self) -> bool:
        """Whether another guide found more evidence than by chance."""
        return self.less[0] > max(LESS, ERRORS * self.less[1])

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Evidence":
        """As it was written to a file, where tuples are lists."""
        found: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()
        }
        return cls(**found)


def judge(evidence: Evidence) -> Verdict:
    """The verdict that the evidence allows."""
    against, advice = _against(evidence)
    kind = _weights(evidence)
    if against:
        reasons = [*against, *_remarks(evidence)]
        return Verdict(NOT_TRUSTED, tuple(reasons), advice[0])
    if evidence.reference is not None:
        return Verdict(TRUSTED, (evidence.reference[0], *_remarks(evidence)))
    reasons = [kind]
    if evidence.starts is not None and evidence.starts[1] > 1:
        reasons.append("{} of {} starts reached the best mode.".format(*evidence.starts))
    if len(evidence.modes) > 1:
        shares = ", ".join(f"{share:.0%}" for share in evidence.modes)
        reasons.append(f"{len(evidence.modes)} modes hold {shares} of the mass.")
    same = evidence.shift <= SHIFT and evidence.ratio <= SHIFT
    if evidence.corrected and not same:
        factor = np.exp(min(evidence.ratio, 99.0))
        by = f"a factor {factor:.2g}" if factor < 1e3 else "a factor over 1,000"
        reasons.append(
            "The posterior holds the corrected draws: the guide's own are off by up to "
            f"{evidence.shift:.2g} sd in a mean and {by} in an sd."
        )
    level = TRUSTED if same else CORRECTED
    return Verdict(level, (*reasons, *_remarks(evidence)))


def _weights(evidence: Evidence) -> str:
    lower, upper = k_hat_interval(evidence.k_hat, evidence.draws)
    limit = k_hat_threshold(evidence.draws)
    if evidence.rows is not None:
        return _weights_of_rows(evidence, limit)
    if np.isneginf(evidence.k_hat):
        return f"All importance weights are equal: {evidence.effective:,.0f} effective draws."
    return (
        f"k-hat {evidence.k_hat:.2f} ({lower:.2f} to {upper:.2f}, limit {limit:.2f}), "
        f"{evidence.effective:,.0f} effective draws."
    )


def _weights_of_rows(evidence: Evidence, limit: float) -> str:
    assert evidence.rows is not None
    count, unreliable = evidence.rows
    if np.isneginf(evidence.k_hat):
        if evidence.effective > 0.999 * evidence.draws:
            return f"All importance weights of each of the {count:,} rows are equal."
        return (
            f"In 95 % of the {count:,} rows nearly all weight is on values that were drawn more "
            f"than once: {evidence.effective:,.0f} effective draws of {evidence.draws:,} or more."
        )
    few = round(unreliable * count)
    left = f" {few:,} of the {count:,} rows have unreliable weights, and the guide's own draws."
    return (
        f"The weights of 95 % of the {count:,} rows have a k-hat up to {evidence.k_hat:.2f} "
        f"(limit {limit:.2f}), and {evidence.effective:,.0f} effective draws of "
        f"{evidence.draws:,} or more.{left if few else ''}"
    )


def improper(direction: str) -> str:
    """A reason against a posterior, from a direction in which the log density does not fall."""
    return f"The posterior is not proper: the log density does not fall along {direction}."


def _against(evidence: Evidence) -> tuple[list[str], list[str]]:
    """What speaks against trust, and what to do about each.

    A reference that agrees speaks for the optimum and for the draws; not for what its chains, which
    begin at the fit's draws, may have missed as well.
    """
    reasons, advice = [], []
    agrees = evidence.reference is not None and evidence.reference[1]
    if evidence.maximum:
        reasons.append(evidence.maximum)
        advice.append("fit with --guide map, whose priors give it one, or a smaller model.")
    if evidence.point:
        reasons.append("The guide is one point, which has no spread.")
        advice.append(evidence.mend or "fit with --guide auto.")
    if evidence.invalid:
        reasons.append(evidence.invalid)
        advice.append(
            "write the model so that it is valid at every value of its latents; elbowroom check "
            "runs it at random ones."
        )
    if evidence.endless:
        reasons.append(improper(evidence.endless))
        advice.append("give each of these sites a proper prior, or leave one of them out.")
    if evidence.slope > SLOPE:
        reasons.append(
            "The gradient of the model's log density is not that of its values: off by "
            f"{evidence.slope:.2g} of its size."
        )
        advice.append(
            "mend the operation in the model that has a wrong gradient or none: a detach, a "
            "torch.no_grad or an autograd.Function."
        )
    if evidence.reference is not None and not agrees:
        reasons.append(evidence.reference[0])
        advice.append("take the reference's draws.")
    needed = evidence.stochastic or not (evidence.corrected and evidence.covered)
    if not evidence.converged and not agrees and needed:
        reasons.append(evidence.status[:1].upper() + evidence.status[1:])
        usual = (
            "give more --steps, or a smaller --learning-rate; of minibatches, larger ones."
            if evidence.stochastic
            else "fit with --guide auto, or write the model with a non-centred parameterisation."
        )
        advice.append(evidence.mend or usual)
    upper = k_hat_interval(evidence.k_hat, evidence.draws)[1]
    rests_on_weights = not (evidence.point or agrees)
    if evidence.rows is not None and not evidence.point:
        if not evidence.corrected:
            reasons.append(
                f"The guide misses the posterior of {evidence.rows[1]:.0%} of the "
                f"{evidence.rows[0]:,} rows, whose importance weights cannot mend it (k-hat above "
                f"{k_hat_threshold(evidence.draws):.2f}, or too few effective draws)."
            )
            advice.append(
                "fit with --guide local, which has no network to generalise, or with --elbo iwae "
                "--particles 10; 'elbowroom score RUN' tells of each row."
            )
    elif rests_on_weights and not upper <= k_hat_threshold(evidence.draws):
        reasons.append(
            f"The importance weights cannot mend the guide: {_weights(evidence)}"
            if evidence.k_hat > k_hat_threshold(evidence.draws)
            else f"The importance weights may not mend the guide: {_weights(evidence)}"
        )
        nuts = "compare with NUTS, elbowroom reference RUN, or fit with --fallback nuts."
        if not evidence.ladder:  # of a network's weights, that have more modes than are found
            nuts = "judge its predictions of rows held out: elbowroom compare --test-size 0.25."
        auto = evidence.stochastic and evidence.ladder
        advice.append("fit with --guide auto." if auto else nuts)
    elif rests_on_weights and not evidence.effective >= FEWEST_EFFECTIVE:
        reasons.append(f"Too few effective draws: {_weights(evidence)}")
        advice.append("give more --draws.")
    alone = evidence.starts is not None and evidence.starts[1] > 3 and evidence.starts[0] == 1
    if alone and evidence.starts is not None and not evidence.covered:
        reasons.append(
            f"Only 1 of {evidence.starts[1]} starts reached the best mode: a better one may be "
            "missed."
        )
        advice.append(f"give --restarts {4 * evidence.starts[1]}.")
    if evidence.unfinished and not evidence.covered:
        reasons.append("The last starts still found new modes: others may be missed.")
        advice.append("compare with NUTS, elbowroom reference RUN, or fit with --fallback nuts.")
    if evidence.missing > MISSING and not evidence.covered:
        reasons.append(
            f"The draws hold {evidence.missing:.0f} nats less evidence than the best place climbed "
            "to should: they may have missed it."
        )
        advice.append("fit with another --seed, or compare with NUTS: elbowroom reference RUN.")
    if evidence.left_out:
        reasons.append(
            f"A mode that holds {evidence.left_out:.0%} of the posterior has next to no draws."
        )
        advice.append("compare with NUTS, elbowroom reference RUN, or fit with another --seed.")
    if evidence.lacking:
        reasons.append(
            f"Another guide found {evidence.less[0]:.2g} nats more evidence: these draws lack a "
            "part of the posterior."
        )
        advice.append("compare with NUTS, elbowroom reference RUN, or fit with --fallback nuts.")
    more, error = evidence.elsewhere
    if not agrees and more > max(ELSEWHERE, ERRORS * error):
        reasons.append(
            f"Draws about all modes that the starts reached hold {more:.2g} nats more evidence: "
            "the guide has left a part of the posterior out."
        )
        advice.append(
            "fit with --guide auto, which draws about all modes."
            if evidence.ladder
            else "compare with NUTS, elbowroom reference RUN."
        )
    share, chains = evidence.outside
    limit = LASTING if evidence.lasting else OUTSIDE
    if rests_on_weights and share > limit and chains >= FEWEST_CHAINS:
        reasons.append(
            f"Markov chains that began at the draws came to where no draw is: at least {share:.1%} "
            "of the posterior is missing."
        )
        advice.append("compare with NUTS, elbowroom reference RUN, or fit with --fallback nuts.")
    if evidence.unresolved and not reasons:
        reasons.extend(evidence.unresolved[:NAMED])
        if len(evidence.unresolved) > NAMED:
            reasons.append(f"So are {len(evidence.unresolved) - NAMED} more.")
        advice.append("read the quantiles of these quantities, not their mean and sd.")
    return reasons, advice


def _remarks(evidence: Evidence) -> list[str]:
    remarks = []
    if not (evidence.converged or evidence.stochastic) and evidence.corrected and evidence.covered:
        remarks.append(evidence.status[:1].upper() + evidence.status[1:])
    if evidence.starts is not None and evidence.starts[1] == 1:
        remarks.append("One start was made: other modes were not looked for.")
    if evidence.own_starts and evidence.starts is not None:
        remarks.append("The starts are the model's own: modes elsewhere were not looked for.")
    if evidence.relabelled:
        remarks.append(
            "Modes that differ only in labels are one: the labels are those of one mode."
        )
    return [*remarks, *evidence.doubts, *evidence.health, *evidence.predictive]


def unresolved_quantities(
    values: Mapping[str, np.ndarray], weights: np.ndarray
) -> tuple[dict[str, float], list[str]]:
    """Quantities whose mean or sd weighted draws do not resolve.

    Args:
        values: For each quantity, its value at each draw, (draws, ...).
        weights: Of the draws, summing to one, (draws,).

    Returns:
        For each scalar quantity that reaches far, the Pareto shape of its heavier tail; and a
        sentence for each that is not resolved.

    Example:
        >>> random = np.random.default_rng(0)
        >>> weights = np.full(4000, 1 / 4000)
        >>> _, sentences = unresolved_quantities({"x": random.standard_cauchy(4000)}, weights)
        >>> sentences[0][:29]
        'The sd of x is not resolved: '
    """
    shapes, sentences = {}, []
    for name, each in values.items():
        flat = np.asarray(each, dtype=float).reshape(len(weights), -1)
        with np.errstate(invalid="ignore", over="ignore"):
            _, errors = standard_errors(weights, flat)
            mean = weights @ flat
            sd = np.sqrt(weights @ np.square(flat - mean))
            varies = ~(sd <= 1e-12 * np.maximum(1.0, np.abs(mean)))  # NaN too
            reach = np.abs(flat - mean).max(0) / np.where(varies, sd, np.inf)
        # A tail that does not reach far is not heavy.
        for j in np.flatnonzero(varies & ~((reach <= FAR) & (errors <= RESOLVED))):
            label = f"{name}[{j}]" if flat.shape[1] > 1 else name
            shapes[label] = _tail(flat[:, j], weights)
            heavy = shapes[label] > HEAVY and _from_the_farthest(flat[:, j], weights) > MUCH
            if heavy or not errors[j] <= RESOLVED:
                sentences.append(
                    f"The sd of {label} is not resolved: its tail is heavy (Pareto k "
                    f"{shapes[label]:.2f}, standard error {errors[j]:.0%})."
                )
    return shapes, sentences


def _from_the_farthest(column: np.ndarray, weights: np.ndarray) -> float:
    """The share of the variance that comes from the farthest draws, of a thousandth of the mass.

    A tail of many modes has the shape of a power law too, and gives as little as a Normal one.
    """
    with np.errstate(invalid="ignore"):  # an infinite draw has an error that is not resolved
        square = np.square(column - weights @ column)
    order = np.argsort(-square)
    far = order[np.cumsum(weights[order]) <= FARTHEST]
    return float(weights[far] @ square[far] / (weights @ square))


def _tail(column: np.ndarray, weights: np.ndarray) -> float:
    """The Pareto shape of the heavier tail of weighted draws."""
    order = np.argsort(column)
    at = (np.arange(4000) + 0.5) / 4000
    spread = np.interp(at, np.cumsum(weights[order]) - weights[order] / 2, column[order])
    try:
        with np.errstate(all="ignore"):
            shape = array_stats.pareto_khat(spread[None], r_eff=1.0)
    except ValueError:  # most of the weight is on one draw
        return float("inf")
    return float(np.max(shape))

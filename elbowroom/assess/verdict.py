"""The verdict: whether a posterior can be trusted, why, and what to do next.

Each check looks at one piece of the evidence, and says what speaks against trust and what to do
about it. The most severe comes first, and its remedy is the advice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from pydantic import ConfigDict

from elbowroom.assess.evidence import Evidence
from elbowroom.density.importance import ERRORS, k_hat_interval, k_hat_threshold
from elbowroom.draws.many_chains import MANY_CHAINS
from elbowroom.draws.weighted import WEIGHING


@dataclass(frozen=True)
class Limits:
    """Limits of the verdict's checks."""

    shift: float = 0.1
    """The distance of a raw mean from the corrected one, in corrected sds, and the log ratio of the
    sds, up to which the guide's own draws are as good."""
    missing_evidence: float = 5.0
    """Nats by which the evidence of the draws may be below Laplace's estimate at the best mode."""
    all_modes: float = 0.1
    """Nats of evidence by which draws around all modes may exceed the guide's."""
    other_guide: float = 0.02
    """Nats by which the evidence of another guide may exceed that of the draws, where that is more
    than chance."""
    outside: float = 0.01
    """The posterior's mass that chains from the draws may find outside of them."""
    lasting: float = 0.004
    """The same where components were added there and did not help."""
    r_hat: float = MANY_CHAINS.r_hat
    """The R-hat of Markov chains above which they have not mixed."""
    diverged: float = 0.01
    """The share of trajectories that diverged above which some mass may be missing."""
    fewest_chains: int = 3
    """Chains that must have found mass outside before it counts."""
    slope_error: float = 1e-3
    """The relative error of a gradient above which it is wrong."""
    few_starts: int = 3
    """The number of starts up to which it says nothing that only one reached the best mode."""
    named: int = 3
    """Quantities that a verdict names."""


LIMITS = Limits()


TRUSTED, CORRECTED, NOT_TRUSTED = "trusted", "trusted after correction", "not trusted"

NUTS = "compare with NUTS ('elbowroom reference RUN'), or fit with --fallback nuts."
AUTO = "fit with --guide auto."
REFERENCE = "compare with NUTS ('elbowroom reference RUN')."
NON_CENTRED = "write the model with a non-centred parameterisation."


@dataclass(frozen=True)
class Verdict:
    """Whether a posterior can be trusted.

    Attributes:
        level: "trusted", "trusted after correction" or "not trusted".
        reasons: Why, in sentences, the ones that decide first.
        advice: What to do next; empty where there is nothing to do.

    Example:
        >>> verdict = Verdict("not trusted", ("k-hat is 0.9.",), "give more --draws.")
        >>> verdict.trusted
        False
        >>> print(verdict)
        not trusted: k-hat is 0.9.
        next: give more --draws.
    """

    level: str
    reasons: tuple[str, ...]
    advice: str = ""
    __pydantic_config__ = ConfigDict(extra="ignore")  # `trusted` is in the file, too

    @property
    def trusted(self) -> bool:
        """Whether it is, perhaps after correction."""
        return self.level != NOT_TRUSTED

    def __bool__(self) -> bool:
        return self.trusted

    def __str__(self) -> str:
        lines = [f"{self.level}: {' '.join(self.reasons)}"]
        return "\n".join([*lines, f"next: {self.advice}"] if self.advice else lines)


class Severity(IntEnum):
    """What a check that says no is about, the most severe first."""

    NO_POSTERIOR = 0
    """There is no posterior, or it is not that of the model."""
    CONTRADICTED = 1
    """A reference says otherwise."""
    NOT_REACHED = 2
    """The optimum was not reached."""
    WEIGHTS = 3
    """The importance weights are poor."""
    PART_MISSING = 4
    """The draws may have missed a part of the posterior."""
    UNRESOLVED = 5
    """All is well but for some quantities: looked at where nothing else is wrong."""


WIDE = (Severity.WEIGHTS, Severity.PART_MISSING)
"""What a posterior of many parts leads to, which a simpler model has not."""


@dataclass(frozen=True)
class Check:
    """One thing that may speak against trust.

    Attributes:
        name: What it looks at.
        severity: Where its reason stands among the others.
        reason: Given the evidence, what speaks against trust; None where nothing does.
        remedy: What to do about it.
    """

    name: str
    severity: Severity
    reason: Callable[[Evidence], str | None]
    remedy: Callable[[Evidence], str]


CHECKS: list[Check] = []
"""All checks; those of one severity in the order of their reasons."""


def _check(
    severity: Severity, remedy: str | Callable[[Evidence], str]
) -> Callable[[Callable[[Evidence], str | None]], Callable[[Evidence], str | None]]:
    """Registers the decorated reason as a check."""

    def add(reason: Callable[[Evidence], str | None]) -> Callable[[Evidence], str | None]:
        advice = remedy if callable(remedy) else lambda _, advice=remedy: advice
        CHECKS.append(Check(reason.__name__, severity, reason, advice))
        return reason

    return add


def judge(evidence: Evidence) -> Verdict:
    """The verdict that the evidence allows."""
    against: list[tuple[Check, str]] = []
    for check in sorted(CHECKS, key=lambda check: check.severity):
        if check.severity == Severity.UNRESOLVED and against:
            break
        reason = check.reason(evidence)
        if reason is not None:
            against.append((check, reason))
    if against:
        reasons = [reason for _, reason in against]
        worst = against[0][0]
        advice = worst.remedy(evidence)
        wide = worst.severity in WIDE or worst.name == out_of_time.__name__
        if evidence.simpler and wide and not evidence.optimum.stochastic:
            advice = f"give {evidence.simpler}, or {advice}"
        return Verdict(NOT_TRUSTED, (*reasons, *_remarks(evidence)), advice)
    if evidence.reference is not None:
        return Verdict(TRUSTED, (evidence.reference[0], *_remarks(evidence)))
    weights = evidence.weights
    same = weights.shift <= LIMITS.shift and weights.ratio <= LIMITS.shift
    level = TRUSTED if same else CORRECTED
    return Verdict(level, (*_for_trust(evidence, same), *_remarks(evidence)))


def _for_trust(evidence: Evidence, same: bool) -> list[str]:
    """What speaks for trust, given whether the guide's own draws are as good."""
    weights, modes = evidence.weights, evidence.modes
    reasons = [_of_weights(evidence) if evidence.mixing is None else _of_mixing(evidence)]
    if modes.starts is not None and modes.starts[1] > 1:
        reasons.append("{:,} of {:,} climbs ended at the best mode.".format(*modes.starts))
    if len(modes.shares) > 1:
        shares = ", ".join(f"{share:.0%}" for share in modes.shares)
        reasons.append(f"{len(modes.shares)} modes have these shares of the mass: {shares}.")
    if weights.usable and not same:
        factor = np.exp(min(weights.ratio, 99.0))
        by = f"a factor of {factor:.2g}" if factor < 1e3 else "a factor of more than 1,000"
        which = "corrected draws" if evidence.mixing is None else "draws of the chains"
        reasons.append(
            f"The posterior consists of the {which}: the guide's own draws are off by up "
            f"to {weights.shift:.2g} sd in a mean and {by} in an sd."
        )
    return reasons


def _of_mixing(evidence: Evidence) -> str:
    """How Markov chains have mixed, as a sentence."""
    mixing = evidence.mixing
    assert mixing is not None
    return (
        f"{mixing.chains} Markov chains from {mixing.groups} places: nested R-hat "
        f"{mixing.r_hat:.3f} (limit {LIMITS.r_hat:.2f}), {evidence.weights.effective:,.0f} "
        "effective draws."
    )


def _of_weights(evidence: Evidence) -> str:
    """The importance weights as a sentence."""
    weights = evidence.weights
    limit = k_hat_threshold(weights.draws)
    if weights.rows is not None:
        return _of_row_weights(evidence, *weights.rows, limit)
    if np.isneginf(weights.k_hat):
        return f"All importance weights are equal: {weights.effective:,.0f} effective draws."
    lower, upper = k_hat_interval(weights.k_hat, weights.draws)
    return (
        f"k-hat of the importance weights {weights.k_hat:.2f} (90% interval {lower:.2f} to "
        f"{upper:.2f}, limit {limit:.2f}), {weights.effective:,.0f} effective draws."
    )


def _of_row_weights(evidence: Evidence, count: int, unreliable: float, limit: float) -> str:
    weights = evidence.weights
    if np.isneginf(weights.k_hat):
        if weights.effective > 0.999 * weights.draws:
            return f"In each of the {count:,} rows all importance weights are equal."
        return (
            f"In 95% of the {count:,} rows, k-hat does not apply, since the draws repeat a few "
            f"discrete values. In these rows at least {weights.effective:,.0f} of "
            f"{weights.draws:,} draws are effective."
        )
    few = round(unreliable * count)
    left = (
        f" In {few:,} rows the weights are unreliable; there the posterior has the guide's own "
        "draws."
    )
    return (
        f"In 95% of the {count:,} rows, k-hat is at most {weights.k_hat:.2f} (limit "
        f"{limit:.2f}), and at least {weights.effective:,.0f} of {weights.draws:,} draws are "
        f"effective.{left if few else ''}"
    )


def _remarks(evidence: Evidence) -> list[str]:
    """What a reader should know beside, whatever the verdict."""
    optimum, modes = evidence.optimum, evidence.modes
    remarks = []
    if not optimum.converged and not optimum.stochastic and _draws_stand_alone(evidence):
        remarks.append(sentence(optimum.status))
    if modes.starts is not None and modes.starts[1] == 1:
        remarks.append("The search for modes had only one start: other modes would be missed.")
    if modes.own_starts and modes.starts is not None:
        remarks.append(
            "The search for modes used the model's own starts only: other modes would be missed."
        )
    if modes.relabelled:
        remarks.append(
            "Modes that differ only by a relabelling count as one. All draws use the labelling of "
            "one such mode."
        )
    said = evidence.remarks
    return [*remarks, *said.doubts, *said.health, *said.predictive]


def sentence(status: str) -> str:
    """With a capital."""
    return status[:1].upper() + status[1:]


def _agrees(evidence: Evidence) -> bool:
    """Whether a reference agrees.

    It speaks for the optimum and for the draws; not for what its chains, which begin at the fit's
    draws, may have missed as well.
    """
    return evidence.reference is not None and evidence.reference[1]


def _rests_on_weights(evidence: Evidence) -> bool:
    return not (evidence.optimum.point or _agrees(evidence) or evidence.mixing is not None)


def _draws_stand_alone(evidence: Evidence) -> bool:
    """Whether corrected draws are everywhere, so that it does not matter where they began."""
    return evidence.weights.usable and evidence.chains.covered


# The checks.


@_check(
    Severity.NO_POSTERIOR,
    "fit with --guide map, which includes the priors, so that the density has a maximum; or fit a "
    "smaller model.",
)
def no_maximum(evidence: Evidence) -> str | None:
    """The likelihood has no maximum."""
    return evidence.optimum.no_maximum or None


@_check(Severity.NO_POSTERIOR, lambda evidence: evidence.optimum.remedy or AUTO)
def one_point(evidence: Evidence) -> str | None:
    """The guide is one point."""
    return "The guide is one point, which has no spread." if evidence.optimum.point else None


@_check(
    Severity.NO_POSTERIOR,
    "write the model so that it is valid at every value of its latents; 'elbowroom check' tries "
    "random values.",
)
def invalid_model(evidence: Evidence) -> str | None:
    """The model is not valid at some of the draws."""
    return evidence.target.invalid or None


def improper(direction: str) -> str:
    """A reason against a posterior, from a direction in which the log density does not fall."""
    return f"The posterior is not proper: the log density does not fall along {direction}."


PROPER = "give each site named here a proper prior, or leave one of them out of the model."


@_check(Severity.NO_POSTERIOR, PROPER)
def improper_posterior(evidence: Evidence) -> str | None:
    """The log density does not fall in some direction."""
    direction = evidence.target.direction
    return improper(direction) if direction else None


@_check(
    Severity.NO_POSTERIOR,
    "fix the operation in the model that has a wrong gradient or none: a detach, a torch.no_grad "
    "or an autograd.Function.",
)
def wrong_gradient(evidence: Evidence) -> str | None:
    """The gradient is not that of the values."""
    if evidence.target.slope <= LIMITS.slope_error:
        return None
    return (
        "The gradient of the model's log density differs from finite differences of the log "
        f"density, by {evidence.target.slope:.2g} of the gradient's size."
    )


@_check(
    Severity.CONTRADICTED,
    "use the draws of NUTS: they are the group reference_posterior of posterior.nc.",
)
def reference_differs(evidence: Evidence) -> str | None:
    """A long run of NUTS differs."""
    if evidence.reference is None or evidence.reference[1]:
        return None
    return evidence.reference[0]


def _usual_remedy(evidence: Evidence) -> str:
    if evidence.optimum.stochastic:
        return (
            "give more --steps, a smaller --learning-rate or, with minibatches, a larger "
            "--batch-size."
        )
    return NON_CENTRED if evidence.auto else f"fit with --guide auto, or {NON_CENTRED}"


@_check(Severity.NOT_REACHED, lambda evidence: evidence.optimum.remedy or _usual_remedy(evidence))
def optimum_not_reached(evidence: Evidence) -> str | None:
    """The optimiser did not converge, and draws rest on where it ended."""
    optimum = evidence.optimum
    if optimum.converged or _agrees(evidence):
        return None
    rests_on_it = optimum.stochastic or not _draws_stand_alone(evidence)
    return sentence(optimum.status) if rests_on_it else None


@_check(
    Severity.NOT_REACHED,
    "give a longer --time or a simpler model, or use the draws of NUTS (--fallback nuts).",
)
def out_of_time(evidence: Evidence) -> str | None:
    """A part of the fit was cut short."""
    return None if _agrees(evidence) else evidence.out_of_time or None


@_check(
    Severity.WEIGHTS,
    "fit with --guide local (each row by itself) if the model has it, or with --particles 10 and "
    "--elbo iwae (vimco for discrete latents). 'elbowroom score RUN' shows the k-hat of each row.",
)
def weights_of_rows(evidence: Evidence) -> str | None:
    """Too many rows have poor weights."""
    weights = evidence.weights
    if weights.rows is None or evidence.optimum.point or weights.usable:
        return None
    return (
        f"For {weights.rows[1]:.0%} of the {weights.rows[0]:,} rows (limit "
        f"{WEIGHING.unreliable_rows:.0%}), the guide misses the posterior, and importance weights "
        f"cannot correct it: k-hat is above {k_hat_threshold(weights.draws):.2f}, or fewer than "
        f"{WEIGHING.fewest_of_row:.0f} draws are effective."
    )


def _heavy_weights(evidence: Evidence) -> bool:
    weights = evidence.weights
    upper = k_hat_interval(weights.k_hat, weights.draws)[1]
    return not upper <= k_hat_threshold(weights.draws)


def _remedy_of_weights(evidence: Evidence) -> str:
    if not evidence.ladder:  # of a network's weights, that have more modes than are found
        return (
            "judge the predictions of test rows instead: 'elbowroom compare MODEL --test-size "
            "0.25'."
        )
    return AUTO if evidence.optimum.stochastic and not evidence.auto else NUTS


@_check(Severity.WEIGHTS, _remedy_of_weights)
def heavy_weights(evidence: Evidence) -> str | None:
    """K-hat may be above its threshold."""
    weights = evidence.weights
    if weights.rows is not None or not _rests_on_weights(evidence) or not _heavy_weights(evidence):
        return None
    surely = weights.k_hat > k_hat_threshold(weights.draws)
    return (
        f"The importance weights {'cannot' if surely else 'might be unable to'} correct the "
        f"guide: {_of_weights(evidence)}"
    )


@_check(Severity.WEIGHTS, f"{NON_CENTRED[:-1]}, or {NUTS}")
def chains_not_mixed(evidence: Evidence) -> str | None:
    """Markov chains tell of different posteriors, or have left a part out."""
    mixing = evidence.mixing
    if mixing is None or _agrees(evidence):
        return None
    if mixing.stuck:
        return f"{mixing.stuck} of {mixing.chains} Markov chains are stuck: {_of_mixing(evidence)}"
    if mixing.diverged > LIMITS.diverged:
        return (
            f"{mixing.diverged:.1%} of the trajectories diverged: narrow parts of the posterior "
            "may be missing."
        )
    if mixing.r_hat <= LIMITS.r_hat and evidence.weights.effective >= WEIGHING.resolved:
        return None
    return f"The chains have not mixed: {_of_mixing(evidence)}"


@_check(Severity.WEIGHTS, "give more --draws.")
def few_effective_draws(evidence: Evidence) -> str | None:
    """Draws are worth too few to resolve means and sds."""
    weights = evidence.weights
    if weights.rows is not None or not _rests_on_weights(evidence) or _heavy_weights(evidence):
        return None
    if weights.effective >= WEIGHING.resolved:
        return None
    return f"Fewer than {WEIGHING.resolved:.0f} effective draws: {_of_weights(evidence)}"


@_check(Severity.PART_MISSING, "give more --restarts, such as four times as many.")
def one_start_alone(evidence: Evidence) -> str | None:
    """One start of many reached the best mode."""
    starts = evidence.modes.starts
    if (
        evidence.chains.covered
        or starts is None
        or starts[0] != 1
        or starts[1] <= LIMITS.few_starts
    ):
        return None
    return (
        f"Only 1 of {starts[1]:,} climbs ended at the best mode: there may be a better mode that "
        "none found."
    )


@_check(Severity.PART_MISSING, NUTS)
def search_unfinished(evidence: Evidence) -> str | None:
    """The last climbs still found modes."""
    if not evidence.modes.unfinished or evidence.chains.covered:
        return None
    return "The last climbs still found new modes: there may be more."


@_check(
    Severity.PART_MISSING,
    "fit with another --seed, or compare with NUTS ('elbowroom reference RUN').",
)
def higher_place_missed(evidence: Evidence) -> str | None:
    """A place climbed to has more Laplace evidence than the draws."""
    if not evidence.modes.missing > LIMITS.missing_evidence or evidence.chains.covered:
        return None
    return (
        f"The log evidence of the draws is {evidence.modes.missing:.0f} nats below Laplace's "
        "estimate at the best point that a climb reached: the draws may have missed that point."
    )


@_check(
    Severity.PART_MISSING,
    "compare with NUTS ('elbowroom reference RUN'), or fit with another --seed.",
)
def mode_left_out(evidence: Evidence) -> str | None:
    """Next to no draws come from a known mode."""
    if not evidence.modes.left_out:
        return None
    return f"A mode with {evidence.modes.left_out:.0%} of the posterior's mass has almost no draws."


def found_more(evidence: Evidence) -> bool:
    """Whether another guide found more evidence than by chance."""
    nats, error = evidence.gaps.other_guide
    return nats > max(LIMITS.other_guide, ERRORS * error)


@_check(Severity.PART_MISSING, NUTS)
def other_guide_found_more(evidence: Evidence) -> str | None:
    """Another guide of the same model found more evidence."""
    if not found_more(evidence):
        return None
    guide = f"The guide {evidence.gaps.guide}" if evidence.gaps.guide else "Another guide"
    return (
        f"{guide} found a log evidence that is {evidence.gaps.other_guide[0]:.2g} nats higher: a "
        "part of the posterior is missing from these draws."
    )


@_check(
    Severity.PART_MISSING,
    lambda evidence: (
        "fit with --guide auto, which draws around all modes."
        if evidence.ladder and not evidence.auto
        else REFERENCE
    ),
)
def other_modes_have_more(evidence: Evidence) -> str | None:
    """Draws around all known modes have more evidence than the guide's."""
    nats, error = evidence.gaps.all_modes
    if _agrees(evidence) or not nats > max(LIMITS.all_modes, ERRORS * error):
        return None
    return (
        f"Draws around all known modes have a log evidence that is {nats:.2g} "
        "nats higher: the guide has left out a part of the posterior."
    )


@_check(Severity.PART_MISSING, NUTS)
def chains_leave_the_draws(evidence: Evidence) -> str | None:
    """Markov chains that began at the draws came to where no draw is."""
    chains = evidence.chains
    limit = LIMITS.lasting if chains.lasting else LIMITS.outside
    much = chains.outside > limit and chains.count >= LIMITS.fewest_chains
    if not much or not _rests_on_weights(evidence):
        return None
    return (
        "Markov chains that began at the draws reached regions without draws: at least "
        f"{chains.outside:.1%} of the posterior is missing."
    )


@_check(Severity.UNRESOLVED, "read the quantiles of these quantities, not their mean and sd.")
def unresolved(evidence: Evidence) -> str | None:
    """Some means or sds are not resolved."""
    if not evidence.unresolved:
        return None
    more = len(evidence.unresolved) - LIMITS.named
    several = f"{more} more quantities" if more > 1 else "1 more quantity"
    rest = [f"The same holds for {several}."] if more > 0 else []
    return " ".join([*evidence.unresolved[: LIMITS.named], *rest])

"""What a verdict is made of: numbers and sentences, collected once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Optimum:
    """How the optimiser ended.

    Attributes:
        converged: Whether the optimum was reached.
        status: How it ended, as a sentence.
        stochastic: Whether the gradients were stochastic.
        point: Whether the guide is one point.
        no_maximum: Why the likelihood has no maximum where one was looked for, as a sentence.
        remedy: What to do where the optimum was not reached or is one point, if more is known than
            usual.
    """

    converged: bool
    status: str
    stochastic: bool = False
    point: bool = False
    no_maximum: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Weights:
    """Importance weights.

    Attributes:
        k_hat: Their Pareto shape.
        draws: How many there are.
        effective: The effective sample size.
        usable: Whether the posterior consists of the draws that they have corrected.
        shift: The largest distance of a raw mean from the corrected one, in corrected sds.
        ratio: The largest log ratio of a raw sd to the corrected one, either way.
        rows: Where each row has weights of its own, how many rows there are, and the share of those
            whose weights are unreliable. `k_hat` and `effective` are then of all rows but a few,
            `shift` and `ratio` of half of them.
    """

    k_hat: float
    draws: int
    effective: float
    usable: bool
    shift: float = 0.0
    ratio: float = 0.0
    rows: tuple[int, float] | None = None


@dataclass(frozen=True)
class Modes:
    """Where starts came to.

    Attributes:
        starts: How many climbs ended at the best mode, of how many: those from starts, and of
            candidates that came to a known mode. None if they say nothing.
        shares: Of the posterior's mass, by mode, largest first.
        relabelled: Whether modes differ by the labels of exchangeable parts.
        own_starts: Whether climbs began at the model's own starts alone.
        unfinished: Whether the last climbs still found new modes.
        missing: Nats by which Laplace's evidence of the best place climbed to, a mode or where a
            climb was stopped, exceeds that of the draws.
        left_out: The share of the posterior at the largest known mode that has too few draws.
    """

    starts: tuple[int, int] | None = None
    shares: tuple[float, ...] = ()
    relabelled: bool = False
    own_starts: bool = False
    unfinished: bool = False
    missing: float = 0.0
    left_out: float = 0.0


@dataclass(frozen=True)
class Chains:
    """Where Markov chains that began at the draws came to.

    Attributes:
        outside: The posterior's mass of the chains that came to where no draw is.
        count: How many chains did so.
        lasting: Whether this is so although components were added there, again and again.
        covered: Whether the draws cover wherever starts, candidates for them and chains came to, so
            that it no longer matters which modes they belong to.
    """

    outside: float = 0.0
    count: int = 0
    lasting: bool = False
    covered: bool = False


@dataclass(frozen=True)
class Mixing:
    """How Markov chains have mixed whose draws are the posterior.

    Attributes:
        chains: How many there are.
        groups: From how many places.
        r_hat: The largest nested R-hat of an unconstrained coordinate.
        diverged: The share of their trajectories that diverged.
        stuck: How many chains moved next to never.
    """

    chains: int
    groups: int
    r_hat: float
    diverged: float = 0.0
    stuck: int = 0


@dataclass(frozen=True)
class Target:
    """The log density itself.

    Attributes:
        slope: The largest relative difference of its gradient from differences of its values.
        direction: A direction in which it does not fall, if one was found.
        invalid: What of the model is not valid at some of the draws, as a sentence.
    """

    slope: float = 0.0
    direction: str | None = None
    invalid: str = ""


@dataclass(frozen=True)
class Gaps:
    """Log evidence that others found beyond the draws, in nats, with standard errors.

    Attributes:
        other_guide: That another guide of the same model found.
        guide: The name of that guide.
        all_modes: That draws about every known mode have.
    """

    other_guide: tuple[float, float] = (0.0, 0.0)
    all_modes: tuple[float, float] = (0.0, 0.0)
    guide: str = ""


@dataclass(frozen=True)
class Remarks:
    """Sentences that decide nothing.

    Attributes:
        doubts: What the model may be wrong for in these data, and an objective that is no bound.
        health: What the latents of rows carry.
        predictive: Statistics of the data that the model does not reproduce.
    """

    doubts: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    predictive: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made of.

    Attributes:
        optimum: How the optimiser ended.
        weights: Of the draws.
        modes: Where starts came to.
        chains: Where Markov chains came to.
        target: The log density itself.
        gaps: What others found beyond the draws.
        unresolved: Sentences of quantities whose mean or sd is not resolved.
        remarks: Sentences that decide nothing.
        mixing: Of Markov chains, where the posterior consists of their draws; the effective draws
            of the weights are then theirs.
        reference: The comparison with a long run of NUTS, as a sentence, and whether it agrees.
        out_of_time: What was cut short since the time of the fit was over, as a sentence.
        ladder: Whether the guide `auto` tries several for this model.
        auto: Whether the guide `auto` was asked for.
        simpler: The option that makes the model simpler, as it is given, if there is one.
    """

    optimum: Optimum
    weights: Weights
    modes: Modes = Modes()
    chains: Chains = Chains()
    target: Target = Target()
    gaps: Gaps = Gaps()
    unresolved: tuple[str, ...] = ()
    remarks: Remarks = Remarks()
    reference: tuple[str, bool] | None = None
    ladder: bool = True
    auto: bool = False
    out_of_time: str = ""
    mixing: Mixing | None = None
    simpler: str = ""

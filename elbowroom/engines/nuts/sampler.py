"""The reference: the no-U-turn sampler over a problem's log density.

A long run of NUTS is what a fit is compared with when in doubt. It is drawn by nutpie, whose mass
matrix follows correlations, or by Pyro's own kernel where nutpie is not installed.
"""

import itertools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import pyarrow
import pyro
import torch
from arviz_stats.base import array_stats
from pyro import poutine
from pyro.infer import NUTS
from torch import Tensor

from elbowroom import budget
from elbowroom.density.density import Density
from elbowroom.draws.many_chains import MANY_CHAINS
from elbowroom.draws.weighted import WEIGHING
from elbowroom.engines.nuts.gathered import Gathered
from elbowroom.errors import ModelError, OutOfTimeError
from elbowroom.problem.isolation import isolated


@dataclass(frozen=True)
class Mixing:
    """When chains have mixed, and how they begin."""

    r_hat: float = MANY_CHAINS.r_hat
    """R-hat above which chains have not mixed (Vehtari et al., 2021)."""
    nudge: float = 1e-8
    """How far a chain begins from its start where the gradient is zero, relative to it or to 1."""
    poll: float = 0.25
    """Seconds between two calls of `progress`."""
    dense: int = 500
    """The dimension up to which Pyro's kernel is given a dense mass matrix."""


MIXING = Mixing()


Progress = Callable[[int, int, int], None]
"""Called with the draws made so far, all draws (tuning included), and the divergences so far."""


@dataclass(frozen=True)
class NutsDraws:
    """Draws of NUTS in the unconstrained space.

    Attributes:
        points: After tuning, (chains, draws, D). An interrupted run may have fewer draws than asked
            for, or fewer chains, or none at all.
        divergences: Among these draws: trajectories that the integrator could not follow.
        r_hat: Rank-normalised split R-hat of each coordinate, (D,); NaN where it cannot be told.
        effective: Bulk effective sample size of each coordinate, (D,); NaN where it cannot be told.
        seconds: Wall time.
        sampler: "nutpie" or "pyro".
        status: "complete" or "interrupted".
    """

    points: np.ndarray
    divergences: int
    r_hat: np.ndarray
    effective: np.ndarray
    seconds: float
    sampler: str
    status: str

    @property
    def worst_r_hat(self) -> float:
        """The largest R-hat of a coordinate; NaN if one cannot be told."""
        return float(np.max(self.r_hat, initial=-np.inf))

    @property
    def fewest_effective(self) -> float:
        """The smallest effective sample size of a coordinate; NaN if one cannot be told."""
        return float(np.min(self.effective, initial=np.inf))

    @property
    def converged(self) -> bool:
        """Whether the chains have mixed in every coordinate, with enough draws to tell."""
        return self.worst_r_hat <= MIXING.r_hat and self.fewest_effective >= WEIGHING.resolved


def sample_nuts(
    density: Density,
    starts: np.ndarray,
    *,
    draws: int = 1000,
    tune: int = 500,
    seed: int = 0,
    progress: Progress | None = None,
    threads: int | None = None,
) -> NutsDraws:
    """Draws from a log density by NUTS (Hoffman and Gelman, 2014, "The no-U-turn sampler").

    nutpie adapts a low-rank mass matrix to draws and gradients (Seyboldt, Carlson and Carpenter,
    2026, "Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence"). R-hat and the
    effective sample size are those of Vehtari et al. (2021, "Rank-normalization, folding, and
    localization: an improved R-hat"). The same seed gives the same draws.

    Points where the density is zero, or where it or its gradient is not finite, end a trajectory
    as a divergence. Ctrl-C ends the run: the draws so far are kept.

    Args:
        density: Of the flat unconstrained vector of D numbers.
        starts: Where the chains begin, (chains, D): best spread as wide as the posterior or wider,
            such as draws of a fit, since R-hat cannot see a mode that no chain was near.
        draws: Of each chain.
        tune: Draws of each chain before those, which adapt the step size and the mass matrix.
        seed: Of all random numbers.
        progress: Called about four times a second; see `Progress`.
        threads: Of torch and BLAS; by default as they are.

    Raises:
        ModelError: If the density or its gradient is not finite at a start, or is flat around it.

    Example:
        >>> import pyro.distributions as dist
        >>> from elbowroom.guides.space import LatentSpace
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> arguments = {"y": torch.tensor(2.0, dtype=torch.float64)}
        >>> density = Density(model, arguments, LatentSpace.of(model, arguments))
        >>> found = sample_nuts(density, np.array([[0.0], [2.0]]), draws=300, tune=100, seed=1)
        >>> found.points.shape, found.divergences, bool(abs(found.points.mean() - 1) < 0.15)
        ((2, 300, 1), 0, True)
    """
    starts = np.array(starts, dtype=np.float64)
    began = time.perf_counter()
    seeds = [int(each) for each in np.random.SeedSequence(seed).generate_state(len(starts))]
    nutpie = _imported_nutpie()
    with isolated(seed, threads=threads):
        _check_starts(density, starts)
        if nutpie is None:
            chains, interrupted = _by_pyro(density, starts, draws, tune, seeds, progress)
        else:
            chains, interrupted = _by_nutpie(nutpie, density, starts, draws, tune, seeds, progress)
    points, diverging = _even(chains, density.dimension)
    r_hat, effective = mixing(np.moveaxis(points, -1, 0))
    return NutsDraws(
        points,
        int(diverging.sum()),
        r_hat,
        effective,
        time.perf_counter() - began,
        "pyro" if nutpie is None else "nutpie",
        "interrupted" if interrupted else "complete",
    )


def mixing(quantities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R-hat and bulk effective sample size of quantities.

    Args:
        quantities: Their draws, (quantities, chains, draws).

    Returns:
        Rank-normalised split R-hat and bulk effective sample size of each, both (quantities,). NaN
        for fewer than four draws, and for a quantity that is not finite or does not vary.

    Example:
        >>> independent = np.random.default_rng(0).normal(size=(1, 4, 1000))
        >>> apart = independent + np.arange(4)[:, None]
        >>> for quantity in (independent, apart):
        ...     r_hat, effective = mixing(quantity)
        ...     print(f"{r_hat[0]:.2f}, {effective[0]:.0f}")
        1.00, 3926
        1.56, 7
    """
    r_hat, effective = (np.full(len(quantities), np.nan) for _ in range(2))
    if quantities.size == 0 or quantities.shape[-1] < 4:
        return r_hat, effective
    for i, each in enumerate(quantities):
        if np.isfinite(each).all() and np.ptp(each) > 0:
            with np.errstate(divide="ignore", invalid="ignore"):  # chains that stand still
                r_hat[i] = array_stats.rhat(each, chain_axis=0, draw_axis=1)
                if np.isnan(r_hat[i]):  # a quantity of two values does not vary when folded
                    r_hat[i] = array_stats.rhat(each, chain_axis=0, draw_axis=1, method="split")
                effective[i] = array_stats.ess(each, chain_axis=0, draw_axis=1)
    return r_hat, effective


@dataclass(frozen=True)
class _Chain:
    """Draws after tuning, (draws, D), and which of them diverged, (draws,)."""

    points: np.ndarray
    diverging: np.ndarray


def _even(chains: list[_Chain], dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """The most draws that chains of equal length give; those of an interrupted run differ.

    Returns:
        Points, (chains, draws, D), and which of them diverged, (chains, draws).
    """
    lengths = sorted((len(chain.points) for chain in chains), reverse=True)
    areas = [(count * length, count) for count, length in enumerate(lengths, start=1)]
    if not areas:
        return np.empty((0, 0, dimension)), np.empty((0, 0), dtype=bool)
    _, count = max(areas)
    length = lengths[count - 1]
    kept = [chain for chain in chains if len(chain.points) >= length][:count]
    points = np.stack([chain.points[:length] for chain in kept])
    return points, np.stack([chain.diverging[:length] for chain in kept])


def _check_starts(density: Density, starts: np.ndarray) -> None:
    values, gradients = density.value_and_gradient(starts)
    bad = np.flatnonzero(~np.isfinite(np.column_stack([values, gradients])).all(1))
    if len(bad):
        raise ModelError(
            f"NUTS cannot begin at start {bad[0] + 1} of {len(starts)}, a draw of the fit: the "
            "log density or its gradient is not finite there; check the model at the draws of "
            "the posterior."
        )


def _imported_nutpie() -> Any:
    """The module, or None if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # arviz announces its 1.0 on import
            import nutpie
            import nutpie.compiled_pyfunc
    except ImportError:
        return None
    return nutpie


def _by_nutpie(
    nutpie: Any,
    density: Density,
    starts: np.ndarray,
    draws: int,
    tune: int,
    seeds: list[int],
    progress: Progress | None,
) -> tuple[list[_Chain], bool]:
    """Chains, and whether they were interrupted.

    Each chain is a sampler of its own: one of many chains does not say which of them asks for a
    start, and the same seed would not give the same draws.
    """
    gathered = Gathered(density, starts, tune + draws)
    named = "adaptation" in signature(nutpie.sample).parameters  # as newer versions call it
    low_rank = {"adaptation": "low_rank"} if named else {"low_rank_modified_mass_matrix": True}
    samplers: list[Any] = []
    chains: dict[int, _Chain] = {}
    interrupted = False
    try:
        for chain, start in enumerate(starts):
            samplers.append(
                nutpie.sample(
                    _compiled(nutpie, gathered, chain, start),
                    draws=draws,
                    tune=tune,
                    chains=1,
                    cores=1,
                    seed=seeds[chain],
                    progress_bar=False,
                    return_raw_trace=True,
                    blocking=False,
                    **low_rank,
                )
            )
        _wait(samplers, chains, gathered, tune, progress)
    except (KeyboardInterrupt, OutOfTimeError):
        interrupted = True
    finally:
        made = gathered.close()
        cut_short = [
            (chain, sampler.abort())
            for chain, sampler in enumerate(samplers)
            if chain not in chains
        ]
    for chain, trace in cut_short:
        chains[chain] = _read(trace, tune, density.dimension, made[chain])
    return [chains[chain] for chain in sorted(chains)], interrupted


def _compiled(nutpie: Any, gathered: Gathered, chain: int, start: np.ndarray) -> Any:
    """One chain's log density and start, as nutpie takes them."""
    tries = itertools.count()

    def log_density(point: np.ndarray) -> tuple[float, np.ndarray]:
        return gathered(chain, point)

    def expand(point: np.ndarray) -> dict[str, np.ndarray]:
        gathered.drawn(chain)
        return {"point": np.array(point)}

    def begin(seed: int) -> np.ndarray:
        # nutpie asks again where a coordinate of the gradient is zero, as it is at a mode.
        nudge = np.random.default_rng(seed).normal(size=len(start)) * np.maximum(abs(start), 1)
        return start + (MIXING.nudge * nudge if next(tries) else 0.0)

    return nutpie.compiled_pyfunc.from_pyfunc(
        len(start),
        lambda: log_density,
        lambda *_: expand,
        [np.dtype("float64")],
        [(len(start),)],
        ["point"],
        make_initial_point_fn=begin,
    )


def _wait(
    samplers: list[Any],
    chains: dict[int, _Chain],
    gathered: Gathered,
    tune: int,
    progress: Progress | None,
) -> None:
    """Waits for all samplers, and fills their chains in.

    Raises:
        ModelError: If one finds no start.
        Exception: What the density has raised.
    """
    total, dimension = int(gathered.left.sum()), gathered.rows.shape[1]
    while len(chains) < len(samplers):
        budget.check()
        for chain, sampler in enumerate(samplers):
            if chain in chains:
                continue
            try:
                trace = sampler.wait(timeout=MIXING.poll / len(samplers))
            except TimeoutError:
                pass
            except RuntimeError as error:
                if gathered.failure is None:
                    raise ModelError(
                        f"NUTS cannot begin: around start {chain + 1}, the log density is "
                        "constant along one coordinate; give every site a prior."
                    ) from error
            else:
                chains[chain] = _read(trace, tune, dimension)
            if gathered.failure is not None:
                raise gathered.failure
        if progress is not None:
            so_far = [
                chains[chain] if chain in chains else _read(sampler.inspect(), tune, dimension)
                for chain, sampler in enumerate(samplers)
            ]
            divergences = sum(int(each.diverging.sum()) for each in so_far)
            progress(total - int(gathered.left.sum()), total, divergences)


def _read(trace: Any, tune: int, dimension: int, made: int | None = None) -> _Chain:
    """The draws after tuning of nutpie's trace of one chain, up to the first ones that it made."""
    draws, statistics = trace.get_arrow_trace()
    if not draws:  # the chain had not begun
        return _Chain(np.empty((0, dimension)), np.empty(0, dtype=bool))
    points = pyarrow.array(draws[0].column("point")).flatten().to_numpy().reshape(-1, dimension)
    diverging = pyarrow.array(statistics[0].column("diverging")).to_numpy(zero_copy_only=False)
    return _Chain(points[tune:made], diverging[tune:made].astype(bool))


class _Potential(torch.autograd.Function):
    """Minus the log density, infinite where there is none, with the density's own gradient."""

    @staticmethod
    def forward(ctx: Any, point: Tensor, density: Density) -> Tensor:
        """Of a point, (D,) to ()."""
        values, gradients = density.value_and_gradient(point.detach().numpy()[None])
        sound = np.isfinite(values[0]) and np.isfinite(gradients).all()
        ctx.save_for_backward(torch.from_numpy(-gradients[0] if sound else 0 * point.numpy()))
        return point.new_tensor(-values[0] if sound else np.inf)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        """The gradient by the point; the density has none."""
        return grad[0] * ctx.saved_tensors[0], None


def _by_pyro(
    density: Density,
    starts: np.ndarray,
    draws: int,
    tune: int,
    seeds: list[int],
    progress: Progress | None,
) -> tuple[list[_Chain], bool]:
    """Chains one after the other, and whether they were interrupted."""
    total, divergences = len(starts) * (tune + draws), 0
    chains: list[_Chain] = []
    for chain, (start, seed) in enumerate(zip(starts, seeds, strict=True)):
        kernel = NUTS(
            potential_fn=lambda values: _Potential.apply(values["point"], density),
            full_mass=density.dimension <= MIXING.dense,
        )
        pyro.set_rng_seed(seed % 2**32)
        points: list[np.ndarray] = []
        diverging: list[int] = []
        interrupted, told = False, time.perf_counter()
        try:
            with poutine.block():
                values = {"point": torch.from_numpy(start)}
                kernel.initial_params = values
                kernel.setup(tune)
                for i in range(tune + draws):
                    budget.check()
                    values = kernel.sample(values)
                    if i >= tune:
                        points.append(values["point"].detach().numpy().copy())
                        diverging = kernel.diagnostics()["divergences"]
                    if progress is not None and time.perf_counter() > told + MIXING.poll:
                        told = time.perf_counter()
                        made = chain * (tune + draws) + i + 1
                        progress(made, total, divergences + len(diverging))
        except (KeyboardInterrupt, OutOfTimeError):
            interrupted = True
        divergences += len(diverging)
        flags = np.isin(np.arange(len(points)), diverging)
        chains.append(_Chain(np.array(points).reshape(len(points), len(start)), flags))
        if interrupted:
            return chains, True
    return chains, False

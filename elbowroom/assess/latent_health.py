"""The health of a fit whose rows have latents: what they carry, and what the guide gives away."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.draws.row_weights import plate_of_rows
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.guides.space import FixedRows, LatentSpace, Plate, of_each_row, sample_sites
from elbowroom.objectives.information import (
    RowDensities,
    is_standard_normal,
    log_marginal,
    single,
)
from elbowroom.problem.mapping import map_draws
from elbowroom.recording.record import record_agreeing
from elbowroom.recording.replay import BranchError


@dataclass(frozen=True)
class LatentLimits:
    """Limits and sizes of the diagnostics of a row's latents."""

    active_variance: float = 0.01
    """The variance over the rows of a latent's posterior mean from which it is active (Burda,
    Grosse and Salakhutdinov, 2016)."""
    noticed_gap: float = 0.01
    """Nats a row by which the ELBO is below the log density before a sentence says so."""
    pairs: int = 2_000_000
    """Draws times rows whose log densities are compared for the mutual information."""
    most_rows: int = 10_000
    """Rows that each draw is compared with, at most."""
    most_draws: int = 10
    """Draws of each row that are compared, at most."""
    near_limit: float = 1.0
    """Nats below the largest mutual information that so many rows can show, within which a sentence
    says that it may be larger."""
    refitted_rows: int = 100
    """Rows that get a posterior of their own, to measure the amortisation gap."""
    steps: int = 300
    """Steps of the optimiser that fits it."""
    learning_rate: float = 0.02
    """Its first learning rate."""
    particles: int = 5
    """Draws of each of its steps."""
    draws: int = 400
    """Draws that estimate the ELBO of each of these rows afterwards."""
    named: int = 5
    """Latents that a sentence names."""


LATENTS = LatentLimits()


def latent_health(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: Mapping[str, Any],
    space: LatentSpace,
    weighed: WeightedDraws,
    amortised: bool,
) -> tuple[dict[str, Any], list[str]]:
    """What the latents of rows carry, if they are standard Normal ones.

    Args:
        model: The Pyro model, with its parameters in the active store.
        guide: The guide, with its parameters there too.
        arguments: Keyword arguments of both.
        space: The model's latent space.
        weighed: Draws of the rows' latents from the guide.
        amortised: Whether the guide has to serve all rows alike.

    Returns:
        Measures by name: `active_units`, the latents whose posterior mean varies over the rows by
        more than `LATENTS.active_variance` (Burda, Grosse and Salakhutdinov, 2016), the others
        carrying nothing;
        `kl_per_latent`, in nats a row, of Normals with the draws' means and sds; `kl_per_row`, the
        divergence of a row's latents together from their prior; `mutual_information` of rows and
        latents, a lower bound with its error `mutual_information_se`, that is at most
        `mutual_information_limit`, and `mutual_information_upper` (see `mutual_information`);
        `inference_gap`, the log density of a row less its ELBO; and of
        an amortised guide of independent Normals its parts, `amortisation_gap`, what Normals of
        each row's own would gain, and `approximation_gap`, the rest (Cremer, Li and Duvenaud,
        2018, "Inference suboptimality in variational autoencoders"). Of binary latents,
        `active_units`, by the same rule, and `information_per_latent`, the nats that each tells of
        a row under the guide. And sentences. Both are empty where there are no such latents.
    """
    with torch.no_grad():
        prior = dict(sample_sites(poutine.trace(model).get_trace(**arguments)))
        own_form = dict(sample_sites(poutine.trace(guide).get_trace(**arguments)))
    names = [name for name in space.local if is_standard_normal(prior[name]["fn"])]
    if not names:
        return _binary_health([n for n in space.local if _is_binary(prior[n]["fn"])], weighed)
    draws, rows = weighed.log_p.shape
    parts = [weighed.sites[name].double().reshape(draws, rows, -1) for name in names]
    values = torch.cat(parts, -1)
    means, sds = values.mean(0), values.std(0).clamp_min(1e-12)  # (rows, latents)
    divergence = 0.5 * (means.square() + sds.square() - 1) - sds.log()
    active = _active(means, sds.square(), draws)
    gap = weighed.log_density()[0] - weighed.row_elbo
    plate = plate_of_rows(guide, arguments, space)
    found = compared(guide, arguments, plate, names, weighed)
    own, owners = found.log_q[np.arange(len(found.owners)), found.owners], values
    if set(names) == set(space.local):  # the guide's density of a row is theirs alone
        own = weighed.log_q
    else:
        owners = values[found.draws, found.rows[found.owners]]
    log_prior = -0.5 * (owners.square() + np.log(2 * np.pi)).sum(-1).numpy()
    together = float((own - log_prior).mean())
    lower, error, upper = mutual_information(found.log_q, found.owners)
    measures: dict[str, Any] = {
        "active_units": int(active.sum()),
        "kl_per_latent": [float(each) for each in divergence.mean(0)],
        "kl_per_row": together,
        "mutual_information": lower,
        "mutual_information_se": error,
        "mutual_information_limit": float(np.log(found.log_q.shape[1])),
        "mutual_information_upper": min(upper, together),
        "inference_gap": float(gap.mean()),
    }
    name, plain = names[0], isinstance(single(own_form[names[0]]["fn"]), dist.Normal)
    if amortised and space.local == (name,) and plain:
        # In order: Pyro leaves the rows of data as they are where a minibatch has all of them.
        picked = torch.randperm(rows)[: LATENTS.refitted_rows].sort().values
        best = own_bound(model, arguments, plate, name, means[picked], sds[picked], picked)
        gained = best - weighed.row_elbo[picked.numpy()]
        measures["amortisation_gap"] = float(gained.mean())
        measures["amortisation_gap_se"] = float(gained.std(ddof=1) / len(picked) ** 0.5)
        measures["approximation_gap"] = float(gap[picked.numpy()].mean() - gained.mean())
    return measures, _sentences(measures, active)


def _active(means: Tensor, variances: Tensor, draws: int) -> np.ndarray:
    """Whether each latent's posterior mean varies over the rows, (latents,): the one rule.

    Args:
        means: Of each row's draws, (rows, latents).
        variances: Of them, (rows, latents).
        draws: How many there were: their noise is no variation of the posterior means.
    """
    return (means.var(0) - variances.mean(0) / draws > LATENTS.active_variance).numpy()


def _sentences(measures: Mapping[str, Any], active: np.ndarray) -> list[str]:
    lower, upper = measures["mutual_information"], measures["mutual_information_upper"]
    limit = measures["mutual_information_limit"]
    telling = f"between {lower:.3g} and {upper:.3g} nats"
    if lower > limit - LATENTS.near_limit:
        telling += f" (the number of rows compared cannot show more than {limit:.3g})"
    sentences = [
        f"{active.sum()} of {len(active)} latents are active. The KL divergence of all latents "
        f"from their prior is {measures['kl_per_row']:.3g} nats per row; their mutual information "
        f"with the row is {telling}."
    ]
    silent = np.flatnonzero(~active)
    if len(silent):
        listed = ", ".join(map(str, silent[: LATENTS.named])) + ", ..." * (
            len(silent) > LATENTS.named
        )
        sentences.append(
            f"Posterior collapse: {len(silent)} of {len(active)} latents carry no information "
            f"({listed}, counted from 0); fit with --kl-warm-up 1000, --free-bits 0.1, or fewer "
            "latents."
        )
    if "amortisation_gap" in measures and measures["inference_gap"] > LATENTS.noticed_gap:
        shared, form = measures["amortisation_gap"], measures["approximation_gap"]
        sentences.append(
            f"The ELBO is {shared + form:.2g} nats per row below log p(x): {shared:.2g} because "
            f"one encoder serves all rows, and {form:.2g} because the posteriors do not "
            "have the guide's form."
        )
    return sentences


def _binary_health(names: list[str], weighed: WeightedDraws) -> tuple[dict[str, Any], list[str]]:
    """The same of binary latents."""
    if not names:
        return {}, []
    draws, rows = weighed.log_p.shape
    shares = [weighed.sites[name].double().reshape(draws, rows, -1).mean(0) for name in names]
    on = torch.cat(shares, 1)  # (rows, latents)
    information = _entropy(on.mean(0)) - _entropy(on).mean(0)
    active = _active(on, on * (1 - on), draws)
    sentences = [f"{active.sum()} of {len(active)} binary latents are active."]
    silent = int((~active).sum())
    if silent:
        sentences.append(
            f"Posterior collapse: {silent} of {len(active)} latents carry no information; fit with "
            "another --seed, --elbo reweighted_wake_sleep, or fewer latents."
        )
    gap = float((weighed.log_density()[0] - weighed.row_elbo).mean())
    measures = {
        "active_units": int(active.sum()),
        "information_per_latent": [float(each) for each in information],
        "inference_gap": gap,
    }
    if gap > LATENTS.noticed_gap:
        sentences.append(f"The ELBO is {gap:.2g} nats per row below log p(x).")
    return measures, sentences


def _entropy(probability: Tensor) -> Tensor:
    """Of binary latents, in nats."""
    return -(torch.xlogy(probability, probability) + torch.xlogy(1 - probability, 1 - probability))


def _is_binary(fn: Any) -> bool:
    return isinstance(single(fn), dist.Bernoulli)


@dataclass(frozen=True)
class Compared:
    """Draws of rows' latents under the guide's densities given other rows.

    Attributes:
        log_q: The log density of each draw given each row, (draws, rows).
        owners: The row of each draw, among those compared, (draws,).
        draws: Which of its row's draws each is, (draws,).
        rows: Which rows are compared, (rows,).
    """

    log_q: np.ndarray
    owners: np.ndarray
    draws: np.ndarray
    rows: np.ndarray


def compared(
    guide: Callable[..., Any],
    arguments: Mapping[str, Any],
    plate: Plate,
    names: Collection[str],
    weighed: WeightedDraws,
) -> Compared:
    """Compares draws of all rows, or of as many as can be afforded, with all rows.

    Args:
        guide: The guide, with its parameters in the active store.
        arguments: Its keyword arguments.
        plate: Of the rows.
        names: The sites whose densities count.
        weighed: Draws of the rows' latents from the guide.
    """
    count, size = weighed.log_p.shape
    random = np.random.default_rng(0)
    rows = (
        np.arange(size)
        if size <= LATENTS.most_rows
        else random.permutation(size)[: LATENTS.most_rows]
    )
    number = min(min(count, LATENTS.most_draws) * len(rows), max(100, LATENTS.pairs // len(rows)))
    owners, draws = np.arange(number) % len(rows), np.arange(number) // len(rows)
    picked = {name: each[draws, rows[owners]] for name, each in weighed.sites.items()}

    like = next(value for value in arguments.values() if isinstance(value, Tensor))
    densities = RowDensities(guide, arguments, plate, names, weighed.axes)
    with torch.no_grad():
        log_q = densities.given_each(picked, torch.as_tensor(rows, device=like.device))
    return Compared(log_q.double().cpu().numpy(), owners, draws, rows)


def mutual_information(log_q: np.ndarray, owners: np.ndarray) -> tuple[float, float, float]:
    """Bounds of I(x; z) under a guide, in nats, from draws of rows' latents.

    With N rows, the mean over draws of log q(z | x) - log q(z) where q(z) is the mean of q(z | x)
    over all of the rows is a lower bound, at most log N; where it is the mean over the other rows,
    an upper bound (Poole et al., 2019, "On variational bounds of mutual information").

    Args:
        log_q: The log density of each draw given each row, (draws, rows).
        owners: The row of each draw, from 0 on without a gap, (draws,).

    Returns:
        The lower bound, the standard error of both, and the upper one.

    Example:
        >>> log_q = np.array([[0.0, -40.0], [-40.0, 0.0]])
        >>> lower, _, upper = mutual_information(log_q, np.array([0, 1]))
        >>> round(lower, 3), round(upper, 3)  # log 2, and far more
        (0.693, 40.0)
    """
    densities, of_row = torch.as_tensor(log_q), torch.as_tensor(owners)
    own = log_q[np.arange(len(owners)), owners]
    lower = own - log_marginal(densities, of_row, 1 / log_q.shape[1]).numpy()
    upper = own - log_marginal(densities, of_row, 0.0).numpy()
    by_row = np.bincount(owners, lower) / np.bincount(owners)
    error = float(by_row.std(ddof=1) / len(by_row) ** 0.5)
    return float(lower.mean()), error, float(upper.mean())


def own_bound(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    plate: Plate,
    name: str,
    means: Tensor,
    sds: Tensor,
    rows: Tensor,
) -> np.ndarray:
    """The ELBO of rows that each have a Normal of their own, the best one that is found.

    Args:
        model: The Pyro model, with its parameters in the active store.
        arguments: Its keyword arguments.
        plate: Of the rows.
        name: The site.
        means: Where the Normals begin, (rows, latents).
        sds: Their sds, (rows, latents).
        rows: Which they are.

    Returns:
        In nats, (rows,).
    """
    given = {**arguments, "batch_size": len(rows)}
    like = next(value for value in arguments.values() if isinstance(value, Tensor))
    centre = means.to(like).clone().requires_grad_()
    log_width = sds.log().to(like).clone().requires_grad_()
    optimizer = torch.optim.Adam([centre, log_width], lr=LATENTS.learning_rate)

    def bound(drawn: dict[str, Tensor]) -> Tensor:
        z = centre + log_width.exp() * drawn["noise"]
        conditioned = poutine.condition(model, data={name: z})
        with FixedRows({plate.name: rows.to(like.device)}):
            log_p = of_each_row(poutine.trace(conditioned).get_trace(**given), plate)
        log_q = torch.distributions.Normal(centre, log_width.exp()).log_prob(z).sum(-1)
        return log_p - log_q

    def noise(count: int) -> Tensor:
        return torch.randn(count, *centre.shape).to(centre)

    def gradients(drawn: Tensor) -> list[Tensor]:
        loss = -map_draws(bound, {"noise": drawn}).sum(-1).mean()
        return list(torch.autograd.grad(loss, [centre, log_width]))

    def move() -> None:
        with torch.no_grad():
            centre.add_(torch.randn_like(centre))

    begun = centre.detach().clone()
    replay: Callable[[Tensor], Sequence[Tensor]] | None = None
    if like.device.type == "cpu":
        probes = [[noise(LATENTS.particles)] for _ in range(3)]
        replay = record_agreeing(gradients, probes, [model], [centre, log_width], move)
    with torch.no_grad():
        centre.copy_(begun)
    step = replay or gradients
    for number in range(LATENTS.steps):
        for group in optimizer.param_groups:
            group["lr"] = LATENTS.learning_rate * 0.5 * (1 + np.cos(np.pi * number / LATENTS.steps))
        try:
            found = step(noise(LATENTS.particles))
        except BranchError:
            found = gradients(noise(LATENTS.particles))
        centre.grad, log_width.grad = found
        optimizer.step()
    with torch.no_grad():
        bounds = map_draws(bound, {"noise": noise(LATENTS.draws)}, LATENTS.particles)
        return bounds.double().mean(0).cpu().numpy()

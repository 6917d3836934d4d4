"""The health of a fit whose rows have latents: what they carry, and what the guide gives away."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.guides.space import FixedRows, LatentSpace, Plate, of_each_row, sample_sites
from elbowroom.posterior.row_weights import RowWeights, plate_of_rows

ACTIVE = 0.01
"""The variance over the rows of a latent's posterior mean from which it is active."""
SILENT = 0.01
"""Nats of a row below which a latent carries nothing."""
COMPARED = 500
"""Rows whose posteriors are compared with each other."""
REFITTED = 100
"""Rows that are given a posterior of their own."""
STEPS, RATE, PARTICLES, DRAWS = 300, 0.02, 5, 400
"""Of the optimiser that finds it, and draws of its bound."""
NAMED = 5
"""Latents that a sentence names."""


def latent_health(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: Mapping[str, Any],
    space: LatentSpace,
    weighed: RowWeights,
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
        Measures by name: `active_units` (Burda, Grosse and Salakhutdinov, 2016); `kl_per_latent`,
        in nats a row, of Normals with the draws' means and sds; `mutual_information` of rows and
        latents under the guide (Hoffman and Johnson, 2016, "ELBO surgery"), at most the log of the
        number of rows compared; `inference_gap`, the log density of a row less its ELBO; and of
        an amortised guide of independent Normals its parts, `amortisation_gap`, what Normals of
        each row's own would gain, and `approximation_gap`, the rest (Cremer, Li and Duvenaud,
        2018, "Inference suboptimality in variational autoencoders"). Of binary latents,
        `active_units` and `information_per_latent`, the nats that each tells of a row under the
        guide. And sentences. Both are empty where there are no such latents.
    """
    with torch.no_grad():
        prior = dict(sample_sites(poutine.trace(model).get_trace(**arguments)))
        own_form = dict(sample_sites(poutine.trace(guide).get_trace(**arguments)))
    name = next((n for n in space.local if _is_standard_normal(prior[n]["fn"])), None)
    if name is None:
        return _binary_health([n for n in space.local if _is_binary(prior[n]["fn"])], weighed)
    draws, rows = weighed.log_p.shape
    values = weighed.sites[name].double().reshape(draws, rows, -1)
    means, sds = values.mean(0), values.std(0).clamp_min(1e-12)  # (rows, latents)
    divergence = 0.5 * (means.square() + sds.square() - 1) - sds.log()
    by_latent = divergence.mean(0).numpy()
    active = int((means.var(0) > ACTIVE).sum())
    gap = weighed.log_density()[0] - weighed.elbo
    measures: dict[str, Any] = {
        "active_units": active,
        "kl_per_latent": [float(each) for each in by_latent],
        "mutual_information": mutual_information(values, means, sds),
        "inference_gap": float(gap.mean()),
    }
    alone = space.local == (name,) and isinstance(_single(own_form[name]["fn"]), dist.Normal)
    if amortised and alone:
        plate = plate_of_rows(guide, arguments, space)
        picked = torch.randperm(rows)[:REFITTED]
        own = own_bound(model, arguments, plate, name, means[picked], sds[picked], picked)
        gained = own - weighed.elbo[picked.numpy()]
        measures["amortisation_gap"] = float(gained.mean())
        measures["amortisation_gap_se"] = float(gained.std(ddof=1) / len(picked) ** 0.5)
        measures["approximation_gap"] = float(gap[picked.numpy()].mean() - gained.mean())
    return measures, _sentences(measures, by_latent)


def _sentences(measures: Mapping[str, Any], by_latent: np.ndarray) -> list[str]:
    latents, active = len(by_latent), measures["active_units"]
    sentences = [
        f"{active} of {latents} latents are active: {by_latent.sum():.3g} nats a row, "
        f"{measures['mutual_information']:.2g} of which tell rows apart."
    ]
    silent = np.flatnonzero(by_latent < SILENT)
    if len(silent):
        listed = ", ".join(map(str, silent[:NAMED])) + ", ..." * (len(silent) > NAMED)
        sentences.append(
            f"Posterior collapse: {len(silent)} of {latents} latents ({listed}) carry nothing; fit "
            "with --kl-warm-up 1000, --free-bits 0.1, or a smaller --latent."
        )
    if "amortisation_gap" in measures and measures["inference_gap"] > SILENT:
        sentences.append(
            "The ELBO is {:.2g} nats a row below the log density: {:.2g} for one encoder serving "
            "all rows, {:.2g} for posteriors that are not of its form.".format(
                measures["amortisation_gap"] + measures["approximation_gap"],
                measures["amortisation_gap"],
                measures["approximation_gap"],
            )
        )
    return sentences


def _binary_health(names: list[str], weighed: RowWeights) -> tuple[dict[str, Any], list[str]]:
    """The same of binary latents."""
    if not names:
        return {}, []
    draws, rows = weighed.log_p.shape
    shares = [weighed.sites[name].double().reshape(draws, rows, -1).mean(0) for name in names]
    on = torch.cat(shares, 1)  # (rows, latents)
    information = _entropy(on.mean(0)) - _entropy(on).mean(0)
    active, latents = int((on.var(0) > ACTIVE).sum()), on.shape[1]
    sentences = [f"{active} of {latents} binary latents are active."]
    silent = int((information < SILENT).sum())
    if silent:
        sentences.append(
            f"Posterior collapse: {silent} of {latents} latents tell nothing of a row; fit with "
            "another --seed, --elbo reweighted_wake_sleep, or fewer latents."
        )
    gap = float((weighed.log_density()[0] - weighed.elbo).mean())
    measures = {
        "active_units": active,
        "information_per_latent": [float(each) for each in information],
        "inference_gap": gap,
    }
    if gap > SILENT:
        sentences.append(f"The ELBO is {gap:.2g} nats a row below the log density.")
    return measures, sentences


def _entropy(probability: Tensor) -> Tensor:
    """Of binary latents, in nats."""
    return -(torch.xlogy(probability, probability) + torch.xlogy(1 - probability, 1 - probability))


def _is_binary(fn: Any) -> bool:
    return isinstance(_single(fn), dist.Bernoulli)


def _single(fn: Any) -> Any:
    """The distribution of one number of a site."""
    while isinstance(fn, (torch.distributions.Independent, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def _is_standard_normal(fn: Any) -> bool:
    fn = _single(fn)
    return isinstance(fn, dist.Normal) and bool((fn.loc == 0).all() and (fn.scale == 1).all())


def mutual_information(values: Tensor, means: Tensor, sds: Tensor) -> float:
    """An estimate of I(x; z) in nats, of rows that are Normal with these moments.

    Args:
        values: Draws of each row's latents, (draws, rows, latents).
        means: (rows, latents).
        sds: (rows, latents).

    Returns:
        The mean over rows of log q(z | x) - log q(z), where q(z) is the mean over the rows; at most
        the log of their number.

    Example:
        >>> apart = torch.tensor([[-9.0], [9.0]])
        >>> draws = apart + torch.randn(50, 2, 1)
        >>> round(mutual_information(draws, apart, torch.ones(2, 1)), 3)  # log 2
        0.693
    """
    rows = min(values.shape[1], COMPARED)
    normal = torch.distributions.Normal(means[:rows], sds[:rows])
    found = []
    for draw in values[:10, :rows]:
        pairs = normal.log_prob(draw.unsqueeze(1)).sum(-1)  # (rows of the draw, rows)
        found.append((pairs.diagonal() - pairs.logsumexp(1) + np.log(rows)).mean())
    return float(torch.stack(found).mean())


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
    optimizer = torch.optim.Adam([centre, log_width], lr=RATE)

    def bound() -> Tensor:
        z = centre + log_width.exp() * torch.randn_like(centre)
        conditioned = poutine.condition(model, data={name: z})
        with FixedRows({plate.name: rows.to(like.device)}):
            log_p = of_each_row(poutine.trace(conditioned).get_trace(**given), plate)
        log_q = torch.distributions.Normal(centre, log_width.exp()).log_prob(z).sum(-1)
        return log_p - log_q

    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        loss = -torch.stack([bound().sum() for _ in range(PARTICLES)]).mean()
        centre.grad, log_width.grad = torch.autograd.grad(loss, [centre, log_width])
        optimizer.step()
    with torch.no_grad():
        return torch.stack([bound() for _ in range(DRAWS)]).double().mean(0).cpu().numpy()

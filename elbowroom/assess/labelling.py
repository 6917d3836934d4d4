"""The evidence of a posterior whose parts have labels that mean nothing, of all labellings."""

from collections.abc import Callable

import numpy as np

from elbowroom.density.importance import log_mean_exp
from elbowroom.density.labels import (
    RELABELLING,
    Labels,
    labels_of,
    log_mean_proposal,
    log_orders_apart,
)
from elbowroom.density.landscape import Landscape

DRAWS = 2000
"""Of it, for which that is done."""


def exchangeable(landscape: Landscape) -> list[Labels]:
    """The parts of a posterior that can be put in any order, and are not alike at its best mode."""
    density, best = landscape.density, landscape.best
    if density is None or best is None or best.precision is None:
        return []
    scales = 1 / np.sqrt(np.diag(best.precision))
    return labels_of(density, best.location, scales)


def of_all_labellings(
    landscape: Landscape,
    log_evidence: tuple[float, float],
    points: np.ndarray | None = None,
    log_p: np.ndarray | None = None,
    log_proposal: Callable[[np.ndarray], np.ndarray] | None = None,
    of_any_order: bool = False,
) -> tuple[tuple[float, float], str | None]:
    """The evidence of all labellings, of that of draws about one of them.

    Args:
        landscape: The modes.
        log_evidence: The mean log weight of the draws, and its standard error.
        points: The draws, (n, D), if their proposal can be evaluated anywhere.
        log_p: The log density of each.
        log_proposal: The log density of what they were drawn from, (n, D) to (n,).
        of_any_order: Whether the weights are those of all labellings already.

    Returns:
        The log evidence and its standard error, and what there is to say of it.
    """
    groups = exchangeable(landscape)
    best = landscape.best
    if not groups or best is None or best.precision is None:
        return log_evidence, None
    counts = " and ".join(f"{labels.count}" for labels in groups)
    told = (
        f"log p(data) counts all labellings of the {counts} exchangeable parts, which the data "
        "hardly tell apart. The draws are around one labelling."
    )
    if of_any_order:
        return log_evidence, told
    apart = [log_orders_apart(labels, best.location, best.precision) for labels in groups]
    if all(orders is not None for orders in apart):
        more = sum(orders for orders in apart if orders is not None)
        note = (
            f"log p(data) counts all labellings of the {counts} exchangeable parts: {more:.4g} "
            "nats, the log of the number of labellings, were added. The draws have one labelling."
        )
        return (log_evidence[0] + more, log_evidence[1]), note
    whole = len(groups) == 1 and groups[0].count <= RELABELLING.averaged and points is not None
    if whole and points is not None and log_p is not None and log_proposal is not None:
        picked = np.random.default_rng(0).permutation(len(points))[:DRAWS]
        mean = log_mean_proposal(groups[0], points[picked], log_proposal)
        return log_mean_exp(log_p[picked] - mean), told
    more = sum(labels.log_orders for labels in groups)
    return log_evidence, (
        f"log p(data) counts only some labellings of the {counts} exchangeable parts, which the "
        f"data hardly tell apart. With all labellings it would be larger, by at most {more:.4g} "
        "nats."
    )

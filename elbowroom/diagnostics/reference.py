"""A fit's posterior beside a long run of NUTS: how far they differ, and whether that matters."""

import numpy as np
import pandas as pd
import xarray
from arviz_stats.base import array_stats
from scipy.stats import wasserstein_distance

from elbowroom.diagnostics.compare import labelled_scalars
from elbowroom.errors import DataError
from elbowroom.inference.nuts import FEWEST_EFFECTIVE, R_HAT_LIMIT, NutsDraws, mixing

USABLE = 0.3
"""The distance of means, in the reference's sds, and the log ratio of sds, up to which a posterior
serves as well as the reference."""
ERRORS = 2.0
"""Standard errors that a distance may exceed that by."""
DIVERGENT = 0.01
"""The share of divergent draws above which the reference may have missed a part of the mass."""
INTERVAL = 0.9
"""The mass of the intervals whose coverage is taken."""

COLUMNS = [
    "quantity", "mean_shift", "mean_shift_error", "sd_ratio", "log_ratio_error", "coverage",
    "wasserstein", "r_hat", "effective",
]  # fmt: skip


def compare_with_reference(posterior: xarray.Dataset, reference: xarray.Dataset) -> pd.DataFrame:
    """How each scalar quantity's posterior differs from the reference's.

    Args:
        posterior: Of a fit, with dims chain and draw.
        reference: Draws of NUTS of the same quantities, in the same units and order of labels.

    Returns:
        One line a quantity:

        - quantity: its label;
        - mean_shift: the posterior's mean less the reference's, in the reference's sds, and
          mean_shift_error, its Monte Carlo standard error, both samples' together;
        - sd_ratio: the posterior's sd over the reference's, and log_ratio_error, the standard
          error of its logarithm;
        - coverage: the share of the reference's draws within the posterior's equal-tailed
          90 % interval: 0.9 if they agree;
        - wasserstein: the distance of the two distributions, in the reference's sds;
        - r_hat, effective: rank-normalised split R-hat and the smaller of the bulk effective
          sample sizes of the quantity and of its square, of the reference.

        A quantity that the reference holds fixed has shift 0 and ratio 1 if the posterior holds it
        at the same value; else they are infinite.

    Raises:
        DataError: If they share no quantity.

    Example:
        >>> random = np.random.default_rng(0)
        >>> wide, narrow = random.normal(size=(4, 1000)), 0.5 * random.normal(size=(1, 4000)) + 1
        >>> reference = xarray.Dataset({"b": (("chain", "draw"), wide)})
        >>> table = compare_with_reference(
        ...     xarray.Dataset({"b": (("chain", "draw"), narrow)}), reference
        ... )
        >>> table[["mean_shift", "sd_ratio", "coverage", "wasserstein"]].round(1).values.tolist()
        [[1.0, 0.5, 0.4, 1.0]]
    """
    found, wanted = labelled_scalars(posterior), labelled_scalars(reference)
    shared = [label for label in wanted if label in found]
    if not shared:
        raise DataError(
            f"the posterior ({', '.join(found) or 'empty'}) and the reference "
            f"({', '.join(wanted) or 'empty'}) have no quantity in common."
        )
    lines = [_line(label, found[label], wanted[label]) for label in shared]
    return pd.DataFrame(lines, columns=COLUMNS)

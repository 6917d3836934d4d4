"""What checks are flagged, and the likeliest cause of them."""

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from elbowroom.assess.misfit import LEVEL, flag


def test_checks_are_flagged_by_holm_s_steps_as_in_statsmodels() -> None:
    random = np.random.default_rng(1)
    some = 0
    for _ in range(50):
        p = random.beta(0.15, 1.0, 12)
        table = pd.DataFrame({"check": ["response"] * 12 + ["LOO-PIT"], "p": [*p, np.nan]})
        exact = multipletests(p, LEVEL.others, method="holm")[0]
        for outside in (False, True):
            assert flag(table, outside)["flagged"].tolist() == [*exact, outside]
        some += int((exact != (p < LEVEL.others)).any())
    assert some > 5  # sets in which the correction matters

"""The mixture on iris: the species found, and densities as good as maximum likelihood's."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split

import elbowroom as er

AGREEMENT = 0.88
"""Least adjusted Rand index against the species."""
DENSITY_TOLERANCE = 0.05
"""Nats a row below scikit-learn's held-out log density."""
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]


@pytest.mark.parametrize("seed", SEEDS)
def test_species_are_found_from_default_settings(seed: int) -> None:
    flowers = er.load_dataset("iris")
    fit = er.fit("gaussian_mixture", flowers, seed=seed)
    labels = fit.predict()["assignments"]
    assert adjusted_rand_score(flowers["species"], labels) >= AGREEMENT
    # Canonical order: by the first column's mean.
    means = fit.posterior["posterior"]["means"].mean(("chain", "draw"))
    assert (np.diff(means.isel(column=0)) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_held_out_density_is_scikit_learns(seed: int) -> None:
    flowers = er.load_dataset("iris")
    train, test = train_test_split(
        flowers, test_size=0.3, random_state=seed, stratify=flowers["species"]
    )
    columns = list(flowers.columns[:4])
    peer = GaussianMixture(3, random_state=seed).fit(train[columns].to_numpy())
    fit = er.fit("gaussian_mixture", train, columns=columns, seed=seed)
    found = fit.log_density(test).mean()
    assert found > peer.score(test[columns].to_numpy()) - DENSITY_TOLERANCE
    np.testing.assert_allclose(fit.predict(test)["log_density"].mean(), found)

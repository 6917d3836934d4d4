"""Weighted draws: what their weights tell in closed form, the axis of rows, and resampling."""

import numpy as np
import pytest
import torch
from torch import Tensor

from elbowroom.density.importance import k_hat_threshold
from elbowroom.draws.weighted import WEIGHING, WeightedDraws

DRAWS = 1000


def two_weights(draws: int = DRAWS) -> np.ndarray:
    """Log weights of which half are log 1 and half log 3: the tail has no shape to smooth."""
    return np.log(np.repeat([1.0, 3.0], draws // 2))


def weighted(log_p: np.ndarray, sites: dict[str, Tensor] | None = None) -> WeightedDraws:
    """Draws whose log weights are given, however p and q share them."""
    log_q = np.random.default_rng(3).normal(size=log_p.shape)
    return WeightedDraws(sites or {}, log_p + log_q, log_q)


def rows_of(heavy: int, rows: int) -> WeightedDraws:
    """Rows with light tails, of different k-hat, and some whose tails are too heavy."""
    random = np.random.default_rng(0)
    log_weights = 0.3 * random.normal(size=(DRAWS, rows))
    log_weights[:, :heavy] = 4 * random.normal(size=(DRAWS, heavy))
    return weighted(log_weights)


def test_known_weights_have_the_evidence_and_effective_draws_of_their_formulas() -> None:
    """Half of the weights 1 and half 3: mean 2, sd 1, (mean)² / mean square 4/5."""
    found = weighted(two_weights())
    value, error = found.log_evidence
    assert value == pytest.approx(np.log(2.0), abs=1e-12)
    assert error == pytest.approx(0.5 / DRAWS**0.5, rel=1e-9)
    assert found.effective_sample_size == pytest.approx(0.8 * DRAWS)
    assert found.unsmoothed_effective_sample_size == pytest.approx(0.8 * DRAWS)
    np.testing.assert_allclose(found.weights, np.repeat([0.5, 1.5], DRAWS // 2) / DRAWS)
    bound, its_error = found.elbo()
    assert bound == pytest.approx(np.log(3.0) / 2, abs=1e-12)
    sd = np.log(3.0) / 2 * (DRAWS / (DRAWS - 1)) ** 0.5
    assert its_error == pytest.approx(sd / DRAWS**0.5, rel=1e-9)
    assert found.k_hat.shape == ()
    assert not found.per_row


def test_smoothed_weights_count_for_correcting_and_the_others_for_the_density() -> None:
    log_weights = 2 * np.random.default_rng(1).normal(size=DRAWS)
    found, plain = weighted(log_weights), np.exp(log_weights - log_weights.max())
    unsmoothed = plain.sum() ** 2 / np.square(plain).sum()
    assert found.unsmoothed_effective_sample_size == pytest.approx(unsmoothed)
    assert found.effective_sample_size == pytest.approx(1 / np.square(found.weights).sum())
    assert abs(float(found.effective_sample_size) - unsmoothed) > 1


def test_a_row_may_be_good_enough_to_correct_and_not_for_its_density() -> None:
    """Smoothing has made 70 effective draws of 36."""
    found = weighted(1.7 * np.random.default_rng(1).normal(size=(DRAWS, 1)))
    assert (
        found.unsmoothed_effective_sample_size
        < WEIGHING.fewest_of_row
        < found.effective_sample_size
    )
    assert found.unreliable == 0
    assert found.unreliable_density == 1


def test_an_axis_of_rows_is_a_loop_over_rows() -> None:
    found = rows_of(3, 8)
    singles = [WeightedDraws({}, p, q) for p, q in zip(found.log_p.T, found.log_q.T, strict=True)]
    assert found.per_row
    for name in ("k_hat", "effective_sample_size", "unsmoothed_effective_sample_size", "row_elbo"):
        each = [getattr(single, name) for single in singles]
        np.testing.assert_allclose(getattr(found, name), each, rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(found.weights.T, [single.weights for single in singles], rtol=1e-12)
    density, error = found.log_density()
    alone = np.array([single.log_evidence for single in singles])
    np.testing.assert_allclose(density, alone[:, 0], rtol=1e-12)
    np.testing.assert_allclose(error, alone[:, 1], rtol=1e-12)
    assert found.log_evidence[0] == pytest.approx(alone[:, 0].sum())
    assert found.log_evidence[1] == pytest.approx(np.square(alone[:, 1]).sum() ** 0.5)
    assert found.elbo()[0] == pytest.approx(sum(single.elbo()[0] for single in singles))


def test_what_belongs_to_no_row_is_counted_once() -> None:
    found = rows_of(0, 3)
    rest = np.linspace(-2.0, 1.0, DRAWS)
    more = WeightedDraws({}, found.log_p, found.log_q, rest)
    assert more.log_evidence[0] == pytest.approx(found.log_evidence[0] - 0.5)
    assert more.elbo()[0] == pytest.approx(found.elbo()[0] - 0.5)
    np.testing.assert_allclose(more.together.log_p, found.log_p.sum(1) + rest)
    # Draws of all rows together have the mean.
    picked = more.resample(50, np.random.default_rng(0))
    plain = found.resample(50, np.random.default_rng(0))
    np.testing.assert_allclose(picked.log_p, plain.log_p - 0.5)


@pytest.mark.parametrize(
    ("rows", "left_out"), [(1, 0), (19, 0), (20, 1), (39, 1), (40, 2), (60, 3)]
)
def test_the_largest_k_hat_is_told_when_just_the_allowed_share_is_left_out(
    rows: int, left_out: int
) -> None:
    """A twentieth of the rows may be unreliable, not one more, by each way of saying so."""
    few = rows_of(left_out, rows)
    assert few.worst_k_hat == np.sort(few.k_hat)[-1 - left_out]
    assert few.fewest_effective == np.sort(few.effective_sample_size)[left_out]
    assert few.worst_k_hat <= k_hat_threshold(DRAWS)
    assert few.fewest_effective >= WEIGHING.fewest_of_row
    assert few.unreliable == left_out / rows
    assert few.unreliable_density == left_out / rows
    assert few.usable
    many = rows_of(left_out + 1, rows)
    assert many.worst_k_hat > k_hat_threshold(DRAWS)
    assert many.unreliable == (left_out + 1) / rows
    assert not many.usable


def test_a_posterior_needs_more_effective_draws_than_a_row() -> None:
    """One draw in twenty has nearly all of the weight: about 50 effective draws, and no tail."""
    log_weights = np.where(np.arange(1400) % 20 == 0, 0.0, -50.0)
    assert WEIGHING.fewest_of_row < 70 < WEIGHING.fewest_effective
    one = WeightedDraws({}, log_weights, np.zeros(1400), discrete=True)
    assert one.effective_sample_size == pytest.approx(70)
    assert one.k_hat == -np.inf
    assert not one.usable
    row = WeightedDraws({}, log_weights[:, None], np.zeros((1400, 1)), discrete=True)
    assert row.usable


def test_resampled_draws_come_as_often_as_their_weights_say() -> None:
    """By systematic resampling, to one time more or less."""
    log_weights = 0.7 * np.random.default_rng(2).normal(size=DRAWS)
    found = weighted(log_weights, {"x": torch.arange(DRAWS)})
    assert found.usable
    picked = found.resample(5000, np.random.default_rng(0))
    times = np.bincount(picked.sites["x"].numpy(), minlength=DRAWS)
    assert np.abs(times - 5000 * found.weights).max() < 1
    assert times.max() > 20
    np.testing.assert_array_equal(picked.log_p, found.log_p[picked.sites["x"].numpy()])
    np.testing.assert_array_equal(picked.log_q, found.log_q[picked.sites["x"].numpy()])


def test_resampled_draws_have_equal_weights_and_their_sources_evidence() -> None:
    found = weighted(two_weights())
    picked = found.resample(300, np.random.default_rng(0))
    assert picked.source is found
    assert picked.effective_sample_size == pytest.approx(300)
    assert picked.k_hat == -np.inf
    assert picked.log_evidence == found.log_evidence
    assert picked.elbo() == found.elbo()
    assert picked.row_elbo == found.row_elbo


def test_rows_are_resampled_each_by_its_own_weights_unless_these_are_unreliable() -> None:
    heavy = rows_of(1, 3)
    number = torch.arange(DRAWS)
    sites = {"z": torch.stack([number, number + DRAWS, number + 2 * DRAWS], 1)}
    found = WeightedDraws(sites, heavy.log_p, heavy.log_q, axes={"z": 0})
    np.testing.assert_array_equal(found.reliable, [False, True, True])
    picked = found.resample(4000, np.random.default_rng(0))
    index = (picked.sites["z"] - DRAWS * torch.arange(3)).numpy()
    np.testing.assert_array_equal(index[:, 0], np.arange(4000) % DRAWS)
    for row in (1, 2):
        times = np.bincount(index[:, row], minlength=DRAWS)
        assert np.abs(times - 4000 * found.weights[:, row]).max() < 1
    assert not (index[:, 1] == index[:, 2]).all()
    np.testing.assert_allclose(picked.log_p, np.take_along_axis(heavy.log_p, index, 0).sum(1))
    np.testing.assert_allclose(picked.log_q, np.take_along_axis(heavy.log_q, index, 0).sum(1))
    assert not picked.per_row


def test_resampled_and_joined_rows_stand_in_the_place_that_the_site_has_for_them() -> None:
    """A site of a component by row by number, which is held with the rows first."""
    values = torch.randn(50, 4, 3, 2)
    found = WeightedDraws({"z": values}, np.zeros((50, 4)), np.zeros((50, 4)), axes={"z": 1})
    assert found.together.sites["z"].shape == (50, 3, 4, 2)
    torch.testing.assert_close(found.together.sites["z"].movedim(2, 1), values)
    assert found.resample(7, np.random.default_rng(0)).sites["z"].shape == (7, 3, 4, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_moved_tells_what_the_weights_change_of_mean_and_sd(dtype: torch.dtype) -> None:
    """Values 2 and 6, of which the second weigh three times as much: mean 4 to 5, sd 2 to √3."""
    sites = {"z": torch.tensor([2, 6]).repeat_interleave(DRAWS // 2)[:, None].to(dtype)}
    shift, ratio = weighted(two_weights()[:, None], sites).moved()
    assert shift == pytest.approx([1 / 3**0.5], rel=1e-9)
    sd = 2 * (DRAWS / (DRAWS - 1)) ** 0.5
    assert ratio == pytest.approx([np.log(sd / 3**0.5)], rel=1e-9)
    # Of what is zero or one: from a half to three quarters, in units of a half.
    sites = {"z": (sites["z"] > 4).to(torch.float64)}
    shift, ratio = weighted(two_weights()[:, None], sites).moved()
    assert shift == pytest.approx([0.5], rel=1e-9)
    assert ratio == pytest.approx([0.0])


def test_draws_that_are_parted_and_joined_are_the_same_draws() -> None:
    found = weighted(two_weights(), {"x": torch.arange(DRAWS)})
    first = found.first(300)
    last = WeightedDraws({"x": found.sites["x"][300:]}, found.log_p[300:], found.log_q[300:])
    again = first.followed_by(last)
    assert len(first.log_p) == 300
    torch.testing.assert_close(again.sites["x"], found.sites["x"])
    np.testing.assert_array_equal(again.log_weights, found.log_weights)
    assert again.log_evidence == found.log_evidence


def test_draws_without_a_density_count_for_nothing() -> None:
    log_weights = two_weights()
    log_weights[::4] = -np.inf  # a quarter
    found = weighted(log_weights)
    assert found.weights[::4].sum() == 0
    assert found.log_evidence[0] == pytest.approx(np.log(1.5), abs=1e-12)
    assert found.elbo()[0] == -np.inf


def test_a_far_draw_of_little_weight_does_not_make_the_resampled_sd() -> None:
    """One draw at 200 is picked by one resampling in nine, and then adds a tenth to the sd."""
    random = np.random.default_rng(0)
    along = random.standard_normal(9000) * 10
    along[17] = 200.0
    log_weights = np.zeros(9000)
    log_weights[17] = np.log(0.5)
    draws = WeightedDraws({}, log_weights, np.zeros(9000))
    whole = np.sqrt(draws.weights @ np.square(along - draws.weights @ along))
    sds = []
    for seed in range(60):
        sites = WeightedDraws({"x": torch.as_tensor(along)}, log_weights, np.zeros(9000))
        taken = sites.resample(2000, np.random.default_rng(seed), along)
        sds.append(float(taken.sites["x"].std()))
    assert np.abs(np.log(np.array(sds) / whole)).max() < 1.5 * WEIGHING.close

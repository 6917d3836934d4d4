"""The log density with discrete sites summed out, against sums written out by hand."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise, product
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import dirichlet

from elbowroom.errors import ModelError
from elbowroom.guides.space import LatentSpace
from elbowroom.problem import elimination as module
from elbowroom.problem.elimination import CHAINS
from elbowroom.problem.isolation import isolated
from elbowroom.problem.mapping import map_draws, vmapped
from elbowroom.problem.score import Score, assignment_probabilities, score

EXACT: Any = {"rtol": 1e-10, "atol": 1e-10}
"""Two ways to the same sum in float64."""
VALUES = {"mean": torch.tensor(0.3, dtype=torch.float64)}
FIRST = [0.3, 0.7]
SECOND = [[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def data(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2


def mean_site() -> Tensor:
    return pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))


def categorical(name: str, probabilities: Any) -> Tensor:
    return pyro.sample(name, dist.Categorical(torch.as_tensor(probabilities)))


def mixture(y: Tensor) -> None:
    mean = mean_site()
    with pyro.plate("rows", len(y)):
        kind = categorical("kind", FIRST)
        pyro.sample("y", dist.Normal(mean + 2.0 * kind, 1.0 + kind), obs=y)


def two_in_a_plate(y: Tensor) -> None:
    mean = mean_site()
    with pyro.plate("rows", len(y)):
        first = categorical("first", FIRST)
        second = categorical("second", torch.tensor(SECOND)[first])
        pyro.sample("y", dist.Normal(mean + first - 2.0 * second, 1.0), obs=y)


def nested(y: Tensor) -> None:
    """Each group has one kind, each of its members another."""
    mean = mean_site()
    with pyro.plate("groups", y.shape[0], dim=-2):
        kind = categorical("kind", FIRST)
        with pyro.plate("members", y.shape[1], dim=-1):
            other = categorical("other", torch.tensor(SECOND)[kind])
            pyro.sample("y", dist.Normal(mean + 3.0 * kind + other, 1.0), obs=y)


def apart(y: Tensor) -> None:
    """As `nested`, but only the observation joins the kinds of members to those of groups."""
    mean = mean_site()
    with pyro.plate("groups", y.shape[0], dim=-2):
        kind = categorical("kind", FIRST)
        with pyro.plate("members", y.shape[1], dim=-1):
            other = pyro.sample("other", dist.Bernoulli(torch.linspace(0.2, 0.7, y.shape[1])))
            pyro.sample("y", dist.Normal(mean + 3.0 * kind + other, 1.0), obs=y)


def apart_to_the_left(y: Tensor) -> None:
    """The groups to the right of their members, which have two sites."""
    mean = mean_site()
    with pyro.plate("groups", y.shape[1], dim=-1):
        kind = categorical("kind", FIRST)
        with pyro.plate("members", y.shape[0], dim=-2):
            other = categorical("other", [0.4, 0.6])
            third = categorical("third", torch.tensor(SECOND)[other])
            pyro.sample("y", dist.Normal(mean + 3.0 * kind + other - third, 1.0), obs=y)


def three_levels(y: Tensor) -> None:
    """One kind for all, and one on each level, none of which depends on another."""
    mean, of_all = mean_site(), categorical("of_all", FIRST)
    with pyro.plate("groups", y.shape[0], dim=-3):
        kind = categorical("kind", SECOND[0])
        with pyro.plate("members", y.shape[1], dim=-2):
            other = categorical("other", [0.4, 0.6])
            with pyro.plate("times", y.shape[2], dim=-1):
                moved = pyro.sample("moved", dist.Bernoulli(torch.tensor([0.2, 0.7])))
                level = mean + 3.0 * kind + other - 2.0 * moved * of_all
                pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def whole(y: Tensor) -> None:
    """One kind for all rows."""
    mean = mean_site()
    kind = categorical("kind", FIRST)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean + 2.0 * kind, 1.0), obs=y)


def chain(y: Tensor) -> None:
    mean, state = mean_site(), torch.tensor(0)
    for t in range(len(y)):
        state = categorical(f"state_{t}", torch.tensor([[0.6, 0.4], [0.2, 0.8]])[state])
        pyro.sample(f"y_{t}", dist.Normal(mean + 2.0 * state, 1.0), obs=y[t])


def markov_chain(y: Tensor) -> None:
    mean, state = mean_site(), torch.tensor(0)
    for t in pyro.markov(range(len(y))):
        state = categorical(f"state_{t}", torch.tensor([[0.6, 0.4], [0.2, 0.8]])[state])
        pyro.sample(f"y_{t}", dist.Normal(mean + 2.0 * state, 1.0), obs=y[t])


def one_kind(y: Tensor) -> None:
    """A mixture of a single component."""
    mean = mean_site()
    with pyro.plate("rows", len(y)):
        kind = categorical("kind", [1.0])
        pyro.sample("y", dist.Normal(mean + 2.0 * kind, 1.0), obs=y)


def sightings(y: Tensor) -> None:
    """Animals that may be gone for good; before the first sighting, nothing is known of them."""
    mean = mean_site()
    kept, seen = torch.sigmoid(mean), torch.sigmoid(-1.0 - mean)
    known: Any = torch.zeros(len(y), dtype=torch.bool)
    alive = torch.ones(len(y))
    rows = pyro.plate("rows", len(y))
    for t in pyro.markov(range(y.shape[1])):
        with rows, poutine.mask(mask=known):
            alive = pyro.sample(f"alive_{t}", dist.Bernoulli(torch.where(known, kept * alive, 1.0)))
            pyro.sample(f"seen_{t}", dist.Bernoulli(seen * alive), obs=y[:, t])
        known = known | (y[:, t] > 0)


def ragged(y: Tensor) -> None:
    """Chains of unequal lengths side by side, the rest of each masked."""
    mean, state = mean_site(), torch.tensor(0)
    lengths: Any = torch.arange(len(y)) + 1
    with pyro.plate("rows", len(y)):
        for t in pyro.markov(range(y.shape[1])):
            with poutine.mask(mask=t < lengths):
                state = categorical(f"state_{t}", torch.tensor([[0.6, 0.4], [0.2, 0.8]])[state])
                pyro.sample(f"y_{t}", dist.Normal(mean + 2.0 * state, 1.0), obs=y[:, t])


def second_order(y: Tensor) -> None:
    mean, moves = mean_site(), torch.tensor([[[0.6, 0.4], [0.2, 0.8]], [[0.5, 0.5], [0.9, 0.1]]])
    before = state = torch.tensor(0)
    for t in pyro.markov(range(len(y)), history=2):
        before, state = state, categorical(f"state_{t}", Vindex(moves)[before, state])
        pyro.sample(f"y_{t}", dist.Normal(mean + 2.0 * state, 1.0), obs=y[t])


def scaled(y: Tensor) -> None:
    mean = mean_site()
    with pyro.plate("rows", len(y)), poutine.scale(scale=0.3):
        kind = categorical("kind", FIRST)
        pyro.sample("y", dist.Normal(mean + 2.0 * kind, 1.0 + kind), obs=y)


def scaled_by_a_tensor(y: Tensor) -> None:
    """Half of it masked too, and a site beside it that is scaled otherwise."""
    mean = mean_site()
    with poutine.scale(scale=torch.tensor(2.0)):
        pyro.sample("z", dist.Normal(mean, 1.0), obs=y[0])
    factor, above = torch.tensor(0.7), cast("Any", y > 0)
    with pyro.plate("rows", len(y)), poutine.scale(scale=factor), poutine.mask(mask=above):
        kind = categorical("kind", FIRST)
        pyro.sample("y", dist.Normal(mean + 2.0 * kind, 1.0 + kind), obs=y)


MODELS: list[tuple[Callable[..., Any], tuple[int, ...]]] = [
    (mixture, (5,)),
    (two_in_a_plate, (3,)),
    (nested, (2, 3)),
    (whole, (4,)),
    (chain, (4,)),
    (markov_chain, (4,)),
    (second_order, (4,)),
    (one_kind, (3,)),
]
APART: list[tuple[Callable[..., Any], tuple[int, ...]]] = [
    (apart, (2, 3)),
    (apart, (1, 1)),
    (apart_to_the_left, (2, 2)),
    (three_levels, (1, 2, 2)),
]


def scored(model: Callable[..., Any], y: Tensor, **values: Tensor) -> Score:
    space = LatentSpace.of(model, {"y": y})
    return score(model, {"y": y}, {**VALUES, **values}, space)


def joint_values(model: Callable[..., Any], y: Tensor) -> Iterator[tuple[dict[str, Tensor], Any]]:
    """Every joint value of the discrete sites, with the trace of a run of the model at it."""
    with torch.no_grad():
        discrete = LatentSpace.of(model, {"y": y}).discrete
        trace: Any = poutine.trace(poutine.condition(model, VALUES)).get_trace(y=y)
        drawn = {name: trace.nodes[name]["value"] for name in discrete}
        supports = {
            name: range(len(trace.nodes[name]["fn"].enumerate_support(expand=False)))
            for name in discrete
        }
        cells = [supports[name] for name in discrete for _ in range(drawn[name].numel())]
        for joint in product(*cells):
            remaining = iter(joint)
            given = {
                name: like.new_tensor([next(remaining) for _ in range(like.numel())]).view_as(like)
                for name, like in drawn.items()
            }
            conditioned = poutine.condition(model, {**VALUES, **given})
            yield given, poutine.trace(conditioned).get_trace(y=y)


def brute_force(model: Callable[..., Any], y: Tensor) -> Tensor:
    """Log of the sum over every joint value of the discrete sites, one run of the model each."""
    totals = [torch.as_tensor(trace.log_prob_sum()) for _, trace in joint_values(model, y)]
    return torch.stack(totals).logsumexp(0)


@pytest.mark.parametrize(("model", "shape"), [*MODELS, *APART])
def test_sums_over_discrete_sites_are_the_brute_force_ones(
    model: Callable[..., Any], shape: tuple[int, ...]
) -> None:
    y = data(*shape)
    torch.testing.assert_close(scored(model, y).log_joint, brute_force(model, y), **EXACT)


@pytest.mark.parametrize(
    ("model", "shape"),
    [*MODELS[:7], *APART, (ragged, (3, 4)), (scaled, (5,)), (scaled_by_a_tensor, (5,))],
)
def test_sums_over_discrete_sites_are_pyros(
    model: Callable[..., Any], shape: tuple[int, ...]
) -> None:
    check_against_pyro(model, data(*shape))


def check_against_pyro(model: Callable[..., Any], y: Tensor) -> None:

    def guide(y: Tensor) -> None:
        pyro.sample("mean", dist.Delta(VALUES["mean"]))

    objective = TraceEnum_ELBO(max_plate_nesting=3)
    loss = objective.loss(config_enumerate(model, "parallel"), guide, y)
    assert float(scored(model, y).log_joint) == pytest.approx(-loss, rel=1e-10)


@pytest.mark.parametrize(("model", "shape"), [(nested, (2, 3)), *APART])
def test_kinds_of_groups_and_of_their_members_have_their_marginals(
    model: Callable[..., Any], shape: tuple[int, ...]
) -> None:
    """By every joint value: the observation's density given the others, and each site's shares."""
    y = data(*shape)
    joint, prior = [], []
    seen: dict[str, list[Tensor]] = {}
    for given, trace in joint_values(model, y):
        joint.append(torch.as_tensor(trace.log_prob_sum()))
        prior.append(torch.as_tensor(trace.log_prob_sum(lambda name, _: name != "y")))
        for name, value in given.items():
            seen.setdefault(name, []).append(value)
    found = scored(model, y).log_likelihood["y"]
    total = torch.stack(joint).logsumexp(0) - torch.stack(prior).logsumexp(0)
    torch.testing.assert_close(found.sum(), total, **EXACT)
    groups = {three_levels: (), apart_to_the_left: shape[1:]}.get(model, shape[:1])
    assert found.shape == groups
    space = LatentSpace.of(model, {"y": y})
    shares = assignment_probabilities(model, {"y": y}, VALUES, space)
    for name, each in seen.items():
        values = torch.stack(each)
        weights = torch.stack(joint).softmax(0).reshape(-1, *(1,) * (values.dim() - 1))
        of_values = [(weights * (values == k)).sum(0) for k in range(len(shares[name]))]
        wanted = torch.stack(of_values).reshape(shares[name].shape)
        torch.testing.assert_close(shares[name], wanted, **EXACT)


HISTORIES = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]])


def test_a_masked_state_is_as_the_model_says_where_what_depends_on_it_is_masked() -> None:
    """Alive before the first sighting: by Cormack's recursion for histories of captures."""
    y = HISTORIES.double()
    check_against_pyro(sightings, y)
    mean = float(VALUES["mean"])
    kept, seen = 1 / (1 + math.exp(-mean)), 1 / (1 + math.exp(1 + mean))
    never = [1.0]  # to be seen again, by the seasons left
    for _ in range(y.shape[1]):
        never.append(1 - kept + kept * (1 - seen) * never[-1])
    total = float(dist.Normal(0.0, 1.0).log_prob(VALUES["mean"]))
    for history in HISTORIES.tolist():
        when = [t for t, sighted in enumerate(history) if sighted]
        for first, then in pairwise(when):
            total += (then - first) * math.log(kept * (1 - seen)) + math.log(seen / (1 - seen))
        if when:
            total += math.log(never[len(history) - 1 - when[-1]])
    assert float(scored(sightings, y).log_joint) == pytest.approx(total, rel=1e-12)


def test_rows_count_by_their_weights_outside_of_the_sum() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0])

    def model(y: Tensor) -> None:
        mean = mean_site()
        with pyro.plate("rows", len(y)), poutine.scale(scale=weights):
            kind = categorical("kind", FIRST)
            pyro.sample("y", dist.Normal(mean + 2.0 * kind, 1.0 + kind), obs=y)

    y = data(5)
    found = scored(model, y)
    of_rows = weights * joint_by_hand(y).logsumexp(0)
    prior = dist.Normal(0.0, 1.0).log_prob(VALUES["mean"])
    torch.testing.assert_close(found.log_joint, of_rows.sum() + prior, **EXACT)
    torch.testing.assert_close(found.log_likelihood["y"], of_rows, **EXACT)
    space = LatentSpace.of(model, {"y": y})
    probabilities = assignment_probabilities(model, {"y": y}, VALUES, space)["kind"]
    torch.testing.assert_close(probabilities, joint_by_hand(y).softmax(0), **EXACT)


def test_scales_that_no_sum_has_are_refused() -> None:
    def unequal(y: Tensor) -> None:
        mean = mean_site()
        with pyro.plate("rows", len(y)):
            kind = categorical("kind", FIRST)
            with poutine.scale(scale=0.5):
                pyro.sample("y", dist.Normal(mean + 2.0 * kind, 1.0), obs=y)

    def weighted(y: Tensor) -> None:
        """All rows share one kind, which has a weight for each of them."""
        mean = mean_site()
        with poutine.scale(scale=y.abs()):
            kind = categorical("kind", FIRST)
            with pyro.plate("rows", len(y)):
                pyro.sample("y", dist.Normal(mean + 2.0 * kind, 1.0), obs=y)

    with pytest.raises(ModelError, match=r"'kind', 'y'.*poutine\.scale multiplies them by diff"):
        scored(unequal, data(3))
    with pytest.raises(ModelError, match=r"dim -1 .* belongs to no plate|poutine\.scale"):
        scored(weighted, data(3))


def test_crossed_plates_are_refused_rather_than_summed_wrongly() -> None:
    """Rows and columns each with a kind: the sum does not factorise over either plate."""

    def model(y: Tensor) -> None:
        mean = mean_site()
        rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1)
        with rows:
            row = categorical("row", FIRST)
        with columns:
            column = categorical("column", FIRST)
        with rows, columns:
            pyro.sample("y", dist.Normal(mean + row + 2.0 * column, 1.0), obs=y)

    with pytest.raises(ModelError, match=r"row|column"):
        scored(model, data(2, 3))


def normal_of_kind(y: Tensor, kind: float) -> Tensor:
    return dist.Normal(VALUES["mean"] + 2.0 * kind, 1.0 + kind).log_prob(y)


def joint_by_hand(y: Tensor) -> Tensor:
    """Log weight plus log density of each kind of the mixture, (kinds, rows)."""
    weights = torch.tensor(FIRST).log()
    return torch.stack([weights[k] + normal_of_kind(y, float(k)) for k in range(2)])


def test_pointwise_log_likelihood_of_the_mixture() -> None:
    y = data(5)
    found = scored(mixture, y).log_likelihood["y"]
    torch.testing.assert_close(found, joint_by_hand(y).logsumexp(0), **EXACT)


def test_pointwise_log_likelihood_leaves_the_prior_of_local_sites_out() -> None:
    """Given x, y has density Σ p(kind | x) p(y | x, kind)."""

    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            kind = categorical("kind", FIRST)
            x = pyro.sample("x", dist.Normal(2.0 * kind - 1, 1.0))
            pyro.sample("y", dist.Normal(x * (1.0 + kind), 1.0), obs=y)

    y, x = data(4), data(8)[4:]
    weights = torch.tensor(FIRST).log().unsqueeze(-1)
    kinds = torch.tensor([[0.0], [1.0]])
    of_x = weights + dist.Normal(2.0 * kinds - 1, 1.0).log_prob(x)
    of_y = dist.Normal(x * (1.0 + kinds), 1.0).log_prob(y)
    wanted = (of_x + of_y).logsumexp(0) - of_x.logsumexp(0)
    torch.testing.assert_close(scored(model, y, x=x).log_likelihood["y"], wanted, **EXACT)


def test_assignment_probabilities_are_bayes_rule() -> None:
    y = data(5)
    space = LatentSpace.of(mixture, {"y": y})
    found = assignment_probabilities(mixture, {"y": y}, VALUES, space)["kind"]
    torch.testing.assert_close(found, joint_by_hand(y).softmax(0), **EXACT)


def test_assignment_probabilities_of_a_chain_of_sites_are_marginal() -> None:
    y = data(3)
    space = LatentSpace.of(two_in_a_plate, {"y": y})
    found = assignment_probabilities(two_in_a_plate, {"y": y}, VALUES, space)
    first = torch.arange(2.0).reshape(2, 1, 1)
    second = torch.arange(3.0).reshape(1, 3, 1)
    prior = torch.tensor(FIRST).unsqueeze(-1) * torch.tensor(SECOND)
    likelihood = dist.Normal(VALUES["mean"] + first - 2.0 * second, 1.0).log_prob(y)
    joint = prior.log().unsqueeze(-1) + likelihood  # (first, second, rows)
    posterior = joint.flatten(0, 1).softmax(0).reshape(joint.shape)
    torch.testing.assert_close(found["first"], posterior.sum(1), **EXACT)
    torch.testing.assert_close(found["second"], posterior.sum(0), **EXACT)


def test_sampled_discrete_sites_are_taken_at_their_values() -> None:
    y, kind = data(5), torch.tensor([0, 1, 1, 0, 1])
    found = scored(mixture, y, kind=kind)
    prior = dist.Normal(0.0, 1.0).log_prob(VALUES["mean"])
    wanted = joint_by_hand(y).gather(0, kind.unsqueeze(0)).sum() + prior
    torch.testing.assert_close(found.log_joint, wanted, **EXACT)


@pytest.mark.parametrize("enumerated", [False, True])
def test_a_factor_of_one_adds_one_and_a_masked_prior_nothing(enumerated: bool) -> None:
    def model(y: Tensor, factor: float, flat: bool) -> None:
        mean = mean_site()
        if factor:
            pyro.factor("factor", torch.tensor(factor))
        prior = dist.Normal(torch.zeros(()), 1.0).mask(not flat)
        level = pyro.sample("level", prior)
        with pyro.plate("rows", len(y)):
            kind = categorical("kind", FIRST) if enumerated else 0.0
            pyro.sample("y", dist.Normal(mean + level + kind, 1.0), obs=y)

    y, level = data(4), torch.tensor(1.7)

    def log_joint(factor: float, flat: bool) -> Tensor:
        arguments = {"y": y, "factor": factor, "flat": flat}
        space = LatentSpace.of(model, arguments)
        return score(model, arguments, {**VALUES, "level": level}, space).log_joint

    plain = log_joint(0.0, False)
    torch.testing.assert_close(log_joint(1.0, False) - plain, torch.tensor(1.0), **EXACT)
    prior = dist.Normal(0.0, 1.0).log_prob(level)
    torch.testing.assert_close(plain - log_joint(0.0, True), prior, **EXACT)


def test_a_dim_outside_every_plate_is_refused_by_name() -> None:
    def model(y: Tensor) -> None:
        mean_site()
        kind = categorical("kind", FIRST)
        with pyro.plate("rows", 3, dim=-2):
            pyro.sample("x", dist.Normal(torch.zeros(3, 1), 1.0), obs=torch.zeros(3, 1))
        pyro.sample("y", dist.Normal(kind * torch.ones(4), 1.0), obs=y)

    with pytest.raises(ModelError, match=r"site 'y'.*to_event"):
        scored(model, data(4))


@pytest.mark.parametrize("model", [mixture, markov_chain])
def test_a_batch_of_draws_scores_as_one_by_one(model: Callable[..., Any]) -> None:
    y = data(4)
    space = LatentSpace.of(model, {"y": y})
    draws = {"mean": data(7)}

    def log_joint(values: dict[str, Tensor]) -> Tensor:
        return score(model, {"y": y}, values, space).log_joint

    batched = torch.func.vmap(log_joint)(draws)
    single = torch.stack([log_joint({"mean": value}) for value in draws["mean"]])
    torch.testing.assert_close(batched, single, **EXACT)
    torch.testing.assert_close(map_draws(log_joint, draws, chunk=3), single, **EXACT)


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError])
def test_what_cannot_be_batched_is_run_draw_by_draw(kind: type[Exception]) -> None:
    """Whatever it raises in a batch, in which torch reads no numbers."""
    draws = {"x": data(5)}

    def by_branch(values: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            return {"y": values["x"] * (2.0 if values["x"].item() > 0 else -1.0)}
        except RuntimeError as error:
            raise kind from error

    wanted = torch.where(draws["x"] > 0, 2 * draws["x"], -draws["x"])
    torch.testing.assert_close(map_draws(by_branch, draws)["y"], wanted, rtol=0, atol=0)


@pytest.mark.parametrize("batched", [True, False])
def test_random_draws_differ_and_come_in_the_form_of_one(batched: bool) -> None:
    """A function that needs nothing is given nothing, and told how often."""
    given = []

    def sample(values: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        given.append(values)
        drawn = dist.Normal(torch.zeros(()), 1.0).sample()
        sign = torch.ones(()) if batched or drawn.item() > 0 else -torch.ones(())
        return {"x": drawn, "y": drawn + 1}, sign

    values, signs = map_draws(sample, {}, 20, count=50)
    assert not any(given)
    assert len(values["x"].unique()) == 50
    torch.testing.assert_close(values["y"], values["x"] + 1, **EXACT)
    expected = torch.ones(50) if batched else values["x"].sign()
    torch.testing.assert_close(signs, expected, **EXACT)


def test_random_draws_in_a_batch_warn_of_nothing() -> None:
    """torch has no batched rule for some steps of these, and says so to whoever runs them."""

    def sample(_: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "gamma": dist.Gamma(torch.tensor(2.0), 1.0).sample(),
            "share": dist.Dirichlet(torch.ones(3)).sample(),
            "correlation": dist.LKJCholesky(3, torch.ones(())).sample(),
            "count": dist.Poisson(torch.tensor(3.0)).sample(),
        }

    found = map_draws(sample, {}, count=20)
    assert all(len(values.unique(dim=0)) > 1 for values in found.values())


def test_scalar_draws_index_in_a_batch() -> None:
    table, columns = torch.arange(12.0).reshape(3, 4), torch.arange(4)
    calls = []

    def pick(draw: dict[str, Tensor]) -> tuple[Tensor, ...]:
        calls.append(1)
        i, j = draw["i"], draw["j"]
        return table[i], table[i, j], table[i, 1:3], table[i, None], table[i][columns]

    drawn = {"i": torch.tensor([2, 0]), "j": torch.tensor([3, 1])}
    found = map_draws(pick, drawn)
    assert len(calls) == 1
    for number in range(2):
        alone = pick({name: values[number] for name, values in drawn.items()})
        for batched, single in zip(found, alone, strict=True):
            torch.testing.assert_close(batched[number], single)


def test_vectors_in_no_plate_stay_out_of_what_is_summed_over() -> None:
    """Values of a discrete site get a dim of their own, left of the vectors'."""

    def model(y: Tensor) -> None:
        mean_site()
        kind = categorical("kind", FIRST)
        levels = pyro.sample("levels", dist.Normal(torch.zeros(2), 1.0))
        with pyro.plate("rows", len(y), dim=-1):
            pyro.sample("y", dist.Normal(levels[kind], 1.0), obs=y)

    y, levels = data(4), torch.tensor([0.4, -1.2])
    found = scored(model, y, levels=levels).log_joint
    of_kinds = torch.tensor(FIRST).log() + dist.Normal(levels, 1.0).log_prob(y[:, None]).sum(0)
    priors = dist.Normal(0.0, 1.0).log_prob(torch.cat([levels, VALUES["mean"][None]])).sum()
    torch.testing.assert_close(found, of_kinds.logsumexp(0) + priors, **EXACT)


def in_a_loop(y: Tensor) -> None:
    """The mixture, one row after the other."""
    mean = mean_site()
    for i in map(int, pyro.plate("rows", len(y))):
        kind = categorical(f"kind_{i}", FIRST)
        pyro.sample(f"y_{i}", dist.Normal(mean + 2.0 * kind, 1.0 + kind), obs=y[i])


def test_draws_of_a_dirichlet_are_made_in_a_batch() -> None:
    """Their mean and variances are those of the shares; and torch is left as it was."""
    concentration = torch.tensor([0.5, 1.5, 3.0])
    own = vars(dirichlet._Dirichlet).copy()
    with isolated(0, dtype=torch.float64):
        fn = dist.Dirichlet(concentration.double())
        found = vmapped(lambda _: fn.rsample(), {}, 5000, 20_000)
    assert vars(dirichlet._Dirichlet) == own
    error = (fn.variance / len(found)).sqrt()
    assert ((found.mean(0) - fn.mean).abs() < 4 * error).all()
    assert (found.var(0) / fn.variance - 1).abs().max() < 0.08
    torch.testing.assert_close(found.sum(1), torch.ones(20_000, dtype=torch.float64))


def test_rows_in_a_loop_are_summed_over_like_those_of_a_plate() -> None:
    """More of them than a tensor has dims; Pyro gives each a dim of its own."""
    y = data(80)
    expected, found = scored(mixture, y), scored(in_a_loop, y)
    torch.testing.assert_close(found.log_joint, expected.log_joint, **EXACT)
    rows = torch.stack([found.log_likelihood[f"y_{i}"] for i in range(len(y))])
    torch.testing.assert_close(rows, expected.log_likelihood["y"], **EXACT)
    space = LatentSpace.of(in_a_loop, {"y": y})
    shares = assignment_probabilities(in_a_loop, {"y": y}, VALUES, space)
    found_shares = torch.stack([shares[f"kind_{i}"] for i in range(len(y))], 1)
    torch.testing.assert_close(found_shares, joint_by_hand(y).softmax(0), **EXACT)


def of_a_kind(y: Tensor) -> None:
    """Chains, each with a kind that all its steps depend on; some are shorter."""
    mean, state = mean_site(), torch.tensor(0)
    moves = torch.tensor([[[0.6, 0.4], [0.2, 0.8]], [[0.1, 0.9], [0.7, 0.3]]])
    lengths: Any = torch.arange(y.shape[1]) + 8
    with pyro.plate("rows", y.shape[1]):
        kind = categorical("kind", FIRST)
        for t in range(len(y)):
            with poutine.mask(mask=t < lengths):
                state = categorical(f"state_{t}", Vindex(moves)[kind, state])
                pyro.sample(f"y_{t}", dist.Normal(mean + 2.0 * state, 1.0), obs=y[t])


def side_by_side(y: Tensor) -> None:
    """Two chains that are seen as one."""
    mean, one, two = mean_site(), torch.tensor(0), torch.tensor(0)
    moves = torch.tensor([[0.6, 0.4], [0.2, 0.8]])
    for t in range(len(y)):
        one, two = categorical(f"one_{t}", moves[one]), categorical(f"two_{t}", moves[two])
        pyro.sample(f"y_{t}", dist.Normal(mean + one - 3.0 * two, 1.0), obs=y[t])


def long_chain(y: Tensor) -> None:
    mean, state = mean_site(), torch.tensor(0)
    moves = torch.tensor([[0.6, 0.4], [0.2, 0.8]])
    with pyro.plate("rows", y.shape[1]):
        for t in pyro.markov(range(len(y))):
            state = categorical(f"state_{t}", moves[state])
            pyro.sample(f"y_{t}", dist.Normal(mean + 2.0 * state, 1.0), obs=y[t])


@pytest.mark.parametrize(
    ("model", "shape"), [(of_a_kind, (9, 2)), (side_by_side, (9,)), (long_chain, (9, 2))]
)
def test_longer_chains_are_summed_over_as_step_by_step(
    model: Callable[..., Any], shape: tuple[int, ...]
) -> None:
    """With the gradient, by one sum after the other: no chain is as long as a million steps."""
    y, found = data(*shape), {}
    for shortest in (CHAINS.shortest, 1_000_000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "CHAINS", replace(CHAINS, shortest=shortest))
            space = LatentSpace.of(model, {"y": y})

            def total(mean: Tensor, space: LatentSpace = space) -> Tensor:
                return score(model, {"y": y}, {"mean": mean}, space).log_joint

            found[shortest] = torch.func.grad_and_value(total)(VALUES["mean"])
    one, other = found.values()
    torch.testing.assert_close(one, other, **EXACT)
    if model is not side_by_side:
        check_against_pyro(model, y)


def test_a_long_chain_is_the_forward_recursion() -> None:
    y = data(120, 3)
    moves = torch.tensor([[0.6, 0.4], [0.2, 0.8]]).log()
    seen = dist.Normal(VALUES["mean"] + torch.tensor([0.0, 2.0]), 1.0).log_prob(y.unsqueeze(-1))
    alpha = moves[0] + seen[0]  # (rows, states)
    for each in seen[1:]:
        alpha = (alpha.unsqueeze(-1) + moves).logsumexp(-2) + each
    prior = dist.Normal(0.0, 1.0).log_prob(VALUES["mean"])
    expected = alpha.logsumexp(-1).sum() + prior
    torch.testing.assert_close(scored(long_chain, y).log_joint, expected, **EXACT)

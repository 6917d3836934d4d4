"""Whether a model is valid on its data: shapes, observed values and arguments of distributions.

Pyro and torch check these as a model runs, and are told not to while a log density is recorded. So
the plain model is run a few times beforehand with their validation on, at random values of its
latent sites; what they would refuse is refused here, with the site, the rows and the edit. What
they let pass is the number of terms: a value that is broadcast against its distribution, or a mask
against the site's batch, counts more than once.

A shape is wrong at any values of the latents. An argument or an observed value may be invalid at
some of them only: that is an error where it is so at each of many, and a warning elsewhere.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.errors import ElbowroomError, ModelError, users_code
from elbowroom.guides.space import sample_sites, takes_batches, trace_model
from elbowroom.problem.faults import Fault
from elbowroom.problem.isolation import reseed
from elbowroom.problem.site_shapes import faults_of_shapes, shape_edit
from elbowroom.problem.site_values import faults_of_arguments, faults_of_values, seen_twice
from elbowroom.sizes import SIZES, numbers_in

WIDTHS = (0.5, 2.0, None)
"""Of the random unconstrained values that a model is run at; None for draws from its priors."""


@dataclass(frozen=True)
class Validation:
    """How often a model is run to check it."""

    most_runs: int = 60
    """Runs at ever wider values before what is invalid in each of them is an error."""
    draws: int = 5
    """Posterior draws at which a fitted model is run again."""


VALIDATION = Validation()


ModelFunction = Callable[..., Any]


@dataclass(frozen=True)
class _Run:
    """One run of a model: what is wrong there, or why it cannot be run there at all."""

    faults: tuple[Fault, ...] = ()
    failure: ElbowroomError | None = None

    def has(self, place: tuple[str, str]) -> bool:
        """Whether something is wrong with it."""
        return any(fault.place == place for fault in self.faults)


def validate(model: ModelFunction, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    r"""Makes the checks of Pyro's and torch's validation; to be called in an isolated session.

    Args:
        model: The Pyro model.
        arguments: Its keyword arguments.

    Returns:
        Warnings: what is invalid at some values of the latents, each with the edit.

    Raises:
        ModelError: If a shape is wrong, or an argument of a distribution at all values tried.
        DataError: If an observed value has no density at all values tried; rows are named.

    Example:
        >>> import pyro.distributions as dist
        >>> from elbowroom.errors import DataError
        >>> def model(y):
        ...     share = pyro.sample("share", dist.Beta(1.0, 1.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Bernoulli(share), obs=y)
        >>> validate(model, {"y": torch.tensor([0.0, 1.0])})
        ()
        >>> try:
        ...     validate(model, {"y": torch.tensor([1.0, 2.0])})
        ... except DataError as error:
        ...     print(str(error).replace(": ", ":\n"))
        site 'y':
        1 of 2 values is not in the support of its Bernoulli (0 or 1):
        row 2 (counted from 1) has 2. Its values begin at 1:
        code them from 0, obs=y - 1.
    """
    numbers = numbers_in(arguments)
    widths = WIDTHS[:1] if numbers > SIZES.arguments else WIDTHS
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of runs that are made for their errors alone
        runs = [_run(model, arguments, width, seed) for seed, width in enumerate(widths)]
        failure = runs[0].failure
        if failure is not None and all(run.failure for run in runs):
            raise failure
        if takes_batches(model) and "batch_size" not in arguments:
            _minibatch(model, arguments)
        valid = [run for run in runs if run.failure is None]
        always = _always(model, arguments, valid, len(widths))
    for fault in always[:1]:
        assert fault.kind is not None
        raise fault.kind(fault.text)
    found = {fault.place: fault for run in reversed(valid) for fault in run.faults if fault.warns}
    somewhere = (
        " This happened at some random values of the latents; there the density is not defined."
    )
    return tuple(fault.text + (somewhere if fault.kind else "") for fault in found.values())


def _always(
    model: ModelFunction, arguments: Mapping[str, Any], valid: Sequence[_Run], tried: int
) -> list[Fault]:
    """The errors that every run makes: of the runs so far, and of more, at ever wider values."""
    always = [
        fault for fault in valid[0].faults
        if fault.kind is not None and all(run.has(fault.place) for run in valid)
    ]  # fmt: skip
    for extra in range(tried, VALIDATION.most_runs):
        if not always:
            break
        # Wider and wider, from its priors in between.
        run = _run(model, arguments, None if extra % 3 == 0 else 0.1 * extra, extra)
        if run.failure is None:
            always = [fault for fault in always if run.has(fault.place)]
    return always


def real_observations(model: ModelFunction, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arguments that are observed and are whole numbers or truth values, as real numbers.

    Args:
        model: The Pyro model.
        arguments: Its keyword arguments.

    Example:
        >>> def model(y):
        ...     pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)), obs=y)
        >>> real_observations(model, {"y": torch.tensor(1)})
        {'y': tensor(1.)}
    """
    with torch.random.fork_rng(devices=[]), users_code("the model cannot be run", ModelError):
        trace = poutine.trace(model).get_trace(**arguments)
    observed = {id(node["value"]) for _, node in sample_sites(trace) if node["is_observed"]}
    return {
        name: value.to(torch.get_default_dtype())
        for name, value in arguments.items()
        if isinstance(value, Tensor) and id(value) in observed and not value.is_floating_point()
    }


def has_gradient(model: ModelFunction, arguments: Mapping[str, Any]) -> bool:
    """Whether a model's log density and its gradient are finite at a random point.

    Args:
        model: The Pyro model, to be called in an isolated session.
        arguments: Its keyword arguments.
    """
    try:
        with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            values = {
                name: node["value"].detach().requires_grad_()
                for name, node in sample_sites(trace_model(model, arguments))
                if not node["is_observed"] and node["value"].is_floating_point()
            }
            conditioned = poutine.condition(model, data=values)
            total = torch.as_tensor(
                poutine.trace(conditioned).get_trace(**arguments).log_prob_sum()
            )
            inputs = [*values.values(), *dict(pyro.get_param_store().named_parameters()).values()]
            found = (
                torch.autograd.grad(total, inputs, allow_unused=True) if total.requires_grad else ()
            )
    except (ElbowroomError, RuntimeError, ValueError):
        return False
    return bool(total.isfinite()) and all(g is None or bool(g.isfinite().all()) for g in found)


def check_shapes(model: ModelFunction, arguments: Mapping[str, Any]) -> None:
    """The shapes alone, at one run; to be called in an isolated session.

    Raises:
        ModelError: If one is wrong, or the model cannot be run.
    """
    with torch.random.fork_rng(devices=[]):
        faults_of_shapes(_trace(model, arguments, WIDTHS[0]), arguments)


def invalid_draws(
    model: ModelFunction, arguments: Mapping[str, Any], sites: Mapping[str, Tensor]
) -> str | None:
    """What is invalid at some posterior draws, as a sentence; to be called in a session.

    Args:
        model: The Pyro model.
        arguments: Its keyword arguments.
        sites: Draws of its latent sites, each (draws, ...).
    """
    count = len(next(iter(sites.values()), []))
    numbers = numbers_in(arguments)
    chosen = torch.linspace(
        0, count - 1, min(count, 1 if numbers > SIZES.arguments else VALIDATION.draws)
    ).long()
    faults = []
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed, index in enumerate(chosen.tolist()):
            values = {name: draws[index] for name, draws in sites.items()}
            conditioned = poutine.condition(model, data=values)
            found = _run(conditioned, arguments, None, seed, latents=set(values)).faults
            faults += [fault for fault in found if fault.warns and fault.kind][:1]
    if not faults:
        return None
    return f"At {len(faults)} of {len(chosen)} posterior draws the model is not valid: " + (
        faults[0].text
    )


def _run(
    model: ModelFunction,
    arguments: Mapping[str, Any],
    width: float | None,
    seed: int,
    latents: set[str] | None = None,
) -> _Run:
    """Runs a model with validation on.

    Raises:
        ModelError: If a shape is wrong.
    """
    reseed(seed)
    try:
        with pyro.validation_enabled(True):
            trace = _trace(model, arguments, width)
    except ElbowroomError as refused:
        # Whether without validation, and which site it was then.
        reseed(seed)
        try:
            with pyro.validation_enabled(False):
                trace = _trace(model, arguments, width)
                faults_of_shapes(trace, arguments, latents)
                wrong = tuple(faults_of_arguments(trace))
        except ElbowroomError as failure:
            return _Run(failure=_plainer(failure, arguments))
        text = str(refused).split(", but found invalid values")[0]
        edit = "correct this value; if it is right, give the distribution validate_args=False."
        return _Run(wrong or (Fault(("", "run"), f"{text}: {edit}"),))
    loose = faults_of_shapes(trace, arguments, latents)
    with pyro.validation_enabled(True):
        observed = [
            (name, node) for name, node in sample_sites(trace)
            if node["is_observed"] and not node["infer"].get("_deterministic")
            and name not in (latents or ()) and not isinstance(node["fn"], dist.Unit)
        ]  # fmt: skip
        faults: list[Fault] = []
        for name, node in observed:
            try:
                with users_code(f"site '{name}': its log density cannot be evaluated", ModelError):
                    faults += list(faults_of_values(name, node))
            except ElbowroomError as failure:
                return _Run(failure=_plainer(failure, arguments))
        return _Run((*loose, *faults, *seen_twice(observed)))


def _trace(model: ModelFunction, arguments: Mapping[str, Any], width: float | None) -> Any:
    if width is not None:
        return trace_model(model, arguments, width)
    with users_code("the model cannot be run", ModelError):
        return poutine.trace(model).get_trace(**arguments)


def _plainer(failure: ElbowroomError, arguments: Mapping[str, Any]) -> ElbowroomError:
    """What a user's model raised, with the edit where the cause is a kind of number."""
    text = str(failure)
    whole = {
        name: f"'{name}' is {str(value.dtype).removeprefix('torch.')}"
        for name, value in arguments.items()
        if isinstance(value, Tensor) and not value.is_floating_point()
    }
    ranges = [
        f"'{name}' goes from {int(value.min())} to {int(value.max())}"
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.numel() and value.dtype == torch.int64
    ]
    if ranges and "out of" in text and "index" in text.lower():
        text = (
            f"{text}. Among the arguments, {', '.join(ranges)}: count groups from 0 without a gap, "
            "and give the model as many as there are."
        )
    elif "Shape mismatch inside plate" in text:
        text = f"{text}. {shape_edit(arguments)}"
    elif whole and any(word in text for word in ("dtype", "can't be cast", "two bool tensors")):
        text = (
            f"{text} Among the arguments, {', '.join(whole.values())}: convert whole numbers where "
            f"real ones are needed, as in {next(iter(whole))}.double()."
        )
    return failure if text == str(failure) else ModelError(text)


def _minibatch(model: ModelFunction, arguments: Mapping[str, Any]) -> None:
    """The shapes of a minibatch.

    Raises:
        ModelError: If one is wrong.
    """
    try:
        with pyro.validation_enabled(False):
            faults_of_shapes(_trace(model, {**arguments, "batch_size": 1}, WIDTHS[0]), arguments)
    except ElbowroomError as error:
        raise ModelError(
            f"In a minibatch of one row: {str(error).split(' Give the value')[0]} Use the rows "
            "of the plate, as y[rows] in `with pyro.plate(..., subsample_size=batch_size) as "
            "rows`, or pyro.subsample(y, event_dim=0)."
        ) from error


# Shapes

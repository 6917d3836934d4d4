"""A model bound to its data: what every later step of a fit is asked about."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from elbowroom.data.missing import CompleteRows, complete_rows
from elbowroom.data.tables import read_table
from elbowroom.errors import (
    DataError,
    ElbowroomError,
    GuideError,
    ModelError,
    OptionError,
    users_function,
)
from elbowroom.guides import Guide
from elbowroom.guides.parameters import held
from elbowroom.guides.space import (
    LatentSpace,
    Plate,
    dim_names,
    takes_batches,
    trace_model,
)
from elbowroom.models import Model, Prepared, Training, get_model
from elbowroom.models._own import load_function, own_model, required, unmatched
from elbowroom.problem.footprint import check_footprint
from elbowroom.problem.given_start import begun
from elbowroom.problem.in_support import within_supports
from elbowroom.problem.informed import Form, written
from elbowroom.problem.isolation import Parameters, isolated, placed
from elbowroom.problem.leaves import kept_buffers, with_fixed_values, with_kept_parameters
from elbowroom.problem.modules import with_names_of_its_own
from elbowroom.problem.own_plates import OwnPlate, own_plates, with_all_rows, with_rows
from elbowroom.problem.population import population_sites
from elbowroom.problem.precision import unmixed
from elbowroom.problem.predictor import Predictor
from elbowroom.problem.unseen import without_unseen
from elbowroom.problem.validation import check_shapes, has_gradient, real_observations, validate
from elbowroom.sizes import SIZES, numbers_in


class _Reported(Messenger):
    """Marks sites as deterministic ones: Pyro's reparameterisation leaves them as observations."""

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.sites = set(sites)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites:
            msg["infer"] = {**(msg["infer"] or {}), "_deterministic": True}


class _LeftOut(Messenger):
    """Leaves the densities of sites out."""

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.sites = set(sites)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites:
            # Masked by itself: objectives with closed forms do not read the site's own mask.
            msg["fn"] = msg["fn"].mask(False)


class _RowLeftOut(Messenger):
    """Leaves one observation's density out."""

    def __init__(self, site: str, kept: Tensor) -> None:
        super().__init__()
        self.site, self.kept = site, kept

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            msg["fn"] = msg["fn"].mask(self.kept)


def _named_as(model: Callable[..., Any], changed: Any) -> Callable[..., Any]:
    """A changed model that takes the arguments of the model by their names."""

    @wraps(model)
    def function(**arguments: Any) -> Any:
        return changed(**arguments)

    return function


@dataclass(frozen=True)
class Problem:
    """A model, its options, the data and what was made of them.

    Attributes:
        model: The declaration.
        options: An instance of the model's options, None for a user's own function.
        data: The table, or the dict of arguments of a user's own function.
        prepared: The model's arguments on the CPU, with the names of their dims.
        arguments: The same in the fit's dtype and on its device.
        space: The model's latent space.
        dtype: Of all numbers.
        device: Of all tensors.
        reparameterised: Location-scale sites that are written by their standardised values.
        forms: How these are written, where it is otherwise; see `reparameterise`.
        original: The same as it was written, where it is written otherwise.
        posterior: The same with its priors, where these are left out.
        doubts: What may be wrong with the model or its data, each with the edit.
        unseen: Latent sites that are integrated out or computed; see `elbowroom.problem.unseen`.
        own_plates: Plates that would take rows at random by themselves; they are given all.
        start: Values of latent sites that the user has the fit begin at.
    """

    model: Model
    options: Any
    data: Any
    prepared: Prepared
    arguments: dict[str, Any]
    space: LatentSpace
    dtype: torch.dtype
    device: torch.device
    reparameterised: tuple[str, ...] = ()
    forms: Mapping[str, Form] = field(default_factory=dict)
    original: "Problem | None" = None
    posterior: "Problem | None" = None
    doubts: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    own_plates: tuple[OwnPlate, ...] = ()
    start: Mapping[str, Tensor] = field(default_factory=dict)

    def reparameterise(
        self, sites: Sequence[str], forms: Mapping[str, Form] | None = None
    ) -> "Problem":
        """The same posterior with some location-scale sites written by their standardised values.

        The model's own names stay: the sites become deterministic ones (Gorinova, Moore and
        Hoffman, 2020, "Automatic reparameterisation of probabilistic programs").

        Args:
            sites: Which.
            forms: How far each number of a site stays as it is, between 0 and 1, of the site's
                shape, by default not at all; or what is known of a multivariate Normal one, by
                default nothing.
        """
        if not sites:
            return self
        forms = dict(forms or {})
        changed = self._otherwise(self.model.function, sites, forms)
        function = _named_as(self.model.function, changed)
        with isolated(0, dtype=self.dtype, device=self.device):
            space = LatentSpace.of(function, self.arguments).with_coordinates_of(self.space)
            start = self.start
            if not set(sites).isdisjoint(start):
                u = begun(start, self.space, torch.zeros(self.space.dimension))
                start = self.restated(sites, forms, self.space.constrain(u.to(self.dtype)))
        model = replace(self.model, function=function)
        return replace(
            self, model=model, space=space, reparameterised=tuple(sites), forms=forms, start=start,
            original=self.original or self,
        )  # fmt: skip

    def _otherwise(
        self, model: Callable[..., Any], sites: Sequence[str], forms: Mapping[str, Form]
    ) -> Any:
        """A model with some sites written otherwise, which are deterministic ones then."""
        origin = self.space.constrain(torch.zeros(self.space.dimension))

        def linear(predictor: Predictor, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            # Sites that are sampled later on are at the origin.
            like = next(iter(values.values()))
            known = {name: value.to(like) for name, value in origin.items()} | {**values}
            return predictor.at(self.model.function, self.arguments, known)

        own = {site: forms.get(site) for site in sites}
        return _Reported(sites)(written(model, own, linear))

    def restated(
        self, sites: Sequence[str], forms: Mapping[str, Form], values: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The values of the latent sites where some are written otherwise.

        Args:
            sites: Which; see `reparameterise`.
            forms: Of these.
            values: Of this problem's own latent sites.
        """
        known = poutine.condition(self.model.function, dict(values))
        with torch.no_grad():
            trace: Any = poutine.trace(self._otherwise(known, sites, forms)).get_trace(
                **self.arguments
            )
        kept = {name: value for name, value in values.items() if name not in sites}
        names = [f"{site}_decentered" for site in sites]
        return kept | {name: trace.nodes[name]["value"] for name in names}

    def with_rows(self, data: pd.DataFrame, points: Mapping[str, Tensor]) -> "Problem":
        """The same model of other rows, its point parameters (`pyro.param`) held at some values.

        Args:
            data: The rows, prepared as the fit's were.
            points: The values, by name.

        Raises:
            DataError: If a column is missing or cannot be used.
        """
        values = {name: value.to(self.device, self.dtype) for name, value in points.items()}
        function = _named_as(self.model.function, held(self.model.function, values))
        training = Training(self.data, self.prepared.arguments)
        with isolated(0, dtype=self.dtype, device=self.device):
            prepared = self.model.prepare(data, self.options, training)
            arguments = placed(prepared.arguments, self.dtype, self.device)
            space = LatentSpace.of(function, arguments).with_coordinates_of(self.space)
        model = replace(self.model, function=function)
        return replace(
            self, model=model, data=data, prepared=prepared, arguments=arguments, space=space,
            start={},
        )  # fmt: skip

    def without_priors(self) -> "Problem":
        """The same likelihood with flat priors of the continuous latents, on the sites' values.

        Discrete sites keep their probabilities, so that what is summed over them is the marginal
        likelihood of the others.

        Raises:
            OptionError: If the density of a site is no prior, but a part of the likelihood: it has
                a value for each observation, or depends on other sites or on point parameters.
        """
        space, sites = self.space, [site.name for site in self.space.sites]
        if not sites:
            raise OptionError(
                "--guide mle: the model has no continuous latent to estimate, and every guide puts "
                "its point parameters at their maximum likelihood; fit with --guide auto."
            )
        if space.per_observation:
            raise OptionError(
                f"--guide mle: site '{space.per_observation[0]}' has a value for each "
                "observation; maximum likelihood must sum over such values, not estimate them. "
                "Fit with another guide."
            )
        for name in population_sites(self):
            if name in sites:
                raise OptionError(
                    f"--guide mle: the density of site '{name}' depends on other latent sites or "
                    "on point parameters. It is therefore a part of the likelihood, not a "
                    "prior, and cannot be left out; fit with --guide map or auto."
                )
        return replace(self.without(sites), posterior=self)

    def without(self, sites: Sequence[str]) -> "Problem":
        """The same with the densities of some sites left out, whose values stay."""
        free = _LeftOut(sites)(self.model.function)
        function = _named_as(self.model.function, free)
        return replace(self, model=replace(self.model, function=function))

    def without_row(self, row: int) -> "Problem":
        """The posterior given all observations but one.

        Priors, scales, groups and point parameters stay those of all rows. The guides written for
        the model read its arguments, in which the row still is: only general ones see that it is
        left out, so the model counts as the user's own.

        Args:
            row: The number of the observation, from 0.
        """
        site = self.observed
        plates = self.space.observed_plates[site]  # from the left dim to the right
        shape = [1] * max(-plate.dim for plate in plates)
        for plate in plates:
            shape[plate.dim] = plate.size
        kept = torch.ones(shape, dtype=torch.bool, device=self.device)
        kept.view(-1)[row] = False
        function = _named_as(self.model.function, _RowLeftOut(site, kept)(self.model.function))
        model = replace(self.model, function=function, options=None)
        return replace(self, model=model, options=None)

    def for_guide(self, guide: Guide) -> "Problem":
        """What a guide is fitted to: this, or without priors if it leaves them out."""
        return self.without_priors() if guide.likelihood else self

    def with_added(self, predictor: Predictor) -> "Problem":
        """The same with one more latent site, the first one, which is added to a result.

        It has no density of its own.
        """

        def changed(**arguments: Any) -> Any:
            flat = dist.Normal(torch.zeros(predictor.shape), 1.0).mask(False)
            added = pyro.sample(f"{predictor.site}_added", flat.to_event(len(predictor.shape)))
            return predictor.moved(self.model.function, added)(**arguments)

        function = _named_as(self.model.function, changed)
        with isolated(0, dtype=self.dtype, device=self.device):
            space = LatentSpace.of(function, self.arguments)
        return replace(self, model=replace(self.model, function=function), space=space)

    def called(self, guide: Callable[..., Any]) -> Callable[..., Any]:
        """A guide of the user's own, to be called with the model's arguments in a session."""
        guide = unmixed(guide, self.arguments)
        guide = users_function(guide, "the guide cannot be run", GuideError)
        with suppress(ElbowroomError, RuntimeError, ValueError, TypeError):
            guide = with_names_of_its_own(guide, self.function, self.arguments)
        plates = {plate.name: plate for plate in self.own_plates}
        with suppress(ElbowroomError):  # which is said when it is run
            plates |= {plate.name: plate for plate in own_plates(guide, self.arguments)}
        if plates:
            rows = self.space.subsampled
            named = None if rows is None or takes_batches(guide) else rows.name
            guide = with_rows(guide, [*plates.values()], named)
        return poutine.block(guide, hide=[*self.unseen]) if self.unseen else guide

    @property
    def written_batch(self) -> int | None:
        """The rows of the minibatches that the model is written with, where all rows take long."""
        plate = self.space.subsampled if self.threads is None else None
        rows = [each.rows for each in self.own_plates if plate and each.name == plate.name]
        return next(iter(rows), None)

    @property
    def hidden(self) -> set[str]:
        """Latent sites that the user sees through a deterministic site instead."""
        standardised = {f"{site}_decentered" for site in self.reparameterised}
        return {*self.model.internal, *self.prepared.internal, *standardised}

    @contextmanager
    def session(self, seed: int, parameters: Parameters | None = None) -> Iterator[Any]:
        """A block in which this problem's model and guides are run; see `isolated`.

        Small problems run on one thread: waking the others costs more than they do.
        """
        with (
            kept_buffers(self.function),
            isolated(seed, parameters, self.dtype, self.device, threads=self.threads) as state,
        ):
            yield state

    @property
    def threads(self) -> int | None:
        """Threads that a session takes; None leaves them as they are."""
        return 1 if numbers_in(self.arguments) < SIZES.arguments else None

    @property
    def function(self) -> Callable[..., Any]:
        """The Pyro model."""
        return self.model.function

    @property
    def model_name(self) -> str | None:
        """The name in the registry, None for a user's own model."""
        return self.model.name if self.model.options is not None else None

    @property
    def observed(self) -> str:
        """The site that holds the data.

        Raises:
            ModelError: If the model has none, but a `pyro.factor`.
        """
        if not self.space.observed:
            raise ModelError("the model has no observed site to predict; give a site obs=.")
        return self.model.observed or self.space.observed[0]

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        """Names of the dims of sites and arguments: the declared ones, else their plates."""
        plates: dict[str, tuple[Plate, ...]] = {s.name: s.plates for s in self.space.sites}
        plates.update(self.space.discrete)
        plates.update(self.space.observed_plates)
        plates.update(self.space.deterministic_plates)
        named = {name: dim_names(name, placed_in) for name, placed_in in plates.items()}
        return {**named, **self.prepared.dims}

    def _is_real(self, name: str) -> bool:
        """Whether an argument of the fit is a tensor of real numbers."""
        value = self.prepared.arguments.get(name)
        return isinstance(value, Tensor) and value.is_floating_point()

    @property
    def _observing(self) -> set[str]:
        """The arguments of a user's own model that are what a site observes, whatever its name."""
        if set(self.space.observed) <= set(self.arguments):
            return set()
        nodes = trace_model(self.function, self.arguments).nodes
        seen: list[Any] = [nodes[name]["value"] for name in self.space.observed]
        return {
            name
            for name, value in self.arguments.items()
            if isinstance(value, Tensor)
            and any(value.shape == each.shape and torch.equal(value, each) for each in seen)
        }

    def new_arguments(
        self, data: Any, new_groups: str | None = None
    ) -> tuple[dict[str, Any], bool]:
        """The model's arguments for new rows, prepared as the fit's were.

        Args:
            data: The rows.
            new_groups: What is done with groups that the fit has not seen, "error" or "draw"; by
                default what the fit's options say.

        Returns:
            The arguments, and whether the rows hold what was observed: if not, something is in its
            place that has the shape only.

        Raises:
            DataError: If a column is missing or cannot be used.
            ModelError: If the shapes do not go together.
            OptionError: If `new_groups` is given for a model without groups.
        """
        options = self.options
        if new_groups is not None:
            if not hasattr(options, "new_groups"):
                raise OptionError(
                    f"--new-groups would have no effect: {self.model.name} has no group effects; "
                    "leave it out."
                )
            options = replace(options, new_groups=new_groups)
        if self.model_name is not None or not isinstance(data, Mapping):
            data = read_table(data, minimum_rows=1)
        training = Training(self.data, self.prepared.arguments)
        with isolated(0, dtype=self.dtype):
            new = self.model.prepare(data, options, training).arguments
            if self.model_name is not None:
                return placed(new, self.dtype, self.device), new[self.observed] is not None
            observing = {*self.space.observed, *self._observing}
            complete = without_observation(self.prepared.arguments, new, observing)
            complete = {
                name: value.to(self.dtype) if self._is_real(name) else value
                for name, value in complete.items()
            }
            observed = not any(
                name not in new for name in observing if name in self.prepared.arguments
            )
            arguments = placed(complete, self.dtype, self.device)
            # What stands in the place of an observation has its shape alone.
            (validate if observed else check_shapes)(self.function, arguments)
            return arguments, observed


def resolve_model(model: str | Callable[..., Any] | Model) -> Model:
    """A model by its name, as `FILE.py:FUNCTION`, or from a Pyro function itself.

    Raises:
        OptionError: If there is no such model, file or function, or it is none of these.
    """
    if isinstance(model, Model):
        return model
    if not isinstance(model, str):
        return own_model(model)
    if ":" in model or model.endswith(".py"):
        path = model if ":" in model else f"{model}:model"
        return own_model(load_function(path), path)
    return get_model(model)


def bind(
    model: Model,
    data: Any,
    options: Any,
    dtype: torch.dtype,
    device: torch.device,
    batch_size: int | None = None,
    particles: int = 1,
) -> Problem:
    """Binds a model to its data.

    Args:
        model: The declaration.
        data: As the user gave them.
        options: Of the model.
        dtype: Of all numbers.
        device: Of all tensors.
        batch_size: Rows of a minibatch, where they are asked for.
        particles: Draws in each estimate of the ELBO.

    Raises:
        DataError: If the data cannot be used; the column is named.
        OptionError: If the sizes that a named model is given do not fit into memory.
        ModelError: If the model cannot be fitted; the site is named.
    """
    if data is None:
        if model.dataset is None and required(model.function):
            raise DataError(
                f"the model takes {', '.join(required(model.function))}: give it data=... or "
                "--data FILE."
            )
        data = {} if model.dataset is None else model.dataset
    if not isinstance(data, Mapping):
        data = read_table(data)
    elif model.options is not None:
        data = pd.DataFrame(dict(data))
    rows = CompleteRows(data)
    if model.needs is not None:
        rows = complete_rows(data, model.needs(data, options), options.missing != "error")
        data = rows.table
    plates: tuple[OwnPlate, ...] = ()
    with kept_buffers(model.function):
        with isolated(0, dtype=dtype, device=device), rows.numbered():
            prepared = model.prepare(data, options, None)
            prepared = replace(prepared, doubts=(*rows.said, *prepared.doubts))
            arguments = placed(prepared.arguments, dtype, device)
            if options is not None:
                check_footprint(model.function, arguments, options, particles, batch_size)
        if model.options is None:
            model = _unmixed(model, prepared.arguments, arguments, dtype, device)
            own = users_function(model.function, "the model cannot be run", ModelError)
            model = replace(model, function=within_supports(own))
            with isolated(0, dtype=dtype, device=device):
                _check_missing(model.function, arguments)
        with isolated(0, dtype=dtype, device=device):
            doubts, real = _validated(model.function, arguments)
            arguments = {**arguments, **real}
            prepared = replace(prepared, arguments={**prepared.arguments, **_on_cpu(real)})
        unseen: tuple[str, ...] = ()
        if model.options is None:
            with isolated(0, dtype=dtype, device=device):
                function, plates = with_all_rows(model.function, arguments, batch_size is not None)
                model = replace(model, function=function)
                if plates:  # of all rows
                    doubts = validate(function, arguments)
            with isolated(0, dtype=dtype, device=device):
                function, unseen = without_unseen(model.function, arguments)
            model = replace(model, function=function)
        with isolated(0, dtype=dtype, device=device):
            space = LatentSpace.of(model.function, arguments)
            if space.unweighted:
                # Pyro's sums leave such a mask out: it is put where they see it.
                free = _LeftOut(space.unweighted)(model.function)
                model = replace(model, function=_named_as(model.function, free))
            if model.options is None:
                function, fixed = with_fixed_values(model.function, arguments)
                model, doubts = replace(model, function=function), (*doubts, *fixed)
            _check_whole(space)
            function, kept = with_kept_parameters(model.function, arguments)
        if kept:
            model = replace(model, function=function)
            prepared = replace(prepared, doubts=(*prepared.doubts, *kept))
            with isolated(0, dtype=dtype, device=device):
                space = LatentSpace.of(model.function, arguments)
    return Problem(
        model, options, data, prepared, arguments, space, dtype, device,
        doubts=(*doubts, *prepared.doubts), unseen=unseen, own_plates=plates,
    )  # fmt: skip


def _check_missing(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Sees that a model whose data have cells without a value does without these.

    Raises:
        DataError: If the log density or its gradient is not finite; the first cell is named.
    """
    for name, value in arguments.items():
        bad = ~value.isfinite() if isinstance(value, Tensor) else torch.zeros(())
        if bad.any() and not has_gradient(function, arguments):
            where = ", ".join(str(int(i) + 1) for i in bad.nonzero()[0])
            raise DataError(
                f"data['{name}'] has {int(bad.sum())} NaN or infinite cell(s), the first at "
                f"{where} (counted from 1), and the log density of the model or its gradient is "
                "not finite with them; drop these rows, or fill the cells and give the site "
                "obs_mask=."
            )


def _unmixed(
    model: Model,
    prepared: dict[str, Any],
    arguments: dict[str, Any],
    dtype: torch.dtype,
    device: torch.device,
) -> Model:
    """A user's own model that mixes types, in the fit's type or in that of log densities."""
    with isolated(0, dtype=dtype, device=device):
        function = unmixed(model.function, arguments)
    if function is model.function and dtype != torch.float64:
        cpu = torch.device("cpu")
        with isolated(0, dtype=torch.float64):
            function = unmixed(model.function, placed(prepared, torch.float64, cpu))
    return replace(model, function=function)


def _check_whole(space: LatentSpace) -> None:
    """Sees that latents of rows are of all rows of their plates, and not of a minibatch.

    Raises:
        ModelError: If not; the site is named.
    """
    for site in space.sites:
        within = site.transform.domain.event_dim
        for plate in site.plates:
            axis = len(site.unconstrained_shape) - within + plate.dim
            there = site.unconstrained_shape[axis]
            if there not in (1, plate.size):
                raise ModelError(
                    f"site '{site.name}' is a latent of the plate '{plate.name}', which has "
                    f"{plate.size:,} members, and the data have {there:,} of them; give the model "
                    "all rows, and for minibatches an argument batch_size."
                )


def _validated(
    function: Callable[..., Any], arguments: Mapping[str, Any]
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Warnings of a model's validation, and whole numbers that it needs as real ones.

    Some densities and functions of torch take real numbers alone, where a table has 0 and 1: what
    is observed is tried first, then all whole numbers.
    """
    try:
        return validate(function, arguments), {}
    except ModelError as error:
        advice = unmatched(function, arguments)
        if advice and "TypeError" in str(error):
            raise ModelError(f"{error}. {advice}") from error
        for some in (real_observations, _real_arguments):
            with suppress(ElbowroomError):
                real = some(function, arguments)
                if real:
                    return validate(function, {**arguments, **real}), real
        raise


def _real_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The arguments that are whole numbers or truth values, as real numbers."""
    return {
        name: value.to(torch.get_default_dtype())
        for name, value in arguments.items()
        if isinstance(value, Tensor) and not value.is_floating_point()
    }


def _on_cpu(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in values.items()}


def without_observation(
    arguments: Mapping[str, Any], given: Mapping[str, Any], observed: Collection[str]
) -> dict[str, Any]:
    """The arguments for new data of a user's own model that lacks the observed one.

    Args:
        arguments: Those of the fit.
        given: Those that the new data has.
        observed: The arguments that are observed.

    Returns:
        `given`, with zeros of the new length in place of a missing observation: it is drawn, not
        read. Plain values that are missing are taken from the fit.

    Raises:
        DataError: If an argument is missing that is not the observed one.
    """
    complete = dict(given)
    lengths = {
        (len(arguments[name]), len(value))
        for name, value in given.items()
        if isinstance(value, Tensor) and value.dim() and isinstance(arguments.get(name), Tensor)
    }
    for name, value in arguments.items():
        if name in given:
            continue
        if not isinstance(value, Tensor) or value.dim() == 0:
            complete[name] = value
        elif name in observed and len(lengths) == 1:
            ((old, new),) = lengths
            complete[name] = value.new_zeros(
                (new if len(value) == old else len(value), *value.shape[1:])
            )
        else:
            raise DataError(
                f"'{name}', an argument of the model, is missing in the new data; add a column or "
                "key of this name."
            )
    return complete

"""Multivariate Normal sites in coordinates that what is known of them leaves as they are.

A site f of covariance K(theta) is badly drawn as it is written where the data tell little of it:
it follows the scales and lengths theta on which K depends (a funnel). It is badly drawn by its
standardised values z, f = loc + L z with L L' = K, where the data tell much of it: then z follows
theta. What the rest of the model tells of f is nearly h'f - f'Wf / 2, whatever theta. With it, f
given theta is Normal, and is drawn by the values u that standardise that Normal:

    f = loc + L z,   z = C'^-1 (u + C^-1 L'(h - W loc)),   C C' = 1 + L'W L.

With W = 0 these are the standardised values; where W is large, f less a constant. What the rest
tells may move with real latents b sampled before f, such as the common effects beside which f are
those of groups: h is then h - V b. Where the rest is that of Normal data of known noise, whose mean
is linear in f and b, u is standard Normal a posteriori and independent of theta and b; else nearly
so. Whatever W, h and V, the posterior is the same.

A partly non-centred form (Papaspiliopoulos, Roberts and Sköld, 2007, "A general framework for the
parametrization of hierarchical models") for vectors, with the likelihood's Normal approximation at
the posterior itself in place of the prior's scale, as Murray and Adams (2010, "Slice sampling
covariance hyperparameters of latent Gaussian models") draw hyperparameters.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.reparam.reparam import Reparam
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from elbowroom.guides.space import covariance_root, own_family
from elbowroom.problem.partly_centred import PartlyCentred
from elbowroom.problem.predictor import Predictor

SMALL = 4
"""Numbers of a vector, at most, whose matrices are written out, which their gradients are too."""


@dataclass(frozen=True)
class Information:
    """What the rest of a model tells of a vector f: h'f - f'Wf / 2, plus a constant.

    Attributes:
        root: R with R'R = W, (..., k, k); diagonal ones are multiplied as such.
        slope: h, (..., k).
        moves: V by the latents b that h moves with, each (..., k, numbers of b).
    """

    root: Tensor
    slope: Tensor
    moves: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, like: Tensor) -> "Information":
        """The same in the dtype and on the device of a tensor."""
        moves = {name: own.to(like) for name, own in self.moves.items()}
        return Information(self.root.to(like), self.slope.to(like), moves)

    def of_normal(
        self, loc: Tensor, factor: Tensor, values: Mapping[str, Tensor] | None = None
    ) -> "Informed":
        """The values u of a Normal site, (..., k), of a Cholesky factor, (..., k, k).

        Args:
            loc: Of the site.
            factor: The Cholesky factor.
            values: Of the latents that the slope moves with, by name.
        """
        slope = self.slope.to(factor)
        for name, own in self.moves.items():
            assert values is not None
            slope = slope - _times(own.to(factor), values[name].reshape(-1))
        seen, told = replace(self, slope=slope).told(loc, factor)
        return Informed(loc, factor, seen, told)

    def of_standard(self, constant: Tensor, columns: Tensor) -> "Informed":
        """The values u of a standard Normal z, (k,), where f = c + A z, of (m,) and (m, k)."""
        seen, told = self.told(constant, columns)
        return Informed(torch.zeros_like(told), None, seen, told)

    def told(self, loc: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """R L and L'(h - W loc), of f = loc + L z."""
        own = self.to(factor)
        seen = own.seen(factor)
        expected = (own.root @ loc.unsqueeze(-1)).squeeze(-1)
        return seen, _times(factor.mT, own.slope) - _times(seen.mT, expected)

    def seen(self, factor: Tensor) -> Tensor:
        """R times a matrix (..., m, k)."""
        diagonal = self.root.diagonal(dim1=-2, dim2=-1)
        if torch.equal(torch.diag_embed(diagonal), self.root):
            return diagonal.unsqueeze(-1) * factor
        return self.root @ factor


class Informed(dist.TorchDistribution):
    """The values u of a standard Normal z: u = C'z - C^-1 b, with C C' = 1 + M'M.

    Args:
        loc: Of the site, (..., k).
        factor: Its lower Cholesky factor L, (..., k, k); None where the site is z itself.
        seen: M = R L, (..., m, k); None where nothing is known, and u is z.
        told: b = L'(h - W loc), (..., k), then.

    Example:
        >>> known = Information(torch.eye(2), torch.ones(2))
        >>> u = known.of_normal(torch.zeros(2), torch.eye(2))
        >>> u.value_of(torch.zeros(2))  # halfway between the prior's mean and the data's
        tensor([0.5000, 0.5000])
        >>> u.of_value(torch.tensor([0.5, 0.5])).abs() < 1e-6
        tensor([True, True])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        factor: Tensor | None = None,
        seen: Tensor | None = None,
        told: Tensor | None = None,
    ) -> None:
        self.loc, self.factor = loc, factor
        self.root: Tensor | None = None
        if seen is not None and told is not None:
            among = seen.mT @ seen
            self.root = _cholesky(among + torch.eye(loc.shape[-1]).to(among))
            self.centre = _solved(self.root, told)
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Informed":
        """The same for more vectors."""
        found = self._get_checked_instance(Informed, _instance)
        size = self.loc.shape[-1:]
        found.loc, found.factor = self.loc.expand(*batch_shape, *size), self.factor
        found.root = self.root
        if self.root is not None:
            found.centre = self.centre
        super(Informed, found).__init__(torch.Size(batch_shape), size, validate_args=False)
        return found

    def standard(self, u: Tensor) -> Tensor:
        """z, (..., k)."""
        return u if self.root is None else _solved(self.root, u + self.centre, transposed=True)

    def value_of(self, u: Tensor) -> Tensor:
        """The site's value, (..., k)."""
        z = self.standard(u)
        return z if self.factor is None else self.loc + _times(self.factor, z)

    def of_value(self, value: Tensor) -> Tensor:
        """The u of a value of the site, (..., k)."""
        z = value if self.factor is None else _solved(self.factor, value - self.loc)
        return z if self.root is None else _times(self.root.mT, z) - self.centre

    def log_prob(self, u: Tensor) -> Tensor:
        """The log density, (...)."""
        z = self.standard(u)
        found = -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))
        if self.root is None:
            return found
        return found - self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws of the prior, reparameterised."""
        z = torch.randn(self._extended_shape(sample_shape)).to(self.loc)
        return z if self.root is None else _times(self.root.mT, z) - self.centre


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _cholesky(matrix: Tensor) -> Tensor:
    """The lower Cholesky factor of a matrix, (..., k, k); small ones are written out."""
    size = matrix.shape[-1]
    if size > SMALL:
        return torch.linalg.cholesky(matrix)
    rows: list[list[Tensor]] = []
    for i in range(size):
        row: list[Tensor] = []
        for j in range(i):
            row.append(_less(matrix[..., i, j], row, rows[j]) / rows[j][j])
        row.append(_less(matrix[..., i, i], row, row).sqrt())
        rows.append(row)
    zero = torch.zeros_like(rows[0][0])
    whole = [torch.stack([*row, *[zero] * (size - len(row))], dim=-1) for row in rows]
    return torch.stack(whole, dim=-2)


def _solved(factor: Tensor, vector: Tensor, transposed: bool = False) -> Tensor:
    """The solution with a lower triangular matrix or its transpose."""
    size = factor.shape[-1]
    if size > SMALL:
        matrix = factor.mT if transposed else factor
        found = torch.linalg.solve_triangular(matrix, vector.unsqueeze(-1), upper=transposed)
        return found[..., 0]
    order = range(size)[::-1] if transposed else range(size)
    known: dict[int, Tensor] = {}
    for i in order:
        row = [factor[..., j, i] if transposed else factor[..., i, j] for j in known]
        known[i] = _less(vector[..., i], row, [*known.values()]) / factor[..., i, i]
    return torch.stack([known[i] for i in range(size)], dim=-1)


def _less(value: Tensor, one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """A number less the products of others."""
    for a, b in zip(one, other, strict=False):
        value = value - a * b
    return value


class _ByOtherValues(Reparam):
    """A site by the values u of another.

    Args:
        own: The distribution of u, given the site's.
    """

    def __init__(self, own: Callable[[Any], Informed | PartlyCentred]) -> None:
        self.own = own

    def apply(self, msg: Any) -> Any:
        """The site as a deterministic one; see Pyro's own `LocScaleReparam`."""
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        own, event_dim = self.own(fn), fn.event_dim
        u = pyro.sample(
            f"{name}_decentered",
            own.to_event(event_dim - own.event_dim),
            obs=None if value is None else own.of_value(value),
            infer={"is_observed": msg["is_observed"]},
        )
        if value is None:
            value = own.value_of(u)
        fn = dist.Delta(value, event_dim=event_dim).mask(False)
        return {"fn": fn, "value": value, "is_observed": True}


@dataclass(frozen=True)
class Predicted:
    """A standard Normal vector z by what is known of the last f = c + A z that is made of it.

    Attributes:
        predictor: That.
        information: What the rest of the model tells of f.
    """

    predictor: Predictor
    information: Information


class Shares:
    """Shares by which location-scale sites stay as they are, which may be changed.

    A recorded density takes them as inputs, so that one recording serves all of them; see
    `elbowroom.density.density.Density`.

    Args:
        shapes: Of the sites, by name.

    Attributes:
        values: The shares of all sites, one after the other, (P,), at first zero.

    Example:
        >>> shares = Shares({"a": torch.Size([2]), "b": torch.Size([])})
        >>> with shares.given(torch.tensor([0.1, 0.2, 0.3])):
        ...     shares.of("a"), shares.of("b")
        (tensor([0.1000, 0.2000]), tensor(0.3000))
        >>> shares.of("b")
        tensor(0.)
    """

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        self._shapes = dict(shapes)
        self.values = torch.zeros(sum(map(math.prod, shapes.values())), dtype=torch.float64)
        self._given: Tensor | None = None

    @contextmanager
    def given(self, values: Tensor) -> Iterator[None]:
        """A block in which the shares are others."""
        before, self._given = self._given, values
        try:
            yield
        finally:
            self._given = before

    def of(self, site: str) -> Tensor:
        """Those of a site, of its shape, in the default dtype."""
        flat = self.values if self._given is None else self._given
        parts = flat.to(torch.get_default_dtype()).split([*map(math.prod, self._shapes.values())])
        return dict(zip(self._shapes, parts, strict=True))[site].reshape(self._shapes[site])


Form = Tensor | Shares | Information | Predicted
"""How a site is written: the share by which each number stays as it is, or what is known of it."""


class _Sampled(Messenger):
    """Keeps the values of the sites so far.

    Attributes:
        values: By name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}

    def __enter__(self) -> Any:
        self.values.clear()
        return super().__enter__()

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["value"], Tensor):
            self.values[msg["name"]] = msg["value"]


def written(
    model: Callable[..., Any],
    sites: Mapping[str, Form | None],
    linear: Callable[[Predictor, Mapping[str, Tensor]], tuple[Tensor, Tensor]],
) -> Any:
    """A model with some sites written otherwise.

    Args:
        model: The Pyro model.
        sites: The forms, by name; None for standardised values.
        linear: c and A of a predictor, given the values of the sites before it.
    """
    sampled = _Sampled()

    def config(msg: Any) -> Reparam | None:
        if msg["name"] not in sites:
            return None
        form = sites[msg["name"]]
        if isinstance(form, Predicted):
            own = form.information.of_standard(*linear(form.predictor, sampled.values))
            return _ByOtherValues(lambda _: own)
        if covariance_root(msg["fn"]) is not None:
            assert form is None or isinstance(form, Information)
            return _ByOtherValues(lambda fn: _normal(fn, form, sampled.values))
        assert not isinstance(form, Information)
        share = form.of(msg["name"]) if isinstance(form, Shares) else form
        return _ByOtherValues(lambda fn: PartlyCentred(fn, share))

    return sampled(poutine.reparam(model, config=config))


def _normal(fn: Any, information: Information | None, values: Mapping[str, Tensor]) -> Informed:
    loc, factor = own_family(fn).loc, covariance_root(fn)
    assert factor is not None
    if information is None:
        return Informed(loc, factor)
    return information.of_normal(loc, factor, values)


def stored(forms: Mapping[str, Form]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of forms, each with a name for a file."""
    for site, form in forms.items():
        if isinstance(form, Tensor):
            yield f"{site}.share", form
            continue
        if isinstance(form, Shares):
            yield f"{site}.share", form.of(site)
            continue
        if isinstance(form, Predicted):
            yield f"{site}.index", torch.tensor([form.predictor.index, *form.predictor.shape])
            form = form.information
        yield f"{site}.root", form.root
        yield f"{site}.slope", form.slope
        for name, own in form.moves.items():
            yield f"{len(name)}:{name}{site}.moves", own


def restored(tensors: Mapping[str, Tensor]) -> dict[str, Form]:
    """The forms whose tensors were stored.

    Example:
        >>> restored({"level.share": torch.tensor(0.5)})
        {'level': tensor(0.5000)}
    """
    found: dict[str, Form] = {}
    moves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.endswith(".moves"):
            length, _, names = name.removesuffix(".moves").partition(":")
            moves.setdefault(names[int(length) :], {})[names[: int(length)]] = tensor
    for name, tensor in tensors.items():
        site, _, part = name.rpartition(".")
        if part == "share":
            found[site] = tensor
        elif part == "root":
            information = Information(tensor, tensors[f"{site}.slope"], moves.get(site, {}))
            known = tensors.get(f"{site}.index")
            if known is None:
                found[site] = information
            else:
                index, *shape = known.tolist()
                predictor = Predictor(site, index, torch.Size(shape))
                found[site] = Predicted(predictor, information)
    return found

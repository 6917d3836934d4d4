"""What the operations of a recording are made of: functions of each element, and sums."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbowroom.recording.kernel.lowering import (
    LANE,
    LOWERABLE,
    Lowering,
    NotLowerableError,
    Program,
    Value,
    carried,
)
from elbowroom.recording.operations import Operation


def _dims(dims: Any, rank: int) -> list[int]:
    given = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return sorted(each % rank for each in given)


def _sum(low: Lowering, x: Any, dims: Any = None, keep: bool = False, **_: Any) -> Tensor:
    return _over("sum", low, low.codes(x), dims, keep)


def _over(function: str, low: Lowering, codes: Tensor, dims: Any, keep: bool) -> Tensor:
    if codes.dim() == 0:
        return codes
    along = _dims(dims, codes.dim())
    if function == "sum" and not carried(codes.reshape(-1).numpy()).any():
        return low.constant(low.numbers(codes).sum(along, keep))
    kept = [1 if d in along else size for d, size in enumerate(codes.shape)]
    outputs = torch.arange(int(np.prod(kept))).reshape(kept).expand(codes.shape)
    found = low.reduce(function, codes, outputs, kept)
    return (
        found if keep else found.reshape([s for d, s in enumerate(codes.shape) if d not in along])
    )


def _extreme(function: str) -> Callable[..., Tensor]:
    def of(low: Lowering, x: Any, dims: Any = None, keep: bool = False) -> Tensor:
        return _over(function, low, low.codes(x), dims, keep)

    return of


def _add(low: Lowering, a: Any, b: Any, alpha: Any = 1, **_: Any) -> Tensor:
    return _plus(low, low.codes(a), low.codes(b), float(alpha))


def _subtract(low: Lowering, a: Any, b: Any, alpha: Any = 1, **_: Any) -> Tensor:
    return _plus(low, low.codes(a), low.codes(b), -float(alpha))


def _subtract_from(low: Lowering, a: Any, b: Any, alpha: Any = 1, **_: Any) -> Tensor:
    return _plus(low, low.codes(b), low.codes(a), -float(alpha))


def _plus(low: Lowering, a: Tensor, b: Tensor, factor: float) -> Tensor:
    """The sum of a and a multiple of b."""
    if abs(factor) == 1:
        return low.map("add" if factor > 0 else "subtract", a, b)
    return low.map("multiply_add", b, low.codes(factor), a)


def _power(low: Lowering, x: Any, exponent: Any) -> Tensor:
    codes = low.codes(x)
    if isinstance(exponent, Value) and not exponent.moving:
        distinct = torch.unique(exponent.at)
        if len(distinct) == 1 and exponent.at.numel():
            shape = torch.broadcast_shapes(codes.shape, exponent.at.shape)
            codes, exponent = codes.expand(shape), float(distinct[0])
    if not isinstance(exponent, (int, float)):
        return low.map("power", codes, low.codes(exponent))
    if exponent == 1:
        return codes
    named = {2: "square", 0.5: "sqrt", -1: "reciprocal", -0.5: "rsqrt"}.get(exponent)
    if named is not None:
        return low.map(named, codes)
    if exponent in (3, 4):
        square = low.map("square", codes)
        return low.map("multiply", square, codes if exponent == 3 else square)
    return low.map("power", codes, low.codes(exponent))


def _where(low: Lowering, condition: Any, a: Any, b: Any) -> Tensor:
    if not condition.moving:
        return torch.where(condition.at, low.codes(a), low.codes(b))
    return low.map("where", low.codes(condition), low.codes(a), low.codes(b))


def _copied(low: Lowering, x: Any, source: Any, *_: Any) -> Tensor:
    return low.codes(source).expand(x.at.shape)


def _filled(low: Lowering, x: Any, value: Any) -> Tensor:
    return low.codes(value).expand(x.at.shape)


def _masked_fill(low: Lowering, x: Any, mask: Any, value: Any) -> Tensor:
    return _where(low, mask, value, x)


def _clamp(low: Lowering, x: Any, least: Any = None, most: Any = None, **given: Any) -> Tensor:
    codes = low.codes(x)
    least, most = given.get("min", least), given.get("max", most)
    if least is not None:
        codes = low.map("maximum", codes, low.codes(least))
    return codes if most is None else low.map("minimum", codes, low.codes(most))


def _softplus(low: Lowering, x: Any, beta: float = 1, threshold: float = 20) -> Tensor:
    return low.map("softplus", low.codes(x), given=(float(beta), float(threshold)))


def _softplus_backward(
    low: Lowering, gradient: Any, x: Any, beta: float, threshold: float
) -> Tensor:
    slope = low.map("softplus_slope", low.codes(x), given=(float(beta), float(threshold)))
    return low.map("multiply", low.codes(gradient), slope)


def _tanh_backward(low: Lowering, gradient: Any, found: Any) -> Tensor:
    return low.map("tanh_backward", low.codes(gradient), low.codes(found))


def _sigmoid_backward(low: Lowering, gradient: Any, found: Any) -> Tensor:
    return low.map("sigmoid_backward", low.codes(gradient), low.codes(found))


def _log_sigmoid(low: Lowering, x: Any) -> tuple[Tensor, Tensor]:
    return low.map("log_sigmoid", low.codes(x)), low.map("log_sigmoid_buffer", low.codes(x))


def _log_sigmoid_backward(low: Lowering, gradient: Any, x: Any, _: Any) -> Tensor:
    slope = low.map("sigmoid", low.map("negative", low.codes(x)))
    return low.map("multiply", low.codes(gradient), slope)


def _threshold_backward(low: Lowering, gradient: Any, x: Any, threshold: float) -> Tensor:
    above = low.map(">", low.codes(x), low.codes(threshold))
    return low.map("where", above, low.codes(gradient), low.codes(0.0))


def _addcmul(low: Lowering, x: Any, a: Any, b: Any, value: Any = 1) -> Tensor:
    product = low.map("multiply", low.codes(a), low.codes(b))
    return low.map("multiply_add", product, low.codes(value), low.codes(x))


def _addcdiv(low: Lowering, x: Any, a: Any, b: Any, value: Any = 1) -> Tensor:
    share = low.map("divide", low.codes(a), low.codes(b))
    return low.map("multiply_add", share, low.codes(value), low.codes(x))


def _contracted(low: Lowering, a: Tensor, b: Tensor, dims: int = 1) -> Tensor:
    """The sum over the last dims of a product, broadcast.

    They are the outer ones of the loop: sums in memory then follow each other, and no term waits
    for the one before it.
    """
    shape = torch.broadcast_shapes(a.shape, b.shape)
    if int(np.prod(shape)) > LOWERABLE.rows * LOWERABLE.elements:
        raise NotLowerableError("a large matrix product")
    inner = range(len(shape) - dims, len(shape))
    order = [*inner, *range(len(shape) - dims)]
    product = low.map("multiply", *(each.expand(shape).permute(order) for each in (a, b)))
    return _over("sum", low, product, list(range(dims)), False)


def _matrices(low: Lowering, a: Any, b: Any) -> Tensor:
    one, two = low.codes(a), low.codes(b)
    (n, k), m = one.shape[-2:], two.shape[-1]
    apart = one.dim() == two.dim() == 3 and len(one) == len(two) == LOWERABLE.rows
    if min(n, k, m) > LOWERABLE.small and apart:
        batch = _batch(one, two)
        taken = [_apart(each, batch) for each in (one, two)]
        return low.matrices("product", taken, (n, k, m), (*batch, n, m))
    return _contracted(low, one.unsqueeze(-2), two.transpose(-1, -2).unsqueeze(-3))


def _matrix_vector(low: Lowering, a: Any, b: Any) -> Tensor:
    return _contracted(low, low.codes(a), low.codes(b))


def _add_matrices(low: Lowering, x: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> Tensor:
    product = _matrices(low, a, b)
    if alpha != 1:
        product = low.map("multiply", product, low.codes(alpha))
    if beta == 1:
        return low.map("add", product, low.codes(x))
    return low.map("multiply_add", low.codes(x), low.codes(beta), product)


def _einsum(low: Lowering, equation: str, operands: Any, **_: Any) -> Tensor:
    taken, given = equation.replace(" ", "").split("->")
    labels = taken.split(",")
    if len(labels) != 2 or "." in equation or any(len(set(e)) < len(e) for e in labels):
        raise NotLowerableError(f"einsum {equation}")
    inner = [each for each in dict.fromkeys("".join(labels)) if each not in given]
    order = [*given, *inner]
    spread = []
    for names, operand in zip(labels, operands, strict=True):
        codes = low.codes(operand)
        codes = codes.permute([names.index(each) for each in order if each in names])
        sizes = iter(codes.shape)
        spread.append(codes.reshape([next(sizes) if each in names else 1 for each in order]))
    if not inner:
        return low.map("multiply", *spread)
    return _contracted(low, spread[0], spread[1], len(inner))


def _index_put(
    low: Lowering, x: Any, indices: Any, values: Any, accumulate: bool = False, *_: Any
) -> Tensor:
    if any(each is not None and each.moving for each in indices):
        raise NotLowerableError("an index that follows the point")
    at = [None if each is None else each.at for each in indices]
    onto, added = low.codes(x), low.codes(values)
    if not accumulate:
        return torch.ops.aten.index_put(onto, at, added)
    shape = tuple(onto.shape)
    numbers = torch.arange(onto.numel()).reshape(shape)
    places = torch.ops.aten.index(numbers, at)
    added = added.expand(places.shape)
    codes = torch.cat([onto.reshape(-1), added.reshape(-1)])
    return low.reduce("sum", codes, torch.cat([numbers.reshape(-1), places.reshape(-1)]), shape)


def _scatter_add(low: Lowering, x: Any, dim: int, index: Any, source: Any) -> Tensor:
    if index.moving:
        raise NotLowerableError("an index that follows the point")
    onto, added = low.codes(x), low.codes(source)
    numbers = torch.arange(onto.numel()).reshape(onto.shape)
    grid = list(torch.meshgrid(*(torch.arange(s) for s in index.at.shape), indexing="ij"))
    grid[dim] = index.at
    places = numbers[tuple(grid)]
    added = added[tuple(slice(0, s) for s in index.at.shape)]
    codes = torch.cat([onto.reshape(-1), added.reshape(-1)])
    return low.reduce(
        "sum", codes, torch.cat([numbers.reshape(-1), places.reshape(-1)]), tuple(onto.shape)
    )


def _index_add(low: Lowering, x: Any, dim: int, index: Any, source: Any, alpha: Any = 1) -> Tensor:
    if alpha != 1:
        raise NotLowerableError("index_add with alpha")
    added = low.codes(source)
    view = [1] * added.dim()
    view[dim] = -1
    wide = Value(index.at.reshape(view).expand(added.shape), None, index.moving)
    return _scatter_add(low, x, dim % added.dim(), wide, source)


def _padded(low: Lowering, x: Any, widths: Any, value: float = 0.0) -> Tensor:
    code = int(low.codes(float(value)))
    return torch.ops.aten.constant_pad_nd(low.codes(x), widths, code)


def _running_sum(low: Lowering, x: Any, dim: int, **_: Any) -> Tensor:
    codes = low.codes(x).movedim(dim, -1)
    if codes.shape[-1] <= LOWERABLE.terms:
        return _running(low, "add", codes).movedim(-1, dim)
    return low.running(codes).movedim(-1, dim)


def _running_product(low: Lowering, x: Any, dim: int, **_: Any) -> Tensor:
    codes = low.codes(x).movedim(dim, -1)
    if codes.shape[-1] > LOWERABLE.terms:
        raise NotLowerableError("a long cumulative product")
    return _running(low, "multiply", codes).movedim(-1, dim)


def _running(low: Lowering, function: str, codes: Tensor) -> Tensor:
    """Along the last dim."""
    parts = list(codes.unbind(-1))
    for k in range(1, len(parts)):
        parts[k] = low.map(function, parts[k - 1], parts[k])
    return torch.stack(parts, -1)


def _product(low: Lowering, x: Any, dim: int, keep: bool = False, **_: Any) -> Tensor:
    parts = list(low.codes(x).unbind(dim))
    if not 0 < len(parts) <= LOWERABLE.terms:
        raise NotLowerableError("a long product")
    found = parts[0]
    for each in parts[1:]:
        found = low.map("multiply", found, each)
    return found.unsqueeze(dim) if keep else found


def _log_sum_exp(low: Lowering, x: Any, dims: Any, keep: bool = False) -> Tensor:
    codes = low.codes(x)
    largest = _over("max", low, codes, dims, True)
    finite = low.map("<", low.map("abs", largest), low.codes(float("inf")))
    shift = low.map("where", finite, largest, low.codes(0.0))
    total = _over("sum", low, low.map("exp", low.map("subtract", codes, shift)), dims, True)
    found = low.map("add", low.map("log", total), shift)
    along = _dims(dims, codes.dim())
    return (
        found if keep else found.reshape([s for d, s in enumerate(codes.shape) if d not in along])
    )


def _softmax(low: Lowering, x: Any, dim: int, _: Any = False) -> Tensor:
    codes = low.codes(x)
    largest = _over("max", low, codes, dim, True)
    grown = low.map("exp", low.map("subtract", codes, largest))
    return low.map("divide", grown, _over("sum", low, grown, dim, True))


def _log_softmax(low: Lowering, x: Any, dim: int, _: Any = False) -> Tensor:
    codes = low.codes(x)
    largest = _over("max", low, codes, dim, True)
    less = low.map("subtract", codes, largest)
    total = _over("sum", low, low.map("exp", less), dim, True)
    return low.map("subtract", less, low.map("log", total))


def _softmax_backward(low: Lowering, gradient: Any, found: Any, dim: int, _: Any) -> Tensor:
    product = low.map("multiply", low.codes(gradient), low.codes(found))
    total = _over("sum", low, product, dim, True)
    return low.map("subtract", product, low.map("multiply", low.codes(found), total))


def _log_softmax_backward(low: Lowering, gradient: Any, found: Any, dim: int, _: Any) -> Tensor:
    taken = low.codes(gradient)
    total = _over("sum", low, taken, dim, True)
    share = low.map("multiply", low.map("exp", low.codes(found)), total)
    return low.map("subtract", taken, share)


def _solve_triangular(
    low: Lowering, a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    one, two = low.codes(a), low.codes(b)
    if not left:  # X A = B, which is A' X' = B'
        one, two, upper = one.mT, two.mT, not upper
    size = one.shape[-1]
    if size > LOWERABLE.small and not unitriangular:
        solved = _solved_at_once(low, one, two, upper)
        return solved if left else solved.mT
    found: list[Tensor] = [two[..., 0, :]] * size
    for i in reversed(range(size)) if upper else range(size):
        value = two[..., i, :]
        for j in range(i + 1, size) if upper else range(i):
            term = low.map("multiply", one[..., i, j, None], found[j])
            value = low.map("subtract", value, term)
        found[i] = value if unitriangular else low.map("divide", value, one[..., i, i, None])
    solved = torch.stack(found, -2)
    return solved if left else solved.mT


def _apart(codes: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Addresses of matrices as (points, matrices, elements), where points are the first dim."""
    whole = codes.expand(*batch, *codes.shape[-2:])
    return whole.reshape(batch[0] if batch else 1, -1, codes.shape[-2] * codes.shape[-1])


def _batch(*operands: Tensor) -> tuple[int, ...]:
    """The dims of many matrices, of which the first is that of the points."""
    found = torch.broadcast_shapes(*(each.shape[:-2] for each in operands))
    if not found or found[0] != LOWERABLE.rows or operands[0].shape[-1] > LOWERABLE.matrix:
        raise NotLowerableError("matrices of no point, or large ones")
    return tuple(found)


def _solved_at_once(low: Lowering, a: Tensor, b: Tensor, upper: bool) -> Tensor:
    batch = _batch(a, b)
    taken = [_apart(each, batch) for each in (a, b)]
    sizes = (*b.shape[-2:], int(upper))
    return low.matrices("solve", taken, sizes, (*batch, *b.shape[-2:]))


def _cholesky(low: Lowering, a: Any, upper: bool = False, **_: Any) -> tuple[Tensor, None]:
    codes = low.codes(a)
    size = codes.shape[-1]
    if size > LOWERABLE.small:
        batch = _batch(codes)
        found = low.matrices("cholesky", [_apart(codes, batch)], (size,), codes.shape)
        return (found if upper else found.mT), None
    zero = torch.zeros(codes.shape[:-2], dtype=torch.int64)
    rows = [[zero] * size for _ in range(size)]
    for j in range(size):
        for i in range(j, size):
            value = codes[..., i, j]
            for k in range(j):
                value = low.map("subtract", value, low.map("multiply", rows[i][k], rows[j][k]))
            rows[i][j] = low.map("sqrt", value) if i == j else low.map("divide", value, rows[j][j])
    found = torch.stack([torch.stack(row, -1) for row in rows], -2)
    return (found.transpose(-1, -2) if upper else found), None


HANDLERS: dict[str, Callable[..., Any]] = {
    "add": _add, "sub": _subtract, "rsub": _subtract_from,
    "sum": _sum, "amax": _extreme("max"), "amin": _extreme("min"),
    "pow.Tensor_Scalar": _power, "pow.Tensor_Tensor": _power,
    "where": _where, "masked_fill": _masked_fill, "copy": _copied, "fill": _filled, "clamp": _clamp,
    "softplus": _softplus, "softplus_backward": _softplus_backward,
    "tanh_backward": _tanh_backward, "sigmoid_backward": _sigmoid_backward,
    "log_sigmoid_forward": _log_sigmoid, "log_sigmoid_backward": _log_sigmoid_backward,
    "threshold_backward": _threshold_backward, "addcmul": _addcmul, "addcdiv": _addcdiv,
    "mm": _matrices, "bmm": _matrices, "mv": _matrix_vector, "dot": _matrix_vector,
    "addmm": _add_matrices, "baddbmm": _add_matrices, "einsum": _einsum,
    "index_put": _index_put, "_unsafe_index_put": _index_put,
    "scatter_add": _scatter_add, "index_add": _index_add, "constant_pad_nd": _padded,
    "cumsum": _running_sum, "cumprod": _running_product, "prod.dim_int": _product,
    "logsumexp": _log_sum_exp, "_softmax": _softmax, "_log_softmax": _log_softmax,
    "_softmax_backward_data": _softmax_backward,
    "_log_softmax_backward_data": _log_softmax_backward,
    "linalg_solve_triangular": _solve_triangular, "linalg_cholesky_ex": _cholesky,
}  # fmt: skip
"""By the names of operations, with or without their overloads."""


def lowered(
    operations: Sequence[Operation],
    constants: Mapping[int, Tensor],
    entry: int,
    results: Sequence[int],
    points: Tensor,
) -> Program:
    """The steps of a recording for batches.

    Args:
        operations: Those that the results follow from.
        constants: By their slots.
        entry: The slot of the points.
        results: The slots of the results, each (n, ...).
        points: Two, (2, D).

    Raises:
        NotLowerableError: If it holds an operation that there is no step for, or one that mixes
            the points.
    """
    low = Lowering(points.shape[1], HANDLERS, frozenset(constants))
    for slot, value in constants.items():
        low.values[slot] = Value(value)
    own = torch.arange(1, points.shape[1] + 1)
    low.values[entry] = Value(points.clone(), torch.stack([own, own + LANE]), True)
    last = {slot: line for line, each in enumerate(operations) for slot in each.taken}
    for line, operation in enumerate(operations):
        low.add(operation)
        for slot in operation.taken:
            if last[slot] == line and slot not in results:
                del low.values[slot]
    found, shapes = [], []
    for slot in results:
        if low.values[slot].at.dtype != torch.float64:
            raise NotLowerableError("results in other than float64")
        whole = low.codes(low.values[slot])
        shapes.append(tuple(whole.shape[1:]))
        codes = whole.reshape(LOWERABLE.rows, -1).numpy()
        if not np.array_equal(np.where(carried(codes[0]), codes[0] + LANE, codes[0]), codes[1]):
            raise NotLowerableError("a result that is not shared out among the points")
        found.append(codes[0])
    return Program(low.steps, low.table(), low.dimension, low.next, found, shapes)

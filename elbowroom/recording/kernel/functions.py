"""What a step does with vectors, by its name."""

from collections.abc import Callable, Sequence

from llvmlite import ir

from elbowroom.recording.kernel.vectors import FLAGS, Vectors

Emitter = Callable[..., ir.Value]
FUSED = ("contract",)
"""A product and a sum may be rounded once."""


def flags(v: Vectors, x: ir.Value) -> ir.Value:
    """A truth value for each lane."""
    return x if x.type == FLAGS else v.compare("!=", x, v.number(0.0))


def numbers(v: Vectors, x: ir.Value) -> ir.Value:
    """A number for each lane: 1 or 0 of a truth value."""
    return v.select(x, v.number(1.0), v.number(0.0)) if x.type == FLAGS else x


def applied(
    v: Vectors, function: str, values: Sequence[ir.Value], given: tuple[float, ...]
) -> ir.Value:
    """The code of a step's function."""
    if function in LOGICAL:
        return LOGICAL[function](v, *(flags(v, each) for each in values))
    if function == "where":
        condition, a, b = values
        return v.select(flags(v, condition), numbers(v, a), numbers(v, b))
    return FUNCTIONS[function](v, *(numbers(v, each) for each in values), *given)


def _elementary(name: str) -> Emitter:
    return lambda v, x: v.call(name, x)


def _compared(how: str) -> Emitter:
    return lambda v, a, b: v.compare(how, a, b)


def _softplus(v: Vectors, x: ir.Value, beta: float, threshold: float) -> ir.Value:
    scaled = v.builder.fmul(x, v.number(beta)) if beta != 1 else x
    found = v.call("log1p", v.call("exp", scaled))
    found = v.builder.fdiv(found, v.number(beta)) if beta != 1 else found
    return v.select(v.compare(">", scaled, v.number(threshold)), x, found)


def _softplus_slope(v: Vectors, x: ir.Value, beta: float, threshold: float) -> ir.Value:
    scaled = v.builder.fmul(x, v.number(beta)) if beta != 1 else x
    grown = v.call("exp", scaled)
    found = v.builder.fdiv(grown, v.builder.fadd(grown, v.number(1.0)))
    return v.select(v.compare(">", scaled, v.number(threshold)), v.number(1.0), found)


def _log_sigmoid_buffer(v: Vectors, x: ir.Value) -> ir.Value:
    return v.call("exp", v.builder.fneg(v.intrinsic("llvm.fabs", x)))


def _log_sigmoid(v: Vectors, x: ir.Value) -> ir.Value:
    below = v.intrinsic("llvm.minimum", x, v.number(0.0))
    return v.builder.fsub(below, v.call("log1p", _log_sigmoid_buffer(v, x)))


def _sign(v: Vectors, x: ir.Value) -> ir.Value:
    up = v.select(v.compare(">", x, v.number(0.0)), v.number(1.0), v.number(0.0))
    found = v.select(v.compare("<", x, v.number(0.0)), v.number(-1.0), up)
    return v.select(v.builder.fcmp_unordered("uno", x, x), x, found)


def _power(v: Vectors, x: ir.Value, exponent: ir.Value) -> ir.Value:
    # Before the branch, where the compiler finds it again for other powers and slopes of x.
    log = v.call("log", x)

    def fast() -> ir.Value:
        return v.call("exp", v.builder.fmul(exponent, log))

    return v.guarded(v.compare(">", x, v.number(0.0)), fast, lambda: v.lanes("pow", x, exponent))


def _log_add_exp(v: Vectors, a: ir.Value, b: ir.Value) -> ir.Value:
    largest = v.intrinsic("llvm.maximum", a, b)
    apart = v.builder.fneg(v.intrinsic("llvm.fabs", v.builder.fsub(a, b)))
    found = v.builder.fadd(largest, v.call("log1p", v.call("exp", apart)))
    return v.select(v.compare("==", a, b), v.builder.fadd(a, v.number(0.6931471805599453)), found)


def _x_log_y(v: Vectors, x: ir.Value, y: ir.Value) -> ir.Value:
    found = v.builder.fmul(x, v.call("log", y))
    none = v.builder.and_(v.compare("==", x, v.number(0.0)), v.compare("==", y, y))
    return v.select(none, v.number(0.0), found)


def _tanh_backward(v: Vectors, gradient: ir.Value, y: ir.Value) -> ir.Value:
    return v.builder.fmul(gradient, v.builder.fsub(v.number(1.0), v.builder.fmul(y, y)))


def _sigmoid_backward(v: Vectors, gradient: ir.Value, y: ir.Value) -> ir.Value:
    return v.builder.fmul(v.builder.fmul(gradient, v.builder.fsub(v.number(1.0), y)), y)


def _inverse(v: Vectors, x: ir.Value) -> ir.Value:
    return v.builder.fdiv(v.number(1.0), x)


LOGICAL: dict[str, Emitter] = {
    "and": lambda v, a, b: v.builder.and_(a, b),
    "or": lambda v, a, b: v.builder.or_(a, b),
    "not": lambda v, a: v.builder.not_(a),
}
FUNCTIONS: dict[str, Emitter] = {
    **{name: _elementary(name) for name in (
        "exp", "log", "log1p", "expm1", "tanh", "sigmoid", "lgamma", "digamma",
    )},
    **{name: _compared(name) for name in ("<", "<=", ">", ">=", "==", "!=")},
    "isnan": lambda v, x: v.builder.fcmp_unordered("uno", x, x),
    "add": lambda v, a, b: v.builder.fadd(a, b, flags=FUSED),
    "subtract": lambda v, a, b: v.builder.fsub(a, b, flags=FUSED),
    "multiply": lambda v, a, b: v.builder.fmul(a, b, flags=FUSED),
    "divide": lambda v, a, b: v.builder.fdiv(a, b),
    "multiply_add": lambda v, a, b, c: v.fused(a, b, c),
    "negative": lambda v, x: v.builder.fneg(x),
    "abs": lambda v, x: v.intrinsic("llvm.fabs", x),
    "sqrt": lambda v, x: v.intrinsic("llvm.sqrt", x),
    "square": lambda v, x: v.builder.fmul(x, x),
    "reciprocal": _inverse,
    "rsqrt": lambda v, x: _inverse(v, v.intrinsic("llvm.sqrt", x)),
    "maximum": lambda v, a, b: v.intrinsic("llvm.maximum", a, b),
    "minimum": lambda v, a, b: v.intrinsic("llvm.minimum", a, b),
    "power": _power,
    "sign": _sign,
    "erf": lambda v, x: v.lanes("erf", x),
    "sin": lambda v, x: v.lanes("sin", x),
    "cos": lambda v, x: v.lanes("cos", x),
    "atan": lambda v, x: v.lanes("atan", x),
    "softplus": _softplus,
    "softplus_slope": _softplus_slope,
    "log_sigmoid": _log_sigmoid,
    "log_sigmoid_buffer": _log_sigmoid_buffer,
    "logaddexp": _log_add_exp,
    "xlogy": _x_log_y,
    "tanh_backward": _tanh_backward,
    "sigmoid_backward": _sigmoid_backward,
}  # fmt: skip

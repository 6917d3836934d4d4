"""Elementary functions of vectors of float64, as code for LLVM.

Each is written from its series and the layout of a float64, so that a loop that calls it needs no
library. They agree with NumPy's to 4 units in the last place; `lgamma` and `digamma`, near their
zeros, to those of their terms. Infinities, NaN and zeros of both signs are as in C.
"""

import math
import struct
from collections.abc import Callable, Sequence

from llvmlite import ir

WIDTH = 8
"""Points side by side: a vector of AVX-512, or two or four of other processors."""
DOUBLE = ir.DoubleType()
LONG = ir.IntType(64)
VECTOR = ir.VectorType(DOUBLE, WIDTH)
LONGS = ir.VectorType(LONG, WIDTH)
FLAGS = ir.VectorType(ir.IntType(1), WIDTH)

_ROUND = 1.5 * 2.0**52
"""What is added to a number has no digits behind the point."""
_LN2_HIGH = float.fromhex("0x1.62e42fefa3800p-1")
"""log 2 to 42 bits, so that its products with exponents are exact."""
_LN2_LOW = float.fromhex("0x1.ef35793c76730p-45")
_HALF_ROOT = int.from_bytes(struct.pack(">d", math.sqrt(0.5)))
"""The bits of sqrt(1/2)."""


class Vectors:
    """Code that works on vectors, one instruction a call.

    Args:
        module: Where the elementary functions are put when they are first used.
        builder: Of the function that is being written.
    """

    def __init__(self, module: ir.Module, builder: ir.IRBuilder) -> None:
        self.module, self.builder = module, builder

    def number(self, value: float) -> ir.Constant:
        """The same number in each lane."""
        return ir.Constant(VECTOR, [value] * WIDTH)

    def _long(self, value: int) -> ir.Constant:
        return ir.Constant(LONGS, [value] * WIDTH)

    def spread(self, value: ir.Value) -> ir.Value:
        """One number in each lane."""
        lane = ir.Constant(ir.IntType(32), 0)
        one = self.builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, lane)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
        return self.builder.shuffle_vector(one, ir.Constant(VECTOR, ir.Undefined), zeros)

    def intrinsic(self, name: str, *values: ir.Value) -> ir.Value:
        """One of LLVM's own functions, such as "llvm.sqrt"."""
        label = f"{name}.v{WIDTH}f64"
        kind = ir.FunctionType(VECTOR, [VECTOR] * len(values))
        function = self.module.globals.get(label) or ir.Function(self.module, kind, label)
        return self.builder.call(function, values)

    def fused(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """The product of a and b, and c: rounded once where the processor can."""
        return self.intrinsic("llvm.fmuladd", a, b, c)

    def polynomial(self, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
        """By Horner's rule, the constant first."""
        found: ir.Value = self.number(coefficients[-1])
        for each in reversed(coefficients[:-1]):
            found = self.fused(found, x, self.number(each))
        return found

    def compare(self, how: str, a: ir.Value, b: ir.Value) -> ir.Value:
        """Flags; false where one is NaN, but for "!="."""
        ordered = self.builder.fcmp_unordered if how == "!=" else self.builder.fcmp_ordered
        return ordered(how, a, b)

    def select(self, flags: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """The lanes of a where the flag is set, else those of b."""
        return self.builder.select(flags, a, b)

    def call(self, name: str, x: ir.Value) -> ir.Value:
        """One of `ELEMENTARY`."""
        label = f"elementary.{name}"
        function = self.module.globals.get(label)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(VECTOR, [VECTOR]), label)
            function.linkage = "internal"
            function.attributes.add("alwaysinline")
            inner = Vectors(self.module, ir.IRBuilder(function.append_basic_block()))
            inner.builder.ret(ELEMENTARY[name](inner, function.args[0]))
        return self.builder.call(function, [x])

    def lanes(self, name: str, *values: ir.Value) -> ir.Value:
        """A function of the C library, lane by lane."""
        kind = ir.FunctionType(DOUBLE, [DOUBLE] * len(values))
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        found: ir.Value = ir.Constant(VECTOR, ir.Undefined)
        for k in range(WIDTH):
            lane = ir.Constant(ir.IntType(32), k)
            taken = [self.builder.extract_element(each, lane) for each in values]
            found = self.builder.insert_element(found, self.builder.call(function, taken), lane)
        return found

    def guarded(
        self, fine: ir.Value, fast: Callable[[], ir.Value], slow: Callable[[], ir.Value]
    ) -> ir.Value:
        """What is fast, unless a lane's flag is not set: then, for all lanes, what is slow."""
        bits = self.builder.bitcast(fine, ir.IntType(WIDTH))
        every = self.builder.icmp_unsigned("==", bits, ir.Constant(bits.type, 2**WIDTH - 1))
        with self.builder.if_else(every, likely=True) as (then, otherwise):
            with then:
                quick, end = fast(), self.builder.block
            with otherwise:
                other, last = slow(), self.builder.block
        found = self.builder.phi(VECTOR)
        found.add_incoming(quick, end)
        found.add_incoming(other, last)
        return found


def _bits(v: Vectors, x: ir.Value) -> ir.Value:
    return v.builder.bitcast(x, LONGS)


def _power_of_two(v: Vectors, exponent: ir.Value) -> ir.Value:
    """2^exponent, of whole numbers within those of normal numbers."""
    shifted = v.builder.shl(v.builder.add(exponent, v._long(1023)), v._long(52))
    return v.builder.bitcast(shifted, VECTOR)


def _reduced(v: Vectors, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Of x = k log 2 + r with |r| at most half of log 2: k as whole numbers, and exp(r) - 1."""
    shifted = v.fused(x, v.number(1 / math.log(2)), v.number(_ROUND))
    whole = v.builder.sub(_bits(v, shifted), _bits(v, v.number(_ROUND)))
    k = v.builder.fsub(shifted, v.number(_ROUND))
    r = v.fused(k, v.number(-_LN2_HIGH), x)
    r = v.fused(k, v.number(-_LN2_LOW), r)
    series = v.polynomial(r, [1 / math.factorial(n) for n in range(2, 14)])
    return whole, v.fused(v.builder.fmul(r, r), series, r)


def _exp(v: Vectors, x: ir.Value) -> ir.Value:
    # Beyond these it is 0 or infinite; the comparisons leave NaN as it is.
    low, high = v.number(-746.0), v.number(710.0)
    inside = v.select(v.compare("<", x, low), low, x)
    inside = v.select(v.compare(">", x, high), high, inside)
    k, less_one = _reduced(v, inside)
    half = v.builder.ashr(k, v._long(1))
    scaled = v.builder.fmul(v.builder.fadd(less_one, v.number(1.0)), _power_of_two(v, half))
    return v.builder.fmul(scaled, _power_of_two(v, v.builder.sub(k, half)))


def _expm1(v: Vectors, x: ir.Value) -> ir.Value:
    low, high = v.number(-60.0), v.number(709.0)
    inside = v.select(v.compare("<", x, low), low, x)
    inside = v.select(v.compare(">", x, high), high, inside)
    k, less_one = _reduced(v, inside)
    scale = _power_of_two(v, k)
    found = v.fused(scale, less_one, v.builder.fsub(scale, v.number(1.0)))
    found = v.select(v.compare(">", x, high), v.call("exp", x), found)
    # Its sign at zero, and numbers so small that they are their own values.
    tiny = v.compare("<", v.intrinsic("llvm.fabs", x), v.number(1e-300))
    return v.select(tiny, x, found)


def _log(v: Vectors, x: ir.Value) -> ir.Value:
    small = v.compare("<", x, v.number(2.0**-1022))
    normal = v.select(small, v.builder.fmul(x, v.number(2.0**54)), x)
    bits = _bits(v, normal)
    k = v.builder.ashr(v.builder.sub(bits, v._long(_HALF_ROOT)), v._long(52))
    bits = v.builder.sub(bits, v.builder.shl(k, v._long(52)))
    m = v.builder.bitcast(bits, VECTOR)  # from sqrt(1/2) to sqrt(2)
    # A small whole number as float64: put behind the digits of a large one.
    large = 2.0**52 + 2.0**51
    raised = v.builder.add(k, _bits(v, v.number(large)))
    exponent = v.builder.fsub(v.builder.bitcast(raised, VECTOR), v.number(large))
    exponent = v.builder.fsub(exponent, v.select(small, v.number(54.0), v.number(0.0)))
    f = v.builder.fsub(m, v.number(1.0))
    s = v.builder.fdiv(f, v.builder.fadd(f, v.number(2.0)))
    # log m = 2 atanh s = f - s (f - 2 (s² / 3 + s⁴ / 5 + ...)), whose first term is exact.
    square = v.builder.fmul(s, s)
    series = v.polynomial(square, [2 / (2 * n + 1) for n in range(1, 12)])
    rest = v.builder.fmul(s, v.builder.fsub(f, v.builder.fmul(square, series)))
    low = v.builder.fsub(v.builder.fmul(exponent, v.number(_LN2_LOW)), rest)
    found = v.fused(exponent, v.number(_LN2_HIGH), v.builder.fadd(low, f))
    found = v.select(v.compare("==", x, v.number(0.0)), v.number(-math.inf), found)
    found = v.select(v.compare("==", x, v.number(math.inf)), x, found)
    valid = v.compare(">=", x, v.number(0.0))
    return v.select(valid, found, v.number(math.nan))


def _log1p(v: Vectors, x: ir.Value) -> ir.Value:
    one = v.number(1.0)
    u = v.builder.fadd(x, one)
    lost = v.builder.fsub(x, v.builder.fsub(u, one))
    found = v.builder.fadd(v.call("log", u), v.builder.fdiv(lost, u))
    # Where 1 + x is 1, infinite or zero there is nothing lost that can be given back.
    found = v.select(v.compare("==", u, one), x, found)
    at_end = v.builder.or_(
        v.compare("==", x, v.number(math.inf)), v.compare("==", u, v.number(0.0))
    )
    return v.select(at_end, v.call("log", u), found)


def _tanh(v: Vectors, x: ir.Value) -> ir.Value:
    size = v.intrinsic("llvm.fabs", x)
    size = v.select(v.compare(">", size, v.number(22.0)), v.number(22.0), size)
    t = v.call("expm1", v.builder.fmul(size, v.number(-2.0)))
    found = v.builder.fdiv(v.builder.fneg(t), v.builder.fadd(t, v.number(2.0)))
    found = v.intrinsic("llvm.copysign", found, x)
    return v.select(v.builder.fcmp_unordered("uno", x, x), x, found)


def _sigmoid(v: Vectors, x: ir.Value) -> ir.Value:
    one = v.number(1.0)
    return v.builder.fdiv(one, v.builder.fadd(one, v.call("exp", v.builder.fneg(x))))


_STIRLING = (
    1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400,
)  # fmt: skip
"""Of Stirling's series: B_2n / (2n (2n - 1)) by Bernoulli's numbers."""
_SHIFT = 8
"""Arguments below it are raised by the recurrence."""


def _raised(v: Vectors, x: ir.Value) -> list[tuple[ir.Value, ir.Value]]:
    """The steps of x, x + 1, ... and whether each is still below `_SHIFT`."""
    steps, value = [], x
    for _ in range(_SHIFT):
        steps.append((value, v.compare("<", value, v.number(float(_SHIFT)))))
        value = v.builder.fadd(value, v.number(1.0))
    return steps


def _lgamma(v: Vectors, x: ir.Value) -> ir.Value:
    positive = v.compare(">", x, v.number(0.0))
    return v.guarded(positive, lambda: _positive_lgamma(v, x), lambda: v.lanes("lgamma", x))


def _positive_lgamma(v: Vectors, x: ir.Value) -> ir.Value:
    product: ir.Value = v.number(1.0)
    large = x
    for value, below in _raised(v, x):
        product = v.select(below, v.builder.fmul(product, value), product)
        large = v.select(below, v.builder.fadd(value, v.number(1.0)), large)
    inverse = v.builder.fdiv(v.number(1.0), large)
    square = v.builder.fmul(inverse, inverse)
    series = v.builder.fmul(inverse, v.polynomial(square, _STIRLING))
    lead = v.builder.fmul(v.builder.fsub(large, v.number(0.5)), v.call("log", large))
    found = v.builder.fadd(v.builder.fsub(lead, large), v.number(0.5 * math.log(2 * math.pi)))
    found = v.builder.fsub(v.builder.fadd(found, series), v.call("log", product))
    return v.select(v.compare("==", x, v.number(math.inf)), x, found)


def _digamma(v: Vectors, x: ir.Value) -> ir.Value:
    def slow() -> ir.Value:
        # psi(x) = psi(1 - x) - pi / tan(pi x), with the remainder of x for its digits.
        pi, one = v.number(math.pi), v.number(1.0)
        positive = v.compare(">", x, v.number(0.0))
        turned = v.select(positive, x, v.builder.fsub(one, x))
        part = v.builder.fsub(x, v.lanes("floor", x))
        slope = v.builder.fdiv(pi, v.lanes("tan", v.builder.fmul(pi, part)))
        found = _positive_digamma(v, turned)
        found = v.select(positive, found, v.builder.fsub(found, slope))
        at_pole = v.intrinsic("llvm.copysign", v.number(math.inf), v.builder.fneg(x))
        return v.select(v.compare("==", x, v.number(0.0)), at_pole, found)

    positive = v.compare(">", x, v.number(0.0))
    return v.guarded(positive, lambda: _positive_digamma(v, x), slow)


def _positive_digamma(v: Vectors, x: ir.Value) -> ir.Value:
    one, taken = v.number(1.0), v.number(0.0)
    large = x
    for value, below in _raised(v, x):
        term = v.builder.fdiv(one, v.select(below, value, one))
        taken = v.builder.fadd(taken, v.select(below, term, v.number(0.0)))
        large = v.select(below, v.builder.fadd(value, one), large)
    inverse = v.builder.fdiv(one, large)
    square = v.builder.fmul(inverse, inverse)
    slopes = [(2 * n + 1) * each for n, each in enumerate(_STIRLING)]
    series = v.builder.fmul(square, v.polynomial(square, slopes))
    found = v.builder.fsub(v.call("log", large), v.builder.fmul(v.number(0.5), inverse))
    return v.builder.fsub(v.builder.fsub(found, series), taken)


ELEMENTARY: dict[str, Callable[[Vectors, ir.Value], ir.Value]] = {
    "exp": _exp,
    "expm1": _expm1,
    "log": _log,
    "log1p": _log1p,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "lgamma": _lgamma,
    "digamma": _digamma,
}
"""The functions by their names."""

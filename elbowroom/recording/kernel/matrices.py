"""The code of steps on matrices: loops over rows of memory that follow each other."""

from typing import Any

from llvmlite import ir

from elbowroom.recording.kernel.lowering import Step
from elbowroom.recording.kernel.writer import Writer


def write_matrices(w: Writer, step: Step) -> None:
    """Each matrix of a step in turn, by loops over rows of memory that follow each other."""
    size, *sizes = [int(each) for each in step.given]
    work = {"cholesky": _cholesky, "solve": _solve, "product": _product}[step.function]
    readers = [w.reader(table) for table in step.inputs]
    with w.loop(w.long(step.size // size)) as number:
        begin = w.builder.mul(number, w.long(size))
        base = w.builder.add(begin, w.long(int(w.place[step.out])))
        work(w, number, base, readers, sizes)


def _index(w: Writer, row: ir.Value, width: int, column: ir.Value) -> ir.Value:
    return w.builder.add(w.builder.mul(row, w.long(width)), column)


def _less(w: Writer, place: ir.Value, a: ir.Value, b: ir.Value) -> None:
    """Takes a product from what is in memory."""
    w.store(w.v.fused(w.builder.fneg(a), b, w.load(place)), place)


def _cholesky(w: Writer, number: ir.Value, base: ir.Value, readers: Any, sizes: list[int]) -> None:
    """The upper factor U, row by row, of U'U: each new column solves against those before."""
    (n,), (read,), b = sizes, readers, w.builder
    zero, one, size = w.long(0), w.long(1), w.long(n)
    first = b.mul(number, w.long(n * n))

    def own(row: ir.Value, column: ir.Value) -> ir.Value:
        return b.add(base, _index(w, row, n, column))

    def work(column: ir.Value) -> ir.Value:
        return b.add(column, w.long(w.row))

    with w.loop(size) as i:
        with w.loop(b.add(i, one)) as j:
            w.store(read(b.add(first, _index(w, i, n, j))), work(j))
        with w.span(zero, i) as j:
            w.store(w.v.number(0.0), own(i, j))
        with w.span(zero, i) as j:
            x = b.fdiv(w.load(work(j)), w.load(own(j, j)))
            w.store(x, own(j, i))
            with w.span(b.add(j, one), i) as k:
                _less(w, work(k), x, w.load(own(j, k)))
            _less(w, work(i), x, x)
        w.store(w.v.intrinsic("llvm.sqrt", w.load(work(i))), own(i, i))


def _solve(w: Writer, number: ir.Value, base: ir.Value, readers: Any, sizes: list[int]) -> None:
    """X of A X = B, where A is a triangle."""
    (n, m, upper), (left, right), b = sizes, readers, w.builder
    one, size, width = w.long(1), w.long(n), w.long(m)
    first = b.mul(number, w.long(n * n))
    given = b.mul(number, w.long(n * m))
    with w.loop(w.long(n * m)) as j:
        w.store(right(b.add(given, j)), b.add(base, j))
    with w.loop(size) as turn:
        i = b.sub(b.sub(size, one), turn) if upper else turn
        span = (b.add(i, one), size) if upper else (w.long(0), i)
        with w.span(*span) as j:
            factor = left(b.add(first, _index(w, i, n, j)))
            with w.loop(width) as c:
                place = b.add(base, _index(w, i, m, c))
                _less(w, place, factor, w.load(b.add(base, _index(w, j, m, c))))
        pivot = left(b.add(first, _index(w, i, n, i)))
        with w.loop(width) as c:
            place = b.add(base, _index(w, i, m, c))
            w.store(b.fdiv(w.load(place), pivot), place)


def _product(w: Writer, number: ir.Value, base: ir.Value, readers: Any, sizes: list[int]) -> None:
    """A B of (n, k) and (k, m)."""
    (n, k, m), (left, right), b = sizes, readers, w.builder
    first, second = b.mul(number, w.long(n * k)), b.mul(number, w.long(k * m))
    with w.loop(w.long(n * m)) as j:
        w.store(w.v.number(0.0), b.add(base, j))
    with w.loop(w.long(n)) as i, w.loop(w.long(k)) as j:
        factor = left(b.add(first, _index(w, i, k, j)))
        with w.loop(w.long(m)) as c:
            place = b.add(base, _index(w, i, m, c))
            term = right(b.add(second, _index(w, j, m, c)))
            w.store(w.v.fused(factor, term, w.load(place)), place)

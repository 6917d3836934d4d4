"""A program as machine code that takes batches of points."""

import ctypes
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from torch import Tensor

from elbowroom.recording.kernel.code import Code, written
from elbowroom.recording.kernel.composition import lowered
from elbowroom.recording.kernel.lowering import MATRICES, NotLowerableError, Program
from elbowroom.recording.kernel.rolling import rolled
from elbowroom.recording.kernel.schedule import is_written_out, scheduled
from elbowroom.recording.kernel.vectors import WIDTH
from elbowroom.recording.replay import Replay


@dataclass(frozen=True)
class KernelLimits:
    """Where a kernel is made, and used."""

    llvm: int = 20
    """The oldest version of LLVM, which llvmlite has since 0.45."""
    memory: int = 1_000_000
    """Numbers of a point in memory at once, at most: 64 MB for the points of a vector."""
    written_out: int = 8_000
    """Elements that are in no loop, at most: each takes a millisecond and more to compile."""
    with_matrices: int = 3
    """Points at once for which factors of matrices are faster than those of a library."""
    of_thread: int = 2_000_000
    """Numbers that a thread computes at least, which take half a millisecond: torch's number of
    threads share the rest."""


KERNELS = KernelLimits()


def _machine() -> Any:
    """This processor; a compiler keeps it for itself.

    Raises:
        NotLowerableError: If LLVM is older than 20, which ends the process at some instructions.
    """
    if llvm.llvm_version_info[0] < KERNELS.llvm:
        raise NotLowerableError("a version of LLVM that does not know all instructions")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        opt=2, cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten()
    )


class Kernel:
    """The results of a recording for batches, as one function of machine code.

    Attributes:
        program: Its steps.
        code: What it was compiled from.
        least: Points from which on it is faster than a library: a vector of them takes as long as
            one point, which matters where that takes long.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        if not (program.inputs and all(len(each) for each in program.results)):
            raise NotLowerableError("points or results of no numbers")
        few = sum(step.count for step in program.steps if is_written_out(step))
        if few > KERNELS.written_out:
            raise NotLowerableError("operations one by one, which take long to compile")
        self.code: Code = written(program, scheduled(program))
        if self.code.memory > KERNELS.memory:
            raise NotLowerableError("intermediate values of too many rows")
        machine = _machine()
        # What is made of its text goes with a context of its own.
        context = llvm.create_context()
        module = llvm.parse_assembly(self.code.text, context)
        module.verify()
        # These suffice: of the code that is inlined, what is the same is computed once. LLVM's own
        # list takes twice as long, and loses a third of a megabyte each time.
        passes = llvm.create_new_module_pass_manager()
        passes.add_always_inliner_pass()
        passes.add_sroa_pass()
        passes.add_new_gvn_pass()
        passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        # Of a cycle of garbage, Python might free the context before the code that is in it.
        weakref.finalize(self, _closed, self._engine, context).atexit = False
        kinds = [ctypes.c_void_p] * 5 + [ctypes.c_int64]
        self._function = ctypes.CFUNCTYPE(None, *kinds)(self._engine.get_function_address("kernel"))
        self._memories = threading.local()
        matrices = any(step.function in MATRICES for step in program.steps)
        self.least = KERNELS.with_matrices if matrices else 1
        self.widths = [len(each) for each in program.results]
        self._numbers = sum(step.count for step in program.steps)

    def _memory(self) -> np.ndarray:
        """This thread's own."""
        found = getattr(self._memories, "found", None)
        if found is None:
            raw = np.zeros((self.code.memory + 1) * WIDTH)
            skip = -raw.ctypes.data % (8 * WIDTH) // 8
            found = raw[skip : skip + self.code.memory * WIDTH]
            for place, value in self.code.pinned.items():
                found[place * WIDTH : (place + 1) * WIDTH] = value
            self._memories.found = found
        return found

    def _room(self, count: int) -> np.ndarray:
        """This thread's own for the results at so many points, whose pages are asked for once."""
        width, rows = sum(self.widths), -(-count // WIDTH) * WIDTH
        found = getattr(self._memories, "room", None)
        if found is None or len(found) < rows:
            found = self._memories.room = np.empty((rows, width))
        return found[:rows]

    def _run(self, given: np.ndarray, out: np.ndarray, begin: int, end: int) -> None:
        """Fills the results at points from one to another; other threads may do so beside it."""
        arrays = (given[begin:], out[begin:], self.code.numbers, self.code.places, self._memory())
        if end > begin:
            self._function(*(each.ctypes.data for each in arrays), end - begin)

    def __call__(self, points: Tensor) -> list[Tensor]:
        """The results at points, (n, D), each (n, ...)."""
        given = np.ascontiguousarray(points.numpy())
        count = len(given)
        out = self._room(count)
        parts = min(torch.get_num_threads(), count * self._numbers // KERNELS.of_thread)
        vectors = -(-count // WIDTH)
        ends = [WIDTH * (vectors * k // parts) for k in range(parts)] if parts > 1 else [0]
        places = list(zip(ends, [*ends[1:], count], strict=True))
        if len(places) > 1:
            list(_pool(parts).map(lambda place: self._run(given, out, *place), places))
        elif count:  # its loops have at least one turn
            self._run(given, out, 0, count)
        found, begin = [], 0
        for width, shape in zip(self.widths, self.program.shapes, strict=True):
            one = out[:count, begin : begin + width].copy()
            found.append(torch.from_numpy(one.reshape(count, *shape)))
            begin += width
        return found


def _closed(engine: Any, context: Any) -> None:
    """Frees machine code; its context, which is held until then, goes after it."""
    engine.close()
    del context


@lru_cache(maxsize=1)
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="elbowroom-kernel")


def _pool(count: int) -> ThreadPoolExecutor:
    """So many threads of this process: a fork has none of its parent's."""
    return _threads(os.getpid(), count)


def compiled(replay: Replay, points: Tensor) -> Kernel:
    """The kernel of a recording for batches, which has been run at two points, (2, D).

    Raises:
        NotLowerableError: If the recording holds something that no kernel does.
    """
    results = replay.results
    operations = replay.needed(results)
    program = lowered(operations, replay.constants, replay.entries[0], results, points)
    return Kernel(rolled(program))

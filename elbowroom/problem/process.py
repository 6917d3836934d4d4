"""What belongs to the process: whoever changes it takes turns, and it is put back.

Pyro keeps its handlers and its parameters in the process, torch its defaults and its seeds. Threads
cannot share them, and what fits a model may be interrupted anywhere.
"""

import logging
import os
import random
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar, copy_context
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pyro
import torch
from pyro.poutine import runtime
from threadpoolctl import ThreadpoolController
from torch.distributions import Distribution
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils import _device

from elbowroom.errors import users_errors

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)  # Windows has the first two
)
"""Signals that are listened to during a fit."""

WARNING = ("filters", "showwarning", "_showwarnmsg_impl")
"""What those who catch warnings replace."""

KERNELS = "TORCHINDUCTOR_CACHE_DIR"
"""Where torch keeps what it compiles: a folder that it makes when it is imported in part."""

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def thread_pools() -> ThreadpoolController:
    """The libraries with threads of their own that are loaded by now."""
    return _thread_pools(len(sys.modules))


@lru_cache(maxsize=1)
def _thread_pools(modules: int) -> ThreadpoolController:
    """Looking for them takes milliseconds, and pays only where something has been imported."""
    return ThreadpoolController()


def limit_threads(threads: int) -> None:
    """Has torch and BLAS take some threads."""
    torch.set_num_threads(threads)
    for library in thread_pools().lib_controllers:
        library.set_num_threads(threads)


class ProcessState:
    """What a fit changes in the process on its way, as it is when this is made.

    Example:
        >>> before = ProcessState()
        >>> torch.set_default_dtype(torch.float16)
        >>> before.restore()
        >>> torch.get_default_dtype()
        torch.float32
    """

    def __init__(self) -> None:
        self._random = torch.get_rng_state(), np.random.get_state(), random.getstate()
        # Before torch has begun to use a GPU, asking for its state would begin it.
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._dtype, self._device = torch.get_default_dtype(), _device.CURRENT_DEVICE
        self._gradients = torch.is_grad_enabled()
        self._threads = torch.get_num_threads()
        self._pools = [(each, each.num_threads) for each in thread_pools().lib_controllers]
        self._modes = _get_current_function_mode_stack()
        self._dispatching = torch._C._len_torch_dispatch_stack()
        self._transforms = torch._C._functorch.get_dynamic_layer_stack_depth()
        self._validates = Distribution._validate_args
        self._settings = pyro.settings.get()
        self._handlers = list(runtime._PYRO_STACK)
        self._plates = list(runtime._DIM_ALLOCATOR._stack)
        self._enumerated = dict(vars(runtime._ENUM_ALLOCATOR))
        self._store = dict(vars(pyro.get_param_store()))
        self._warnings: dict[str, Any] = {name: vars(warnings)[name] for name in WARNING}
        self._filters = list(warnings.filters)
        self._logging = logging.root.manager.disable
        self._logs = _logging_lock()._is_owned()
        self._environment = dict(os.environ)
        self._signals = {each: signal.getsignal(each) for each in SIGNALS}

    def restore(self) -> None:
        """Puts everything back; a second time changes nothing more."""
        runtime._PYRO_STACK[:] = self._handlers
        runtime._DIM_ALLOCATOR._stack[:] = self._plates
        vars(runtime._ENUM_ALLOCATOR).clear()
        vars(runtime._ENUM_ALLOCATOR).update(self._enumerated)
        vars(pyro.get_param_store()).update(self._store)
        pyro.settings.set(**self._settings)
        Distribution.set_default_validate_args(self._validates)
        if _get_current_function_mode_stack() != self._modes:
            while torch._C._len_torch_function_stack():
                _pop_mode()
            for mode in self._modes:
                _push_mode(mode)
        while torch._C._len_torch_dispatch_stack() > self._dispatching:
            torch._C._pop_torch_dispatch_stack()
        if torch._C._functorch.get_dynamic_layer_stack_depth() > self._transforms:
            torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(self._transforms)
        torch.set_grad_enabled(self._gradients)
        for library, threads in self._pools:
            if library.num_threads != threads:
                library.set_num_threads(threads)
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        torch.set_default_dtype(self._dtype)
        _device.CURRENT_DEVICE = self._device
        vars(warnings).update(self._warnings)
        self._warnings["filters"][:] = self._filters
        with warnings.catch_warnings():
            pass  # which has every module look at the filters again
        while _logging_lock()._is_owned() and not self._logs:  # where Ctrl-C met it
            _logging_lock().release()
        if logging.root.manager.disable != self._logging:
            logging.disable(self._logging)
        if KERNELS in os.environ and KERNELS not in self._environment:
            with suppress(OSError):  # what has been compiled stays
                os.rmdir(os.environ[KERNELS])
        _replace(os.environ, self._environment)
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._signals.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
        torch_state, numpy_state, python_state = self._random
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        for index, state in enumerate(self._cuda):
            torch.cuda.set_rng_state(state, index)


def _logging_lock() -> Any:
    """What every thread that logs waits for."""
    return logging._lock  # type: ignore[attr-defined]


def _replace(mapping: Any, before: Mapping[str, str]) -> None:
    """Has a mapping hold what it held before; what has not changed is not written."""
    for name in set(mapping) - set(before):
        del mapping[name]
    for name, value in before.items():
        if mapping.get(name) != value:
            mapping[name] = value


class _Turn:
    """The one who may change the process.

    Attributes:
        lock: Held by the thread whose turn it is.
        thread: The last one in which a function had the process to itself.
        before: The state that this function began with, until it is put back.
        unfinished: What is still to be put back, such as a network's own parameters.
        outer: How many of these are of blocks around the function.
        forked: Whether the process is a child that was forked.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.thread: int | None = None
        self.before: ProcessState | None = None
        self.unfinished: list[Callable[[], None]] = []
        self.outer = 0
        self.forked = False

    def begin(self) -> None:
        """Notes the state that is to be put back."""
        self.thread, self.outer = threading.get_ident(), len(self.unfinished)
        self.before = ProcessState()
        if self.forked:  # GNU's OpenMP waits for ever for the threads that the parent had
            limit_threads(1)

    def put_back(self) -> None:
        """Puts back what an interrupted block has not, and the process's state."""
        while self.before is not None and len(self.unfinished) > self.outer:
            self.unfinished[-1]()
            self.unfinished.pop()
        if self.before is not None:
            self.before.restore()
            self.before = None

    def begin_in_child(self) -> None:
        """A process that was forked has a turn of its own: who holds the other is not in it."""
        self.lock, self.forked = threading.RLock(), True
        if self.thread != threading.get_ident():  # which may be in the middle of a fit
            self.put_back()


TURN = _Turn()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=TURN.begin_in_child)


def is_alone() -> bool:
    """Whether the process is kept for the caller already."""
    return _alone.get()


def alone(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function that has the process to itself, and leaves it as it was, however it ends.

    Calls from several threads run one after the other. What is a context variable, such as numpy's
    handling of errors, is put back as well.

    Example:
        >>> @alone
        ... def draw() -> float:
        ...     return float(torch.randn(()))
        >>> draw() == draw()
        True
    """

    @wraps(function)
    def whole(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if _alone.get():
            with users_errors():
                return function(*args, **kwargs)
        with TURN.lock:
            # Twice: Ctrl-C may come in the middle of the first, and the second does the whole then.
            try:
                try:
                    TURN.begin()
                    return copy_context().run(_kept, function, args, kwargs)
                finally:
                    TURN.put_back()
            finally:
                TURN.put_back()

    return whole


def _kept(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    _alone.set(True)
    try:
        with users_errors():
            return function(*args, **kwargs)
    except BaseException as error:
        interruption = _interruption(error)
        if interruption is None or interruption is error:
            raise
        raise interruption from None


def _interruption(error: BaseException) -> BaseException | None:
    """What interrupted a call, such as Ctrl-C, if that is why it failed; its blocks are closed.

    A block that is left by it in the middle of its beginning may fail in turn, and what Ctrl-C has
    begun would end as an error of the model. And where Ctrl-C meets a block as it is left, the
    block ends once nobody refers to it, and puts back a state of the middle of the call: it has to
    end now, and not when the frames are forgotten.
    """
    chain: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in chain:
        chain.append(each)
        each = each.__cause__ or each.__context__
    found = next((each for each in chain if not isinstance(each, Exception)), None)
    if found is not None:
        for each in chain:
            traceback.clear_frames(each.__traceback__)
    return found

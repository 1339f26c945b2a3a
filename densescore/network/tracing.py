"""Tracing that leaves other threads alone.

While fx traces, it replaces the call of *every* module of the process, and puts back what it found there at the end. So
a second trace at the same time would put back the first one's replacement for good, and a network that runs in another
thread would be taken for a part of the trace. Here one thread traces at a time, and the modules of others just run.
"""

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

TRACING = threading.RLock()
"""Held while a network is traced or converted, by whatever tracer."""


class Tracer(fx.Tracer):
    """An fx tracer that may be used while other threads run modules or trace."""

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace, when no other thread does."""
        with TRACING:
            self._thread = threading.get_ident()
            return super().trace(root, concrete_args)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a call of this thread's."""
        return super().call_module(m, forward, args, kwargs) if self._is_own() else forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record a look-up of this thread's."""
        return super().getattr(attr, attr_val, parameter_proxy_cache) if self._is_own() else attr_val

    def _is_own(self) -> bool:
        return threading.get_ident() == self._thread


def symbolic_trace(module: nn.Module) -> fx.GraphModule:
    """``fx.symbolic_trace`` by such a tracer."""
    return fx.GraphModule(module, Tracer().trace(module))

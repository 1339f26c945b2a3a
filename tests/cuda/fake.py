"""A CUDA device on paper: everything that a GPU's host does is done, and every wait, copy and operator is written down.

Tensors of ``cuda:0`` are `FakeTensor`: shape, strides and dtype without memory, so that an operation that mixes devices
raises. Beside each of them lies its value, a tensor of the CPU on which the same operators run: numbers are those of a
CPU, and a program that branches on them takes its true way. Copies that do not wait deliver NaN until the host has
waited for them; work on a stream that does not wait for the stream that wrote its input is a race.

Custom operators run their own code up to the launch of a kernel, so that copies inside them are seen as well. With
``values`` off nothing is computed: that is for counts of large networks (``benchmarks/gpu_counts.py``).
"""

import math
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

import densescore
import densescore_kernels
from densescore_kernels.launch import Configs, _type_name

CUDA = torch.device("cuda:0")
PACKAGES = tuple(f"{Path(package.__file__ or '').parent}/" for package in (densescore, densescore_kernels))
aten = torch.ops.aten


class Wait(NamedTuple):
    """The host waited for the device: what for, and the functions of densescore that did, inner first."""

    kind: str
    places: tuple[str, ...]


class Traffic(NamedTuple):
    """What an operator moved and computed."""

    calls: int = 0
    read: int = 0
    written: int = 0
    flops: int = 0

    def plus(self, other: "Traffic") -> "Traffic":
        return Traffic(*map(sum, zip(self, other, strict=True)))


class Stream:
    """A queue of work; `seen` holds how far it waits for others."""

    cuda_stream, device = 0, CUDA

    def __init__(self, *_: Any, **__: Any) -> None:
        self.tick = 0
        self.seen: dict[Stream, int] = {}

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        for stream, tick in event.seen.items():
            self.seen[stream] = max(tick, self.seen.get(stream, 0))

    def wait_stream(self, stream: "Stream") -> None:
        self.wait_event(stream.record_event())

    def synchronize(self) -> None:
        _device().wait("synchronize", {**self.seen, self: self.tick})

    def query(self) -> bool:
        return _device().host.get(self, 0) >= self.tick


class Event:
    """A place in a stream."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self.enable_timing = enable_timing
        self.seen: dict[Stream, int] = {}
        self.time = 0.0

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or _device().stream
        self.seen, self.time = {**stream.seen, stream: stream.tick}, time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        (stream or _device().stream).wait_event(self)

    def query(self) -> bool:
        return all(_device().host.get(stream, 0) >= tick for stream, tick in self.seen.items())

    def synchronize(self) -> None:
        _device().wait("synchronize", self.seen)

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds; as CUDA's, an error for events that nobody has waited for."""
        for event in (self, end):
            assert event.enable_timing, "events without enable_timing have no time"
            assert event.seen, "an event was never recorded"
        if not (self.query() and end.query()):
            raise RuntimeError("CUDA error: device not ready: elapsed_time before the host waited for the event")
        return 1000 * (end.time - self.time)


class FakeCuda:
    """What happened on the device since `reset`."""

    def __init__(self) -> None:
        self.values = True  # off: nothing is computed
        self.lock = threading.RLock()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.default_stream = Stream()
        self.host: dict[Stream, int] = {}  # how far the host has waited
        self.pinned: dict[int, Any] = {}  # storages by address
        self.local = threading.local()
        self.writers: dict[int, tuple[Stream, int]] = {}  # storage → stream, tick of its last writer
        self.pending: list[tuple[Stream, int, Tensor, Tensor]] = []
        self.reset()

    def reset(self) -> None:
        """Forget waits, races and counts."""
        self.waits: list[Wait] = []
        self.races: list[Wait] = []
        self.traffic: dict[str, Traffic] = {}
        self.to_device = self.to_host = 0  # bytes over the bus

    @property
    def stream(self) -> Stream:
        return getattr(self.local, "stream", self.default_stream)

    @property
    def operators(self) -> int:
        """Kernels that were launched."""
        return sum(traffic.calls for traffic in self.traffic.values())

    def counted_waits(self) -> Counter[str]:
        """Waits by kind and innermost function."""
        return Counter(f"{wait.kind}: {wait.places[0] if wait.places else '?'}" for wait in self.waits)

    def note(self, kind: str) -> None:
        """The host waits here."""
        self.waits.append(Wait(kind, places()))

    def wait(self, kind: str, seen: dict[Stream, int]) -> None:
        """The host waits until streams have come so far; what they copied to it is there then."""
        with self.lock:
            self.note(kind)
            for stream, tick in seen.items():
                self.host[stream] = max(tick, self.host.get(stream, 0))
            for copy in [copy for copy in self.pending if self.host.get(copy[0], 0) >= copy[1]]:
                self.pending.remove(copy)
                copy[2].copy_(copy[3])

    def wait_for_stream(self, kind: str) -> None:
        """A copy or item that waits for the current stream."""
        self.wait(kind, {**self.stream.seen, self.stream: self.stream.tick})

    def step(self, read: list[Tensor], written: list[Tensor]) -> None:
        """One operator of the current stream: check that its inputs are ready there."""
        stream = self.stream
        stream.tick += 1
        for tensor in read:
            key = tensor.untyped_storage()._cdata
            writer, tick = self.writers.get(key, (stream, 0))
            if writer is not stream and max(stream.seen.get(writer, 0), self.host.get(writer, 0)) < tick:
                self.races.append(Wait("reads what another stream may not have written yet", places()))
        for tensor in written:
            self.writers[tensor.untyped_storage()._cdata] = stream, stream.tick

    def add(self, name: str, traffic: Traffic) -> None:
        self.traffic[name] = self.traffic.get(name, Traffic()).plus(traffic)

    def fake(self, shape: Any, stride: Any, dtype: torch.dtype, value: Tensor | None) -> FakeTensor:
        """A tensor on the device."""
        with self.mode:
            meta = torch.empty_strided(tuple(shape), tuple(stride), dtype=dtype, device="meta")
            made = FakeTensor(self.mode, meta, CUDA)
        made._value = value  # type: ignore[attr-defined]
        return made


def places() -> tuple[str, ...]:
    """``folder/file.py:function`` of densescore, inner first."""
    frame, names = sys._getframe(1), []
    while frame is not None:
        code = frame.f_code
        for package in PACKAGES:
            if code.co_filename.startswith(package):
                names.append(f"{code.co_filename.removeprefix(package)}:{code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(names)


_active: list[FakeCuda] = []


def _device() -> FakeCuda:
    return _active[-1]


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _with_index(value: Any) -> Any:
    """``"cuda"`` as ``cuda:0``: torch would ask the driver for the current device."""
    if isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda")):
        return CUDA if torch.device(value) == torch.device("cuda") else value
    return value


class _Functions(TorchFunctionMode):
    """What has to be seen before torch's dispatcher: pinned memory, streams, lists of items."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device, name = _device(), getattr(func, "__name__", "")
        args = tuple(map(_with_index, args))
        kwargs = {key: _with_index(value) for key, value in (kwargs or {}).items()}
        if name == "cuda":
            return args[0].to(CUDA, non_blocking=kwargs.get("non_blocking", False))
        if name == "is_pinned":
            return args[0].untyped_storage().data_ptr() in device.pinned
        if name == "pin_memory" and args[0].is_pinned():
            return args[0]
        if name == "pin_memory" or kwargs.pop("pin_memory", False):
            made = args[0].clone() if name == "pin_memory" else func(*args, **kwargs)
            device.pinned[made.untyped_storage().data_ptr()] = made.untyped_storage()
            return made
        return func(*args, **kwargs)


class _Operators(TorchDispatchMode):
    """Each operator with a tensor of the device: on paper, on its values, and in the books."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, device = kwargs or {}, _device()
        fakes = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)]
        if fakes or any(_is_cuda(value) for value in (*args, *kwargs.values()) if isinstance(value, torch.device)):
            return self._run(device, func, args, kwargs, fakes)
        return func(*args, **kwargs)

    def _run(self, device: FakeCuda, func: Any, args: Any, kwargs: Any, fakes: Any) -> Any:
        if func is torch.ops.prim.device.default:
            return fakes[0].fake_device
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        with device.lock:
            if func.namespace == "densescore":
                return self._kernel(device, func, args, kwargs)
            if func in (aten._to_copy.default, aten.copy_.default):
                return _copied(device, func, args, kwargs)
            if func in (aten._local_scalar_dense.default, aten.equal.default, aten.allclose.default):
                device.wait_for_stream("item")
                if device.values:
                    return func(*_values(args), **kwargs)
                return True if len(fakes) > 1 or fakes[0].dtype == torch.bool else int(not fakes[0].is_floating_point())
            return _operator(device, func, args, kwargs)

    def _kernel(self, device: FakeCuda, func: Any, args: Any, kwargs: Any) -> Any:
        """One of densescore's operators: its own code, up to the launches; and its fake implementation."""
        before, device.local.launches = device.operators, 0
        with self:
            out = OPDEFS[func.name()]._init_fn(*args, **kwargs)
        with device.mode:
            expected = func(*args, **kwargs)
        assert (out.shape, out.stride(), out.dtype) == (expected.shape, expected.stride(), expected.dtype), func
        assert out.device == CUDA, f"{func} gave a result on {out.device}"
        assert device.operators > before or device.local.launches, f"{func} launched no kernel"
        if device.values:
            out._value = func(*_values(args), **_values(kwargs))
        read = sum(_bytes(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor))
        flops = 2 * args[1].shape[0] ** 2 * out.numel() if "depthwise" in func.name() else 0
        if device.local.launches:
            device.add(func.name(), Traffic(device.local.launches, read, _bytes(out), flops))
        return out


def _launch(self: Configs, kernel: Any, programs: Any, *arguments: Any, **constants: int) -> None:
    """`Configs.launch` without the last step."""
    key = (kernel.__name__, tuple(map(_type_name, arguments)), tuple(constants.items()))
    assert key in self.by_key, f"{key} was never compiled"
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    assert all(isinstance(tensor, FakeTensor) for tensor in tensors), (
        f"{kernel.__name__}: a pointer to the host's memory"
    )
    device = _device()
    device.local.launches += 1
    device.step(tensors, tensors[-1:])


def _values(tree: Any) -> Any:
    """Fake tensors replaced by their values, and their device by the CPU."""
    tree = tree_map_only(FakeTensor, lambda tensor: tensor._value, tree)
    return tree_map_only(torch.device, lambda device: torch.device("cpu"), tree)


def _operator(device: FakeCuda, func: Any, args: Any, kwargs: Any) -> Any:
    """Any other operator."""
    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    fakes = [leaf for leaf in inputs if isinstance(leaf, FakeTensor)]
    if len(fakes) < len([tensor for tensor in inputs if tensor.ndim]):
        device.note("copy of an index")  # the only one that torch allows; the others raise below
    run = _CUDA_ONLY.get(func, func)
    values: Any = None
    if device.values:
        on_values = Tensor.reshape if func in _RESHAPES else _ON_VALUES.get(func, run)
        values = on_values(*_values(args), **_values(kwargs))
    try:
        with device.mode:
            out = run(*args, **kwargs)
    except DynamicOutputShapeException:
        device.wait_for_stream("size of a result")
        out = tree_map_only(Tensor, lambda v: device.fake(v.shape, v.stride(), v.dtype, v), values)
    made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, FakeTensor)]
    if device.values:
        for tensor, value in zip(made, [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)], strict=True):
            assert (tensor.shape, tensor.dtype) == (value.shape, value.dtype), func
            if not any(tensor is other for other in fakes):
                tensor._value = _poisoned(value) if func.overloadpacket in _EMPTY else value  # type: ignore[attr-defined]
    _book(device, func, args, kwargs, fakes, made, out)
    return out


_EMPTY = {aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty, aten.new_empty_strided}
_CUDA_ONLY: dict[Any, Any] = {
    aten.cudnn_convolution_relu.default: lambda x, weight, bias, *geometry: _convolution(
        x, weight, bias, geometry
    ).relu(),
    aten.cudnn_convolution_add_relu.default: lambda x, weight, residual, alpha, bias, *geometry: (
        _convolution(x, weight, bias, geometry) + alpha * residual
    ).relu(),
}
"""Operators that a CPU lacks, by others."""

_ON_VALUES: dict[Any, Any] = {
    aten._softmax.default: lambda x, dim, half_to_float: (x.float() if half_to_float else x).softmax(dim),
    aten.cudnn_batch_norm.default: lambda x, weight, bias, mean, variance, *rest: (
        *aten.native_batch_norm(x, weight, bias, mean, variance, *rest),
        torch.empty(0, dtype=torch.uint8),
    ),
}
"""Those whose fake results are right."""


def _convolution(x: Tensor, weight: Tensor, bias: Tensor, geometry: Any) -> Tensor:
    stride, padding, dilation, groups = geometry
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)


_RESHAPES = {aten.view.default, aten._unsafe_view.default}
_FREE = _EMPTY | {aten._unsafe_view, aten.lift_fresh, aten.detach, aten.detach_}
_OVERWRITES = {aten.copy_, aten.fill_, aten.zero_}
_PICKS = {aten.index, aten.index_select, aten.gather, aten.embedding}


def _book(device: FakeCuda, func: Any, args: Any, kwargs: Any, fakes: Any, made: Any, out: Any) -> None:
    """Bytes and flops of an operator: every input is read once, every output written once; views are free."""
    packet, aliases = func.overloadpacket, [value.alias_info for value in func._schema.returns]
    if packet in _EMPTY:
        device.step([], made)  # memory belongs to the stream that asks for it
    if packet in _FREE or (aliases and all(alias is not None and not alias.is_write for alias in aliases)):
        return
    read = sum(map(_bytes, fakes[1:] if packet in _OVERWRITES else fakes))
    wrote = sum(map(_bytes, made))
    if packet in _PICKS:  # what is picked alone
        read += wrote - _bytes(fakes[0])
    elif packet in (aten.index_put_, aten.index_fill_):  # what is overwritten alone
        wrote = args[0].itemsize * _overwritten(packet, args)
        read -= _bytes(args[0])
    formula = flop_registry.get(packet)
    flops = formula(*args, **kwargs, out_val=out) if formula else 0
    if func in _CUDA_ONLY:
        flops = 2 * out.numel() * args[1][0].numel()  # [F, C / groups, h, w]
    elif packet is aten._addmm_activation:
        flops = 2 * out.numel() * args[1].shape[1]
    device.step(fakes, made)
    device.add(str(packet), Traffic(1, read, wrote, flops))


def _overwritten(packet: Any, args: Any) -> int:
    """Elements that an ``index_put_`` or ``index_fill_`` writes."""
    shape = args[0].shape
    if packet is aten.index_fill_:
        return args[0].numel() // shape[args[1]] * args[2].numel()
    rest = [size for axis, size in enumerate(shape) if axis >= len(args[1]) or args[1][axis] is None]
    return math.prod(torch.broadcast_shapes(*(index.shape for index in args[1] if index is not None))) * math.prod(rest)


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements; those of expanded axes lie there once."""
    return tensor.itemsize * math.prod(
        n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step or not n
    )


def _poisoned(value: Tensor) -> Tensor:
    """Memory that nobody has written: NaN, or the least whole number."""
    return value.fill_(
        math.nan if value.is_floating_point() else value.dtype == torch.bool or torch.iinfo(value.dtype).min
    )


def _copied(device: FakeCuda, func: Any, args: Any, kwargs: Any) -> Any:
    """``to`` and ``copy_``: within the device an operator, else a copy over the bus."""
    to = func is aten._to_copy.default
    source = args[0] if to else args[1]
    target = kwargs.get("device") or source.device if to else args[0].device
    if _is_cuda(target) and isinstance(source, FakeTensor):
        return _operator(device, func, args, kwargs)
    waits = not (kwargs.get("non_blocking") if to else len(args) > 2 and args[2])
    if _is_cuda(target):
        device.to_device += _bytes(source)
        if waits:
            device.note(
                "copy to the device"
            )  # one that does not wait is staged by the driver if its memory is not pinned
        value = func(*_values(args), **_values(kwargs)) if device.values else None
        dtype = kwargs.get("dtype") or source.dtype
        out = device.fake(source.shape, source.stride(), dtype, value) if to else args[0]
        device.step([], [out])
        return out
    value = source._value if device.values else torch.ones(source.shape, dtype=source.dtype)  # finite: yes
    device.to_host += _bytes(source)
    device.step([source], [])
    out = func(value, **_values(kwargs)) if to else func(args[0], value)
    if waits:
        device.wait_for_stream("copy to the host")
    else:
        device.pinned[out.untyped_storage().data_ptr()] = out.untyped_storage()
        device.pending.append((device.stream, device.stream.tick, out, out.clone()))
        _poisoned(out)
    return out


# Python's own ways to copy a tensor


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    made = self.detach().clone()
    memo[id(self)] = made = (
        torch.nn.Parameter(made, self.requires_grad) if isinstance(self, torch.nn.Parameter) else made
    )
    return made


def _set_data(self: Any, other: Any) -> None:
    torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
    self._value = getattr(other, "_value", None)


def _apply(self: torch.nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> torch.nn.Module:
    """``Module._apply`` with new parameters: torch cannot turn real ones into fake ones in place."""
    memo: dict[int, Tensor] = {}
    for module in self.modules() if recurse else [self]:
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in memo:
                    with torch.no_grad():
                        made = fn(tensor)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    memo[id(tensor)] = torch.nn.Parameter(made, tensor.requires_grad) if is_parameter else made
                tensors[name] = memo[id(tensor)]  # type: ignore[assignment]
    return self


@contextmanager
def _on_stream(stream: Stream | None) -> Iterator[None]:
    device = _device()
    before = device.stream
    device.local.stream = stream or before
    try:
        yield
    finally:
        device.local.stream = before


_run_thread = threading.Thread.run


def _run(self: threading.Thread) -> None:
    """Modes hold for one thread: each thread enters them."""
    if not _active:
        return _run_thread(self)
    torch._C._set_only_lift_cpu_tensors(True)
    with _Functions(), _Operators():
        return _run_thread(self)


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """A fake CUDA device, in all threads that are started inside."""
    device = FakeCuda()
    replaced: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_name": lambda *_: "a CUDA device on paper",
        "get_device_capability": lambda *_: (9, 0),
        "mem_get_info": lambda *_: (80 * 2**30, 80 * 2**30),
        "empty_cache": lambda: None,
        "current_stream": lambda *_: device.stream,
        "default_stream": lambda *_: device.default_stream,
        "stream": _on_stream,
        "device": lambda *_: nullcontext(),
        "synchronize": lambda *_: device.wait_for_stream("synchronize"),
        "Stream": Stream,
        "Event": Event,
    }
    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for owner, name, value in (
            (fake_tensor, "init_gpu_context", lambda _: None),
            (FakeTensor, "__deepcopy__", _deepcopy),
            (FakeTensor, "__reduce_ex__", lambda self, _: (_on_cuda, (self.cpu(),))),
            (FakeTensor, "data", property(lambda self: self.detach(), _set_data)),
            (FakeTensor, "record_stream", lambda self, stream: None),
            (FakeTensor, "tolist", lambda self: self.cpu().tolist()),
            (torch.nn.Module, "_apply", _apply),
            (Configs, "launch", _launch),
            (threading.Thread, "run", _run),
        ):
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        lifts = torch._C._only_lift_cpu_tensors()
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` and lists as indices come as copies
        torch._C._ensureCUDADeviceGuardSet()  # guards ask no driver
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        _active.append(device)
        stack.callback(_active.pop)
        stack.enter_context(_Functions())
        stack.enter_context(_Operators())
        yield device


def _on_cuda(tensor: Tensor) -> Tensor:
    """A pickled tensor of the device."""
    return tensor.to(CUDA)

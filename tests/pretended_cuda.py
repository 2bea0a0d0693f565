"""A CUDA device that is pretended: its tensors say cuda:0, hold their values on the CPU, and refuse what CUDA refuses.

    with pretended_cuda() as device:
        run("main_stage1", "--dataset", "digits", gpus=1)
    assert device.count(READ, section=STEP) == 0

Operations on tensors of both devices raise RuntimeError, as do fused ones on tensors of other orders in memory, and
`numpy` TypeError, as they do there. PyTorch's own code
below Python sees tensors of the CPU. So faults of CUDA's kernels do not show, autocast is that of the CPU, and an
operation is one launch however many kernels it takes. An autograd graph cannot cross the devices.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils

import engine.epoch
import engine.fit
from tests.device_events import LAUNCH, QUEUED, READ, UPLOAD, DeviceEvents

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
GROUP_TENSORS = torch._C._group_tensors_by_device_and_dtype
aten = torch.ops.aten
INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
# The value may be a single number of the CPU, though these are not pointwise by their tags.
TAKES_NUMBER = (aten.fill_, aten.masked_fill, aten.masked_fill_)
FUSED = (aten._fused_sgd_,)
OTHER_ORDER = "Expected at::native::check_fast_path_restrictions({params, grads, momentum_buffer_list}) to be true"
MAKES_NO_WORK = (aten._unsafe_view, aten.detach_, aten._reshape_alias)
ANSWERS = {
    Tensor.device.__get__: CUDA,
    Tensor.is_cuda.__get__: True,
    Tensor.is_cpu.__get__: False,
    Tensor.get_device: 0,
}
CUDA_ANSWERS = {
    "is_available": True,
    "device_count": 1,
    "set_device": None,
    "synchronize": None,
    "get_device_name": "pretended device",
    "get_device_capability": (6, 0),  # too old to be compiled for
    "is_bf16_supported": True,
    "is_current_stream_capturing": False,
    "get_rng_state": torch.zeros(1, dtype=torch.uint8),  # what draws there draws from the CPU's generator
}


class CudaTensor(Tensor):
    """A tensor of the pretended device; `value` has its numbers, `device_events` what is asked of the device."""

    value: Tensor
    device_events: DeviceEvents

    @staticmethod
    def __new__(cls, value: Tensor, device_events: DeviceEvents) -> Self:
        form = {"strides": value.stride(), "storage_offset": value.storage_offset(), "dtype": value.dtype}
        made = Tensor._make_wrapper_subclass(cls, value.size(), **form)
        made.value, made.device_events = value, device_events
        return made

    # For PyTorch's own Python code, within which a function mode is off.
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def record_stream(self, stream: "Stream") -> None:
        """Return at once: nothing is freed here while a stream uses it."""

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for value in (*args, *kwargs.values()) for leaf in leaves(value) if isinstance(leaf, Tensor)]
        others = [tensor for tensor in tensors if not isinstance(tensor, cls)]
        mine = {id(tensor.value): tensor for tensor in tensors if isinstance(tensor, cls)}
        device_events = next(iter(mine.values())).device_events
        if others:
            refuse_mixed(operation, args, others)
        if operation.overloadpacket in FUSED:
            refuse_other_orders(args)
        for kind in events_of(operation, args, others):
            device_events.note(kind, str(operation.overloadpacket))
        result = operation(*mapped(value_of, args), **{name: mapped(value_of, value) for name, value in kwargs.items()})

        def wrapped(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or any(leaf is other for other in others):
                return leaf
            return mine[id(leaf)] if id(leaf) in mine else cls(leaf, device_events)  # changed in place, or new

        return mapped(wrapped, result)


def leaves(value: Any) -> Sequence[Any]:
    """Return the items of an argument of an operation that is a list, else the argument itself as the only one."""
    return value if isinstance(value, list | tuple) else (value,)


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to a value or, where it is a list or tuple, to each of its items."""
    if isinstance(value, list | tuple):
        return type(value)([mapped(function, item) for item in value])
    return function(value)


def value_of(leaf: Any) -> Any:
    """Return the tensor of the CPU that holds the numbers of a tensor of the pretended device, else what is given."""
    return leaf.value if isinstance(leaf, CudaTensor) else leaf


def refuse_mixed(operation: Any, args: Sequence[Any], others: Sequence[Tensor]) -> None:
    """Raise RuntimeError where CUDA does for an operation on tensors of both devices, `others` being those of the CPU.

    Of these a copy takes any, an indexed tensor of CUDA takes indices, and what is pointwise single numbers.
    """
    packet = operation.overloadpacket
    on_cuda = isinstance(args[0], CudaTensor) if args and isinstance(args[0], Tensor) else True
    single = all(tensor.ndim == 0 for tensor in others)
    takes_number = torch.Tag.pointwise in operation.tags or packet in TAKES_NUMBER
    changes_number = not on_cuda and str(packet).endswith("_")
    allowed = (
        packet is aten.copy_ or (packet in INDEXED and on_cuda) or (single and takes_number and not changes_number)
    )
    if not allowed:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in others)
        raise RuntimeError(f"{MIXED} (on the CPU, when {packet} was called: {shapes})")


def refuse_other_orders(args: Sequence[Any]) -> None:
    """Raise RuntimeError where a fused optimiser does: weights, gradients or momentum in other orders in memory."""
    lists = [[tensor.value.stride() for tensor in value] for value in args if isinstance(value, list | tuple) and value]
    if any(own != lists[0] for own in lists):
        raise RuntimeError(f"{OTHER_ORDER}, but got false")


def events_of(operation: Any, args: Sequence[Any], others: Sequence[Tensor]) -> list[str]:
    """Return the events that an operation is, of whose tensors `others` lie on the CPU."""
    packet = operation.overloadpacket
    if packet is aten.copy_ and others:
        return [UPLOAD if isinstance(args[0], CudaTensor) else READ]
    if torch.Tag.data_dependent_output in operation.tags:
        return [READ]
    if operation.is_view or packet in MAKES_NO_WORK or "empty" in str(packet):
        return []
    events = [LAUNCH]
    if packet in INDEXED:  # indices of the CPU are copied, and masks are counted
        events += [UPLOAD for tensor in others if tensor.ndim > 0]
        events += [READ for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
    elif torch.Tag.dynamic_output_shape in operation.tags:
        events.append(READ)
    return events


class CudaFunctions(TorchFunctionMode):
    """Gives PyTorch's functions the pretended device: where tensors are, how they are made there, copied, and read."""

    def __init__(self, device_events: DeviceEvents) -> None:
        super().__init__()
        self.device_events = device_events

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in ANSWERS and lies_on_cuda(args[0]):
            return ANSWERS[function]
        if function in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self.moved(function, *args, **kwargs)
        if function in (Tensor.numpy, Tensor.__array__) and lies_on_cuda(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if function is Tensor.tolist and lies_on_cuda(args[0]):
            self.device_events.note(READ, "tolist")
            return args[0].value.tolist()
        if function is Tensor.pin_memory or kwargs.pop("pin_memory", False):
            made = args[0].clone() if function is Tensor.pin_memory else function(*args, **kwargs)
            made.pinned = True
            return made
        if function is Tensor.new_tensor and lies_on_cuda(args[0]):
            kwargs.setdefault("device", CUDA)
        if kwargs.get("device") is not None and function is not torch._C._nn._parse_to:
            return self.made(function, torch.device(kwargs.pop("device")), *args, **kwargs)
        return function(*args, **kwargs)

    def made(self, function: Callable[..., Any], device: torch.device, *args: Any, **kwargs: Any) -> Any:
        """Return what a function that makes a tensor makes on a device."""
        made = function(*args, **kwargs)
        copies = function in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
        if device.type == "cuda" and not isinstance(made, CudaTensor):
            if copies:
                self.device_events.note(UPLOAD, function.__name__)
            elif "empty" not in function.__name__:
                self.device_events.note(LAUNCH, function.__name__)
            moved = CudaTensor(made.detach(), self.device_events)
            return moved.requires_grad_() if made.requires_grad else moved
        if device.type == "cpu" and isinstance(made, CudaTensor):
            if copies:
                self.device_events.note(READ, function.__name__)
            return made.value
        return made

    def moved(self, function: Callable[..., Any], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return a tensor where, and in the form in which, `to`, `cpu` or `cuda` wants it."""
        device, queued, form = target_of(function, args, kwargs)
        before = lies_on_cuda(tensor)
        if device is None or device.type == ("cuda" if before else "cpu"):
            return Tensor.to(tensor, **form)
        if device.type not in ("cuda", "cpu"):
            return Tensor.to(tensor, device=device, **form)
        if tensor.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError("the pretended device follows no gradient from one device to the other")
        value = tensor.value if isinstance(tensor, CudaTensor) else tensor
        value = value.detach().to(**{**form, "copy": True})
        if before:
            self.device_events.note(READ, "to the CPU")
            return value
        pinned = getattr(tensor, "pinned", False)
        self.device_events.note(QUEUED if queued and pinned else UPLOAD, "to the device")
        return CudaTensor(value, self.device_events)


def lies_on_cuda(tensor: Tensor) -> bool:
    """Tell whether a tensor, or what `torch.func` wraps in it, is one of the pretended device."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return isinstance(tensor, CudaTensor)


def target_of(
    function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[torch.device | None, bool, dict[str, Any]]:
    """Return the device that a call of `to`, `cpu` or `cuda` names, whether it need not wait, and the form it wants."""
    if function is not Tensor.to:
        return (CPU if function is Tensor.cpu else CUDA), bool(kwargs.get("non_blocking")), {}
    names = ["device", "dtype", "non_blocking", "copy"]
    if args and isinstance(args[0], Tensor):
        args = (CUDA if lies_on_cuda(args[0]) else args[0].device, args[0].dtype, *args[1:])
    elif args and isinstance(args[0], torch.dtype):
        names = names[1:]
    form = {name: value for name, value in (*zip(names, args, strict=False), *kwargs.items()) if value is not None}
    device, queued = form.pop("device", None), bool(form.pop("non_blocking", False))
    return (None if device is None else torch.device(device)), queued, form


class CpuAutocast(torch.autocast):
    """Autocast of the CPU where that of CUDA is asked for."""

    def __init__(self, device_type: str, **options: Any) -> None:
        super().__init__("cpu", **options)


class Stream:
    """A stream that is done with everything at once."""

    def __init__(self, device: torch.device | None = None, priority: int = 0) -> None:
        pass

    def record_event(self) -> "Stream":
        return self

    def wait_event(self, event: "Stream") -> None:
        pass

    def synchronize(self) -> None:
        pass


def grouped_tensors(tensors: Sequence[Sequence[Tensor | None]], with_indices: bool = False) -> dict[Any, Any]:
    """Return tensors grouped as PyTorch's optimisers do it, under the device that they say they are on."""
    groups = GROUP_TENSORS(tensors, with_indices)
    return {(group[0][0][0].device, dtype): group for (_, dtype), group in groups.items()}


def within_device(device_events: DeviceEvents) -> Callable[[threading.Thread], None]:
    """Return what a thread is to run so that PyTorch has the pretended device there too."""
    run = threading.Thread.run

    def run_within(thread: threading.Thread) -> None:
        with CudaFunctions(device_events):
            run(thread)

    return run_within


@contextlib.contextmanager
def kept_switches() -> Iterator[None]:
    """Put back, after the block, the switches that the product sets on CUDA."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    deterministic = torch.are_deterministic_algorithms_enabled()
    before = cudnn.deterministic, cudnn.benchmark, cudnn.conv.fp32_precision, products.fp32_precision
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        cudnn.deterministic, cudnn.benchmark, cudnn.conv.fp32_precision, products.fp32_precision = before


@contextlib.contextmanager
def pretended_cuda() -> Iterator[DeviceEvents]:
    """Let PyTorch have one CUDA device within the block, and yield what is asked of it.

    Everything that is replaced is put back, and so are the switches that the product sets on CUDA.
    """
    device_events = DeviceEvents()
    with pytest.MonkeyPatch.context() as patch, kept_switches(), CudaFunctions(device_events):
        for name, value in CUDA_ANSWERS.items():
            patch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
        patch.delenv("CUBLAS_WORKSPACE_CONFIG")  # which the product may set
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "current_stream", Stream)
        patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        patch.setattr(torch, "autocast", CpuAutocast)
        patch.setattr(threading.Thread, "run", within_device(device_events))
        # A parameter stays the object that it is, as on CUDA, though its class changes.
        patch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
        # As on CUDA, lists of tensors are changed in one launch.
        patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", grouped_tensors)
        patch.setattr(
            _foreach_utils, "_foreach_supported_types", [*_foreach_utils._foreach_supported_types, CudaTensor]
        )
        patch.setattr(engine.epoch, "show_progress", device_events.follow_steps)
        patch.setattr(engine.fit, "train_one", device_events.follow_epochs(engine.fit.train_one))
        yield device_events

"""The pretended CUDA device: it computes what a CPU does, refuses what CUDA refuses, and sees what waits for what."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import engine.epoch
from tests.device_events import EPOCH, LAUNCH, OUTSIDE, QUEUED, READ, STEP, UPLOAD, DeviceEvents
from tests.pretended_cuda import CUDA, CudaTensor, pretended_cuda

NUMBERS = torch.arange(6.0).view(2, 3)


@pytest.fixture
def device() -> Iterator[DeviceEvents]:
    """What is asked of the pretended device, which is there for the test."""
    with pretended_cuda() as device_events:
        yield device_events


def kinds(device: DeviceEvents) -> list[str]:
    """The kinds of the events so far, which are then forgotten."""
    found = [event.kind for event in device.events]
    device.events.clear()
    return found


def on_cuda(values: Tensor, device: DeviceEvents) -> Tensor:
    """A copy on the device, without a trace of how it came there."""
    moved = values.to("cuda")
    device.events.clear()
    return moved


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (lambda x: x.cuda(), [UPLOAD]),
        (lambda x: x.to(CUDA, torch.float64), [UPLOAD]),
        (lambda x: torch.tensor([1.0, 2.0], device="cuda"), [UPLOAD]),
        (lambda x: torch.zeros(3, device="cuda"), [LAUNCH]),
        (lambda x: torch.empty(3, device="cuda"), []),
        (lambda x: x.pin_memory().to("cuda", non_blocking=True), [QUEUED]),
        (lambda x: x.to("cuda", non_blocking=True), [UPLOAD]),  # without pinned memory the host waits all the same
        (lambda x: x + 1, []),
    ],
)
def test_what_a_tensor_of_the_cpu_asks_for(device: DeviceEvents, what: Any, expected: list[str]) -> None:
    """Copies to the device and tensors made there are seen, and what happens on the CPU is not."""
    made = what(NUMBERS)
    assert kinds(device) == expected
    assert made.device == (CUDA if isinstance(made, CudaTensor) else torch.device("cpu"))


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (lambda x: x.cpu(), [READ]),
        (lambda x: x.to("cpu", torch.float64), [READ]),
        (lambda x: x.tolist(), [READ]),
        (lambda x: float(x[0, 0]), [READ]),
        (lambda x: bool((x > 2).any()), [LAUNCH, LAUNCH, READ]),
        (lambda x: x[x > 2], [LAUNCH, LAUNCH, READ]),
        (lambda x: x.nonzero(), [LAUNCH, READ]),
        (lambda x: torch.bincount(x.flatten().long()), [LAUNCH, LAUNCH, READ]),
        (lambda x: x[torch.tensor([1, 0])], [LAUNCH, UPLOAD]),
        (lambda x: torch.zeros(2, 3).copy_(x), [READ]),
        (lambda x: x.clone().copy_(NUMBERS), [LAUNCH, UPLOAD]),
        (lambda x: x.t()[1:].unsqueeze(0), []),
        (lambda x: x * torch.tensor(2.0), [LAUNCH]),  # a single number goes along with the launch
        (lambda x: x.to("cuda"), []),
        (lambda x: x.double(), [LAUNCH]),
        (lambda x: torch.zeros_like(x, device="cpu"), [LAUNCH]),
    ],
)
def test_what_a_tensor_of_the_device_asks_for(device: DeviceEvents, what: Any, expected: list[str]) -> None:
    """Launches, reads and copies are told apart, views are none of them, and the numbers are those of the CPU."""
    found = what(on_cuda(NUMBERS, device))
    assert kinds(device) == expected
    found, right = (value.cpu() if isinstance(value, Tensor) else value for value in (found, what(NUMBERS)))
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize(
    "what",
    [
        lambda x: x + NUMBERS,
        lambda x: NUMBERS @ x.t(),
        lambda x: torch.cat([x, NUMBERS]),
        lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
        lambda x: x.gather(1, torch.zeros(2, 1, dtype=torch.long)),
        lambda x: NUMBERS[x.long()[0]],
        lambda x: torch.tensor(1.0).add_(x[0, 0]),
        lambda x: torch.where(NUMBERS > 2, x, 0.0),
    ],
)
def test_tensors_of_two_devices_are_refused(device: DeviceEvents, what: Any) -> None:
    """CUDA takes no tensor of the CPU beside its own, nor the other way round, unless it is a single number."""
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        what(on_cuda(NUMBERS, device))


def test_numpy_does_not_see_the_device(device: DeviceEvents) -> None:
    """As on CUDA, a tensor has to be brought to the CPU first; and gradients do not cross."""
    values = on_cuda(NUMBERS, device)
    with pytest.raises(TypeError, match=r"cuda:0 device type tensor to numpy"):
        values.numpy()
    with pytest.raises(NotImplementedError, match="gradient"):
        values.clone().requires_grad_().cpu()


def test_a_module_on_the_device_learns_what_it_learns_on_the_cpu(device: DeviceEvents) -> None:
    """Moved, its parameters stay the objects that they were; a copy is another module; a fused step is one launch."""
    inputs = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
    moved, kept = copy.deepcopy(plain), copy.deepcopy(plain)
    names = dict(moved.named_parameters())
    moved.to("cuda")
    assert all(value is names[name] and value.device == CUDA for name, value in moved.named_parameters())
    twin = copy.deepcopy(moved)
    for module, values in ((plain, inputs), (moved, inputs.cuda())):
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            module(values).square().mean().backward()
            device.events.clear()
            optimizer.step()
    assert [event.operation for event in device.events] == ["aten._fused_sgd_"]
    for name, value in moved.state_dict().items():
        torch.testing.assert_close(value.cpu(), plain.state_dict()[name])
        torch.testing.assert_close(twin.state_dict()[name].cpu(), kept.state_dict()[name], rtol=0, atol=0)


def test_a_fused_step_wants_one_order_in_memory(device: DeviceEvents) -> None:
    """As CUDA's does: a momentum must lie as its weights do, channels last or not."""
    layer = nn.Conv2d(3, 4, 3).to("cuda", memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, fused=True)
    layer(torch.ones(1, 3, 5, 5).cuda()).sum().backward()
    optimizer.step()
    buffer = optimizer.state[layer.weight]["momentum_buffer"]
    assert buffer.stride() == layer.weight.stride()
    optimizer.state[layer.weight]["momentum_buffer"] = buffer.contiguous()
    with pytest.raises(RuntimeError, match="check_fast_path_restrictions"):
        optimizer.step()


def test_heads_side_by_side_know_where_they_are(device: DeviceEvents) -> None:
    """Within `vmap` tensors say where they lie, and what is made beside them lies there too."""

    def one(row: Tensor) -> Tensor:
        assert row.device == CUDA and row.is_cuda and not row.is_cpu
        return row * torch.arange(3, device=row.device)

    found = torch.func.vmap(one)(on_cuda(NUMBERS, device))
    assert kinds(device) == [LAUNCH, LAUNCH]
    assert torch.equal(found.cpu(), NUMBERS * torch.arange(3))


def test_events_say_where_a_run_is(device: DeviceEvents) -> None:
    """Steps are those of training: a pass without gradients has none, and a step holds the fetch of the next batch."""

    def batches() -> Iterator[Tensor]:
        for _ in range(2):
            yield torch.zeros(1, device="cuda")

    for _ in engine.epoch.show_progress(batches(), "training", 2):
        torch.ones(1, device="cuda")
    assert [event.section for event in device.events] == [OUTSIDE, STEP, STEP, STEP]
    assert (device.steps, device.section) == (2, OUTSIDE)
    device.follow_epochs(lambda: torch.ones(1, device="cuda"))()
    with torch.no_grad():
        assert len(list(engine.epoch.show_progress(batches(), "predicting", 2))) == 2
    assert [event.section for event in device.events[4:]] == [EPOCH, OUTSIDE, OUTSIDE]
    assert (device.steps, device.epochs) == (2, 1)
    assert device.lines(LAUNCH, section=EPOCH) == ["1 x ones (launch, epoch) at no line of the product"]


def test_nothing_is_left_behind() -> None:
    """What the device replaces is put back, also where the block ends with an error, and so are the switches."""
    names = ("is_available", "device_count", "Stream", "current_stream", "get_device_name")
    before = [getattr(torch.cuda, name) for name in names] + [torch.autocast, engine.epoch.show_progress]
    switches = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    with pytest.raises(KeyError), pretended_cuda():
        torch.backends.cudnn.benchmark = not switches[0]
        torch.use_deterministic_algorithms(not switches[1])
        raise KeyError
    after = [getattr(torch.cuda, name) for name in names] + [torch.autocast, engine.epoch.show_progress]
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert switches == (torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled())
    assert type(nn.Linear(2, 2).double().weight) is nn.Parameter
    assert type(torch.zeros(2).to("cpu")) is Tensor

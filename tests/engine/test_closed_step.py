"""Steps by the closed gradient against autograd: weights, the optimiser's state, what keeps the general path."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import engine.closed_step
import engine.epoch
from engine.closed_step import ClosedSteps, HeadBlock, HeadStep, closed_steps
from engine.epoch import EpochOptions, EpochResult, train_epoch
from engine.fit import make_sgd, restore_optimizer
from engine.frozen_features import feature_batches
from engine.many_heads import HeadTrainer, train_heads
from engine.stacked_heads import StackedSGD, stack_heads, stack_losses
from losses import CrossEntropy, Focal, build_loss
from losses.closed_gradient import Terms
from losses.functional import LabelError
from losses.los import torch_target
from methods.plan import Plan, visiting_order
from methods.recipes import RECIPES
from models.heads import Cosine, Linear
from utils.device import Execution

COUNTS = [24, 12, 7, 4, 2]
CLASSES, WIDTH, BATCH, EPOCHS, IMAGES = len(COUNTS), 7, 16, 4, sum(COUNTS)  # the last batch has one image
# Every method whose head is linear and whose loss says its gradient.
METHODS = [
    "ce",
    "label_smooth",
    "los",
    "lort",
    "cb_ce",
    "balanced_softmax",
    "logit_adjust",
    "logit_adjust_los",
    "vs",
    "crt",
    "wb_cb",
    "wb_wd",
    "wb_maxnorm",
    "wb",
]
# Those of other heads, which are differentiated from their logits.
OTHER_HEADS = [
    "ldam",
    "ldam_drw",
    "las",
    "lws",
    "lws_los",
    "disalign",
    "disalign_los",
    "marc",
    "cosine",
    "cosine_los",
    "samn",
    "samn_los",
]
EXECUTION = Execution(torch.device("cpu"), bf16=False, compile=False, reasons=())


class Views:
    """Another view (N, d) of the features every epoch."""

    execution, seed = EXECUTION, 4

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(CLASSES).repeat_interleave(torch.tensor(COUNTS))
        means = 2 * torch.randn(CLASSES, WIDTH, generator=generator, dtype=dtype)
        noise = torch.randn(EPOCHS, IMAGES, WIDTH, generator=generator, dtype=dtype)
        self.views = (means[self.labels] + noise).relu()

    def training_view(self, epoch: int) -> Tensor:
        return self.views[epoch]


def linear(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(WIDTH, CLASSES, dtype=dtype)


def plan(method: str, **changes: Any) -> Plan:
    recipe = RECIPES[method]
    smoothing = 0.5 if recipe.target else None
    own = recipe.own_parameters()
    made = Plan(method, EPOCHS, 0.05, 0.0, smoothing, recipe.sampler, None, recipe.fresh, own, recipe.schedule)
    return replace(made, **changes)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets a 1 for every step by the closed gradient."""
    steps: list[int] = []
    original = ClosedSteps.step

    def counting(self: ClosedSteps, features: Tensor, labels: Tensor) -> list[Terms]:
        terms = original(self, features, labels)
        steps.append(1)
        return terms

    monkeypatch.setattr(ClosedSteps, "step", counting)
    return steps


def without_closed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.epoch, "closed_steps", lambda *_: None)


# Against the general path and against a loop


@pytest.mark.parametrize("method", METHODS + OTHER_HEADS)
def test_a_bank_ends_where_the_general_path_ends(
    method: str, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weight decay, MaxNorm, averaged weights, features in another unit, each method with its sampler."""
    plans = [
        plan(method),
        plan(method, weight_decay=0.1, lr=0.01),
        plan(method, lr=0.2, max_norm=0.3),
        plan(method, ema=0.9),
        plan(method, unit=2.0, weight_decay=0.05),
    ]
    frozen: Any = Views()
    trainer = HeadTrainer(frozen, linear(), frozen.labels, COUNTS, BATCH, momentum=0.9, seed=3, quiet=True)
    results = train_heads(trainer, plans)
    assert len(counted) == 2 * EPOCHS * 4  # two units, two stacks; four steps an epoch
    without_closed_steps(monkeypatch)
    for found, expected in zip(results, train_heads(trainer, plans), strict=True):
        assert len(counted) == 2 * EPOCHS * 4
        for name, value in expected.head.state_dict().items():
            torch.testing.assert_close(found.head.state_dict()[name], value, rtol=1e-5, atol=1e-6)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert (found.accuracy, found.images, found.diverged) == (expected.accuracy, expected.images, None)


@pytest.mark.parametrize("method", ["los", "logit_adjust", "cb_ce"])
def test_a_bank_ends_where_it_ends_whatever_is_computed_at_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All heads at once, two and then one, each alone; losses of the epoch, of two steps, of each step."""
    plans = [plan(method, lr=0.05 * (i + 1), weight_decay=0.02 * i) for i in range(3)]
    frozen: Any = Views()
    trainer = HeadTrainer(frozen, linear(), frozen.labels, COUNTS, BATCH, momentum=0.9, seed=3, quiet=True)
    whole = train_heads(trainer, plans)
    for block, kept in ((2 * CLASSES, 2 * 3 * BATCH), (1, 1)):
        monkeypatch.setattr(engine.closed_step, "BLOCK", block)
        monkeypatch.setattr(engine.closed_step, "KEPT", kept)
        for found, expected in zip(train_heads(trainer, plans), whole, strict=True):
            torch.testing.assert_close(found.head.weight, expected.head.weight, rtol=1e-5, atol=1e-6)
            assert found.loss == pytest.approx(expected.loss, rel=1e-6)
            assert found.accuracy == expected.accuracy


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("method", METHODS)
def test_in_double_precision_it_is_a_loop_with_pytorchs_optimiser(
    method: str, decay: float, momentum: float, counted: list[int]
) -> None:
    own, views = plan(method), Views(torch.float64)
    head, loss = Linear(linear(torch.float64)), build_losses_of(own)
    twin = copy.deepcopy(head)
    optimizer = make_sgd(head, momentum, decay, nesterov=False)
    usual = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=momentum, weight_decay=decay)
    for epoch in range(EPOCHS):
        for group in (*optimizer.param_groups, *usual.param_groups):
            group["lr"] = 0.1 / (epoch + 1)
        order = visiting_order(own, views.labels, CLASSES, 0, epoch)
        batches = list(feature_batches(views.training_view(epoch), views.labels, order, BATCH))
        total = 0.0
        for features, labels in batches:
            usual.zero_grad()
            value = loss(twin(features), labels)
            value.backward()
            usual.step()
            total += float(value.detach()) * len(labels)
        result = train_epoch(head, batches, len(batches), optimizer, loss, EXECUTION)
        assert float(result.loss) == pytest.approx(total / IMAGES, rel=1e-10)
    assert len(counted) == EPOCHS * 4
    for found, expected in zip(head.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def build_losses_of(own: Plan) -> nn.Module:
    """The loss of a plan."""
    recipe = own.recipe
    return build_loss(recipe.loss, COUNTS, own.target(CLASSES), **own.parameters)


def epochs_of(
    head: nn.Module, optimizer: torch.optim.Optimizer, loss: nn.Module, epochs: Sequence[int]
) -> list[EpochResult]:
    views, results = Views(), []
    for epoch in epochs:
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        order = visiting_order(plan("ce"), views.labels, CLASSES, 0, epoch)
        batches = feature_batches(views.training_view(epoch), views.labels, order, BATCH)
        results.append(train_epoch(head, batches, 4, optimizer, loss, EXECUTION))
    return results


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_run_goes_on_from_its_saved_state_as_if_never_stopped(average: float | None, counted: list[int]) -> None:
    loss = CrossEntropy(torch_target(0.9, CLASSES))
    whole, first = Linear(linear()), Linear(linear())
    epochs_of(whole, make_sgd(whole, 0.9, 1e-3, False, average), loss, range(4))
    optimizer = make_sgd(first, 0.9, 1e-3, False, average)
    epochs_of(first, optimizer, loss, range(2))
    second = copy.deepcopy(first)
    again = make_sgd(second, 0.9, 1e-3, False, average)
    restore_optimizer(again, copy.deepcopy(optimizer.state_dict()))
    epochs_of(second, again, loss, range(2, 4))
    assert len(counted) == 8 * 4
    assert torch.equal(second.weight, whole.weight) and torch.equal(second.bias, whole.bias)


def test_either_path_goes_on_where_the_other_stopped(monkeypatch: pytest.MonkeyPatch, counted: list[int]) -> None:
    loss = CrossEntropy(torch_target(0.9, CLASSES))
    heads = [Linear(linear()) for _ in range(4)]
    for number, head in enumerate(heads):
        optimizer = make_sgd(head, 0.9, 1e-3, False)
        for epoch in range(2):
            with monkeypatch.context() as patched:
                if number >> epoch & 1:
                    without_closed_steps(patched)
                epochs_of(head, optimizer, loss, [epoch])
        names = set(optimizer.state[head.weight])
        assert names == {"momentum_buffer"}
    assert len(counted) == 4 * 4
    for head in heads[1:]:
        torch.testing.assert_close(head.weight, heads[0].weight, rtol=1e-5, atol=1e-6)


# What keeps the general path


def test_few_steps_wait_for_their_losses() -> None:
    """Small tensors that are kept between the features of batches keep their memory from being used again."""
    head = linear()
    steps = closed_steps(head, make_sgd(head, 0.9, 0.0, False), CrossEntropy(torch_target(0.0, head.out_features)))
    assert steps is not None
    count = 2 * engine.closed_step.STEPS_KEPT + 3
    for number in range(count):
        features = torch.full((2, head.in_features), float(number % 3))
        steps.run(pytest.fail, features, torch.tensor([0, 1]), None)  # type: ignore[arg-type]
        assert len(steps._kept) <= engine.closed_step.STEPS_KEPT
    assert steps.totals()[0].shape == (count,)


def test_of_large_batches_fewer_steps_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    head = linear()
    steps = closed_steps(head, make_sgd(head, 0.9, 0.0, False), CrossEntropy(torch_target(0.0, head.out_features)))
    features, labels = torch.ones(4, head.in_features), torch.tensor([0, 1, 2, 0])
    monkeypatch.setattr(engine.closed_step, "BYTES_PASSED", 3 * features.nbytes)
    assert steps is not None
    waiting = []
    for _ in range(7):
        steps.run(pytest.fail, features, labels, None)  # type: ignore[arg-type]
        waiting.append(len(steps._kept))
    assert waiting == [1, 2, 3, 1, 2, 3, 1]
    monkeypatch.setattr(engine.closed_step, "BYTES_PASSED", 1)  # of a batch beyond it each step is computed at once
    steps.run(pytest.fail, features[:2], labels[:2], None)  # type: ignore[arg-type]
    steps.run(pytest.fail, features[:2], labels[:2], None)  # type: ignore[arg-type]
    assert len(steps._kept) == 1 and steps.totals()[0].shape == (9,)


def test_what_is_no_head_or_not_closed_keeps_the_general_path() -> None:
    head, loss = Linear(linear()), CrossEntropy()
    assert closed_steps(head, make_sgd(head, 0.9, 0.0, False), Focal()) is None
    assert closed_steps(head, make_sgd(head, 0.9, 0.0, False), F.cross_entropy) is None
    other = nn.Sequential(Linear(linear()))
    assert closed_steps(other, make_sgd(other, 0.9, 0.0, False), loss) is None
    head.requires_grad_(False)
    assert closed_steps(head, make_sgd(head, 0.9, 0.0, False), loss) is None


def test_what_is_not_linear_or_has_another_optimiser_goes_through_autograd() -> None:
    head, loss = Linear(linear()), CrossEntropy()

    def kinds(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[type]:
        steps = closed_steps(module, optimizer, loss)
        assert steps is not None
        return [type(block) for block in steps.blocks]

    assert kinds(head, make_sgd(head, 0.9, 0.0, False)) == [HeadBlock]
    assert kinds(head, make_sgd(head, 0.9, 0.0, True)) == [HeadStep]
    assert kinds(head, torch.optim.Adam(head.parameters())) == [HeadStep]
    for other in (Cosine(linear()), nn.Linear(WIDTH, CLASSES, bias=False)):
        assert kinds(other, make_sgd(other, 0.9, 0.0, False)) == [HeadStep]
    head.bias.requires_grad_(False)
    assert kinds(head, make_sgd(head, 0.9, 0.0, False)) == [HeadStep]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("average", [None, 0.9])
def test_a_cosine_head_ends_where_the_general_path_ends(
    nesterov: bool, average: float | None, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = CrossEntropy(torch_target(0.9, CLASSES))
    heads = [Cosine(linear()) for _ in range(2)]
    found = epochs_of(heads[0], make_sgd(heads[0], 0.9, 1e-3, nesterov, average), loss, range(3))
    assert len(counted) == 3 * 4
    without_closed_steps(monkeypatch)
    expected = epochs_of(heads[1], make_sgd(heads[1], 0.9, 1e-3, nesterov, average), loss, range(3))
    assert len(counted) == 3 * 4
    torch.testing.assert_close(heads[0].weight, heads[1].weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(heads[0].scale, heads[1].scale, rtol=1e-5, atol=1e-6)
    for one, other in zip(found, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5) and one.accuracy == other.accuracy


@pytest.mark.parametrize(
    "options", [EpochOptions(mixup=torch.full((1,), 0.5)), EpochOptions(max_norm=1e-3), EpochOptions(batch_sizes=[4])]
)
def test_what_is_not_usual_keeps_the_general_path(options: EpochOptions, counted: list[int]) -> None:
    head = Linear(linear())
    optimizer = make_sgd(head, 0.9, 0.0, False)
    train_epoch(head, [(torch.ones(4, WIDTH), torch.arange(4))], 1, optimizer, CrossEntropy(), EXECUTION, options)
    bf16 = replace(EXECUTION, bf16=True)
    train_epoch(head, [(torch.ones(4, WIDTH), torch.arange(4))], 1, optimizer, CrossEntropy(), bf16)
    assert not counted


def test_labels_follow_the_rule_of_all_losses(counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch with a sample that is left out takes the general step; a label that is no class is named."""
    batches = [(torch.ones(4, WIDTH), torch.tensor([0, 1, -100, 2])), (torch.ones(4, WIDTH), torch.arange(4))]
    heads = [Linear(linear()) for _ in range(2)]
    train_epoch(heads[0], batches, 2, make_sgd(heads[0], 0.9, 0.0, False), CrossEntropy(), EXECUTION)
    assert len(counted) == 1
    optimizer = make_sgd(heads[1], 0.9, 0.0, False)
    with pytest.raises(LabelError, match="label 5 is no class"):
        train_epoch(heads[1], [(torch.ones(1, WIDTH), torch.tensor([5]))], 1, optimizer, CrossEntropy(), EXECUTION)
    without_closed_steps(monkeypatch)
    train_epoch(heads[1], batches, 2, optimizer, CrossEntropy(), EXECUTION)
    torch.testing.assert_close(heads[0].weight, heads[1].weight)


# The general path, which is the oracle


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums of many threads have another order for a stack than for one head."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_stacked_heads_of_the_general_path_are_a_loop_bit_for_bit() -> None:
    """At the size of CIFAR-100's heads: of a few classes and features a product of a stack sums in another order."""
    classes, width, images = 100, 64, 2 * 64 + 7  # the last batch is smaller
    generator = torch.Generator().manual_seed(0)
    start, loss = nn.Linear(width, classes), CrossEntropy(torch_target(0.9, classes))
    features, labels = torch.randn(images, width, generator=generator), torch.arange(images) % classes
    batches = list(zip(features.split(64), labels.split(64), strict=True))
    rates = torch.tensor([0.1, 0.02, 0.4])
    stacked, losses = stack_heads([Linear(start) for _ in rates]), stack_losses([loss for _ in rates])
    together = StackedSGD(list(stacked.parameters()), 0.9, torch.zeros(3))
    together.lr = rates
    singles = [Linear(start) for _ in rates]
    optimizers = [
        torch.optim.SGD(head.parameters(), float(rate), 0.9) for head, rate in zip(singles, rates, strict=True)
    ]
    for features, labels in batches:
        together.zero_grad()
        losses(stacked(features), labels).sum().backward()
        together.step()
        for head, optimizer in zip(singles, optimizers, strict=True):
            optimizer.zero_grad()
            loss(head(features), labels).backward()
            optimizer.step()
    for i, head in enumerate(singles):
        assert torch.equal(stacked.get_parameter("weight")[i], head.weight)
        assert torch.equal(stacked.get_parameter("bias")[i], head.bias)

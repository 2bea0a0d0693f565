"""One epoch of training and one pass of prediction against loops written out by hand; features of a frozen backbone."""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from torch import Tensor, nn

from datasets.device_images import DeviceImages
from datasets.long_tail import Augmentation, Split
from engine.epoch import EpochOptions, mixup_shares, predict, train_epoch
from engine.frozen_features import FrozenFeatures, batch_statistics_features, feature_batches
from engine.stacked_heads import StackedSGD, stack_heads, stack_losses
from losses.los import CrossEntropy
from models import build_model
from models.heads import Linear
from models.resnet import ResNet
from utils.device import Execution
from utils.hashing import epoch_order
from utils.schedules import SCHEDULES, cosine_lr, warmup_cosine_lr

CLASSES = 5
AUGMENTATION = Augmentation(padding=2, mirror=True, mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1))
Batches = list[tuple[Tensor, Tensor]]


def device_images(count: int = 22, seed: int = 0) -> DeviceImages:
    images = np.random.RandomState(seed).randint(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    split = Split(images, np.arange(count) % CLASSES, np.arange(count) + 1000 * seed)
    return DeviceImages(split, AUGMENTATION, torch.device("cpu"))


def small_network() -> ResNet:
    """A network whose running statistics are not the initial ones."""
    torch.manual_seed(0)
    model = build_model("resnet8", CLASSES, width=4).train()
    with torch.no_grad():
        model(torch.randn(16, 3, 8, 8))
    return model


def sgd(module: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, weight_decay=1e-2)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_bitwise(module: nn.Module, state: dict[str, Tensor], keys: list[str] | None = None) -> None:
    for name in state if keys is None else keys:
        assert torch.equal(module.state_dict()[name], state[name]), name


# Training


def test_epoch_equals_a_plain_loop(cpu: Execution) -> None:
    images, model = device_images(), small_network()
    twin = copy.deepcopy(model)
    batches = list(images.training_batches(8, seed=0, epoch=0))
    assert [len(labels) for _, labels in batches] == [8, 8, 6]

    losses, correct = [], 0
    optimizer = sgd(twin)
    for inputs, labels in batches:
        logits = twin(inputs)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += [loss.item()] * len(labels)
        correct += int((logits.argmax(dim=1) == labels).sum())

    result = train_epoch(model, batches, 3, sgd(model), F.cross_entropy, cpu)
    assert_bitwise(model, twin.state_dict())
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-6)  # a mean over images: the last batch is smaller
    assert result.accuracy == pytest.approx(100 * correct / 22)
    assert result.images == 22
    assert result.diverged_at == 0  # at no step


def test_mixup_equals_a_plain_loop(cpu: Execution) -> None:
    images, model = device_images(), small_network()
    twin = copy.deepcopy(model)
    batches = list(images.training_batches(8, seed=0, epoch=0))
    shares = torch.tensor([0.3, 0.9, 0.6])

    losses, correct = [], 0
    optimizer = sgd(twin)
    for share, (inputs, labels) in zip(shares.tolist(), batches, strict=True):
        count = len(labels)
        partner = [(i - 1) % count for i in range(count)]
        mixed = torch.stack([share * inputs[i] + (1 - share) * inputs[partner[i]] for i in range(count)])
        wanted = torch.stack(
            [
                share * F.one_hot(labels[i], CLASSES) + (1 - share) * F.one_hot(labels[partner[i]], CLASSES)
                for i in range(count)
            ]
        )
        logits = twin(mixed)
        loss = F.cross_entropy(logits, wanted)  # against the mixed label
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += [loss.item()] * count
        correct += int((logits.argmax(dim=1) == labels).sum())

    result = train_epoch(model, batches, 3, sgd(model), F.cross_entropy, cpu, EpochOptions(mixup=shares))
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.accuracy == pytest.approx(100 * correct / 22)


def test_mixup_with_share_one_is_plain_training(cpu: Execution) -> None:
    batches = list(device_images().training_batches(8, seed=0, epoch=0))
    plain, mixed = small_network(), small_network()
    train_epoch(plain, batches, 3, sgd(plain), F.cross_entropy, cpu)
    train_epoch(mixed, batches, 3, sgd(mixed), F.cross_entropy, cpu, EpochOptions(mixup=torch.ones(3)))
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(mixed.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_shares_are_beta_distributed(alpha: float) -> None:
    shares = mixup_shares(alpha, 2000, seed=0, epoch=0)
    assert shares.dtype == torch.float32 and shares.shape == (2000,)
    assert kstest(shares.numpy().astype(float), "beta", args=(alpha, alpha)).pvalue > 1e-3
    assert torch.equal(mixup_shares(alpha, 2000, seed=0, epoch=0), shares)
    for other in (mixup_shares(alpha, 2000, seed=0, epoch=1), mixup_shares(alpha, 2000, seed=1, epoch=0)):
        assert (other == shares).float().mean() < 0.2


class Failing:
    """Cross-entropy that spoils the value, or only the gradient, at the steps named (from 1)."""

    def __init__(self, spoil: Callable[[Tensor, Tensor], Tensor], steps: set[int]) -> None:
        self.spoil, self.steps, self.step = spoil, steps, 0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.step += 1
        loss = F.cross_entropy(logits, labels)
        return self.spoil(loss, logits) if self.step in self.steps else loss


def nan_loss(loss: Tensor, logits: Tensor) -> Tensor:
    return loss * torch.nan


def infinite_loss(loss: Tensor, logits: Tensor) -> Tensor:
    return loss * torch.inf


def nan_gradient(loss: Tensor, logits: Tensor) -> Tensor:
    """The same loss with a gradient that is not a number: the root's slope at zero times zero."""
    return loss + (0 * logits).sum().sqrt()


@pytest.mark.parametrize(
    ("spoil", "steps", "expected"),
    [
        (nan_loss, {1}, 1),
        (nan_loss, {3}, 3),
        (nan_loss, {4}, 4),
        (infinite_loss, {2, 4}, 2),
        (nan_gradient, {2}, 3),  # the update of step 2 is bad, step 3 is the first whose loss shows it
        (nan_gradient, {4}, 4),  # the last update: no loss of this epoch shows it
        (nan_loss, set(), 0),
    ],
)
def test_first_bad_step(
    cpu: Execution, spoil: Callable[[Tensor, Tensor], Tensor], steps: set[int], expected: int
) -> None:
    model = nn.Linear(3, CLASSES)
    batches = [(torch.randn(4, 3), torch.arange(4)) for _ in range(4)]
    result = train_epoch(model, batches, 4, sgd(model), Failing(spoil, steps), cpu)
    assert result.diverged_at == expected


def test_epoch_reports_the_step_of_a_real_divergence(cpu: Execution) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, CLASSES)
    batches = [(torch.randn(4, 3), torch.arange(4)) for _ in range(50)]
    result = train_epoch(model, batches, 50, sgd(model, lr=1e4), F.cross_entropy, cpu)
    assert 1 < result.diverged_at < 50


# Prediction


def test_a_compiled_backbone_trains_and_predicts_as_before(cpu: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, but not translated to machine code, which would take half a minute: the arithmetic is then the same."""
    graphs = []

    def keep_as_is(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=keep_as_is))
    images = device_images()
    trained = {}
    for compiled in (False, True):
        execution = dataclasses.replace(cpu, compile=compiled)
        model = execution.place(small_network())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = predict(model.eval().features, images, execution, batch_size=16)
        batches = images.training_batches(8, 0, 0)  # the last one is smaller: a shape of its own
        result = train_epoch(model.train(), batches, 3, optimizer, CrossEntropy((1.0, 0.0)), execution)
        after = predict(model.eval().features, images, execution, batch_size=16)
        assert not torch.allclose(before, after)
        trained[compiled] = (model.state_dict(), result.loss, before, after)
    plain, traced = trained[False], trained[True]
    assert list(plain[0]) == list(traced[0])
    for left, right in zip([*plain[0].values(), *plain[2:]], [*traced[0].values(), *traced[2:]], strict=True):
        torch.testing.assert_close(left, right)
    assert plain[1] == pytest.approx(traced[1])
    assert len(graphs) == 3  # training in two sizes of batch, prediction in one


def test_predict_keeps_the_order_of_the_rows(cpu: Execution) -> None:
    values = np.array([9, 3, 250, 0, 77, 128, 31], dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (7, 8, 8, 3)).copy()
    ramp = np.arange(8, dtype=np.uint8)
    images[:, :, :, 0] = ramp  # the red plane grows from left to right
    split = Split(images, np.zeros(7, dtype=np.int64), np.arange(7))
    plain = Augmentation(padding=1, mirror=True, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    device = DeviceImages(split, plain, torch.device("cpu"))
    for batch_size in (1, 3, 7, 500):
        blue = predict(lambda pixels: pixels[:, 2, 4, 4], device, cpu, batch_size=batch_size)
        torch.testing.assert_close(blue, torch.from_numpy(values).float() / 255)
    left_to_right = predict(lambda pixels: pixels[:, 0, 0], device, cpu)
    torch.testing.assert_close(left_to_right, torch.from_numpy(ramp).float().expand(7, 8) / 255)
    mirrored = predict(lambda pixels: pixels[:, 0, 0], device, cpu, mirrored=True)
    torch.testing.assert_close(mirrored, left_to_right.flip(1))


def test_predict_does_not_depend_on_the_batch_size(cpu: Execution) -> None:
    images, model = device_images(), small_network().eval()
    whole = predict(model, images, cpu)
    assert whole.shape == (22, CLASSES) and not whole.requires_grad
    torch.testing.assert_close(predict(model, images, cpu, batch_size=5), whole, rtol=1e-4, atol=1e-5)
    view = predict(model, images, cpu, view=(3, 4), batch_size=5)
    with torch.no_grad():
        expected = model(images.augmented(torch.arange(22), seed=3, epoch=4))
    torch.testing.assert_close(view, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(view, whole, atol=1e-2)


# Frozen features


def frozen(model: ResNet, cpu: Execution, views: str, seed: int = 7) -> FrozenFeatures:
    return FrozenFeatures(model, {"train": device_images(), "test": device_images(9, seed=1)}, cpu, seed, views)


def count_passes(model: ResNet) -> list[int]:
    """A list that grows by one for each batch that goes through the backbone."""
    passes: list[int] = []
    model.conv1.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    return passes


def features_of_epoch(model: ResNet, epoch: int, seed: int = 7) -> Tensor:
    with torch.no_grad():
        return model.eval().features(device_images().augmented(torch.arange(22), seed, epoch))


def test_training_on_frozen_features_leaves_the_backbone_untouched(cpu: Execution) -> None:
    model = small_network()
    before = snapshot(model)
    features = frozen(model, cpu, views="2")
    labels = torch.arange(22) % CLASSES
    optimizer = sgd(model.fc)
    for epoch in range(3):
        batches = feature_batches(features.training_view(epoch), labels, epoch_order(22, seed=0, epoch=epoch), 8)
        train_epoch(model.fc, batches, 3, optimizer, F.cross_entropy, cpu)
        features.plain("test")
        features.plain("test", mirrored=True)
    backbone = [name for name in before if not name.startswith("fc.")]
    assert any(name.endswith("num_batches_tracked") for name in backbone)
    assert_bitwise(model, before, backbone)
    assert not torch.equal(model.fc.weight, before["fc.weight"])
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("fc."))


def test_head_trained_on_features_is_the_head_trained_behind_the_backbone(cpu: Execution) -> None:
    model = small_network()
    twin = copy.deepcopy(model).eval()
    optimizer = sgd(twin.fc)
    for epoch in range(2):
        for pixels, labels in device_images().training_batches(8, seed=7, epoch=epoch):
            optimizer.zero_grad()
            F.cross_entropy(twin(pixels), labels).backward()
            optimizer.step()
    features, optimizer = frozen(model, cpu, views="fresh"), sgd(model.fc)
    for epoch in range(2):
        order = epoch_order(22, seed=7, epoch=epoch)
        batches = feature_batches(features.training_view(epoch), device_images().labels, order, 8)
        train_epoch(model.fc, batches, 3, optimizer, F.cross_entropy, cpu)
    torch.testing.assert_close(model.fc.weight, twin.fc.weight, rtol=1e-4, atol=1e-5)


def test_view_is_what_its_epoch_would_augment(cpu: Execution) -> None:
    model = small_network()
    features = frozen(model, cpu, views="2")
    views = [features.training_view(epoch) for epoch in range(5)]
    for epoch, view in enumerate(views):
        torch.testing.assert_close(view, features_of_epoch(model, epoch % 2), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(views[0], views[1], atol=1e-2)


def test_views_are_computed_once(cpu: Execution) -> None:
    model = small_network()
    features = frozen(model, cpu, views="2")
    passes = count_passes(model)
    for epoch in range(6):
        features.training_view(epoch)
    assert passes == [22, 22]
    for _ in range(3):
        features.plain("test")
        features.plain("test", mirrored=True)
    assert passes == [22, 22, 9, 9]


def test_plain_features_serve_every_epoch(cpu: Execution) -> None:
    model = small_network()
    features = frozen(model, cpu, views="plain")
    passes = count_passes(model)
    views = [features.training_view(epoch) for epoch in range(3)]
    assert passes == [22]
    with torch.no_grad():
        expected = model.features(device_images().plain(slice(None)))
    for view in views:
        torch.testing.assert_close(view, expected, rtol=1e-4, atol=1e-5)


def test_fresh_views_serve_one_epoch_each(cpu: Execution) -> None:
    model = small_network()
    features = frozen(model, cpu, views="fresh")
    passes = count_passes(model)
    for epoch in (0, 1, 2, 1):
        torch.testing.assert_close(features.training_view(epoch), features_of_epoch(model, epoch), rtol=1e-4, atol=1e-5)
    assert len(passes) == 8  # four of ours, four of the check: nothing was kept


def test_plain_features_of_each_split_and_way(cpu: Execution) -> None:
    model = small_network().eval()
    features = frozen(model, cpu, views="1")
    for split, images in (("train", device_images()), ("test", device_images(9, seed=1))):
        for mirrored in (False, True):
            with torch.no_grad():
                expected = model.features(images.plain(slice(None), mirrored))
            torch.testing.assert_close(features.plain(split, mirrored), expected, rtol=1e-4, atol=1e-5)


def test_feature_batches_come_in_the_order_of_images() -> None:
    images = device_images()
    labels = torch.arange(22)
    features = 10.0 * labels[:, None].expand(22, 3)
    batches = list(feature_batches(features, labels, epoch_order(22, seed=4, epoch=6), 8))
    by_image = [part.tolist() for _, part in images.training_batches(8, seed=4, epoch=6)]
    assert [(part % CLASSES).tolist() for _, part in batches] == by_image
    assert [len(part) for _, part in batches] == [8, 8, 6]
    for values, part in batches:
        assert torch.equal(values, features[part])


# Batch norm in train mode, as released


def test_batch_statistics_move_and_nothing_else_does(cpu: Execution) -> None:
    images, model = device_images(), small_network().eval()
    before = snapshot(model)
    twin = copy.deepcopy(model).train()
    with torch.no_grad():
        expected = [twin.features(pixels) for pixels, _ in images.training_batches(8, seed=2, epoch=1)]
    order = epoch_order(22, seed=2, epoch=1)
    batches = list(batch_statistics_features(model, images, cpu, order, 8, seed=2, epoch=1))
    for (features, _), theirs in zip(batches, expected, strict=True):
        assert torch.equal(features, theirs) and not features.requires_grad
    assert_bitwise(model, twin.state_dict())
    assert_bitwise(model, before, [name for name, _ in model.named_parameters()])
    moved = [name for name in before if name.endswith("running_mean")]
    assert moved and all(not torch.equal(model.state_dict()[name], before[name]) for name in moved)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_classifier_gradient_is_that_of_full_backpropagation(cpu: Execution) -> None:
    images, model = device_images(), small_network()
    twin = copy.deepcopy(model).train()
    ours = batch_statistics_features(model, images, cpu, epoch_order(22, seed=2, epoch=1), 8, seed=2, epoch=1)
    theirs = images.training_batches(8, seed=2, epoch=1)
    for (features, labels), (pixels, same_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(labels, same_labels)
        for module in (model, twin):
            module.zero_grad(set_to_none=True)
        F.cross_entropy(model.fc(features), labels).backward()
        F.cross_entropy(twin(pixels), labels).backward()
        torch.testing.assert_close(model.fc.weight.grad, twin.fc.weight.grad, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(model.fc.bias.grad, twin.fc.bias.grad, rtol=1e-5, atol=1e-7)
        assert twin.conv1.weight.grad is not None and model.conv1.weight.grad is None
        assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("fc."))


# Schedules


def test_cosine_starts_at_the_base_and_stretches_with_the_epochs() -> None:
    assert cosine_lr(0.1, 0, 200) == 0.1
    assert cosine_lr(0.1, 100, 200) == pytest.approx(0.05)
    assert cosine_lr(0.1, 199, 200) == pytest.approx(0.05 * (1 + math.cos(math.pi * 199 / 200)))
    assert [cosine_lr(1.0, 2 * e, 40) for e in range(20)] == pytest.approx([cosine_lr(1.0, e, 20) for e in range(20)])


def test_warmup_cosine_is_that_of_galas_code() -> None:
    """Epoch 1: 0.05; epoch e >= 2: 0.05 (1 + cos(pi (e - 2) / 198)); epoch 200: 0."""
    found = [warmup_cosine_lr(0.1, epoch, 200) for epoch in range(200)]
    expected = [0.05, *(0.05 * (1 + math.cos(math.pi * (e - 2) / 198)) for e in range(2, 201))]
    assert found == pytest.approx(expected, abs=1e-15)
    assert found[0] == 0.05 and found[1] == 0.1 and found[199] == 0.0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("epochs", [1, 2, 3, 20])
def test_a_schedule_is_finite_at_any_length(schedule: str, epochs: int) -> None:
    rates = [SCHEDULES[schedule](0.3, epoch, epochs) for epoch in range(epochs)]
    assert all(0 <= rate <= 0.3 for rate in rates) and rates[0] > 0
    assert rates[schedule == "warmup_cosine" :] == sorted(rates[schedule == "warmup_cosine" :], reverse=True)


# Banks


def test_an_epoch_of_a_bank_counts_for_each_head(cpu: Execution) -> None:
    torch.manual_seed(0)
    heads = [Linear(nn.Linear(3, CLASSES)) for _ in range(3)]
    batches = [(torch.randn(4, 3), torch.arange(4)) for _ in range(5)] + [(torch.randn(2, 3), torch.arange(2))]
    singles = [train_epoch(copy.deepcopy(head), batches, 6, sgd(head, lr=0.0), CrossEntropy(), cpu) for head in heads]
    stacked = stack_heads(heads)
    optimizer = StackedSGD(list(stacked.parameters()), 0.9, torch.zeros(3))
    losses = stack_losses([CrossEntropy() for _ in heads])
    result = train_epoch(stacked, batches, 6, optimizer, losses, cpu)
    assert result.loss.shape == result.accuracy.shape == result.diverged_at.shape == (3,)
    assert result.loss == pytest.approx([float(single.loss) for single in singles], rel=1e-5)
    assert result.accuracy == pytest.approx([float(single.accuracy) for single in singles])
    assert result.images == singles[0].images == 22 and not result.diverged_at.any()
    assert singles[0].loss.shape == singles[0].diverged_at.shape == ()


def test_the_first_bad_step_of_each_head_of_a_bank(cpu: Execution) -> None:
    """One bad loss, one update that only the last step makes, one head without either."""
    torch.manual_seed(0)
    stacked = stack_heads([Linear(nn.Linear(3, CLASSES)) for _ in range(3)])
    factors = torch.ones(4, 3)
    factors[1, 0] = torch.nan
    step = iter(range(4))

    def losses(logits: Tensor, labels: Tensor) -> Tensor:
        number = next(step)
        each = torch.stack([F.cross_entropy(one, labels) for one in logits]) * factors[number]
        spoilt = (0 * logits[1]).sum().sqrt() if number == 3 else 0.0
        return each + torch.tensor([0.0, 1.0, 0.0]) * spoilt

    batches = [(torch.randn(4, 3), torch.arange(4)) for _ in range(4)]
    optimizer = StackedSGD(list(stacked.parameters()), 0.9, torch.zeros(3))
    optimizer.lr = torch.full((3,), 0.1)
    result = train_epoch(stacked, batches, 4, optimizer, losses, cpu)
    assert result.diverged_at.tolist() == [2, 4, 0]
    assert np.isfinite(result.loss[2]) and not np.isfinite(result.loss[0])

"""The rule for labels that all losses share: that of `torch.nn.functional.cross_entropy`."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.stacked_heads import stack_losses
from losses import LOSSES, build_loss, loss_parameters
from losses.functional import IGNORED, LabelError
from losses.los import torch_target
from tests.formulas import value_and_gradient
from utils.errors import UserError
from utils.parameters import HYPERPARAMETERS, Range

COUNTS = [60, 20, 7, 3, 1]
CLASSES, BATCH = len(COUNTS), 9
SOFT = ["ce", "logit_adjust", "balanced_softmax", "vs"]


def forms(name: str) -> list[dict[str, str]]:
    """The defaults of a loss, and each other word that one of its parameters can be."""
    others = [
        {own: word}
        for own, default in loss_parameters(name).items()
        if not isinstance(HYPERPARAMETERS[own].values, Range)
        for word in HYPERPARAMETERS[own].values
        if word != default
    ]
    return [{}, *others]


FORMS = [(name, parameters) for name in LOSSES for parameters in forms(name)]
every_form = pytest.mark.parametrize(("name", "parameters"), FORMS)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.empty(BATCH, CLASSES, dtype=torch.float64).normal_(0, 3, generator=generator)
    return logits, torch.randint(CLASSES, (BATCH,), generator=generator)


@pytest.fixture(autouse=True)
def same_clouds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the clouds of GCL, which are drawn, the same for an image wherever it stands."""

    def drawn(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.linspace(-2, 2, shape[-1], dtype=dtype, device=device).expand(shape)

    monkeypatch.setattr("losses.gcl.torch.randn", drawn)


def trained(name: str, parameters: dict[str, str]) -> nn.Module:
    """The loss, where GALA has gathered a step."""
    loss = build_loss(name, COUNTS, **parameters)
    loss(*batch(1))
    return loss


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@every_form
@pytest.mark.parametrize("left_out", [[0], [8], [1, 2, 5], list(range(1, 9))])
def test_ignored_samples_change_nothing(name: str, parameters: dict[str, str], left_out: list[int]) -> None:
    """Value, gradient and what the loss gathers are those of the other samples alone."""
    logits, labels = batch()
    labels[left_out] = IGNORED
    kept = labels != IGNORED
    whole, subset = trained(name, parameters), trained(name, parameters)
    value, gradient = value_and_gradient(whole, logits, labels)
    expected, of_kept = value_and_gradient(subset, logits[kept], labels[kept])
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient[kept], of_kept, rtol=1e-10, atol=1e-14)
    assert not gradient[~kept].any()
    for key, gathered in whole.state_dict().items():
        torch.testing.assert_close(gathered, subset.state_dict()[key])


@every_form
def test_the_mean_of_no_sample_is_nan_and_moves_nothing(name: str, parameters: dict[str, str]) -> None:
    loss, labels = trained(name, parameters), torch.full((BATCH,), IGNORED)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    value, gradient = value_and_gradient(loss, batch()[0], labels)
    assert math.isnan(value) and math.isnan(F.cross_entropy(batch()[0], labels))
    assert not gradient.any()
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("label", [CLASSES, CLASSES + 1, -1, -2, -99, -101, 10**9, -(10**9)])
def test_a_label_that_is_no_class_is_refused_by_name(name: str, label: int) -> None:
    logits, labels = batch()
    labels[4], labels[5] = label, IGNORED
    with pytest.raises(IndexError):
        F.cross_entropy(logits, labels)
    loss = trained(name, {})
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    with pytest.raises(LabelError, match=rf"label {label} is no class: .* 0 \.\. {CLASSES - 1}\b"):
        loss(logits, labels)
    assert issubclass(LabelError, IndexError) and issubclass(LabelError, UserError)
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())


@pytest.mark.parametrize("name", LOSSES)
def test_stacked_losses_follow_the_rule(name: str) -> None:
    losses = [build_loss(name, COUNTS) for _ in range(2)]
    logits, labels = batch()
    labels[[0, 3]] = IGNORED
    stacked = stack_losses(losses)
    leaf = torch.stack([logits, 2 * logits]).requires_grad_()
    values = stacked(leaf, labels)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    for index, alone in enumerate(losses):
        value, of_alone = value_and_gradient(alone, leaf[index].detach(), labels)
        torch.testing.assert_close(values[index].detach(), value)
        torch.testing.assert_close(gradient[index], of_alone)
    assert not gradient[:, [0, 3]].any()
    labels[4] = CLASSES
    assert f"label {CLASSES} is no class" in refusal(lambda: stacked(leaf, labels))


@pytest.mark.parametrize("name", LOSSES)
def test_labels_of_their_own_for_each_stacked_loss_cannot_pass_either(name: str) -> None:
    """`vmap` gives such labels no value that could be looked at: the indexing refuses them, in other words."""
    loss = build_loss(name, COUNTS)
    labels = torch.stack([batch()[1], batch(1)[1]])
    labels[1, 4] = CLASSES
    every = torch.func.vmap(loss, in_dims=(None, 0), randomness="same")
    with pytest.raises((RuntimeError, IndexError)):
        every(batch()[0], labels)


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_probabilities_are_taken_as_pytorch_takes_them(name: str, smoothing: float) -> None:
    logits, _ = batch()
    wanted = torch.rand(BATCH, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = wanted / wanted.sum(dim=1, keepdim=True)
    own = {} if name == "vs" else {"target": torch_target(smoothing, CLASSES)}
    loss = build_loss(name, COUNTS, **own)
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    adjusted = {"ce": logits, "vs": (counts / counts.max()) ** 0.05 * logits + 0.75 * counts.log()}
    expected = F.cross_entropy(
        adjusted.get(name, logits + counts.log()), wanted, label_smoothing=0.0 if name == "vs" else smoothing
    )
    torch.testing.assert_close(loss(logits, wanted), expected)
    one_hot = F.one_hot(batch()[1], CLASSES).double()
    torch.testing.assert_close(loss(logits, one_hot), loss(logits, batch()[1]))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in SOFT])
def test_probabilities_are_refused_where_they_have_no_meaning(name: str) -> None:
    logits, _ = batch()
    message = refusal(lambda: build_loss(name, COUNTS)(logits, logits.softmax(dim=1)))
    assert "takes labels (B,)" in message


@pytest.mark.parametrize("name", LOSSES)
def test_labels_of_another_form_are_refused(name: str) -> None:
    loss, (logits, labels) = build_loss(name, COUNTS), batch()
    for other in (labels[:4], labels[:, None], labels.int(), labels == 0, labels.double(), F.one_hot(labels, CLASSES)):
        assert "labels" in refusal(lambda other=other: loss(logits, other))
    assert "two dimensions" in refusal(lambda: loss(logits[None], labels[None]))


def test_the_check_looks_at_no_value_outside_the_cpu() -> None:
    """Tensors without data stand for those of a device that the host would have to wait for."""
    for name in LOSSES:
        loss = build_loss(name, COUNTS).to("meta")
        logits = torch.empty(BATCH, CLASSES, device="meta", requires_grad=True)
        if name != "gcl":  # whose draws are a fixture's
            loss(logits, torch.empty(BATCH, dtype=torch.long, device="meta")).backward()
            assert logits.grad is not None and logits.grad.device.type == "meta"

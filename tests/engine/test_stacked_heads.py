"""Banks of heads: each ends where it would have ended alone, keeps what is frozen, and harms no other by diverging."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import engine.many_heads
from engine.many_heads import HeadTrainer, Trained, train_heads
from engine.stacked_heads import StackedModules, StackedSGD, stack_heads
from methods.plan import Plan, build_losses, in_late_phase, row_norm_limit, start_head, visiting_order
from methods.recipes import RECIPES
from models.heads import max_norm_
from utils.device import Execution
from utils.hashing import mix64

COUNTS = [30, 14, 8, 5, 3]
CLASSES, WIDTH, BATCH, EPOCHS = len(COUNTS), 6, 16, 5
TRAINED = [name for name, recipe in RECIPES.items() if recipe.trains]


@dataclass
class Views:
    """Stands in for the cached features of a backbone: another view (N, d) every epoch."""

    generator: torch.Generator
    execution: Execution
    seed: int = 4  # of the order of batches

    def __post_init__(self) -> None:
        means = 2 * torch.randn(CLASSES, WIDTH, generator=self.generator)
        labels = torch.arange(CLASSES).repeat_interleave(torch.tensor(COUNTS))
        noise = torch.randn(EPOCHS + 1, len(labels), WIDTH, generator=self.generator)
        self.labels, self.views = labels, (means[labels] + noise).relu()

    def plain(self, split: str) -> Tensor:
        assert split == "train"
        return self.views[EPOCHS]

    def training_view(self, epoch: int) -> Tensor:
        return self.views[epoch]


@pytest.fixture
def trainer(cpu: Execution) -> HeadTrainer:
    """Features of five classes, and a linear classifier whose rows have different lengths."""
    generator = torch.Generator().manual_seed(0)
    views, linear = Views(generator, cpu), nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(CLASSES, WIDTH, generator=generator))
        linear.weight.mul_(torch.linspace(0.2, 1.0, CLASSES)[:, None])
        linear.bias.copy_(torch.randn(CLASSES, generator=generator))
    frozen: Any = views
    return HeadTrainer(frozen, linear, views.labels, COUNTS, BATCH, momentum=0.9, seed=3)


def plan(method: str, **changes: Any) -> Plan:
    """The method's own plan, a few epochs long and without clouds, whose draws no two arrangements share."""
    recipe = RECIPES[method]
    parameters = dict(recipe.own_parameters()) | ({"noise": 0.0} if "noise" in recipe.own_parameters() else {})
    own = Plan(
        method,
        EPOCHS,
        0.05,
        recipe.weight_decay,
        0.5 if recipe.target else None,
        recipe.sampler,
        recipe.max_norm,
        recipe.fresh,
        parameters,
        recipe.schedule,
    )
    return replace(own, **changes)


def three(method: str) -> list[Plan]:
    """Three plans of a method that differ in learning rate, weight decay, constraint and the method's own number."""
    plans = [plan(method), plan(method, lr=0.01, weight_decay=0.2), plan(method, lr=0.2, max_norm=0.3)]
    name, values = RECIPES[method].tuned or ("lr", (0.05, 0.01, 0.2))
    if name in plans[0].parameters:
        values = (0.0, 0.0, 0.0) if name == "noise" else values
        plans = [replace(p, parameters={**p.parameters, name: v}) for p, v in zip(plans, values, strict=True)]
    return plans


def alone(trainer: HeadTrainer, plan: Plan) -> tuple[nn.Linear, nn.Module]:
    """A loop with PyTorch's own optimiser; returns the head and the loss of the first epochs."""
    head = start_head(plan, trainer.linear, trainer.seed, COUNTS)
    losses = build_losses(plan, COUNTS)
    limit = row_norm_limit(plan, trainer.linear)
    factors = {"scale": 5} if plan.method == "las" else {}
    trained = {name: parameter for name, parameter in head.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(
        [{"params": [parameter], "factor": factors.get(name, 1)} for name, parameter in trained.items()],
        lr=0.0,
        momentum=0.9,
        weight_decay=plan.weight_decay,
    )
    late = plan.method.startswith("wb")  # a schedule that is stepped before the epoch
    for epoch in range(plan.epochs):
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * plan.lr * (1 + math.cos(math.pi * (epoch + late) / plan.epochs)) / 2
        torch.manual_seed(mix64(trainer.seed) ^ epoch)
        order = visiting_order(plan, trainer.labels, CLASSES, trainer.draws, epoch)
        features = trainer.frozen.training_view(epoch)
        for rows in order.split(BATCH):
            optimizer.zero_grad()
            losses[in_late_phase(epoch, plan.epochs)](head(features[rows]), trainer.labels[rows]).backward()
            optimizer.step()
        if limit is not None:
            max_norm_(head, limit)
    return head, losses[0]


def assert_close_heads(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=2e-4, atol=2e-5, msg=name)


def noted_losses(monkeypatch: pytest.MonkeyPatch) -> list[StackedModules]:
    """A list that gathers every stacked of losses that is made."""
    stacks: list[StackedModules] = []
    original = engine.many_heads.stack_losses

    def noting(losses: Sequence[nn.Module]) -> StackedModules:
        stacks.append(original(losses))
        return stacks[-1]

    monkeypatch.setattr(engine.many_heads, "stack_losses", noting)
    return stacks


@pytest.mark.parametrize("method", TRAINED)
def test_stacked_heads_end_where_each_ends_alone(method: str, trainer: HeadTrainer) -> None:
    """Gaussian clouds are switched off here: they are drawn for each head, and have a test of their own."""
    plans = three(method)
    results = train_heads(trainer, plans)
    assert [result.plan for result in results] == plans
    for result in results:
        head, _ = alone(trainer, result.plan)
        assert_close_heads(head, result.head)
        assert result.diverged is None and result.images == EPOCHS * sum(COUNTS)
    start = start_head(plans[0], trainer.linear, trainer.seed, COUNTS)
    moved = [not torch.equal(p, start.get_parameter(name)) for name, p in results[0].head.named_parameters()]
    assert any(moved)


def test_methods_of_one_kind_are_stacked_and_keep_their_places(
    trainer: HeadTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks = noted_losses(monkeypatch)
    plans = [plan("los", label_smooth=0.98), plan("lws"), plan("ce"), plan("tau_norm"), plan("label_smooth", lr=0.3)]
    results = train_heads(trainer, plans)
    assert [result.plan for result in results] == plans
    assert len({tuple(len(values) for values in stacked.stacked_buffers.values()) for stacked in stacks}) == 2
    for result in results:
        if result.plan.recipe.trains:
            assert_close_heads(alone(trainer, result.plan)[0], result.head)
    torch.testing.assert_close(
        results[3].head.weight, trainer.linear.weight / trainer.linear.weight.norm(dim=1)[:, None] ** 1.9
    )


@pytest.mark.parametrize("accumulation", ["single", "double"])
@pytest.mark.parametrize("margin", ["paper", "released"])
def test_each_head_gathers_its_own_gala_statistics(
    margin: str, accumulation: str, trainer: HeadTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks = noted_losses(monkeypatch)
    plans = three("gala")
    plans = [
        replace(p, parameters={**p.parameters, "gala_margin": margin, "gala_accumulation": accumulation}) for p in plans
    ]
    results = train_heads(trainer, plans)
    gathered = stacks[0].stacked_buffers
    for i, result in enumerate(results):
        head, loss = alone(trainer, result.plan)
        assert_close_heads(head, result.head)
        for name, value in loss.state_dict().items():
            torch.testing.assert_close(gathered[name][i], value, rtol=1e-4, atol=1e-6)
    assert gathered["theta"].min() > 0
    assert not torch.allclose(gathered["theta"][0], gathered["theta"][1], rtol=1e-3)


def test_one_head_of_gcl_sees_the_clouds_that_it_would_see_alone(trainer: HeadTrainer) -> None:
    clouded = replace(plan("gcl"), parameters=RECIPES["gcl"].own_parameters())
    (result,) = train_heads(trainer, [clouded])
    assert_close_heads(alone(trainer, clouded)[0], result.head)
    assert not torch.allclose(result.head.weight, train_heads(trainer, [plan("gcl")])[0].head.weight, rtol=1e-2)


def test_stacked_heads_of_gcl_see_the_same_clouds_and_so_does_a_repetition(trainer: HeadTrainer) -> None:
    clouded = replace(plan("gcl"), parameters=RECIPES["gcl"].own_parameters())
    first, second = train_heads(trainer, [clouded, clouded])
    assert_close_heads(first.head, second.head)
    for result, again in zip((first, second), train_heads(trainer, [clouded, clouded]), strict=True):
        assert torch.equal(result.head.weight, again.head.weight)


@pytest.mark.parametrize("method", TRAINED)
def test_what_is_frozen_stays(method: str, trainer: HeadTrainer) -> None:
    start = start_head(plan(method), trainer.linear, trainer.seed, COUNTS)
    frozen = [name for name, parameter in start.named_parameters() if not parameter.requires_grad]
    frozen += [name for name, _ in start.named_buffers()]
    plans = [replace(p, max_norm=None) for p in three(method)]
    tuned = [name for name, _ in plans[0].parameters.items() if name == "scale"]
    for result in train_heads(trainer, plans):
        again = start_head(result.plan, trainer.linear, trainer.seed, COUNTS)
        own = again.state_dict() if tuned else start.state_dict()
        for name in frozen:
            assert torch.equal(result.head.state_dict()[name], own[name])
    assert bool(frozen) == (RECIPES[method].head not in ("linear", "scaled_linear"))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_stacked_sgd_is_pytorchs_sgd(momentum: float) -> None:
    generator = torch.Generator().manual_seed(0)
    stacked = [nn.Parameter(torch.randn(3, *shape, generator=generator)) for shape in ((4, 2), (4,), ())]
    rates, decays = torch.tensor([0.1, 0.03, 0.0]), torch.tensor([0.0, 0.5, 0.1])
    singles = [[nn.Parameter(p[i].detach().clone()) for p in stacked] for i in range(3)]
    optimizers = [
        torch.optim.SGD(single, lr=float(rates[i]), momentum=momentum, weight_decay=float(decays[i]))
        for i, single in enumerate(singles)
    ]
    together = StackedSGD(stacked, momentum, decays)
    together.lr = rates
    before = stacked[0][2].detach().clone()
    for _ in range(4):
        for j, p in enumerate(stacked):
            p.grad = torch.randn(p.shape, generator=generator)
            for i in range(3):
                singles[i][j].grad = p.grad[i].clone()
        for optimizer in (together, *optimizers):
            optimizer.step()
        together.zero_grad()
        assert all(p.grad is None for p in stacked)
    for i, single in enumerate(singles):
        for j, value in enumerate(single):
            torch.testing.assert_close(stacked[j][i], value)
    assert torch.equal(stacked[0][2], before)  # learning rate 0


def test_a_stack_maps_each_head_and_writes_back(trainer: HeadTrainer) -> None:
    heads = [start_head(plan("disalign"), trainer.linear, 0) for _ in range(3)]
    with torch.no_grad():
        for i, head in enumerate(heads):
            head.get_parameter("shift").fill_(float(i))
    stacked, features = stack_heads(heads), trainer.frozen.training_view(0)
    logits = stacked(features)
    assert logits.shape == (3, sum(COUNTS), CLASSES)
    for i, head in enumerate(heads):
        torch.testing.assert_close(logits[i], head(features))
    others = [copy.deepcopy(heads[0]) for _ in heads]
    stacked.write_back(others)
    for head, other in zip(heads, others, strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in head.state_dict().items())
    assert {name for name, p in stacked.named_parameters() if not p.requires_grad} == {"weight", "bias"}


# A head whose loss is not finite


def test_a_head_that_diverges_leaves_the_others_unchanged_and_says_when(trainer: HeadTrainer) -> None:
    good = [plan("ce"), plan("los", lr=0.3), plan("label_smooth", max_norm=0.2)]
    huge = plan("ce", lr=1e30, weight_decay=1.0)
    alone_good = train_heads(trainer, good)
    mixed = train_heads(trainer, [good[0], huge, *good[1:]])
    assert mixed[1].diverged is not None
    assert not bool(mixed[1].head.weight.isfinite().all())
    for expected, result in zip(alone_good, [mixed[0], *mixed[2:]], strict=True):
        assert result.diverged is None
        torch.testing.assert_close(result.head.weight, expected.head.weight, rtol=1e-5, atol=1e-6)
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)
        assert result.accuracy == pytest.approx(expected.accuracy)


def test_the_step_of_a_divergence_is_that_of_a_loop(trainer: HeadTrainer) -> None:
    huge = plan("ce", lr=1e12, weight_decay=1.0)
    head, losses = start_head(huge, trainer.linear, 0), build_losses(huge, COUNTS)
    optimizer = torch.optim.SGD(head.parameters(), lr=1e12, momentum=0.9, weight_decay=1.0)
    expected = None
    for step, rows in enumerate(visiting_order(huge, trainer.labels, CLASSES, trainer.draws, 0).split(BATCH), start=1):
        optimizer.zero_grad()
        loss = losses[0](head(trainer.frozen.training_view(0)[rows]), trainer.labels[rows])
        if not bool(loss.isfinite()):
            expected = f"step {step} of epoch 1"
            break
        loss.backward()
        optimizer.step()
    steps = -(-sum(COUNTS) // BATCH)
    if expected is None and not all(bool(p.isfinite().all()) for p in head.parameters()):
        expected = f"step {steps} of epoch 1"
    assert expected is not None
    result = train_heads(trainer, [plan("ce"), huge])[1]
    assert result.diverged == expected


def test_the_first_divergence_is_the_one_that_is_reported(trainer: HeadTrainer) -> None:
    seen: list[str | None] = []
    train_heads(trainer, [plan("ce", lr=1e30, weight_decay=1.0)], lambda epoch, rows: seen.append(rows[0].diverged))
    assert len(seen) == EPOCHS and seen[0] is not None and len(set(seen)) == 1


# Constraints and counts


def test_max_norm_holds_after_each_epoch_for_each_head(trainer: HeadTrainer) -> None:
    shares = (0.0, 0.1, 0.5, None)
    plans = [plan("wb_cb", max_norm=share, lr=0.5) for share in shares]
    norms = trainer.linear.weight.detach().norm(dim=1)
    checked: list[int] = []

    def check(epoch: int, rows: Sequence[Trained]) -> None:
        for share, row in zip(shares, rows, strict=True):
            longest = float(row.head.weight.detach().norm(dim=1).max())
            if share is not None:
                assert longest <= float(norms.min() + share * (norms.max() - norms.min())) * (1 + 1e-6)
        checked.append(epoch)

    results = train_heads(trainer, plans, check)
    assert checked == list(range(1, EPOCHS + 1))
    assert float(results[3].head.weight.detach().norm(dim=1).max()) > float(norms.min() + norms.max()) / 2


def test_what_is_told_after_each_epoch(trainer: HeadTrainer) -> None:
    told: list[tuple[int, list[str]]] = []
    plans = [plan("ce"), plan("ncm"), plan("los", epochs=2)]
    results = train_heads(trainer, plans, lambda epoch, rows: told.append((epoch, [row.plan.method for row in rows])))
    assert sorted(told) == sorted(
        [(0, ["ncm"]), *((epoch, ["ce"]) for epoch in range(1, EPOCHS + 1)), (1, ["los"]), (2, ["los"])]
    )
    assert [result.images for result in results] == [EPOCHS * sum(COUNTS), 0, 2 * sum(COUNTS)]
    assert results[0].seconds > 0 and results[0].accuracy is not None and 0 <= results[0].accuracy <= 100


def test_more_heads_than_a_stack_holds_are_trained_in_several(
    trainer: HeadTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [plan("los", lr=0.01 * (i + 1), epochs=2) for i in range(5)]
    whole = train_heads(trainer, plans)
    monkeypatch.setattr(engine.many_heads, "MOST_STACKED", 2)
    for expected, result in zip(whole, train_heads(trainer, plans), strict=True):
        assert result.plan == expected.plan
        assert_close_heads(expected.head, result.head)
    assert len({float(result.head.weight[0, 0].detach()) for result in whole}) == 5

"""Heads: formulas against plain loops in float64, what is trained, states, stacking, refusals."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from methods.closed_form import CLOSED_FORM, build_closed_form, closed_form_parameters
from models.heads import HEADS, build_head, head_parameters, max_norm_, max_norm_threshold
from utils.errors import UserError

BATCH, DIM, CLASSES = 7, 5, 4
COUNTS = [40, 20, 5, 1]
CALIBRATED = ["lws", "disalign", "marc", "scaled_linear"]  # those that start at the linear classifier's logits
OWN_KEYS = {
    "linear": [],
    "cosine": ["scale"],
    "normed": ["scale"],
    "lws": ["scale"],
    "disalign": ["scale", "shift", "confidence_weight", "confidence_bias"],
    "marc": ["scale", "shift"],
    "scaled_linear": ["scale"],
}
TRAINED = {
    **OWN_KEYS,
    "linear": ["weight", "bias"],
    "cosine": ["weight", "scale"],
    "normed": ["weight"],
    "scaled_linear": ["weight", "bias", "scale"],
}

every_head = pytest.mark.parametrize("name", OWN_KEYS)  # samn and neighbours have files of their own


def make_linear(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(DIM, CLASSES, dtype=dtype)


def make_features(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(1), dtype=dtype)


def make_labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 1, 0])


def perturbed(name: str, seed: int = 0, **parameters: float) -> nn.Linear:
    """A head whose trained numbers have left their starting values."""
    head = build_head(name, make_linear(seed), **parameters)
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return head


def transcribed_logit(name: str, head: nn.Linear, sample: list[float], k: int) -> float:
    """The published formula for one sample and one class, in Python's own numbers."""
    state = {key: value.tolist() for key, value in head.state_dict().items()}
    w, b = state["weight"][k], state["bias"][k]
    product = sum(x * y for x, y in zip(w, sample, strict=True))
    norm = math.sqrt(sum(x * x for x in w))
    if name == "linear":
        return product + b
    if name in ("cosine", "normed"):
        return state["scale"] * product / norm / math.sqrt(sum(x * x for x in sample))
    if name in ("lws", "scaled_linear"):
        return state["scale"][k] * (product + b)
    if name == "marc":
        return state["scale"][k] * (product + b) + state["shift"][k] * norm
    score = sum(x * y for x, y in zip(state["confidence_weight"], sample, strict=True)) + state["confidence_bias"]
    confidence = 1 / (1 + math.exp(-score))
    aligned = state["scale"][k] * (product + b) + state["shift"][k]
    return confidence * aligned + (1 - confidence) * (product + b)


@every_head
def test_logits_are_the_published_formula(name: str) -> None:
    head, features = perturbed(name), make_features()
    expected = [[transcribed_logit(name, head, sample, k) for k in range(CLASSES)] for sample in features.tolist()]
    torch.testing.assert_close(head(features), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert head(features).shape == (BATCH, CLASSES)


@pytest.mark.parametrize("name", ["linear", *CALIBRATED])
def test_training_starts_at_the_linear_classifiers_logits(name: str) -> None:
    linear, features = make_linear(), make_features()
    assert torch.equal(build_head(name, linear)(features), linear(features))


@every_head
def test_keys_shapes_and_independence_of_the_source(name: str) -> None:
    linear = make_linear(dtype=torch.float32)
    before = copy.deepcopy(linear.state_dict())
    head = build_head(name, linear)
    assert isinstance(head, nn.Linear)
    assert list(head.state_dict()) == ["weight", "bias", *OWN_KEYS[name]]
    assert all(value.dtype == torch.float32 for value in head.state_dict().values())
    assert torch.equal(head.weight, linear.weight) and head.weight.shape == (CLASSES, DIM)
    with torch.no_grad():
        for value in head.state_dict().values():
            value.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in linear.state_dict().items())
    network = nn.Module()
    network.fc = head
    assert list(network.state_dict())[:2] == ["fc.weight", "fc.bias"]


@every_head
def test_building_draws_nothing_and_takes_any_linear_layer(name: str) -> None:
    without_bias = nn.Linear(DIM, CLASSES, bias=False).requires_grad_(False)
    state = torch.get_rng_state()
    head = build_head(name, without_bias)
    assert torch.equal(torch.get_rng_state(), state)
    assert (head.bias == 0).all()
    assert {key for key, value in head.named_parameters() if value.requires_grad} == set(TRAINED[name])


@every_head
def test_only_what_is_trained_gets_a_gradient_and_moves(name: str) -> None:
    head = build_head(name, make_linear())
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    before = copy.deepcopy(head.state_dict())
    optimizer = torch.optim.SGD(trained, lr=0.5)
    gradients: list[set[str]] = []
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(make_features()), make_labels()).backward()
        gradients.append({key for key, value in head.named_parameters() if value.grad is not None and value.grad.any()})
        optimizer.step()
    moved = {key for key, value in head.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == gradients[-1] == set(TRAINED[name])
    # DisAlign's confidence mixes equal logits at first: it has a gradient only after the first step.
    late = {"confidence_weight", "confidence_bias"} if name == "disalign" else set()
    assert gradients[0] == set(TRAINED[name]) - late


@every_head
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    head, features = perturbed(name), make_features()
    trained = {key: value for key, value in head.named_parameters() if value.requires_grad}
    keys = list(trained)

    def logits(*values: Tensor) -> Tensor:
        return functional_call(head, dict(zip(keys, values, strict=True)), (features,))

    assert torch.autograd.gradcheck(logits, tuple(trained.values()))


@every_head
def test_states_survive_a_round_trip(name: str) -> None:
    head, other = perturbed(name), build_head(name, make_linear(5))
    assert not torch.allclose(other(make_features()), head(make_features()))
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(make_features()), head(make_features()))


@every_head
def test_three_stacked_heads_are_three_single_ones(name: str) -> None:
    scales = [{"scale": 5.0 + seed} if head_parameters(name) else {} for seed in range(3)]
    heads = [perturbed(name, seed, **scales[seed]) for seed in range(3)]
    parameters, buffers = stack_module_state(heads)
    template = copy.deepcopy(heads[0]).to("meta")

    def one(state: tuple[dict[str, Tensor], dict[str, Tensor]], features: Tensor) -> Tensor:
        return functional_call(template, state, (features,))

    stacked = vmap(one, in_dims=(0, None))((parameters, buffers), make_features())
    assert stacked.shape == (3, BATCH, CLASSES)
    torch.testing.assert_close(stacked, torch.stack([head(make_features()) for head in heads]))


@every_head
def test_classes_and_samples_can_be_reordered(name: str) -> None:
    order, samples = torch.tensor([2, 0, 3, 1]), torch.randperm(BATCH, generator=torch.Generator().manual_seed(0))
    linear, features = make_linear(), make_features()
    head, permuted = build_head(name, linear), copy.deepcopy(linear)
    with torch.no_grad():
        permuted.weight.copy_(linear.weight[order])
        permuted.bias.copy_(linear.bias[order])
    expected = head(features)[samples][:, order]
    torch.testing.assert_close(build_head(name, permuted)(features[samples]), expected)


@every_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_features_and_zero_rows_stay_finite(name: str, dtype: torch.dtype) -> None:
    linear, features = make_linear(dtype=dtype), make_features(dtype)
    with torch.no_grad():
        linear.weight[1] = 0
        features[2] = 0
    head = build_head(name, linear)
    logits = head(features)
    assert logits.dtype == dtype and logits.isfinite().all()
    logits.float().square().sum().backward()
    gradients = [parameter.grad for parameter in head.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() and gradient.abs().max() < 1e5 for gradient in gradients)
    if name in ("cosine", "normed"):
        assert (logits[2] == 0).all() and (logits[:, 1] == 0).all()


def test_published_defaults() -> None:
    assert {name: head_parameters(name) for name in HEADS if head_parameters(name)} == {
        "cosine": {"scale": 10.0},
        "normed": {"scale": 30.0},
        "neighbours": {"scale": 14.3},
    }
    assert set(HEADS) == {*OWN_KEYS, "samn", "neighbours", "linear_cosine"}
    assert {name: closed_form_parameters(name) for name in CLOSED_FORM} == {
        "tau_norm": {"tau": 1.9, "norm_bias": "keep"},
        "l2_norm": {"norm_bias": "keep"},
        "ncm": {"scale": 30.0},
        "logit_adjust_posthoc": {"tau": 1.0},
        "samn_start": {},
        "proximal_los": {
            "anchor": 1e-3,
            "tau": 0.0,
            "rho": 0.0,
            "start_tau": 0.0,
            "distance": "weights",
            "fit_on": "plain",
        },
        "tau_norm_centred": {"tau": 1.0},
        "prior2posterior": {"tau": 1.0},
        "offsets": {"anchor": 0.01},
        "ridge": {"anchor": 0.1},
        "simplex": {"scale": 30.0},
        "knn": {"scale": 14.3},
    }


@pytest.mark.parametrize("name", ["cosine", "normed"])
def test_scale_is_a_learnt_number_or_a_kept_one(name: str) -> None:
    head = build_head(name, make_linear(), scale=16)
    assert head.state_dict()["scale"].shape == () and head.state_dict()["scale"] == 16
    assert ("scale" in dict(head.named_parameters())) == (name == "cosine")
    assert (head.bias == 0).all() and not head.bias.requires_grad
    assert head(make_features()).abs().max() <= 16 * (1 + 1e-12)


def test_refused_heads_and_parameters() -> None:
    linear = make_linear()
    with pytest.raises(UserError, match="unknown head 'mlp'") as caught:
        build_head("mlp", linear)
    assert all(name in str(caught.value) for name in HEADS)
    with pytest.raises(UserError, match="unknown head"):
        head_parameters("mlp")
    with pytest.raises(UserError, match="'cosine' has no parameter --tau; it has --scale"):
        build_head("cosine", linear, tau=1.0)
    with pytest.raises(UserError, match="'lws' has no parameter --scale; it has no parameters"):
        build_head("lws", linear, scale=1.0)


@pytest.mark.parametrize("value", [0.0, -1.0, 1001.0, math.nan, math.inf, True, "big"])
def test_refused_scales(value: float) -> None:
    with pytest.raises(UserError, match="--scale must be above 0 and at most 1000, not") as caught:
        build_head("normed", make_linear(), scale=value)
    assert "\n" not in str(caught.value)


# Closed forms


def closed_form(name: str, linear: nn.Linear | None = None, **parameters: float) -> nn.Linear:
    return build_closed_form(name, linear or make_linear(), make_features(), make_labels(), COUNTS, **parameters)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.9])
def test_tau_norm_divides_rows_by_a_power_of_their_length(tau: float) -> None:
    linear = make_linear()
    head = closed_form("tau_norm", linear, tau=tau)
    for ours, row in zip(head.weight.tolist(), linear.weight.tolist(), strict=True):
        length = math.sqrt(sum(value * value for value in row))
        assert ours == pytest.approx([value / length**tau for value in row], rel=1e-12)
    assert torch.equal(head.bias, linear.bias) and head.bias.all()
    assert torch.equal(linear.weight, make_linear().weight)


@pytest.mark.parametrize("name", ["tau_norm", "l2_norm"])
def test_the_bias_of_normalised_rows_is_kept_or_dropped(name: str) -> None:
    """Weight Balancing's code scales the rows alone, that of Kang et al. multiplies features by them alone."""
    kept, dropped = closed_form(name), closed_form(name, norm_bias="drop")
    assert torch.equal(kept.bias, make_linear().bias) and kept.bias.all()
    assert not dropped.bias.any() and torch.equal(kept.weight, dropped.weight)
    assert torch.equal(closed_form(name, norm_bias="keep").bias, kept.bias)


def test_l2_norm_is_tau_norm_at_one() -> None:
    head = closed_form("l2_norm")
    assert torch.equal(head.weight, closed_form("tau_norm", tau=1.0).weight)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(CLASSES, dtype=torch.float64))


def test_a_row_of_zeros_stays_one() -> None:
    linear = make_linear()
    nn.init.zeros_(linear.weight)
    assert all((closed_form(name, linear).weight == 0).all() for name in ("tau_norm", "l2_norm"))


def test_ncm_holds_the_class_means() -> None:
    head, features, labels = closed_form("ncm"), make_features(), make_labels().tolist()
    for k, row in enumerate(head.weight.tolist()):
        own = [sample for sample, label in zip(features.tolist(), labels, strict=True) if label == k]
        assert row == pytest.approx([sum(column) / len(own) for column in zip(*own, strict=True)])
    means = head.weight / head.weight.norm(dim=1, keepdim=True)
    unit = features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(features), 30 * unit @ means.T)
    assert list(head.state_dict()) == ["weight", "bias", "scale"]


def test_ncm_predicts_as_the_nearest_unit_mean() -> None:
    head, features = closed_form("ncm"), make_features()
    unit, means = (nn.functional.normalize(rows) for rows in (features, head.weight.detach()))
    assert torch.equal(head(features).argmax(dim=1), torch.cdist(unit, means).argmin(dim=1))


@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 2, 0, 1, 0], [0, 1, 2, 4, 0, 1, 3], [0, 1, 2, 3]], ids=["missing", "beyond", "too few"]
)
def test_ncm_refuses_labels_that_do_not_fit(labels: list[int]) -> None:
    with pytest.raises(UserError, match="ncm needs"):
        build_closed_form("ncm", make_linear(), make_features(), torch.tensor(labels), COUNTS)


@pytest.mark.parametrize("counts", [COUNTS, torch.tensor(COUNTS), np.array(COUNTS)], ids=["list", "tensor", "array"])
def test_posthoc_adjustment_moves_the_bias_only(counts: list[int]) -> None:
    linear = make_linear()
    head = build_closed_form("logit_adjust_posthoc", linear, make_features(), make_labels(), counts, tau=1.5)
    expected = [b - 1.5 * math.log(n / sum(COUNTS)) for b, n in zip(linear.bias.tolist(), COUNTS, strict=True)]
    assert head.bias.tolist() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(head.weight, linear.weight)


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_closed_forms_keep_dtype_and_refuse_what_does_not_fit(name: str) -> None:
    linear, features = make_linear(dtype=torch.float32), make_features(torch.float32)
    head = build_closed_form(name, linear, features, make_labels(), COUNTS, held_out=(features, make_labels()))
    assert head(features).dtype == torch.float32 and head(features).isfinite().all()
    for counts in ([40, 20, 0, 1], [40, 20, 5], [], [40, 20, 5, -1]):
        with pytest.raises(UserError, match="class_counts"):
            build_closed_form(name, linear, features, make_labels(), counts)
    with pytest.raises(UserError, match="whole numbers"):
        build_closed_form(name, linear, features, make_labels(), torch.tensor([4.5, 2, 1, 1]))
    with pytest.raises(UserError, match="has no parameter --share"):
        build_closed_form(name, linear, features, make_labels(), COUNTS, share=1.0)


def test_refused_closed_forms_and_taus() -> None:
    with pytest.raises(UserError, match="unknown closed form 'pca'"):
        closed_form("pca")
    for name in ("tau_norm", "logit_adjust_posthoc"):
        for tau in (-0.1, 10.5, math.nan):
            with pytest.raises(UserError, match="--tau must be at least 0 and at most 10, not"):
                closed_form(name, tau=tau)


# MaxNorm


def test_max_norm_shortens_long_rows_only() -> None:
    head = make_linear()
    before, bias = head.weight.detach().clone(), head.bias.detach().clone()
    threshold = max_norm_threshold(head.weight, 0.5)
    lengths = [math.sqrt(sum(value * value for value in row)) for row in before.tolist()]
    assert threshold.item() == pytest.approx(min(lengths) + 0.5 * (max(lengths) - min(lengths)))
    max_norm_(head, threshold)
    for ours, row, length in zip(head.weight, before, lengths, strict=True):
        if length > threshold:
            torch.testing.assert_close(ours, row * threshold / length)
        else:
            assert torch.equal(ours, row)
    assert torch.equal(head.bias, bias) and head.weight.requires_grad


def test_max_norm_of_a_stack_is_that_of_each() -> None:
    heads = [make_linear(seed) for seed in range(3)]
    stack = nn.Module()
    stack.weight = nn.Parameter(torch.stack([head.weight.detach() for head in heads]))
    thresholds = max_norm_threshold(stack.weight)
    assert thresholds.shape == (3,)
    assert thresholds.tolist() == [max_norm_threshold(head.weight).item() for head in heads]
    thresholds[1] = torch.inf
    max_norm_(stack, thresholds)
    for head, threshold, ours in zip(heads, thresholds, stack.weight, strict=True):
        max_norm_(head, threshold.item())
        torch.testing.assert_close(ours, head.weight)
    assert torch.equal(stack.weight[1], make_linear(1).weight)


def test_max_norm_ends_and_refusals() -> None:
    head = make_linear()
    with torch.no_grad():
        head.weight[0] = 0
    assert max_norm_threshold(head.weight, 0.0) == 0
    assert max_norm_threshold(head.weight, 1.0) == head.weight.norm(dim=1).max()
    max_norm_(head, 0.01)
    assert (head.weight[0] == 0).all()
    torch.testing.assert_close(head.weight[1:].norm(dim=1), torch.full((3,), 0.01, dtype=torch.float64))
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="--max_norm must be at least 0 and at most 1"):
            max_norm_threshold(head.weight, share)


def test_effective_weights_are_what_features_are_multiplied_by() -> None:
    linear, features = make_linear(), make_features()
    for name in ("linear", "lws", "marc"):
        head = build_head(name, linear)
        if name != "linear":
            with torch.no_grad():
                head.scale.uniform_(0.5, 2)
        weight = head.effective_weight()
        change = head(features + 1) - head(features)
        assert torch.allclose(change, weight.sum(dim=1).expand_as(change))
    cosine = build_head("cosine", linear, scale=7.0)
    assert torch.allclose(cosine.effective_weight().norm(dim=1), torch.tensor(7.0, dtype=linear.weight.dtype))
    assert build_head("disalign", linear).effective_weight() is None

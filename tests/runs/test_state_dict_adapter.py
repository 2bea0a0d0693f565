"""Checkpoints of other projects: every known layout, on small dictionaries in its form, and every refusal."""

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from runs.state_dict_adapter import compare_keys, find_state_dict
from utils.errors import UserError

CLASSES, FEATURES = 5, 4
HEAD = ("fc.weight", "fc.bias")
SHAPES = {
    "conv1.weight": (2, 3, 3, 3),
    "bn1.weight": (2,),
    "bn1.num_batches_tracked": (),
    "layer1.0.conv1.weight": (2, 2, 3, 3),
    "layer2.0.downsample.0.weight": (4, 2, 1, 1),
    "layer2.0.downsample.1.bias": (4,),
    "fc.weight": (CLASSES, FEATURES),
    "fc.bias": (CLASSES,),
}


def weights() -> dict[str, Tensor]:
    """A state dict with torchvision's names, every tensor different."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def features() -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights().items() if name not in HEAD}


def head() -> dict[str, Tensor]:
    return {name: weights()[name] for name in HEAD}


def renamed(state: dict[str, Tensor], new_name: Callable[[str], str]) -> OrderedDict[str, Tensor]:
    return OrderedDict((new_name(name), tensor) for name, tensor in state.items())


def wrapped(state: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """What DataParallel saves."""
    return renamed(state, lambda name: f"module.{name}")


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(state) == sorted(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0, msg=name)


def refusal(content: object) -> str:
    """The message of the error that `content` must cause, which must be one line."""
    with pytest.raises(UserError) as caught:
        find_state_dict(content)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Layouts


def test_plain_state_dict_comes_back_unchanged() -> None:
    state, layout = find_state_dict(weights())
    assert_same(state, weights())
    assert list(state) == list(SHAPES)
    assert layout == "plain state dict"


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module._orig_mod.module."]
)
def test_wrapper_prefixes_go_in_any_order(prefix: str) -> None:
    state, layout = find_state_dict(renamed(weights(), lambda name: prefix + name))
    assert_same(state, weights())
    assert layout == "plain state dict"


def test_wrappers_of_a_part_go_too() -> None:
    state, _ = find_state_dict(renamed(weights(), lambda name: name.replace("layer1.", "layer1.module._orig_mod.")))
    assert_same(state, weights())


def test_a_name_that_only_ends_like_a_wrapper_stays() -> None:
    state, _ = find_state_dict(weights() | {"submodule.weight": torch.ones(1)})
    assert "submodule.weight" in state


def test_real_dataparallel_and_compile_prefixes() -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 2, 3, bias=False)
            self.fc = nn.Linear(2, 3)

    network = Tiny()
    compiled = torch.compile(network)
    assert isinstance(compiled, nn.Module)
    state, _ = find_state_dict(nn.DataParallel(compiled).state_dict())
    assert_same(state, dict(network.state_dict()))


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "state_dict_best"])
def test_container_beside_other_entries(key: str) -> None:
    content = {"epoch": 3, "best_acc1": torch.tensor(40.0), "arch": "resnet32", "optimizer": OPTIMIZER}
    state, layout = find_state_dict(content | {key: wrapped(weights())})
    assert_same(state, weights())
    assert layout == f"plain state dict under '{key}'"


def test_a_container_key_that_holds_no_weights_is_passed_over() -> None:
    content = {"model": "resnet32", "net": {"depth": 32}, "state_dict": weights()}
    state, layout = find_state_dict(content)
    assert_same(state, weights())
    assert layout == "plain state dict under 'state_dict'"


@pytest.mark.parametrize("prefix", ["encoder.", "module.encoder.", "encoder.module.", "_orig_mod.encoder."])
def test_weight_balancing(prefix: str) -> None:
    state, layout = find_state_dict(renamed(weights(), lambda name: prefix + name))
    assert_same(state, weights())
    assert layout == "Weight Balancing (encoder.)"


def test_encoder_is_no_prefix_unless_every_key_has_it() -> None:
    content = renamed(features(), lambda name: f"encoder.{name}") | head()
    state, layout = find_state_dict(content)
    assert list(state) == list(content)
    assert layout == "plain state dict"


@pytest.mark.parametrize("first", ["features.0.0.weight", "conv_proj.weight", "encoder_q.conv1.weight"])
def test_a_convolution_on_colours_tells_a_network_by_any_name(first: str) -> None:
    content = {first: torch.ones(2, 3, 4, 4), "queue": torch.ones(2, 7), "heads.head.weight": torch.ones(5, 2)}
    state, layout = find_state_dict({"model": content})
    assert_same(state, content)
    assert layout == "plain state dict under 'model'"


@pytest.mark.parametrize(
    "content",
    [
        {"images": torch.ones(8, 3, 32, 32), "labels": torch.ones(8)},  # no weight
        {"layer.weight": torch.ones(8, 16, 3, 3), "other.weight": torch.ones(8, 3)},  # on 16 channels, and linear
        {"layer.weight": torch.ones(3, 8, 3, 3)},  # 3 channels out, not in
        {"embedding.weight": torch.ones(100, 16), "lstm.weight": torch.ones(64, 16)},
    ],
)
def test_tensors_that_are_no_network_for_images_are_refused(content: dict[str, Tensor]) -> None:
    message = refusal(content)
    assert f"{next(iter(content))!r} (Tensor)" in message and "another convolution on 3 colours" in message


@pytest.mark.parametrize("wrap", [lambda content: content, lambda content: {"model": content, "epoch": 3}])
def test_dino_keeps_teacher_and_student_apart(wrap: Callable[[object], object]) -> None:
    student = renamed(features(), lambda name: f"module.backbone.{name}")
    teacher = renamed(features(), lambda name: f"backbone.{name}") | {"head.mlp.0.weight": torch.ones(2, 2)}
    content = {
        "student": student,
        "teacher": teacher,
        "optimizer": OPTIMIZER,
        "dino_loss": {"center": torch.ones(1, 2)},
    }
    state, layout = find_state_dict(wrap(content))
    expected = renamed(teacher, lambda name: f"teacher.{name}")
    expected |= renamed(features(), lambda name: f"student.backbone.{name}")
    assert_same(state, expected)
    assert layout.startswith("DINO (teacher + student)")


def test_a_teacher_alone_is_found() -> None:
    state, layout = find_state_dict({"teacher": wrapped(weights()), "epoch": 1})
    assert_same(state, renamed(weights(), lambda name: f"teacher.{name}"))
    assert layout == "DINO (teacher)"


def mislas() -> dict[str, object]:
    return {
        "epoch": 200,
        "state_dict_model": wrapped(features()),
        "state_dict_classifier": wrapped(head()),
        "best_acc1": torch.tensor(47.0),
        "its_ece": 4.8,
    }


def test_mislas_first_stage() -> None:
    state, layout = find_state_dict(mislas())
    assert_same(state, weights())
    assert layout == "MiSLAS (state_dict_model + state_dict_classifier)"


def test_mislas_second_stage_scales_the_logits() -> None:
    norm = torch.linspace(0.5, 1.5, CLASSES).reshape(1, CLASSES)
    state, layout = find_state_dict(mislas() | {"state_dict_lws_model": {"module.learned_norm": norm}})
    inputs = torch.randn(7, FEATURES, generator=torch.Generator().manual_seed(1))
    as_released = norm * nn.functional.linear(inputs, weights()["fc.weight"], weights()["fc.bias"])
    torch.testing.assert_close(nn.functional.linear(inputs, state["fc.weight"], state["fc.bias"]), as_released)
    assert_same({k: v for k, v in state.items() if k not in HEAD}, features())
    assert layout == "MiSLAS (state_dict_model + state_dict_classifier), scales multiplied into fc"


def test_mislas_without_scales_in_their_place() -> None:
    state, _ = find_state_dict(mislas() | {"state_dict_lws_model": None})
    assert_same(state, weights())


def test_mislas_with_an_optimizer_beside() -> None:
    state, _ = find_state_dict(mislas() | {"optimizer": OPTIMIZER})
    assert_same(state, weights())


def test_mislas_block_of_places_is_refused_by_name() -> None:
    message = refusal(mislas() | {"state_dict_block": {"module.conv1.weight": torch.ones(2, 2, 1, 1)}})
    assert "'state_dict_block'" in message and "MiSLAS" in message


def test_a_part_that_is_no_dictionary_is_refused_by_name() -> None:
    assert "'state_dict_lws_model' (Tensor)" in refusal(mislas() | {"state_dict_lws_model": torch.ones(1, CLASSES)})


@pytest.mark.parametrize("key", ["state_dict_best", "state_dict", "state_dict_model"])
def test_classifier_balancing_and_gala(key: str) -> None:
    halves = {"feat_model": wrapped(features()), "classifier": wrapped(head())}
    state, layout = find_state_dict({"epoch": 90, "best_epoch": 88, "best_acc": 0.5, "centroids": None, key: halves})
    assert_same(state, weights())
    assert layout == f"classifier-balancing or GALA (feat_model + classifier) under '{key}'"


def test_classifier_balancing_halves_alone() -> None:
    state, layout = find_state_dict({"feat_model": features(), "classifier": head()})
    assert_same(state, weights())
    assert layout == "classifier-balancing or GALA (feat_model + classifier)"


def test_a_prefix_of_one_half_does_not_change_the_layout() -> None:
    halves = {"feat_model": renamed(features(), lambda name: f"encoder.{name}"), "classifier": head()}
    state, layout = find_state_dict(halves)
    assert_same(state, weights())
    assert layout == "classifier-balancing or GALA (feat_model + classifier)"


def test_classifier_balancing_scales() -> None:
    scales = torch.linspace(2, 3, CLASSES)
    halves = {"feat_model": wrapped(features()), "classifier": wrapped(head() | {"scales": scales})}
    state, layout = find_state_dict({"state_dict_best": halves})
    inputs = torch.randn(7, FEATURES, generator=torch.Generator().manual_seed(1))
    as_released = nn.functional.linear(inputs, weights()["fc.weight"], weights()["fc.bias"]) * scales
    torch.testing.assert_close(nn.functional.linear(inputs, state["fc.weight"], state["fc.bias"]), as_released)
    assert "scales" not in state
    assert layout.endswith("under 'state_dict_best', scales multiplied into fc")


def test_a_further_module_beside_the_halves_is_refused_by_name() -> None:
    halves = {"feat_model": features(), "classifier": head(), "memory": {"centroids": torch.ones(2)}}
    assert "'memory'" in refusal({"state_dict_best": halves})


@pytest.mark.parametrize("classifier", ["linear", "last_linear", "classifier", "classifier.fc", "fc.fc"])
def test_names_of_cifar_networks(classifier: str) -> None:
    def their_name(name: str) -> str:
        return name.replace("fc.", f"{classifier}.").replace(".downsample.", ".shortcut.")

    content = {"net": wrapped(renamed(weights(), their_name))}
    assert f"module.{classifier}.weight" in content["net"] and "module.layer2.0.shortcut.0.weight" in content["net"]
    state, _ = find_state_dict(content)
    assert_same(state, weights())


@pytest.mark.parametrize("name", ["linear.0.weight", "fc_cb.weight", "classifier.weight_g", "my.linear.weight"])
def test_names_that_only_look_like_the_classifier_stay(name: str) -> None:
    state, _ = find_state_dict(features() | {name: torch.ones(2, 2)})
    assert name in state and "fc.weight" not in state


def test_the_content_is_not_changed() -> None:
    model, classifier, lws = (
        wrapped(features()),
        wrapped(head()),
        {"module.learned_norm": torch.full((1, CLASSES), 2.0)},
    )
    find_state_dict({"state_dict_model": model, "state_dict_classifier": classifier, "state_dict_lws_model": lws})
    assert_same(model, wrapped(features()))
    assert_same(classifier, wrapped(head()))
    assert_same(lws, {"module.learned_norm": torch.full((1, CLASSES), 2.0)})


def test_parameters_come_back_without_gradients() -> None:
    parameters = {name: nn.Parameter(tensor) for name, tensor in weights().items()}
    state, _ = find_state_dict(parameters | {"scales": nn.Parameter(torch.full((CLASSES,), 2.0))})
    assert not any(tensor.requires_grad for tensor in state.values())


# Refusals


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "type list"),
        (torch.ones(2), "type Tensor"),
        (nn.Linear(2, 2), "type Linear"),
        (None, "type NoneType"),
    ],
)
def test_what_is_no_dictionary_is_refused(content: object, found: str) -> None:
    message = refusal(content)
    assert found in message
    assert all(known in message for known in ("state_dict_best", "MiSLAS", "feat_model", "encoder."))


def test_an_unknown_dictionary_is_refused_by_its_first_keys() -> None:
    message = refusal({"epoch": 3, "weights": {"embedding.weight": torch.ones(2)}, "a": 1, "b": 2, "c": 3, "d": 4})
    assert "'epoch' (int), 'weights' (dict)" in message and "(6 in all)" in message and "'d'" not in message
    assert "expected" in message and "'state_dict'" in message


def test_an_empty_dictionary_is_refused() -> None:
    assert "an empty dictionary" in refusal({})
    assert "'state_dict' (dict)" in refusal({"state_dict": {}})


def test_another_network_is_refused() -> None:
    message = refusal({"model": {"features.0.weight": torch.ones(2), "classifier.weight": torch.ones(2, 2)}})
    assert "'conv1.weight'" in message and "'features.0.weight' (Tensor)" in message and "under 'model'" in message


def test_another_split_network_is_refused_with_its_parts() -> None:
    message = refusal({"feat_model": {"module.stem.weight": torch.ones(2)}, "classifier": head()})
    assert "feat_model['module.stem.weight'] (Tensor)" in message


def test_a_key_that_is_no_string_is_refused() -> None:
    assert "0 (Tensor)" in refusal({0: torch.ones(2)})


def test_values_that_are_no_tensors_are_refused_by_name() -> None:
    message = refusal({"state_dict": weights() | {"module.temperature": 0.1}})
    assert "'module.temperature' (float)" in message and "conv1" not in message and "expected" not in message


def test_colliding_keys_are_refused_by_name() -> None:
    message = refusal(weights() | {"module.conv1.weight": torch.ones(2, 3, 3, 3)})
    assert "'conv1.weight' and 'module.conv1.weight'" in message


def test_two_classifiers_are_refused_by_name() -> None:
    message = refusal(weights() | {"linear.weight": torch.ones(CLASSES, FEATURES)})
    assert "'fc.weight' and 'linear.weight'" in message and "both become 'fc.weight'" in message


def test_colliding_parts_are_refused_by_part_and_name() -> None:
    message = refusal(mislas() | {"state_dict_model": wrapped(weights())})
    assert "state_dict_model['module.fc.weight'] and state_dict_classifier['module.fc.weight']" in message


def test_two_containers_are_refused_by_name() -> None:
    message = refusal({"model": weights(), "state_dict": weights(), "epoch": 1})
    assert "'state_dict', 'model'" in message and "epoch" not in message


@pytest.mark.parametrize("key", ["scales", "learned_norm"])
def test_scales_without_their_classifier_are_refused_by_name(key: str) -> None:
    message = refusal(features() | {key: torch.ones(CLASSES)})
    assert f"'{key}'" in message and "no 'fc.weight'" in message


def test_scales_of_another_number_of_classes_are_refused() -> None:
    message = refusal(weights() | {"scales": torch.ones(CLASSES + 1)})
    assert "'scales' (6,)" in message and "(5, 4)" in message


# Comparison with a network


def test_equal_keys_and_shapes_are_no_problem() -> None:
    assert compare_keys(weights(), weights()) == []


def test_missing_keys_are_named_in_order_five_at_most() -> None:
    first = list(SHAPES)[:5]
    assert compare_keys(head(), weights()) == [f"missing keys (6): {', '.join(first)}, ..."]
    assert compare_keys(features(), weights()) == ["missing keys (2): fc.weight, fc.bias"]


def test_unexpected_keys_are_named_in_order_five_at_most() -> None:
    extra = {f"fc_{i}.weight": torch.ones(1) for i in range(6)}
    assert compare_keys(weights() | extra, weights()) == [f"unexpected keys (6): {', '.join(list(extra)[:5])}, ..."]
    assert compare_keys(weights(), features()) == ["unexpected keys (2): fc.weight, fc.bias"]


def test_misshapen_keys_show_both_shapes() -> None:
    state = weights() | {"fc.weight": torch.ones(10, FEATURES)}
    assert compare_keys(state, weights()) == ["fc.weight: (10, 4) here, (5, 4) expected"]


def test_of_many_misshapen_keys_five_are_shown() -> None:
    problems = compare_keys({name: torch.ones(9) for name in SHAPES}, weights())
    assert problems[0] == "conv1.weight: (9,) here, (2, 3, 3, 3) expected"
    assert len(problems) == 6 and problems[-1] == "and 3 more keys of another shape than expected"


def test_all_kinds_of_problems_are_reported_together() -> None:
    state = features() | {"linear.bias": torch.ones(1), "fc.bias": torch.ones(3)}
    assert compare_keys(state, weights()) == [
        "missing keys (1): fc.weight",
        "unexpected keys (1): linear.bias",
        "fc.bias: (3,) here, (5,) expected",
    ]


def test_a_backbone_under_a_prefix_is_told_by_it() -> None:
    state = renamed(features(), lambda name: f"encoder_q.{name}") | {"queue": torch.ones(2)}
    problems = compare_keys(state, weights())
    assert problems[0] == "the network's backbone is there, but under 'encoder_q.'"
    assert problems[1].startswith("missing keys (8)") and problems[2].startswith("unexpected keys (7)")
    assert not [line for line in compare_keys(state | features(), weights()) if "is there" in line]
    assert not [line for line in compare_keys({"encoder_q.bn1.weight": torch.ones(2)}, weights()) if "is there" in line]


def test_torchvisions_names_for_a_wrapped_network_are_told() -> None:
    expected = renamed(features(), lambda name: f"backbone.{name}") | head()
    problems = compare_keys(features() | {"classifier.3.weight": torch.ones(2, 2)}, expected)
    assert problems[0] == "the network's backbone is there, but by torchvision's names"

"""Pre-trained weights: files in the forms that other projects write, and everything that must not be loaded."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from models import build_model
from models.given_features import GivenFeatures
from models.heads import build_head
from models.network import Network
from runs.pretrained_weights import LoadReport, load_pretrained, with_network_names
from runs.state_dict_adapter import compare_keys, find_state_dict, preference, rank_prefixes
from utils.errors import UserError

CLASSES = 5
State = dict[str, Tensor]


def network(classes: int = CLASSES, name: str = "resnet8") -> Network:
    """A small network; every one that is built is another."""
    model = build_model(name, classes, width=4)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.copy_(torch.rand(buffer.shape) + 1 if buffer.is_floating_point() else torch.tensor(3))
    return model


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def backbone(state: State) -> State:
    return {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}


def load(model: Network, content: object) -> LoadReport:
    """What the scripts do with a file."""
    return load_pretrained(model, find_state_dict(content)[0])


def assert_backbone(model: Network, source: Network) -> None:
    expected = backbone(source.state_dict())
    assert expected
    for key, tensor in expected.items():
        assert torch.equal(model.state_dict()[key], tensor), key


def refusal(model: Network, state: State) -> str:
    """The message of the error that `state` must cause, which must be one line; the model must not have changed."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError) as caught:
        load_pretrained(model, state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Layouts


class Contrastive(nn.Module):
    """A backbone with the projection in the place of its classifier, twice, and a queue, as MoCo has them."""

    def __init__(self, names: tuple[str, str], projection: Callable[[], nn.Module]) -> None:
        super().__init__()
        for name in names:
            encoder = network()
            encoder.fc = projection()  # type: ignore[assignment]
            setattr(self, name, encoder)
        self.register_buffer("queue", torch.randn(4, 9))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("names", [("encoder_q", "encoder_k"), ("encoder_k", "encoder_q")])
@pytest.mark.parametrize(
    "projection",
    [lambda: nn.Linear(16, 4), lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))],
    ids=["v1", "v2"],
)
def test_moco(names: tuple[str, str], projection: Callable[[], nn.Module]) -> None:
    source, model = Contrastive(names, projection), network()
    old = model.fc.weight.clone()
    report = load(model, {"epoch": 200, "state_dict": nn.DataParallel(source).state_dict(), "optimizer": {}})
    assert_backbone(model, source.encoder_q)
    assert torch.equal(model.fc.weight, old)
    assert report.prefix == "encoder_q." and report.rivals == ("encoder_k.",)
    assert report.tensors == len(backbone(model.state_dict()))
    assert {"queue", "queue_ptr", "encoder_k.conv1.weight"} <= set(report.left_out)
    assert not [key for key in report.left_out if key.startswith("encoder_q.") and ".fc." not in key]
    assert report.no_classifier


def test_moco_v3() -> None:
    source, model = Contrastive(("momentum_encoder", "base_encoder"), lambda: nn.Linear(16, 4)), network()
    report = load(model, {"state_dict": nn.DataParallel(source).state_dict()})
    assert_backbone(model, source.base_encoder)
    assert report.prefix == "base_encoder."


def test_a_projection_is_no_classifier_even_of_its_shape() -> None:
    source, model = Contrastive(("encoder_q", "encoder_k"), lambda: nn.Linear(16, CLASSES)), network()
    old = model.fc.weight.clone()
    report = load(model, source.state_dict())
    assert torch.equal(model.fc.weight, old)
    assert "projection" in report.no_classifier and "encoder_q.fc.weight" in report.left_out


@pytest.mark.parametrize("twins", [("teacher", "student"), ("student", "teacher"), ("student",)])
def test_dino(twins: tuple[str, ...]) -> None:
    sources = {twin: network() for twin in twins}
    content = {
        twin: prefixed("module.backbone.", backbone(source.state_dict()))
        | {"module.head.last.weight": torch.ones(2, 2)}
        for twin, source in sources.items()
    }
    model = network()
    report = load(model, content | {"epoch": 3, "dino_loss": {"center": torch.ones(1, 2)}})
    chosen = "teacher" if "teacher" in twins else "student"
    assert_backbone(model, sources[chosen])
    assert report.prefix == f"{chosen}.backbone."
    assert f"{chosen}.head.last.weight" in report.left_out


@pytest.mark.parametrize(
    "prefix",
    ["backbone.", "encoder.", "convnet.", "f.", "model.", "model.backbone.", "module.encoder.", "net.0.model."],
)
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_a_backbone_under_any_prefix(prefix: str, container: str | None) -> None:
    source, model = network(), network()
    extra = {"projector.0.weight": torch.ones(3, 3), prefix + "fc.0.weight": torch.ones(2, 2), "queue": torch.ones(9)}
    state = prefixed(prefix, backbone(source.state_dict())) | extra
    report = load(model, state if container is None else {container: state, "epoch": 1})
    assert_backbone(model, source)
    prefix = prefix.removeprefix("module.")
    assert report.prefix == prefix and report.rivals == ()
    assert report.left_out == ("projector.0.weight", f"{prefix}fc.0.weight", "queue")
    assert report.no_classifier == "the file has none"


def test_other_names_for_layers_under_a_prefix() -> None:
    source, model = network(name="resnet18"), network(name="resnet18")
    state = prefixed("encoder_q.", {k.replace(".downsample.", ".shortcut."): v for k, v in source.state_dict().items()})
    assert "encoder_q.layer2.0.shortcut.0.weight" in state
    report = load_pretrained(model, state)
    assert_backbone(model, source)
    assert report.prefix == "encoder_q." and report.left_out == () and torch.equal(model.fc.bias, source.fc.bias)


@pytest.mark.parametrize("prefix", ["", "f.", "backbone.", "module.encoder."])
@pytest.mark.parametrize("pooling", [False, True])
def test_numbered_children(prefix: str, pooling: bool) -> None:
    source, model = build_model("resnet10", 9, "imagenet"), build_model("resnet10", CLASSES, "imagenet")
    kept = [child for child in source.children() if pooling or not isinstance(child, nn.MaxPool2d)]
    numbered = nn.Sequential(*kept[:-1])
    projection = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    report = load(model, prefixed(prefix, numbered.state_dict()) | prefixed("g.", projection.state_dict()))
    assert_backbone(model, source)
    assert report.prefix == prefix.removeprefix("module.")
    assert report.left_out == ("g.0.weight", "g.0.bias", "g.2.weight", "g.2.bias")


def test_numbered_children_count_whatever_the_order_in_the_file() -> None:
    source, model = build_model("resnet10", 9, "imagenet"), build_model("resnet10", 9, "imagenet")
    state = nn.Sequential(*list(source.children())[:-1]).state_dict()
    load_pretrained(model, dict(sorted(state.items(), reverse=True)))
    assert_backbone(model, source)


def test_numbered_children_of_another_network_are_refused() -> None:
    state = nn.Sequential(*list(build_model("resnet18", 9, "imagenet").children())[:-1]).state_dict()
    assert "unexpected keys" in refusal(build_model("resnet10", 9, "imagenet"), state)
    message = refusal(build_model("resnet10", 9, "imagenet"), {k: v for k, v in state.items() if k[0] != "7"})
    assert "missing keys" in message and "conv1.weight" in message


@pytest.mark.parametrize("classes", [CLASSES, 9])
def test_a_state_dict_of_the_same_names(classes: int) -> None:
    source, model = network(classes), network()
    report = load(model, {"model": source.state_dict()})
    assert_backbone(model, source)
    assert report.prefix == ""
    if classes == CLASSES:
        assert torch.equal(model.fc.weight, source.fc.weight) and torch.equal(model.fc.bias, source.fc.bias)
        assert report.no_classifier == "" and report.left_out == ()
        assert report.tensors == len(source.state_dict())
        assert report.summary() == f"{report.tensors} tensors loaded; the classifier with them"
    else:
        assert report.no_classifier == "the file's fc.weight is (9, 16), the network's (5, 16)"
        assert report.left_out == ("fc.weight", "fc.bias")
        assert report.summary().endswith("(5, 16)); left out: fc.weight, fc.bias")


def test_a_classifier_beside_the_backbone() -> None:
    source, model = network(), network()
    state = prefixed("model.encoder.", backbone(source.state_dict()))
    state |= {"model.linear.weight": source.fc.weight, "model.linear.bias": source.fc.bias}
    report = load_pretrained(model, state)
    assert torch.equal(model.fc.weight, source.fc.weight) and report.no_classifier == "" and report.left_out == ()


def test_half_a_classifier_is_left_out() -> None:
    source, model = network(), network()
    state = {key: tensor for key, tensor in source.state_dict().items() if key != "fc.bias"}
    old = model.fc.weight.clone()
    report = load_pretrained(model, state)
    assert torch.equal(model.fc.weight, old)
    assert report.no_classifier == "the file's has no fc.bias" and report.left_out == ("fc.weight",)


def test_a_head_with_more_than_a_linear_classifier_keeps_its_own() -> None:
    source, model = network(), network()
    model.fc = build_head("cosine", model.fc)
    old = model.fc.weight.clone()
    assert load_pretrained(model, source.state_dict()).no_classifier == "the file's has no fc.scale"
    assert torch.equal(model.fc.weight, old)
    assert_backbone(model, source)


def test_counts_of_batches_may_be_missing() -> None:
    source, model = network(), network()
    state = {key: tensor for key, tensor in source.state_dict().items() if "num_batches" not in key}
    report = load_pretrained(model, state)
    assert report.tensors == len(state) and report.no_classifier == ""
    assert torch.equal(model.bn1.running_var, source.bn1.running_var) and model.bn1.num_batches_tracked == 3


def test_half_precision_is_cast() -> None:
    source, model = network(), network()
    load_pretrained(model, {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()})
    assert model.conv1.weight.dtype == torch.float32
    assert torch.equal(model.conv1.weight, source.conv1.weight.half().float())


def test_parameters_stay_trainable_and_apart_from_the_state() -> None:
    source, model = network(), network()
    state = source.state_dict()
    load_pretrained(model, state)
    state["conv1.weight"].zero_()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (model.conv1.weight != 0).any()


# torchvision's networks


def torchvision_state(name: str, classes: int) -> State:
    network = torchvision.models.get_model(name, weights=None, num_classes=classes)
    return network.state_dict()


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121"])
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_torchvisions_own_files(name: str, prefix: str) -> None:
    model = build_model(name, CLASSES, "imagenet")
    state = torchvision_state(name, 9)
    report = load(model, prefixed(prefix, state))
    own, names = model.state_dict(), model.torchvision_names()
    assert all(torch.equal(own[key], state[names[key]]) for key in own if not key.startswith("fc."))
    assert report.no_classifier.startswith("the file's fc.weight is (9, ") and len(report.left_out) == 2
    same = torchvision_state(name, CLASSES)
    report = load(model, prefixed(prefix, same))
    own = model.state_dict()
    assert all(torch.equal(own[key], same[names[key]]) for key in own)
    assert report.no_classifier == "" and report.left_out == () and report.tensors == len(same)


def test_a_checkpoint_of_a_wrapped_network() -> None:
    source, model = (build_model("mobilenet_v3_small", CLASSES, "imagenet") for _ in range(2))
    report = load(model, source.state_dict())
    assert report.prefix == "backbone." and report.no_classifier == "" and report.left_out == ()
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_auxiliary_classifiers_are_left_out() -> None:
    network = torchvision.models.googlenet(weights=None, num_classes=CLASSES, init_weights=False)
    report = load(build_model("googlenet", CLASSES, "imagenet"), network.state_dict())
    assert report.no_classifier == "" and report.left_out
    assert {key.partition(".")[0] for key in report.left_out} == {"aux1", "aux2"}


def test_whole_networks_by_torchvisions_names() -> None:
    for name in ("mobilenet_v3_small", "densenet121"):
        model = build_model(name, CLASSES, "imagenet")
        state, _ = find_state_dict(torchvision_state(name, CLASSES))
        assert compare_keys(state, model.state_dict())[0].endswith("by torchvision's names")
        renamed = with_network_names(model, state)
        assert compare_keys(renamed, model.state_dict()) == []
        assert with_network_names(model, renamed) == renamed
        model.load_state_dict(renamed)
        assert torch.equal(model.fc.weight, state[next(key for key in list(state)[-2:] if key.endswith("weight"))])
    plain = network()
    assert list(with_network_names(plain, plain.state_dict())) == list(plain.state_dict())


# Refusals


def test_missing_tensors_are_counted_and_named() -> None:
    state = prefixed("encoder_q.", network().state_dict())
    for key in list(state):
        if ".layer3." in key and not key.endswith("num_batches_tracked"):
            del state[key]
    message = refusal(network(), state)
    total = len([key for key in network().state_dict() if "fc." not in key and "num_batches" not in key])
    assert "'encoder_q.'" in message and f"{total - 10} of {total} tensors fit" in message
    assert "missing keys (10): layer3.0.conv1.weight, layer3.0.bn1.weight, " in message
    assert message.count("layer3.") == 5


@pytest.mark.parametrize("key", ["bn1.running_mean", "layer2.0.bn2.bias", "conv1.weight"])
def test_one_missing_tensor_is_enough(key: str) -> None:
    state = network().state_dict()
    del state[key]
    assert f"missing keys (1): {key}" in refusal(network(), state)


def test_the_other_stem_is_told_by_its_shape() -> None:
    with torch.device("meta"):
        file = build_model("resnet18", 3, "imagenet").state_dict()
    model = build_model("resnet18", 3)
    message = refusal(model, prefixed("encoder_q.", file))
    assert "conv1.weight: (64, 3, 7, 7) here, (64, 3, 3, 3) expected" in message
    assert "'encoder_q.'" in message and "missing" not in message


def test_a_deeper_network_is_refused() -> None:
    deeper, shallower = network(name="resnet20"), network(name="resnet8")
    assert set(shallower.state_dict()) < set(deeper.state_dict())
    message = refusal(shallower, prefixed("encoder_q.", deeper.state_dict()))
    assert "unexpected keys" in message and "layer1.1.conv1.weight" in message
    assert "missing keys" in refusal(deeper, shallower.state_dict())


def test_another_architecture_is_refused() -> None:
    with torch.device("meta"):
        file = build_model("vit_b_32", 3, "imagenet").state_dict()
    message = refusal(network(), file)
    assert "none of this network's 35 tensors" in message
    assert "conv1.weight" in message and "backbone.class_token" in message
    assert "none of" in refusal(network(), {})


def test_given_features_have_no_backbone() -> None:
    assert "no backbone" in refusal(GivenFeatures(4, 3), network().state_dict())


# Prefixes


def test_the_prefix_with_the_most_tensors_wins_over_the_preferred_one() -> None:
    whole, part = network(), network()
    broken = {key: tensor for key, tensor in part.state_dict().items() if "bn" not in key}
    model = network()
    report = load_pretrained(model, prefixed("encoder_q.", broken) | prefixed("encoder_k.", whole.state_dict()))
    assert report.prefix == "encoder_k." and report.rivals == ()
    assert_backbone(model, whole)


def test_order_of_prefixes_that_fit_equally() -> None:
    wanted = {"a.weight": torch.ones(2), "b.weight": torch.ones(3)}
    state = {}
    for prefix in ("ema_model.", "net.", "student.", "online_encoder.", "other."):
        state |= prefixed(prefix, wanted)
    ranked = [fit.prefix for fit in rank_prefixes(state, wanted)]
    assert ranked == ["online_encoder.", "net.", "other.", "ema_model.", "student."]
    state["student.b.weight"] = torch.ones(4)  # of another shape: last of all
    state["net.a.extra.a.weight"] = torch.ones(2)
    fits = rank_prefixes(state, wanted)
    assert [(fit.prefix, fit.fitting, fit.named) for fit in fits[-2:]] == [("student.", 1, 2), ("net.a.extra.", 1, 1)]
    assert rank_prefixes({}, wanted) == []
    of_another_width = prefixed("teacher.", {"a.weight": torch.ones(4), "b.weight": torch.ones(6)})
    part = {"net.a.weight": torch.ones(2)}
    assert [fit.prefix for fit in rank_prefixes(of_another_width | part, wanted)] == ["net.", "teacher."]


def test_words_and_not_letters_decide() -> None:
    assert [preference(prefix) for prefix in ("encoder_q.", "", "quick.keyboard.", "module.momentum_encoder.")] == [
        0,
        1,
        1,
        2,
    ]


def test_the_summary_lists_five() -> None:
    source = network()
    extra = {f"head.{i}.weight": torch.ones(1) for i in range(7)}
    state = prefixed("teacher.", source.state_dict()) | prefixed("student.", source.state_dict()) | extra
    summary = load_pretrained(network(), state).summary()
    assert summary.startswith(f"{len(source.state_dict()) - 2} tensors loaded from 'teacher.' rather than 'student.'; ")
    assert "the classifier is new" in summary and "in all)" in summary
    assert summary.partition("left out: ")[2].count(", ") == 5

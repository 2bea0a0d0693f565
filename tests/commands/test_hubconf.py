"""`torch.hub.load` from a clone, in a program that has modules called `models`, `utils` and `datasets` of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hubconf
from models.heads import build_head
from stages.prediction import make_predictor, read_trained
from tests.helpers import ROOT

PROGRAM = """
import json
import sys
import types

import torch

for name in ("models", "utils", "datasets"):
    sys.modules[name] = types.ModuleType(name)
mine = {name: sys.modules[name] for name in ("models", "utils", "datasets")}
repository = sys.argv[1]
images = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).float() / 6144
networks = {}
for classifier in ("los", "stage1"):
    networks[classifier] = torch.hub.load(repository, "resnet18w24_cifar100_lt", classifier=classifier, source="local")
gala = torch.hub.load(repository, "resnet32_cifar100_lt_gala", source="local")
loss = torch.hub.load(repository, "loss", "logit_adjust", class_counts=[6, 3, 1], source="local", tau=2.0)
torch.manual_seed(0)
head = torch.hub.load(repository, "head", "cosine", torch.nn.Linear(4, 3), source="local", scale=8.0)
value = loss(torch.zeros(1, 3), torch.tensor([2]))
assert all(sys.modules[name] is module for name, module in mine.items())
assert repository not in sys.path and not {"losses", "stages", "runs"} & sys.modules.keys()
assert not any(network.training for network in networks.values())
with torch.no_grad():
    found = {name: network(images).tolist() for name, network in networks.items()}
    found |= {"gala": gala(images).tolist(), "head": head(torch.ones(1, 4)).tolist(), "loss": float(value)}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[float]]]:
    folder = tmp_path_factory.mktemp("hub")
    (folder / "program.py").write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "program.py", str(ROOT)]
    environment |= {"OMP_NUM_THREADS": "1", "TORCH_HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_networks_answer_as_the_released_files_do(found: dict[str, list[list[float]]]) -> None:
    images = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).float() / 6144
    files = {
        "los": "cifar100_expIF100_resnet18w24_seed0_los",
        "stage1": "cifar100_expIF100_resnet18w24_seed0",
        "gala": "cifar100_expIF100_resnet32_gala_seed0",
    }
    for name, file in files.items():
        model = make_predictor(read_trained(ROOT / "checkpoints" / "released" / f"{file}.safetensors")).model.eval()
        with torch.no_grad():
            torch.testing.assert_close(torch.tensor(found[name]), model(images), rtol=1e-4, atol=1e-4)
    assert found["los"] != found["stage1"]


def test_losses_and_heads_are_those_of_the_project(found: dict[str, object]) -> None:
    shares = torch.tensor([0.6, 0.3, 0.1])  # logit adjustment with tau 2: -log of the squared share over their sum
    assert found["loss"] == pytest.approx(float(-torch.log(shares**2 / (shares**2).sum())[2]), rel=1e-5)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = build_head("cosine", torch.nn.Linear(4, 3), scale=8.0)(torch.ones(1, 4))
    torch.testing.assert_close(torch.tensor(found["head"]), expected)


def test_torch_hub_lists_what_is_meant() -> None:
    """It lists whatever can be called and has no underscore in front."""
    listed = {name for name in vars(hubconf) if not name.startswith("_") and callable(getattr(hubconf, name))}
    networks = {"resnet18w24_cifar100_lt", "resnet32_cifar100_lt_gala"}
    assert listed == {*networks, "trained", "network", "loss", "head"}
    assert all(getattr(hubconf, name).__doc__ for name in listed)


def test_what_is_needed_is_what_is_required() -> None:
    """By the names of imports, which torch.hub looks for before it loads anything."""
    imported = {"scikit-learn": "sklearn", "pillow": "PIL"}
    required = [line.split(">=")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert hubconf.dependencies == [imported.get(name, name) for name in required]


def test_without_weights_and_with_another_classifier() -> None:
    assert hubconf.resnet18w24_cifar100_lt(pretrained=False)(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
    with pytest.raises(Exception, match="classifier 'lort' is none of los, stage1"):
        hubconf.resnet18w24_cifar100_lt(classifier="lort")
    assert Path(hubconf.__file__).parent == ROOT

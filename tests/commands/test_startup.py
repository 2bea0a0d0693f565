"""What commands import: nothing that takes seconds for a help text or a refusal, and no more than their work needs.

Modules are counted, not seconds, which depend on what else the machine does.
"""

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from methods.declared import Unclear, losses, names_of, read_table, table_of
from models import torchvision_names
from tests.helpers import ROOT

HEAVY = ("torch", "torchvision", "pandas", "scipy", "sklearn", "matplotlib", "PIL", "pyarrow", "safetensors")
SHARE = 1.3  # of the modules of PyTorch and numpy
# Runs a command in a process of its own, and says afterwards what it has imported.
SCRIPT = """
import json, runpy, sys
sys.argv, status = sys.argv[1:], 0
of_module = sys.argv[0] == "-m"
sys.argv = sys.argv[of_module:]
try:
    (runpy.run_module if of_module else runpy.run_path)(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    status = stop.code
sys.__stdout__.flush()
print(json.dumps([status, sorted(sys.modules)]), file=sys.__stderr__)
"""


def imported(*words: str) -> tuple[int, set[str]]:
    """The status of a command, and the modules that it has imported when it ends."""
    command = [sys.executable, "-c", SCRIPT, *words]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    status, modules = json.loads(outcome.stderr.splitlines()[-1])
    return int(status or 0), set(modules)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("main_stage1.py --help", 0),
        ("main_stage2.py --help-all", 0),
        ("evaluate.py --help", 0),
        ("predict.py --help", 0),
        ("reproduce.py --help", 0),
        ("main_stage1.py --nosuch", 2),
        ("main_stage1.py --network vit_b_17 --stem imagenet", 2),
        ("main_stage1.py --loss gml", 2),
        ("main_stage2.py --method los --tau 2", 2),
        ("main_stage2.py --finetune_lr -1", 2),
        ("main_stage1.py --dataset digits --holdout 1.5", 2),
        ("main_stage1.py --dataset digits --imb_ratio 0.5", 2),
        ("main_stage2.py --dataset digits --imb_ratio nan", 2),
        ("evaluate.py --coverage 2", 2),
        ("predict.py --pretrained_pth a --images b --bits 99", 2),
        ("main_stage1.py --weights nowhere.pth", 2),
        ("main_stage1.py --dataset folder --data_dir nowhere", 2),
        ("main_stage1.py --dataset list --train_list nowhere", 2),
        ("main_stage1.py --dataset list --train_list README.md --class_names nowhere", 2),
        ("main_stage1.py --out README.md", 2),
        ("main_stage2.py --features nowhere.npz", 2),
        ("evaluate.py --pretrained_pth nowhere", 2),
        ("evaluate.py --json nowhere/report.json", 2),
        ("evaluate.py --html docs", 2),
        ("predict.py --pretrained_pth nowhere --images README.md", 2),
        ("predict.py --pretrained_pth README.md --images README.md --csv docs", 2),
        ("predict.py --pretrained_pth README.md --images nowhere", 2),
        ("-m tools.compare --help", 0),
        ("-m tools.compare nowhere", 2),
        ("reproduce.py delta --features nowhere.npz", 2),
        ("reproduce.py delta --results README.md/results", 2),
        ("reproduce.py nosuch", 2),
        ("reproduce.py delta --imb_ratio 100 0.5", 2),
        ("reproduce.py delta --lr -1", 2),
    ],
)
def test_help_and_refusals_need_nothing_large(line: str, status: int) -> None:
    ended, modules = imported(*line.split())
    assert ended == status
    assert [name for name in HEAVY if name in modules] == []


def modules_of(*names: str) -> set[str]:
    program = f"import sys, json, {', '.join(names)}; print(json.dumps(sorted(sys.modules)))"
    outcome = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    return set(json.loads(outcome.stdout))


def test_reports_and_predictions_import_little_beside_pytorch() -> None:
    base = modules_of("torch", "numpy")
    own = tuple(path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py")
    for name in ("stages.commands.report", "stages.commands.predict", "tools.check_dataset"):
        modules = modules_of(name)
        assert not modules & {"torchvision", "pandas", "scipy", "sklearn", "matplotlib", "torch._dynamo"}, name
        of_others = {module for module in modules if module.partition(".")[0] not in own}
        assert len(of_others) <= SHARE * len(base), name


def test_retraining_never_imports_the_compiler(tmp_path: Path) -> None:
    """A table of LOS on given features: the linear probe by L-BFGS, a stack of heads, its reports."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, counts in (("train", [40, 12, 4]), ("test", [6, 6, 6])):
        labels = np.repeat(np.arange(3), counts)
        features = generator.normal(0, 1, (3, 5))[labels] + generator.normal(0, 1, (len(labels), 5))
        arrays |= {f"{split}_features": features.astype(np.float32), f"{split}_labels": labels}
    np.savez(tmp_path / "features.npz", **arrays)
    places = ("--features", str(tmp_path / "features.npz"), "--out", str(tmp_path), "--results", str(tmp_path / "r"))
    ended, modules = imported("reproduce.py", "delta", *places, "--device", "cpu", "--finetune_epoch", "2")
    assert ended == 0
    assert "torch" in modules and "torch._dynamo" not in modules


def test_training_imports_the_compiler_where_it_is_asked_for_alone(tmp_path: Path) -> None:
    line = "main_stage1.py --dataset digits --device cpu --network resnet8 --width 8 --epochs 1 --compile off"
    ended, modules = imported(*line.split(), "--out", str(tmp_path))
    assert ended == 0
    assert "torch" in modules and "torch._dynamo" not in modules


# What is read from text is what importing would say


TABLES = [("losses", "LOSSES"), ("models.heads", "HEADS"), ("methods.closed_form", "CLOSED_FORM")]


@pytest.mark.parametrize(("module", "name"), TABLES)
def test_declarations_are_read_as_they_are(module: str, name: str) -> None:
    """Names of all parameters, kinds and defaults of hyper-parameters, and whether a loss takes plain logits."""
    written, real = read_table(module, name), getattr(importlib.import_module(module), name)
    assert list(written) == list(real)
    for key, entry in real.items():
        read, said = (inspect.signature(one).parameters for one in (written[key], entry))
        assert list(read) == list(said), key
        keywords = [one for one in said.values() if one.kind is one.KEYWORD_ONLY]
        assert [(read[one.name].kind, read[one.name].default) for one in keywords] == [
            (one.kind, one.default) for one in keywords
        ]
        assert getattr(written[key], "plain_logits", None) == getattr(entry, "plain_logits", None), key
        with pytest.raises(TypeError, match="declaration"):
            written[key]()


def test_names_of_tables_are_read_as_they_are() -> None:
    from methods.declared import read_names
    from tables import TABLES as REAL

    assert read_names("tables", "TABLES") == tuple(REAL) == names_of("tables", "TABLES")


def test_what_is_imported_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import losses as package

    assert losses() is package.LOSSES
    monkeypatch.setitem(package.LOSSES, "toy", package.LOSSES["ce"])
    assert "toy" in losses()


@pytest.mark.parametrize(
    "text",
    [
        "from functools import partial\nTABLE = {'a': partial(int, 2)}\n",
        "TABLE = dict(a=int)\n",
        "TABLE = {'a': int}\n",
        "def f(*, x=len('a')): pass\nTABLE = {'a': f}\n",
        "def f(**x): pass\nTABLE = {'a': f}\n",
        "OTHER = {}\n",
    ],
)
def test_a_text_that_is_not_plain_is_imported(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import methods.declared as declared

    module = f"unplain{abs(hash(text))}"
    monkeypatch.setattr(declared, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{module}.py").write_text(text)
    with pytest.raises(Unclear):
        read_table(module, "TABLE")
    if "TABLE" in text:
        assert list(table_of(module, "TABLE")) == ["a"] == list(names_of(module, "TABLE"))
    monkeypatch.delitem(sys.modules, module, raising=False)


def test_the_names_of_torchvision_are_those_that_it_lists() -> None:
    import torchvision

    assert torchvision_names() == torchvision.models.list_models(module=torchvision.models)

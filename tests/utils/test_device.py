"""Which precision a CPU computes in: by the units that it has, and with a warning where bf16 was asked for without."""

import time

import pytest
import torch

import utils.device
from utils.device import bf16_gain, choose_execution, has_bf16_units


def pretend(monkeypatch: pytest.MonkeyPatch, *, vectors: bool, tiles: bool, limit: str | None = None) -> None:
    """Let PyTorch report a CPU with or without AVX512_BF16 and AMX, and oneDNN be limited to some instructions."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)


@pytest.mark.parametrize(
    ("vectors", "tiles", "limit", "has"),
    [
        (False, False, None, False),
        (True, False, None, True),
        (False, True, None, True),
        (True, True, "AVX512_CORE_BF16", True),
        (True, True, "avx512_core_amx", True),
        (True, True, "DEFAULT", True),
        (True, True, "AVX2", False),
        (True, True, "avx512_core", False),
    ],
)
def test_units_are_those_that_may_be_used(
    vectors: bool, tiles: bool, limit: str | None, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, vectors=vectors, tiles=tiles, limit=limit)
    assert has_bf16_units() is has


def test_a_pytorch_that_cannot_tell_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, vectors=True, tiles=True)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not has_bf16_units()


@pytest.mark.parametrize("units", [True, False])
def test_auto_decides_by_the_units_and_says_so(
    units: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, vectors=units, tiles=False)
    execution = choose_execution("cpu", 0, "auto", "off")
    assert execution.bf16 is units
    has = "bf16 autocast (the CPU has bf16 units" if units else "fp32 (the CPU has no bf16 units"
    assert execution.reasons[1] == f"precision: {has}, --amp auto)"
    assert not choose_execution("cpu", 0, "off", "off").bf16
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("gain", "words"), [(0.125, "takes 8.0 times as long"), (1.5, "")])
def test_bf16_without_units_warns_in_one_line_with_what_it_costs(
    gain: float, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, vectors=False, tiles=False)
    monkeypatch.setattr(utils.device, "bf16_gain", lambda: gain)
    assert choose_execution("cpu", 0, "bf16", "off").bf16
    told = capsys.readouterr().err
    assert told.count("\n") == (1 if words else 0) and words in told
    pretend(monkeypatch, vectors=True, tiles=False)
    monkeypatch.setattr(utils.device, "bf16_gain", lambda: pytest.fail("there is nothing to measure"))
    assert choose_execution("cpu", 0, "bf16", "off").bf16
    assert capsys.readouterr().err == ""


def test_the_gain_is_the_ratio_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.float32: 0.001, torch.bfloat16: 0.004}
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda images, *_, **__: time.sleep(seconds[images.dtype]))
    assert 0.2 < bf16_gain() < 0.35

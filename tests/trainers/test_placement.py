"""A precision that costs time is told, once, with what to do."""

import platform

import pytest
import torch
from settings import TRAINER_ROWS, build_trainer, tiny_model

from kdnlp.trainers import placement
from kdnlp.trainers.placement import has_native_bfloat16, warn_of_slow_bfloat16

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def processor(monkeypatch):
    """Sets what torch tells of the processor."""
    placement._warn_once.cache_clear()

    def processor(machine, **capabilities):
        monkeypatch.setattr(platform, "machine", lambda: machine)
        told = {"architecture": machine, **capabilities}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)

    return processor


@pytest.mark.parametrize(
    ("machine", "capabilities", "native"),
    [
        ("x86_64", {"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ("AMD64", {"avx512_bf16": True}, True),
        ("x86_64", {"amx_bf16": True}, True),
        ("aarch64", {"neon": True, "bf16": False}, False),
        ("arm64", {"bf16": True}, True),
        ("ppc64le", {}, None),
    ],
)
def test_native_is_what_multiplies_in_bfloat16(machine, capabilities, native, processor):
    processor(machine, **capabilities)
    assert has_native_bfloat16() is native


@pytest.mark.parametrize(("bf16", "amx"), [(False, False), (True, False), (False, True)])
def test_an_older_torch_is_asked_in_its_own_way(bf16, amx, processor, monkeypatch):
    processor("x86_64")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_native_bfloat16() is (bf16 or amx)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert has_native_bfloat16() is None


def test_this_torch_tells():
    assert has_native_bfloat16() in (True, False, None)


def test_the_warning_comes_once_and_where_it_is_true(processor, caplog):
    processor("x86_64", avx512_bf16=True)
    warn_of_slow_bfloat16("bf16", CPU)
    processor("ppc64le")
    warn_of_slow_bfloat16("bf16", CPU)
    processor("x86_64")
    warn_of_slow_bfloat16("bf16", CUDA)
    warn_of_slow_bfloat16("no", CPU)
    assert caplog.records == []
    for _ in range(2):
        warn_of_slow_bfloat16("bf16", CPU)
    assert len(caplog.records) == 1
    assert "add --bf16 false" in caplog.text


@pytest.mark.parametrize("bf16", [True, False])
def test_training_warns_of_it_when_it_starts(bf16, processor, tmp_path, caplog):
    processor("x86_64")
    row = TRAINER_ROWS["distillation"]
    trainer = build_trainer(row, tmp_path, tiny_model("bert", 2), bf16=bf16, max_steps=1)
    assert "bfloat16" not in caplog.text
    trainer.train()
    assert ("no instructions for bfloat16" in caplog.text) == bf16

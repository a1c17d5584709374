"""A profile's tables say what was measured, and its files are never half there."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from kdnlp.evaluation import profile_report
from kdnlp.evaluation.profile_report import (
    disagreement_lines,
    profile_markdown,
    profile_sections,
    save_profile,
    section_table,
)
from kdnlp.profiling.agreement import compare_with_flops
from kdnlp.profiling.latency import latency_row
from kdnlp.profiling.memory import PeakMemory
from kdnlp.profiling.module_time import ModuleTime
from kdnlp.profiling.parts import ParameterParts
from kdnlp.profiling.profile import ModelProfile, Profile, ProfileCell
from kdnlp.profiling.runtimes import RuntimeRow
from kdnlp.profiling.setting import ProfileSetting
from kdnlp.profiling.speedup import Speedup

SETTING = ProfileSetting(
    "CPU (AVX2)", "A Processor", "float32", 2, "sdpa", {"python": "3.11", "torch": "2.13.0"}
)
PARTS = ParameterParts(12_000_000, 4_000_000, 7_000_000, 1_000, 999_000)


def cell(name, ms, gflops, size=8, parts=(1.0, 4.0, 3.0, 1.0, 1.0)):
    scale = ms / sum(parts)
    flops = {"embeddings": 0, "attention": gflops // 4, "feed_forward": gflops // 2, "other": 0}
    flops["other"] = gflops - sum(flops.values())
    return ProfileCell(
        latency=latency_row(name, size, 32, [ms * 0.9, ms, ms * 1.1]),
        flops=flops,
        memory=PeakMemory(40.0, 2.5, "torch profiler, allocations"),
        time=ModuleTime(*(part * scale for part in parts), profiler_slowdown=1.2),
    )


def compared(own, base, ratio, allowed=0.2):
    speedup = Speedup(ratio, ratio - 0.02, ratio + 0.02, 0.95, 30)
    promised = base.flops_per_example / own.flops_per_example
    agreement = compare_with_flops(promised, speedup, base.time.parts, own.time.parts, allowed)
    return replace(own, speedup=speedup, agreement=agreement)


def account(name, *cells, disk=None):
    return ModelProfile(name, "BertModel", 4, PARTS, 48.0, disk, cells)


def small_profile(ratio=2.0, parts=(1.0, 4.0, 3.0, 1.0, 1.0), rows=()):
    base = cell("teacher", 20.0, 8 * 10**9)
    own = cell("student", 20.0 / ratio, 4 * 10**9, parts=parts)
    models = (account("teacher", base, disk=48.1), account("student", compared(own, base, ratio)))
    return Profile(models, SETTING, rows)


def test_flops_stand_beside_latency_and_throughput():
    text = profile_markdown(small_profile())
    assert "| 8 x 32 | teacher | 8.00 (4.00) | 20.00 / 21.60 / 21.96 | 400 | 3200 | 42.50 |" in text
    assert "| 42.50 | 2.00x | 2.00x (1.98 to 2.02) |" in text
    assert "| teacher | BertModel | 4 | 12.00 | 4.00 | 7.00 | 0.0010 | 1.00 | 48.0 | 48.1 |" in text
    assert "| 48.0 | - |" in text
    for fact in ("CPU (AVX2), A Processor, 2 threads, float32, sdpa attention", "torch 2.13.0"):
        assert fact in text


def test_each_part_has_its_time_and_its_share_of_time_and_flops():
    text = profile_markdown(small_profile())
    assert "| 2.00 (10%; 0%) | 8.00 (40%; 25%) | 6.00 (30%; 50%) | 2.00 (10%; 25%) |" in text
    assert "| 2.00 (10%) | 1.2x |" in text


def test_a_speed_up_that_the_flops_do_not_explain_is_pointed_out_with_its_cause():
    profile = small_profile(1.25, parts=(1.0, 4.0, 3.0, 1.0, 7.0))
    (line,) = disagreement_lines(profile)
    assert line.startswith("student, batch 8, 32 tokens: 2.00x fewer FLOPs, 1.25x faster")
    assert "misses what they promise by 38% (allowed 20%)" in line
    assert "Most of it is launch overhead: it takes 6.00 ms beyond its share, of 6.00 ms" in line
    text = profile_markdown(profile)
    assert "| 1.25x (1.23 to 1.27) ! |" in text
    assert f"- {line}" in text


def test_a_model_faster_than_its_flops_is_pointed_out_too():
    (line,) = disagreement_lines(small_profile(4.0, parts=(1.0, 4.0, 0.1, 1.0, 1.0)))
    assert "exceeds what they promise by 100%" in line
    assert "feed-forward: it saves" in line


def test_agreement_is_said_and_not_left_to_be_guessed():
    assert disagreement_lines(small_profile()) == [
        "FLOPs and measured speed-up agree to within 20% everywhere."
    ]
    alone = replace(small_profile(), models=small_profile().models[:1])
    assert disagreement_lines(alone) == []
    assert "agree" not in profile_markdown(alone)


def test_runtimes_have_a_table_with_reasons_for_those_that_are_missing():
    latency = latency_row("m", 1, 32, [2.0, 2.0, 2.0])
    rows = (
        RuntimeRow("m", "eager", latency),
        RuntimeRow("m", "sdpa", latency, Speedup(1.5, 1.4, 1.6, 0.75, 3), 1.2e-6),
        RuntimeRow("m", "onnx", None, missing="onnx not installed"),
    )
    text = profile_markdown(small_profile(rows=rows))
    assert "## Runtimes" in text
    row = "| 1 x 32 | m | sdpa | 2.00 / 2.00 / 2.00 | 500 | 1.50x (1.40 to 1.60, 75%) | 1.2e-06 |"
    assert row in text
    assert "| m | onnx | - | - | - | onnx not installed |" in text
    assert "Runtimes" not in profile_markdown(small_profile())


def test_every_row_has_a_cell_for_every_column():
    rows = (RuntimeRow("m", "onnx", None, missing="not installed"),)
    for section in profile_sections(small_profile(rows=rows)):
        assert {len(cells) for cells in section.rows} == {len(section.header)}
        assert section_table(section).row_count == len(section.rows)


def test_a_saved_profile_has_its_files_and_reads_back(tmp_path):
    profile = small_profile()
    save_profile(profile, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["profile.json", "profile.md", "profile.png"]
    assert Profile.load(tmp_path) == profile
    assert json.loads((tmp_path / "profile.json").read_text())["models"][1]["name"] == "student"
    with Image.open(tmp_path / "profile.png") as picture:
        assert min(picture.size) > 200
        assert len(picture.convert("RGB").getcolors(maxcolors=1_000_000)) > 10


def test_a_profile_that_cannot_be_drawn_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "profile.json").write_text("old")

    def fail(profile, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(profile_report, "plot_profile", fail)
    with pytest.raises(OSError, match="disk full"):
        save_profile(small_profile(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]
    assert (tmp_path / "profile.json").read_text() == "old"

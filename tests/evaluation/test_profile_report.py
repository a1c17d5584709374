"""A profile's tables say what was measured, and its files are never half there."""

import io
import json
import math
from dataclasses import replace

import pytest
from PIL import Image
from rich.console import Console

from kdnlp.evaluation.plots import draw_profile
from kdnlp.evaluation.profile_report import (
    disagreement_lines,
    profile_markdown,
    save_profile,
    section_table,
)
from kdnlp.evaluation.profile_tables import profile_sections
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


def cell(name, ms, gflops, size=8, length=32, parts=(1.0, 4.0, 3.0, 1.0, 1.0)):
    scale = ms / sum(parts)
    flops = {"embeddings": 0, "attention": gflops // 4, "feed_forward": gflops // 2, "other": 0}
    flops["other"] = gflops - sum(flops.values())
    return ProfileCell(
        latency=latency_row(name, size, length, 7 * [ms * 0.9, ms, ms * 1.1]),
        flops=flops,
        memory=PeakMemory(40.0, 2.5, "torch profiler, allocations"),
        time=ModuleTime(*(part * scale for part in parts), profiler_slowdown=1.2),
    )


def compared(own, base, ratio, allowed=0.2, half=0.02):
    speedup = Speedup(ratio, ratio - half, ratio + half, 0.95, 30)
    promised = base.flops_per_example / own.flops_per_example
    agreement = compare_with_flops(promised, speedup, base.time.parts, own.time.parts, allowed)
    return replace(own, speedup=speedup, agreement=agreement)


def account(name, *cells, disk=None):
    return ModelProfile(name, "BertModel", 4, PARTS, 48.0, disk, cells)


def small_profile(ratio=2.0, parts=(1.0, 4.0, 3.0, 1.0, 1.0), rows=(), half=0.02):
    base = cell("teacher", 20.0, 8 * 10**9)
    own = cell("student", 20.0 / ratio, 4 * 10**9, parts=parts)
    models = (
        account("teacher", base, disk=48.1),
        account("student", compared(own, base, ratio, half=half)),
    )
    return Profile(models, SETTING, rows)


def test_flops_stand_beside_latency_and_throughput():
    text = profile_markdown(small_profile())
    assert "| 8 x 32 | teacher | 8.00 (4.00) | 20.00 |  |  |" in text
    assert "| 8 x 32 | student | 4.00 (2.00) | 10.00 | 2.00x | 2.00x (1.98 to 2.02) |" in text
    assert "| 8 x 32 | teacher | 22.00 | 22.00 | 400 | 3200 | 42.50 |" in text
    assert "| teacher | BertModel | 4 | 48.0 | 48.1 |" in text
    assert "| student | BertModel | 4 | 48.0 | - |" in text
    assert "| teacher | 12.00 | 4.00 | 7.00 | 0.0010 | 1.00 |" in text
    for fact in ("CPU (AVX2), A Processor, 2 threads, float32, sdpa attention", "torch 2.13.0"):
        assert fact in text


def test_each_part_has_its_time_and_its_share_of_time_and_flops():
    text = profile_markdown(small_profile())
    for name, teacher, student in (
        ("embeddings", "2.00 (10%; 0%)", "1.00 (10%; 0%)"),
        ("attention", "8.00 (40%; 25%)", "4.00 (40%; 25%)"),
        ("feed-forward", "6.00 (30%; 50%)", "3.00 (30%; 50%)"),
        ("other", "2.00 (10%; 25%)", "1.00 (10%; 25%)"),
        ("launch overhead", "2.00 (10%)", "1.00 (10%)"),
        ("profiled", "1.2x", "1.2x"),
    ):
        assert f"| 8 x 32 | {name} | {teacher} | {student} |" in text


def test_a_speed_up_that_the_flops_do_not_explain_is_pointed_out_with_its_cause():
    profile = small_profile(1.25, parts=(1.0, 4.0, 3.0, 1.0, 7.0))
    (line,) = disagreement_lines(profile)
    assert line.startswith("student, batch 8, 32 tokens: 2.00x fewer FLOPs, 1.25x faster")
    assert "misses what they promise by 38% (allowed 20%)" in line
    assert (
        "Most of it is launch overhead, which takes 6.00 ms more than promised, of the 6.00 ms"
        in line
    )
    text = profile_markdown(profile)
    assert "| 1.25x (1.23 to 1.27) ! |" in text
    assert f"- {line}" in text


def test_a_model_faster_than_its_flops_is_pointed_out_too():
    (line,) = disagreement_lines(small_profile(4.0, parts=(1.0, 4.0, 0.1, 1.0, 1.0)))
    assert "exceeds what they promise by 100%" in line
    assert "feed-forward, which takes" in line


def test_agreement_is_said_and_not_left_to_be_guessed():
    assert disagreement_lines(small_profile()) == [
        "Every speed-up is within 20% of what the FLOPs promise, surely."
    ]
    alone = replace(small_profile(), models=small_profile().models[:1])
    assert disagreement_lines(alone) == []
    assert "agree" not in profile_markdown(alone)


@pytest.mark.parametrize("ratio", [2.0, 1.4])
def test_noise_is_not_taken_for_agreement(ratio):
    """An interval of 0.9 to 1.9, or 1.5 to 2.5, holds speed-ups within 20% of 2, and others."""
    assert disagreement_lines(small_profile(ratio, half=0.5)) == [
        "No speed-up is surely further than 20% from what the FLOPs promise; 1 of 1 are too noisy "
        "to tell."
    ]
    profile, noisy = small_profile(1.0), small_profile(ratio, half=0.5).models[1]
    both = replace(profile, models=(*profile.models, replace(noisy, name="noisy")))
    flagged, rest = disagreement_lines(both)
    assert flagged.startswith("student, ")
    assert rest == "1 of 2 are too noisy to tell."


def test_runtimes_have_a_table_with_reasons_for_those_that_are_missing():
    latency = latency_row("m", 1, 32, [2.0, 2.0, 2.0])
    rows = (
        RuntimeRow("m", "eager", latency),
        RuntimeRow("m", "sdpa", latency, Speedup(1.5, 1.4, 1.6, 0.75, 3), 1.2e-6),
        RuntimeRow("m", "compile", latency, Speedup(1.5, 1.4, 1.6, 0.75, 3), math.nan),
        RuntimeRow("m", "onnx", None, missing="onnx not installed"),
    )
    text = profile_markdown(small_profile(rows=rows))
    assert "## Runtimes" in text
    assert "| 1 x 32 | m | eager | 2.00 |  |  |" in text
    assert "| 1 x 32 | m | sdpa | 2.00 | 1.50x (1.40 to 1.60, 75%) | 1.2e-06 |" in text
    assert "| 1 x 32 | m | compile | 2.00 | 1.50x (1.40 to 1.60, 75%) | no number |" in text
    assert "| 1 x 32 | m | sdpa | - | - | 500 |" in text
    assert "first runtime. No onnx of m: onnx not installed." in text
    assert "Runtimes" not in profile_markdown(small_profile())


def test_every_row_has_a_cell_for_every_column():
    rows = (RuntimeRow("m", "eager", latency_row("m", 1, 32, [2.0, 2.0, 2.0])),)
    for section in profile_sections(small_profile(rows=rows)):
        assert {len(cells) for cells in section.rows} == {len(section.header)}
        assert section_table(section).row_count == len(section.rows)


def test_a_saved_profile_has_its_files_and_reads_back(tmp_path):
    profile = small_profile()
    save_profile(profile, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["profile.json", "profile.md", "profile.png", "profile.svg"]
    assert Profile.load(tmp_path) == profile
    assert json.loads((tmp_path / "profile.json").read_text())["models"][1]["name"] == "student"
    with Image.open(tmp_path / "profile.png") as picture:
        assert min(picture.size) > 200
        assert len(picture.convert("RGB").getcolors(maxcolors=1_000_000)) > 10


def test_a_profile_that_cannot_be_drawn_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "profile.json").write_text("old")

    def fail(figure, path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_profile(small_profile(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]
    assert (tmp_path / "profile.json").read_text() == "old"


def test_outputs_that_are_no_numbers_cost_no_file_and_are_still_told(tmp_path):
    latency = latency_row("m", 1, 32, [2.0, 2.0, 2.0])
    sure = Speedup(1.5, 1.4, 1.6, 0.95, 30)
    rows = (RuntimeRow("m", "eager", latency), RuntimeRow("m", "onnx", latency, sure, math.nan))
    save_profile(small_profile(rows=rows), tmp_path)
    (_, written) = json.loads((tmp_path / "profile.json").read_text())["runtimes"]
    assert written["max_difference"] is None
    first, second = Profile.load(tmp_path).runtimes
    assert first.max_difference is None
    assert math.isnan(second.max_difference)


def test_a_profile_that_cannot_be_written_replaces_no_file(tmp_path):
    unwritable = replace(SETTING, versions={"torch": object()})
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_profile(replace(small_profile(), setting=unwritable), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_with_dollars_is_drawn_as_it_is(tmp_path):
    profile = small_profile()
    models = (replace(profile.models[0], name="a$^$b"), profile.models[1])
    save_profile(replace(profile, models=models), tmp_path)
    assert "a$^$b" in (tmp_path / "profile.svg").read_text()


def test_the_bars_end_at_the_latency_and_the_mark_at_what_the_flops_promise():
    figure = draw_profile(small_profile(1.25, parts=(1.0, 4.0, 3.0, 1.0, 7.0)))
    (panel,) = figure.axes
    ends = {}
    for bar in panel.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())
    assert ends == pytest.approx({0: 20.0, 1: 16.0})
    (promised,) = panel.lines
    assert list(promised.get_xdata()) == pytest.approx([20.0, 10.0])
    assert [text.get_text() for text in panel.get_yticklabels()] == ["teacher", "student"]
    (legend,) = figure.legends
    assert "launch overhead" in [text.get_text() for text in legend.get_texts()]


def test_a_terminal_of_80_columns_shows_every_cell_in_one_line():
    """Numbers that are broken over two lines cannot be read."""
    names = ("mrpc-bert-base", "mrpc-theseus-6", "mrpc-theseus-3")
    base = cell(names[0], 1234.5, 142 * 10**9, size=32, length=128)
    accounts = [account(names[0], base, disk=438.1)]
    for number, ratio in ((1, 1.95), (2, 3.5)):
        own = compared(
            cell(names[number], 1234.5 / ratio, 71 * 10**9, size=32, length=128), base, ratio
        )
        accounts.append(account(names[number], own, disk=265.9))
    latency = latency_row(names[1], 32, 128, [1234.5, 1250.0, 1300.0])
    sure = Speedup(1.5, 1.4, 1.6, 0.95, 30)
    rows = tuple(
        RuntimeRow(names[1], runtime, latency, sure, 1.2e-6) for runtime in ("eager", "onnx-int8")
    )
    head = "BertForSequenceClassification"
    models = tuple(replace(model, architecture=head) for model in accounts)
    console = Console(width=80, record=True, file=io.StringIO())
    for section in profile_sections(Profile(models, SETTING, rows)):
        console.print(section_table(section))
        shown = console.export_text()
        assert all(len(line) <= 80 for line in shown.splitlines())
        for cells in section.rows:
            assert any(all(text in line for text in cells) for line in shown.splitlines()), (
                section.title,
                cells,
            )

"""`kdnlp profile`: what models cost, side by side, and where their time goes."""

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel

from kdnlp.cli.parsing import PlainParser
from kdnlp.evaluation.profile_report import (
    disagreement_lines,
    profile_setting_line,
    save_profile,
    section_table,
)
from kdnlp.evaluation.profile_tables import profile_sections
from kdnlp.models.onnx_graph import ONNX_FILE
from kdnlp.models.pretrained import load_as_saved
from kdnlp.profiling.agreement import MAX_DISAGREEMENT
from kdnlp.profiling.forward import max_positions
from kdnlp.profiling.profile import Profile, profile_models
from kdnlp.profiling.runtimes import RUNTIMES, RuntimeRow, check_runtimes, compare_runtimes
from kdnlp.weights import is_export_of, read_export

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

LENGTHS = (32, 128)
"""What is measured unless --lengths says otherwise."""

EXPORTS = (".", "onnx")
"""Where in a model's folder an exported graph may lie."""

logger = logging.getLogger(__name__)


def main(command: str, argv: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options = build_parser(command).parse(argv)
    profile = run(options)
    console = Console()
    for section in profile_sections(profile):
        console.print(section_table(section))
        console.print()
    for line in (*disagreement_lines(profile), profile_setting_line(profile)):
        console.print(line, highlight=False)
    if options.output_dir is not None:
        save_profile(profile, options.output_dir)
        console.print(f"profile.json, profile.md and the plot are in {options.output_dir}.")


def build_parser(command: str = "profile") -> PlainParser:
    """The parser of the command's flags."""
    parser = PlainParser(
        command,
        "Measure what models cost: parameters, disk, FLOPs beside latency, throughput, "
        "peak memory, and which part of the model takes the time. The models take turns, the first "
        "is the reference, and a speed-up that is not what the FLOPs promise is pointed out.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a folder or a Hub id")
    flag = parser.add_argument
    flag("--batch_sizes", type=numbers, default="1,8,32", help="examples a batch")
    flag(
        "--lengths",
        type=numbers,
        help="tokens an example, without padding; without it 32,128, or less where a model has "
        "fewer positions",
    )
    flag("--device", help="where to run; without it a GPU if there is one, else the CPU")
    flag("--dtype", choices=DTYPES, default="float32", help="of weights and arithmetic")
    flag("--threads", type=int, help="CPU threads for one operation; without it as torch has it")
    flag(
        "--runtimes",
        type=words,
        default="",
        help=f"also compare each model in these, the first as reference: {','.join(RUNTIMES)}; "
        "ONNX takes the float32 graph in the model's folder that was exported from these weights, "
        "or exports one",
    )
    flag("--num_repeats", type=int, default=30, help="timed rounds a batch size and length")
    flag("--max_seconds", type=float, default=120.0, help="for all rounds together")
    flag(
        "--max_disagreement",
        type=float,
        default=MAX_DISAGREEMENT,
        help="share by which a speed-up may miss the ratio of FLOPs before that is pointed out",
    )
    flag(
        "--output_dir",
        help="also write profile.json, .md, .png and .svg there",
    )
    flag("--trust_remote_code", action="store_true", help="run Python code that a model brings")
    return parser


def run(options: argparse.Namespace) -> Profile:
    """Load and measure the models that the flags name.

    Raises:
        ValueError: if a flag is out of range, or a model cannot be measured.
        OSError: if a model is not there.
    """
    if options.runtimes:
        check_runtimes(options.runtimes)
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {options.threads}.")
        torch.set_num_threads(options.threads)
    paths = model_names(options.models)
    device = find_device(options.device)
    models = {
        name: nn.Module.to(
            load_as_saved(
                path, dtype=DTYPES[options.dtype], trust_remote_code=options.trust_remote_code
            ),
            device,
        )
        for name, path in paths.items()
    }
    options.lengths = find_lengths(options.lengths, models)
    profile = profile_models(
        models,
        options.batch_sizes,
        options.lengths,
        num_repeats=options.num_repeats,
        max_seconds=seconds_each(options),
        max_disagreement=options.max_disagreement,
        folders={name: path for name, path in paths.items() if os.path.isdir(path)},
    )
    if not options.runtimes:
        return profile
    return replace(profile, runtimes=tuple(runtime_rows(models, paths, options)))


def find_lengths(
    chosen: Sequence[int] | None, models: Mapping[str, PreTrainedModel]
) -> Sequence[int]:
    """The lengths to measure: those that were chosen, or of `LENGTHS` what all models can read.

    Raises:
        ValueError: if a model has fewer positions than a length that was chosen.
    """
    limits = {name: limit for name, m in models.items() if (limit := max_positions(m)) is not None}
    if not limits:
        return chosen or LENGTHS
    name, limit = min(limits.items(), key=lambda item: item[1])
    if chosen is None:
        lengths = tuple(dict.fromkeys(min(length, limit) for length in LENGTHS))
        if lengths != LENGTHS:
            logger.warning(
                "Measured at %s tokens instead of %s: %s has %d positions. --lengths chooses "
                "others.",
                *(",".join(map(str, several)) for several in (lengths, LENGTHS)),
                name,
                limit,
            )
        return lengths
    if max(chosen) > limit:
        raise ValueError(
            f"--lengths must be at most {limit}, the positions that {name} has, got {max(chosen)}. "
            "No real input of the model is that long. Choose shorter ones."
        )
    return chosen


def runtime_rows(
    models: Mapping[str, PreTrainedModel], paths: Mapping[str, str], options: argparse.Namespace
) -> list[RuntimeRow]:
    """Every model in every runtime that the flags name."""
    rows: list[RuntimeRow] = []
    for name, model in models.items():
        rows += compare_runtimes(
            model,
            options.runtimes,
            name,
            options.batch_sizes,
            options.lengths,
            num_repeats=options.num_repeats,
            max_seconds=seconds_each(options),
            graph=own_graph(Path(paths[name])),
        )
    return rows


def own_graph(folder: Path) -> Path | None:
    """The graph in a model's folder that is the model in float32, by what its export says."""
    for place in (folder / name for name in EXPORTS):
        graph = place / ONNX_FILE
        if not graph.is_file():
            continue
        if read_export(place).get("precision") == "float32" and is_export_of(place, folder):
            return graph
        logger.warning(
            "%s is left alone, and a graph written for the measurement: export.json beside it does "
            "not say that it is these weights in float32.",
            graph,
        )
    return None


def seconds_each(options: argparse.Namespace) -> float:
    """The share of --max_seconds for the models side by side, and for the runtimes of each."""
    comparisons = 1 + (len(options.models) if options.runtimes else 0)
    return float(options.max_seconds) / comparisons


def model_names(paths: Sequence[str]) -> dict[str, str]:
    """Short names for models: the last part of each path, or all of it where that is not enough.

    >>> model_names(["out/mrpc", "out/mrpc-theseus/"])
    {'mrpc': 'out/mrpc', 'mrpc-theseus': 'out/mrpc-theseus/'}
    >>> model_names(["a/model", "b/model"])
    {'a/model': 'a/model', 'b/model': 'b/model'}

    Raises:
        ValueError: if a model is named twice.
    """
    if len(set(paths)) < len(paths):
        raise ValueError(f"Expected every model once, got {' '.join(paths)}.")
    short = [path.rstrip("/").rpartition("/")[2] for path in paths]
    return dict(zip(short if len(set(short)) == len(short) else paths, paths, strict=True))


def find_device(name: str | None) -> torch.device:
    """The device of that name, or a GPU if there is one, else the CPU.

    Raises:
        ValueError: if there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must read like cpu or cuda:0, got {name!r}.") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be a CPU or a CUDA device, got {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here."
        )
    return device


def numbers(text: str) -> list[int]:
    """Numbers of at least 1, from text such as `1,8,32`.

    Raises:
        argparse.ArgumentTypeError: if it is something else.
    """
    parts = words(text)
    if not parts or not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers from 1, like 1,8,32, got {text!r}")
    return [int(part) for part in parts]


def words(text: str) -> list[str]:
    """The parts of a text between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]

"""Does `profile_models` find the speed-ups that a bare loop finds, within its stated interval?

BERT-base with random weights, 12 blocks against 6 and 3. The bare loop shares no code with the
profile: its own inputs, clock and interval (by ranks, where the profile's is a bootstrap). One half
of it runs before the profile and one after.

It ends with status 1 if the two disagree anywhere.

PYTHONPATH=. python benchmarks/profile_agrees.py
"""

import argparse
import math
import statistics
import sys
import time
from dataclasses import dataclass

import torch

from benchmarks.floors import build_teacher
from benchmarks.interleave import build_parser, in_turns, set_up
from kdnlp.cli.ladder import parse_depths
from kdnlp.models.student import build_student
from kdnlp.profiling.profile import Profile, profile_models

WARMUP = 3


@dataclass(frozen=True)
class Ratio:
    """A speed-up and its interval of 95%."""

    value: float
    low: float
    high: float

    def meets(self, other: "Ratio") -> bool:
        """Whether a ratio can be true for both."""
        return self.low <= other.high and other.low <= self.high


def main(argv: list[str] | None = None) -> dict[tuple[int, int, str], bool]:
    """Print the table; returns whether both agree, by repeat, batch size and student."""
    options = parse(argv)
    set_up()
    teacher = build_teacher(options)
    models = {str(options.teacher_layers): teacher}
    for depth in parse_depths(options.depths, options.teacher_layers):
        models[str(depth)] = build_student(teacher, depth).eval()
    print(
        f"{options.length} tokens, {torch.get_num_threads()} threads, {options.rounds} rounds; "
        "speed-up over the first with its interval of 95%, and whether each holds the other's ratio"
    )
    return {
        (repeat, size, name): agrees
        for repeat in range(options.repeats)
        for size in options.batch_sizes
        for name, agrees in compare(models, size, options).items()
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The sizes and repeats."""
    sizes = {"teacher_layers": 12, "hidden_size": 768}
    parser = build_parser(__doc__, 3, rounds=30, length=128, **sizes)
    parser.add_argument("--depths", default="6,3", help="blocks of the students")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1])
    return parser.parse_args(argv)


def compare(models: dict, batch_size: int, options: argparse.Namespace) -> dict[str, bool]:
    """Measure both ways, and print a line a student."""
    seconds = {name: [] for name in models}
    bare_rounds(models, batch_size, options, seconds)
    profile = profile_models(
        models, (batch_size,), (options.length,), num_repeats=options.rounds, max_seconds=None
    )
    bare_rounds(models, batch_size, options, seconds)
    reference, *students = models
    result = {}
    for name in students:
        bare = rank_interval(
            [a / b for a, b in zip(seconds[reference], seconds[name], strict=True)]
        )
        ours = profiled_ratio(profile, name)
        result[name] = ours.meets(bare)
        print(
            f"batch {batch_size:3}  {reference} to {name:3} "
            f"profile {text(ours)} {'holds' if ours.low <= bare.value <= ours.high else 'misses'}, "
            f"bare {text(bare)} {'holds' if bare.low <= ours.value <= bare.high else 'misses'}; "
            f"{ours.value / bare.value - 1:+.2%}: {'agree' if result[name] else 'DISAGREE'}",
            flush=True,
        )
    return result


def bare_rounds(models: dict, batch_size: int, options: argparse.Namespace, seconds: dict) -> None:
    """Half of the bare loop's rounds."""
    ids = torch.randint(5, 30522, (batch_size, options.length))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        for _ in range(WARMUP):
            for model in models.values():
                model(input_ids=ids, attention_mask=mask)
        for name in in_turns(models, math.ceil(options.rounds / 2)):
            start = time.perf_counter()
            models[name](input_ids=ids, attention_mask=mask)
            seconds[name].append(time.perf_counter() - start)


def rank_interval(ratios: list[float]) -> Ratio:
    """The median and two ranks as far from it, which hold the true one in 95% of all cases."""
    ordered, number = sorted(ratios), len(ratios)
    low = max(0, math.floor(number / 2 - 1.96 * math.sqrt(number) / 2))
    return Ratio(statistics.median(ordered), ordered[low], ordered[number - 1 - low])


def profiled_ratio(profile: Profile, name: str) -> Ratio:
    """What the profile says."""
    (found,) = (model for model in profile.models if model.name == name)
    speedup = found.cells[0].speedup
    return Ratio(speedup.ratio, speedup.low, speedup.high)


def text(ratio: Ratio) -> str:
    """For the table."""
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


if __name__ == "__main__":
    sys.exit(0 if all(main().values()) else 1)

"""Timing several things side by side: they take turns, so that the machine's drift cancels."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from kdnlp.profiling.placed import synchronize

MIN_REPEATS = 3

Inputs = Mapping[str, torch.Tensor]


def time_rounds(
    models: Mapping[str, Callable[..., object]],
    inputs: Mapping[str, Inputs],
    device: torch.device,
    num_warmup: int,
    num_repeats: int,
    max_seconds: float | None = None,
) -> dict[str, list[float]]:
    """Time calls round by round: each model once, in an order that moves on by one a round.

    When the machine slows down or speeds up, it does so for all of them, and the ratios stay.

    Args:
        models: what to call, by name; nothing needs to be a module.
        inputs: keyword arguments of each, by name.
        device: where they run; it is waited for before and after every call.
        num_warmup: rounds before the clock counts; at least 1.
        num_repeats: timed rounds; at least `MIN_REPEATS`.
        max_seconds: when they have passed no further round starts, except the one warm-up round
            and the `MIN_REPEATS` timed ones that are always there.

    Returns:
        Milliseconds by model, one number a timed round: position `i` is round `i` for all of them.
    """
    deadline = None if max_seconds is None else time.perf_counter() + max_seconds
    names = list(models)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(num_warmup + num_repeats):
        late = deadline is not None and time.perf_counter() > deadline
        warming = number < num_warmup
        if late and warming and number >= 1:
            continue
        if late and not warming and len(times[names[0]]) >= MIN_REPEATS:
            break
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            elapsed = _time_once(models[name], inputs[name], device)
            if not warming:
                times[name].append(elapsed)
    return times


def check_rounds(
    models: Mapping[str, object], batch_sizes: Sequence[int], num_warmup: int, num_repeats: int
) -> None:
    """Raise `ValueError` if a request for timings has nothing to measure, or would mislead."""
    if not models or not batch_sizes:
        raise ValueError(
            f"Expected at least one model and one batch size, got {len(models)} and "
            f"{list(batch_sizes)}. There is nothing to measure."
        )
    if num_warmup < 1 or num_repeats < MIN_REPEATS:
        raise ValueError(
            f"Expected num_warmup of at least 1 and num_repeats of at least {MIN_REPEATS}, got "
            f"{num_warmup} and {num_repeats}. A first pass pays for allocation, and a median of "
            "fewer is no median: both would pass for the model's latency."
        )


def _time_once(model: Callable[..., object], inputs: Inputs, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    model(**inputs)
    synchronize(device)
    return (time.perf_counter() - start) * 1000

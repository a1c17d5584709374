"""GLUE: run a study's missing cells, then rebuild tables and plots from all results.

python -m benchmarks.glue --data_dir GLUE --model MINILM --bf16 --jobs 2  # on from where it stopped
python -m benchmarks.glue --study hunt --data_dir GLUE --model MINILM --jobs 2
python -m benchmarks.glue --quick --data_dir GLUE --model MINILM  # one row again, in minutes
python -m benchmarks.glue --latency --model MINILM --bf16         # on an idle machine
python -m benchmarks.glue --tables                                # from the results alone

The tables of --results other than the committed ones are written beside them.
"""

import argparse
import logging
import sys
from pathlib import Path

from benchmarks.glue.drive import run_grid
from benchmarks.glue.grid import Grid
from benchmarks.glue.latency import measure_latency
from benchmarks.glue.quick import ROWS, run_quick
from benchmarks.glue.results import RESULTS, Results
from benchmarks.glue.sections import MAIN, committed, rebuild, write_page
from benchmarks.glue.train import Place

HERE = Path(__file__).resolve().parent
GRID = HERE / "grid.yaml"

_WHICH = ("grid", "study", "results", "device", "bf16")
"""The flags that say which results are meant."""

_TRAINING = ("data_dir", "model", "work", "jobs")
"""The flags that are about running cells alone."""


def main(argv: list[str] | None = None) -> int:
    """Run a study; 1 if a cell failed."""
    options = parse(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    studies = Grid.read(options.grid)
    if options.study not in studies:
        raise SystemExit(f"--study: expected one of {', '.join(studies)}; got {options.study}.")
    work = options.work / options.study
    place = Place(options.data_dir, options.model, work, options.device, options.bf16)
    grid, folder = studies[options.study], options.results / options.study
    own, results = options.results == RESULTS, Results(folder / place.setting)
    if options.quick:
        return run_quick(options.quick, grid, committed(grid) if own else results, place)
    if own and options.grid != GRID:
        raise SystemExit(f"{RESULTS} holds results of {GRID}. Give --results another folder.")
    failed = {}
    if options.latency:
        depths = {blocks for each in studies.values() for _, _, blocks, _ in each.rows()}
        measure_latency(depths, results, place, grid.model)
    elif not options.tables:
        failed = run_grid(grid, results, place, options.jobs)
    if own and (options.tables or results.folder == committed(grid).folder):
        rebuild(studies)
    else:
        print(f"Tables: {write_page(grid, results)}")
    return 1 if failed else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Study, folders, device, jobs, and what is done instead of running cells."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.glue",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--grid", type=_path, default=GRID, help="the YAML file")
    parser.add_argument("--study", default=MAIN, help="one of the YAML file; default %(default)s")
    parser.add_argument("--data_dir", help="folder of GLUE; without it, the Hub's")
    parser.add_argument("--model", help="folder or Hub id of the encoder; default the grid's")
    parser.add_argument("--results", type=_path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--work", type=_path, default=_path("out/glue"), help="teachers and caches")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true", help="train under autocast")
    parser.add_argument("--jobs", type=int, default=1, help="cells that run at a time")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--quick",
        nargs="?",
        const=next(iter(ROWS)),
        choices=ROWS,
        help="run one row of the task again and compare it; default %(const)s",
    )
    what.add_argument("--latency", action="store_true", help="measure speed-ups, train nothing")
    what.add_argument("--tables", action="store_true", help="rebuild the tables, run nothing")
    options = parser.parse_args(argv)
    unread = _TRAINING if options.results != RESULTS else (*_TRAINING, *_WHICH)
    beside = {name for name in unread if getattr(options, name) != parser.get_default(name)}
    if options.tables and beside:
        parser.error(
            f"--tables trains nothing, and without --results it writes what {RESULTS} and {GRID} "
            f"say into the READMEs. Leave {', '.join(f'--{name}' for name in sorted(beside))} out."
        )
    return options


def _path(text: str) -> Path:
    return Path(text).resolve()


if __name__ == "__main__":
    sys.exit(main())

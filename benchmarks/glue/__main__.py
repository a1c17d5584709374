"""GLUE: run the grid's missing cells, then rebuild tables and plots from all results.

python -m benchmarks.glue --data_dir GLUE --model MINILM --bf16 --jobs 2  # on from where it stopped
python -m benchmarks.glue --quick --data_dir GLUE --model MINILM  # one row again, in minutes
python -m benchmarks.glue --latency --model MINILM --bf16         # on an idle machine
python -m benchmarks.glue --tables                                # from the results alone
"""

import argparse
import logging
import sys
from pathlib import Path

from benchmarks.glue.drive import run_grid
from benchmarks.glue.grid import Grid
from benchmarks.glue.latency import measure_latency
from benchmarks.glue.quick import run_quick
from benchmarks.glue.results import RESULTS, Results
from benchmarks.glue.sections import rebuild
from benchmarks.glue.train import Place

HERE = Path(__file__).resolve().parent
GRID = HERE / "grid.yaml"
SETTING = "cpu-bfloat16"
"""The device and precision whose results the READMEs show."""


def main(argv: list[str] | None = None) -> int:
    """Run the grid; 1 if a cell failed."""
    options = parse(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    place = Place(options.data_dir, options.model, options.work, options.device, options.bf16)
    setting = SETTING if options.tables else place.setting
    grid, results = Grid.read(options.grid), Results(options.results / setting)
    shown = (options.grid, results.folder) == (GRID, RESULTS / SETTING)
    if options.tables and (options.bf16 or options.device != "cpu" or not shown):
        raise SystemExit(
            f"--tables writes what {RESULTS / SETTING} and {GRID} say into the READMEs, and "
            "nothing else. Leave --results, --grid, --device and --bf16 out."
        )
    if options.quick:
        return run_quick(grid, Results(options.results / SETTING), place)
    failed = {}
    if options.latency:
        measure_latency(grid, results, place)
    elif not options.tables:
        failed = run_grid(grid, results, place, options.jobs)
    if shown:
        rebuild(grid, results)
    return 1 if failed else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Folders, device and jobs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.glue",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--grid", type=_path, default=GRID, help="the YAML file")
    parser.add_argument("--data_dir", help="folder of GLUE; without it, the Hub's")
    parser.add_argument("--model", help="folder or Hub id of the encoder; default the grid's")
    parser.add_argument("--results", type=_path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--work", type=_path, default="out/glue", help="teachers and caches")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true", help="train under autocast")
    parser.add_argument("--jobs", type=int, default=1, help="cells that run at a time")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="run one row again and compare it")
    what.add_argument("--latency", action="store_true", help="measure speed-ups, train nothing")
    what.add_argument("--tables", action="store_true", help="rebuild the tables, run nothing")
    return parser.parse_args(argv)


def _path(text: str) -> Path:
    return Path(text).resolve()


if __name__ == "__main__":
    sys.exit(main())

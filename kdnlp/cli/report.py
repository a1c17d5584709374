"""`kdnlp report`: print the report of a run, or compare several."""

import os
from collections.abc import Sequence

from rich.console import Console

from kdnlp.cli.parsing import PlainParser
from kdnlp.evaluation.against import judge
from kdnlp.evaluation.comparison import compare
from kdnlp.evaluation.comparison_files import comparison_tables, save_comparison
from kdnlp.evaluation.report import CompressionReport
from kdnlp.evaluation.tables import report_table


def main(command: str, argv: Sequence[str]) -> None:
    """Run the command with its arguments."""
    parser = PlainParser(
        command,
        "Print the report that a run left in its output_dir. Of several runs, print "
        "one table: a row per task and model, with mean and standard deviation over the runs; and "
        "whether the models differ by more than chance, over seeds and over rows.",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="output_dir of a run")
    parser.add_argument(
        "--output_dir",
        help="also write the comparison there, as comparison.md, .json, .html, .png and .svg",
    )
    parser.add_argument(
        "--against",
        metavar="MODEL",
        help="test all others against this model, named as in the table; a name without "
        "its blocks is the one of each model's own depth; default the baseline of the same run, "
        "and of runs without one the first model that was made",
    )
    options = parser.parse(argv)
    check_once(options.folders)
    reports = [CompressionReport.load(folder) for folder in options.folders]
    if len(reports) == 1 and options.output_dir is None and options.against is None:
        Console().print(report_table(reports[0]))
        return
    rows = compare(reports)
    tests = judge(rows, options.against)
    for table in comparison_tables(rows, tests):
        Console().print(table)
    if options.output_dir is not None:
        save_comparison(rows, options.output_dir, tests)


def check_once(folders: Sequence[str]) -> None:
    """Raise `ValueError` for a folder that is named twice, under whatever names."""
    real = [os.path.realpath(folder) for folder in folders]
    twice = [folder for n, folder in enumerate(folders) if real[n] in real[:n]]
    if twice:
        raise ValueError(
            f"Expected every run once, got {', '.join(dict.fromkeys(twice))} again. It would count "
            "as a further seed, and the runs would seem more alike than they are. Name it once."
        )

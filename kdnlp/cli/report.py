"""`kdnlp report`: print the report of a run, or compare several."""

import argparse
from collections.abc import Sequence

from rich.console import Console

from kdnlp.evaluation.comparison import compare, comparison_table, save_comparison
from kdnlp.evaluation.report import CompressionReport
from kdnlp.evaluation.tables import report_table


def main(command: str, argv: Sequence[str]) -> None:
    """Run the command with its arguments."""
    parser = argparse.ArgumentParser(
        prog=f"kdnlp {command}",
        description="Print the report that a run left in its output_dir. Of several runs, print "
        "one table: a row per task and model, with mean and standard deviation over the runs.",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="output_dir of a run")
    parser.add_argument(
        "--output_dir", help="also write the comparison there, as comparison.md and .json"
    )
    options = parser.parse_args(argv)
    reports = [CompressionReport.load(folder) for folder in options.folders]
    if len(reports) == 1 and options.output_dir is None:
        Console().print(report_table(reports[0]))
        return
    rows = compare(reports)
    Console().print(comparison_table(rows))
    if options.output_dir is not None:
        save_comparison(rows, options.output_dir)

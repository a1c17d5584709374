"""`kdnlp push`: the folder of a run goes to the Hub, by an allow-list and with a whole card."""

import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard
from rich.console import Console
from rich.table import Table

from kdnlp.cli.parsing import PlainParser
from kdnlp.files import replace_text
from kdnlp.uploads.card_check import CARD, check_card, for_repo, on_branch
from kdnlp.uploads.export_section import with_export
from kdnlp.uploads.license import as_license, check_stated, with_own_license
from kdnlp.uploads.plain_folder import check_complete
from kdnlp.uploads.publishable import files_left_out
from kdnlp.uploads.send import check_repo_id, claim_repo, hub, send

DESCRIPTION = (
    "Publish the model in DIR on the Hub: weights, configuration, tokenizer, card, report, "
    "pictures and exported models. Nothing else in DIR is sent: no checkpoint, optimizer state, "
    "cache, log or teacher. All of it appears at once, as one commit."
)


def main(command: str, argv: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options = _parser(command).parse(argv)
    if int(os.environ.get("RANK", "0")):
        return  # of several processes one sends
    check_repo_id(options.repo_id)
    folder, console = Path(options.folder), Console()
    card = read_card(folder, options.license)
    files = with_own_license(check_complete(folder), card, folder)
    console.print(listing(folder, files, options.repo_id))
    if options.dry_run:
        console.print("Nothing was sent: --dry_run.")
        return
    hub()
    repo_id = claim_repo(options.repo_id, private=options.private or None)
    card = on_branch(with_export(for_repo(card, repo_id), folder, files), options.revision)
    if str(card) != (folder / CARD).read_text(encoding="utf-8"):
        replace_text(folder / CARD, str(card))
    commit = send(folder, files, repo_id, options.commit_message, revision=options.revision)
    lines = (str(commit.repo_url), f"repo_id {repo_id}", f"commit {commit.oid}")
    console.print("\n".join(lines), soft_wrap=True)


def _parser(command: str) -> PlainParser:
    parser = PlainParser(command, DESCRIPTION)
    parser.add_argument("folder", metavar="DIR", help="output_dir of a run, or a model's folder")
    parser.add_argument("--repo_id", required=True, help="OWNER/NAME, or a NAME of your own")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--license", help="the model's licence, such as apache-2.0; default is what its card says"
    )
    parser.add_argument("--revision", help="branch, made unless it is there; without it main")
    parser.add_argument("--commit_message", default="Upload model", help="first line of the commit")
    parser.add_argument(
        "--dry_run", action="store_true", help="check everything and list it, but send nothing"
    )
    return parser


def read_card(folder: Path, license: str | None = None) -> ModelCard:
    """The card in a folder, with a licence.

    Args:
        folder: of a model.
        license: takes the place of the one in the card.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there is no card, it leaves something open, or nobody names a licence.
    """
    path = folder / CARD
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No folder {folder} here. Name the output_dir of a run that has ended."
        )
    if not path.is_file():
        raise ValueError(
            f"Expected a model card, {CARD}, in {folder}, found none. A model without one tells "
            "nobody what it is. kdnlp's training commands write it at their end; "
            "kdnlp.publish_results does from Python."
        )
    card = check_card(path.read_text(encoding="utf-8"), str(path))
    if license is not None:
        as_license(license).add_to(card)
    check_stated(card, folder)
    return card


def listing(folder: Path, files: Sequence[Path], repo_id: str) -> Table:
    """What goes, with its size in MB of 10^6 bytes, and the names of what stays."""
    left_out = ", ".join(path.name for path in files_left_out(folder, files))
    table = Table(title=f"to {repo_id}", caption=f"not sent: {left_out}" if left_out else None)
    table.add_column("file")
    table.add_column("MB", justify="right")
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    for name, size in [*sizes.items(), ("all", sum(sizes.values()))]:
        table.add_row(name, f"{size / 1e6:.3f}")
    return table

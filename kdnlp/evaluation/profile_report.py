"""A profile for people: on the terminal, as markdown, and as bars of where time goes."""

import os
import textwrap
from pathlib import Path

from rich import box
from rich.console import JustifyMethod
from rich.table import Table

from kdnlp.evaluation.json_text import json_text
from kdnlp.evaluation.plots import draw_profile, save_figure
from kdnlp.evaluation.profile_tables import COSTS, Section, profile_sections
from kdnlp.evaluation.promises import disagreement_text
from kdnlp.evaluation.tables import markdown_table
from kdnlp.files import replace_text
from kdnlp.profiling.agreement import is_too_noisy
from kdnlp.profiling.profile import PROFILE_JSON, Profile

PROFILE_MARKDOWN, PROFILE_PLOT = "profile.md", "profile"

_HEADER_WIDTH = 10


def section_table(section: Section) -> Table:
    """A section as a table for the terminal, with as little between the columns as can be."""
    table = Table(
        title=section.title,
        title_justify="left",
        caption=section.note,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, column in enumerate(section.header):
        # A column is as wide as its cells, and not as what stands above them.
        name = textwrap.fill(column, _HEADER_WIDTH, break_long_words=False, break_on_hyphens=False)
        justify: JustifyMethod = "left" if number < section.texts else "right"
        table.add_column(name, justify=justify, overflow="fold")
    for cells in section.rows:
        table.add_row(*cells)
    return table


def disagreement_lines(profile: Profile) -> list[str]:
    """A sentence for every speed-up that is surely not what the FLOPs promise, or on all."""
    cells = [cell for model in profile.models for cell in model.cells]
    compared = [(c.agreement, c.speedup) for c in cells if c.agreement and c.speedup]
    if not compared:
        return []
    lines = [
        f"{name}, {cell.latency.words}: {disagreement_text(cell.agreement)}"
        for name, cell in profile.disagreements
        if cell.agreement is not None
    ]
    within = f"{compared[0][0].max_difference:.0%}"
    noisy = sum(is_too_noisy(agreement, speedup) for agreement, speedup in compared)
    if noisy:
        none = "" if lines else f"No speed-up is surely further than {within} from what the FLOPs "
        none += "" if lines else "promise; "
        lines.append(f"{none}{noisy} of {len(compared)} are too noisy to tell.")
    elif not lines:
        lines.append(f"Every speed-up is within {within} of what the FLOPs promise, surely.")
    return lines


def profile_setting_line(profile: Profile) -> str:
    """What the profile was measured on, in a sentence."""
    setting = profile.setting
    threads = "1 thread" if setting.threads == 1 else f"{setting.threads} threads"
    versions = ", ".join(f"{name} {version}" for name, version in setting.versions.items())
    return (
        f"Measured on {setting.device}, {setting.processor}, {threads}, {setting.dtype}, "
        f"{setting.attention} attention; {versions}. Inputs without padding; the models take turns."
    )


def profile_markdown(profile: Profile) -> str:
    """The profile as a markdown document."""
    lines = ["# What the models cost", ""]
    for section in profile_sections(profile):
        lines += [f"## {section.title}", "", *markdown_table(section.header, section.rows), ""]
        lines += [section.note, ""]
        if section.title == COSTS and (found := disagreement_lines(profile)):
            lines += [*(f"- {line}" for line in found), ""]
    return "\n".join([*lines, profile_setting_line(profile), ""])


def save_profile(profile: Profile, folder: str | os.PathLike[str]) -> None:
    """Write `profile.png`, `profile.svg`, `profile.md` and `profile.json` into `folder`.

    Each file appears under its name once it is whole, the JSON last. In it a number that is not
    finite is `null`.
    """
    # What cannot be written must fail before the first file of an earlier profile is replaced.
    text, markdown = json_text(profile.to_dict()), profile_markdown(profile)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_figure(lambda: draw_profile(profile), target, PROFILE_PLOT)
    replace_text(target / PROFILE_MARKDOWN, markdown)
    replace_text(target / PROFILE_JSON, text)

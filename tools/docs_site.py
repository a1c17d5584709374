"""The pages that mkdocs makes from the code: a hook, named in mkdocs.yml.

A loss, a command or a public name has its page or its place as soon as it is in `LOSSES`,
`COMMANDS` or `kdnlp.__all__`. In a page of docs/ a line such as `<!-- values NAME -->` becomes what
the function of that name in `INSERTIONS` makes of NAME.
"""

import re
from pathlib import Path
from typing import Any

from docs_api import api_pages, command_pages
from docs_insertions import docstring_text, recipe_table, schedules_table, values_table
from docs_losses import loss_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]

INSERTIONS = {
    "text": docstring_text,
    "values": values_table,
    "recipe": recipe_table,
    "schedules": schedules_table,
}

_INSERTION = re.compile(r"^<!-- (\w+)((?: [\w.]+)*) -->$", re.MULTILINE)
_PAGES_OF_THE_REPOSITORY = {
    "recipes/README.md": "recipes.md",
    "benchmarks/glue/README.md": "glue.md",
}
_PICTURES = "benchmarks/glue/plots/*.svg"


def generated_pages() -> dict[str, str]:
    """Markdown by path below docs/ of every page that is made."""
    own = {
        page: (ROOT / source).read_text(encoding="utf-8")
        for source, page in _PAGES_OF_THE_REPOSITORY.items()
    }
    return {**loss_pages(), **command_pages(), **api_pages(), **own}


def with_insertions(markdown: str) -> str:
    """A page with its insertions in place.

    Raises:
        KeyError: if a comment asks for something that there is not.
    """
    return _INSERTION.sub(lambda found: INSERTIONS[found[1]](*found[2].split()), markdown)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the made pages into the navigation, each folder in its place."""
    config.extra["made"] = generated_pages()
    config.nav = [_filled(entry, config.extra["made"]) for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages, and the pictures of the repository's own."""
    for path, markdown in config.extra["made"].items():
        files.append(File.generated(config, path, content=markdown))
    for picture in sorted(ROOT.glob(_PICTURES)):
        name = f"plots/{picture.name}"
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Insert what the code says, and lead links into the repository to the site's own pages."""
    up = "../" * page.file.src_uri.count("/")
    for target, own in _PAGES_OF_THE_REPOSITORY.items():
        markdown = markdown.replace(f"({up}../{target}", f"({up}{own}")
    return with_insertions(markdown)


def _filled(entry: Any, made: dict[str, str]) -> Any:
    """An entry of the navigation, with a folder in the place of its pages."""
    if isinstance(entry, dict):
        return {title: _filled(content, made) for title, content in entry.items()}
    if isinstance(entry, list):
        return [_filled(part, made) for part in entry]
    return [path for path in made if path.startswith(entry)] if entry.endswith("/") else entry

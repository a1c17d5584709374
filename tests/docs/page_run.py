"""Runs a page's blocks one after the other, as a reader would who copies them."""

import os
import runpy
import shlex
import signal
import subprocess
import sys
import threading
from unittest.mock import patch

from kdnlp.cli import main

_SHORT = ("--max_steps", "3", "--use_cpu", "--disable_tqdm", "true")

SHORTENED = {
    "demo": ("--max_steps", "3", "--use_cpu"),
    "finetune": _SHORT,
    "distill": _SHORT,
    "theseus": _SHORT,
    "ladder": _SHORT,
    "profile": ("--max_seconds", "0.1", "--num_repeats", "3", "--device", "cpu"),
}
"""The flags that are put behind a command of `kdnlp`; nothing else of a block is changed."""

SHORTENED_RECIPE = _SHORT
"""The same for a script in recipes/."""

OVERWRITE = ("--overwrite_output_dir",)
"""Behind whatever trains, unless it resumes: two blocks of a page may show one folder."""

_ASK = """#!/bin/sh
printf '%s\\0' "$PWD" {name} "$@" > "$DOCS_ASKED"
exit "$(cat "$DOCS_ANSWERED")"
"""


class PageRun:
    """One page's namespace, and the folder that its blocks are run in.

    Python is run in one namespace, in order. A diff changes the page's first Python block, and the
    result is run. A file that a block shows is written under its title. Shell is run by bash; where
    it calls `kdnlp` or a script in recipes/, bash asks this process, which has everything imported.

    Args:
        folder: the process must be there.
        bin_folder: for the two programs that bash finds first; another folder.
    """

    def __init__(self, folder, bin_folder):
        self.folder, self.bin = folder, bin_folder
        self.namespace = {"__name__": "__main__"}
        self.first = None
        self.ran = []

    def run(self, block):
        """Run a block, or fail with its place in the page.

        Raises:
            AssertionError: if the block fails, names its language by no name that is run, or shows
                a file without saying which.
        """
        runners = {
            "python": self._python,
            "diff": self._diff,
            "sh": self._sh,
            "yaml": self._file,
            "csv": self._file,
        }
        assert block.language in runners, f"{block.place}: nothing runs {block.language!r}"
        runners[block.language](block)
        self.ran.append(block)

    def _python(self, block):
        self.first = self.first or block
        self._execute(block.text, block)

    def _diff(self, block):
        assert self.first is not None, f"{block.place}: a diff of what?"
        self._execute(patched(self.first.text, block), block)

    def _execute(self, text, block):
        # Blank lines in front, so that a traceback names the line of the page.
        code = compile("\n" * block.line + text, block.page, "exec")
        exec(code, self.namespace)

    def _file(self, block):
        assert block.title, f"{block.place}: which file is it? Say title=..."
        path = self.folder / block.title
        path.write_text(block.text, encoding="utf-8")

    def _sh(self, block):
        asked, answered = self._pipes()
        environment = {
            **os.environ,
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "DOCS_ASKED": str(asked),
            "DOCS_ANSWERED": str(answered),
            "MINILM": "google-bert/bert-base-uncased",
            "GLUE": str(self.folder / "nyu-mll" / "glue"),
        }
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", block.text],
            env=environment,
            cwd=self.folder,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        threading.Thread(target=_tell_when_it_ends, args=(shell, asked), daemon=True).start()
        try:
            while call := asked.read_bytes():
                status = self._answer([part.decode() for part in call.split(b"\0")[:-1]])
                answered.write_text(str(status))
        except BaseException:  # else bash would wait for an answer for good
            os.killpg(shell.pid, signal.SIGKILL)
            raise
        assert shell.returncode == 0, f"{block.place}: bash ended with {shell.returncode}"

    def _pipes(self):
        """The two pipes, and beside them the programs `kdnlp` and `python` for bash to find."""
        pipes = self.bin / "asked", self.bin / "answered"
        if not pipes[0].exists():
            for pipe in pipes:
                os.mkfifo(pipe)
            for name in ("kdnlp", "python"):
                (self.bin / name).write_text(_ASK.format(name=name))
                (self.bin / name).chmod(0o755)
        return pipes

    def _answer(self, call):
        """Run what bash asked for, and return its exit status."""
        folder, program, *arguments = call
        assert folder == str(self.folder.resolve()), f"{shlex.join(call[1:])} is run in {folder}"
        try:
            if program == "kdnlp":
                main([*arguments, *shortening(SHORTENED.get(arguments[0], ()), arguments)])
            else:
                script, *flags = arguments
                assert script.startswith("recipes/"), f"python {script} is no recipe"
                argv = [script, *flags, *shortening(SHORTENED_RECIPE, flags)]
                with patch.object(sys, "argv", argv):
                    runpy.run_path(script, run_name="__main__")
        except SystemExit as stopped:
            print(stopped, file=sys.stderr)
            return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        except Exception as error:
            raise AssertionError(f"{shlex.join(call[1:])}: {error}") from error
        return 0


def shortening(flags, arguments):
    """The flags to put behind these arguments."""
    trains = "--max_steps" in flags and arguments[0] != "demo"
    resumes = "--resume_from_checkpoint" in arguments
    return (*flags, *(OVERWRITE if trains and not resumes else ()))


def patched(text, block):
    """A text after a diff: hunks begin with `@@`, and each must fit at exactly one place.

    >>> from code_blocks import Block
    >>> patched("a\\nb\\nc\\n", Block("page", 1, "diff", "", "@@ x @@\\n-b\\n+d\\n c\\n"))
    'a\\nd\\nc\\n'
    """
    for hunk in block.text.split("@@\n")[1:]:
        lines = hunk.partition("\n@@")[0].splitlines()
        before, after = (
            "".join(f"{line[1:]}\n" for line in lines if line[0] in marks) for marks in (" -", " +")
        )
        assert text.count(before) == 1, f"{block.place}: this is not in the first block:\n{before}"
        text = text.replace(before, after)
    return text


def _tell_when_it_ends(shell, asked):
    """Let whoever waits for a question read an empty one."""
    shell.wait()
    asked.write_text("")

"""The suite needs no network: whatever reaches for the Hub fails at once."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models gain nothing from a second thread, and several test processes would fight over it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def _what_is_imported_stays():
    """Keep the garbage collector off the modules: Accelerate collects before every run."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def mounted(tmp_path):
    """Makes a folder of a given size, which can become read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"may not mount a disk here: {done.stderr.decode().strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)

"""Real processes that write a cache together, one after another's death, or at the same time."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cache_cases import contents

SCRIPT = Path(__file__).parent / "run_cache.py"
KILLED, FAILED = -signal.SIGKILL, 255
PROBES, ROWS = 2, 30

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What happened in each scenario, and the folder that it left."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    results = json.loads(done.stdout.splitlines()[-1])
    return {name: (folder / name, result) for name, result in results.items()}


def caches(folder):
    """Complete caches by key; anything partial that is left fails."""
    assert not list(folder.glob("*.partial"))
    return {path.parent.name: contents(path.parent) for path in folder.glob("*/meta.json")}


@pytest.fixture(scope="module")
def expected(runs):
    """The cache of one process that nothing happened to."""
    folder, result = runs["one"]
    assert result["ends"] == [PROBES + ROWS]
    assert len(caches(folder)) == 1
    return caches(folder)


def test_two_processes_write_the_same_bytes_as_one_each_half_of_the_rows(runs, expected):
    folder, result = runs["two"]
    assert result["ends"] == [PROBES + ROWS // 2] * 2
    assert caches(folder) == expected


def test_a_killed_process_leaves_nothing_that_is_read_and_the_next_run_writes_it(runs, expected):
    folder, result = runs["killed"]
    (key,) = expected
    assert result["ends"] == [KILLED, PROBES + ROWS]
    assert result["between"] == [f"{key}.lock", f"{key}.partial"]
    assert caches(folder) == expected


def test_half_a_cache_is_never_whole_and_any_later_run_clears_it_away(runs, expected):
    folder, result = runs["one_of_two_killed"]
    (key,) = expected
    assert result["ends"] == [KILLED, FAILED, PROBES + ROWS, PROBES + ROWS]
    assert f"{key}.partial" in result["between"]
    assert key not in result["between"]
    assert not [name for name in result["after"] if name.endswith(".partial")]
    assert caches(folder)[key] == expected[key]
    assert len(caches(folder)) == 2


def test_a_run_waits_for_one_that_writes_the_same_cache_and_leaves_its_files_alone(runs, expected):
    folder, result = runs["at_once"]
    (key,) = expected
    assert result["ends"] == [PROBES + ROWS, PROBES, PROBES + ROWS]
    assert f"{key}.partial" in result["between"]
    assert caches(folder)[key] == expected[key]
    assert len(caches(folder)) == 2

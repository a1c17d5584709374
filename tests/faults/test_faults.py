"""Twenty kills at drawn moments: every run goes on, and ends with the bytes of one left alone."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SCRIPT = Path(__file__).parent / "run_faults.py"
SEED = 0


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What became of every run."""
    command = [sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("faults")), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_killed_run_goes_on_and_ends_bit_equal_wherever_it_was_killed(found, capsys):
    kills = found["kills"]
    tried = Counter(kill["place"] for kill in kills)
    equal = Counter(kill["place"] for kill in kills if kill["equal"])
    with capsys.disabled():
        print(f"\nkills tried {len(kills)}, runs finished bit-equal {sum(equal.values())}")
        for place, count in tried.items():
            print(f"  {place}: {equal[place]} of {count}")
    assert len(kills) == 20
    assert [kill for kill in kills if kill["killed"] != -9] == []
    assert [kill for kill in kills if kill["half_written"]] == []
    assert [kill for kill in kills if not kill["equal"]] == []


def test_a_command_told_to_stop_exits_with_143_and_goes_on_bit_equal(found):
    for told in found["told"]:
        assert told["status"] == 143, told
        assert told["left"][0] == "checkpoint-4", told
        assert (told["again"], told["equal"]) == (0, True), told

"""Started by `test_cache_processes.py`: caches written by processes that share the work, or die.

    python run_cache.py FOLDER

Every process is a fork, so that the imports are paid for once. Prints, as JSON and by scenario,
how the processes ended and what was in the folder in between.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cache_cases import Teacher, write_cache

SECONDS = 20


class Barrier:
    """Processes that meet by leaving files; the one that waits in vain fails."""

    def __init__(self, folder, rank, world_size, seconds=SECONDS):
        folder.mkdir(exist_ok=True)
        self.folder, self.rank, self.world_size, self.seconds = folder, rank, world_size, seconds
        self.meetings = 0

    def __call__(self):
        self.meetings += 1
        (self.folder / f"{self.meetings}.{self.rank}").touch()
        wait_for(
            lambda: len(list(self.folder.glob(f"{self.meetings}.*"))) == self.world_size,
            self.seconds,
        )


def wait_for(condition, seconds=SECONDS):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


def write(folder, kill_at=None, pause_until=None, **options):
    """Write a cache; die at the `kill_at`-th batch, or wait in the middle until something is so."""
    teacher = Teacher()

    def predict(batch):
        # The first two calls probe.
        if teacher.calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if teacher.calls == 5 and pause_until is not None:
            (folder / "paused").touch()
            wait_for(pause_until)
            (folder / "paused").unlink()
        return teacher(batch)

    # One row at a time: a row's outputs are then the same bytes in whatever share it is.
    write_cache(predict, folder, batch_size=1, **options)
    return teacher.calls


def start(function, *args, **kwargs):
    """Fork; the exit status is what `function` returns, 255 if it raises."""
    child = os.fork()
    if child:
        return child
    status = 255
    try:
        status = function(*args, **kwargs)
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def end(*processes):
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def one(folder):
    return {"ends": end(start(write, folder))}


def two(folder):
    ranks = [
        start(write, folder, rank=i, world_size=2, barrier=Barrier(folder / "meetings", i, 2))
        for i in range(2)
    ]
    return {"ends": end(*ranks)}


def killed(folder):
    """One process dies in the middle; the next run finds its rest."""
    ends, between = end(start(write, folder, kill_at=12)), names(folder)
    return {"ends": [*ends, *end(start(write, folder))], "between": between}


def one_of_two_killed(folder):
    """Rank 0 dies, the other waits in vain; the next run is of another teacher."""
    ranks = [
        start(
            write,
            folder,
            kill_at=[12, None][i],
            rank=i,
            world_size=2,
            barrier=Barrier(folder / "meetings", i, 2, seconds=1),
        )
        for i in range(2)
    ]
    ends, between = end(*ranks), names(folder)
    other = end(start(write, folder, teacher_key="another"))
    after = names(folder)
    return {"ends": [*ends, *other, *end(start(write, folder))], "between": between, "after": after}


def at_once(folder):
    """While a run writes, others of the same and of another teacher come."""
    paused = folder / "paused"
    first = start(write, folder, pause_until=(folder / "go on").exists)
    wait_for(paused.exists)
    second = start(write, folder)
    beside = end(start(write, folder, teacher_key="another"))
    between = names(folder)
    (folder / "go on").touch()
    return {"ends": [*end(first, second), *beside], "between": between}


def main(folder):
    results = {}
    for scenario in (one, two, killed, one_of_two_killed, at_once):
        (folder / scenario.__name__).mkdir()
        results[scenario.__name__] = scenario(folder / scenario.__name__)
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

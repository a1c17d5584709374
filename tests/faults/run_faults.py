"""Started by `test_faults.py`: real commands, killed by SIGKILL at many moments and started again.

    python run_faults.py FOLDER SEED

Every run is a fork, so that the imports are paid for once. An undisturbed run of each command
counts what is written; the kills are drawn from that. Prints, as JSON, what became of each.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

import datasets
import matplotlib.figure
import torch
import transformers.modeling_utils
from test_commands import save_encoder
from transformers import trainer_callback

from kdnlp.checkpoints import find_damage, list_checkpoints
from kdnlp.cli import main, steps
from kdnlp.data.synthetic import generate
from kdnlp.evaluation.report import CompressionReport
from kdnlp.models.cache.writing import CacheWriter
from kdnlp.trainers.base import CompressionTrainer

COMMON = (
    *("--task", "synthetic_sentiment", "--max_steps", "8", "--use_cpu", "--disable_tqdm", "true"),
    *("--per_device_train_batch_size", "4", "--save_strategy", "steps", "--save_steps", "3"),
    *("--learning_rate", "1e-2", "--resume_from_checkpoint", "last"),
)
QUICK = ("--report_seconds", "0.1")
COMMANDS = {
    "distill": ("--teacher", "--no_baseline", "--cache_teacher_outputs", "--losses", "hidden"),
    "theseus": ("--predecessor", "--losses", "logits"),
}
PLAN = {
    "distill": {"any time": 4, "step": 1, "checkpoint": 3, "cache": 2, "report": 2, "export": 1},
    "theseus": {"any time": 2, "step": 1, "checkpoint": 2, "report": 1, "export": 1},
}
"""How many kills where, twenty together: at any time, or half way through one that is drawn."""


class Moment:
    """Counts what happens at each place, and kills this process half way through one of it."""

    def __init__(self, place=None, number=0, share=0.5):
        self.place, self.number, self.share = place, number, share
        self.seen = Counter()

    def is_now(self, place):
        self.seen[place] += 1
        return place == self.place and self.seen[place] == self.number

    def die(self, path=None):
        """Leave `path` as a kill in the middle of writing it does."""
        if path is not None and Path(path).is_file():
            os.truncate(path, int(self.share * os.path.getsize(path)))
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner, name, place_of):
        """Die in some call of a function that writes the file which it is given a path of."""
        write = getattr(owner, name)

        def watched(*arguments, **options):
            place, path = place_of(*arguments, **options)
            now = place is not None and self.is_now(place)
            result = write(*arguments, **options)
            if now:
                self.die(path)
            return result

        setattr(owner, name, watched)


def place_of_file(path):
    """What a file is a part of, by its name; `None` for what is no part of a run."""
    text = str(path)
    if "checkpoint-" in text:
        return "checkpoint"
    if "report." in text or "README" in text:
        return "report"
    return "export" if "_partial" in text or "model" in Path(text).name else None


def install(moment):
    """Watch everything that writes."""

    def second(_, path, *rest, **options):
        return place_of_file(path), path

    def first(path, *rest, **options):
        return place_of_file(path), path

    moment.watch(torch, "save", second)
    moment.watch(transformers.modeling_utils, "safe_save_file", second)
    moment.watch(trainer_callback.TrainerState, "save_to_json", second)
    moment.watch(Path, "write_text", first)
    moment.watch(matplotlib.figure.Figure, "savefig", second)
    moment.watch(CompressionTrainer, "training_step", lambda *a, **o: ("step", None))
    # A rename is whole or has not happened: the process dies before or after it.
    moment.watch(os, "replace", lambda source, target: (place_of_file(target), None))
    write = CacheWriter.write

    def half(self, field, rows, flat):
        if moment.is_now("cache"):
            first, after = self.layout.offsets(field)[rows[0] : rows[0] + 2]
            write(self, field, rows[:1], flat[: after - first])
            moment.die()
        write(self, field, rows, flat)

    CacheWriter.write = half


def fork(work):
    """Run `work` in a child with its own process group; its process id."""
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            work()
        except SystemExit as ended:
            os._exit(ended.code)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return child


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def command(root, name, folder):
    first, *flags = COMMANDS[name]
    where = ("--output_dir", folder / "out")
    cache = ("--teacher_cache_dir", folder / "cache") if name == "distill" else ()
    return [name, *map(str, (first, root / "model", *where, *cache, *flags, *COMMON, *QUICK))]


def run(root, name, folder, moment, counts=None):
    def work():
        install(moment)
        main(command(root, name, folder))
        if counts is not None:
            counts.write_bytes(json.dumps(moment.seen).encode())

    return fork(work)


def half_written(folder):
    """Whatever a reader could take for whole and is not."""
    known = [path for path in folder.rglob("checkpoint-*") if "_partial" not in str(path)]
    bad = [f"{path}: {find_damage(path)}" for path in known if find_damage(path)]
    for path in folder.glob("out/**/model.safetensors"):
        if "_partial" not in str(path):
            try:
                transformers.modeling_utils.load_state_dict(str(path))
            except Exception as error:  # whatever it is, it is a finding
                bad.append(f"{path}: {error}")
    if (folder / "out" / "report.json").exists():
        CompressionReport.load(folder / "out")
    return bad


def results(folder):
    """Everything that two equal runs leave equal, byte for byte or as numbers."""
    out = folder / "out"
    models = {str(p.relative_to(folder)): p.read_bytes() for p in out.rglob("model.safetensors")}
    caches = {p.name: p.read_bytes() for p in (folder / "cache").glob("*/*")}
    left = [str(p) for p in folder.rglob("*") if "partial" in p.name]
    scores = {m.name: m.metrics for m in CompressionReport.load(out).models}
    return models, caches, left, scores, (out / "README.md").stat().st_size > 1000


def tried(root, name, number, place, draw, whole):
    """Kill one run, look at what is left, start the same command again, and compare."""
    folder = root / f"{name}-{number}"
    if place == "any time":
        moment, killed = draw.uniform(0.1, 0.95) * whole["seconds"], 0
        while killed == 0:  # where the machine has become faster, the run has ended before
            shutil.rmtree(folder, ignore_errors=True)
            child = run(root, name, folder, Moment())
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
            killed, moment = wait(child), moment * 0.8
    else:
        moment = draw.randint(1, whole["counts"][place])
        killed = wait(run(root, name, folder, Moment(place, moment, draw.random())))
    checkpoints = [path.name for path in list_checkpoints(folder / "out")]
    bad = half_written(folder)
    again = wait(run(root, name, folder, Moment()))
    equal = again == 0 and results(folder) == whole["results"]
    shutil.rmtree(folder, ignore_errors=True)
    where = (
        f"{moment / 0.8:.2f} s" if place == "any time" else f"{moment} of {whole['counts'][place]}"
    )
    return {
        "command": name, "place": place, "moment": where, "killed": killed, "left": checkpoints,
        "half_written": bad, "again": again, "equal": equal,
    }  # fmt: skip


def undisturbed(root, name):
    folder, counts = root / f"{name}-whole", root / f"{name}-counts.json"
    start = time.perf_counter()
    assert wait(run(root, name, folder, Moment(), counts)) == 0
    seconds = time.perf_counter() - start
    seen = json.loads(counts.read_text())
    return {"seconds": seconds, "counts": seen, "results": results(folder)}


def told_to_stop(root, name, whole):
    """SIGTERM to the whole process group, data loader's worker and all, in the fourth step."""
    folder = root / f"{name}-told"
    step, count = CompressionTrainer.training_step, Counter()

    def telling(self, *arguments, **options):
        count["steps"] += 1
        if count["steps"] == 4:
            os.killpg(0, signal.SIGTERM)
        return step(self, *arguments, **options)

    def work(tell):
        if tell:
            CompressionTrainer.training_step = telling
        main([*command(root, name, folder), "--dataloader_num_workers", "1"])

    first = wait(fork(partial(work, True)))
    left = [path.name for path in list_checkpoints(folder / "out")]
    second = wait(fork(partial(work, False)))
    models, _, partial_files, scores, _ = results(folder)
    final = models["out/model.safetensors"] == whole["results"][0]["out/model.safetensors"]
    equal = final and not partial_files and scores == whole["results"][3]
    return {"command": name, "status": first, "left": left, "again": second, "equal": equal}


def everything(root, seed):
    steps.generate = partial(generate, num_train=48, num_validation=16)
    datasets.config.HF_DATASETS_CACHE = str(root / "hf-cache")
    save_encoder(root / "encoder")
    model = ("--model", str(root / "encoder"), "--output_dir", str(root / "model"))
    assert wait(fork(lambda: main(["finetune", *model, *COMMON]))) == 0
    draw, kills, told = random.Random(seed), [], []
    for name, places in PLAN.items():
        whole = undisturbed(root, name)
        told.append(told_to_stop(root, name, whole))
        for place in (place for place, times in places.items() for _ in range(times)):
            kills.append(tried(root, name, len(kills), place, draw, whole))
            print(json.dumps(kills[-1]), file=sys.stderr, flush=True)
    return {"kills": kills, "told": told}


if __name__ == "__main__":
    found = everything(Path(sys.argv[1]), int(sys.argv[2]))
    print(f"\n{json.dumps(found)}")

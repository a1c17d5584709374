"""What `kdnlp push` sends to a Hub, what it does not, and what it says when it cannot."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from server import TOKEN
from settings import tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from kdnlp.cli import main
from kdnlp.data.synthetic import build_tokenizer
from kdnlp.evaluation.pareto import PARETO_PLOT
from kdnlp.evaluation.plots import PLOTS
from kdnlp.uploads.card_check import own_id_line
from kdnlp.uploads.publishable import PLOT_NAMES, PUBLISHABLE, publishable_files, stale_files
from kdnlp.uploads.send import claim_repo
from kdnlp.weights import SOURCE_DIGEST, folder_digest

CARD = """---
library_name: transformers
license: apache-2.0
pipeline_tag: text-classification
tags:
- kdnlp
---

# A model
"""
PLAIN = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}

SECRETS = (
    *(".env", ".netrc", ".git/config", ".cache/huggingface/token", "token", "hf_token.txt"),
    *("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"),
    *("checkpoint-5/model.safetensors", "checkpoint-5/optimizer.pt", "_baseline/model.safetensors"),
    *("_run.lock", "_partial/model/model.safetensors", "_push/checkpoint-5/model.safetensors"),
    *("teacher/config.json", "teacher/model.safetensors", "teacher.safetensors"),
    *("teacher_cache/logits.npy", "predictions.safetensors", "pytorch_model.bin", "model.pt"),
    *("train.csv", "rows.parquet", "credentials.json", "notes.md", "run.py", "runs/events.out"),
    *("id_rsa", ".secret.png", "wandb/config.json", "onnx/.env", "onnx/notes.txt"),
)


@pytest.fixture
def folder(tmp_path):
    """A plain model with a card, as a run leaves it."""
    place = tmp_path / "run"
    tiny_model("bert", 2).save_pretrained(place)
    build_tokenizer().save_pretrained(place)
    (place / "README.md").write_text(CARD)
    return place


def push(folder, *flags, repo="me/small"):
    main(["push", str(folder), "--repo_id", repo, *flags])


def refused(folder, *flags, repo="me/small"):
    """What the command says when it refuses."""
    with pytest.raises(SystemExit) as stopped:
        push(folder, *flags, repo=repo)
    assert isinstance(stopped.value.code, str)
    return stopped.value.code


def plant(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"secret")


def test_what_is_pushed_loads_back_through_the_client(hub, folder, capsys):
    push(folder, "--commit_message", "the first one")
    assert f"{hub.endpoint}/me/small" in capsys.readouterr().out
    assert hub.names("me/small") == PLAIN
    assert hub.repos["me/small"].messages == ["initial commit", "the first one"]
    loaded = AutoModelForSequenceClassification.from_pretrained("me/small")
    original = AutoModelForSequenceClassification.from_pretrained(folder)
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    tokenizer = AutoTokenizer.from_pretrained("me/small")
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert ModelCard.load("me/small").data.license == "apache-2.0"


def test_no_secret_that_lies_in_the_folder_arrives(hub, folder, capsys):
    plant(folder, SECRETS)
    (folder / "vocab.txt").symlink_to(folder.parent / "outside")
    (folder.parent / "outside").write_text("secret")
    push(folder)
    assert hub.names("me/small") == PLAIN
    assert not any(b"secret" in blob for blob in hub.repos["me/small"].files().values())
    assert "not sent: .cache, .env" in " ".join(capsys.readouterr().out.split())


def graph_of(folder, digest=None):
    """What an export leaves below a model's folder: of its weights, or of those with a digest."""
    names = {"onnx/model.onnx", "onnx/export.json", "onnx/config.json", "onnx/tokenizer.json"}
    plant(folder, names)
    gate = {"rows": 64, "largest_difference": 1.3e-6, "largest_logit": 3.4, "agreement": 1.0}
    scores = {
        "original": {"validation": {"score": 0.961}},
        "export": {"validation": {"score": 0.96}},
    }
    said = {
        **{SOURCE_DIGEST: digest or folder_digest(folder), "files": sorted(names)},
        **{"precision": "float32", "gate": gate, "metrics": scores},
    }
    (folder / "onnx" / "export.json").write_text(json.dumps(said))
    return names


def test_report_pictures_and_exports_go_along(hub, folder):
    more = {"report.json", "report.md", "report.html", "report.png", "training.svg"}
    more |= {"pareto.png", "module_time.svg", "generation_config.json"}
    plant(folder, more)
    (folder / "report.json").write_text("{}")
    (folder / "generation_config.json").write_text("{}")
    more |= graph_of(folder)
    push(folder)
    assert hub.names("me/small") == PLAIN | more


def test_a_picture_that_is_not_the_runs_stays_at_home(hub, folder, capsys):
    plant(folder, ["holiday.png", "passport.svg", "report.png.svg", "training.png"])
    push(folder)
    assert hub.names("me/small") == PLAIN | {"training.png"}
    assert "holiday.png" in capsys.readouterr().out


def test_every_picture_that_a_card_shows_may_go():
    assert {*PLOTS, Path(PARETO_PLOT).stem} == set(PLOT_NAMES)


def test_a_graph_of_other_weights_is_left_out_and_said(hub, folder, caplog, capsys):
    graph_of(folder)
    tiny_model("bert", 2, seed=1).save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        push(folder)
    assert hub.names("me/small") == PLAIN
    assert "does not say that it was made of the weights" in caplog.text
    assert "not sent: onnx" in " ".join(capsys.readouterr().out.split())
    graph_of(folder)
    (folder / "onnx" / "export.json").unlink()  # nothing tells how it was checked
    push(folder)
    assert hub.names("me/small") == PLAIN


def test_code_goes_along_only_where_the_model_is_made_by_it(hub, folder):
    plant(folder, ["modeling_own.py", "layers_own.py", "train.py"])
    (folder / "modeling_own.py").write_text("from .layers_own import Layer\n")
    assert {path.name for path in publishable_files(folder)} == PLAIN
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_own.Own", "AutoConfig": "me/x--train.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    push(folder)
    assert hub.names("me/small") == PLAIN | {"modeling_own.py", "layers_own.py"}


def test_a_token_in_a_text_is_found_before_anything_is_sent(hub, folder):
    plant(folder, ["report.json"])
    (folder / "report.json").write_text(json.dumps({"command": f"kdnlp --hub_token {TOKEN}"}))
    assert "report.json holds what looks like a token" in refused(folder)
    assert hub.requests == []


def test_what_came_with_an_earlier_model_does_not_stay_beside_the_new_one(hub, folder):
    old = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "onnx/model.onnx"]
    old += ["onnx/export.json", "generation_config.json", "report.json", "training.png"]
    old += ["merges.txt", "special_tokens_map.json"]  # of another family's tokenizer
    kept = ["notes.md", "other/onnx/model.onnx", "other/config.json"]
    hub.add_repo("me/small", dict.fromkeys([*old, *kept], b"old"))
    push(folder)
    assert hub.names("me/small") == PLAIN | set(kept)
    assert len(hub.repos["me/small"].messages) == 2  # one commit: nobody sees half of it


def test_a_tokenizer_stays_where_the_folder_has_none_to_take_its_place(hub, folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    there = {"tokenizer.json", "report.json", "vocab.txt"}
    assert stale_files(there, [p.name for p in folder.iterdir()]) == ["report.json"]


def test_a_folder_that_is_not_the_plain_model_it_says_is_not_sent(hub, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "num_hidden_layers=3 describes" in refused(folder)
    assert hub.requests == []


def test_a_folder_without_a_model_a_card_or_a_licence_is_refused(hub, folder, tmp_path):
    assert f"No folder {tmp_path / 'nothing'} here" in refused(tmp_path / "nothing")
    assert "Expected a model card" in refused(tmp_path)
    (folder / "README.md").write_text(CARD.replace("license: apache-2.0\n", ""))
    assert "pass --license" in refused(folder)
    assert "Expected a licence's id" in refused(folder, "--license", "My own!")
    (folder / "README.md").write_text(CARD + "\n| score |  |\n\n{{ summary }}\n")
    assert "every field filled, got '| score |  |'; '{{ summary }}'" in refused(folder)
    (folder / "README.md").write_text(CARD.replace("transformers", "[a: b: c"))
    assert "expected metadata that the Hub takes" in refused(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "model.safetensors").rename(folder / "model.pt")
    assert "a folder without weights" in refused(folder)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["me/de mo/x", "me/de mo", "me/demo/x", "me/-demo", "me/", ""])
def test_a_name_that_is_none_is_refused_before_anything_is_read_or_asked(name, hub, tmp_path):
    said = refused(tmp_path / "nothing", "--dry_run", repo=name)
    assert f"Expected OWNER/NAME, or a NAME of your own, got {name!r}" in said
    with pytest.raises(ValueError, match="Expected OWNER/NAME"):
        claim_repo(name, token="hf_any")
    assert hub.requests == []


def test_a_licence_that_is_asked_for_stands_in_the_card_here_and_there(hub, folder):
    (folder / "README.md").write_text(CARD.replace("license: apache-2.0\n", ""))
    push(folder, "--license", "mit")
    there = hub.repos["me/small"].files()["README.md"]
    assert there == (folder / "README.md").read_bytes()
    assert ModelCard(there.decode()).data.license == "mit"


USE = """
## Use

{line}
```python
model = AutoModelForSequenceClassification.from_pretrained("{own}")
tokenizer = AutoTokenizer.from_pretrained("{own}", trust_remote_code=True)
teacher = AutoModel.from_pretrained("google-bert/bert-base-uncased")
```

It was `{own}`.
"""


def test_a_card_loads_the_repository_that_it_lies_in_and_others_by_their_own_names(hub, folder):
    (folder / "README.md").write_text(CARD + USE.format(own="run", line=own_id_line("run")))
    for name in ("me/small", "me/other"):  # and what was pushed before can be pushed elsewhere
        push(folder, repo=name)
        there = hub.repos[name].files()["README.md"].decode()
        assert there.count(f'from_pretrained("{name}"') == 2
        assert there.count('from_pretrained("google-bert/bert-base-uncased")') == 1
        assert "It was `run`." in there
        assert own_id_line(name) in there


def test_the_card_of_a_branch_loads_that_branch_and_the_one_of_main_none(hub, folder):
    use = USE.format(own="run", line=own_id_line("run"))
    pinned = use.replace("trust_remote_code=True)", 'trust_remote_code=True, revision="v1")')
    (folder / "README.md").write_text(CARD + pinned)
    graph_of(folder)
    for branch, named in (("int8", ', revision="int8"'), ("main", ""), ("x", ', revision="x"')):
        push(folder, "--revision", branch)
        there = hub.repos["me/small"].files(branch)["README.md"].decode()
        assert there.count("revision=") == (0 if branch == "main" else 3)
        assert f'SequenceClassification.from_pretrained("me/small"{named})' in there
        assert f'from_pretrained("me/small"{named}, trust_remote_code=True)' in there
        assert f'snapshot_download("me/small"{named}, allow_patterns=' in there


def test_a_card_tells_of_the_graph_that_goes_along_and_of_none_that_does_not(hub, folder):
    own = CARD + USE.format(own="run", line=own_id_line("run")) + "\n## Training\n\nLong.\n"
    (folder / "README.md").write_text(own)
    graph_of(folder)
    for name in ("me/small", "me/other"):
        push(folder, repo=name)
        there = hub.repos[name].files()["README.md"].decode()
        assert there.count("## ONNX") == there.count(f'snapshot_download("{name}"') == 1
        assert (
            "in float32, for any batch size and length. It was loaded again and compared with the "
            "model. The logits of 64 rows differ by at most 1.3e-06, where the largest is 3.4; "
            "100.0% equal answers. On validation it scores 96.0%, and the model 96.1%."
        ) in there
        assert there.index("## Use") < there.index("## ONNX") < there.index("## Training")
    tiny_model("bert", 2, seed=1).save_pretrained(folder)
    push(folder)
    there = hub.repos["me/small"].files()["README.md"].decode()
    assert "onnx" not in there.lower()
    assert there == own.replace('("run"', '("me/small"').replace(
        own_id_line("run"), own_id_line("me/small")
    )


def test_a_card_of_another_hand_is_left_as_it_is(hub, folder):
    (folder / "README.md").write_text(CARD + USE.format(own="run", line=""))
    graph_of(folder)
    before = (folder / "README.md").read_bytes()
    push(folder)
    assert hub.repos["me/small"].files()["README.md"] == before


def test_what_the_hub_itself_refuses_of_a_card_is_said(hub, folder):
    (folder / "README.md").write_text(CARD.replace("apache-2.0", "Apache Two"))
    assert '"license" must be one of' in refused(folder)
    assert hub.names("me/small") == set()
    assert hub.asked("preupload") == 0


def test_a_dry_run_lists_and_sends_nothing(hub, folder, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    before = (folder / "README.md").read_bytes()
    push(folder, "--dry_run", "--license", "mit")
    out = capsys.readouterr().out
    assert all(name in out for name in PLAIN)
    assert hub.requests == []
    assert (folder / "README.md").read_bytes() == before


def test_private_branch_and_organisation_are_as_asked(hub, folder):
    push(folder, "--private", "--revision", "seed-3", repo="my-organisation/small")
    repo = hub.repos["my-organisation/small"]
    assert repo.private
    assert hub.names("my-organisation/small") == set()
    assert hub.names("my-organisation/small", "seed-3") == PLAIN
    push(folder, "--revision", "seed-3", repo="my-organisation/small")  # it is there now


def test_private_is_not_taken_for_granted_where_the_repository_is_public_already(hub, folder):
    hub.add_repo("me/small", {"model.safetensors": b"old"})
    assert "Expected a private repository, got me/small" in refused(folder, "--private")
    assert hub.names("me/small") == {"model.safetensors"}
    assert hub.asked("preupload") == 0
    hub.add_repo("me/hidden", private=True)
    push(folder, "--private", repo="me/hidden")
    assert hub.names("me/hidden") == PLAIN


def test_a_name_alone_is_one_of_the_tokens_owner(hub, folder, capsys):
    push(folder, repo="small")
    assert hub.names("me/small") == PLAIN
    assert "repo_id me/small\n" in capsys.readouterr().out


@pytest.mark.slow
def test_whatever_a_tokenizer_of_transformers_writes_may_go():
    names = set()
    for classes in TOKENIZER_MAPPING_NAMES.values():
        for name in [classes] if isinstance(classes, str) else classes or ():
            names |= set(getattr(getattr(transformers, name), "vocab_files_names", {}).values())
    assert len(names) > 20
    assert names <= set(PUBLISHABLE["tokenizer"])


# What may go wrong.


def test_without_a_token_nothing_is_asked(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    said = refused(folder)
    assert "Expected a token of the Hub, found none" in said
    assert "hf auth login" in said
    assert hub.requests == []


def test_a_refused_token_is_said_without_showing_it(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    said = refused(folder)
    assert "The Hub refuses the token" in said
    assert "hf_revoked" not in said
    assert hub.repos == {}


def test_a_name_that_is_anothers_is_refused_before_anything_is_sent(hub, folder):
    hub.add_repo("other/small")
    said = refused(folder, repo="other/small")
    assert "Expected a repository of me or my-organisation" in said
    assert "me/small" in said
    assert hub.names("other/small") == set()
    assert hub.asked("preupload") == 0


def test_a_token_that_may_only_read_is_refused(hub, folder):
    hub.fail("POST", "/api/repos/create", 403)
    said = refused(folder)
    assert "does not let the token write" in said
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("method", "where"),
    [
        *(("PUT", "/lfs/"), ("POST", "/commit/"), ("POST", "preupload"), ("POST", "objects/batch")),
        *(
            ("POST", "repos/create"),
            ("GET", "whoami"),
            ("POST", "validate-yaml"),
            ("POST", "verify"),
        ),
    ],
)
def test_a_connection_cut_in_the_middle_is_tried_again(hub, folder, method, where):
    hub.cut(method, where)
    push(folder)
    assert hub.faults == []
    assert hub.names("me/small") == PLAIN
    assert hub.repos["me/small"].messages == ["initial commit", "Upload model"]


def test_a_hub_that_is_busy_is_tried_again(hub, folder):
    hub.fail("POST", "/commit/", 503, times=2)
    push(folder)
    assert hub.names("me/small") == PLAIN


def test_a_hub_that_stays_away_leaves_nothing_half_made_and_the_next_try_ends_it(hub, folder):
    hub.fail("POST", "/commit/", 500, times=3)
    assert "Do it again: what was uploaded is not sent twice" in refused(folder)
    assert hub.names("me/small") == set()
    assert hub.asked("/lfs/") > 0
    sent = [path for method, path in hub.requests if method == "PUT"]
    push(folder)  # into the repository that is there, half made
    assert hub.names("me/small") == PLAIN
    assert [path for method, path in hub.requests if method == "PUT"] == sent


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, folder):
    hub.lose("POST", "/commit/")
    push(folder)
    assert hub.faults == []
    push(folder)
    assert hub.repos["me/small"].messages == ["initial commit", "Upload model"]


def test_of_several_processes_one_pushes(hub, folder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    push(folder)
    assert hub.requests == []


LOAD = """
import sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained("me/small", revision="main")
AutoTokenizer.from_pretrained("me/small")
print(model.config.num_hidden_layers)
"""


@pytest.mark.slow
def test_by_the_command_line_alone_to_the_hub_and_back(hub, folder, elsewhere):
    command = [sys.executable, "-m", "kdnlp", "push", str(folder), "--repo_id", "me/small"]
    done = subprocess.run(command, env=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert hub.names("me/small") == PLAIN
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD], env=elsewhere, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == ["2"]
    again = subprocess.run(
        command, env={**elsewhere, "HF_TOKEN": "hf_no"}, capture_output=True, text=True, check=False
    )
    assert again.returncode == 1
    assert "The Hub refuses the token" in again.stderr
    assert "Traceback" not in again.stderr

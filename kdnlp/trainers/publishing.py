"""The model goes to the Hub by an allow-list, whole, with a card, and with nothing else."""

import logging
import os
import shutil
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard, ModelCardData
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

import kdnlp
from kdnlp.data.preparation import KINDS
from kdnlp.files import replace_text
from kdnlp.trainers.durable import DurableTrainer
from kdnlp.uploads.card_check import CARD, check_card, for_repo, on_branch, own_id_line
from kdnlp.uploads.export_section import with_export
from kdnlp.uploads.license import (
    NO_LICENSE,
    License,
    as_license,
    check_stated,
    find_license,
    with_own_license,
)
from kdnlp.uploads.plain_folder import check_complete
from kdnlp.uploads.publishable import publishable_files
from kdnlp.uploads.send import claim_repo, hub, send

logger = logging.getLogger(__name__)

STAGE = "_push"
"""The folder, below the run's, that holds a checkpoint's files while they are sent."""

_OTHER_KINDS = {
    "multiple_choice": ("multiple-choice", "AutoModelForMultipleChoice"),
    "masked_lm": ("fill-mask", "AutoModelForMaskedLM"),
    "causal_lm": ("text-generation", "AutoModelForCausalLM"),
    "seq2seq_lm": ("text2text-generation", "AutoModelForSeq2SeqLM"),
}
"""What the Hub calls a task whose rows are not prepared here, and what loads its model."""

_HEADS = {kind: (row.pipeline_tag, row.auto_class) for kind, row in KINDS.items()} | _OTHER_KINDS

_UNMEASURED = """# {title}

A model in transformers' own format, trained by kdnlp's `{trainer}` ({method}), seed {seed}: \
{steps} optimizer steps so far. It has not been measured: there is no report of its quality, size \
or speed yet.

{own_id}
```python
from transformers import {auto_class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo_id}")
model = {auto_class}.from_pretrained("{repo_id}")
```

Made with kdnlp {version}.
"""


class PublishingTrainer(DurableTrainer):
    """A `DurableTrainer` that publishes the model, its tokenizer, report and card, and only those.

    The stock trainer would send its whole `output_dir`.

    Attributes:
        license: of the model that is made: an id of the Hub, such as `apache-2.0`, or a `License`.
            It takes the place of what the card says, whenever it is set; `None` is what the card
            says, or that of the model that it was loaded or built from, where that one's says one.
        model_card: the text of a card with a report; `None` before there is one.
    """

    license: License | str | None = None
    _inherited: License | None = None  # apart, for it does not replace what stands in a card
    model_card: str | None
    task: str
    hub_model_id: str | None  # type: ignore[assignment]
    push_in_progress: PushInProgress | None  # type: ignore[assignment]

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, on the main process; refuse now what would be refused at the end.

        Raises:
            PermissionError: if there is no token, the Hub refuses it, or the name is another's.
            OSError: if the Hub cannot be reached.
        """
        if not self.is_world_process_zero():
            return
        args = self.args
        wanted = args.hub_model_id or Path(str(args.output_dir)).absolute().name
        private = args.hub_private_repo if private is None else private
        self.hub_model_id = claim_repo(wanted, token or args.hub_token, private)
        self.push_in_progress = None

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Save the model, and publish it with tokenizer, report, pictures and card as one commit.

        What goes is named in `kdnlp.uploads.publishable.PUBLISHABLE`. Every process must call
        this; one of them sends.

        Args:
            commit_message: the first line of the commit.
            blocking: wait until it is sent.
            token: the default is `hub_token`, or the one that the user is logged in with.
            revision: a branch; the default is `hub_revision`.
            private: whether a new repository is; the default is `hub_private_repo`.
            **kwargs: for `create_model_card`.

        Returns:
            The commit, or its future unless `blocking`; `None` on other processes.

        Raises:
            ValueError: if the folder is not the plain model that it says it is, the card leaves
                something open, or there is no licence. Nothing was sent then.
            PermissionError: if there is no token, the Hub refuses it, or the name is another's.
            OSError: if the Hub cannot be reached.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # The constructor leaves it out where push_to_hub is off.
        if private or getattr(self, "hub_model_id", None) is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.find_license()
        self.create_model_card(**kwargs)
        self._finish_current_push()
        folder = Path(str(self.args.output_dir))
        revision = revision or self.args.hub_revision
        files = _checked_files(folder, revision)
        return self._send(folder, files, commit_message, blocking, token, revision)

    def _send(
        self,
        folder: Path,
        files: list[Path],
        message: str | None,
        blocking: bool,
        token: str | None = None,
        revision: str | None = None,
    ) -> CommitInfo | Future[CommitInfo]:
        token = token or self.args.hub_token
        assert self.hub_model_id is not None
        what = (folder, files, self.hub_model_id, message or "Upload", token)
        revision = revision or self.args.hub_revision
        if blocking:
            return send(*what, revision)
        return hub(token).run_as_future(send, *what, revision)

    def _send_stage(self, stage: Path, files: list[Path], message: str) -> CommitInfo:
        """Send what is staged, and remove it before whoever waits for that goes on."""
        try:
            sent = self._send(stage, files, message, blocking=True)
            assert isinstance(sent, CommitInfo)
            return sent
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publish the model of a checkpoint in the background, from links to its files.

        The checkpoint itself may be removed while they are sent.
        """
        args, checkpoint = self.args, Path(checkpoint_folder)
        if self._partial is not None:
            return  # it is pushed from its place
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        before = self.push_in_progress
        if before is not None and not before.is_done() and not args.hub_always_push:
            return
        stage = _stage(checkpoint, Path(str(args.output_dir), STAGE, checkpoint.name))
        self._write_card(stage)
        try:
            files = _checked_files(stage, args.hub_revision)
        except ValueError as error:
            shutil.rmtree(stage)
            logger.warning("%s is not pushed; the model is at the end. %s", checkpoint, error)
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        job = hub(args.hub_token).run_as_future(self._send_stage, stage, files, message)
        job.add_done_callback(lambda done: _end_of_push(done, stage))
        if before is None or before.is_done():
            self.push_in_progress = PushInProgress([job])  # type: ignore[arg-type]
        else:
            before.jobs.append(job)  # type: ignore[union-attr]

    def _claim(self, wish: str | bool | None, held: ExitStack) -> str | None:
        """Also remove what a killed run was about to push, and refuse one without a licence."""
        publishes = self.args.push_to_hub and self.model is not None
        if publishes and self.find_license() is None:
            raise ValueError(f"push_to_hub needs a licence for the model, found none: {NO_LICENSE}")
        checkpoint = super()._claim(wish, held)
        pushing = getattr(self, "push_in_progress", None)
        if pushing is None or pushing.is_done():
            shutil.rmtree(Path(str(self.args.output_dir), STAGE), ignore_errors=True)
        return checkpoint

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card: `model_card` where a report made one, else what is known without it.

        Args:
            *args: as `transformers.Trainer.create_model_card`: `language`, `license`, `tags`, ...
            **kwargs: the same by name; what is not in a card's metadata is left out.
        """
        if self.is_world_process_zero():
            names = ("language", "license", "tags", "model_name")
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            self._write_card(Path(str(self.args.output_dir)), **given)

    def find_license(self, place: str | None = None, revision: str | None = None) -> License | None:
        """The licence that is set, or else that of the model which this one is made from.

        Args:
            place: Hub id or folder of the latter; the default is where the student was loaded or
                built from. It is asked until it has told one.
            revision: of the latter on the Hub.

        Raises:
            ValueError: if what is set is no id of the Hub.
        """
        if self.license is None and self._inherited is None:
            config = self.student.config
            if place is None:
                place, revision = str(config._name_or_path), getattr(config, "_commit_hash", None)
            self._inherited = find_license(place, revision)
        return self._license(None)

    def _license(self, asked: License | str | None) -> License | None:
        """What is asked for, or set, or was found, in this order."""
        asked = asked or self.license
        return self._inherited if asked is None else as_license(asked)

    def _write_card(self, folder: Path, **metadata: Any) -> None:
        """Write the card into a folder, and beside it the text of its licence."""
        text = self._card(**metadata)
        known = self._license(metadata.get("license"))
        if known is not None and known.stands_in(ModelCard(text)):
            known.put_into(folder)
        replace_text(folder / CARD, text)

    def _card(self, **metadata: Any) -> str:
        """The text of the card, which says at least how the model was trained."""
        asked = metadata.get("license") or self.license
        known = self._license(asked)
        own_name = Path(str(self.args.output_dir)).absolute().name
        repo_id = getattr(self, "hub_model_id", None) or self.args.hub_model_id or own_name
        if self.model_card is not None:
            card = for_repo(ModelCard(self.model_card), repo_id)
            if known is not None and (asked is not None or not card.data.get("license")):
                known.add_to(card)
            return str(card)
        tag, auto_class = _HEADS[self.task]
        tags = metadata.get("tags") or []
        licence: dict[str, Any] = dict(known.fields) if known else {}
        data = ModelCardData(
            language=metadata.get("language"),
            **licence,
            library_name="transformers",
            pipeline_tag=tag,
            tags=["kdnlp", self.method, *([tags] if isinstance(tags, str) else tags)],
            datasets=metadata.get("dataset"),
        )
        text = _UNMEASURED.format(
            title=metadata.get("model_name") or repo_id.rpartition("/")[2],
            trainer=type(self).__name__,
            method=self.method,
            seed=self.args.seed,
            steps=self.state.global_step,
            auto_class=auto_class,
            repo_id=repo_id,
            own_id=own_id_line(repo_id),
            version=kdnlp.__version__,
        )
        return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _checked_files(folder: Path, branch: str | None) -> list[Path]:
    """What goes of a folder, if its card and its model are whole and its licence is known.

    The card then tells of a graph that goes along, and of the branch that it goes to.
    """
    card = check_card((folder / CARD).read_text(encoding="utf-8"))
    check_stated(card, folder)
    files = with_own_license(check_complete(folder), card, folder)
    told = str(on_branch(with_export(card, folder, files), branch))
    if told != str(card):
        replace_text(folder / CARD, told)
    return files


def _stage(checkpoint: Path, stage: Path) -> Path:
    """A folder with links to what may be published of a checkpoint, or copies of it."""
    shutil.rmtree(stage, ignore_errors=True)
    for path in publishable_files(checkpoint):
        target = stage / path.relative_to(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:  # a disk without links
            shutil.copyfile(path, target)
    return stage


def _end_of_push(job: "Future[CommitInfo]", stage: Path) -> None:
    """Say of a push that it failed; one that was called off has left its files."""
    shutil.rmtree(stage, ignore_errors=True)
    error = None if job.cancelled() else job.exception()
    if error is not None:
        logger.warning("A checkpoint was not pushed; training goes on: %s", error)

"""From a folder to a repository on the Hub: checked first, then sent as one commit or none."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

import kdnlp
from kdnlp.uploads.card_check import CARD, license_link, read_metadata
from kdnlp.uploads.publishable import LICENSE_FILES, stale_files

logger = logging.getLogger(__name__)

WAITS_SECONDS = (1.0, 4.0, 15.0)
"""How long to wait before a failed request to the Hub is tried again."""

_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
CONNECTION_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""The base of every error of the HTTP client that huggingface_hub uses: httpx, or its successor."""

_GET_A_TOKEN = (
    "Make one that may write at https://huggingface.co/settings/tokens, and log in with "
    "`hf auth login` or set HF_TOKEN."
)

Answer = TypeVar("Answer")


def hub(token: str | None = None) -> HfApi:
    """The Hub's client, with the token that was given or that the user is logged in with.

    Raises:
        PermissionError: if there is no token.
    """
    token = token or get_token()
    if not token:
        raise PermissionError(
            "Expected a token of the Hub, found none. Nothing can be published without one. "
            + _GET_A_TOKEN
        )
    return HfApi(token=token, library_name="kdnlp", library_version=kdnlp.__version__)


def check_repo_id(repo_id: str) -> None:
    """Raise `ValueError` unless it reads like the name of a repository.

    >>> check_repo_id("me/small")
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"Expected OWNER/NAME, or a NAME of your own, got {repo_id!r}. The Hub takes letters, "
            "digits, '-', '_' and '.', which none begins or ends with, 96 of them at most, and "
            "one slash. Choose such a name with --repo_id, or in training with --hub_model_id."
        ) from error


def claim_repo(repo_id: str, token: str | None = None, private: bool | None = None) -> str:
    """Make the repository unless it is there, and be sure that it is one of the token's owner.

    Args:
        repo_id: `owner/name`; a name alone is one of the token's owner.
        token: the default is the one that the user is logged in with.
        private: whether a new one is; `None` is the owner's own default.

    Returns:
        The repository's whole name.

    Raises:
        ValueError: if it is no name of a repository.
        PermissionError: if there is no token, the Hub refuses it, the name is another's, or
            `private` is asked for and the repository is there already, for everyone to see.
        OSError: if the Hub cannot be reached.
    """
    check_repo_id(repo_id)
    api = hub(token)
    me = retried(api.whoami, "who the token belongs to")
    owner, slash, _ = repo_id.rpartition("/")
    owners = [me["name"], *(organisation["name"] for organisation in me.get("orgs", []))]
    if slash and owner not in owners:
        raise PermissionError(
            f"Expected a repository of {' or '.join(owners)}, to whom the token belongs, got "
            f"{repo_id}. Nothing may be written to another's. Choose a name such as "
            f"{owners[0]}/{repo_id.rpartition('/')[2]}, or a token of {owner}."
        )
    url = retried(
        lambda: api.create_repo(repo_id, private=private, exist_ok=True),
        f"the repository {repo_id}",
    )
    name = str(url.repo_id)
    # The Hub leaves one that is there already as it is, and says nothing.
    if private and not retried(lambda: api.repo_info(name), name).private:
        raise PermissionError(
            f"Expected a private repository, got {name}, which is there already and public. "
            "Whatever is sent there, everyone can read. Make it private in its settings on the "
            "Hub, or choose another name."
        )
    return name


def send(
    folder: Path,
    files: Sequence[Path],
    repo_id: str,
    message: str,
    token: str | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """Send files as one commit, so that a reader sees all of them or none.

    What came with an earlier model's weights and does not come with these is removed by the same
    commit: its shards, of which transformers would load one file first, whichever is older; its
    graphs, which answer otherwise; its report; where a tokenizer is sent, what is left of another.
    So is the text of a licence to which the card there links, and the new one does not. What an
    interrupted call has uploaded is not sent again.

    Args:
        folder: what the names in the repository are relative to.
        files: below `folder`.
        repo_id: a repository that exists; see `claim_repo`.
        message: the commit's first line.
        token: the default is the one that the user is logged in with.
        revision: a branch, which is made unless it is there; `None` is `main`.

    Raises:
        PermissionError: if there is no token, or it may not write there.
        OSError: if the Hub cannot be reached, or refuses the commit.
    """
    api = hub(token)

    def commit() -> CommitInfo:
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        names = {path.relative_to(folder).as_posix(): path for path in files}
        there = api.list_repo_files(repo_id, revision=revision)
        stale = stale_files(there, names)
        texts = {*LICENSE_FILES}.intersection(there) - names.keys()
        if texts and CARD in there:
            stale += texts & {license_link(_metadata_there(api, repo_id, revision))}
        operations: list[CommitOperationDelete | CommitOperationAdd] = [
            *(CommitOperationDelete(name) for name in stale),
            *(CommitOperationAdd(name, str(path)) for name, path in names.items()),
        ]
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision)

    return retried(commit, repo_id)


def _metadata_there(api: HfApi, repo_id: str, revision: str | None) -> dict[str, Any]:
    """The metadata of the card in a repository, as it is now."""
    with TemporaryDirectory() as empty:  # a kept card would stand in for one that cannot be read
        return read_metadata(
            Path(api.hf_hub_download(repo_id, CARD, revision=revision, cache_dir=empty))
        )


def retried(
    action: Callable[[], Answer], what: str, waits: Sequence[float] | None = None
) -> Answer:
    """What `action` returns; tried again where the connection or the Hub failed for a moment.

    Args:
        action: may be called several times.
        what: names it in messages.
        waits: seconds to wait before each further try; `None` is `WAITS_SECONDS`.

    Raises:
        PermissionError: if the Hub refuses the token, or what it may do.
        OSError: if it still fails after the last wait, or fails for good.
    """
    left = tuple(WAITS_SECONDS if waits is None else waits)
    try:
        return action()
    except (CONNECTION_ERROR, OSError, RuntimeError) as error:
        cause = _cause(error)
        if not left or not _is_transient(cause):
            raise (_explained(cause, what) or error) from cause
        logger.warning("The Hub: %s (%s); trying again in %g s.", what, cause, left[0])
    time.sleep(left[0])
    return retried(action, what, left[1:])


def _cause(error: BaseException) -> BaseException:
    """What lies under the error in which the client wraps a failed upload or download."""
    while _is_wrapped(error) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_wrapped(error: BaseException) -> bool:
    return type(error) is RuntimeError or isinstance(error, LocalEntryNotFoundError)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT
    return isinstance(error, CONNECTION_ERROR)


def _explained(error: BaseException, what: str) -> OSError | None:
    """What an error of the Hub means and what to do; `None` for errors of other origin."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return PermissionError(
            f"The Hub refuses the token ({what}). It may have been revoked, or mistyped. "
            + _GET_A_TOKEN
        )
    if status == 403:
        return PermissionError(
            f"The Hub does not let the token write ({what}): the name is another's, or the token "
            f"may only read. {_GET_A_TOKEN}"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return OSError(
            f"HF_HUB_OFFLINE is set, and {what} is on the Hub. Nothing was sent. Unset it."
        )
    if isinstance(error, (HfHubHTTPError, CONNECTION_ERROR)):
        return OSError(
            f"The Hub could not be written ({what}): {error or type(error).__name__}. Nothing of "
            "this call is visible there. Do it again: what was uploaded is not sent twice."
        )
    return None

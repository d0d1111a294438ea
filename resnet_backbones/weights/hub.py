"""Weights on the Hugging Face Hub, `hf://OWNER/REPO[/FILE][@REVISION]`, through its own client huggingface_hub."""

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import UserError, reason, unknown
from ..paths import stays_below

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hf://"
DEFAULT_FILE = "model.safetensors"
FORM = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@(.+))?", re.ASCII)
NO_LIBRARY = "hf:// sources need huggingface_hub, which is not installed: pip install huggingface_hub"


class HubFile(NamedTuple):
    """A file of a repository on the Hub; `revision` is a branch, tag or commit, None the branch main."""

    repo: str
    file: str = DEFAULT_FILE
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}/{self.file}" + (f"@{self.revision}" if self.revision else "")


def parse(source: str) -> HubFile:
    """The file that `hf://OWNER/REPO[/FILE][@REVISION]` names. Raises `UserError` if it is malformed."""
    match = FORM.fullmatch(source)
    if match is None or not stays_below(match[2] or DEFAULT_FILE):
        raise UserError(f"{source} is malformed; write {PREFIX}OWNER/REPO[/FILE][@REVISION].")
    return HubFile(match[1], match[2] or DEFAULT_FILE, match[3])


def download(source: str) -> Path:
    """The file at `source` in huggingface_hub's cache, downloaded if it is not there or newer on the Hub.

    Without a network, and with HF_HUB_OFFLINE=1, the cached file is used. Raises `UserError` for a malformed source,
    without huggingface_hub, for what the Hub does not have or does not show, and if it cannot be reached.
    """
    wanted, api = parse(source), _api()
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    where = {"repo_id": wanted.repo, "filename": wanted.file, "revision": wanted.revision}
    try:
        if not isinstance(try_to_load_from_cache(**where), str):
            with suppress(HfHubHTTPError):  # hf_hub_download raises it as well
                api.get_hf_file_metadata(url=hf_hub_url(**where))  # fails at once without a network, not after retries
        return Path(api.hf_hub_download(**where))
    except Exception as error:  # its HTTP library's, too
        raise UserError(f"{source} cannot be downloaded: {_fault(error, wanted, api)}") from error


def upload(path: Path, target: HubFile, private: bool | None = None, commit_message: str | None = None) -> str:
    """Commit the file at `path` as `target`; the repository and the branch are created if they do not exist.

    Returns its source, with the commit as revision. Raises `UserError` without huggingface_hub, without a token that
    may write there, and if the Hub cannot be reached.
    """
    api = _api()
    repo, file, branch = target
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repo, branch=branch, exist_ok=True)
        commit = api.upload_file(
            path_or_fileobj=path, path_in_repo=file, repo_id=repo, revision=branch, commit_message=commit_message
        )
    except Exception as error:
        fault = _fault(error, target, api)
        if _status(error) in (401, 403):
            fault = f"no permission to write to {repo}; log in with a token that has it: hf auth login."
        raise UserError(f"{target} cannot be uploaded: {fault}") from error
    return str(HubFile(repo, file, commit.oid))


def _api() -> "HfApi":
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError(NO_LIBRARY) from None
    return HfApi()


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _fault(error: BaseException, wanted: HubFile, api: "HfApi") -> str:
    """What an error of huggingface_hub means, and the remedy."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so only what is cached can be read; unset it."
    if isinstance(error, errors.HFValidationError):
        return reason(error)
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated; ask for access at {api.endpoint}/{wanted.repo} and log in: hf auth login."
    if isinstance(error, errors.RepositoryNotFoundError) or _status(error) == 401:
        return f"{wanted.repo} does not exist or is private; check the name, or log in: hf auth login."
    with suppress(Exception):  # of the listings
        if isinstance(error, errors.RevisionNotFoundError):
            refs = api.list_repo_refs(wanted.repo)
            return unknown("revision", wanted.revision, [ref.name for ref in refs.branches + refs.tags])
        if isinstance(error, errors.EntryNotFoundError):
            return unknown("file", wanted.file, api.list_repo_files(wanted.repo, revision=wanted.revision))
    if isinstance(error, errors.HfHubHTTPError) or getattr(error, "strerror", None):  # the latter is the disk's
        return f"{reason(error).rstrip('.')}."
    return f"{reason(error)}; check the network and the Hub's address, {api.endpoint}."

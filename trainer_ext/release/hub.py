"""Publish a folder on the Hub in one commit that can be interrupted: models, ensembles and the Space."""

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments

from ..errors import InputError, first_line
from .folder_check import check_files, check_folder
from .licence import NOT_PUBLISHED, licence_of

T = TypeVar("T")
TRIES = 6
# Of the Hub's answers, those that another try may change: too many requests, a commit beside ours, its own failures.
_PASSING = {408, 409, 412, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 300.0  # seconds; the Hub counts requests in windows of five minutes


def check_login(repo_id: str, token: str | None) -> str:
    """The repository's whole name; raises InputError before hours of training if the Hub would refuse the upload."""
    try:
        owner = HfApi(token=token).whoami()["name"]
    except Exception as error:  # no token, no network, offline mode: many kinds, one meaning
        raise InputError(
            f"--push_to_hub: the Hub does not let us in ({_reason(error)}); see `hf auth login`"
        ) from error
    return checked_name(repo_id if "/" in repo_id else f"{owner}/{repo_id}")


def checked_name(repo_id: str) -> str:
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise InputError(f"{repo_id!r} is no name for a repository: {_reason(error)}") from error
    return repo_id


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
    tag: str | None = None,
    publish_restricted: bool = False,
    texts: Iterable[str] = (),
    dry_run: bool = False,
) -> CommitInfo | None:
    """Check a finished folder, say what goes up, and upload it in one commit.

    The card's snippet gets the repository's name. Files of an earlier upload that are no more in the folder go.

    Args:
        folder: A model's.
        repo_id: `owner/name`.
        private: Of a repository that is not there yet; one that is there must be as private.
        revision: Branch, made where there is none.
        tag: Name for the new commit.
        publish_restricted: The user's word that data which restrict the model's use allow to publish it.
        texts: Of [`check_folder`].
        dry_run: Stop before the Hub is asked anything.

    Returns:
        The commit, or None after `dry_run`.

    Raises:
        InputError: if something of the folder must not be published, or the Hub refuses.
    """
    if licence_of(folder) == "other" and not publish_restricted:
        raise InputError(
            f"{folder}: its card says that it saw data whose terms restrict its use; read them, and give "
            "--publish_restricted if they let you publish the model"
        )
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as staging:
        staged = _stage(folder, Path(staging, "folder"))
        card = staged / "README.md"
        if card.is_file():
            text = name_model(card.read_text(encoding="utf-8"), repo_id)
            card.unlink()
            card.write_text(text, encoding="utf-8")
        _refuse(folder, check_folder(staged, texts=texts, links_to=folder))
        _list(staged, f"{repo_id}{f' ({revision})' if revision else ''}")
        if dry_run:
            return None
        _persistently(repo_id, lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        if revision:
            _persistently(repo_id, lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        head = _persistently(repo_id, lambda: api.repo_info(repo_id, revision=revision)).sha if tag else None
        if tag and _tagged(api, repo_id, tag) not in (None, head):
            raise InputError(f"{repo_id}: its tag {tag} names another commit; give another")
        commit = _upload(api, staged, repo_id, "model", revision, private)
    if tag and _tagged(api, repo_id, tag) != commit.oid:
        try:
            _persistently(repo_id, lambda: api.create_tag(repo_id, tag=tag, revision=commit.oid, exist_ok=True))
        except InputError as error:
            raise InputError(f"pushed to {commit.commit_url}, but without its tag: {error}") from error
        if _tagged(api, repo_id, tag) != commit.oid:
            raise InputError(f"pushed to {commit.commit_url}, but the tag {tag} names another commit; give another")
    return commit


def name_model(card: str, repo_id: str) -> str:
    """The card with the repository's name in its snippets, in time linear in its length."""
    return re.sub(r'(pipeline\([^()\n]*?model=)"(?:[^"\\\n]|\\.)*"', rf'\g<1>"{repo_id}"', card)


def push_space(
    space: Path,
    repo_id: str,
    model: str,
    *,
    revision: str | None = None,
    private: bool = True,
    token: str | None = None,
    dry_run: bool = False,
) -> str | None:
    """Upload a Space's files and tell it which model to show, and of which commit (`revision`); returns its address.
    Raises InputError as [`push_folder`]."""
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as staging:
        staged = _stage(space, Path(staging, "space"))
        readme = staged / "README.md"
        card = RepoCard.load(readme, repo_type="space")
        card.data["models"] = [model]
        readme.unlink()
        card.save(readme)
        _refuse(space, check_files(staged, links_to=space))
        _list(staged, f"the Space {repo_id}")
        if dry_run:
            return None
        made = _persistently(
            repo_id,
            lambda: api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True),
        )
        _upload(api, staged, repo_id, "space", None, private)
    for key, value in (("EMODEBERTA_MODEL", model), ("EMODEBERTA_REVISION", revision)):
        if value:
            _persistently(repo_id, lambda key=key, value=value: api.add_space_variable(repo_id, key, value))
    return str(made)


def push_run(
    folder: Path, args: TrainingArguments, *, publish_restricted: bool = False, texts: Iterable[str] = ()
) -> None:
    """[`push_folder`] as a run's flags say, private unless `--hub_private_repo false`; prints the address."""
    try:
        commit = push_folder(
            folder,
            args.hub_model_id,
            private=args.hub_private_repo is not False,
            token=args.hub_token,
            revision=args.hub_revision,
            publish_restricted=publish_restricted,
            texts=texts,
        )
    except InputError as error:
        safe = f"The model is safe in {folder}; python run_publish.py publishes it"
        raise InputError(*str(error).split("\n"), safe) from error
    print(f"pushed to {commit.commit_url}")


# ---- What goes up -------------------------------------------------------------------------------------------------
def _stage(folder: Path, staged: Path) -> Path:
    """What of the folder is published, as links, or copies where the system makes no links.

    Raises:
        InputError: if something of it is a link already: whoever sees the folder does not see what it would publish.
    """
    published = [
        (path, path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if not NOT_PUBLISHED.fullmatch(path.relative_to(folder).as_posix())
    ]
    _refuse(
        folder,
        [f"{name.as_posix()}: a link; put the file itself here" for path, name in published if path.is_symlink()],
    )
    for path, relative in published:
        if path.is_file():
            (staged / relative).parent.mkdir(parents=True, exist_ok=True)
            try:
                (staged / relative).symlink_to(path.resolve())
            except OSError:
                shutil.copyfile(path, staged / relative)
    if not staged.is_dir():
        raise InputError(f"{folder}: no such folder, or an empty one")
    return staged


def _refuse(folder: Path, findings: list[str]) -> None:
    if findings:
        raise InputError(f"{folder}: not to be published as it is:", *(f"  {finding}" for finding in findings))


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _list(folder: Path, target: str) -> None:
    print(f"to {target}:")
    for name, path in _files(folder).items():
        print(f"  {path.stat().st_size / 1024:>10,.1f} KiB  {name}")


# ---- The Hub ------------------------------------------------------------------------------------------------------
def _tagged(api: HfApi, repo_id: str, tag: str) -> str | None:
    """The commit that a tag names."""
    refs = _persistently(repo_id, lambda: api.list_repo_refs(repo_id))
    return next((known.target_commit for known in refs.tags if known.name == tag), None)


def _upload(api: HfApi, folder: Path, repo_id: str, kind: str, revision: str | None, private: bool) -> CommitInfo:
    """The folder's files as the repository's only ones, in one commit on what was there when it was listed.

    `HfApi.upload_folder` would make several commits of many files.
    """
    files, said = _files(folder), set()

    def commit() -> CommitInfo:
        before = api.repo_info(repo_id, repo_type=kind, revision=revision)
        if private and before.private is False:
            raise InputError(f"{repo_id}: is there, and public; give --public if everybody may see this")
        gone = sorted({file.rfilename for file in before.siblings or ()} - files.keys() - {".gitattributes"})
        if set(gone) - said:
            print(f"  removed there: {', '.join(gone)}")
            said.update(gone)
        # New ones at each try: they hold what the Hub said of them.
        added = [CommitOperationAdd(name, path) for name, path in files.items()]
        return api.create_commit(
            repo_id,
            [*added, *map(CommitOperationDelete, gone)],
            commit_message="Upload EmoDeBERTa",
            repo_type=kind,
            revision=revision,
            parent_commit=before.sha,
        )

    return _persistently(repo_id, commit)


def _persistently(repo_id: str, act: Callable[[], T]) -> T:
    """Do it again where the Hub or the network may do better the next time."""
    for attempt in range(1, TRIES + 1):
        try:
            return act()
        except InputError:
            raise
        except Exception as error:  # the client's, httpx's, hf_xet's and JSON's: some lines from many kinds
            if attempt == TRIES or not _may_pass(error):
                raise InputError(f"{repo_id}: {_reason(error)}") from error
            asked = _asked_wait(error)
            wait = min(2.0 ** (attempt - 1) if asked is None else asked, _LONGEST_WAIT)
            print(f"{repo_id}: {_reason(error)}; trying again in {wait:.0f} s ({attempt + 1} of {TRIES})", flush=True)
            time.sleep(wait)
    raise AssertionError


def _may_pass(error: Exception) -> bool:
    """Whether the same request may do better the next time."""
    if (status := _status(error)) is not None:
        return status in _PASSING
    return not isinstance(error, FileNotFoundError | PermissionError | OfflineModeIsEnabled | HFValidationError)


def _refusal(error: BaseException | None) -> HfHubHTTPError | None:
    """The Hub's answer that an error comes from: the client wraps those to the upload of a file in its own errors."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__ or error.__context__
    return error


def _status(error: Exception) -> int | None:
    """The status that the Hub or its store of large files answered, if there was an answer."""
    if (refusal := _refusal(error)) is not None:
        return refusal.response.status_code
    told = re.search(r"HTTP status \w+ error \((\d{3})", str(error))  # hf_xet's, which are text alone
    return int(told.group(1)) if told else None


def _asked_wait(error: Exception) -> float | None:
    """The seconds that the Hub asks for, given as such or as a date."""
    refusal = _refusal(error)
    asked = refusal.response.headers.get("Retry-After", "").strip() if refusal else ""
    if re.fullmatch(r"[0-9]+", asked):
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _reason(error: Exception) -> str:
    """In one line: what the Hub said, else the client; and what helps."""
    refusal, status = _refusal(error), _status(error)
    said = getattr(refusal, "server_message", None) or str(refusal or error)
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.strip().startswith("(Request ID")]
    reason = lines[0] if lines else type(error).__name__
    if status is None:
        return reason
    reason = f"the Hub answers {status}" + (f" ({reason.rstrip('.')})" if lines else "")
    if refusal is not error:  # which file
        reason = f"{first_line(error).rstrip('.')}: {reason}"
    if status == 401:
        reason += "; it does not accept the token: see `hf auth login`, or give --token"
    if status == 403:
        reason += "; the token must have write access there"
    if status == 404 and not isinstance(refusal, RevisionNotFoundError):
        reason += "; there is no such repository, or the token may not see it"
    if status == 413:
        reason += "; the file is larger than it takes, see --max_shard_size of save_pretrained"
    return reason

"""Publish a folder on the Hub in one commit, safely if interrupted: models, ensembles and the Space."""

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
# HTTP errors that another try may avoid: too many requests, a concurrent commit, failures of the server.
_PASSING = {408, 409, 412, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 300.0  # seconds; the Hub counts requests in windows of five minutes


def check_login(repo_id: str, token: str | None) -> str:
    """Return the repository's full name, after checking that the user may upload to the Hub, before hours of training.

    Raises:
        InputError: if the Hub refuses the token, or the name is not valid.
    """
    try:
        owner = HfApi(token=token).whoami()["name"]
    except Exception as error:  # no token, no network or offline mode
        raise InputError(
            f"--push_to_hub: the Hub does not let us in ({_reason(error)}); see `hf auth login`"
        ) from error
    return checked_name(repo_id if "/" in repo_id else f"{owner}/{repo_id}")


def checked_name(repo_id: str) -> str:
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise InputError(f"{repo_id!r} is not a name for a repository: {_reason(error)}") from error
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
    """Check a finished folder, print the list of files, and upload them in one commit.

    The card's snippet gets the repository's name. Files that an earlier upload left and the folder no longer has are
    deleted.

    Args:
        folder: Folder of a model.
        repo_id: `owner/name`.
        private: Whether a new repository is private. An existing repository must not be public if this is true.
        token: Token for the Hub. By default the stored one.
        revision: Branch, created if it does not exist.
        tag: Tag for the new commit.
        publish_restricted: The user's confirmation that the terms of restricted training data allow publishing the
            model.
        texts: As in [`check_folder`].
        dry_run: Stop before any request to the Hub.

    Returns:
        The commit, or `None` after a dry run.

    Raises:
        InputError: if something in the folder must not be published, or the Hub refuses.
    """
    if licence_of(folder) == "other" and not publish_restricted:
        raise InputError(
            f"{folder}: its card has the licence other: the terms of data or of a model that it came from restrict its "
            "use; read them, and give --publish_restricted if they let you publish the model"
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
    """Return the card with the repository's name in its snippets, in time linear in the card's length."""
    named = r'(pipeline\([^()\n]*?model=|EmotionClassifier\.from_pretrained\()"(?:[^"\\\n]|\\.)*"'
    return re.sub(named, rf'\g<1>"{repo_id}"', card)


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
    """Upload the Space's files, set which model (and `revision` of it) it shows, and return its address.

    Returns:
        The address, or `None` after a dry run.

    Raises:
        InputError: as [`push_folder`].
    """
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
    """Publish a run's folder with [`push_folder`] as its flags say, private unless `--hub_private_repo false`."""
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
    """Return `staged`, filled with links to the files of `folder` that are published (or copies if links are not
    possible).

    Raises:
        InputError: if one of the files is a link, since the user may not notice what it would publish.
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
    """Return the commit that a tag names, or `None`."""
    refs = _persistently(repo_id, lambda: api.list_repo_refs(repo_id))
    return next((known.target_commit for known in refs.tags if known.name == tag), None)


def _upload(api: HfApi, folder: Path, repo_id: str, kind: str, revision: str | None, private: bool) -> CommitInfo:
    """Commit the folder's files as the only files of the repository, on top of the state that was just listed.

    `HfApi.upload_folder` is not used, because it splits many files into several commits.
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
        # Made anew for each try, because they store the Hub's answers.
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
    """Return the result of `act`, repeating it after errors of the Hub or the network that may pass."""
    for attempt in range(1, TRIES + 1):
        try:
            return act()
        except InputError:
            raise
        except Exception as error:  # from the client, httpx, hf_xet or JSON
            if attempt == TRIES or not _may_pass(error):
                raise InputError(f"{repo_id}: {_reason(error)}") from error
            asked = _asked_wait(error)
            wait = min(2.0 ** (attempt - 1) if asked is None else asked, _LONGEST_WAIT)
            print(f"{repo_id}: {_reason(error)}; trying again in {wait:.0f} s ({attempt + 1} of {TRIES})", flush=True)
            time.sleep(wait)
    raise AssertionError


def _may_pass(error: Exception) -> bool:
    """Return whether the same request may succeed the next time."""
    if (status := _status(error)) is not None:
        return status in _PASSING
    return not isinstance(error, FileNotFoundError | PermissionError | OfflineModeIsEnabled | HFValidationError)


def _refusal(error: BaseException | None) -> HfHubHTTPError | None:
    """Return the Hub's answer behind an error, or `None`; the client wraps it in its own errors during uploads."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__ or error.__context__
    return error


def _status(error: Exception) -> int | None:
    """Return the HTTP status that the Hub or its store of large files answered, or `None` if there was no answer."""
    if (refusal := _refusal(error)) is not None:
        return refusal.response.status_code
    told = re.search(r"HTTP status \w+ error \((\d{3})", str(error))  # hf_xet's errors have only a text
    return int(told.group(1)) if told else None


def _asked_wait(error: Exception) -> float | None:
    """Return how many seconds the Hub asks to wait, or `None`; its header has seconds or a date."""
    refusal = _refusal(error)
    asked = refusal.response.headers.get("Retry-After", "").strip() if refusal else ""
    if re.fullmatch(r"[0-9]+", asked):
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _reason(error: Exception) -> str:
    """Return one line that says what the Hub (or else the client) reported, and what helps."""
    refusal, status = _refusal(error), _status(error)
    said = getattr(refusal, "server_message", None) or str(refusal or error)
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.strip().startswith("(Request ID")]
    reason = lines[0] if lines else type(error).__name__
    if status is None:
        return reason
    reason = f"the Hub answers {status}" + (f" ({reason.rstrip('.')})" if lines else "")
    if refusal is not error:  # name the file
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

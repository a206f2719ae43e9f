"""Publish a model's folder on the Hub, and a Space that shows it: looked at first, then in one commit.

    python -m trainer_ext.hub outputs/quickstart --repo_id owner/name --dry_run
    python -m trainer_ext.hub outputs/quickstart --repo_id owner/name --tag v1.0 --space owner/name-demo

The folder is loaded in a process of its own, its card's code is run, and it is searched for pickles, paths of this
machine, secrets and, with --training_texts, rows of a corpus; any of these stops it. What will go up is listed. Both
repositories are private unless --public. A reader sees the old revision or the whole new one. Interrupted, the same
command goes on: files that arrived are not sent again.
"""

import argparse
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, ModelCard, RepoCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments

from .corpora import read_texts
from .errors import InputError, run_command
from .folder_check import check_folder
from .run_folder import CHECKPOINTS

T = TypeVar("T")
TRIES = 5
# Of the Hub's answers, those that another try may change: too many requests, a commit beside ours, its own failures.
_PASSING = {408, 409, 412, 429, 500, 502, 503, 504}
_HINTS = {
    401: "the Hub does not accept the token; see `hf auth login`, or give --token",
    403: "this token may not write there; want one with write access",
    404: "there is no such repository, or this token may not see it",
}


def check_login(token: str | None) -> None:
    """Raises InputError before hours of training if the Hub would refuse the upload."""
    try:
        HfApi(token=token).whoami()
    except Exception as error:  # no token, no network, offline mode: many kinds, one meaning
        raise InputError(
            f"--push_to_hub: the Hub does not let us in ({_first_line(error)}); see `hf auth login`"
        ) from error


def licence_of(folder: Path) -> str | None:
    """Of the card in a local folder; `other` means that what the model saw restricts its use."""
    card = folder / "README.md"
    try:
        return ModelCard.load(card).data.license if card.is_file() else None
    except ValueError:  # a card of another kind
        return None


def restricted_upstream(*folders: str | None) -> str | None:
    """Terms that a model has from the first of these that is restricted: where it starts, whom it learns from."""
    for folder in filter(None, folders):
        if licence_of(Path(folder)) == "other":
            return f"use under the terms of {Path(folder).resolve().name}, see its card"
    return None


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
) -> str | None:
    """Check a finished folder, say what goes up, and upload it in one commit, its checkpoints left out.

    The card's snippet gets the repository's name. Files of an earlier upload that are no more in the folder go.

    Args:
        folder: A model's.
        repo_id: `owner/name`, or a name of one's own.
        private: Of a repository that is not there yet.
        revision: Branch, made where there is none.
        tag: Name for the new commit.
        publish_restricted: The user's word that data which restrict the model's use allow to publish it.
        texts: Of [`check_folder`].
        dry_run: Stop before anything is sent.

    Returns:
        The commit's address, or None after `dry_run`.

    Raises:
        InputError: if something of the folder must not be published, or the Hub refuses; nothing has changed there.
    """
    if licence_of(folder) == "other" and not publish_restricted:
        raise InputError(
            f"{folder}: its card says that it saw data whose terms restrict its use; read them, and give "
            "--publish_restricted if they let you publish the model"
        )
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as staging:
        staged = _stage(folder, Path(staging, "folder"), repo_id)
        if findings := check_folder(staged, texts=texts):
            raise InputError(f"{folder}: not to be published as it is:\n  " + "\n  ".join(findings))
        _list(staged, f"{repo_id}{f' ({revision})' if revision else ''}", private)
        if dry_run:
            return None
        repo_id = _persistently(repo_id, lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
        if tag and tag in {known.name for known in _persistently(repo_id, lambda: api.list_repo_refs(repo_id)).tags}:
            raise InputError(f"{repo_id}: has a tag {tag} already; give another")
        if revision:
            _persistently(repo_id, lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        commit = _upload(api, staged, repo_id, "model", revision)
    if tag:
        _persistently(repo_id, lambda: api.create_tag(repo_id, tag=tag, revision=commit.oid, exist_ok=False))
    return commit.commit_url


def push_space(space: Path, repo_id: str, model: str, *, private: bool = True, token: str | None = None) -> str:
    """Upload a Space's files and tell it which model to show; returns its address. Raises InputError as above."""
    api = HfApi(token=token)
    variables = [{"key": "EMODEBERTA_MODEL", "value": model}]
    made = _persistently(
        repo_id,
        lambda: api.create_repo(
            repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True, space_variables=variables
        ),
    )
    _persistently(made.repo_id, lambda: api.add_space_variable(made.repo_id, "EMODEBERTA_MODEL", model))
    with tempfile.TemporaryDirectory() as staging:
        staged = Path(
            shutil.copytree(space, Path(staging, "space"), ignore=shutil.ignore_patterns("__pycache__", ".*"))
        )
        card = RepoCard.load(staged / "README.md", repo_type="space")
        card.data["models"] = [model]
        card.save(staged / "README.md")
        _list(staged, f"the Space {made.repo_id}", private)
        _upload(api, staged, made.repo_id, "space", None)
    return str(made)


def push_run(
    folder: Path, args: TrainingArguments, *, publish_restricted: bool = False, texts: Iterable[str] = ()
) -> None:
    """[`push_folder`] as a run's flags say, private unless `--hub_private_repo false`; prints the address."""
    try:
        address = push_folder(
            folder,
            args.hub_model_id,
            private=args.hub_private_repo is not False,
            token=args.hub_token,
            revision=args.hub_revision,
            publish_restricted=publish_restricted,
            texts=texts,
        )
    except InputError as error:
        raise InputError(f"{error}\nThe model is safe in {folder}; python -m trainer_ext.hub publishes it") from error
    print(f"pushed to {address}")


def _stage(folder: Path, staged: Path, repo_id: str) -> Path:
    """What of the folder is published, as links, and its card under the repository's name."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and relative.parts[0] != CHECKPOINTS and not any(p.startswith(".") for p in relative.parts):
            (staged / relative).parent.mkdir(parents=True, exist_ok=True)
            (staged / relative).symlink_to(path.resolve())
    if not staged.is_dir():
        raise InputError(f"{folder}: no such folder, or an empty one")
    card = staged / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        card.unlink()
        card.write_text(re.sub(r'(pipeline\(.*?model=)"[^"]*"', rf'\g<1>"{repo_id}"', text), encoding="utf-8")
    return staged


def _list(folder: Path, target: str, private: bool) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    print(f"to {target}, {'private' if private else 'public'} if it is not there yet:")
    for path in files:
        print(f"  {path.stat().st_size / 1024:>10,.1f} KiB  {path.relative_to(folder)}")


def _upload(api: HfApi, folder: Path, repo_id: str, kind: str, revision: str | None):
    return _persistently(
        repo_id,
        lambda: api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            repo_type=kind,
            revision=revision,
            delete_patterns="*",
            commit_message="Upload EmoDeBERTa",
        ),
    )


def _persistently(repo_id: str, act: Callable[[], T]) -> T:
    """Do it again where the Hub or the network may do better the next time."""
    for attempt in range(1, TRIES + 1):
        try:
            return act()
        except (HTTPError, OSError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            said = _HINTS.get(status) or _first_line(error)
            if attempt == TRIES or (status is not None and status not in _PASSING):
                raise InputError(f"{repo_id}: {said}") from error
            print(f"{repo_id}: {said}; trying again ({attempt + 1} of {TRIES})")
            time.sleep(2 ** (attempt - 1))
    raise AssertionError


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="emodeberta-push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="output folder of run_classify.py, run_mlm.py or run_fuse.py")
    parser.add_argument("--repo_id", required=True, metavar="OWNER/NAME", help="model repository, made if need be")
    parser.add_argument("--space", metavar="OWNER/NAME", help="also publish the demo, as this Space")
    parser.add_argument("--space_dir", type=Path, default=Path("space"), help="its files (default: space/)")
    parser.add_argument("--public", action="store_true", help="let everybody see repositories that are made now")
    parser.add_argument("--revision", help="branch to push to (default: main)")
    parser.add_argument("--tag", help="name for the commit, such as v1.0")
    texts_help = "files of texts (column: text) none of which may stand anywhere in the folder"
    parser.add_argument("--training_texts", type=Path, nargs="+", default=[], metavar="FILE", help=texts_help)
    word = "the model saw data for restricted use, and their terms let you publish it"
    parser.add_argument("--publish_restricted", action="store_true", help=word)
    parser.add_argument("--dry_run", action="store_true", help="check and list, send nothing")
    parser.add_argument("--token", help="of the Hub (default: that of `hf auth login`, or HF_TOKEN)")
    args = parser.parse_args()
    for name in filter(None, (args.repo_id, args.space)):
        try:
            validate_repo_id(name)
        except ValueError as error:
            raise InputError(f"{name}: no name for a repository; {_first_line(error)}") from error
    if args.space and not (args.space_dir / "app.py").is_file():
        raise InputError(f"{args.space_dir}: no app.py there; --space_dir names the project's space/")
    address = push_folder(
        args.folder,
        args.repo_id,
        private=not args.public,
        token=args.token,
        revision=args.revision,
        tag=args.tag,
        publish_restricted=args.publish_restricted,
        texts=(text for path in args.training_texts for text in read_texts(path)),
        dry_run=args.dry_run,
    )
    if address:
        print(f"pushed to {address}")
    if args.space and not args.dry_run:
        space = push_space(args.space_dir, args.space, args.repo_id, private=not args.public, token=args.token)
        print(f"pushed to {space}")
        if not args.public:
            print("the Space reads a private model with a token: add it as the secret HF_TOKEN in the Space's settings")


def command() -> None:
    """Console entry point."""
    run_command(main)


if __name__ == "__main__":
    command()

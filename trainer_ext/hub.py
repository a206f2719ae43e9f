"""Put a finished output folder on the Hub."""

from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from transformers import TrainingArguments

from .errors import InputError
from .run_folder import CHECKPOINTS


def check_login(token: str | None) -> None:
    """Raises InputError before hours of training if the Hub would refuse the upload."""
    try:
        HfApi(token=token).whoami()
    except Exception as error:  # no token, no network, offline mode: many kinds, one meaning
        raise InputError(
            f"--push_to_hub: the Hub does not let us in ({str(error).strip().splitlines()[0]}); see `hf auth login`"
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


def push_folder(folder: Path, repo_id: str, *, private: bool, token: str | None, revision: str | None) -> str:
    """Upload a finished folder, its checkpoints left out, in one commit; returns the commit's address."""
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            revision=revision,
            ignore_patterns=[f"{CHECKPOINTS}/*", ".*"],
            commit_message="Upload EmoDeBERTa",
        )
    except (HfHubHTTPError, OSError) as error:
        raise InputError(f"{repo_id}: {str(error).strip().splitlines()[0]}; the model is safe in {folder}") from error
    return commit.commit_url


def push_run(folder: Path, args: TrainingArguments) -> None:
    """[`push_folder`] as a run's flags say, private unless `--hub_private_repo false`; prints the address."""
    address = push_folder(
        folder,
        args.hub_model_id,
        private=args.hub_private_repo is not False,
        token=args.hub_token,
        revision=args.hub_revision,
    )
    print(f"pushed to {address}")

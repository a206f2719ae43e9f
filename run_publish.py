"""Check a model's folder, then publish it on the Hub in one commit; and a Space that shows it.

    python run_publish.py outputs/quickstart --repo_id owner/name --dry_run
    python run_publish.py outputs/quickstart --repo_id owner/name --tag v1.0 --space owner/name-demo

The folder is loaded in a process of its own and its card's code is run. Names, lines and metadata are searched for
secrets, paths of this machine and, with --training_texts, rows of a corpus; any of these stops it. So does a link, a
pickle, or a file that is not of a known kind: text, JSON, Python, YAML, pictures, safetensors, ONNX, sentencepiece.
Checkpoints, predictions.tsv and hidden files stay here. What will go up is listed, and what of an earlier upload goes.
Repositories are made private unless --public. A reader sees the old revision or the whole new one. Interrupted, the
same command goes on: large files that arrived are not sent again.
"""

import argparse
from pathlib import Path

from trainer_ext.data.load import read_texts
from trainer_ext.errors import InputError, run_command
from trainer_ext.release.hub import checked_name, push_folder, push_space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of run_classify.py, run_mlm.py or run_fuse.py")
    parser.add_argument("--repo_id", required=True, metavar="OWNER/NAME", help="model repository, made if need be")
    parser.add_argument("--space", metavar="OWNER/NAME", help="also publish the demo, as this Space")
    parser.add_argument("--space_dir", type=Path, default=Path("space"), help="its files (default: space/)")
    parser.add_argument("--public", action="store_true", help="let everybody see them")
    parser.add_argument("--revision", help="branch to push to (default: main)")
    parser.add_argument("--tag", help="name for the commit, such as v1.0")
    texts_help = "files of texts (column: text) none of which may stand anywhere in the folder"
    parser.add_argument("--training_texts", type=Path, nargs="+", default=[], metavar="FILE", help=texts_help)
    word = "the model saw data for restricted use, and their terms let you publish it"
    parser.add_argument("--publish_restricted", action="store_true", help=word)
    parser.add_argument("--dry_run", action="store_true", help="check and list, ask the Hub nothing")
    parser.add_argument("--token", help="of the Hub (default: that of `hf auth login`, or HF_TOKEN)")
    args = parser.parse_args()
    for name in filter(None, (args.repo_id, args.space)):
        if "/" not in name:
            raise InputError(f"{name}: want owner/name")
        checked_name(name)
    if args.space and not (args.space_dir / "app.py").is_file():
        raise InputError(f"{args.space_dir}: no app.py there; --space_dir names the project's space/")
    shared = {"private": not args.public, "token": args.token, "dry_run": args.dry_run}
    commit = push_folder(
        args.folder,
        args.repo_id,
        revision=args.revision,
        tag=args.tag,
        publish_restricted=args.publish_restricted,
        texts=(text for path in args.training_texts for text in read_texts(path)),
        **shared,
    )
    if commit:
        print(f"pushed to {commit.commit_url}")
    if args.space:
        address = push_space(args.space_dir, args.space, args.repo_id, revision=commit and commit.oid, **shared)
        if address:
            print(f"pushed to {address}")
        if address and not args.public:
            print("the Space reads a private model with a token: add it as the secret HF_TOKEN in the Space's settings")


def command() -> None:
    """Console entry point."""
    run_command(main)


if __name__ == "__main__":
    command()

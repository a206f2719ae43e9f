"""Check a model's folder, then publish it on the Hub in one commit, and optionally a Space that demonstrates it.

    python run_publish.py outputs/quickstart --repo_id owner/name --dry_run
    python run_publish.py outputs/quickstart --repo_id owner/name --tag v1.0 --space owner/name-demo

The check loads the model in a separate process and runs the code of its card. It searches names, lines and metadata for
secrets, paths of this machine and, with --training_texts, texts of a corpus. If it finds any, nothing is published. The
same goes for links, pickles and unknown types of files (known are text, JSON, Python, YAML, pictures, safetensors, ONNX
and sentencepiece). Checkpoints, predictions.tsv and hidden files are never uploaded.

The files to upload, and those of an earlier upload to delete, are listed first. Repositories are private unless
--public is given. Readers see either the old revision or the complete new one. If the upload is interrupted, run the
same command again: large files that arrived are not sent again.
"""

from trainer_ext.front_door import check_flags

if __name__ == "__main__":
    check_flags("run_publish")  # --help and wrong flags end here; the imports below take seconds

import argparse
from pathlib import Path

from trainer_ext.data.load import read_texts
from trainer_ext.errors import InputError, run_command
from trainer_ext.release.hub import checked_name, push_folder, push_space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of run_classify.py, run_mlm.py or run_fuse.py")
    parser.add_argument("--repo_id", required=True, metavar="OWNER/NAME", help="model repository, created if needed")
    parser.add_argument("--space", metavar="OWNER/NAME", help="also publish the demo, as this Space")
    parser.add_argument(
        "--space_dir", type=Path, default=Path("space"), help="folder with the Space's files (default: space/)"
    )
    parser.add_argument("--public", action="store_true", help="make new repositories public (default: private)")
    parser.add_argument("--revision", help="branch to push to (default: main)")
    parser.add_argument("--tag", help="tag for the commit, such as v1.0")
    texts_help = "files of texts (column: text) that must not appear anywhere in the folder"
    parser.add_argument("--training_texts", type=Path, nargs="+", default=[], metavar="FILE", help=texts_help)
    word = "confirm that the terms of restricted training data allow publishing the model"
    parser.add_argument("--publish_restricted", action="store_true", help=word)
    parser.add_argument(
        "--dry_run", action="store_true", help="check the folder and list its files, without contacting the Hub"
    )
    parser.add_argument("--token", help="Hub token (default: that of `hf auth login`, or HF_TOKEN)")
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


if __name__ == "__main__":
    run_command(main)

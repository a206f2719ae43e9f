"""Fill the pages in docs/ from the figures in results/, and draw their plots.

    python -m docs.generate

Only the marked blocks of a page change. Text outside them is written by hand, in the page itself.
"""

import argparse
from pathlib import Path

from docs.generate import indexes, performance, results, scaling
from docs.generate.blocks import fill
from trainer_ext.errors import run_command
from trainer_ext.files import write_text

ROOT = Path(__file__).resolve().parents[2]
# What makes the blocks of each page.
PAGES = {
    "README.md": indexes.readme_blocks,
    "docs/guide/cluster.md": scaling.cluster_blocks,
    "docs/guide/review.md": indexes.review_blocks,
    "docs/comparisons.md": results.comparisons,
    "docs/performance.md": lambda folder: performance.blocks(folder) | scaling.blocks(folder),
    "docs/results.md": results.blocks,
    "recipes/README.md": indexes.recipe_blocks,
}


def files(root: Path) -> dict[Path, str]:
    """Return the text of every page and plot, by its file."""
    pages = {
        root / name: fill(name, (root / name).read_text(encoding="utf-8"), blocks(root / "results"))
        for name, blocks in PAGES.items()
    }
    pictures = root / "docs" / "pictures"
    return pages | results.plots(root / "results", pictures) | performance.plots(root / "results", pictures)


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m docs.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for path, text in files(ROOT).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    run_command(main)

"""Child-Tuning for any `transformers` model and any PyTorch loop (section 2.3.2 of the LingJing paper).

Xu et al. 2021, "Raise a Child in Large Language Model", https://aclanthology.org/2021.emnlp-main.749. This folder
imports
nothing else of the project, so it can be copied out.

With `Trainer`:

    args = ChildTuningArguments(output_dir="out", child_tuning="F", child_tuning_p=0.3)
    ChildTuningTrainer(model=model, args=args, train_dataset=rows).train()

In your own loop:

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    child = ChildNetwork(optimizer, variant="F", p=0.3, seed=1)
    for batch in loader:
        model(**batch).loss.backward()
        optimizer.step()  # masked
        optimizer.zero_grad()

For variant D, before the first step: `child.find(model, (model(**batch).loss for batch in loader))`.
"""

from .checks import SCOPES, TARGETS, VARIANTS, ChildTuningError, check_settings
from .masks import CHUNK, MANY_ROWS, Draws, Mask, highest_share, keep, local_part, mask_seed, put_back
from .network import MASKS, ChildNetwork
from .trainer import ChildTuningArguments, ChildTuningTrainer

__all__ = [
    "CHUNK", "MANY_ROWS", "MASKS", "SCOPES", "TARGETS", "VARIANTS", "ChildNetwork", "ChildTuningArguments",
    "ChildTuningError", "ChildTuningTrainer", "Draws", "Mask", "check_settings", "highest_share", "keep",
    "local_part", "mask_seed", "put_back",
]  # fmt: skip

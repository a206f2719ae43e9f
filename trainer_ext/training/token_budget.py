"""Training batches of texts of similar length, filled up to a budget of tokens."""

import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler

from ..errors import InputError

# Size of a sorting window, in budgets. A smaller one leaves more padding, a larger one repeats the same batches.
WINDOW = 16


class TokenBudgetSampler(BatchRebalanceSampler):
    """A sampler of batches that hold at most `tokens` tokens each, padding included.

    Texts are shuffled, and sorted by length within windows. Every text comes once per epoch. The order depends only on
    the
    seed and the epoch, so all processes agree on it and a resumed run sees the same batches. `Trainer` needs the same
    number
    of batches in all epochs. It is that of the epoch that needs most, and the other epochs split their largest batches.

    The base class is there only because `Trainer` accepts a batch sampler of no other kind.

    Args:
        lengths: Number of tokens of each text.
        tokens: Budget of a batch. A text longer than this is a batch of its own.
        epochs: Number of epochs of the run; later epochs repeat the order from the first on.
        seed: Seed of the run.
        rank: Number of this process.
        processes: Number of processes.
        multiple: The number of batches is a multiple of this: gradient accumulation steps times processes.

    Raises:
        InputError: if there are fewer texts than `multiple`.
    """

    def __init__(
        self,
        lengths: list[int],
        tokens: int,
        epochs: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        multiple: int = 1,
    ):
        if len(lengths) < multiple:
            raise InputError(f"{len(lengths)} training texts do not make {multiple} batches, one for each process")
        self.lengths = torch.tensor(lengths)
        self.tokens, self.epochs, self.seed = tokens, epochs, seed
        self.rank, self.processes = rank, processes
        self.epoch = 0
        most = max(len(self._cut(self._order(epoch))) for epoch in range(epochs))
        self.count = min(-(-most // multiple) * multiple, len(lengths) // multiple * multiple)

    def __len__(self) -> int:
        """Return the number of batches of this process per epoch."""
        return self.count // self.processes

    def __iter__(self):
        """Yield the batches of this process, each a list of text positions."""
        epoch = self.epoch % self.epochs
        batches = self._cut(self._order(epoch))
        self._make_count(batches)
        order = torch.randperm(len(batches), generator=self._generator(epoch, 1)).tolist()
        for position in order[self.rank :: self.processes]:
            yield batches[position]

    def _generator(self, epoch: int, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(((self.seed * 1_000_003 + epoch) * 2 + stream) % 2**63)

    def _order(self, epoch: int) -> list[int]:
        """Return a random order of the texts, longest first within windows of about `WINDOW` budgets."""
        order = torch.randperm(len(self.lengths), generator=self._generator(epoch, 0))
        window = self.lengths[order].cumsum(0) // (WINDOW * self.tokens)
        falling = self.lengths[order].argsort(descending=True, stable=True)
        return order[falling[window[falling].argsort(stable=True)]].tolist()

    def _cut(self, order: list[int]) -> list[list[int]]:
        batches, longest = [], 0
        for position in order:
            length = int(self.lengths[position])
            if not batches or max(longest, length) * (len(batches[-1]) + 1) > self.tokens:
                batches.append([])
                longest = 0
            batches[-1].append(position)
            longest = max(longest, length)
        return batches

    def _make_count(self, batches: list[list[int]]) -> None:
        """Split the largest batch, or join the two smallest, until there are `count` batches."""
        while len(batches) < self.count:
            largest = max(range(len(batches)), key=lambda position: len(batches[position]))
            batch = batches[largest]
            batches[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        while len(batches) > self.count:
            batches.sort(key=len, reverse=True)
            batches.append(batches.pop() + batches.pop())


class TokenBudgetMixin:
    """A mixin for `Trainer` that uses a [`TokenBudgetSampler`] for training if `tokens_per_batch` is given."""

    def __init__(self, *args, tokens_per_batch: int | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.tokens_per_batch = tokens_per_batch

    def _get_train_sampler(self, train_dataset=None):
        if self.tokens_per_batch is None:
            return super()._get_train_sampler(train_dataset)
        rows = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        return TokenBudgetSampler(
            [len(ids) for ids in rows["input_ids"]],
            self.tokens_per_batch,
            epochs=max(1, int(-(-args.num_train_epochs // 1))),
            seed=args.seed if args.data_seed is None else args.data_seed,
            rank=args.process_index,
            processes=args.world_size,
            multiple=args.world_size * args.gradient_accumulation_steps,
        )

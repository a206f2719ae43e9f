"""Training batches of texts of like length, as many as fit a budget of tokens."""

import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler

from ..child_tuning import ChildTuningTrainer
from ..errors import InputError
from .learning_rates import LearningRatesTrainer
from .resuming import ResumableTrainer

# Texts that are sorted together, in budgets: less would leave padding, more would leave batches that never change.
WINDOW = 16


class TokenBudgetSampler(BatchRebalanceSampler):
    """Batches of a random order, sorted by length within windows, that hold `tokens` at most, padding included.

    Every text comes once an epoch. The order is keyed by seed and epoch, never by the global random state: all
    processes share the batches out between them, and a resumed run sees those of the uninterrupted one. All epochs
    have as many batches, as `Trainer` wants it: as the one that needs most; the others divide their largest.
    (`Trainer` takes a sampler of batches only from this base class; nothing else of it is used.)

    Args:
        lengths: Tokens of each text.
        tokens: Budget of a batch; a longer text is a batch of its own.
        epochs: How many epochs will be asked for; later ones start again at the first.
        seed, rank, processes: The run's seed, this process and how many there are.
        multiple: The number of batches is a multiple of it: gradient accumulation steps times processes.

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
        """Batches of this process in an epoch."""
        return self.count // self.processes

    def __iter__(self):
        """This process's batches: lists of positions."""
        epoch = self.epoch % self.epochs
        batches = self._cut(self._order(epoch))
        self._make_count(batches)
        order = torch.randperm(len(batches), generator=self._generator(epoch, 1)).tolist()
        for position in order[self.rank :: self.processes]:
            yield batches[position]

    def _generator(self, epoch: int, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(((self.seed * 1_000_003 + epoch) * 2 + stream) % 2**63)

    def _order(self, epoch: int) -> list[int]:
        """A random order, falling by length within windows of about `WINDOW` budgets."""
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
        """Halve the largest batch until there are enough; or, where nearly every text is its own, join small ones."""
        while len(batches) < self.count:
            largest = max(range(len(batches)), key=lambda position: len(batches[position]))
            batch = batches[largest]
            batches[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        while len(batches) > self.count:
            batches.sort(key=len, reverse=True)
            batches.append(batches.pop() + batches.pop())


class TokenBudgetTrainer(ChildTuningTrainer, LearningRatesTrainer, ResumableTrainer):
    """`ChildTuningTrainer` with a learning rate for each depth of the model, which resumes as if never interrupted.

    Its training batches follow a [`TokenBudgetSampler`] if `tokens_per_batch` is given.
    """

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

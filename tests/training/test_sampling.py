import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_ext.errors import InputError
from trainer_ext.training.token_budget import TokenBudgetSampler

LENGTHS = [5 + (7 * i * i) % 120 for i in range(400)]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=8, max_size=120),
    tokens=st.integers(1, 1500),
    processes=st.integers(1, 3),
    accumulation=st.integers(1, 2),
)
def test_every_text_comes_once_an_epoch_within_the_budget(lengths, tokens, processes, accumulation):
    multiple = processes * accumulation
    samplers = [TokenBudgetSampler(lengths, tokens, 3, 0, rank, processes, multiple) for rank in range(processes)]
    for epoch in range(4):
        seen = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler) == len(samplers[0])
            assert all(batches)
            seen += [position for batch in batches for position in batch]
            if sampler.count >= len(lengths) // multiple * multiple:
                continue  # one text a batch, nearly: the budget gives way to the multiple
            for batch in batches:
                assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= tokens
        assert sorted(seen) == list(range(len(lengths)))
    assert len(samplers[0]) % accumulation == 0


def test_little_is_padding_and_epochs_differ():
    sampler = TokenBudgetSampler(LENGTHS, 1024, 3, seed=1)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        cells = sum(max(LENGTHS[i] for i in batch) * len(batch) for batch in epochs[-1])
        assert cells < 1.15 * sum(LENGTHS)
    assert epochs[0] != epochs[1]


def test_the_global_random_state_has_no_part_in_it():
    torch.manual_seed(1)
    first = list(TokenBudgetSampler(LENGTHS, 512, 2, seed=3))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert list(TokenBudgetSampler(LENGTHS, 512, 2, seed=3)) == first
    assert list(TokenBudgetSampler(LENGTHS, 512, 2, seed=4)) != first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_too_few_texts_for_the_processes():
    with pytest.raises(InputError, match="2 training texts do not make 4 batches"):
        TokenBudgetSampler([3, 4], 100, 1, seed=0, processes=2, multiple=4)

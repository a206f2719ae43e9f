"""The fast attention against the library's own, over every option of DeBERTa-v2/v3."""

import pytest
import torch
from conftest import TINY, XXLARGE_STYLE

import attention_emodeberta
from attention_emodeberta import relative_rows, shifted
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForSequenceClassification, EmoDebertaModel

PLAIN = {key: value for key, value in TINY.items() if key not in ("position_buckets", "norm_rel_ebd", "share_att_key")}
OPTIONS = {
    "v3": TINY,
    "v2-xxlarge": XXLARGE_STYLE,
    "buckets shorter than the text": TINY | {"position_buckets": 8, "max_relative_positions": 32},
    "no buckets, distances beyond the range": PLAIN | {"max_relative_positions": 10},
    "unshared keys": TINY | {"share_att_key": False},
    "c2p only": TINY | {"pos_att_type": ["c2p"]},
    "p2c only": TINY | {"pos_att_type": ["p2c"]},
    "p2c only, unshared": TINY | {"pos_att_type": ["p2c"], "share_att_key": False},
    "neither": TINY | {"pos_att_type": []},
    "no relative attention": TINY | {"relative_attention": False, "position_biased_input": True},
    "scale of terms that are off": TINY | {"relative_attention": False, "pos_att_type": ["c2p", "p2c"]},
    "factorised embeddings": TINY | {"embedding_size": 16},
}
LENGTHS = [1, 2, 7, 41, 300]


def both(options: dict, kind=EmoDebertaModel, seed: int = 0, **more):
    """The same model twice, eager and sdpa, with weights large enough for attention to matter."""
    models = []
    for implementation in ("eager", "sdpa"):
        config = EmoDebertaConfig(**options, **more)
        config._attn_implementation = implementation
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "proj" in name or "rel_embeddings" in name:
                    parameter.copy_(
                        torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) / 4
                    )
        models.append(model)
    models[1].load_state_dict(models[0].state_dict())
    return models


def padded_batch(length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(5, 600, (3, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, max(1, length // 2) :] = 0
    mask[2, max(1, length - 1) :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_default_is_sdpa():
    assert EmoDebertaModel(EmoDebertaConfig(**TINY)).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 5), (2, 2), (2, 7), (3, 3), (8, 8), (5, 3)])
def test_shifted_reads_the_right_entries(m, n):
    scores = torch.randn(2, m, n + m - 1)
    view = shifted(scores, n)
    assert view.shape == (2, m, n)
    assert view.untyped_storage().data_ptr() == scores.untyped_storage().data_ptr()
    for r in range(m):
        for c in range(n):
            assert torch.equal(view[:, r, c], scores[:, r, c - r + m - 1])


@pytest.mark.parametrize("length", [1, 5, 130, 512])
@pytest.mark.parametrize("buckets", [-1, 8, 256])
def test_reachable_rows_lie_within_the_slice(length, buckets):
    span = buckets if buckets > 0 else 512
    rows = relative_rows(length, span, buckets, 512, torch.device("cpu"))
    reach = min(length, span)
    assert rows.shape == (2 * length - 1,)
    assert span - reach <= rows.min()
    assert rows.max() < span + reach


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", OPTIONS)
def test_hidden_states_and_gradients_are_the_librarys(name, length):
    batch = padded_batch(length)
    kept = batch["attention_mask"].bool()
    found = []
    for model in both(OPTIONS[name] | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}):
        with torch.no_grad():
            inference = model.eval()(**batch, output_hidden_states=True).hidden_states
        model.train()
        outputs = model(**batch)
        weights = torch.randn(outputs.last_hidden_state.shape, generator=torch.Generator().manual_seed(1))
        (outputs.last_hidden_state * weights)[kept].sum().backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        found.append((inference, outputs.last_hidden_state, outputs.pooler_output, gradients))
    eager, ours = found
    for want, state in zip(eager[0], ours[0], strict=True):
        torch.testing.assert_close(state[kept], want[kept], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[1][kept], eager[1][kept], atol=1e-5, rtol=0)
    assert not ours[1][~kept].any(), "states of padding are zeros"
    torch.testing.assert_close(ours[2], eager[2], atol=1e-5, rtol=0)
    for key, gradient in eager[3].items():
        if key in ours[3]:
            scale = gradient.abs().max().clamp(min=1)
            assert (ours[3][key] - gradient).abs().max() / scale < 1e-5, key
        else:  # a projection that nothing reads
            assert not gradient.any(), key


def test_attention_probabilities_come_from_eager_and_it_says_so_once(caplog, monkeypatch):
    eager, ours = both(TINY)
    batch = padded_batch(9)
    monkeypatch.setattr(attention_emodeberta.logger, "propagate", True)
    attention_emodeberta.logger.warning_once.cache_clear()
    with torch.no_grad():
        want, got = (model.eval()(**batch, output_attentions=True) for model in (eager, ours))
        ours(**batch, output_attentions=True)
    for a, b in zip(want.attentions, got.attentions, strict=True):
        assert torch.equal(a, b)
    assert caplog.text.count("attention probabilities come from") == 1


def test_a_text_without_tokens_gives_no_nan():
    _, ours = both(TINY)
    batch = padded_batch(6)
    batch["attention_mask"][0] = 0
    for train in (True, False):
        assert ours.train(train)(**batch).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_stays_close(dtype):
    eager, ours = both(TINY, EmoDebertaForSequenceClassification, num_labels=3)
    batch = padded_batch(41)
    with torch.no_grad():
        want = eager.eval()(**batch).logits
        got = ours.eval().to(dtype)(**batch).logits
    assert (got - want).abs().max() < 0.05 * want.abs().max().clamp(min=0.1)


def test_gradient_checkpointing_agrees():
    options = TINY | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    batch, gradients = padded_batch(20), []
    for checkpointing in (False, True):
        _, ours = both(options)
        if checkpointing:
            ours.activation_checkpointing_enable()
        ours.train()(**batch).pooler_output.sum().backward()
        gradients.append(ours.encoder.rel_embeddings.weight.grad)
    torch.testing.assert_close(*gradients)


def test_dropout_reaches_the_attention():
    options = TINY | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.5}
    _, ours = both(options)
    batch = padded_batch(20)
    first, second = (ours.train()(**batch).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)


def test_it_compiles():
    eager, ours = both(TINY)
    compiled = torch.compile(ours.eval(), dynamic=True, fullgraph=True)
    for length in (9, 17):
        batch = padded_batch(length)
        kept = batch["attention_mask"].bool()
        with torch.no_grad():
            want = eager.eval()(**batch)[0]
            torch.testing.assert_close(compiled(**batch)[0][kept], want[kept], atol=1e-5, rtol=0)

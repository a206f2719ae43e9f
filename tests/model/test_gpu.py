"""Attention as a GPU computes it: in one grid, which a CPU can compute too, and by `disentangled_flash`.

Its kernels run where CUDA and the package are, and in Triton's interpreter: `TRITON_INTERPRET=1`, with `triton` and
`disentangled-flash` installed.
"""

import copy
import inspect
import logging
import os
from types import SimpleNamespace

import pytest
import test_attention
import torch
from test_attention import NO_DROPOUT, OPTIONS, both, padded_batch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import attention_emodeberta
import gpu_emodeberta
import layers_emodeberta
from gpu_emodeberta import attend_at_once, flash, flash_attention, flash_works, not_by_flash
from modeling_emodeberta import EmoDebertaModel
from packing_emodeberta import ALIGNED, Packing, rows_on_gpu

CPU = torch.device("cpu")


@pytest.fixture
def one_grid(monkeypatch):
    monkeypatch.setattr(attention_emodeberta, "in_one_grid", lambda device: True)
    monkeypatch.setattr(layers_emodeberta, "in_few_nodes", lambda device: True)


# ---- One grid -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OPTIONS)
def test_hidden_states_and_gradients_are_the_librarys(name, one_grid):
    test_attention.test_hidden_states_and_gradients_are_the_librarys(name, 41, CPU)


@pytest.mark.parametrize("name", ["no relative attention", "position bias, c2p and p2c"])
def test_any_mask_is_exact_and_texts_may_be_empty(name, one_grid):
    test_attention.test_any_mask_is_exact_and_texts_may_be_empty(name, CPU)
    test_attention.test_a_text_without_tokens_gives_no_nan()


@pytest.mark.parametrize("name", ["v3", "position bias"])
def test_checkpointing_autocast_and_inference_agree(name, one_grid):
    _, model = both(OPTIONS[name] | NO_DROPOUT)
    batch = padded_batch(ALIGNED)  # one text fills the grid
    with torch.inference_mode():
        wanted = model.eval()(**batch).pooler_output.clone()
    test_attention.test_gradient_checkpointing_agrees(name, 1, CPU)
    test_attention.test_autocast_trains_close_to_float32(name, CPU)
    batch = {key: value[:1] for key, value in batch.items()}
    torch.testing.assert_close(model(**batch).pooler_output, wanted[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["v3", "position bias"])
def test_weights_in_half_precision_train_under_autocast(name, one_grid):
    _, model = both(OPTIONS[name] | NO_DROPOUT)
    model, batch = model.bfloat16(), padded_batch(20)
    with torch.inference_mode():
        model(**batch)  # what is kept from here is of use in training
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(**batch).last_hidden_state.float().square().mean()
    loss.backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) > 20
    assert all(gradient.dtype == torch.bfloat16 and gradient.isfinite().all() for gradient in gradients.values())


def test_frozen_linear_layers_cost_no_product_of_their_gradient(one_grid):
    """Embeddings are trained; frozen layers pass the gradient on, as those beside LoRA's do."""
    counts = []
    for frozen in (False, True):
        _, model = both(OPTIONS["v3"] | NO_DROPOUT)
        for parameter in model.encoder.layer.parameters():
            parameter.requires_grad_(not frozen)
        loss = model.train()(**padded_batch(20)).pooler_output.square().sum()
        with Products() as products:
            loss.backward()
        counts.append(products.count)
    assert counts[0] - counts[1] == 4 * model.config.num_hidden_layers


class Products(TorchDispatchMode):
    """Counts products of two matrices."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator is torch.ops.aten.mm.default
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["v3", "no relative attention", "position bias"])
def test_dropout_reaches_the_attention(name, one_grid):
    _, model = both(OPTIONS[name] | NO_DROPOUT | {"attention_probs_dropout_prob": 0.5})
    first, second = (model.train()(**padded_batch(20)).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)


def test_what_is_frozen_gets_no_gradient_and_the_rest_does(one_grid):
    for name, part in (("position bias", "position_bias"), ("v3", "rel_embeddings")):
        found = []
        for model in both(OPTIONS[name] | NO_DROPOUT):
            for key, parameter in model.named_parameters():
                parameter.requires_grad_(part in key)
            model.train()(**padded_batch(20)).pooler_output.square().sum().backward()
            found.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
        assert found[1].keys() == found[0].keys()
        assert len(found[0]) == 1
        torch.testing.assert_close(found[1], found[0])


def test_a_second_derivative_is_refused(one_grid):
    _, model = both(OPTIONS["v3"])
    states = model(**padded_batch(9)).last_hidden_state
    with pytest.raises(RuntimeError, match="attn_implementation='eager'"):
        torch.autograd.grad(states.square().sum(), list(model.encoder.rel_embeddings.parameters()), create_graph=True)


class Kernels(TorchDispatchMode):
    """Counts operators, without views and empty tensors."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += not (operator.is_view or "empty" in operator.__name__)
        return operator(*args, **(kwargs or {}))


def test_a_layer_launches_fewer_kernels_than_the_librarys(one_grid, monkeypatch):
    """On padded texts, forward. Torch's attention counts as one, as it is on CUDA; here it is many."""
    monkeypatch.setattr("kernels_emodeberta.Dropout.forward", torch.nn.Dropout.forward)
    found, attention = {}, gpu_emodeberta.torch_attention

    def as_one(query, *more):
        query.neg()
        with _disable_current_modes():
            return attention(query, *more)

    monkeypatch.setattr(gpu_emodeberta, "torch_attention", as_one)
    for layers in (1, 2):
        for name, model in zip(("library", "ours"), both(OPTIONS["v3"] | {"num_hidden_layers": layers}), strict=True):
            model.train()(**padded_batch(41))
            with torch.no_grad(), Kernels() as kernels:
                model(**padded_batch(41))
            found[name, layers] = kernels.count
    library, ours = (found[name, 2] - found[name, 1] for name in ("library", "ours"))
    assert ours < 0.7 * library, (ours, library)


def test_a_packing_moves_as_it_is():
    mask = (torch.arange(21) < torch.tensor([[21], [9], [0], [15]])).long()
    mask[1, 4] = 0
    packings = [Packing.for_gpu(rows) for rows in (mask, mask[:0], mask[:1])]
    for packing in (*packings, Packing.of(mask, 3, 40)):
        before = copy.deepcopy(packing)
        packing.move(CPU)
        torch.testing.assert_close(vars(packing) | {"groups": None}, vars(before) | {"groups": None})
        for group, wanted in zip(packing.groups, before.groups, strict=True):
            torch.testing.assert_close(vars(group) | {"tokens": None}, vars(wanted) | {"tokens": None})


# ---- Which way ------------------------------------------------------------------------------------------------------
def reason(size=64, tokens=1030, dtype=torch.float32, positions=True, bias=None, gap=False, dropout=0.1):
    mask = torch.ones(1, tokens)
    mask[0, 1] = 0 if gap else 1
    packing = Packing.for_gpu(mask)
    packing.add(bias, dtype)
    states = torch.empty(int(packing.bounds[-1]) if not gap else tokens - 1, 2 * size, dtype=dtype)
    return not_by_flash(states, 64 if positions else 0, packing, 2, size, dropout)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_disentangled_flash_computes_deberta(size, dtype):
    assert reason(size, dtype=dtype) is None
    assert reason(size, dtype=dtype, dropout=0.0) is None


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"positions": False}, "without relative positions"),
        ({"bias": torch.zeros(2, 1040, 1040)}, "a position bias"),
        ({"gap": True}, "masks with gaps"),
        ({"size": 48}, "heads of 48 features"),
        ({"dtype": torch.float64}, "float64"),
        ({"dropout": 1.0}, "dropout of 1.0"),
        ({"tokens": 70_000}, "so many tokens"),
        ({"tokens": 1000}, "within fewer than 1024 tokens"),
    ],
)
def test_torch_computes_the_rest(what, said):
    assert said in reason(**what)


def test_the_package_is_the_default_only_beside_a_gpu(monkeypatch):
    config = both(OPTIONS["v3"])[1].config
    for gpu, package, wanted in ((True, True, "disentangled"), (True, False, "sdpa"), (False, True, "sdpa")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        monkeypatch.setattr(gpu_emodeberta, "flash", lambda package=package: SimpleNamespace() if package else None)
        config._attn_implementation_internal = None
        assert EmoDebertaModel(config).config._attn_implementation == wanted
    model = EmoDebertaModel(config)
    for chosen in ("eager", "sdpa", "disentangled"):
        model.set_attn_implementation(chosen)
        assert model.config._attn_implementation == chosen


def test_without_the_package_it_says_so_and_is_sdpa(caplog, one_grid, monkeypatch):
    monkeypatch.setattr(gpu_emodeberta, "flash", lambda: None)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    _, model = both(OPTIONS["v3"])
    with torch.no_grad():
        wanted = model.eval()(**padded_batch(9)).pooler_output
        model.set_attn_implementation("disentangled")
        assert torch.equal(model(**padded_batch(9)).pooler_output, wanted)
    assert "needs disentangled-flash" in caplog.text


# ---- By disentangled_flash ------------------------------------------------------------------------------------------
CASES = {
    "as DeBERTa-v3": (64, (70, 41), 256, 256),
    "buckets shorter than the texts": (32, (33, 5, 1), 8, 16),
    "no buckets, distances beyond the range": (128, (20, 3), -1, 12),
    "c2p only": (32, (20, 31), 8, 16),
    "p2c only": (32, (20, 31), 8, 16),
}


@pytest.fixture(scope="module")
def device():
    """The device its kernels run on: CUDA, or the CPU by Triton's interpreter."""
    if flash() is None:
        pytest.skip("disentangled-flash or triton is not installed")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU, and TRITON_INTERPRET is not 1")
    # The package asks for a CUDA tensor, and its launch sizes for a GPU. The interpreter needs neither.
    code = inspect.getsource(flash().attention).replace('query.device.type != "cuda"', "False")
    names = flash().attention.__globals__
    exec(code, names)
    flash().attention = names["training_attention_packed"]
    flash().resolve = lambda *workload: (16, 16, 4, 1)
    return CPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_its_results_and_gradients_are_torchs(name, dtype, device):
    if dtype == torch.bfloat16 and device == CPU:
        pytest.skip("Triton's interpreter reads bf16 as integers")
    size, lengths, buckets, span = CASES[name]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    packing = Packing.for_gpu(mask.to(device))
    packing.add(None, dtype)
    rows = rows_on_gpu(packing.length, span, buckets, 512, device)
    generator, reach = torch.Generator().manual_seed(0), 2 * min(packing.length, span)
    terms = {"p2c only": ("p2c",), "c2p only": ("c2p",)}.get(name, ("p2c", "c2p"))
    shapes = (sum(lengths), 6 * size), (reach, len(terms) * 2 * size)
    parts = [(torch.randn(shape, generator=generator) / size**0.25).to(device, dtype) for shape in shapes]
    projected, table = (part.requires_grad_() for part in parts)
    found = []
    for attend, given in ((flash_attention, table), (attend_at_once, table * 0.5)):
        result = attend(projected, given, terms, rows, packing, 2, 0.5, 0.0)
        weights = torch.linspace(-1, 1, result.numel(), device=device).view(result.shape).to(dtype)
        found.append([result, *torch.autograd.grad((result * weights).sum(), (projected, table))])
    limit = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    for ours, wanted in zip(*found, strict=True):
        assert (ours - wanted).abs().max() < limit * wanted.abs().max()


@pytest.mark.gpu
def test_its_gradient_under_dropout_is_the_derivative(device):
    packing = Packing.for_gpu((torch.arange(20) < torch.tensor([[20], [9]])).to(device))
    packing.add(None, torch.float32)
    rows = rows_on_gpu(packing.length, 16, 8, 512, device)
    generator = torch.Generator().manual_seed(0)
    parts = [(torch.randn(shape, generator=generator) / 2).to(device) for shape in ((29, 192), (32, 128))]
    parts = [part.requires_grad_() for part in parts]
    weights = torch.randn(29, 64, generator=generator).to(device)

    def total(*given):
        torch.manual_seed(5)
        return (flash_attention(*given, ("p2c", "c2p"), rows, packing, 2, 1.0, 0.3) * weights).sum()

    gradients = torch.autograd.grad(total(*parts), parts)
    for index, gradient in enumerate(gradients):
        step = torch.randn(gradient.shape, generator=generator).to(device) / 100
        with torch.no_grad():
            up, down = (total(*parts[:index], parts[index] + sign * step, *parts[index + 1 :]) for sign in (1, -1))
        assert ((up - down) / 2).item() == pytest.approx((gradient * step).sum().item(), rel=0.02, abs=1e-3)


@pytest.mark.gpu
def test_a_whole_model_is_the_librarys(device, one_grid, monkeypatch):
    if device == CPU:
        monkeypatch.setattr(gpu_emodeberta, "flash_works", lambda *what: True)
    else:
        assert flash_works(device, torch.float32, 32)
    monkeypatch.setattr(gpu_emodeberta, "FLASH_FROM", 0)
    options = OPTIONS["v2-xxlarge"] | {"hidden_size": 64, "num_attention_heads": 2} | NO_DROPOUT
    batch = {key: value.to(device) for key, value in padded_batch(20).items()}
    kept, found = batch["attention_mask"].bool(), []
    for model, implementation in zip(both(options), ("eager", "disentangled"), strict=True):
        model.set_attn_implementation(implementation)
        states = model.to(device).train()(**batch).last_hidden_state[kept]
        states.square().sum().backward()
        found.append((states, {key: p.grad for key, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-4, rtol=0)
    for key, gradient in found[1][1].items():
        assert (gradient - found[0][1][key]).abs().max() < 1e-4 * found[0][1][key].abs().max().clamp(min=1), key

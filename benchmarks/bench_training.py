"""Time fine-tuning: plain `Trainer` with the library's DeBERTa and ours; and what Child-Tuning adds to a step.

Both sides compute the same function: MiniLM with DeBERTa's positions, the first token, and one hidden layer. The figure
is `train_runtime`, peer / ours. Losses of the last epoch and on validation must agree within the spread of the seeds.
"""

import math
import statistics
import tempfile

import torch
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.measure import DEBERTA, ROOT, SIZES, Results, alternate, machine, ratio, seconds
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForSequenceClassification
from run_classify import EmotionTrainer
from trainer_ext.child_tuning import ChildNetwork, ChildTuningArguments
from trainer_ext.data.load import load_corpus
from trainer_ext.precision import timed
from trainer_ext.training.checkpoint_source import resolve_checkpoint
from trainer_ext.training.warm_start import warm_start

CHECKPOINT = "sentence-transformers/all-MiniLM-L6-v2"
SIDES = {  # name: bf16, tokens per batch
    "library, float32": (False, None),
    "ours, float32": (False, None),
    "ours, float32, token budget": (False, 2048),
    "ours, bf16": (True, None),
    "ours, bf16, token budget": (True, 2048),
}
BATCH = 16


def our_model(label_names: list[str]):
    """Return our model with the library's head: first token, one hidden layer of the encoder's width."""
    return warm_start(
        CHECKPOINT,
        relative_attention=True,
        pooling="cls",
        classifier_hidden_size=384,
        classifier_activation="gelu",
        classifier_dropout=0.1,
        id2label=dict(enumerate(label_names)),
        label2id={name: index for index, name in enumerate(label_names)},
    )


def library_model(ours) -> DebertaV2ForSequenceClassification:
    """Return the library's class with our model's weights."""
    keys = set(DebertaV2Config().to_dict()) | {
        *("position_buckets", "share_att_key", "norm_rel_ebd", "conv_kernel_size", "id2label", "label2id"),
    }
    given = {key: value for key, value in ours.config.to_dict().items() if key in keys and key != "model_type"}
    given |= {"pooler_dropout": 0.1, "cls_dropout": 0.1, "pooler_hidden_act": "gelu"}
    given |= {"pooler_hidden_size": ours.config.hidden_size}
    model = DebertaV2ForSequenceClassification(DebertaV2Config(**given))
    names = {"classifier.dense.": "pooler.dense.", "classifier.out_proj.": "classifier."}
    state = {}
    for key, value in ours.state_dict().items():
        for old, new in names.items():
            key = new + key.removeprefix(old) if key.startswith(old) else key
        state[key] = value
    model.load_state_dict(state)
    return model


def train(side: str, seed: int, rows: dict, tokenizer, label_names: list[str], epochs: int, use_cpu: bool) -> dict:
    """Train once, and return seconds and losses."""
    bf16, tokens_per_batch = SIDES[side]
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "output_dir": folder,
            "seed": seed,
            "num_train_epochs": epochs,
            "per_device_train_batch_size": BATCH,
            "per_device_eval_batch_size": 64,
            "learning_rate": 5e-5,
            "logging_strategy": "epoch",
            "save_strategy": "no",
            "disable_tqdm": True,
            "bf16": bf16,
            "use_cpu": use_cpu,
            "dataloader_pin_memory": not use_cpu,
        }
        set_seed(seed)
        model = our_model(label_names)
        shared = {"data_collator": DataCollatorWithPadding(tokenizer), "train_dataset": rows["train"]}
        if side.startswith("library"):
            trainer = Trainer(library_model(model), TrainingArguments(**options), **shared)
        else:
            args = ChildTuningArguments(**options)
            trainer = EmotionTrainer(model, args, tokens_per_batch=tokens_per_batch, **shared)
        set_seed(seed)
        spent = trainer.train().metrics["train_runtime"]
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        validation = trainer.evaluate(rows["validation"])["eval_loss"]
    return {"seconds": round(spent, 1), "loss": round(losses[-1], 4), "validation_loss": round(validation, 4)}


def check_same_function(rows, tokenizer, label_names: list[str]) -> float:
    """Return the largest difference of the two models' logits on real texts before training, in float32."""
    set_seed(0)
    ours = our_model(label_names).eval()
    library = library_model(ours).eval()
    batch = DataCollatorWithPadding(tokenizer)([rows["validation"][i] for i in range(16)])
    batch.pop("labels")
    with torch.no_grad():
        difference = (ours(**batch).logits - library(**batch).logits).abs().max().item()
    assert difference < 1e-5, f"the models' logits differ by {difference} before training"
    return difference


def measure(results: Results, data_dir: str | None, epochs: int, seeds: list[int], limit: int | None, use_cpu: bool):
    """Train all sides with all seeds. Each result is kept as soon as its training is done."""
    if data_dir:
        corpus, source = load_corpus(dataset_name="wassa2022", data_dir=data_dir), "WASSA 2022"
    else:
        essays = {"train": str(ROOT / "examples" / "essays.tsv")}
        corpus, source = load_corpus(files=essays, split_column="split"), "the project's essays"
    tokenizer = AutoTokenizer.from_pretrained(resolve_checkpoint(CHECKPOINT))
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    rows = {}
    for split in ("train", "validation"):
        part = corpus.splits[split]
        part = part.select(range(min(limit or len(part), len(part))))
        drop = [name for name in part.column_names if name != "labels"]
        rows[split] = part.map(
            lambda batch: tokenizer(batch["text"], truncation=True, max_length=256, return_token_type_ids=False),
            batched=True,
            remove_columns=drop,
        )
    settings = {"texts": source, "rows": len(rows["train"]), "epochs": epochs, "batch": BATCH, "checkpoint": CHECKPOINT}
    settings |= {"machine": machine(torch.device("cpu" if use_cpu else "cuda"))}
    results.part(
        "training check",
        settings,
        lambda: {"logit_difference": check_same_function(rows, tokenizer, corpus.label_names)},
    )
    timing = timed(torch.device("cpu" if use_cpu else "cuda"))
    in_bf16 = timing.bf16_is_faster
    if not in_bf16:
        print(f"\nfine-tuning in bf16 is not measured: {timing}")
    runs: dict[str, list[dict]] = {side: [] for side, (bf16, _) in SIDES.items() if in_bf16 or not bf16}
    print("\nfine-tuning:", flush=True)
    for seed in seeds:
        for side in runs:
            run = results.part(
                f"training, {side}, seed {seed}",
                settings,
                lambda side=side, seed=seed: train(side, seed, rows, tokenizer, corpus.label_names, epochs, use_cpu),
            )
            print(f"  seed {seed}, {side}: {run['seconds']} s, loss {run['loss']}", flush=True)
            runs[side].append(run)
    return results.part("training", settings | {"seeds": seeds}, lambda: summary(runs))


def summary(runs: dict[str, list[dict]]) -> dict:
    """Return ratios of times, and means and spreads of losses, after checking that float32 losses agree."""
    sides = {}
    peer = runs["library, float32"]
    for side, of_side in runs.items():
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(peer, of_side, strict=True)]
        sides[side] = {"ratio": round(statistics.median(ratios), 3)}
        sides[side]["range"] = [round(min(ratios), 3), round(max(ratios), 3)]
        for name in ("loss", "validation_loss"):
            values = [run[name] for run in of_side]
            sides[side][name] = {"mean": round(statistics.mean(values), 4)}
            sides[side][name]["sd"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
    if len(peer) > 1:
        for name in ("loss", "validation_loss"):
            a, b = sides["library, float32"][name], sides["ours, float32"][name]
            spread = 2 * (a["sd"] ** 2 + b["sd"] ** 2) ** 0.5
            assert abs(a["mean"] - b["mean"]) <= spread, f"{name} differs by more than the seeds' spread: {a}, {b}"
    return {"sides": sides}


# ---- Child-Tuning: a step with F, with D and as published, over the plain step, at base size -------------------------
P = 0.3
VOCABULARY = 128_100


@torch.no_grad()
def publish(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    """Mask as the authors of F published it: by a float mask for each parameter from `torch.distributions`."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                mask = torch.distributions.Bernoulli(torch.full_like(parameter.grad, P)).sample()
                parameter.grad.mul_(mask / P)


def masking_costs(shape: dict, rounds: int, device: torch.device) -> dict:
    """Return steps over the plain one, masking alone as a share of it, and the published masking over ours."""
    torch.manual_seed(0)
    config = EmoDebertaConfig(**DEBERTA, **shape, num_labels=7)
    model = EmoDebertaForSequenceClassification(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(5, config.vocab_size, (8, 128), generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(8, device=device) % 7

    def loss() -> torch.Tensor:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss

    finder = ChildNetwork(optimizer, "D", P)
    finder.remove()
    finder.find(model, [loss()])

    def step(side: str) -> None:
        if side == "published":
            hook = optimizer.register_step_pre_hook(publish)
        else:
            hook = ChildNetwork(optimizer, "none" if side == "plain" else side, P)
            hook.masks = finder.masks if side == "D" else None
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        hook.remove()

    sides = ["plain", "F", "D", "published"]
    times = alternate({side: lambda side=side: step(side) for side in sides}, rounds, device)

    # Masking alone, on gradients of one step; what a mask zeroes is put back, so that all sides see the same.
    loss().backward()
    kept = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    fresh = ChildNetwork(optimizer, "F", P)
    fresh.remove()
    alone: dict[str, list[float]] = {"F": [], "D": [], "published": []}
    masks = {"F": fresh._before_step, "D": finder._before_step, "published": publish}
    for _ in range(rounds):
        for side, mask in masks.items():
            alone[side].append(seconds(lambda mask=mask: mask(optimizer, (), {}), device))
            for p, gradient in zip(model.parameters(), kept, strict=True):
                if gradient is not None:
                    p.grad.copy_(gradient)
    fresh.measure = True
    fresh._before_step(optimizer, (), {})
    share = fresh.kept[0] / fresh.kept[1]
    error = math.sqrt(P * (1 - P) / fresh.kept[1])
    assert abs(share - P) < max(1e-3, 4 * error), f"F keeps {share}"
    zeroed = sum(int((p.grad == 0).sum()) for p in model.parameters() if p.grad is not None)
    assert zeroed > (1 - P) * fresh.kept[1], "the mask did not reach the gradients"
    plain = statistics.median(times["plain"])
    return {
        "step": {side: ratio(times[side], times["plain"]) for side in sides[1:]},
        "masking_alone": {side: round(statistics.median(spent) / plain, 4) for side, spent in alone.items()},
        "published_over_F": ratio(alone["published"], alone["F"]),
        "kept": round(share, 4),
    }


def measure_child_tuning(results: Results, rounds: int, device: torch.device) -> None:
    """Measure the base size, and keep it in `results`."""
    shape = SIZES["base"] | {"vocab_size": VOCABULARY}
    settings = {"batch": "8 x 128", "p": P, "vocabulary": VOCABULARY, "rounds": rounds, "machine": machine(device)}
    show_masking("Child-Tuning", results.part("child tuning", settings, lambda: masking_costs(shape, rounds, device)))


def show_masking(name: str, row: dict) -> None:
    """Print what each variant costs."""
    print(f"\n{name}, cost over the plain step:", flush=True)
    for side, step in row["step"].items():
        alone = row["masking_alone"][side]
        print(f"  {side}: {step['ratio'] - 1:+.1%} of the step; masking alone {alone:.1%}", flush=True)
    print(f"  masking is {row['published_over_F']['ratio']:.1f} times as fast as the published one", flush=True)

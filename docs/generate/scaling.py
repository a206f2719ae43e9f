"""Make the blocks on larger backbones and on clusters from the files in results/bench/."""

import statistics
from pathlib import Path

from benchmarks.bench_scaling import (
    ESSAY_TOKENS,
    ESSAYS,
    GPU_TERAFLOPS,
    MODELS,
    TIMED_STEPS,
    TOKENS,
    WARM_UP_STEPS,
    plan,
)
from benchmarks.bench_step_parts import LENGTH, PARTS, least_milliseconds
from docs.generate.blocks import table
from docs.generate.performance import machines

WITHOUT = f"1 x {LENGTH}, without checkpointing"
TEXTS = 10**9
GPUS, CORES = 16, 1000  # of a cluster, in the plan for so many texts
SIZES = ("weights", "bf16_weights", "gradients_and_optimizer", "activations")


def blocks(folder: Path) -> dict[str, list[str]]:
    """Return the lines of each block, from the JSON files in a folder like results/."""
    contents = {source: content for source, content in machines(folder) if not source.endswith("-quick.json")}
    measured = next(content["scaling"] for content in contents.values() if "scaling" in content)
    plans = {name: plan(name, measured) for name in MODELS}
    return {
        "layers": layers(measured),
        "plan": plan_table(plans),
        "two-gpus": two_gpus(plans["DeBERTa-v2-xxlarge"]),
        "parts": parts(contents, plans["DeBERTa-v2-xxlarge"]),
        "billion": billion(contents),
        "steps": [line for source, content in contents.items() for line in steps(source, content, plans)],
    }


def layers(measured: dict) -> list[str]:
    """Return the memory of a layer, as measured and as fitted."""
    rows = [[row["width"], row["length"], f"{row['bytes_a_token_and_layer']:,}"] for row in measured["layers"]]
    return [
        *table(["width", "length", "bytes per token and layer"], rows),
        "",
        f"`{measured['command']}` on {measured['settings']['machine']['name']}, {TOKENS:,} tokens a step. Fitted: "
        f"{measured['bytes_of_width']:g} × width + {measured['bytes_of_heads_and_length']:g} × heads × length, within "
        f"{measured['largest_relative_error']:.0%}.",
    ]


def total(found: dict) -> float:
    """Return the gigabytes of a plan."""
    return sum(found[key] for key in SIZES)


def plan_table(plans: dict[str, dict]) -> list[str]:
    """Return the plan of every model."""
    rows = []
    for name, (recipe, _, texts, length, *_) in MODELS.items():
        found = plans[name]
        cells = [name, f"`recipes/{recipe}.yaml`", f"{texts} × {length}", f"{found['parameters'] / 1e6:,.0f}M"]
        cells += [f"{found['trained'] / 1e6:,.0f}M", *(f"{found[key]:.1f}" for key in SIZES), f"{total(found):.1f}"]
        rows.append([*cells, f"{found['seconds_an_epoch']:.0f}"])
    header = ["model", "recipe", "batch", "parameters", "trained", "weights", "bf16 copy", "gradients, optimizer"]
    return [
        *table([*header, "activations", "sum", "seconds an epoch"], rows),
        "",
        f"An epoch is WASSA's {ESSAYS:,} essays at {ESSAY_TOKENS} tokens, at an assumed {GPU_TERAFLOPS} TFLOP/s.",
    ]


def two_gpus(found: dict) -> list[str]:
    """Return the gigabytes per GPU where two share a model."""
    shared = (found["weights"] + found["gradients_and_optimizer"]) / 2
    rows = [["while it trains", f"{shared:.1f}"], ["at the end", f"{shared + found['weights']:.1f}"]]
    return table(["DeBERTa-v2-xxlarge on two GPUs", "gigabytes per GPU"], rows)


def parts(contents: dict[str, dict], found: dict) -> list[str]:
    """Return what a step of xxlarge needs by arithmetic and by counting, next to the measured one."""
    names = [f"operations, xxlarge, {name}" for name in (f"1 x {LENGTH}", f"8 x {LENGTH}", WITHOUT)]
    one, eight, whole = next([content[name] for name in names] for content in contents.values() if names[0] in content)
    least = least_milliseconds(found["parameters"], found["of_layers"], LENGTH)
    rows = [[part, f"{least[part]:.1f}", *(f"{row['operations'][part]:,}" for row in (one, eight))] for part in PARTS]
    total = sum(one["operations"].values())
    rows.append(["sum", f"{sum(least.values()):.1f}", f"{total:,}", f"{sum(eight['operations'].values()):,}"])
    lines = table(["part", "ms at the peak", f"operations, 1 × {LENGTH}", f"operations, 8 × {LENGTH}"], rows)
    for content in contents.values():
        measured = content.get("steps, DeBERTa-v2-xxlarge")
        if measured:
            spent = 1e3 * measured["seconds_a_step"]
            lines += [
                "",
                f"{measured['settings']['machine']['name']}, 1 × {LENGTH}: {spent:.0f} ms measured. "
                f"{sum(least.values()) / spent:.0%} of it is what the work takes at the card's peak. Divided by the "
                f"operations, it is {1e3 * spent / total:.0f} µs each.",
            ]
    saved = one["operations"]["backward"] - whole["operations"]["backward"]
    blocks = sum(one["operations"][part] - eight["operations"][part] for part in ("forward", "backward"))
    return [
        *lines,
        "",
        f"Of the {total:,} operations with one text, {blocks:,} come from working in blocks of positions. Without "
        f"activation checkpointing there are {saved:,} fewer. Counted by `{one['command']}`, torch "
        f"{one['settings']['torch']}.",
    ]


def billion(contents: dict[str, dict]) -> list[str]:
    """Return how long a billion texts take, from the rates of one core and of a training step on a GPU."""
    scored = next(content for content in contents.values() if "scoring, 1,000,000 rows" in content)
    steps = next(
        content["steps, DeBERTa-v3-base"] for content in contents.values() if "steps, DeBERTa-v3-base" in content
    )
    machine = scored["scoring"]["settings"]["machine"]
    core, gpu = f"core of {machine['name']}", steps["settings"]["machine"]["name"]
    rates = [
        ("MiniLM's size, float32", core, scored["scoring"]["rows_per_second"]["ours"] / machine["cores"], CORES),
        ("none: read, tokenize, write", core, 1e6 / scored["scoring, 1,000,000 rows"]["microseconds_a_row"], CORES),
        (f"DeBERTa-v3-base, bf16, {ESSAY_TOKENS} tokens", gpu, 3 * steps["tokens_a_second"] / ESSAY_TOKENS, GPUS),
    ]
    rows = [
        [
            model,
            unit,
            f"{rate:,.0f}",
            f"{TEXTS / rate / 86_400:,.1f}",
            f"{TEXTS / rate / 3600 / count:.2g} on {count:,}",
        ]
        for model, unit, rate, count in rates
    ]
    return [
        *table(["model", "one", "texts a second", "days for a billion", "hours"], rows),
        "",
        "On the GPU, a forward pass is taken as a third of the training step below.",
    ]


def cluster_blocks(folder: Path) -> dict[str, list[str]]:
    """Return the block of the guide on clusters: Ray's time and the driver's memory, next to processes without Ray."""
    content = next(content for _, content in machines(folder) if "cluster, overhead" in content)
    rows = []
    for model, part in (("tiny", "cluster, overhead"), ("MiniLM's size", "cluster, overhead at MiniLM's size")):
        found = content[part]
        more = [found["ray_takes_more"][key] for key in ("seconds", "seconds_from_first_to_last_shard")]
        seconds = [statistics.median(run["seconds"] for run in found[side]) for side in ("processes", "ray")]
        cells = [model, f"{found['settings']['rows']:,}", *(f"{median:.0f}" for median in seconds)]
        rows.append([*cells, *(f"{share:+.1%}" for share in more)])
    one, driver = content["cluster, overhead"], content["cluster, driver"]
    few, many = (f"{int(count):,}" for count in driver["megabytes"])
    name, rounds = one["settings"]["machine"]["name"], one["settings"]["rounds"]
    return {
        "cluster": [
            f"`{one['command']}` on {name}; medians, rounds: {rounds}.",
            "",
            *table(["model", "rows", "processes, seconds", "Ray, seconds", "in all", "first to last shard"], rows),
            "",
            f"The driver's memory for {many} rows is {driver['ratio']:.2f} of that for {few}.",
        ]
    }


def steps(source: str, content: dict, plans: dict[str, dict]) -> list[str]:
    """Return what the models' own steps took on a GPU, next to the plan; nothing if the file has none."""
    found = {name: content[f"steps, {name}"] for name in MODELS if f"steps, {name}" in content}
    if not found:
        return []
    (one, *_) = found.values()
    machine = one["settings"]["machine"]
    rows = [
        [
            name,
            row["batch"].replace("x", "×"),
            # A recipe may have changed since.
            f"{total(plans[name]):.1f}" if row["batch"].startswith(f"{MODELS[name][2]} x ") else "–",
            row["peak_gigabytes"],
            row["reserved_gigabytes"],
            f"{row['seconds_a_step']:.2f}",
            f"{row['tokens_a_second']:,}",
            f"{plans[name]['seconds_an_epoch']:.0f}",
            f"{ESSAYS * ESSAY_TOKENS / row['tokens_a_second']:.0f}",
        ]
        for name, row in found.items()
    ]
    header = ["model", "texts × accumulation × length", "planned", "tensors", "allocator", "seconds a step"]
    return [
        f"#### {machine['name']}\n",
        f"`{one['command']}`: {TIMED_STEPS} steps after {WARM_UP_STEPS} others; torch {machine['torch']} "
        f"([`results/bench/{source}`](../results/bench/{source})).\n",
        *table([*header, "tokens a second", "planned seconds an epoch", "at this rate"], rows),
        "",
    ]

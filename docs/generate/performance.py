"""The page `docs/performance.md` and its plots, from every `results/bench-*.json`."""

import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.bench_encoder import LENGTHS, ROWS
from benchmarks.measure import ROOT

NAMES = {"float32": "float32", "bfloat16": "bf16"}
STYLES = {
    ("float32", "forward"): {"color": "tab:blue", "label": "float32, forward"},
    ("float32", "forward_backward"): {"color": "tab:blue", "linestyle": "--", "label": "float32, with backward"},
    ("bfloat16", "forward"): {"color": "tab:orange", "label": "bf16, forward"},
    ("bfloat16", "forward_backward"): {"color": "tab:orange", "linestyle": "--", "label": "bf16, with backward"},
}
HEAD = """# Performance

Written by `make bench` from `results/bench-*.json`; do not edit. Every figure is a ratio to `transformers`' own code in
the same run, the sides taking turns, or a share of the rate that the machine's own matrix products reach, measured in
that run too. Each script first asserts that both sides compute the same: hidden states and gradients in float32 to
1e-5, logits and decisions on real texts, losses of trainings. Ratios are medians over rounds, with the smallest and
the largest.

- **Encoder**: base size (12 × 768), texts between half and full length padded to one length, 1,024 tokens a batch and
  at least two texts. "Products" is the share of our time that its matrix products alone would need at the machine's
  peak, over tokens without padding: 100% would be the limit. It can pass 100% where a product runs faster among the
  others than alone.
- **Inference**: strings to labels, one third essays, two thirds comments, shuffled; `EmotionPipeline` against
  `pipeline("text-classification")` on the library's model in float32 at its best batch size of 1, 8 and 32.
- **Fine-tuning**: MiniLM with DeBERTa's relative positions, one epoch of WASSA's training essays, `Trainer` with its
  default collator on the library's class in float32 against `TokenBudgetTrainer`, same weights, seeds and function.
- **Child-Tuning**: AdamW on the base size with a vocabulary of 128,100, 8 × 128 tokens, float32; the published
  algorithm draws a float mask for every parameter.
- **Masked-language training**: base size, vocabulary 128,100, 8 × 128 tokens, 15% to predict; `DebertaV2ForMaskedLM`
  and `EmoDebertaForMaskedLM`, same weights and masks, both under plain `Trainer`; memory as below.
- **Scoring**: `run_score.py`, rows read, scored and written, against a loop over the library's pipeline in batches of
  32, MiniLM's size, float32, texts as for inference; its growth on generated rows with a tiny model, from the first
  shard's record to the last; an ensemble's time over that of as many single models.
- **Space**: `space/app.py` called by `gradio_client`; every answer is compared with the pipeline's. Seconds here are
  no ratio: there is no peer.
- **Memory**: peak of a training step at base size, 8 texts of 512 tokens, beyond weights, gradients and optimizer.
"""


def write(folder: Path) -> Path:
    """Write `performance.md` and a plot for each machine into `folder`; the page's path."""
    plots = folder / "performance"
    plots.mkdir(parents=True, exist_ok=True)
    page = [HEAD]
    for path in sorted((ROOT / "results").glob("bench-*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if all(name.startswith("steps, ") for name in content):
            continue  # in docs/scaling.md
        slug = path.stem.removeprefix("bench-")
        page += section(content, path.name)
        if any(name.startswith("encoder") for name in content):
            draw(content, plots / f"{slug}.svg")
            page.append(f"![ratios and time per token over length and batch](performance/{slug}.svg)\n")
        if "scoring" in content:
            draw_scoring(content, plots / f"{slug}-scoring.svg")
            page.append(f"![scoring: time per row, memory, members](performance/{slug}-scoring.svg)\n")
    target = folder / "performance.md"
    target.write_text("\n".join(page), encoding="utf-8")
    return target


def section(content: dict, source: str) -> list[str]:
    """One machine's tables."""
    machine = next(iter(content.values()))["settings"]["machine"]
    quick = ", quick run" if source.endswith("-quick.json") else ""
    lines = [f"## {machine['name']}, {machine['cores']} cores{quick}\n"]
    lines.append(f"torch {machine['torch']}, {machine['threads']} threads; [`results/{source}`](../results/{source}).")
    if {"peak, float32", "peak, bfloat16"} <= content.keys():
        rate = content["peak, bfloat16"]["gflops"] / content["peak, float32"]["gflops"]
        lines.append(f"Matrix products in bf16 run at {rate:.2f}× the rate of float32 here.")
    lines.append("")
    lines += encoder_table(content)
    rows = [
        f"| {size} | {NAMES[name]} | {shown(content[part][name])} | {content[part][name]['share_of_peak']:.0%} "
        f"| {100 if name == 'float32' else 100 * content[part]['bf16_equal_decisions']:.1f}% |"
        for size in ("base", "MiniLM")
        if (part := f"inference, {size}") in content
        for name in NAMES
    ]
    if rows:
        used = content[next(name for name in content if name.startswith("inference"))]["settings"]
        lines.append(f"Inference, {used['count']} texts ({used['texts']}), {used['rounds']} rounds:\n")
        lines += [
            "| size | ours in | library's time / ours | of the peak | decisions as in float32 |",
            "|---|---|---|---|---|",
        ]
        lines += [*rows, ""]
    if "training" in content:
        part = content["training"]
        lines.append(
            f"Fine-tuning, {part['settings']['rows']} rows ({part['settings']['texts']}), {part['settings']['epochs']} "
            f"epoch, seeds {', '.join(map(str, part['settings']['seeds']))}:\n"
        )
        lines += ["| | library's time / ours | loss | loss on validation |", "|---|---|---|---|"]
        for side, row in part["sides"].items():
            losses = [f"{row[key]['mean']:.3f} ± {row[key]['sd'] or 0:.3f}" for key in ("loss", "validation_loss")]
            lines.append(f"| {side.replace('bfloat16', 'bf16')} | {shown(row)} | {' | '.join(losses)} |")
        lines.append("")
    if "child tuning" in content:
        part = content["child tuning"]
        lines.append(
            f"Child-Tuning, p = {part['settings']['p']}, over the plain step, {part['settings']['rounds']} rounds:\n"
        )
        lines += ["| | step / plain step | masking alone, of the plain step |", "|---|---|---|"]
        for side, step in part["step"].items():
            name = "published algorithm of F" if side == "published" else side
            lines.append(f"| {name} | {shown(step)} | {part['masking_alone'][side]:.1%} |")
        lines.append(f"\nMasking is {shown(part['published_over_F'])} times as fast as published.\n")
    if "mlm" in content:
        part = content["mlm"]
        lines.append(f"Masked-language training, {part['settings']['rounds']} rounds:\n")
        lines += ["| | library's time / ours | tokens a second, library / ours |", "|---|---|---|"]
        for name in ("float32", "bf16"):
            if name in part:
                rate = part[name]["tokens_per_second"]
                lines.append(f"| {name} | {shown(part[name])} | {rate['library']} / {rate['ours']} |")
        if "mlm memory" in content:
            lines.append(f"\nIts memory: {content['mlm memory']['share']:.0%} of the library's.")
        lines.append("")
    if "streaming" in content:
        part = content["streaming"]
        sizes = ", ".join(f"{size:.0f}" for size in part["megabytes"])
        lines.append(
            f"`run_mlm.py --streaming` over {part['settings']['rows']:,} rows: {sizes} MB in the tenths of the run; "
            f"last / first {part['last_over_first']:.3f}.\n"
        )
    if "scoring" in content:
        part = content["scoring"]
        speeds = part["rows_per_second"]
        lines.append(
            f"Scoring, library's time / ours: {shown(part)}; rows a second {speeds['library']} / {speeds['ours']}.\n"
        )
        lines += ["| | µs a row | memory of the last tenth / the first | MB in the tenths |", "|---|---|---|---|"]
        for rows, row in grown(content).items():
            sizes = ", ".join(f"{size:.0f}" for size in row["megabytes"])
            lines.append(f"| {rows:,} rows | {row['microseconds_a_row']} | {row['last_over_first']:.3f} | {sizes} |")
        lines.append("\n| members | time / as many single models |\n|---|---|")
        of_members = content["scoring, members"]
        lines += [f"| {count} | {shown(row)} |" for count, row in of_members.items() if count.isdigit()]
        lines.append("")
    if "space" in content:
        part, callers = content["space"], content["space"]["settings"]
        lines.append(
            f"The Space under {callers['callers']} callers at once, {callers['requests']} requests each, "
            f"{callers['model']}, callers on the same cores: median {part['median_seconds']:.2f} s, 95% within "
            f"{part['p95_seconds']:.2f} s, {part['answers_per_second']} answers a second, none lost or crossed; memory "
            f"of the last tenth / the first {part['last_over_first']:.3f}.\n"
        )
    if "memory" in content:
        part = content["memory"]
        lines.append(f"Memory of a training step: {part['share']:.0%} of the library's.\n")
    return lines


def grown(content: dict) -> dict[int, dict]:
    """What scoring took, by the number of rows."""
    parts = {part["settings"].get("rows"): part for name, part in content.items() if name.startswith("scoring, ")}
    return {rows: parts[rows] for rows in sorted(filter(None, parts))}


def draw_scoring(content: dict, target: Path) -> None:
    """Time per row over rows, memory over the longest run, time over members."""
    with matplotlib.rc_context({"svg.hashsalt": "emodeberta", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(12, 3.4), layout="constrained")
        rows_axes, memory_axes, member_axes = figure.subplots(1, 3)
        parts = grown(content)
        rows_axes.plot(list(parts), [part["microseconds_a_row"] for part in parts.values()], marker="o")
        rows_axes.set(title="Time per row, tiny model", xlabel="rows", ylabel="µs", xscale="log", ylim=(0, None))
        rows_axes.set_xticks(list(parts), [f"{rows:,}" for rows in parts])
        rows_axes.set_xticks([], minor=True)
        most = max(parts)
        memory_axes.plot(range(1, 11), parts[most]["megabytes"], marker="o")
        memory_axes.set(title=f"Memory, {most:,} rows", xlabel="tenth of the run", ylabel="MB", ylim=(0, None))
        counts = {int(count): row for count, row in content["scoring, members"].items() if count.isdigit()}
        times = [count * row["ratio"] for count, row in counts.items()]
        member_axes.plot(list(counts), times, marker="o", label="ensemble")
        member_axes.plot(list(counts), list(counts), color="gray", linewidth=0.8, label="as many single models")
        member_axes.set(title="Time over members", xlabel="members", ylabel="one model = 1", ylim=(0, None))
        member_axes.legend(frameon=False)
        figure.savefig(target, metadata={"Date": None})


def shown(row: dict) -> str:
    """A ratio with its range."""
    return f"{row['ratio']:.2f} ({row['range'][0]:.2f}–{row['range'][1]:.2f})"


def encoder_part(content: dict, name: str, rows: int, length: int) -> dict | None:
    return content.get(f"encoder, {name}, {rows} x {length}")


def by_length(content: dict, name: str) -> list[dict]:
    """The encoder's rows over length, those that are there."""
    return list(filter(None, (encoder_part(content, name, max(2, 1024 // length), length) for length in LENGTHS)))


def encoder_table(content: dict) -> list[str]:
    """Ratios and shares by length."""
    lines = []
    for name in NAMES:
        rows = by_length(content, name)
        if rows:
            lines += [f"Encoder, {NAMES[name]}, library's time / ours, {rows[0]['settings']['rounds']} rounds:\n"]
            lines += ["| tokens | forward | products | forward and backward | products |", "|---|---|---|---|---|"]
        for row in rows:
            cells = [f"{shown(row[key])} | {row[key]['products']:.0%}" for key in ("forward", "forward_backward")]
            lines.append(f"| {row['length']} | {' | '.join(cells)} |")
        if rows:
            lines.append("")
    return lines


def draw(content: dict, target: Path) -> None:
    """Ratio over length; time per token, in units of ours at 128 tokens, over length and over batch."""
    with matplotlib.rc_context({"svg.hashsalt": "emodeberta", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(12, 7), layout="constrained")
        (ratios, products), (length_axes, batch_axes) = figure.subplots(2, 2)
        for (name, key), style in STYLES.items():
            rows = by_length(content, name)
            lengths = [row["length"] for row in rows]
            ratios.plot(lengths, [row[key]["ratio"] for row in rows], marker="o", **style)
            products.plot(lengths, [100 * row[key]["products"] for row in rows], marker="o", **style)
        ratios.axhline(1, color="gray", linewidth=0.8)
        ratios.set(title="Library's time / ours", ylabel="ratio", ylim=(0, None))
        products.axhline(100, color="gray", linewidth=0.8)
        products.set(title="Matrix products' share of our time", ylabel="%", ylim=(0, None))
        unit = encoder_part(content, "float32", 8, 128)
        for axes, over in (
            (length_axes, [(max(2, 1024 // length), length) for length in LENGTHS]),
            (batch_axes, [(rows, 128) for rows in ROWS]),
        ):
            for key, style in (("forward", "-"), ("forward_backward", "--")):
                for side, color in (("library", "tab:gray"), ("ours", "tab:blue")):
                    found = [(at, encoder_part(content, "float32", *at)) for at in over]
                    points = [
                        (at[1] if axes is length_axes else at[0], part[key]["microseconds_a_token"][side])
                        for at, part in found
                        if part
                    ]
                    if points and unit:
                        scale = unit["forward"]["microseconds_a_token"]["ours"]
                        xs, ys = zip(*points, strict=True)
                        label = f"{side}, {'forward' if style == '-' else 'with backward'}"
                        axes.plot(xs, [y / scale for y in ys], style, color=color, marker="o", label=label)
            axes.set(ylabel="ours, forward, 8 × 128 = 1", ylim=(0, None))
        length_axes.set(title="Time per token, float32, over length")
        batch_axes.set(title="Time per token, float32, over batch at 128 tokens")
        for axes, label, ticks in (
            (ratios, "tokens", LENGTHS),
            (products, "tokens", LENGTHS),
            (length_axes, "tokens", LENGTHS),
            (batch_axes, "texts", ROWS),
        ):
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, ticks)
            axes.set_xlabel(label)
            if axes.lines:
                axes.legend(frameon=False)
        figure.savefig(target, metadata={"Date": None})

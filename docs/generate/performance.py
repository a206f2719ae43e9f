"""Make the blocks of docs/performance.md, and its plots, from the files in results/bench/."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.bench_encoder import LENGTHS, ROWS
from docs.generate.blocks import table

SVG = {"svg.hashsalt": "emodeberta", "svg.fonttype": "none"}  # the same file on every day
NAMES = {"float32": "float32", "bfloat16": "bf16"}
PASSES = ("forward", "forward_backward")
STYLES = {
    ("float32", "forward"): {"color": "tab:blue", "label": "float32, forward"},
    ("float32", "forward_backward"): {"color": "tab:blue", "linestyle": "--", "label": "float32, with backward"},
    ("bfloat16", "forward"): {"color": "tab:orange", "label": "bf16, forward"},
    ("bfloat16", "forward_backward"): {"color": "tab:orange", "linestyle": "--", "label": "bf16, with backward"},
}


def blocks(folder: Path) -> dict[str, list[str]]:
    """Return the lines of each block, from the JSON files in a folder like results/."""
    lines = []
    for source, content in machines(folder):
        tables = [line for part in PARTS for line in part(content)]
        if tables:
            lines += [*heading(content, source), *tables, *plot_links(content, source.removesuffix(".json"))]
    return {"machines": lines, "gpu": on_gpus(folder / "bench")}


def on_gpus(folder: Path) -> list[str]:
    """Return the comparison on every GPU that ran it (benchmarks/bench_gpu.py)."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        compared = {name: cell for name, cell in content.items() if of_gpu_comparison(cell)}
        cells = {name: cell for name, cell in compared.items() if "sides" in cell}
        if cells:
            lines += on_gpu(compared, cells, path.name)
    return lines or ["No GPU has run this comparison yet."]


def on_gpu(content: dict[str, dict], cells: dict[str, dict], source: str) -> list[str]:
    """Return one GPU's tables: every cell by side, and the parts of a step."""
    (one, *_) = cells.values()
    machine, sides = one["settings"]["machine"], one["settings"]["sides"]
    rows = [[name, *(side_of_cell(cell["sides"].get(side)) for side in sides)] for name, cell in cells.items()]
    lines = [
        f"### {machine['name']}\n",
        f"torch {machine['torch']}; [`results/bench/{source}`](../results/bench/{source}).\n",
        *table(["cell", *sides], rows),
        "",
        *(f"Left out: {side}: {reason}." for side, reason in one["settings"]["left_out"].items()),
    ]
    for name, cell in content.items():
        if "parts" in cell:
            header = ["part", "ms", "of these, kernels run", "kernels"]
            keys = ("milliseconds", "busy_milliseconds", "kernels")
            parts = [[part, *(row.get(key, "–") for key in keys)] for part, row in cell["parts"].items()]
            lines += ["", f"{name}: {cell['milliseconds']:.1f} ms, {cell['texts']} × {cell['length']}:", ""]
            lines += table(header, parts)
        if "masking_alone" in cell:
            shares = ", ".join(f"{side} {share:.1%}" for side, share in cell["masking_alone"].items())
            lines += ["", f"{name}: masking alone, of a plain step: {shares}."]
    return lines


def side_of_cell(found: dict | None) -> str:
    """Return a side's milliseconds, forward and with backward, its ratio to the library and its peak memory."""
    ways = [found.get(way, {}) for way in PASSES] if found and "forward" in found else [found or {}]
    if found is None:
        return "–"
    if any("milliseconds" not in way for way in ways):
        return "failed"
    last = ways[-1]
    memory = f", {last['peak_megabytes']:,} MB" if "peak_megabytes" in last else ""
    spent = " / ".join(f"{way['milliseconds']:.1f}" for way in ways)
    return f"{spent} ({last['ratio']:.2f}×{memory})" if "ratio" in last else spent


def plots(folder: Path, target: Path) -> dict[Path, str]:
    """Return the plots of every machine as SVG, by their files in the folder `target`."""
    found = {}
    for source, content in machines(folder):
        if has_encoder(content):
            found[target / f"{source.removesuffix('.json')}.svg"] = draw_encoder(content)
        if "scoring" in content:
            found[target / f"{source.removesuffix('.json')}-scoring.svg"] = draw_scoring(content)
    return found


def machines(folder: Path) -> Iterator[tuple[str, dict]]:
    """Yield the file name and figures of each machine, from a folder like results/, without the comparison on a GPU."""
    for path in sorted((folder / "bench").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        yield path.name, {name: cell for name, cell in content.items() if not of_gpu_comparison(cell)}


def of_gpu_comparison(cell: dict) -> bool:
    """Return whether a cell was measured by benchmarks/bench_gpu.py: its settings name the sides."""
    return "sides" in cell["settings"]


def has_encoder(content: dict) -> bool:
    """Return whether the encoder was measured."""
    return any(name.startswith("encoder") for name in content)


def heading(content: dict, source: str) -> list[str]:
    """Return a machine's heading, and what is known about it."""
    machine = next(iter(content.values()))["settings"]["machine"]
    quick = ", quick run" if source.endswith("-quick.json") else ""
    lines = [
        f"## {machine['name']}, {machine['cores']} cores{quick}\n",
        f"torch {machine['torch']}, {machine['threads']} threads; "
        f"[`results/bench/{source}`](../results/bench/{source}).",
    ]
    if {"peak, float32", "peak, bfloat16"} <= content.keys():
        rate = content["peak, bfloat16"]["gflops"] / content["peak, float32"]["gflops"]
        lines.append(f"Matrix products in bf16 run at {rate:.2f}× the rate of float32 here.")
    return [*lines, ""]


def plot_links(content: dict, name: str) -> list[str]:
    """Return the links to a machine's plots."""
    lines = []
    if has_encoder(content):
        lines.append(f"![ratios and time per token over length and batch](pictures/{name}.svg)\n")
    if "scoring" in content:
        lines.append(f"![scoring: time per row, memory, members](pictures/{name}-scoring.svg)\n")
    return lines


def encoder(content: dict) -> list[str]:
    """Return ratios and shares by length."""
    lines = []
    for name in NAMES:
        if found := by_length(content, name):
            lines.append(f"Encoder, {NAMES[name]}, library's time / ours, {found[0]['settings']['rounds']} rounds:\n")
            rows = [
                [row["length"]] + [cell for key in PASSES for cell in (shown(row[key]), f"{row[key]['products']:.0%}")]
                for row in found
            ]
            lines += table(["tokens", "forward", "products", "forward and backward", "products"], rows)
            lines.append("")
    return lines


def inference(content: dict) -> list[str]:
    """Return ratios of strings to labels."""
    found = {size: part for size in ("base", "MiniLM") if (part := content.get(f"inference, {size}"))}
    if not found:
        return []
    used = next(iter(found.values()))["settings"]
    rows = [
        [
            size,
            NAMES[name],
            shown(part[name]),
            f"{part[name]['share_of_peak']:.0%}",
            f"{100 if name == 'float32' else 100 * part['bf16_equal_decisions']:.1f}%",
        ]
        for size, part in found.items()
        for name in NAMES
    ]
    return [
        f"Inference, {used['count']} texts ({used['texts']}), {used['rounds']} rounds:\n",
        *table(["size", "ours in", "library's time / ours", "of the peak", "decisions as in float32"], rows),
        "",
    ]


def fine_tuning(content: dict) -> list[str]:
    """Return ratios and losses of trainings."""
    if "training" not in content:
        return []
    used = content["training"]["settings"]
    rows = []
    for side, row in content["training"]["sides"].items():
        losses = [f"{row[key]['mean']:.3f} ± {row[key]['sd'] or 0:.3f}" for key in ("loss", "validation_loss")]
        rows.append([side.replace("bfloat16", "bf16"), shown(row), *losses])
    return [
        f"Fine-tuning, {used['rows']} rows ({used['texts']}), {used['epochs']} epoch, seeds "
        f"{', '.join(map(str, used['seeds']))}:\n",
        *table(["", "library's time / ours", "loss", "loss on validation"], rows),
        "",
    ]


def child_tuning(content: dict) -> list[str]:
    """Return what masking costs."""
    if "child tuning" not in content:
        return []
    part = content["child tuning"]
    rows = [
        ["published algorithm of F" if side == "published" else side, shown(step), f"{part['masking_alone'][side]:.1%}"]
        for side, step in part["step"].items()
    ]
    return [
        f"Child-Tuning, p = {part['settings']['p']}, time over the plain step, {part['settings']['rounds']} rounds:\n",
        *table(["", "step / plain step", "masking alone, of the plain step"], rows),
        "",
        f"Published masking of F, time / ours: {shown(part['published_over_F'])}.\n",
    ]


def masked_language(content: dict) -> list[str]:
    """Return ratios of masked-language training, its memory, and the memory of a streamed run."""
    lines = []
    if "mlm" in content:
        part = content["mlm"]
        rows = []
        for name in ("float32", "bf16"):
            if name in part:
                rate = part[name]["tokens_per_second"]
                rows.append([name, shown(part[name]), f"{rate['library']} / {rate['ours']}"])
        lines.append(f"Masked-language training, {part['settings']['rounds']} rounds:\n")
        lines += table(["", "library's time / ours", "tokens a second, library / ours"], rows)
        if "mlm memory" in content:
            lines.append(f"\nIts memory: {content['mlm memory']['share']:.0%} of the library's.")
        lines.append("")
    if "streaming" in content:
        part = content["streaming"]
        lines.append(
            f"`run_mlm.py --streaming` over {part['settings']['rows']:,} rows: {megabytes(part)} MB in the tenths of "
            f"the run; last / first {part['last_over_first']:.3f}.\n"
        )
    return lines


def scoring(content: dict) -> list[str]:
    """Return the speed of scoring, its growth with rows, and its growth with members."""
    if "scoring" not in content:
        return []
    part = content["scoring"]
    speeds = part["rows_per_second"]
    rows = [
        [f"{count:,} rows", row["microseconds_a_row"], f"{row['last_over_first']:.3f}", megabytes(row)]
        for count, row in grown(content).items()
    ]
    of_members = [[count, shown(row)] for count, row in content["scoring, members"].items() if count.isdigit()]
    return [
        f"Scoring, library's time / ours: {shown(part)}; rows a second {speeds['library']} / {speeds['ours']}.\n",
        *table(["", "µs a row", "memory of the last tenth / the first", "MB in the tenths"], rows),
        "",
        *table(["members", "time / as many single models"], of_members),
        "",
    ]


def space(content: dict) -> list[str]:
    """Return what callers of the Space waited for."""
    if "space" not in content:
        return []
    part, callers = content["space"], content["space"]["settings"]
    lines = [
        f"Space, {callers['callers']} callers at once, {callers['requests']} requests each, {callers['model']}: median "
        f"{part['median_seconds']:.2f} s, 95% within {part['p95_seconds']:.2f} s, {part['answers_per_second']} answers "
        f"a second; memory of the last tenth / the first {part['last_over_first']:.3f}."
    ]
    if "before" in part:
        lines.append(
            f"The Space that answered one by one gave {part['before']['answers_per_second']} answers a second in the "
            f"same run. A text of 1,000 tokens had its answer after {part['long_text']['answer_seconds']:.1f} s, and "
            f"its explanation after {part['long_text']['explanation_seconds']:.1f} s."
        )
    return [" ".join(lines) + "\n"]


def memory(content: dict) -> list[str]:
    """Return the memory of a training step."""
    if "memory" not in content:
        return []
    return [f"Memory of a training step: {content['memory']['share']:.0%} of the library's.\n"]


# A machine's section, in order.
PARTS = (encoder, inference, fine_tuning, child_tuning, masked_language, scoring, space, memory)


def megabytes(part: dict) -> str:
    """Return the memory in each tenth of a run."""
    return ", ".join(f"{size:.0f}" for size in part["megabytes"])


def shown(row: dict) -> str:
    """Return a ratio with its range."""
    return f"{row['ratio']:.2f} ({row['range'][0]:.2f}–{row['range'][1]:.2f})"


def grown(content: dict) -> dict[int, dict]:
    """Return what scoring took, by the number of rows."""
    parts = {part["settings"].get("rows"): part for name, part in content.items() if name.startswith("scoring, ")}
    return {rows: parts[rows] for rows in sorted(filter(None, parts))}


def encoder_part(content: dict, name: str, rows: int, length: int) -> dict | None:
    """Return the encoder's figures at one shape, if it was measured."""
    return content.get(f"encoder, {name}, {rows} x {length}")


def by_length(content: dict, name: str) -> list[dict]:
    """Return the encoder's figures over length, without the lengths that were not measured."""
    return list(filter(None, (encoder_part(content, name, max(2, 1024 // length), length) for length in LENGTHS)))


def draw_scoring(content: dict) -> str:
    """Draw time per row over rows, memory over the longest run, and time over members."""
    with matplotlib.rc_context(SVG | {"font.size": 9}):
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
        return svg(figure)


def draw_encoder(content: dict) -> str:
    """Draw ratios over length, and time per token (ours at 128 tokens is 1) over length and over batch."""
    with matplotlib.rc_context(SVG | {"font.size": 9}):
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
        return svg(figure)


def svg(figure: Figure) -> str:
    """Return a figure as SVG; draw it within `matplotlib.rc_context(SVG)`."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()

#!/usr/bin/env python3
"""Writes what `onced-bench --json peers` and `growth` measured into benchmarks.md, between its marks, and as plots.

    report.py RESULTS DOCS

RESULTS holds peers.json, and may hold growth.json. In DOCS/benchmarks.md, what stands between `<!-- NAME -->` and
`<!-- /NAME -->` is replaced; the plots go to DOCS/benchmarks/.
"""

import json
import math
import re
import sys
from html import escape
from pathlib import Path

LABELS = {"pairs_per_second": "pairs per second", "p99_ms": "p99 of a pair, ms", "memory_mib": "memory, MiB",
          "disk_bytes": "bytes on disk", "beyond_work_ms": "ms until all have the outcome, beyond its work",
          "cpu_ms": "CPU of all processes, ms", "cpu_seconds_per_1000_pairs": "CPU s per 1,000 pairs"}
PLOTS = [("callers", "pairs_per_second", "callers at once"), ("callers", "p99_ms", "callers at once"),
         ("payload", "pairs_per_second", "bytes of an outcome"), ("records", "pairs_per_second", "records stored"),
         ("records", "cpu_seconds_per_1000_pairs", "records stored"),
         ("records", "memory_mib", "records stored"), ("records", "disk_bytes", "records stored"),
         ("duplicates", "beyond_work_ms", "callers of one key"), ("duplicates", "cpu_ms", "callers of one key")]
COLOURS = {"unary-embedded": "#0b5cad", "stream-embedded": "#0b5cad", "unary-etcd": "#111111", "stream-etcd": "#111111",
           "redis-always": "#c0392b", "postgres": "#7d3c98", "powertools": "#d68910", "restate": "#148f77",
           "etcd-leases": "#7f8c8d", "etcd-v3lock": "#a0522d"}


def number(value):
    """Three digits at least, thousands set off."""
    if value < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def table(titles, rows):
    lines = ["| " + " | ".join(titles) + " |", "|---" + "|--:" * (len(titles) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def speed(result):
    """Pairs, ratios and latencies of each way."""
    rows = []
    for way in result["ways"]:
        rounds, ratio = way["pairs_per_second"]["rounds"], way["ratio"]
        to = f"{number(ratio['median'])} × {ratio['to']}" if ratio and ratio["to"] != way["way"] else ""
        spread = f"{number(min(rounds))}–{number(max(rounds))}"
        latencies = [number(way["latency_ms"][share]) for share in ("p50", "p90", "p99", "p99.9")]
        rows.append([f"`{way['way']}`", number(way["pairs_per_second"]["median"]), spread, to, *latencies])
    measured = f"Medians of {len(rounds)} rounds of {result['seconds']:g} s.\n\n"
    return measured + table(["way", "pairs/s", "least–most", "to onced", "p50 ms", "p90", "p99", "p99.9"], rows)


def costs(result):
    """CPU, bytes written and memory of each way, by process."""
    rows = []
    for way in result["ways"]:
        used = way["costs"]
        cpu = {name: cost["cpu_seconds_per_1000_pairs"] for name, cost in used.items()}
        parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in cpu.items())
        written = "" if way["bytes_written_per_pair"] is None else number(way["bytes_written_per_pair"] / 1000)
        memory = sum(cost["memory_bytes"] for name, cost in used.items() if name != "load") / 2**20
        rows.append([f"`{way['way']}`", f"{sum(cpu.values()):.3f}", parts, written, number(memory)])
    return table(["way", "CPU s per 1,000 pairs", "of which", "KB written per pair", "MiB of memory"], rows)


def machine(peers, growth):
    about, sync = peers["machine"], peers["machine"]["sync_ms"]
    versions = sorted(set(", ".join(peers["versions"].values()).split(", ")) - {""})
    memory = int(about["memory"].split()[0]) / 2**20
    plotted = growth.get("machine", {}).get("revision", "an earlier one")
    lines = [
        f"- {about['cpu']}, {about['cores']} cores, {memory:.0f} GiB of memory, {about['system']}",
        f"- temporary directory on {about['filesystem']}; to append 4 KiB and sync takes {number(sync['p50'])} ms "
        f"(p99 {number(sync['p99'])} ms)",
        f"- outcomes of {peers['payload_bytes']} bytes",
        f"- tables of revision {about['revision']}, plots of {plotted}",
        *(f"- {version}" for version in versions),
    ]
    missing = [f"- `{way}` is **missing**: {why}" for way, why in peers["missing"].items()]
    return "\n".join(lines + (missing or ["- no peer is missing"]))


def ticks(low, high):
    first = math.floor(math.log10(low))
    return [10.0**power for power in range(first, max(math.ceil(math.log10(high)), first + 1) + 1)]


def tick_label(value):
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= bound:
            return f"{value / bound:g}{unit}"
    return f"{value:g}"


def plot(points, field, across):
    """Both axes by powers of ten; onced's lines are thick, and those of its streams dashed."""
    left, top, width, height = 70, 20, 470, 330
    # CPU is counted in ticks, of which there may have been none.
    series, least = {}, 10 if field == "cpu_ms" else 0.01
    for point in points:
        series.setdefault(point["way"], []).append((point["at"], max(point[field], least)))
    xs = [x for line in series.values() for x, _ in line]
    rows = ticks(min(y for line in series.values() for _, y in line), max(y for line in series.values() for _, y in line))
    span = math.log10(max(xs) / min(xs)) or 1

    def place(x, y):
        right = math.log10(x / min(xs)) / span
        up = math.log10(y / rows[0]) / math.log10(rows[-1] / rows[0])
        return left + right * width, top + (1 - up) * height

    svg = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 410" font-family="sans-serif" font-size="12">',
           f"<title>{escape(LABELS[field])} over {escape(across)}</title>", '<rect width="720" height="410" fill="#fff"/>']
    for value in rows:
        _, y = place(min(xs), value)
        svg.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#ddd"/>')
        svg.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick_label(value)}</text>')
    # Where each way was measured at points of its own, the powers of ten.
    at = sorted(set(xs))
    for value in at if len(at) < 9 else ticks(min(xs), max(xs))[1:-1]:
        x, _ = place(value, rows[0])
        svg.append(f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{tick_label(value)}</text>')
    svg.append(f'<text x="{left + width / 2}" y="{top + height + 42}" text-anchor="middle">{escape(across)}</text>')
    svg.append(f'<text transform="translate(16 {top + height / 2}) rotate(-90)" text-anchor="middle">{LABELS[field]}</text>')
    for at, (way, line) in enumerate(sorted(series.items(), key=lambda item: -item[1][-1][1])):
        colour = COLOURS.get(way, "#555555")
        style = f'stroke="{colour}" stroke-width="{2.5 if way.startswith(("unary", "stream")) else 1.3}"'
        style += ' stroke-dasharray="6 3"' if way.startswith("stream") else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in sorted(line)))
        svg.append(f'<polyline points="{path}" fill="none" {style}/>')
        svg += [f'<circle cx="{place(*p)[0]:.1f}" cy="{place(*p)[1]:.1f}" r="3" fill="{colour}"/>' for p in line]
        svg.append(f'<path d="M556 {34 + at * 22}h26" {style}/><text x="588" y="{38 + at * 22}">{way}</text>')
    return "\n".join(svg + ["</svg>", ""])


def main():
    results, docs = map(Path, sys.argv[1:])
    peers = json.loads((results / "peers.json").read_text())
    growth = json.loads((results / "growth.json").read_text()) if (results / "growth.json").exists() else {}
    blocks = {"machine": machine(peers, growth)}
    for result in peers["results"]:
        blocks[f"speed {result['callers']}"] = speed(result)
        blocks[f"costs {result['callers']}"] = costs(result)
    (docs / "benchmarks").mkdir(exist_ok=True)
    for over, field, across in PLOTS:
        name = f"{over}-{field}.svg"
        if growth.get(over):
            (docs / "benchmarks" / name).write_text(plot(growth[over], field, across))
            blocks.setdefault(f"plots {over}", "")
            blocks[f"plots {over}"] += f"![{LABELS[field]}, over {across}](benchmarks/{name})\n"
    page = docs / "benchmarks.md"
    text = page.read_text()
    for name, block in blocks.items():
        mark = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = mark.sub(lambda found: f"{found[1]}\n{block.strip()}\n\n{found[2]}", text)
    page.write_text(text)


if __name__ == "__main__":
    main()

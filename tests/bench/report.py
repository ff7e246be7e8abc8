# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of what was measured: report.md, report.json and the charts."""

import json
import os
import shutil
import subprocess

QUEUE_DEPTH = 32
ENGINES = ("native", "io_uring")
MIB = 1 << 20

# Keys of a sample, as the detail tables show them.
COLUMNS = (("iops", "IOPS", "{:,.0f}"), ("rate", "bytes/s", "{:,.0f}"), ("p50_us", "p50 us", "{:.1f}"),
           ("p99_us", "p99 us", "{:.1f}"), ("max_us", "max us", "{:,.0f}"), ("cpu_us", "CPU us/IO", "{:.2f}"),
           ("rss", "RSS MiB", None), ("map", "map MiB", None), ("extents", "extents", "{:,.0f}"),
           ("share", "share", "{:.2f}"), ("wall_s", "seconds", "{:.4f}"))


def number(value, unit):
    if unit == "MiB":
        return f"{value:.1f} MiB"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def verdict(bar):
    return "holds" if bar["holds"] else "MISSED"


def row_text(bar):
    sense = "at most" if bar["at_most"] else "at least"
    return (f"{verdict(bar):7} {number(bar['figure'], bar['unit']):>10} "
            f"({sense} {number(bar['bar'], bar['unit'])})  {bar['what']}")


def load(out, names):
    """Results that are kept, in the order of the names."""
    results = []
    for name in names:
        path = os.path.join(out, "groups", name + ".json")
        if os.path.exists(path):
            with open(path) as kept:
                results.append(json.load(kept))
    return results


def summary(results):
    lines = ["| what | bar | figure | rounds | verdict |", "|---|---|---|---|---|"]
    for result in results:
        for bar in result["bars"]:
            sense = "at most" if bar["at_most"] else "at least"
            spread = f"{number(min(bar['rounds']), '')} to {number(max(bar['rounds']), '')}"
            lines.append(f"| {bar['what']} | {sense} {number(bar['bar'], bar['unit'])} | "
                         f"{number(bar['figure'], bar['unit'])} | {spread} | {verdict(bar)} |")
    return lines


def cell(sample, key, form):
    if key not in sample:
        return ""
    return form.format(sample[key]) if form else f"{sample[key] / MIB:.1f}"


def details(result):
    """One table for a group: the medians of its contestants."""
    samples = result["medians"]
    columns = [c for c in COLUMNS if any(c[0] in sample for sample in samples.values())]
    lines = [f"### {result['name']}: {result['title']}", "",
             f"{len(result['samples'])} rounds, {result['date']}, commit {result['commit']}", "",
             "| | " + " | ".join(title for _, title, _ in columns) + " |",
             "|---" * (len(columns) + 1) + "|"]
    for label, sample in samples.items():
        cells = [cell(sample, key, form) for key, _, form in columns]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines + [""]


def machine():
    """What it was measured on, in one line."""
    with open("/proc/cpuinfo") as info:
        model = next((line.split(":", 1)[1].strip() for line in info
                      if line.startswith("model name")), "unknown processor")
    qemu = subprocess.run(["qemu-img", "--version"], stdout=subprocess.PIPE, text=True)
    return (f"{os.cpu_count()} cores, {model}, Linux {os.uname().release}, "
            f"{qemu.stdout.splitlines()[0]}; images on tmpfs, O_DIRECT")


# ---- charts ---------------------------------------------------------------------------------

def depth_series(results, key):
    """{contestant: [(depth, value)]} of the groups read-DEPTH."""
    series = {}
    for result in results:
        depth = result["name"].removeprefix("read-")
        if not depth.isdigit():
            continue
        medians = result["medians"]
        add(series, "qchain", depth, medians.get(f"ours depth {depth}"), key)
        for engine in ENGINES:
            add(series, f"qemu-img bench, {engine}", depth, medians.get(f"qemu {engine}"), key)
    return series


def add(series, label, depth, sample, key):
    if sample:
        value = key(sample)
        if value:
            series.setdefault(label, []).append((int(depth), value))


def mean_latency(sample):
    """Of any contestant, by Little's law: what is in flight over what ends in a second."""
    return QUEUE_DEPTH / sample["iops"] * 1e6


CHARTS = (
    ("iops", "Random 4 KiB reads, queue depth 32, warm", "IOPS", lambda s: s["iops"]),
    ("memory", "Resident memory, 2 GiB disk", "MiB", lambda s: s["rss"] / MIB),
    ("latency", "Mean latency of a 4 KiB read at queue depth 32", "microseconds", mean_latency),
)


def draw(out, name, title, unit, series):
    """One chart, layers across, both axes logarithmic."""
    plots, data = [], []
    for number_, (label, points) in enumerate(series.items()):
        data.append(f"$s{number_} << EOD\n" +
                    "".join(f"{x} {y}\n" for x, y in sorted(points)) + "EOD\n")
        plots.append(f"$s{number_} with linespoints pt 7 ps 0.6 lw 2 title '{label}'")
    script = "".join(data) + f"""
set terminal svg size 720,420 font 'sans-serif,13' background 'white'
set output '{os.path.join(out, name)}.svg'
set title '{title}'
set xlabel 'layers'
set ylabel '{unit}'
set logscale xy
set xrange [0.8:1300]
set xtics (1, 8, 64, 256, 1000)
set format y '%.0s%c'
set grid ytics lc rgb '#dddddd'
set key outside bottom center horizontal
plot {', '.join(plots)}
"""
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


def draw_all(out, results):
    """Returns the names of the charts that could be drawn."""
    drawn = []
    for name, title, unit, key in CHARTS:
        series = depth_series(results, key)
        if series and shutil.which("gnuplot"):
            draw(out, name, title, unit, series)
            drawn.append(name)
    return drawn


def write(out, names):
    results = load(out, names)
    with open(os.path.join(out, "report.json"), "w") as report:
        json.dump({"machine": machine(), "groups": results}, report, indent=1)
    lines = ["# Benchmarks", "", machine(), "", *summary(results), ""]
    for name in draw_all(out, results):
        lines += [f"![{name}]({name}.svg)", ""]
    lines += ["## What was measured", ""]
    for result in results:
        lines += details(result)
    with open(os.path.join(out, "report.md"), "w") as report:
        report.write("\n".join(lines).rstrip() + "\n")

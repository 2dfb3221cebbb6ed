"""plots.py: a part's rows as PART.svg and PART.png, drawn by gnuplot. Parts without a picture are left alone."""

import os
import shutil
import subprocess

import common

OURS, PEER, THIRD = "#1f5fa8", "#c8501e", "#8a8a8a"
LINES = ("#1f5fa8", "#c8501e", "#3a923a", "#8a5aa8", "#b8860b", "#3f9fb0", "#8a8a8a", "#d07090")
TARGET = 0.86  # of choosing
TERMINALS = {
    "svg": 'svg size 900,{height} dynamic noenhanced background rgb "white" font "Helvetica,Arial,sans-serif,14"',
    "png": 'pngcairo size 1350,{height_png} noenhanced font "sans,14" fontscale 1.25 linewidth 1.5 pointscale 1.6',
}
STYLE = """
set border 3 linecolor rgb "#606060"
set tics nomirror out scale 0.6 textcolor rgb "#303030"
set grid ytics linecolor rgb "#e4e4e4" linetype 1 linewidth 0.7
set style fill solid 1 noborder
set style data histogram
set style histogram clustered gap 1.2
set boxwidth 0.92
set key outside top center horizontal reverse Left samplen 1.4 textcolor rgb "#303030"
set yrange [0:*]
set offsets 0, 0, graph 0.12, 0
"""


def quoted(text):
    """A string of gnuplot's; the terminals are noenhanced, so nothing else in it is markup."""
    return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def number(value):
    return "NaN" if value is None else repr(float(value))


def block(name, rows):
    """Inline data: each row (label, value, ...)."""
    lines = [" ".join([quoted(row[0]), *map(number, row[1:])]) for row in rows]
    return "\n".join([f"${name} << END", *lines, "END", ""])


def label(value):
    return "" if value is None else common.cell(float(value))


def bars(name, title, rows, series, unit):
    """A panel of clustered bars with their values above. rows: (label, value, ...); series: (name, colour) for each value."""
    plots = []
    for i, (legend, colour) in enumerate(series):
        plots.append(f'${name} using {i + 2}:xtic(1) title {quoted(legend)} linecolor rgb "{colour}"')
    for i in range(len(series)):  # where gnuplot puts the i-th bar of a cluster
        shift = (i - (len(series) - 1) / 2) / (len(series) + 1.2)
        plots.append(f'${name}_labels using ($0 + {shift}):{2 * i + 1}:{2 * i + 2} with labels offset 0,0.6 font ",11" '
                     f'textcolor rgb "#303030" notitle')
    labels = "\n".join(" ".join(f"{number(value)} {quoted(label(value))}" for value in row[1:]) for row in rows)
    return (block(name, rows) + f"${name}_labels << END\n{labels}\nEND\n" +
            f'set title {quoted(title)} textcolor rgb "#303030"\nset ylabel {quoted(unit)} textcolor rgb "#303030"\n'
            f"set xrange [-0.6:{len(rows) - 0.4}]\nplot " + ", ".join(plots) + "\n")


# ---- the parts: rows -> panels of gnuplot's language, each half the height ---------------------------------------------------


def by_size(rows):
    sizes = {}
    for row in rows:
        kind = "" if row["method"] == "prompt" else f"{row['method']}, "
        sizes.setdefault(f"{kind}P {row['P']}, B {row['B']}", {})[row["peer"]] = row
    return sizes


def training(rows):
    sizes = by_size(rows)

    def of(found, peer, key):
        return found[peer][key] if peer in found else None

    speed = [(size, of(found, "peft", "ratio"), of(found, "torch-shared", "ratio")) for size, found in sizes.items()]
    memory = [(size, next(iter(found.values()))["peak_rss_gb"], of(found, "peft", "peer_peak_rss_gb"),
               of(found, "torch-shared", "peer_peak_rss_gb")) for size, found in sizes.items()]
    even = 'set arrow 1 from graph 0, first 1 to graph 1, first 1 nohead linecolor rgb "#1f5fa8" linewidth 1.2\n'
    return [even + bars("speed", "how many times as long the peer takes (line: as long as softprompt)", speed,
                        (("PEFT", PEER), ("PyTorch, shared prompt", THIRD)), "times as long") + "unset arrow 1\n",
            bars("memory", "peak memory of the process", memory,
                 (("softprompt", OURS), ("PEFT", PEER), ("PyTorch, shared prompt", THIRD)), "GB")]


def inference(rows):
    models = {row["model"] for row in rows}
    series = (("softprompt", OURS), ("llama.cpp", PEER))
    panels = []
    for key in ("prefill", "decode"):
        found = [((f"{row['model']}, " if len(models) > 1 else "") + f"context {row['context']}",
                  row[f"{key}_tokens_per_second"], row[f"peer_{key}_tokens_per_second"])
                 for row in rows if row[f"peer_{key}_tokens_per_second"] is not None]
        panels.append(bars(key, key if len(models) > 1 else f"{key}, {rows[0]['model']}", found, series, "tokens a second"))
    return panels


def scaling(rows):
    names = {"P": "virtual tokens P", "B": "rows B", "L": "tokens of a row L", "threads": "threads"}
    panels = []
    for vary in dict.fromkeys(row["vary"] for row in rows):
        series = [row for row in rows if row["vary"] == vary]
        data = block(f"grow_{vary}", [("", row[vary], row["seconds"], row["peak_rss_gb"]) for row in series])
        fixed = ", ".join(f"{key} {series[0][key]}" for key in ("P", "B", "threads") if key != vary)
        step = 1 if vary == "threads" else "autofreq"
        panels.append(data + f"""
set title {quoted(f"{names[vary]}   ({fixed})")} textcolor rgb "#303030"
set ylabel "seconds a step" textcolor rgb "{OURS}"
set y2label "GB" textcolor rgb "{PEER}"
set y2tics
set y2range [0:*]
set xrange [0:*]
set xtics {step}
unset key
plot $grow_{vary} using 2:3 with linespoints linecolor rgb "{OURS}" linewidth 2 pointtype 7, \\
     $grow_{vary} using 2:4 axes x1y2 with linespoints linecolor rgb "{PEER}" linewidth 1.4 pointtype 6
""")
    return panels


def roofline(rows):
    reached = [(f"train, P {row['P']}, B {row['B']}", 100 * row["gemm_share"], None) for row in rows if row["what"] == "training"]
    reached += [(f"decode, context {row['context']}", None, 100 * row["read_share"]) for row in rows if row["what"] == "decode"]
    panels = [bars("reached", "share of the machine's peak", reached, (("matrix products", OURS), ("reading memory", PEER)), "%")]
    parts = [row for row in rows if row.get("parts")]
    if parts:
        panels.append(bars("parts", "where a training step's time goes",
                           [(part, *(100 * row["parts"][part] for row in parts)) for part in parts[0]["parts"]],
                           [(f"P {row['P']}, B {row['B']}", colour) for row, colour in zip(parts, (OURS, PEER, THIRD))],
                           "% of all threads' time"))
    return panels


def choosing(rows):
    """A panel a model: accuracy on validation rows against seconds of training, a line a method, the same in every panel."""
    trained = [row for row in rows if row["data"] == "reviews" and row["curve"] and row["step_seconds"]]
    methods, panels = list(dict.fromkeys(row["method"] for row in trained)), []
    for model in dict.fromkeys(row["model"] for row in trained):
        lines, data = [], ""
        for row in (row for row in trained if row["model"] == model):
            name = f"choose_{len(panels)}_{len(lines)}"
            data += block(name, [("", step * row["step_seconds"], 100 * accuracy) for step, accuracy in row["curve"]])
            look = methods.index(row["method"])
            lines.append(f'${name} using 2:3 with linespoints linecolor rgb "{LINES[look % len(LINES)]}" linewidth 1.6 '
                         f"pointtype {5 + look} title {quoted(row['method'])}")
        lines.append(f'{100 * TARGET} with lines linecolor rgb "#606060" dashtype 2 notitle')
        panels.append(data + f"""
set title {quoted(f"{model}, movie reviews: accuracy on validation rows")} textcolor rgb "#303030"
set ylabel "%" textcolor rgb "#303030"
set xlabel "seconds of training" textcolor rgb "#303030"
set logscale x
set xrange [*:*]
set yrange [60:95]
set key outside right center vertical
plot {", ".join(lines)}
""")
    return panels


def max_logit(rows):
    """Accuracy against R: a line a rank through the means, a point a seed, and free keys as a level, their seeds at the right."""
    free, bounded = rows[0], [row for row in rows if row["max_logit"] is not None]
    if free["max_logit"] is not None or not bounded:  # some were asked for alone: there is nothing to compare
        return []
    lines = [f'{100 * free["accuracy"]} with lines linecolor rgb "#606060" dashtype 2 title "free keys"',
             '$seeds_free using 2:3 with points linecolor rgb "#606060" pointtype 6 pointsize 0.9 notitle']
    data = block("seeds_free", [("", 2 * max(row["max_logit"] for row in bounded), 100 * accuracy) for accuracy in free["accuracies"]])
    for rank in dict.fromkeys(row["key_rank"] for row in bounded):
        colour, of_rank = LINES[len(lines) // 2 - 1], [row for row in bounded if row["key_rank"] == rank]
        data += block(f"mean_{rank}", sorted(("", row["max_logit"], 100 * row["accuracy"]) for row in of_rank))
        data += block(f"seeds_{rank}", [("", row["max_logit"], 100 * accuracy) for row in of_rank for accuracy in row["accuracies"]])
        lines.append(f'$mean_{rank} using 2:3 with lines linecolor rgb "{colour}" linewidth 1.6 title {quoted(f"rank {rank}")}')
        lines.append(f'$seeds_{rank} using 2:3 with points linecolor rgb "{colour}" pointtype 7 pointsize 0.7 notitle')
    return [data + f"""
set title "SmolLM2-135M, movie reviews, prefixes of 32: accuracy on test rows" textcolor rgb "#303030"
set ylabel "%" textcolor rgb "#303030"
set xlabel "bound R on the centred scores of the prompt's keys" textcolor rgb "#303030"
set logscale x
set xrange [*:*]
set yrange [*:*]
set key outside right center vertical
plot {", ".join(lines)}
"""]


def planning(rows):
    """A panel a task: accuracy of whole trainings against length, the pilots', their curve; a line upright where plan recommends."""
    panels = []
    for row in rows:
        name, lines = f"plan_{len(panels)}", []
        data = block(f"{name}_whole", [("", n, 100 * right) for n, right in zip(row["lengths"], row["accuracies"])])
        if row["lengths"]:
            lines.append(f'${name}_whole using 2:3 with linespoints linecolor rgb "{OURS}" pointtype 7 title "whole trainings"')
        if "recommended" in row:
            data += block(f"{name}_pilots", [("", n, 100 * right) for n, right in row["pilot_accuracies"]])
            data += block(f"{name}_fitted", [("", n, 100 * right) for n, right in row["fitted"]])
            lines.append(f'${name}_pilots using 2:3 with points linecolor rgb "{PEER}" pointtype 6 title "pilots"')
            lines.append(f'${name}_fitted using 2:3 with lines linecolor rgb "{PEER}" dashtype 2 title "their curve"')
            at = row["recommended"]
            data += f'set arrow 1 from {at}, graph 0 to {at}, graph 1 nohead linecolor rgb "{THIRD}"\n'
        if lines:
            panels.append(data + f"""
set title {quoted(row["task"] + (f": recommended {row['recommended']}" if "recommended" in row else ""))} textcolor rgb "#303030"
set ylabel "accuracy, %" textcolor rgb "#303030"
set xlabel "virtual tokens" textcolor rgb "#303030"
set logscale x 2
set xrange [0.9:140]
set yrange [*:*]
plot {", ".join(lines)}
unset arrow 1
""")
    return panels


PARTS = {"training": training, "inference": inference, "scaling": scaling, "roofline": roofline, "choosing": choosing,
         "max-logit": max_logit, "planning": planning}


# ---- drawing -----------------------------------------------------------------------------------------------------------------


def script(panels, kind, out):
    columns = 2 if len(panels) > 2 else 1
    lines = -(-len(panels) // columns)
    height = 300 * lines + 20 if len(panels) > 1 else 440
    terminal = TERMINALS[kind].format(height=height, height_png=height * 3 // 2)
    return (f"set terminal {terminal}\nset output {quoted(out)}\n" + STYLE +
            f"set multiplot layout {lines},{columns}\n" + "".join(panels) + "unset multiplot\nunset output\n")


def draw(part, rows, directory):
    """-> the files written; none where the part has no picture, nothing was measured, or gnuplot is missing."""
    if part not in PARTS or not rows or not shutil.which("gnuplot"):
        return []
    panels, files = PARTS[part](rows), []
    if not panels:
        return []
    for kind in TERMINALS:
        out = os.path.join(directory, f"{part}.{kind}")
        temporary = f"{out}.tmp.{os.getpid()}"
        done = subprocess.run(["gnuplot"], input=script(panels, kind, temporary), capture_output=True, text=True, check=False)
        if done.returncode or not os.path.exists(temporary):
            raise common.Error(f"gnuplot does not draw {out}: {done.stderr.strip()}")
        os.replace(temporary, out)
        files.append(out)
    return files

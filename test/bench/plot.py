"""Draws the panels of run.py as one SVG: cost against size, on logarithmic axes."""

import math
from dataclasses import dataclass
from html import escape

COLOURS = {"ctx": "#0b62c4", "Go": "#b8541a", "raw": "#7a7a7a"}
PANEL_WIDTH, PANEL_HEIGHT = 500, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 66, 46, 50  # around the plot of a panel


@dataclass
class Panel:
    title: str
    x_label: str
    series: dict  # "ctx", "Go", "raw": a list of (x, nanoseconds)


def ticks(low, high):
    """Round numbers from low to high: powers of ten, with 2 and 5 between them where there is room."""
    steps = (1, 2, 5) if high / low <= 1000 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    all_ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
    return [tick for tick in all_ticks if low * 0.999 <= tick <= high * 1.001]


def bounds(values):
    """The round numbers that enclose the values."""
    rounds = [step * 10.0**exponent for exponent in range(-2, 12) for step in (1, 2, 5)]
    low = max(each for each in rounds if each <= min(values) * 0.9)
    high = min(each for each in rounds if each >= max(values) * 1.1)
    return low, high


def short(number):
    """1000000 as 1M, 0.5 as 0.5."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{suffix}"
    return f"{number:g}"


def time(nanoseconds):
    if nanoseconds >= 1000:
        return f"{nanoseconds / 1000:.3g} µs"
    return f"{nanoseconds:.3g} ns"


def draw_panel(panel, left, top):
    points = [point for line in panel.series.values() for point in line]
    xs = sorted({x for x, _ in points})
    x_low, x_high = xs[0], xs[-1]
    y_low, y_high = bounds([y for _, y in points])
    x0, x1 = left + LEFT, left + PANEL_WIDTH - RIGHT
    y0, y1 = top + PANEL_HEIGHT - BOTTOM, top + TOP

    def at(x, y):
        across = math.log(x / x_low) / math.log(x_high / x_low)
        up = math.log(y / y_low) / math.log(y_high / y_low)
        return x0 + across * (x1 - x0), y0 + up * (y1 - y0)

    out = [f'<text class="title" x="{x0}" y="{top + 24}">{escape(panel.title)}</text>']
    for tick in ticks(y_low, y_high):
        y = at(x_low, tick)[1]
        out.append(f'<path class="grid" d="M{x0} {y:.1f}H{x1}"/>')
        out.append(f'<text class="tick" text-anchor="end" x="{x0 - 8}" y="{y + 4:.1f}">{time(tick)}</text>')
    for tick in xs:
        x = at(tick, y_low)[0]
        out.append(f'<path class="axis" d="M{x:.1f} {y0}v5"/>')
        out.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{y0 + 19}">{short(tick)}</text>')
    out.append(f'<path class="axis" d="M{x0} {y0}H{x1}"/>')
    out.append(f'<text class="tick" text-anchor="middle" x="{(x0 + x1) / 2}" y="{y0 + 38}">{escape(panel.x_label)}</text>')

    # The name of a line stands at its end; where two would overlap, they move apart.
    ends = sorted((at(*line[-1])[1], name) for name, line in panel.series.items())
    for i in range(1, len(ends)):
        ends[i] = (max(ends[i][0], ends[i - 1][0] + 15), ends[i][1])
    for y, name in ends:
        line = panel.series[name]
        colour = COLOURS[name]
        path = "L".join("{:.1f} {:.1f}".format(*at(*point)) for point in line)
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for point in line:
            out.append('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>'.format(*at(*point), colour))
        out.append(f'<text class="name" x="{x1 + 9}" y="{y + 4:.1f}" fill="{colour}">{name}</text>')
    return out


def draw(panels, caption):
    """The panels, two in a row, as the text of an SVG."""
    rows = (len(panels) + 1) // 2
    width, height = 2 * PANEL_WIDTH, rows * PANEL_HEIGHT + 34
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        "<style>text{font-family:system-ui,'DejaVu Sans',sans-serif;fill:#333}.title{font-size:15px;font-weight:600;fill:#111}"
        ".tick{font-size:12px}.grid{stroke:#e3e3e3}.axis{stroke:#888;fill:none}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for i, panel in enumerate(panels):
        out += draw_panel(panel, i % 2 * PANEL_WIDTH, i // 2 * PANEL_HEIGHT)
    out.append(f'<text class="tick" x="{LEFT}" y="{height - 14}">{escape(caption)}</text>')
    return "\n".join([*out, "</svg>", ""])

"""Charts as inline SVG, without a library: they take the page's colours, light or dark, and its width."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 38  # margins
LETTER = 6.4  # width of a digit
FEW = 30  # points of a line that are drawn one by one
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Axes:
    """From values to places in the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def line_chart(
    title: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    *,
    y: tuple[float, float] | None = None,
    log_x: bool = False,
) -> str:
    """Lines by name: their x and y. y: the axis' range, None: that of the values. log_x: x, all positive, by
    its logarithm."""
    place = math.log10 if log_x else float
    values = [value for _, line in lines.values() for value in line]
    places = [place(value) for line, _ in lines.values() for value in line]
    axes = Axes((min(places), max(places)), y or _wide(min(values), max(values)))
    parts = [_frame(axes, x_label, log_x)]
    for number, (xs, ys) in enumerate(lines.values()):
        points = [axes.at(place(a), b) for a, b in zip(xs, ys, strict=True)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f"<polyline class='line c{number % 8}' points='{path}'/>")
        if len(points) <= FEW:
            parts += [f"<circle class='c{number % 8}' cx='{a:.1f}' cy='{b:.1f}' r='2'/>" for a, b in points]
    legend = [(number % 8, "", name) for number, name in enumerate(lines)] if len(lines) > 1 else []
    return chart(title, "".join(parts), legend)


def histogram(
    title: str,
    edges: Sequence[float],
    bars: Mapping[str, Sequence[float]],
    x_label: str,
    marks: Mapping[str, float] | None = None,
) -> str:
    """Heights of each kind between N + 1 edges; marks: upright lines by name."""
    shown = dict(marks or {})
    axes = Axes(
        (min([edges[0], *shown.values()]), max([edges[-1], *shown.values()])),
        (0.0, 1.05 * max((height for kind in bars.values() for height in kind), default=0.0) or 1.0),
    )
    parts = [_frame(axes, x_label)]
    for number, heights in enumerate(bars.values()):
        for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
            if height:
                (a, top), (b, bottom) = axes.at(left, height), axes.at(right, 0.0)
                size = f"width='{max(0.5, b - a - 0.4):.1f}' height='{bottom - top:.1f}'"
                parts.append(f"<rect class='bar c{number}' x='{a:.1f}' y='{top:.1f}' {size}/>")
    for name, value in shown.items():
        place, foot = axes.at(value, 0.0)
        side = "end" if place > WIDTH / 2 else "start"
        text = f"<text x='{place + (-4 if side == 'end' else 4):.1f}' y='{TOP + 9}' text-anchor='{side}'>"
        parts.append(f"<line class='mark' x1='{place:.1f}' x2='{place:.1f}' y1='{TOP}' y2='{foot:.1f}'/>")
        parts.append(f"{text}{escape(name)}</text>")
    return chart(title, "".join(parts), [(n, "", name) for n, name in enumerate(bars)] if bars else [])


def letter_map(
    title: str,
    points: Sequence[tuple[float, float]],
    groups: Mapping[str, Sequence[tuple[float, float, str]]],
) -> str:
    """Points as dots, and groups as letters, which colour alone need not tell apart: x, y and what it is."""
    everything = [*points, *((x, y) for group in groups.values() for x, y, _ in group)]
    axes = Axes(_wide(*_ends(x for x, _ in everything)), _wide(*_ends(y for _, y in everything)))
    parts = []
    for x, y in points:
        a, b = axes.at(x, y)
        parts.append(f"<circle class='dot' cx='{a:.1f}' cy='{b:.1f}' r='1.3'/>")
    for number, group in enumerate(groups.values()):
        for x, y, what in group:
            a, b = axes.at(x, y)
            parts.append(
                f"<text class='letter c{number}' x='{a:.1f}' y='{b + 3:.1f}'>{LETTERS[number]}"
                f"<title>{escape(what)}</title></text>"
            )
    return chart(title, "".join(parts), [(n, LETTERS[n], name) for n, name in enumerate(groups)])


def scatter(
    title: str, points: Sequence[tuple[float, float]], x_label: str, y_label: str, *, diagonal: bool
) -> str:
    """Both axes from 0 to 1."""
    axes = Axes((0.0, 1.0), (0.0, 1.0))
    parts = [_frame(axes, x_label)]
    if diagonal:
        (a, b), (c, d) = axes.at(0, 0), axes.at(1, 1)
        parts.append(f"<line class='mark' x1='{a}' y1='{b}' x2='{c}' y2='{d}'/>")
    places = (axes.at(*point) for point in points)
    parts += [f"<circle class='c0 faint' cx='{a:.1f}' cy='{b:.1f}' r='2'/>" for a, b in places]
    parts.append(f"<text x='{LEFT + 4}' y='{TOP + 9}'>{escape(y_label)}</text>")
    return chart(title, "".join(parts), [])


def chart(title: str, inside: str, legend: Sequence[tuple[int, str, str]]) -> str:
    """legend: colour, letter and name of each kind."""
    names = "".join(
        f"<span><i class='c{n}'>{letter or '■'}</i> {escape(name)}</span>" for n, letter, name in legend
    )
    below = f"<p class='legend'>{names}</p>" if names else ""
    return (
        f"<figure class='chart'><figcaption>{escape(title)}</figcaption><svg role='img' "
        f"viewBox='0 0 {WIDTH} {HEIGHT}' aria-label='{escape(title, quote=True)}'>{inside}</svg>"
        f"{below}</figure>"
    )


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within a range."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def powers(low: float, high: float, most: int = 5) -> list[float]:
    """Whole numbers within a range, for an axis of logarithms to base 10."""
    numbers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    return [float(number) for number in numbers[:: 1 + len(numbers) // (most + 1)]]


def _frame(axes: Axes, x_label: str, log_x: bool = False) -> str:
    parts = []
    for value in ticks(*axes.y):
        a, b = axes.at(axes.x[0], value)
        parts.append(f"<line class='grid' x1='{a:.1f}' x2='{WIDTH - RIGHT}' y1='{b:.1f}' y2='{b:.1f}'/>")
        parts.append(f"<text x='{LEFT - 5}' y='{b + 4:.1f}' text-anchor='end'>{value:.6g}</text>")
    for value in powers(*axes.x) if log_x else ticks(*axes.x):
        a, b = axes.at(value, axes.y[0])
        shown = f"{10.0**value if log_x else value:.7g}"
        middle = min(a, WIDTH - LETTER / 2 * len(shown))  # not beyond the drawing
        parts.append(f"<text x='{middle:.1f}' y='{b + 14:.1f}' text-anchor='middle'>{shown}</text>")
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f"<text x='{middle}' y='{HEIGHT - 6}' text-anchor='middle'>{escape(x_label)}</text>")
    return "".join(parts)


def _wide(low: float, high: float) -> tuple[float, float]:
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _ends(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    return (min(found), max(found)) if found else (0.0, 1.0)

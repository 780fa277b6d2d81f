"""Figures as SVG text: lines, bars and a heat map. Colours are classes, which the page's style sheet fills for light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 190, 24, 40  # room for the ticks, for the labels at the lines, and for the axis' name
COLOURED = 6  # more colours are not told apart; further lines are grey
LINE = 14  # between two labels

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Figure:
    """A picture with its numbers.

    Attributes:
        title: a few words, above it.
        svg: the picture.
        columns, rows: its numbers, as a table.
        note: how to read it.
    """

    title: str
    svg: str
    columns: list[str]
    rows: list[list[Any]]
    note: str = ""


def colours(names: Sequence[str]) -> dict[str, str]:
    """The class of each name: the first `COLOURED` have a colour each, the same one in every figure of a page."""
    return {name: f"c{i}" if i < COLOURED else "rest" for i, name in enumerate(names)}


def line_figure(
    title: str, curves: Mapping[str, Curve], classes: Mapping[str, str], x: str = "step", y: str = "", note: str = ""
) -> Figure:
    """Curves with their names at their ends; values that are not finite are left out."""
    curves = {name: [p for p in points if math.isfinite(p[1])] for name, points in curves.items()}
    curves = {name: points for name, points in curves.items() if points}
    rows = [[name, *point] for name, points in curves.items() for point in points]
    if not curves:
        return Figure(title, "", [], [], "Nothing was logged.")
    xs, ys = ([point[i] for points in curves.values() for point in points] for i in (0, 1))
    across = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, whole=all(float(value).is_integer() for value in xs))
    up = Axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP, loose=True)
    parts = [_frame(across, up, x, y)]
    ends = []
    # grey lines first, so that no colour is covered
    for name in sorted(curves, key=lambda name: classes.get(name, "rest") != "rest"):
        kind, points = classes.get(name, "rest"), curves[name]
        path = " ".join(f"{across.at(a):.1f},{up.at(b):.1f}" for a, b in points)
        parts.append(f'<polyline class="line {kind}" points="{path}"><title>{escape(name)}</title></polyline>')
        parts += [
            f'<circle class="dot {kind}" cx="{across.at(a):.1f}" cy="{up.at(b):.1f}" r="2.5"><title>{escape(name)}: {x} {a:g}, {b:.4g}</title></circle>'
            for a, b in (points if len(points) <= 40 else points[-1:])
        ]
        if kind != "rest":
            ends.append((up.at(points[-1][1]), name, kind))
    for (_, name, kind), place in zip(sorted(ends), _apart([end[0] for end in sorted(ends)]), strict=True):
        parts.append(
            f'<text class="label {kind}" x="{WIDTH - RIGHT + 8}" y="{place + 4:.1f}">{escape(shortened(name, 26))}<title>{escape(name)}</title></text>'
        )
    grey = [name for name in curves if classes.get(name, "rest") == "rest"]
    if grey:
        note = f"{note} Grey: {', '.join(grey)}.".strip()
    return Figure(title, _svg(title, parts), ["series", x, y or "value"], rows, note)


def bar_figure(
    title: str, groups: Mapping[str, Mapping[str, float]], classes: Mapping[str, str], y: str, note: str = ""
) -> Figure:
    """Bars side by side: for each group, a bar of each series."""
    series = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    values = [value for bars in groups.values() for value in bars.values()]
    up = Axis(min(0.0, *values), max(values) or 1.0, HEIGHT - BOTTOM, TOP)
    parts, room = [_frame(None, up, "", y)], (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    wide = 0.8 * room / max(1, len(series))
    for i, (group, bars) in enumerate(groups.items()):
        start = LEFT + i * room + 0.1 * room
        for j, name in enumerate(series):
            if name not in bars:
                continue
            low, high = sorted((up.at(0), up.at(bars[name])))
            parts.append(
                f'<rect class="bar {classes.get(name, "rest")}" x="{start + j * wide:.1f}" y="{low:.1f}" width="{0.92 * wide:.1f}" height="{max(0.5, high - low):.1f}"><title>{escape(group)}, {escape(name)}: {bars[name]:.4g}</title></rect>'
            )
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{start + 0.4 * room:.1f}" y="{HEIGHT - BOTTOM + 16}">{escape(shortened(group, 14))}</text>'
        )
    for j, name in enumerate(series):
        parts.append(
            f'<text class="label {classes.get(name, "rest")}" x="{WIDTH - RIGHT + 8}" y="{TOP + 12 + j * LINE}">{escape(shortened(name, 26))}</text>'
        )
    rows = [[group, name, value] for group, bars in groups.items() for name, value in bars.items()]
    return Figure(title, _svg(title, parts), ["group", "series", y], rows, note)


def scatter_figure(
    title: str, panels: Mapping[str, Sequence[tuple[float, float, str]]], classes: Mapping[str, str], note: str = ""
) -> Figure:
    """Points (x, y, class) in panels side by side, all on one scale; the names of the classes stand on the right."""
    points = [point for panel in panels.values() for point in panel]
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    wide = (WIDTH - RIGHT - LEFT) / max(1, len(panels))
    unit = min((wide - 20) / (max(xs) - min(xs) or 1), (HEIGHT - TOP - BOTTOM) / (max(ys) - min(ys) or 1))
    parts = []
    for i, (name, panel) in enumerate(panels.items()):
        middle = LEFT + (i + 0.5) * wide
        parts.append(
            f'<rect class="panel" x="{LEFT + i * wide + 3:.1f}" y="{TOP - 8}" width="{wide - 6:.1f}" height="{HEIGHT - TOP - BOTTOM + 16}"/>'
        )
        for x, y, kind in panel:
            across = middle + (x - (max(xs) + min(xs)) / 2) * unit
            up = (TOP + HEIGHT - BOTTOM) / 2 - (y - (max(ys) + min(ys)) / 2) * unit
            parts.append(
                f'<circle class="dot faded {classes.get(kind, "rest")}" cx="{across:.1f}" cy="{up:.1f}" r="3"><title>{escape(kind)}</title></circle>'
            )
        parts.append(f'<text class="axis" text-anchor="middle" x="{middle:.1f}" y="{HEIGHT - 6}">{escape(name)}</text>')
    for j, kind in enumerate(classes):
        parts.append(
            f'<text class="label {classes[kind]}" x="{WIDTH - RIGHT + 8}" y="{TOP + 12 + j * LINE}">{escape(shortened(kind, 26))}</text>'
        )
    rows = [[name, *point] for name, panel in panels.items() for point in panel]
    return Figure(title, _svg(title, parts), ["panel", "x", "y", "class"], rows, note)


def heat_figure(
    title: str,
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    x: str,
    y: str,
    note: str = "",
) -> Figure:
    """A field for each value, the darker the larger; few fields show their value as text, too."""
    finite = [value for line in values for value in line if value is not None and math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    left_of = 24 + 8 * min(16, max(map(len, rows), default=1))  # room for the names of the rows
    wide, tall = (WIDTH - left_of - 16) / max(1, len(columns)), (HEIGHT - TOP - BOTTOM) / max(1, len(rows))
    parts, numbers, texts = [], [], wide >= 38 and tall >= 16
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            numbers.append([rows[i], columns[j], value])
            if value is None or not math.isfinite(value):
                continue
            share = (value - low) / (high - low) if high > low else 0.5
            left, top = left_of + j * wide, TOP + i * tall
            parts.append(
                f'<rect class="field" style="fill-opacity:{0.06 + 0.44 * share:.3f}" x="{left:.1f}" y="{top:.1f}" width="{wide - 0.5:.1f}" height="{tall - 0.5:.1f}"><title>{escape(rows[i])}, {escape(columns[j])}: {value:.4g}</title></rect>'
            )
            if texts:
                parts.append(
                    f'<text class="value" text-anchor="middle" x="{left + wide / 2:.1f}" y="{top + tall / 2 + 4:.1f}">{value:.3g}</text>'
                )
    for i, name in enumerate(rows):
        parts.append(
            f'<text class="tick" text-anchor="end" x="{left_of - 6}" y="{TOP + (i + 0.5) * tall + 4:.1f}">{escape(shortened(name, 16))}<title>{escape(name)}</title></text>'
        )
    every = max(1, math.ceil(len(columns) * 44 / (WIDTH - left_of)))
    for j in range(0, len(columns), every):
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{left_of + (j + 0.5) * wide:.1f}" y="{HEIGHT - BOTTOM + 16}">{escape(shortened(columns[j], 8))}<title>{escape(columns[j])}</title></text>'
        )
    parts.append(
        f'<text class="axis" text-anchor="middle" x="{(left_of + WIDTH) / 2}" y="{HEIGHT - 6}">{escape(x)}</text>'
    )
    return Figure(
        title,
        _svg(title, parts),
        [y, x, "value"],
        numbers,
        f"{note} From {low:.3g} (light) to {high:.3g} (dark).".strip(),
    )


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``end``, with round ticks; ``loose`` leaves room at both ends, ``whole`` has ticks at whole numbers alone."""

    low: float
    high: float
    start: float
    end: float
    loose: bool = False
    whole: bool = False

    def _span(self) -> tuple[float, float]:
        room = (self.high - self.low) * 0.05 if self.loose else 0.0
        if self.high - self.low <= 1e-12 * max(abs(self.low), abs(self.high), 1e-300):
            room = 0.05 * abs(self.low) or 0.5  # one value: in the middle
        return self.low - room, self.high + room

    def at(self, value: float) -> float:
        low, high = self._span()
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values, each with as many digits as tell it from its neighbours; whole numbers where both ends are."""
        low, high = self._span()
        raw = (high - low) / 5
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
        if self.whole:
            step = max(1.0, step)
        values = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
        decimals = max(0, -math.floor(math.log10(step)))
        if decimals <= 7 and max(abs(low), abs(high)) < 1e7:
            return [(value, f"{value:.{decimals}f}") for value in values]
        digits = 1 + math.floor(math.log10(max(abs(low), abs(high)))) - math.floor(math.log10(step))
        return [(value, f"{value:.{max(1, digits)}g}") for value in values]


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _frame(across: Axis | None, up: Axis, x: str, y: str) -> str:
    parts = []
    for tick, name in up.ticks():
        height = up.at(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{height + 4:.1f}">{name}</text>')
    if across is not None:
        for tick, name in across.ticks():
            parts.append(
                f'<text class="tick" text-anchor="middle" x="{across.at(tick):.1f}" y="{HEIGHT - BOTTOM + 16}">{name}</text>'
            )
    parts.append(
        f'<text class="axis" text-anchor="middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{escape(x)}</text>'
    )
    parts.append(f'<text class="axis" x="4" y="11">{escape(y)}</text>')
    return "".join(parts)


def _apart(places: Sequence[float]) -> list[float]:
    """Places of labels, ascending, moved down and then up so that none covers another."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + LINE) if moved else place)
    limit = float(HEIGHT - BOTTOM)
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - LINE
    return moved


def _svg(title: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'

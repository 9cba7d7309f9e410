"""ECharts options of the pages' pictures: values in, dicts out. Each says in words what it shows, too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

INK, LINE = "#7d8790", "#7d879055"  # texts take the page's ink (frame.STYLE): no grey is readable on white and on black
TOLD_MAX = 7  # values of a series that somebody who does not see it is told one by one
COLOURS = ["#0b8a76", "#c07f26", "#5b6ee1", "#c2504f", "#7a9b3a", "#8c5aa8"]  # each at least 3 : 1 on both


def _base(title: str, told: Sequence[str] = ()) -> dict[str, Any]:
    """`told`: what the picture shows, in words."""
    said = f"{title}: {'; '.join(told)}" if told else title
    return {
        "aria": {"enabled": True, "label": {"description": said}}, "color": COLOURS, "animation": False,
        "title": {"text": title, "textStyle": {"color": INK, "fontSize": 14, "fontWeight": "normal"}},
        "textStyle": {"color": INK}, "grid": {"left": 48, "right": 16, "top": 56, "bottom": 36},
        "legend": {"type": "scroll", "top": 32, "textStyle": {"color": INK}, "pageTextStyle": {"color": INK},
                   "pageIconColor": INK, "pageIconInactiveColor": LINE},
        "tooltip": {"trigger": "axis"},
    }  # fmt: skip


def _axis(**more: Any) -> dict[str, Any]:
    return {"axisLabel": {"color": INK, "hideOverlap": True}, "splitLine": {"lineStyle": {"color": LINE}}} | more


def over(title: str, at: Sequence[str], series: Mapping[str, Sequence[float | None]], *, bars: bool = False,
         stacked: bool = False) -> dict[str, Any]:  # fmt: skip
    """Series over categories `at`, one value each; None where there is none."""
    kind: dict[str, Any] = {"type": "bar"} if bars else {"type": "line", "showSymbol": len(at) < 40}
    return _base(title, _course(at, series)) | {
        "xAxis": _axis(type="category", data=list(at)), "yAxis": _axis(type="value"),
        "series": [kind | {"name": name, "data": list(values), "stack": "all" if stacked else None}
                   for name, values in series.items()],
    }  # fmt: skip


def _course(at: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> list[str]:
    """The values of each series that has some, and where they are; the last one alone where they are many.

    >>> _course(["mon", "tue"], {"new": [3, None], "old": [1, 2.5], "none": [None, None]})
    ['new 3 (mon)', 'old 1 (mon), 2.5 (tue)']
    >>> _course(list("abcdefgh"), {"new": list(range(8))})
    ['new 7 (h)']
    """
    known = {name: [f"{value:g} ({when})" for when, value in zip(at, values, strict=False) if value is not None]
             for name, values in series.items()}  # fmt: skip
    return [f"{name} {', '.join(found if len(at) <= TOLD_MAX else found[-1:])}" for name, found in known.items() if found]


def intervals(title: str, rows: Sequence[tuple[str, float, float, float]]) -> dict[str, Any]:
    """Name, low, value and high of each, as a bar from low to high with a mark at the value, and a line at 0."""
    lowest = min([0.0, *(low for _, low, _, _ in rows)])
    names = [f"{name}\n{value:.3f} ({low:.3f} … {high:.3f})" for name, low, value, high in rows]
    none = {"type": "bar", "stack": "interval", "silent": True, "itemStyle": {"color": "transparent"},
            "data": [round(low - lowest, 6) for _, low, _, _ in rows],
            "markLine": {"symbol": "none", "silent": True, "data": [{"xAxis": round(-lowest, 6)}],
                         "label": {"formatter": "0", "color": INK}, "lineStyle": {"color": COLOURS[3]}}}  # fmt: skip
    width = {"type": "bar", "stack": "interval", "barWidth": 12, "itemStyle": {"color": COLOURS[0] + "73"},
             "data": [round(high - low, 6) for _, low, _, high in rows]}  # fmt: skip
    mark = {"type": "scatter", "symbolSize": 9, "itemStyle": {"color": COLOURS[0]},
            "data": [[round(value - lowest, 6), at] for at, (_, _, value, _) in enumerate(rows)]}  # fmt: skip
    return _base(title, [name.replace("\n", " ") for name in names]) | {
        "legend": None, "tooltip": {"show": False}, "grid": {"left": 168, "right": 16, "top": 36, "bottom": 28},
        "xAxis": _axis(type="value", show=False, min=0), "series": [none, width, mark],
        "yAxis": _axis(type="category", data=names, inverse=True, axisLabel={"color": INK, "lineHeight": 16}),
    }  # fmt: skip


def against(title: str, at: Sequence[str], series: Mapping[str, Sequence[float | None]], limits: Mapping[str, float]
            ) -> dict[str, Any]:  # fmt: skip
    """Lines over categories, and named limits across."""
    made = over(title, at, series)
    marks = [{"yAxis": value, "label": {"formatter": name, "position": "insideEndTop", "color": INK}}
             for name, value in limits.items()]  # fmt: skip
    made["yAxis"] |= {"min": 0, "max": _above(series, limits)}
    if made["series"]:
        made["series"][0]["markLine"] = {"symbol": "none", "silent": True, "data": marks,
                                         "lineStyle": {"color": COLOURS[3], "type": "dashed"}}  # fmt: skip
    return made


def _above(series: Mapping[str, Sequence[float | None]], limits: Mapping[str, float]) -> float:
    """A tenth that is a little more than the largest value or limit, so that both are seen."""
    values = [one for some in series.values() for one in some if one is not None]
    return math.ceil(10.5 * max([*values, *limits.values()])) / 10


def curve(title: str, points: Sequence[tuple[float, float]], now: float) -> dict[str, Any]:
    """y over x as a line, with a mark at `now`."""
    line = {"type": "line", "data": [list(one) for one in points], "showSymbol": False, "areaStyle": {"opacity": 0.12},
            "markLine": {"symbol": "none", "data": [{"xAxis": now}], "lineStyle": {"color": COLOURS[3]}}}  # fmt: skip
    nearest = min(points, key=lambda point: abs(point[0] - now), default=None)
    return _base(title, [f"{nearest[1]:.2f} ({nearest[0]:g})"] if nearest else []) | {
        "legend": None, "xAxis": _axis(type="value", max="dataMax"),
        "yAxis": _axis(type="value", min=0, max=1), "series": [line],
    }  # fmt: skip


def funnel(title: str, steps: dict[str, int]) -> dict[str, Any]:
    """Steps as bars, each with its share of the first."""
    first = max(1, *steps.values()) if steps else 1
    names = list(steps)
    label = {"show": True, "position": "right", "color": INK}
    said = [f"{count:,} · {count / first:.0%}" for count in steps.values()]
    bars = [{"value": count, "label": label | {"formatter": text}} for count, text in zip(steps.values(), said, strict=True)]
    return _base(title, [f"{name} {text}" for name, text in zip(names, said, strict=True)]) | {
        "legend": None, "grid": {"left": 104, "right": 104, "top": 36, "bottom": 24},
        "xAxis": _axis(type="value", show=False), "yAxis": _axis(type="category", data=names, inverse=True),
        "series": [{"type": "bar", "data": bars}],
    }  # fmt: skip

"""The pictures of a report."""

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from arcadia.report.runs import AXES, HEALTH, Group, mean_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # text and axes; on the page it takes the color of the text around it
LONG_LABEL = 50  # characters: two do not fit side by side
COLORS = ("#2f81f7", "#e8590c", "#2b9348", "#c2255c", "#9c6ade", "#b08800", "#0c8599", "#868e96")


def learning_curves(groups: list[Group], axis: str, references: dict[str, float]) -> "Figure":
    """Draw mean scores over `axis`: a line per group, the band of its seeds, evaluations as dots, references dotted."""
    figure, (axes,) = _figure(1, (9.0, 4.2))
    for color, group in zip(_cycle(len(groups)), groups, strict=True):
        curve = mean_curve(group.runs, axis)
        count = sum(run.score is not None for run in group.runs)
        label = textwrap.fill(group.label + (f" ({count} runs)" if count > 1 else ""), 2 * LONG_LABEL)
        axes.plot(curve.x, curve.mean, color=color, linewidth=2, label=label.replace("$", r"\$"))
        if count > 1:
            axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.2, linewidth=0)
            for run in group.runs:
                axes.plot(run.column(axis), run.column("mean_return_100"), color=color, alpha=0.35, linewidth=0.8)
        for mode, face in (("sampled", color), ("greedy", "none")):
            points = [
                (_position(row, axis), row["mean"])
                for run in group.runs
                for row in run.evaluations
                if row["mode"] == mode
            ]
            if points:
                x, y = zip(*points, strict=True)
                axes.scatter(x, y, s=18, facecolors=face, edgecolors=color, zorder=3)
    for label, score in references.items():
        axes.axhline(score, color=INK, linestyle=":", linewidth=1, alpha=0.6)
        axes.annotate(
            label,
            (1, score),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            color=INK,
            alpha=0.7,
        )
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel("score, mean of the last 100 games")
    columns = 2 if all(len(group.label) <= LONG_LABEL for group in groups) else 1
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), fontsize=9, labelcolor=INK, ncols=columns)
    return figure


def health(groups: list[Group]) -> "Figure":
    """Draw how the runs went: speed, staleness, entropy and the like, over env_steps."""
    figure, all_axes = _figure(len(HEALTH), (9.0, 5.4))
    for axes, (name, title) in zip(all_axes, HEALTH.items(), strict=True):
        axes.set_title(title, fontsize=9, loc="left", color=INK)
        for color, group in zip(_cycle(len(groups)), groups, strict=True):
            for run in group.runs:
                axes.plot(run.column("env_steps"), _smooth(run.column(name)), color=color, linewidth=1, alpha=0.8)
    return figure


def svg(figure: "Figure", name: str) -> str:
    """Return a figure as SVG that stands in a page, its ink the color of the text around it.

    Args:
        name: of this figure alone in its page, so that no two share an id.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def save_png(figure: "Figure", path: Path) -> None:
    """Write a figure as a picture on white."""
    figure.savefig(path, dpi=150, facecolor="white")


def _figure(count: int, size: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """Return a figure with `count` axes, three in a row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    columns = min(count, 3)
    grid: Any = figure.subplots(-(-count // columns), columns, squeeze=False)
    all_axes = list(grid.flat)[:count]
    for axes in all_axes:
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.tick_params(colors=INK, labelsize=8)
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        axes.ticklabel_format(axis="x", style="plain")
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    return figure, all_axes


def _short(value: float) -> str:
    """Return 1500000 as 1.5M, 0.00042 as 4.2e-4."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def _cycle(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _position(row: dict[str, Any], axis: str) -> float:
    return float(row["seconds"]) / 60 if axis == "minutes" else float(row[axis])


def _smooth(values: "np.typing.NDArray[np.float64]") -> "np.typing.NDArray[np.float64]":
    """Return means over a fiftieth of the row, NaN left out."""
    width = max(1, len(values) // 50)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), np.ones(width), "same")
    count = np.convolve(known, np.ones(width), "same")
    smooth: np.typing.NDArray[np.float64] = np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
    return smooth

"""The house style of every figure."""

import io
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

CHOSEN, REJECTED, NEUTRAL, DARK = "#1f77a4", "#d1495b", "#8a8f98", "#2b2f36"
SIDE = {"chosen": CHOSEN, "rejected": REJECTED}
CYCLE = ("#1f77a4", "#d1495b", "#3c8d5a", "#b07d2b", "#7a5ea8", "#4aa3a3", "#8a8f98", "#c46ba0")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "axes.edgecolor": "#b8bcc4",
    "text.color": DARK,
    "axes.labelcolor": DARK,
    "xtick.color": DARK,
    "ytick.color": DARK,
    "legend.frameon": False,
}


styled = matplotlib.rc_context(STYLE)  # decorates every function that draws


class ShownFigure(Figure):
    """A figure that a notebook shows, whether or not it has loaded pyplot."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=100)
        return drawn.getvalue()


def panels(count: int, *, height: float = 3.8, width: float = 10.0, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes in `rows` rows, in the house style."""
    figure = ShownFigure(figsize=(width, height * rows), layout="constrained")
    columns = -(-count // rows)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def below(axes: Axes, columns: int = 4) -> None:
    """A legend under the plot, where it hides no data."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=columns, fontsize=9)

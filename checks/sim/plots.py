"""A picture of each scenario: the admitted events, and the age of the oldest event."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

from checks.sim.timeline import Timeline

mpl.use("Agg")
from matplotlib import pyplot as plt  # after a backend without a display is selected

_INCHES = (9.0, 6.0)
_DOTS_PER_INCH = 80
_LEAST_AGE_SECONDS = 0.05  # the scale is logarithmic


def draw(name: str, timelines: Mapping[str, Timeline], folder: Path) -> Path:
    """Write the picture of a scenario, with one line for each control law; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    figure, (rates, ages) = plt.subplots(2, 1, figsize=_INCHES, sharex=True)
    for arm, timeline in timelines.items():
        rates.plot([second.admitted for second in timeline.seconds], label=arm, linewidth=1)
        ages.plot([max(_LEAST_AGE_SECONDS, second.oldest_seconds) for second in timeline.seconds], linewidth=1)
    could = [second.could for second in next(iter(timelines.values())).seconds]
    rates.plot(could, "k--", linewidth=1, label="what the sink can store")
    rates.set_ylim(0, 2.5 * max(could))
    rates.set_title(name)
    rates.set_ylabel("admitted, events/s")
    rates.legend(fontsize=8)
    ages.set_yscale("log")
    ages.set_ylabel("age of the oldest event, s")
    ages.set_xlabel("s")
    figure.tight_layout()
    path = folder / (name.replace(",", "").replace(" ", "-") + ".png")
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    plt.close(figure)
    return path

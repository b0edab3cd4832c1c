"""Sluice at an earlier commit, from the history of this repository, to run beside the present version."""

import io
import subprocess
import tarfile
from pathlib import Path

from checks.testbed.processes import ROOT

OLD_COMMIT = "9aae592"  # the last one whose database had five migrations: partitions had no pauses of their own


def old_checkout(folder: Path) -> Path | None:
    """The old code, unpacked below a folder; None if the history does not reach back to it."""
    place = folder / f"sluice-{OLD_COMMIT}"
    if place.exists():
        return place
    try:
        said = subprocess.run(["git", "archive", OLD_COMMIT], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    with tarfile.open(fileobj=io.BytesIO(said.stdout)) as archive:
        archive.extractall(place)  # trusted: our own history; a filter needs Python 3.11.4
    return place

"""Programs in other languages: their own package managers fetch them once, into a cache outside the repository."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_INSTALL_SECONDS_MAX: Final = 1800.0  # a collector is compiled from source, perhaps on a slow machine
_DONE: Final = ".installed"


class KitError(Exception):
    """A program could not be fetched or built; the message has the reason."""


@dataclass(frozen=True)
class Kit:
    """Programs that one package manager brings. Their versions are pinned in the folder."""

    folder: Path  # their pins, code and configurations in the repository
    programs: tuple[str, ...]  # they must be on the PATH
    install: tuple[tuple[str, ...], ...]  # commands, in a copy of the folder
    versions: Callable[[Path], Mapping[str, str]]  # of the packages in that copy

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    def missing(self) -> str:
        """The first program that this machine lacks; empty: it has all."""
        return next((name for name in self.programs if shutil.which(name) is None), "")

    def kept(self, cache: Path) -> Path | None:
        """The copy that `installed` made; None if it is missing or outdated."""
        copy = cache / f"{self.name}-{self._digest()}"
        return copy if (copy / _DONE).exists() else None

    def installed(self, cache: Path) -> Path:
        """A copy of the folder with everything installed, made at first use and after a change. Raises KitError."""
        if (kept := self.kept(cache)) is not None:
            return kept
        copy = cache / f"{self.name}-{self._digest()}"
        if copy.exists():
            shutil.rmtree(copy)  # an attempt that failed
        shutil.copytree(self.folder, copy)
        for command in self.install:
            self._run(command, copy)
        (copy / _DONE).touch()
        return copy

    def _run(self, command: tuple[str, ...], copy: Path) -> None:
        try:
            said = subprocess.run(
                command, cwd=copy, capture_output=True, text=True, timeout=_INSTALL_SECONDS_MAX, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise KitError(f"{' '.join(command)} did not end within {_INSTALL_SECONDS_MAX:.0f} s") from None
        if said.returncode != 0:
            raise KitError(f"{' '.join(command)} failed: {(said.stderr or said.stdout).strip()[-500:]}")

    def _digest(self) -> str:
        """The digest of everything that decides the installation."""
        digest = hashlib.sha256(repr(self.install).encode())
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                digest.update(f"\0{path.relative_to(self.folder)}\0".encode() + path.read_bytes())
        return digest.hexdigest()[:12]


def cache_folder() -> Path:
    """The folder of this user's caches."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sluice" / "clients"


def _go_versions(copy: Path) -> dict[str, str]:
    text = (copy / "go.mod").read_text()
    return dict(re.findall(r"^\s*(\S+/\S+) v(\S+)", text, re.MULTILINE))


# An OpenTelemetry Collector with the components that are used here, compiled from Go modules.
COLLECTOR: Final = Kit(
    Path(__file__).parent / "collector", ("go",), (("go", "build", "-o", "collector", "."),), _go_versions
)

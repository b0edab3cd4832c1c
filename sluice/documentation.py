"""`sluice docs`: builds the site of the documentation if it is missing or old, and serves it on this machine."""

import errno
import functools
import http.server
import importlib.util
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Final

from pipeline.running import CODE, local_folder

# What the site is made from: also the pages outside of docs/, which docs/mkdocs_hooks.py adds.
SOURCES: Final = (
    "mkdocs.yml", "docs", "examples", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "clients/python/README.md"
)  # fmt: skip
LOOPBACK: Final = "127.0.0.1"
_LINES_MAX: Final = 5  # of what a failed build said


class DocumentationError(Exception):
    """The site could not be built or served; the text says what to do."""


def main(asked: Namespace) -> int:
    """Build the site, or serve it until Ctrl-C; returns the exit status."""
    try:
        _run(asked)
    except DocumentationError as error:
        sys.stderr.write(f"sluice docs: {error}\n")
        return 1
    return 0


def _run(asked: Namespace) -> None:
    if not (CODE / "mkdocs.yml").is_file():
        do = "run .venv/bin/sluice docs in a checkout of Sluice, or read its docs/ there"
        raise DocumentationError(f"{CODE} has no documentation: {do}")
    if asked.build is not None:
        build(asked.build)
        sys.stdout.write(f"built {asked.build}: open {asked.build / 'index.html'}\n")
        return
    # It needs packages that an installation without `servers` lacks: the lines above come first.
    from stack.config import docs_port  # noqa: PLC0415
    from stack.servers import ServerError  # noqa: PLC0415

    try:
        port = docs_port(os.environ)
    except ServerError as error:
        raise DocumentationError(str(error)) from error
    serve(fresh_site(), port)


def build(folder: Path) -> None:
    """Write the site to a folder: a new or empty one, or one with an earlier site, which it replaces.

    A broken link is an error, as in the tests. Raises DocumentationError.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _is_site(folder))):
        raise DocumentationError(
            f"{folder} has files and is not an earlier site, and a build deletes what is there: name another folder"
        )
    _run_mkdocs(folder, strict=True)


def _is_site(folder: Path) -> bool:
    return (folder / "search" / "search_index.json").is_file()


def fresh_site() -> Path:
    """The folder of a site that is not older than its sources. Raises DocumentationError if it can't be built."""
    home = local_folder(os.environ)
    site = home / "docs-site"
    if is_stale(site):
        sys.stderr.write("building the site …\n")
        home.mkdir(parents=True, exist_ok=True)
        # Beside it, and renamed when complete: a build that was interrupted is never taken for a site.
        with tempfile.TemporaryDirectory(prefix="docs-site.", dir=home) as place:
            began = max(_changed_at(path) for path in _source_files())
            made, old = Path(place) / "new", Path(place) / "old"
            made.mkdir()
            _run_mkdocs(made, strict=False)
            os.utime(made, ns=(began, began))  # what changed meanwhile is newer
            if site.exists():
                site.rename(old)
            made.rename(site)
    return site


def is_stale(site: Path) -> bool:
    """Whether there is no site, or one of its sources changed after the build began."""
    return not site.is_dir() or _changed_at(site) < max(_changed_at(path) for path in _source_files())


def _changed_at(path: Path) -> int:
    return path.stat().st_mtime_ns


def _source_files() -> list[Path]:
    """Files and folders that the site is made from. A folder changes when a file of it is removed."""
    named = [CODE / source for source in SOURCES if (CODE / source).exists()]
    below = [path for source in named if source.is_dir() for path in source.rglob("*") if path.name != "__pycache__"]
    return [*named, *below]


def _run_mkdocs(folder: Path, *, strict: bool) -> None:
    """Build into a folder, whose content is deleted first. Raises DocumentationError."""
    if importlib.util.find_spec("material") is None:
        raise DocumentationError(
            f"the package mkdocs-material is missing: {sys.executable} -m pip install -c {CODE / 'constraints.txt'} "
            f"-r {CODE / 'requirements-docs.txt'}"
        )
    # -B: bytecode of the hooks would change docs/, and the site would be old. Not --quiet: --strict counts the warnings
    # that are logged, and --quiet lets none be logged.
    command = [sys.executable, "-B", "-m", "mkdocs", "build", "--config-file", str(CODE / "mkdocs.yml")]
    command += ["--site-dir", str(folder.absolute()), *(["--strict"] if strict else [])]
    # Our own interpreter and words: nothing of them comes from elsewhere.
    said = subprocess.run(command, cwd=CODE, capture_output=True, text=True, check=False)  # noqa: S603
    if said.returncode:
        lines = [line for line in (said.stdout + said.stderr).splitlines() if line and not line.startswith("INFO")]
        last = lines[-_LINES_MAX:]
        raise DocumentationError("\n".join(["the site could not be built:", *last]))


def serve(site: Path, port: int) -> None:
    """Serve a folder until Ctrl-C. Raises DocumentationError if the port is taken."""
    with listen(site, port) as server:
        sys.stdout.write(f"the documentation: http://{LOOPBACK}:{port}/ (Ctrl-C stops it)\n")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            sys.stdout.write("\nstopped\n")


class _Pages(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; a request is no news."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of its base class
        pass


class _Server(http.server.ThreadingHTTPServer):
    """A port that another program uses is an error, not shared."""

    allow_reuse_port = False
    daemon_threads = True


def listen(site: Path, port: int) -> http.server.ThreadingHTTPServer:
    """A server of a folder that listens on the loopback address. Raises DocumentationError if the port is taken."""
    try:
        return _Server((LOOPBACK, port), functools.partial(_Pages, directory=str(site)))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise DocumentationError(f"port {port} is taken: set DOCS_PORT to another one") from error

"""Carries out a Dockerfile without Docker: its steps in folders of their own, each the root of one stage.

What a folder cannot be like a container: programs see this machine's Python and libraries instead of the base image's,
and this machine's user. What is tested is that the steps run, and that what they copy is all that the programs need.
"""

import json
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """A stage's root folder, and what its instructions have set."""

    root: Path
    workdir: str = "/"
    environ: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)  # from the context

    def inside(self, path: str) -> Path:
        """Where a path of the image is."""
        absolute = path if path.startswith("/") else f"{self.workdir.rstrip('/')}/{path}"
        return self.root / absolute.lstrip("/")

    def run_environ(self) -> dict[str, str]:
        """The environment of a program in the image: nothing of this machine's but where to find a Python."""
        places = self.environ.get("PATH", "$PATH").split(":")
        path = ":".join(os.environ["PATH"] if place == "$PATH" else str(self.inside(place)) for place in places)
        given = {name: value for name, value in self.environ.items() if name != "PATH"}
        return {"PATH": path, "HOME": str(self.root), "LC_ALL": "C.UTF-8", **given}


def instructions(text: str) -> list[tuple[str, str]]:
    """(keyword, rest) of each instruction; continued lines joined, comments left out."""
    lines: list[str] = []
    joined = ""
    for line in text.splitlines():
        if line.strip() == "" or line.lstrip().startswith("#"):
            continue
        joined += line.rstrip()
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        lines.append(joined)
        joined = ""
    return [(word.upper(), rest.strip()) for word, _, rest in (line.strip().partition(" ") for line in lines)]


def build(dockerfile: Path, folder: Path, *, seconds_max: float = 300) -> Stage:
    """Carry out every stage below `folder`; returns the last. An instruction that is not known is an error."""
    context = dockerfile.parent
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for word, rest in instructions(dockerfile.read_text()):
        if word in ("ARG", "LABEL", "EXPOSE", "STOPSIGNAL"):
            continue
        if word == "FROM":
            name = rest.partition(" AS ")[2] or f"stage-{len(stages)}"
            stage = stages[name] = Stage(folder / name)
            stage.root.mkdir(parents=True)
            continue
        assert stage is not None, "an instruction before FROM"
        match word:
            case "WORKDIR":
                stage.workdir = rest
                stage.inside(rest).mkdir(parents=True, exist_ok=True)
            case "COPY":
                _copy(stage, context, stages, rest)
            case "RUN":
                _run(stage, rest, seconds_max)
            case "ENV":
                stage.environ |= dict(item.split("=", 1) for item in shlex.split(rest))
            case "USER":
                stage.user = rest
            case "CMD":
                stage.command = json.loads(rest)
            case "HEALTHCHECK":
                stage.healthcheck = json.loads(rest.partition("CMD ")[2])
            case other:
                raise AssertionError(f"{other} is not carried out here")
    assert stage is not None
    return stage


def _copy(stage: Stage, context: Path, stages: dict[str, Stage], rest: str) -> None:
    words = shlex.split(rest)
    source_stage = None
    if words[0].startswith("--from="):
        source_stage = stages[words.pop(0).removeprefix("--from=")]
    *sources, target = words
    for source in sources:
        from_path = source_stage.inside(source) if source_stage else context / source
        to_path = stage.inside(target)
        if source_stage is None:
            stage.copied.append(source)
        if from_path.is_dir():
            shutil.copytree(from_path, to_path, symlinks=True, dirs_exist_ok=True)
        elif len(sources) > 1 or target.endswith("/"):
            shutil.copy(from_path, to_path / from_path.name)
        else:
            to_path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(from_path, to_path)
        if source_stage is not None:
            _move_scripts(to_path / "bin", source_stage.inside(source), to_path)


def _move_scripts(folder: Path, old: Path, new: Path) -> None:
    """Scripts name their Python by its path, which is the same in all stages of an image, but not here."""
    for script in folder.glob("*") if folder.is_dir() else ():
        if script.is_file() and not script.is_symlink():
            content = script.read_bytes()
            if content.startswith(b"#!"):
                script.write_bytes(content.replace(str(old).encode(), str(new).encode()))


def _run(stage: Stage, command: str, seconds_max: float) -> None:
    for place in ("/venv", "/app", "/archive"):
        command = command.replace(f" {place}", f" {shlex.quote(str(stage.inside(place)))}")
    said = subprocess.run(
        ["sh", "-euc", command],
        cwd=stage.inside(stage.workdir),
        env=stage.run_environ(),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds_max,
    )
    assert said.returncode == 0, f"RUN {command}\n{said.stdout}\n{said.stderr}"

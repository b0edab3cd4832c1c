"""What a measurement says about the machine and the code that were measured."""

import platform
import re
import subprocess
from pathlib import Path

from stack.servers import ROOT


def processor() -> str:
    """The processor's name as reported by Linux; on other systems, the kind of machine."""
    facts = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", facts.read_text(), re.MULTILINE) if facts.is_file() else None
    return found[1].strip() if found else platform.machine()


def commit() -> str:
    """The commit of this checkout, short; empty outside of one."""
    try:
        said = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.stdout.strip()

"""The kits of the clients. The collector is in checks.testbed, since other checks run it too."""

import json
import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from checks.testbed.kits import Kit

_HERE: Final = Path(__file__).parent


def _npm_versions(copy: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((copy / "package.json").read_text())["dependencies"]
    return found


def _maven_versions(copy: Path) -> dict[str, str]:
    text = (copy / "pom.xml").read_text()
    return dict(re.findall(r"<artifactId>([^<]+)</artifactId>\s*<version>([^<]+)</version>", text))


def _debian_versions(copy: Path) -> dict[str, str]:
    """The versions from the names of the package files, such as rsyslog_8.2302.0-1_amd64.deb."""
    names = (path.stem.split("_") for path in copy.glob("*.deb"))
    return {name: unquote(version) for name, version, _ in names}


NPM: Final = Kit(
    _HERE / "npm",
    ("node", "npm"),
    (("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"),),
    _npm_versions,
)
MAVEN: Final = Kit(
    _HERE / "java",
    ("java", "mvn"),
    (("mvn", "-q", "-B", "compile", "dependency:build-classpath", "-Dmdep.outputFile=classpath"),),
    _maven_versions,
)
DEBIAN: Final = Kit(_HERE / "debian", ("apt-get", "dpkg-deb"), (("bash", "fetch.sh"),), _debian_versions)

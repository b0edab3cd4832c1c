"""The addresses of ingest as Markdown: `python -m monitoring.addresses_table > docs/addresses.md`."""

import sys
from collections.abc import Iterator
from typing import Any, Final

import yaml

from ingest.openapi.document import CONTRACT

_HEAD: Final = """\
# Addresses

Everything that ingest answers to, from its contract (`ingest/openapi/openapi.yaml`; `GET /docs` of a running system
shows it with every field). [protocols.md](protocols.md) says what to set in a client, [http.md](http.md) what to do
after an answer, and [operators.md](operators.md) who may look, and at which port. Any address may also answer 400, 408,
417, 431 and 503. `python -m monitoring.addresses_table` writes this page.
"""
_METHODS: Final = ("get", "post", "put", "options")
_ANY: Final = frozenset({"400", "408", "417", "431", "503"})  # answers that every address may give


def page() -> str:
    """The whole page."""
    contract = yaml.safe_load(CONTRACT.read_text(encoding="utf-8"))
    parts = [_HEAD]
    for tag in contract["tags"]:
        head = f"## {tag['description'].removesuffix('.')}\n\n| address | what | answers |\n|---|---|---|\n"
        parts.append(head + "".join(_rows(contract, tag["name"])))
    return "\n".join(parts)


def _rows(contract: dict[str, Any], tag: str) -> Iterator[str]:
    """A row for each operation with a tag."""
    for path, operations in contract["paths"].items():
        for method in _METHODS:
            if tag in operations.get(method, {}).get("tags", ()):
                operation = operations[method]
                answers = ", ".join(sorted(set(operation["responses"]) - _ANY)) or "no others"
                yield f"| `{method.upper()} {path}` | {operation['summary']} | {answers} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())

"""No regular expression of the product depends on what Python before 3.11.5 does wrong.

A possessive group then keeps what its last, incomplete repetition has matched (python/cpython#106052): a Forwarded
field named another client, and an invalid Priority counted. An atomic group does the same, and does it right.
"""

import re

from checks.testbed.processes import ROOT

# Strings of JSON: their body can only match in part at the very end of the text, where that changes nothing.
RIGHT_ANYWHERE = (r'"(?:[^"\\]++|\\.)*+', r'"((?:[^"\\]++|\\.)*+)"')
_POSSESSIVE_GROUP = re.compile(r"(?<![(\\])\)(?:[*+?]|\{[0-9,]+\})\+")


def test_no_group_is_possessive() -> None:
    lines = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in ("ingest", "pipeline", "tasks", "stack", "monitoring", "clients/python/src", "checks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if _POSSESSIVE_GROUP.search(line) and not any(right in line for right in RIGHT_ANYWHERE)
    ]
    assert lines == []

"""Requests that schemathesis makes from `/openapi.json`, sent to a running ingest; every answer is held against it.

Run as a program, one share of a larger run: `python -m checks.hostile.contract URL --cases 500 --seed 1`. It prints a
report as JSON. Several shares in processes of their own: making a request takes longer than answering it.
"""

import argparse
import gzip
import json
import math
import sys
import time
import urllib.request
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import schemathesis
from jsonschema import Draft202012Validator
from schemathesis.engine import events, from_schema
from schemathesis.generation import GenerationMode

# Making long texts and batches takes most of the time, so most requests use short ones. The same rules apply to the
# answers.
_SHORT: Final = {"text": 12, "message": 60, "items": 2, "attributes": 3}
_FAILURES_KEPT: Final = 20
# A body that breaks the schema may also be too large, or not be JSON at all.
_REFUSALS: Final = [400, 404, 405, 408, 413, 415, 417, 422, 429, 431]


@dataclass
class Report:
    """The number of requests, their answers by status (0: no answer), and what was wrong with the answers."""

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # the first of each failure, to repeat it

    def add(self, other: "Report") -> None:
        """Add the report of another share."""
        self.cases += other.cases
        self.statuses += other.statuses
        self.failures += other.failures
        self.examples = {**other.examples, **self.examples}

    def json(self) -> str:
        """The report for the process that adds up the shares."""
        return json.dumps(vars(self))

    @classmethod
    def of(cls, text: str) -> "Report":
        """A report from its JSON."""
        document = json.loads(text)
        statuses = Counter({int(status): count for status, count in document["statuses"].items()})
        return cls(document["cases"], statuses, Counter(document["failures"]), document["examples"])


@schemathesis.serializer("application/json")
def _json_body(context: schemathesis.SerializationContext, value: Any) -> Any:
    return _coded(context, _dumps(value))


@schemathesis.serializer("application/x-ndjson")
def _ndjson_body(context: schemathesis.SerializationContext, value: Any) -> Any:
    lines = value if isinstance(value, list) else [value]
    ids: set[str] = set()
    return _coded(context, b"\n".join(_dumps(line, ids) for line in lines))


def _follow_words(event: dict[str, Any], ids: set[str]) -> None:
    """Apply the rules that the document has only in words; `ids` are those of earlier events in the body."""
    # 5.0 is an integer for JSON Schema, but not for ingest.
    if isinstance(event.get("timestamp"), float) and event["timestamp"].is_integer():
        event["timestamp"] = int(event["timestamp"])
    # Two events of one body do not share an id.
    if isinstance(event.get("eventId"), str):
        if event["eventId"] in ids:
            del event["eventId"]
        else:
            ids.add(event["eventId"])
    # PostgreSQL has no negative zero.
    attributes = event.get("attributes")
    if isinstance(attributes, dict):
        for key, one in attributes.items():
            if isinstance(one, float) and one == 0:
                attributes[key] = 0.0


def _dumps(value: Any, ids: set[str] | None = None) -> bytes:
    """JSON; about half of the bodies escape characters beyond ASCII. `ids` are those of earlier lines."""
    if isinstance(value, bytes):
        return value
    ids = set() if ids is None else ids
    for event in value if isinstance(value, list) else [value]:
        if isinstance(event, dict):
            _follow_words(event, ids)
    escaped = json.dumps(value)
    return escaped.encode() if zlib.crc32(escaped.encode()) % 2 else json.dumps(value, ensure_ascii=False).encode()


def _coded(context: schemathesis.SerializationContext, body: bytes) -> bytes:
    """The body in the coding that its header names."""
    return gzip.compress(body, 1, mtime=0) if _coding(context.case) == "gzip" else body


def _coding(case: schemathesis.Case[Any]) -> str:
    found: str = next((v for k, v in (case.headers or {}).items() if k.lower() == "content-encoding"), "")
    return found.strip().lower()


def _is_negative(case: schemathesis.Case[Any]) -> bool:
    """Whether schemathesis made the body to break its schema."""
    return any(
        location.value == "body" and component.mode is GenerationMode.NEGATIVE
        for location, component in (case.meta.components.items() if case.meta is not None else ())
    )


def _with_small_fractions(body: Any) -> Any:
    """The body with a small number for each number in attributes that has a fraction or an exponent. Those may be
    larger than integers, which the document says only in words.
    """
    if isinstance(body, list):
        return [_with_small_fractions(event) for event in body]
    if not isinstance(body, dict) or not isinstance(body.get("attributes"), dict):
        return body
    attributes = {
        name: 0.5 if isinstance(value, float) and math.isfinite(value) else value
        for name, value in body["attributes"].items()
    }
    return {**body, "attributes": attributes}


_REAL_BODIES: Final[dict[str, Draft202012Validator]] = {}  # by media type: what the document itself allows


@schemathesis.hook
def filter_case(_context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """Leave out requests that break the schema but keep the contract: other names of allowed codings (HTTP ignores
    their case), and bodies that are too long only for the shortened document.
    """
    real = _REAL_BODIES.get(str(case.media_type))
    if _is_negative(case) and real is not None and real.is_valid(_with_small_fractions(case.body)):
        return False
    has_one = any(name.lower() == "content-encoding" for name in case.headers or {})
    given = next((v for k, v in (case.headers or {}).items() if k.lower() == "content-encoding"), None)
    return not has_one or given in ("gzip", "identity") or _coding(case) not in ("", "gzip", "identity", "x-gzip")


def shortened(document: dict[str, Any]) -> dict[str, Any]:
    """The document with short texts and batches, which make requests quickly; only POST /api/logs."""
    document = json.loads(json.dumps(document))
    document["paths"] = {"/api/logs": document["paths"]["/api/logs"]}
    schemas = document["components"]["schemas"]
    for name in ("correlationId", "source", "eventId"):
        schemas["Event"]["properties"][name]["maxLength"] = _SHORT["text"]
    schemas["Event"]["properties"]["message"]["maxLength"] = _SHORT["message"]
    schemas["Event"]["properties"]["attributes"]["maxProperties"] = _SHORT["attributes"]
    schemas["Batch"]["maxItems"] = _SHORT["items"]
    body = document["paths"]["/api/logs"]["post"]["requestBody"]["content"]
    body["application/x-ndjson"]["schema"]["maxItems"] = _SHORT["items"]
    return dict(document)


def run(url: str, *, cases: int, seed: int, is_short: bool, seconds_max: float, mode: str = "all") -> Report:
    """Send about `cases` requests to each operation. `is_short`: see `shortened`; without it, the document's examples
    and boundaries are sent too. `mode`: requests that keep the schema (positive), break it (negative), or all.
    """
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=10) as answer:
        document = json.loads(answer.read())
    for media_type, content in document["paths"]["/api/logs"]["post"]["requestBody"]["content"].items():
        _REAL_BODIES[media_type] = Draft202012Validator({**content["schema"], "components": document["components"]})
    config = schemathesis.Config.from_dict(
        {
            "base-url": url,
            "seed": seed,
            "continue-on-failure": True,
            "request-timeout": 15.0,
            "max-stream-events": 1,
            "generation": {"mode": mode, "max-examples": cases, "database": "none", "no-shrink": True},
            "phases": {
                "stateful": {"enabled": False},
                "examples": {"enabled": not is_short},
                "coverage": {"enabled": not is_short},
            },
            "checks": {
                "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 503]},
                "negative_data_rejection": {"expected-statuses": _REFUSALS},
            },
            # Other protocols refuse no body for its content, and the document does not define their bodies.
            "operations": [
                {
                    "include-tag": "protocols",
                    "checks": {
                        "negative_data_rejection": {"enabled": False},
                        "positive_data_acceptance": {"enabled": False},
                    },
                }
            ],
        }
    )
    schema = schemathesis.openapi.from_dict(shortened(document) if is_short else document, config=config)
    report = Report()
    deadline = time.monotonic() + seconds_max
    stream = from_schema(schema).execute()
    for event in stream:
        if time.monotonic() > deadline:
            stream.stop()
        if isinstance(event, events.ScenarioFinished):
            _note(report, event)
        elif isinstance(event, events.NonFatalError | events.FatalError):
            what = getattr(event, "value", None) or getattr(event, "exception", event)
            report.failures[f"schemathesis: {what}"] += 1
    return report


def _note(report: Report, event: events.ScenarioFinished) -> None:
    """Count the requests of one scenario."""
    recorder = event.recorder
    report.cases += len(recorder.interactions)
    for interaction in recorder.interactions.values():
        report.statuses[interaction.response.status_code if interaction.response else 0] += 1
    for name, checks in recorder.checks.items():
        for check in checks:
            if check.failure_info is None:
                continue
            failure = check.failure_info.failure
            title = f"{event.label}: {check.name}: {failure.title}"
            report.failures[title] += 1
            if title not in report.examples and len(report.examples) < _FAILURES_KEPT:
                answer = recorder.interactions[name].response if name in recorder.interactions else None
                content = answer.content[:500] if answer and answer.content else b""
                report.examples[title] = f"{failure.message}\n{check.failure_info.code_sample}\n{content!r}"


def main() -> int:
    """Run one share and print its report."""
    parser = argparse.ArgumentParser(prog="python -m checks.hostile.contract", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="short texts and batches, POST /api/logs alone")
    parser.add_argument("--mode", choices=("all", "positive", "negative"), default="all")
    parser.add_argument("--seconds", type=float, default=600.0)
    arguments = parser.parse_args()
    report = run(
        arguments.url,
        cases=arguments.cases,
        seed=arguments.seed,
        is_short=arguments.short,
        seconds_max=arguments.seconds,
        mode=arguments.mode,
    )
    sys.stdout.write(report.json())
    return 0


if __name__ == "__main__":
    sys.exit(main())

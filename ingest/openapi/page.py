"""`/docs`: the OpenAPI document as one HTML page without scripts, which loads nothing else."""

import base64
import hashlib
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from ingest.openapi.answers import phrase
from ingest.openapi.curl import commands
from ingest.openapi.document import COMMON
from ingest.openapi.markup import code_block, inline, json_block, link, prose, table
from ingest.openapi.schemas import INT64_MAX, INT64_MIN, Schema, ref

_STYLE: Final = Path(__file__).parent / "docs.css"
_ICON: Final = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M2 4h12M2 8h8M2 12h5' stroke='%231c5fc4' stroke-width='2.5' stroke-linecap='round'/%3E%3C/svg%3E"
)
_SHOWN_SCHEMAS: Final = ("Event", "AttributeValue", "Batch", "Health", "RateOverride", "Problem")


@dataclass(frozen=True, slots=True)
class Style:
    """The page's inline style sheet, and the Content-Security-Policy that allows only this style sheet."""

    text: str
    policy: str


def load_style() -> Style:
    """Read the style sheet."""
    text = _STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Style(text, policy)


def render(document: Schema, origin: str, style: Style) -> str:
    """The page of an OpenAPI document, with commands for the address `origin`."""
    info = document["info"]
    sections = "".join(_tag(document, tag) for tag in document["tags"])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<title>{escape(info["title"])}: HTTP contract</title>\n<link rel="icon" href="{_ICON}">\n'
        f"<style>{style.text}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the contract</a>\n'
        f'<header class="top"><p class="brand">{escape(info["title"])} <span>HTTP contract</span></p>'
        '<p><a href="/">live page</a> <a href="/openapi.json">openapi.json</a></p></header>\n'
        f'<div class="frame">\n{_contents(document)}\n<main id="main" tabindex="-1">\n'
        f"<h1>{escape(info['summary'])}</h1>\n{prose(info['description'])}\n"
        f"{_try(origin)}\n{sections}\n{_any(document)}\n{_codes(document)}\n{_schemas(document)}\n</main>\n</div>\n"
        f"<footer><p>Contract {escape(info['version'])}, with the limits of this ingest's settings. "
        'The same for programs: <a href="/openapi.json">openapi.json</a>.</p></footer>\n</body>\n</html>\n'
    )


def _contents(document: Schema) -> str:
    """The table of contents."""
    parts = [f"<li>{link('try', 'Try it')}</li>"]
    for tag in document["tags"]:
        items = "".join(
            f'<li><a href="#{operation["operationId"]}"><span class="verb">{method.upper()}</span> '
            f"{escape(path)}</a></li>"
            for path, method, operation in _operations(document, tag["name"])
        )
        parts.append(f"<li>{link(tag['name'], tag['name'].capitalize())}<ul>{items}</ul></li>")
    names = "".join(f"<li>{link(f'schema-{name}', name)}</li>" for name in _SHOWN_SCHEMAS)
    parts.append(f"<li>{link('any', 'Any request')}</li>")
    parts.append(f"<li>{link('codes', 'Codes of errors')}</li><li>{link('schemas', 'Schemas')}<ul>{names}</ul></li>")
    return f'<nav aria-label="Contents"><ul>{"".join(parts)}</ul></nav>'


def _try(origin: str) -> str:
    """Commands, each with the status of its answer."""
    items = "".join(
        f'<figure><figcaption>{escape(one.title)} <span class="status" data-class="{one.status // 100}">{one.status}'
        f" {phrase(str(one.status))}</span></figcaption>{code_block(one.line)}</figure>"
        for one in commands(origin)
    )
    return f'<section id="try"><h2>Try it</h2>{items}</section>'


# --- Operations -----------------------------------------------------------------------------------------------------


def _operations(document: Schema, tag: str) -> list[tuple[str, str, Schema]]:
    """(path, method, operation) of a tag."""
    return [
        (path, method, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if tag in operation["tags"]
    ]


def _tag(document: Schema, tag: Schema) -> str:
    name = tag["name"]
    found = "".join(_operation(document, *one) for one in _operations(document, name))
    return f'<section id="{name}"><h2>{name.capitalize()}</h2><p>{inline(tag["description"])}</p>{found}</section>'


def _operation(document: Schema, path: str, method: str, operation: Schema) -> str:
    parts = [
        f'<article id="{operation["operationId"]}"><h3><span class="verb">{method.upper()}</span> '
        f"<code>{escape(path)}</code> <small>{escape(operation['summary'])}</small></h3>",
        prose(operation["description"]),
    ]
    if parameters := operation.get("parameters"):
        rows = [
            (
                f"<code>{escape(one['name'])}</code>",
                f"{one['in']}{', required' if one.get('required') else ''}",
                f"{_values(one['schema'])}{inline(one['description'])}",
            )
            for one in parameters
        ]
        parts.append("<h4>Parameters</h4>" + table(("Name", "In", "What"), rows, label=f"Parameters of {path}"))
    if body := operation.get("requestBody"):
        parts.append(f"<h4>Body</h4><p>{inline(body['description'])}</p>{_content(body['content'])}")
    parts.append(f"<h4>Answers</h4>{_answers(document, operation['responses'])}</article>")
    return "".join(parts)


def _values(schema: Schema) -> str:
    """The allowed values of a parameter."""
    return "".join(f"<code>{escape(word)}</code> " for word in schema.get("enum", ()))


def _content(content: Schema) -> str:
    """Media types, their schemas, and examples."""
    parts = []
    for media_type, one in content.items():
        parts.append(f"<p><code>{escape(media_type)}</code>: {_type(one['schema'])}</p>")
        for example in one.get("examples", {}).values():
            shown = _lines(example["value"]) if "ndjson" in media_type else json_block(example["value"])
            parts.append(f"<details><summary>{escape(example['summary'])}</summary>{shown}</details>")
    return "".join(parts)


def _lines(values: list[Any]) -> str:
    return code_block("\n".join(json.dumps(value, ensure_ascii=False) for value in values))


def _answers(document: Schema, responses: Schema) -> str:
    """The answers, folded. Answers that any request may get are only listed here."""
    parts, common = [], []
    for status, response in responses.items():
        if response == ref(COMMON.get(status, ""), "responses"):
            common.append(status)
            continue
        found = _resolved(document, response)
        names = [name for name in found.get("headers", {}) if name != "X-Request-ID"]
        headers = "".join(f"<code>{escape(name)}</code> " for name in names)
        parts.append(
            f'<details class="answer"><summary><span class="status" data-class="{status[0]}">{status}</span> '
            f"{escape(phrase(status))}</summary>{prose(found['description'])}"
            f"{f'<p>Headers: {headers}</p>' if headers else ''}{_answer_content(found.get('content', {}))}</details>"
        )
    if common:
        parts.append(f"<p>Beside these, as {link('any', 'any request')}: {', '.join(common)}.</p>")
    return "".join(parts)


def _any(document: Schema) -> str:
    """The answers that any request may get."""
    named = {status: document["components"]["responses"][name] for status, name in COMMON.items()}
    return f'<section id="any"><h2>Any request</h2><article>{_answers(document, named)}</article></section>'


def _answer_content(content: Schema) -> str:
    parts = []
    for media_type, one in content.items():
        parts.append(f"<p><code>{escape(media_type)}</code>: {_type(one.get('schema', {}))}</p>")
        parts += [json_block(example["value"]) for example in one.get("examples", {}).values()]
    return "".join(parts)


def _resolved(document: Schema, part: Schema) -> Schema:
    """The target of a reference, or the part itself."""
    if "$ref" not in part:
        return part
    found: Any = document
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    resolved: Schema = found
    return resolved


# --- Codes and schemas ----------------------------------------------------------------------------------------------


def _codes(document: Schema) -> str:
    codes = document["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["oneOf"]
    rows = []
    for code in codes:
        status, _, meaning = code["description"].partition(": ")
        badge = f'<span class="status" data-class="{status[0]}">{status}</span>'
        rows.append((f"<code>{escape(code['const'])}</code>", badge, inline(meaning)))
    shape = {"error": {"code": "…", "message": "…"}}
    return (
        f'<section id="codes"><h2>Codes of errors</h2><p>Every error has one shape:</p>{json_block(shape)}'
        f"{table(('Code', 'Status', 'What to do'), rows, label='Codes of errors')}</section>"
    )


def _schemas(document: Schema) -> str:
    parts = []
    for name in _SHOWN_SCHEMAS:
        schema = document["components"]["schemas"][name]
        examples = "".join(json_block(example) for example in schema.get("examples", ())[-1:])
        parts.append(
            f'<article id="schema-{name}"><h3>{name}</h3>{prose(schema["description"])}'
            f"{_fields(name, schema)}{f'<details><summary>Example</summary>{examples}</details>' if examples else ''}"
            "</article>"
        )
    return f'<section id="schemas"><h2>Schemas</h2>{"".join(parts)}</section>'


def _fields(name: str, schema: Schema) -> str:
    """The fields of an object, or the description of any other type."""
    if "properties" not in schema:
        kinds = schema.get("anyOf") or [schema]
        return "<ul>" + "".join(f"<li>{_type(kind)}</li>" for kind in kinds) + "</ul>"
    rows = [
        (
            f"<code>{escape(field)}</code>" + ("" if field in schema["required"] else " <small>optional</small>"),
            _type(one),
            inline(one.get("description", "")),
        )
        for field, one in schema["properties"].items()
    ]
    return table(("Field", "Type", "What"), rows, label=f"Fields of {name}")


def _type(schema: Schema) -> str:
    """The type of a schema, in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return link(f"schema-{name}", name) if name in _SHOWN_SCHEMAS else escape(name)
    if not schema:
        return "text"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"<code>{escape(str(word))}</code>" for word in schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    words = " or ".join(kinds)
    if "items" in schema:
        words = f"{words} of {_type(schema['items'])}"
    return words + _limits(schema)


def _limits(schema: Schema) -> str:
    """The limits of a type."""
    if "maxLength" in schema:
        return f", {schema.get('minLength', 0):,} to {schema['maxLength']:,} characters"
    if "maxItems" in schema:
        return f", {schema.get('minItems', 0):,} to {schema['maxItems']:,}"
    if "maxProperties" in schema:
        return f", up to {schema['maxProperties']} keys"
    if schema.get("minimum") == INT64_MIN and schema.get("maximum") == INT64_MAX:
        return " of 64 bits"
    if "maximum" in schema:
        return f", {schema['minimum']:,} to {schema['maximum']:,}"
    return ""

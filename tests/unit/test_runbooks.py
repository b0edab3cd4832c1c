"""Each alert and each reason of health has its runbook, and what a runbook quotes exists."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from celery.worker.control import Panel

import pipeline.metrics
import tasks.remote  # noqa: F401 - its commands join those of Celery
from checks.runbooks import act
from checks.runbooks.pages import SCENARIOS
from checks.testbed.processes import ROOT
from ingest.dashboard.view import document_of
from ingest.runbooks.pages import Runbooks
from pipeline.__main__ import main as pipeline_main
from pipeline.__main__ import screen
from pipeline.errors import SettingsError
from pipeline.health.runbooks import runbook_of, runbook_place
from pipeline.names import AlarmCode, LoopName, ProblemCode
from pipeline.settings import Settings
from pipeline.status import SystemStatus
from stack.arguments import parse
from stack.system import System
from support.health import HEALTHY

FOLDER = ROOT / "docs" / "runbooks"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
RUNBOOKS = {name: text for name, text in PAGES.items() if name != "README"}
CODES = [code.value for code in (*ProblemCode, *AlarmCode)]
SECTIONS = ["What it means", "How to see it", "How to know that it is over", "What not to do"]
# Where the words of reasons come from.
WORDS = [
    "pipeline/health/judge.py",
    "pipeline/sink/standstill.py",
    "tasks/standstill.py",
    "pipeline/regulate/steps.py",
    "pipeline/sink/server_check.py",
    "pipeline/sink/session.py",
    "pipeline/sink/jsonl.py",
]
SCENARIO_FILES = sorted((ROOT / "checks" / "runbooks").glob("*scenarios.py"))
# What ./run.sh env prints beside settings.
OTHER_VARIABLES = {"OPERATOR_URL"}


def alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load((ROOT / "monitoring" / "rules" / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in rules["groups"] for rule in group["rules"]]


def subjects(text: str) -> tuple[set[str], set[str]]:
    """The alerts and the reasons that a page is for, by its second line."""
    found = re.search(r"^\*Alerts: (.+)\. Reasons: (.+)\.\*$", text, re.MULTILINE)
    assert found is not None
    names = (set(re.findall(r"`(\w+)`", one)) for one in found.groups())
    return next(names), next(names)


def code_of(text: str) -> Iterator[str]:
    """Everything that a page shows as code: each line of its blocks, and each inline code."""
    for block in re.findall(r"^ *```$\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        yield from (line.strip() for line in block.splitlines())
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^ *```$\n.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL))


CODE = [(name, code) for name, text in PAGES.items() for code in code_of(text)]


def found_in_code(pattern: str) -> set[tuple[str, str]]:
    return {(match[1], name) for name, code in CODE for match in re.finditer(pattern, code)}


def test_each_alert_links_to_a_page_that_is_for_it() -> None:
    for rule in alerts():
        url = rule["annotations"]["runbook_url"]
        found = re.fullmatch(
            r"\{\{ with \$externalLabels\.runbooks }}\{\{ \. }}\{\{ else }}docs/runbooks\{\{ end }}/([a-z-]+)\.md", url
        )
        assert found is not None, url
        assert rule["alert"] in subjects(RUNBOOKS[found[1]])[0]


@pytest.mark.parametrize("code", CODES)
def test_each_reason_of_health_has_a_page_that_is_for_it(code: str) -> None:
    name = runbook_of(code)
    assert name is not None
    assert code in subjects(RUNBOOKS[name])[1]


def test_each_page_is_for_alerts_or_reasons_that_exist() -> None:
    known = {rule["alert"] for rule in alerts()}
    for name, text in RUNBOOKS.items():
        of_alerts, of_reasons = subjects(text)
        assert of_alerts | of_reasons, name
        assert of_alerts <= known
        assert {runbook_of(code) for code in of_reasons} <= {name}
    assert len(known) == sum(len(subjects(text)[0]) for text in RUNBOOKS.values())


def test_the_index_has_each_alert_and_each_reason() -> None:
    rows = re.findall(r"^\| `(\w+)` \| \[([a-z-]+)]\(([a-z-]+)\.md\) \|$", PAGES["README"], re.MULTILINE)
    assert all(shown == page for _, shown, page in rows)
    told = {(subject, page) for subject, _, page in rows}
    assert len(told) == len(rows)
    assert told == {(one, name) for name, text in RUNBOOKS.items() for names in subjects(text) for one in names}


def test_each_loop_that_may_fail_is_told_what_suffers() -> None:
    rows = re.findall(r"^\| (`.*?) \|", RUNBOOKS["loop"], re.MULTILINE)
    assert set(re.findall(r"`([a-z ]+)`", " ".join(rows))) == {loop.value for loop in LoopName}


@pytest.mark.parametrize("name", sorted(RUNBOOKS))
def test_a_page_answers_the_same_questions_in_the_same_order(name: str) -> None:
    titles = re.findall(r"^## (.+)$", RUNBOOKS[name], re.MULTILINE)
    assert [title for title in titles if title in SECTIONS] == SECTIONS
    assert "What to do" in titles or name == "paused"  # which has a section for each reason to pause


def test_a_page_says_that_it_was_acted_out_if_that_can_be_repeated() -> None:
    told = {
        name: re.findall(r"^\*Acted out .*`python -m checks\.runbooks ([a-z-]+)`", text, re.M)
        for name, text in RUNBOOKS.items()
    }
    assert {name: found for name, found in told.items() if found} == {name: [name] for name in SCENARIOS}


def test_each_runbook_is_acted_out() -> None:
    assert set(SCENARIOS) == set(RUNBOOKS)


def test_each_alert_is_looked_for_while_its_condition_is_made() -> None:
    looked_for = {
        node.args[0].value
        for path in SCENARIO_FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "see_alert"
        if isinstance(node.args[0], ast.Constant)
    }
    assert looked_for == {rule["alert"] for rule in alerts()}


def test_a_command_that_does_not_end_fails_its_runbook_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(act, "RUN_SECONDS_MAX", 0.05)
    acted = act.Act(cast(System, None), {})
    with pytest.raises(act.NotActedOutError, match="sleep 60"):
        acted.run("sleep 60")


def test_the_commands_of_celery_in_the_pages_exist() -> None:
    found = found_in_code(r"(?:^inspect|celery -A tasks\.app (?:inspect|control)) ([a-z_]+)")
    found |= found_in_code(r"^control ([a-z]+_[a-z_]+)")
    assert len(found) > 10
    assert {one for one in found if one[0] not in Panel.meta} == set()


def test_the_modules_and_their_commands_in_the_pages_exist(capsys: pytest.CaptureFixture[str]) -> None:
    found = found_in_code(r"\bpython -m ([\w.]+)")
    assert {module for module, _ in found} >= {"pipeline", "tasks.signing"}
    assert {one for one in found if importlib.util.find_spec(one[0]) is None} == set()
    for command, _ in found_in_code(r"\bpython -m pipeline (\w+)"):
        with pytest.raises(SystemExit) as ended:
            pipeline_main([command, "--help"])
        assert ended.value.code == 0, command
    capsys.readouterr()


def test_the_commands_of_run_sh_in_the_pages_exist() -> None:
    for command, _ in found_in_code(r"\./run\.sh ([a-z]+)"):
        assert parse([command]).command == command


def test_the_settings_in_the_pages_exist() -> None:
    found = {(match[1], name) for name, code in CODE if (match := re.fullmatch(r"([A-Z]+(?:_[A-Z]+)+)(?:=.*)?", code))}
    known = {name.upper() for name in Settings.__dataclass_fields__} | OTHER_VARIABLES
    assert len(found) > 30
    assert {one for one in found if one[0] not in known} == set()


def test_the_metrics_in_the_pages_exist() -> None:
    known = {one.name for one in vars(pipeline.metrics).values() if isinstance(one, pipeline.metrics.Declared)}
    found = found_in_code(r"\b(sluice_[a-z_]+)")
    assert found
    assert {one for one in found if one[0].removesuffix("_total") not in known} == set()


def test_the_services_of_compose_in_the_pages_exist() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    found = found_in_code(r"docker compose (?:exec|restart|up -d|logs --tail \d+) ([a-z-]+)")
    assert found
    assert {one for one in found if one[0] not in services} == set()


def test_the_words_of_reasons_in_the_pages_are_those_of_the_program() -> None:
    said = "\n".join(
        node.value
        for path in WORDS
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    quoted = [
        (part.strip(), name)
        for name, text in RUNBOOKS.items()
        for table in re.findall(r"^\| the text says \|.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
        for row in table.splitlines()[2:]
        for phrase in re.findall(r"`([^`]+)`", row.split("|")[1])
        for part in phrase.split("…")
    ]
    assert len(quoted) > 15
    assert [one for one in quoted if one[0] not in said] == []


def test_status_and_the_page_link_to_the_runbook() -> None:
    # Given a problem
    troubled = replace(HEALTHY, is_log_full=True)
    # Then the terminal shows the file, or the page where RUNBOOKS_URL leads to
    assert "    runbook: docs/runbooks/log-full.md" in screen(SystemStatus(troubled)).splitlines()
    at = "https://docs.example/runbooks"
    assert f"    runbook: {at}/log-full" in screen(SystemStatus(troubled, runbooks_url=at)).splitlines()
    # And the live page has its address and its name
    document = document_of(troubled, at)
    assert document["runbooksUrl"] + document["reasons"][0]["runbook"] == f"{at}/log-full"
    assert document_of(troubled)["runbooksUrl"] == "/runbooks/"
    # And a reason of a newer version has none
    assert runbook_place("of_tomorrow", at) is None


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "docs/runbooks", "https://", "https://e.org/a?b", "ftp://e.org"]
)
def test_a_place_that_is_no_web_page_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="RUNBOOKS_URL"):
        Settings(runbooks_url=url)


def test_pages_are_served_with_links_that_lead_somewhere(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# All\n\n[x](one-page.md#what-to-do)\n", encoding="utf-8")
    (tmp_path / "one-page.md").write_text(
        "# A `page`, once\n\n<b>[i](README.md#all) [e](https://e.org) [d](../keys.md#x)\n\n"
        "## What to do\n\n1. first\n\n    | a | b |\n    |---|---|\n    | c | d |\n",
        encoding="utf-8",
    )
    runbooks = Runbooks(tmp_path)
    page = runbooks.page("one-page")
    assert page is not None
    assert page.title == "A `page`, once"
    assert '<h1 id="a-page-once">A <code>page</code>, once</h1>' in page.body
    assert (
        '&lt;b&gt;<a href="/runbooks#all">i</a> <a href="https://e.org">e</a> d (<code>docs/keys.md</code>)'
        in page.body
    )
    assert "<td>d</td>" in page.body
    assert runbooks.page("one-page.md") == runbooks.page("one-page.html") == page
    index = runbooks.page("README")
    assert index is not None
    assert '<a href="/runbooks/one-page#what-to-do">' in index.body
    for name in ("../keys", "other", "", ".md"):
        assert runbooks.page(name) is None


@pytest.mark.parametrize("name", sorted(PAGES))
def test_links_in_a_served_page_are_in_the_folder(name: str) -> None:
    page = Runbooks().page(name)
    assert page is not None
    for address, anchor in re.findall(r'href="/runbooks/?([a-z-]*)(?:#([^"]+))?"', page.body):
        other = Runbooks().page(address or "README")
        assert other is not None
        assert not anchor or f'id="{anchor}"' in other.body

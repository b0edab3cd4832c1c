"""README's table "What do you have?": each row is tried with the text that it tells people to set."""

import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import elasticsearch.helpers
import logging_loki
import pygelf
import pytest
import yaml
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from splunk_handler import SplunkHandler

from checks.testbed.kits import COLLECTOR
from checks.testbed.processes import ROOT
from checks.testbed.waiting import RUN_SECONDS_MAX
from checks.testbed.wire import post
from support.running_ingest import RunningIngest, eventually, running_ingest

# pygelf leaves its connections to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")

EXAMPLE = "localhost:8080"  # ingest, in README
TEXT = "tried as README says"


def rows() -> dict[str, str]:
    """The second column of the table, by the first."""
    _, _, after = (ROOT / "README.md").read_text().partition("| you have | set |\n|---|---|\n")
    lines = after.split("\n\n", 1)[0].splitlines()
    return {have.strip(): text.strip() for have, text in (line.strip("| ").split(" | ", 1) for line in lines)}


class Trial:
    """The settings of one row, for an ingest on another port."""

    def __init__(self, row: str, edge: RunningIngest, folder: Path) -> None:
        self.edge = edge
        self.folder = folder
        self.spans: list[str] = [
            one.replace(EXAMPLE, f"127.0.0.1:{edge.port}") for one in re.findall(r"`([^`]+)`", row)
        ]
        self.text = f"{TEXT} {folder.name}"

    def url(self) -> str:
        [url] = [span for span in self.spans if span.startswith("http://")]
        return url


def with_our_handler(trial: Trial) -> None:
    program = (
        f"import logging\nfrom sluice_client import SluiceHandler\n{trial.spans[0]}\nlogging.error({trial.text!r})"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=RUN_SECONDS_MAX, cwd=ROOT)


def with_opentelemetry(trial: Trial) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for setting in trial.spans:
            if "=" in setting:
                patch.setenv(*setting.split("=", 1))
        exporter = OTLPLogExporter()
    assert exporter._client._timeout == 60, "seconds"
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    provider.get_logger("shop").emit(body=trial.text)
    provider.shutdown()


def with_the_collector(trial: Trial) -> None:
    # `python -m checks.clients` runs it: here, the settings are compared with those that it uses
    said = yaml.safe_load(trial.spans[0])["exporters"]["otlphttp"]
    run = yaml.safe_load((COLLECTOR.folder / "collector.yaml").read_text().replace("@WORK@", "/work"))
    used = run["exporters"]["otlphttp"]
    assert said["retry_on_failure"].items() <= used["retry_on_failure"].items()
    assert said["endpoint"] == used["endpoint"].replace("@PORT@", str(trial.edge.port))
    body = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": {"stringValue": trial.text}}]}]}]}
    assert post(trial.edge.port, json.dumps(body).encode(), path="/v1/logs").status == 200


def with_elasticsearch(trial: Trial) -> None:
    with elasticsearch.Elasticsearch(**yaml.safe_load(trial.spans[-1])) as client:
        elasticsearch.helpers.bulk(client, [{"_index": "logs", "message": trial.text}])


def with_loki(trial: Trial) -> None:
    [setting] = [span for span in trial.spans if span.startswith("url")]
    emit(logging_loki.LokiHandler(**tomllib.loads(setting), tags={"app": "shop"}, version="1"), trial.text)


def with_splunk(trial: Trial) -> None:
    url = urlsplit(trial.url())
    handler = SplunkHandler(url.hostname, url.port, "any", "main", protocol="http", verify=False, flush_interval=0.1)
    emit(handler, trial.text)
    # Others get the whole address
    assert post(trial.edge.port, b'{"event":"also"}', path=url.path).status == 200


def with_gelf(trial: Trial) -> None:
    host, path = trial.spans
    assert host == EXAMPLE.partition(":")[0]
    emit(pygelf.GelfHttpHandler("127.0.0.1", trial.edge.port, path=path, compress=True), trial.text)


def with_an_address(trial: Trial) -> None:
    path = urlsplit(trial.url()).path
    assert post(trial.edge.port, json.dumps({"msg": trial.text}).encode(), path=path, content_type="x/y").status == 202


def with_curl(trial: Trial) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    (trial.folder / "app.log").write_text(json.dumps({"message": trial.text}) + "\nand a line = of & text\n")
    command = [*shlex.split(trial.spans[0]), "--fail", "--silent", "--show-error"]
    subprocess.run(command, check=True, timeout=RUN_SECONDS_MAX, cwd=trial.folder)
    assert any(record.message == "and a line = of & text" for record in trial.edge.records())


def emit(handler: logging.Handler, text: str) -> None:
    handler.emit(logging.makeLogRecord({"name": "shop", "levelno": 40, "levelname": "ERROR", "msg": text}))
    handler.close()


TRIALS: dict[str, Callable[[Trial], None]] = {
    "Python's logging": with_our_handler,
    "OpenTelemetry SDK": with_opentelemetry,
    "OpenTelemetry Collector": with_the_collector,
    "Filebeat": with_elasticsearch,
    "Grafana Alloy": with_loki,
    "clients of Splunk": with_splunk,
    "graypy": with_gelf,
    "Fluent Bit (`http`)": with_an_address,
    "a file": with_curl,
}


@pytest.fixture(scope="module")
def edge() -> Iterator[RunningIngest]:
    with running_ingest() as running:
        yield running


@pytest.mark.parametrize("have", rows())
def test_what_a_row_says_is_stored(have: str, edge: RunningIngest, tmp_path: Path) -> None:
    [trial_of] = [one for beginning, one in TRIALS.items() if have.startswith(beginning)]
    trial = Trial(rows()[have], edge, tmp_path)
    trial_of(trial)
    eventually(lambda: any(record.message == trial.text for record in edge.records()), f"what {have} sent is stored")


def test_every_trial_has_a_row() -> None:
    assert len(rows()) == len(TRIALS)

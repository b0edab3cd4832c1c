"""The clients: the command of each, and its row in docs/protocols."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from checks.clients.judge import May, Situation
from checks.clients.kits import DEBIAN, MAVEN, NPM
from checks.testbed.kits import COLLECTOR, Kit

_LOSES: Final = frozenset({May.LOSE})
# A cut comes after the storing: it loses nothing, although the client does not send the events again.
_REPEATS_NOTHING: Final = {Situation.LIMIT: _LOSES, Situation.RESTART: _LOSES}
_LIMIT: Final = 200.0  # events/s
_LIMIT_OF_ONE_BY_ONE: Final = 20.0  # for a client that waits for the answer to each event


@dataclass(frozen=True)
class Client:
    """One client, and its expected behaviour."""

    name: str
    package: str  # the table shows its version
    kit: Kit
    protocol: str  # label of the metric sluice_ingest_protocol_requests
    form: str  # the protocol's name for readers
    path: str  # of its requests
    page: str  # below docs; its table has a row for this client
    row: str  # the beginning of that row
    command: tuple[str, ...]  # in the kit's folder; {kit}, {work} and {port} are filled in
    config: str = ""  # of a shipper, which reads the file {work}/input.log; empty: a program that logs by itself
    environ: Mapping[str, str] = field(default_factory=dict)  # with the same placeholders
    allowed: Mapping[Situation, frozenset[May]] = field(default_factory=dict)
    limit: float = _LIMIT  # events/s, far below the rate at which it sends

    @property
    def title(self) -> str:
        """The name in the table."""
        return self.row

    def may(self, situation: Situation) -> frozenset[May]:
        """The faults that its own design allows."""
        return self.allowed.get(situation, frozenset())


# Refused events go into another body, with other ids, if new events came in between. So do stored events after a cut.
_REPEATS_WITH_MORE: Final = {Situation.CUT: frozenset({May.DOUBLE})}

# The settings that docs/protocols/otlp.md recommends, and a batch size below the limit.
_OTLP: Final = {
    "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://127.0.0.1:{port}/v1/logs",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "60000",
    "OTEL_SERVICE_NAME": "shop",
    "OTEL_BLRP_MAX_QUEUE_SIZE": "8192",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "100",
    "OTEL_BLRP_SCHEDULE_DELAY": "200",
    "OTEL_BLRP_EXPORT_TIMEOUT": "60000",
}


def _node(program: str, *arguments: str) -> tuple[str, ...]:
    return ("node", f"{program}.mjs", *arguments)


def _java(program: str) -> tuple[str, ...]:
    return ("java", "-Xmx256m", "-cp", "target/classes:{classpath}", program)


CLIENTS: Final = (
    Client(
        "otel-js-json", "@opentelemetry/exporter-logs-otlp-http", NPM, "otlp", "OTLP, JSON", "/v1/logs",
        "protocols/otlp.md", "SDK for JavaScript", _node("otlp", "http"), environ=_OTLP,
    ),
    Client(
        "otel-js-protobuf", "@opentelemetry/exporter-logs-otlp-proto", NPM, "otlp", "OTLP, protobuf", "/v1/logs",
        "protocols/otlp.md", "SDK for JavaScript", _node("otlp", "proto"), environ=_OTLP,
    ),
    Client(
        "otel-java", "opentelemetry-exporter-otlp", MAVEN, "otlp", "OTLP, protobuf", "/v1/logs",
        "protocols/otlp.md", "SDK for Java", _java("Otlp"),
        environ=_OTLP | {
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
        },
    ),
    Client(
        "otel-collector", "go.opentelemetry.io/collector/exporter/otlphttpexporter", COLLECTOR, "otlp",
        "OTLP, protobuf", "/v1/logs", "protocols/otlp.md", "OpenTelemetry Collector, `otlphttp`",
        ("./collector", "--config", "{work}/collector.yaml"), config="collector.yaml",
    ),
    Client(
        "elasticsearch-js", "@elastic/elasticsearch", NPM, "elasticsearch", "bulk", "/_bulk",
        "protocols/elasticsearch.md", "@elastic/elasticsearch", _node("elasticsearch"),
    ),
    Client(
        "winston-elasticsearch", "winston-elasticsearch", NPM, "elasticsearch", "bulk", "/_bulk",
        "protocols/elasticsearch.md", "winston-elasticsearch", _node("winston-elasticsearch"),
    ),
    Client(
        "pino-elasticsearch", "pino-elasticsearch", NPM, "elasticsearch", "bulk", "/_bulk",
        "protocols/elasticsearch.md", "pino-elasticsearch", _node("pino-elasticsearch"), allowed=_REPEATS_NOTHING,
    ),
    Client(
        "rsyslog", "rsyslog", DEBIAN, "elasticsearch", "bulk", "/_bulk",
        "protocols/elasticsearch.md", "rsyslog `omelasticsearch`",
        ("./rsyslogd", "-n", "-f", "{work}/rsyslog.conf", "-i", "{work}/pid", "-M", "{kit}/rsyslog"),
        config="rsyslog.conf", environ={"LD_LIBRARY_PATH": "{kit}/lib"}, allowed=_REPEATS_NOTHING,
    ),
    Client(
        "pino-loki", "pino-loki", NPM, "loki", "Loki, JSON", "/loki/api/v1/push",
        "protocols/loki.md", "pino-loki 3", _node("pino-loki"), allowed=_REPEATS_NOTHING,
    ),
    Client(
        "winston-loki", "winston-loki", NPM, "loki", "Loki, protobuf", "/loki/api/v1/push",
        "protocols/loki.md", "winston-loki 6", _node("winston-loki"), allowed=_REPEATS_WITH_MORE,
    ),
    Client(
        "loki4j", "loki-logback-appender", MAVEN, "loki", "Loki, JSON", "/loki/api/v1/push",
        "protocols/loki.md", "loki-logback-appender (Logback)", _java("Logback"),
    ),
    Client(
        "syslog-ng", "syslog-ng-core", DEBIAN, "lines", "lines", "/api/logs/lines",
        "protocols.md", "syslog-ng, `http()`",
        (
            "./syslog-ng", "-F", "--no-caps", "-f", "{work}/syslog-ng.conf", "--module-path={kit}/syslog-ng-modules",
            "-R", "{work}/persist", "-p", "{work}/pid", "-c", "{work}/control",
        ),
        config="syslog-ng.conf", environ={"LD_LIBRARY_PATH": "{kit}/lib"},
    ),
    Client(
        "log4j2", "log4j-core", MAVEN, "lines", "lines", "/api/logs/lines",
        "protocols.md", "Log4j 2, `Http` appender", _java("Log4j"),
        allowed=_REPEATS_NOTHING, limit=_LIMIT_OF_ONE_BY_ONE,
    ),
    Client(
        "winston-http", "winston", NPM, "lines", "lines", "/api/logs/lines",
        "protocols.md", "winston, `Http` transport", _node("winston-http"), allowed=_REPEATS_NOTHING,
    ),
    Client(
        "pino-http-send", "pino-http-send", NPM, "lines", "lines", "/api/logs/lines",
        "protocols.md", "pino-http-send", _node("pino-http-send"),
    ),
    Client(
        "logtail-js", "@logtail/node", NPM, "lines", "lines", "/api/logs/lines",
        "protocols.md", "Logtail for Node", _node("logtail"), allowed=_REPEATS_WITH_MORE,
    ),
)  # fmt: skip

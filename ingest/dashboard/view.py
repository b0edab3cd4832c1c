"""The content of the page without the charts: the snapshot and the verdict of the health answer, from memory. Pure."""

from dataclasses import dataclass
from typing import Any

from ingest.health import HealthSources, health_inputs
from pipeline.health.judge import judge
from pipeline.health.snapshot import HealthInputs
from pipeline.settings import page_urls_of
from pipeline.status import inputs_document


@dataclass(frozen=True, slots=True)
class ViewSources:
    """The inputs of the view."""

    health: HealthSources
    process: str
    viewers: int


def page_document(sources: ViewSources) -> dict[str, Any]:
    """The state of the system for the page, without its control events."""
    own = {"process": sources.process, "viewers": sources.viewers}
    settings = sources.health.settings
    links = [{"name": name, "url": url} for name, url in page_urls_of(settings.page_urls)]
    return (
        document_of(health_inputs(sources.health), settings.runbooks_url)
        | own
        | {"links": links, "hasLongCharts": bool(settings.prometheus_url)}
    )


def document_of(inputs: HealthInputs, runbooks_url: str = "") -> dict[str, Any]:
    """The same from a snapshot. Without a RUNBOOKS_URL, the links lead to ingest's own copy."""
    return inputs_document(inputs, judge(inputs)) | {
        "runbooksUrl": f"{runbooks_url.rstrip('/') or '/runbooks'}/",
        "controllerPeriodSeconds": inputs.controller_period,
        "eventSink": inputs.sink.value,
        "storeIsAway": inputs.store_problem is not None,
    }

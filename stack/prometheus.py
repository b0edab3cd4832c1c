"""Prometheus' configuration for a system on this machine; containers use monitoring/prometheus.yml."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from stack.servers import ROOT

SCRAPE_SECONDS: Final = 5  # the period of the control loop


def prometheus_config(
    targets: Mapping[str, Sequence[str]], scrape_seconds: int, *, runbooks: str, https: Collection[str] = ()
) -> str:
    """Jobs with their targets, as host:port, and the rules. JSON is valid YAML, and quotes any path correctly.

    Alerts link to pages below the URL `runbooks`. The jobs in `https` have a certificate for another name than these.
    """
    tls = {"scheme": "https", "tls_config": {"insecure_skip_verify": True}}
    return json.dumps(
        {
            "global": {
                "scrape_interval": f"{scrape_seconds}s",
                "evaluation_interval": f"{scrape_seconds}s",
                "external_labels": {"runbooks": runbooks},
            },
            "rule_files": [str(ROOT / "monitoring" / "rules" / "*.yml")],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(places)}]} | (tls if job in https else {})
                for job, places in targets.items()
            ],
        },
        indent=2,
    )

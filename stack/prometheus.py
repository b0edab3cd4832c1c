"""Prometheus' configuration for a system on this machine; containers use monitoring/prometheus.yml."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from stack.servers import LOOPBACK, ROOT

SCRAPE_SECONDS: Final = 5  # the period of the control loop


def prometheus_config(ports: Mapping[str, Sequence[int]], scrape_seconds: int, *, https: Collection[str] = ()) -> str:
    """Jobs with their ports, and the rules. JSON is valid YAML, and quotes any path correctly.

    The jobs in `https` have a certificate, which is for another name than the loopback address.
    """
    tls = {"scheme": "https", "tls_config": {"insecure_skip_verify": True}}
    return json.dumps(
        {
            "global": {"scrape_interval": f"{scrape_seconds}s", "evaluation_interval": f"{scrape_seconds}s"},
            "rule_files": [str(ROOT / "monitoring" / "rules" / "*.yml")],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"{LOOPBACK}:{port}" for port in numbers]}]}
                | (tls if job in https else {})
                for job, numbers in ports.items()
            ],
        },
        indent=2,
    )

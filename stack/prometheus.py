"""Prometheus' configuration for a system on this machine; containers use monitoring/prometheus.yml."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from stack.servers import LOOPBACK, ROOT

SCRAPE_SECONDS: Final = 5  # the period of the control loop


def prometheus_config(ports: Mapping[str, Sequence[int]], scrape_seconds: int) -> str:
    """Jobs with their ports, and the rules. JSON is valid YAML, and quotes any path correctly."""
    return json.dumps(
        {
            "global": {"scrape_interval": f"{scrape_seconds}s", "evaluation_interval": f"{scrape_seconds}s"},
            "rule_files": [str(ROOT / "monitoring" / "rules" / "*.yml")],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"{LOOPBACK}:{port}" for port in numbers]}]}
                for job, numbers in ports.items()
            ],
        },
        indent=2,
    )

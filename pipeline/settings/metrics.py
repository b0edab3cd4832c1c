"""Metrics: where they are served."""

from dataclasses import dataclass

from pipeline.settings.field import setting


@dataclass(frozen=True, kw_only=True)
class MetricsSettings:
    """Addresses for Prometheus, and what is measured rarely."""

    metrics_host: str = setting(
        "127.0.0.1",
        "Address on which workers, and ingest processes with a port of their own, serve metrics",
        when="0.0.0.0 in a container: Prometheus runs in another one",
        is_name=True,
    )
    worker_metrics_port: int = setting(
        0,
        "Port on which a worker serves metrics; the control worker also serves those of the whole system; 0: none",
        low=0,
        high=65535,
        when="always with Prometheus. Each worker of a machine needs its own port",
    )
    measure_seconds: float = setting(
        15.0,
        "Period in which size, connections and open dead letters are read from PostgreSQL",
        low=1,
        high=50,
        when="rarely. These metrics may be this old",
    )
    watched_paths: str = setting(
        "",
        "Folders, separated by commas; the control worker shows the free space of their disks",
        when="the control worker can see the disks of the servers",
    )

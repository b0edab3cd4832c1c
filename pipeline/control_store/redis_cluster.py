"""Finds out at the start whether REDIS_URL is a Redis Cluster: its errors come one by one, and later."""

from pipeline.control_store.connection import ControlConnection
from pipeline.errors import SettingsError, StoreUnavailableError
from pipeline.redis_link import NO_CLUSTER
from pipeline.settings import Settings


def refuse_cluster(settings: Settings) -> None:
    """Raise SettingsError if it is one. A server that does not answer may be unavailable for now, and is no error."""
    try:
        info = ControlConnection(settings).call("INFO", "server")
    except StoreUnavailableError:
        return
    if info.get("redis_mode") == "cluster":
        raise SettingsError(f"REDIS_URL {NO_CLUSTER}")

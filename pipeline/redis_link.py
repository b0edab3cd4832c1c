"""Links to Redis: TLS as redis-py, Celery's transport and Flower all take it, and what an error means."""

from typing import Any, Final
from urllib.parse import urlsplit

from redis import exceptions

from pipeline.settings import Settings

NO_CLUSTER: Final = "is a Redis Cluster, which Sluice can't use: its scripts need all keys on one server"
_CONNECTING: Final = " connecting to "  # part of redis-py's message
_IN_HANDSHAKE: Final = "Timeout connecting"  # likewise
# MovedError is an AskError.
_OF_A_CLUSTER: Final = (exceptions.AskError, exceptions.ClusterCrossSlotError, exceptions.ClusterDownError)


def tls_options(settings: Settings, url: str) -> dict[str, Any]:
    """The arguments of a connection for TLS; empty without TLS.

    redis-py verifies a server by default, Celery's transport doesn't. So both get all arguments.
    """
    if urlsplit(url).scheme != "rediss":
        return {}
    files, is_verified = settings.redis_tls, not settings.redis_tls_unverified
    options = {
        "ssl_ca_certs": files.ca,
        "ssl_certfile": files.certificate,
        "ssl_keyfile": files.key or files.certificate,
    }
    return {
        "ssl_cert_reqs": "required" if is_verified else "none",
        "ssl_check_hostname": is_verified,
        **{name: path for name, path in options.items() if path},
    }


def explained(error: Exception, settings: Settings, name: str) -> str:
    """What an error of redis-py means and what to do; `name` is the setting of the URL, as event_log_url."""
    setting = name.upper()
    if isinstance(error, exceptions.AuthenticationError):
        return f"it refuses the user or the password of {setting} ({error})"
    if isinstance(error, exceptions.NoPermissionError):
        return f"the user of {setting} has no right for this ({error})"
    if isinstance(error, _OF_A_CLUSTER):
        return f"{setting} {NO_CLUSTER} ({error})"
    url = urlsplit(getattr(settings, name))
    if url.scheme == "rediss" and isinstance(error, exceptions.TimeoutError) and _IN_HANDSHAKE in str(error):
        return f"{error}, or it does not speak TLS there"  # it waits for the end of a command
    # redis-py raises its own error while it handles OpenSSL's.
    openssl_error, in_handshake = error.__cause__ or error.__context__, _CONNECTING in str(error)
    return settings.redis_tls.explain(openssl_error, url.hostname or "", in_handshake=in_handshake) or str(error)

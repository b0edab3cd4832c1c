"""Links to Redis: TLS and Sentinel as redis-py, Celery's transport and Flower all take them; what an error means."""

import re
from typing import Any, Final
from urllib.parse import quote, urlsplit

from redis import ConnectionPool, exceptions
from redis.sentinel import MasterNotFoundError

from pipeline.errors import SettingsError
from pipeline.redis_sentinel import SENTINEL_SECONDS_MAX, SentinelLogin, sentinel_pool
from pipeline.settings import Settings
from pipeline.urls import has_redis_tls, query_of, sentinel_url

NO_CLUSTER: Final = "is a Redis Cluster, which Sluice can't use: its scripts need all keys on one server"
_CONNECTING: Final = " connecting to "  # part of redis-py's message
_IN_HANDSHAKE: Final = "Timeout connecting"  # likewise
_UNKNOWN_OPTION: Final = re.compile(r"unexpected keyword argument '(\w+)'")
_NO_MORE_CLIENTS: Final = "max number of clients reached"  # redis-py has no class for this answer
# Errors that a server sends. Some are no ResponseError in redis-py, since they end the connection.
_ANSWERS: Final = (
    exceptions.ResponseError, exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.BusyLoadingError
)  # fmt: skip
# MovedError is an AskError.
_OF_A_CLUSTER: Final = (exceptions.AskError, exceptions.ClusterCrossSlotError, exceptions.ClusterDownError)


def tls_options(settings: Settings, url: str) -> dict[str, Any]:
    """The arguments of a connection for TLS; empty without TLS.

    redis-py verifies a server by default, Celery's transport doesn't. So both get all arguments.
    """
    if not has_redis_tls(url):
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


def make_pool(settings: Settings, name: str, **options: Any) -> ConnectionPool:
    """Connections to the server of the URL in a setting, or to the master that its sentinels name.

    `name` is that setting, as event_log_url. Raises SettingsError if redis-py does not take an option of the URL.
    """
    url = getattr(settings, name)
    address, tls = sentinel_url(url), tls_options(settings, url)
    if address is None:
        try:
            pool = ConnectionPool.from_url(url, **options, **tls)
            if query_of(url):
                pool.connection_class(**pool.connection_kwargs)  # checks them, and does not connect
        except (TypeError, ValueError) as error:
            unknown = unknown_option(error)
            what = f"the option {unknown}, which its client does not take" if unknown else f"a wrong option: {error}"
            raise SettingsError(f"{name.upper()} has {what}") from error
        return pool
    return sentinel_pool(
        address.master,
        address.sentinels,
        sentinel_options(settings, url),
        ssl=bool(tls),
        db=address.database,
        username=address.user,
        password=address.password,
        **options,
        **tls,
    )


def sentinel_options(settings: Settings, url: str) -> dict[str, Any]:
    """The arguments of connections to the sentinels of a URL, which use TLS if Redis does."""
    options: dict[str, Any] = {"socket_connect_timeout": SENTINEL_SECONDS_MAX, "socket_timeout": SENTINEL_SECONDS_MAX}
    tls = tls_options(settings, url)
    if tls:
        options |= {"ssl": True, **tls}
    if settings.redis_sentinel_password:
        login = SentinelLogin(settings.redis_sentinel_user or None, settings.redis_sentinel_password)
        options["credential_provider"] = login
    return options


def broker_options(settings: Settings) -> tuple[str, dict[str, Any]]:
    """The URL of Celery's broker, and its transport options that depend on the URL.

    Kombu's own URL for several sentinels repeats the password in each part, and `inspect stats` would show it. So the
    URL has one sentinel, and the options have all.
    """
    address = sentinel_url(settings.redis_url)
    if address is None:
        return settings.redis_url, {}
    host, port = address.sentinels[0]
    login = f"{quote(address.user or '', safe='')}:{quote(address.password or '', safe='')}@"
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"sentinel://{login if login != ':@' else ''}{place}/{address.database}", {
        "master_name": address.master,
        "sentinels": [list(one) for one in address.sentinels],
        "sentinel_kwargs": sentinel_options(settings, settings.redis_url),
    }


def unknown_option(error: Exception) -> str | None:
    """The option of a URL that a client does not take, by its error; None if that is another one."""
    found = _UNKNOWN_OPTION.search(str(error))
    return found and found[1]


def has_answered(error: Exception) -> bool:
    """Whether a server has sent this error of redis-py: then it runs, and can be reached."""
    return isinstance(error, _ANSWERS) or _NO_MORE_CLIENTS in str(error)


def failure_text(error: Exception, settings: Settings, name: str) -> str:
    """The message of a call that failed: which server does not answer, or refuses it, and why. Health reads it.

    `name` is the setting of the URL: redis_url or event_log_url.
    """
    server = "the control store" if name == "redis_url" else "the event log"
    does = "refuses" if has_answered(error) else f"does not answer at {name.upper()}"
    return f"{server} (Redis) {does}: {explained(error, settings, name)}"


def explained(error: Exception, settings: Settings, name: str) -> str:
    """What an error of redis-py means and what to do; `name` is the setting of the URL, as event_log_url."""
    setting = name.upper()
    if isinstance(error, exceptions.AuthenticationError):
        return f"the user or the password of {setting} is not accepted ({error})"
    if isinstance(error, exceptions.NoPermissionError):
        return f"the user of {setting} has no right for this ({error})"
    if isinstance(error, _OF_A_CLUSTER):
        return f"{setting} {NO_CLUSTER} ({error})"
    url = getattr(settings, name)
    if isinstance(error, MasterNotFoundError):
        why = _explained_tls(error.__cause__, settings, "")
        return f"{error}: {why}" if why else str(error)
    if has_redis_tls(url) and isinstance(error, exceptions.TimeoutError) and _IN_HANDSHAKE in str(error):
        return f"{error}, or it does not speak TLS there"  # it waits for the end of a command
    host = "" if sentinel_url(url) else urlsplit(url).hostname
    return _explained_tls(error, settings, host or "") or str(error)


def _explained_tls(error: BaseException | None, settings: Settings, host: str) -> str | None:
    """What an error of redis-py means if it is one of TLS. It is raised while redis-py handles OpenSSL's."""
    if error is None:
        return None
    openssl_error = error.__cause__ or error.__context__
    return settings.redis_tls.explain(openssl_error, host, in_handshake=_CONNECTING in str(error))

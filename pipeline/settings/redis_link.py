"""How Sluice connects to Redis: TLS and Sentinel."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pipeline.settings.field import setting
from pipeline.settings.servers import ServerSettings
from pipeline.tls import TlsFiles
from pipeline.urls import SENTINEL_SCHEMES, has_redis_tls, hosts_of, path_of, query_of, scheme_of, sentinel_url

_DATABASE: Final = re.compile(r"/?|/[0-9]{1,5}/?")


@dataclass(frozen=True, kw_only=True)
class RedisLinkSettings(ServerSettings):
    """What links to Redis need beside REDIS_URL and EVENT_LOG_URL."""

    redis_ca_file: str = setting(
        "",
        "rediss://, for both servers: PEM file with the CA that signed their certificates, beside the CAs of this "
        "machine",
        when="the certificates of Redis are signed by a CA of your own",
    )
    redis_cert_file: str = setting(
        "",
        "rediss://: PEM file with the certificate of Sluice, for servers that want one",
        when="Redis has `tls-auth-clients yes`, its default",
    )
    redis_key_file: str = setting(
        "",
        "rediss://: PEM file with the key of REDIS_CERT_FILE, without a passphrase; empty: it is in REDIS_CERT_FILE",
        when="together with REDIS_CERT_FILE",
    )
    redis_tls_unverified: bool = setting(
        False,
        "rediss://: accept any certificate. Then TLS protects from reading along, not from a server that pretends to "
        "be Redis",
        when="never in production",
    )

    redis_sentinel_user: str = setting(
        "",
        "redis+sentinel://: user of the sentinels; those of Redis are in the URL",
        when="the sentinels have users",
        is_name=True,
    )
    redis_sentinel_password: str = setting(
        "",
        "redis+sentinel://: password of the sentinels",
        when="the sentinels have `requirepass`, or users",
        is_secret=True,
    )

    @property
    def redis_tls(self) -> TlsFiles:
        """The files for TLS with Redis, for URLs with rediss://."""
        return TlsFiles("REDIS", self.redis_ca_file, self.redis_cert_file, self.redis_key_file)


def redis_link_problems(settings: RedisLinkSettings) -> Iterator[str]:
    """Values that contradict each other in the links to Redis."""
    urls = [name for name in ("redis_url", "event_log_url") if getattr(settings, name).startswith("redis")]
    for name in urls:
        url = getattr(settings, name)
        options = sorted(option for option in query_of(url) if "ssl" in option)
        if options:
            yield (
                f"{name.upper()} has {' and '.join(options)}, which Celery and redis-py read in different ways: use "
                "REDIS_CA_FILE, REDIS_CERT_FILE, REDIS_KEY_FILE or REDIS_TLS_UNVERIFIED"
            )
            continue
        try:
            address = sentinel_url(url)
        except ValueError as error:
            yield f"{name.upper()} {error}"
            continue
        if address is None and not _DATABASE.fullmatch(path_of(url)):
            yield f"{name.upper()} names the database by something else than a number, as in redis://host:6379/0"
        if address is None and len(hosts_of(url)) > 1:
            yield (
                f"{name.upper()} names several servers, and Sluice uses one: with Sentinel the URL begins with "
                "redis+sentinel:// (docs/links.md)"
            )
    fields = ("redis_ca_file", "redis_cert_file", "redis_key_file", "redis_tls_unverified")
    given = [name.upper() for name in fields if getattr(settings, name)]
    sentinel_fields = [name for name in ("redis_sentinel_user", "redis_sentinel_password") if getattr(settings, name)]
    if sentinel_fields and not any(scheme_of(getattr(settings, name)) in SENTINEL_SCHEMES for name in urls):
        yield (
            f"{' and '.join(name.upper() for name in sentinel_fields)} is set, and neither REDIS_URL nor EVENT_LOG_URL "
            "begins with redis+sentinel:// or rediss+sentinel://"
        )
    if settings.redis_sentinel_user and not settings.redis_sentinel_password:
        yield "REDIS_SENTINEL_USER needs REDIS_SENTINEL_PASSWORD (or REDIS_SENTINEL_PASSWORD_FILE)"
    if any(has_redis_tls(getattr(settings, name)) for name in urls):
        try:
            settings.redis_tls.context()
        except ValueError as error:
            yield str(error)
    elif given:
        yield f"{', '.join(given)} only works with TLS, and neither REDIS_URL nor EVENT_LOG_URL begins with rediss://"

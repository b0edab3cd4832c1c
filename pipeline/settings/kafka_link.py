"""How Sluice connects to Kafka: TLS, users and access tokens."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from pipeline.account import is_loopback
from pipeline.secrets import url_problem
from pipeline.settings.field import setting
from pipeline.settings.servers import ServerSettings
from pipeline.tls import TlsFiles
from pipeline.urls import hosts_of, scheme_of

_OAUTH: Final = "OAUTHBEARER"
_TOKEN_URL: Final = re.compile(r"https?://(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?(?:/[!-\"$-~]*)?")
# RFC 7628, section 3.1
_EXTENSION: Final = re.compile(r"([A-Za-z]+)=([\x20-\x7e]+)")


@dataclass(frozen=True, kw_only=True)
class KafkaLinkSettings(ServerSettings):
    """What links to Kafka need beside EVENT_LOG_URL."""

    kafka_ca_file: str = setting(
        "",
        "kafka+ssl://: PEM file with the CA that signed the brokers' certificates; empty: the CAs of this machine",
        when="the brokers' certificates are signed by a CA of your own",
    )
    kafka_cert_file: str = setting(
        "",
        "kafka+ssl://: PEM file with the certificate of Sluice, for brokers that want one",
        when="the brokers have ssl.client.auth=required",
    )
    kafka_key_file: str = setting(
        "",
        "kafka+ssl://: PEM file with the key of KAFKA_CERT_FILE, without a passphrase; empty: it is in KAFKA_CERT_FILE",
        when="together with KAFKA_CERT_FILE",
    )
    kafka_sasl_mechanism: str = setting(
        "",
        "How Sluice authenticates itself to the brokers; empty: it doesn't, or by its certificate",
        choices=("", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"),
        when="the brokers have a listener with SASL. PLAIN sends the password, and OAUTHBEARER an access token, so "
        "they need kafka+ssl://",
    )
    kafka_user: str = setting(
        "",
        "User for PLAIN and SCRAM",
        when="together with KAFKA_SASL_MECHANISM; docs/links.md lists its rights",
        is_name=True,
    )
    kafka_password: str = setting(
        "", "Password of KAFKA_USER", when="together with KAFKA_SASL_MECHANISM", is_secret=True
    )
    kafka_oauth_url: str = setting(
        "",
        "OAUTHBEARER: the token endpoint of the identity provider, https://…; access tokens come by client credentials",
        when="KAFKA_SASL_MECHANISM=OAUTHBEARER, unless another program renews KAFKA_OAUTH_TOKEN_FILE",
    )
    kafka_oauth_client_id: str = setting(
        "",
        "OAUTHBEARER: id of the client at KAFKA_OAUTH_URL",
        when="together with KAFKA_OAUTH_URL",
        is_name=True,
    )
    kafka_oauth_client_secret: str = setting(
        "", "OAUTHBEARER: secret of KAFKA_OAUTH_CLIENT_ID", when="together with KAFKA_OAUTH_URL", is_secret=True
    )
    kafka_oauth_scope: str = setting(
        "",
        "OAUTHBEARER: scopes to request at KAFKA_OAUTH_URL, separated by spaces; empty: the client's defaults",
        when="the identity provider or the brokers want one",
        is_name=True,
    )
    kafka_oauth_audience: str = setting(
        "", "OAUTHBEARER: audience to request at KAFKA_OAUTH_URL", when="the identity provider wants one (Auth0)"
    )
    kafka_oauth_extensions: str = setting(
        "",
        "OAUTHBEARER: extensions for the brokers: logicalCluster=lkc-1,identityPoolId=pool-1",
        when="the brokers want them (Confluent Cloud)",
    )
    kafka_oauth_ca_file: str = setting(
        "",
        "OAUTHBEARER: PEM file with the CA that signed the certificate of KAFKA_OAUTH_URL; empty: the CAs of this "
        "machine",
        when="that certificate is signed by a CA of your own",
    )
    kafka_oauth_token_file: str = setting(
        "",
        "OAUTHBEARER: file with an access token that another program renews, in place of KAFKA_OAUTH_URL; read for "
        "each connection",
        when="access tokens come in another way than by client credentials, as from Kubernetes or an agent of a cloud",
    )

    @property
    def kafka_tls(self) -> TlsFiles | None:
        """The files for TLS with Kafka; None: without TLS."""
        if scheme_of(self.event_log_url) != "kafka+ssl":
            return None
        return TlsFiles("KAFKA", self.kafka_ca_file, self.kafka_cert_file, self.kafka_key_file)


def kafka_link_problems(settings: KafkaLinkSettings) -> Iterator[str]:
    """Values that contradict each other in the link to Kafka."""
    files = settings.kafka_tls
    if files is None:
        given = [name for name in ("kafka_ca_file", "kafka_cert_file", "kafka_key_file") if getattr(settings, name)]
        if given:
            names = ", ".join(name.upper() for name in given)
            yield f"{names} only works with TLS, and EVENT_LOG_URL does not begin with kafka+ssl://"
    else:
        try:
            files.context()
        except ValueError as error:
            yield str(error)
    yield from _kafka_user_problems(settings)
    yield from _kafka_oauth_problems(settings)
    mechanism = settings.kafka_sasl_mechanism
    readable = {"PLAIN": "password", _OAUTH: "access token"}.get(mechanism)
    if readable and files is None and not _is_on_loopback(settings.event_log_url):
        yield (
            f"KAFKA_SASL_MECHANISM={mechanism} would send the {readable} unencrypted: EVENT_LOG_URL must begin with "
            "kafka+ssl://, or use SCRAM-SHA-512"
        )


def _kafka_user_problems(settings: KafkaLinkSettings) -> Iterator[str]:
    mechanism, is_given = settings.kafka_sasl_mechanism, settings.kafka_user or settings.kafka_password
    if mechanism == _OAUTH:
        if is_given:
            yield (
                "KAFKA_USER and KAFKA_PASSWORD are for PLAIN and SCRAM: for OAUTHBEARER they are "
                "KAFKA_OAUTH_CLIENT_ID and KAFKA_OAUTH_CLIENT_SECRET"
            )
    elif mechanism and not (settings.kafka_user and settings.kafka_password):
        yield f"KAFKA_SASL_MECHANISM={mechanism} needs KAFKA_USER and KAFKA_PASSWORD (or KAFKA_PASSWORD_FILE)"
    elif not mechanism and is_given:
        yield "KAFKA_USER or KAFKA_PASSWORD is set, and KAFKA_SASL_MECHANISM is not"


def _kafka_oauth_problems(settings: KafkaLinkSettings) -> Iterator[str]:
    """Values that contradict each other for OAUTHBEARER."""
    given = [field.name for field in dataclasses.fields(settings) if field.name.startswith("kafka_oauth_")]
    given = [name for name in given if getattr(settings, name)]
    if settings.kafka_sasl_mechanism != _OAUTH:
        if given:
            yield f"{', '.join(map(str.upper, given))} only works with KAFKA_SASL_MECHANISM=OAUTHBEARER"
        return
    try:
        oauth_extensions_of(settings.kafka_oauth_extensions)
    except ValueError as error:
        yield f"KAFKA_OAUTH_EXTENSIONS: {error}"
    if settings.kafka_oauth_token_file:
        others = [name.upper() for name in given if name not in ("kafka_oauth_token_file", "kafka_oauth_extensions")]
        if others:
            yield f"KAFKA_OAUTH_TOKEN_FILE is set, so nobody requests an access token: leave {', '.join(others)} out"
        return
    if not (settings.kafka_oauth_url and settings.kafka_oauth_client_id and settings.kafka_oauth_client_secret):
        yield (
            "KAFKA_SASL_MECHANISM=OAUTHBEARER needs KAFKA_OAUTH_URL, KAFKA_OAUTH_CLIENT_ID and "
            "KAFKA_OAUTH_CLIENT_SECRET (or KAFKA_OAUTH_CLIENT_SECRET_FILE), or KAFKA_OAUTH_TOKEN_FILE"
        )
    if settings.kafka_oauth_url:
        yield from _token_url_problems(settings.kafka_oauth_url)
    if settings.kafka_oauth_ca_file:
        try:
            TlsFiles("KAFKA_OAUTH", settings.kafka_oauth_ca_file, "", "").context()
        except ValueError as error:
            yield str(error)


def _token_url_problems(url: str) -> Iterator[str]:
    """What is wrong with KAFKA_OAUTH_URL, without any part of a password in it."""
    problem = url_problem(url, ("https", "http"))
    if problem is None and not _TOKEN_URL.fullmatch(url):
        problem = "is not of the form https://host/path: the client is KAFKA_OAUTH_CLIENT_ID"
    if problem is not None:
        yield f"KAFKA_OAUTH_URL {problem}"
    elif scheme_of(url) == "http" and not _is_on_loopback(url):
        yield "KAFKA_OAUTH_URL would send the secret unencrypted: it must begin with https://"


def _is_on_loopback(url: str) -> bool:
    """Whether all hosts of a URL are this machine."""
    hosts = (urlsplit(f"//{host}").hostname or "" for host in hosts_of(url))
    return all(is_loopback(host) for host in hosts)


def oauth_extensions_of(text: str) -> dict[str, str]:
    """The extensions of KAFKA_OAUTH_EXTENSIONS. Raises ValueError."""
    found = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        match = _EXTENSION.fullmatch(part)
        if match is None or match[1] == "auth":
            raise ValueError(f"{part!r} is no extension: it must be NAME=VALUE, the name of letters and not auth")
        found[match[1]] = match[2]
    return found

"""A Kafka of the tests with listeners for TLS and SASL beside its plain one, users, and their rights."""

import dataclasses
import hashlib
import os
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from checks.testbed.waiting import eventually
from pipeline.clock import SystemClock
from pipeline.errors import LogMisconfiguredError, LogUnavailableError
from pipeline.log.kafka_encoding import uint
from pipeline.log.kafka_python import API_VERSION
from pipeline.log.kafka_wire import KafkaWire
from stack.servers import LOOPBACK, Server, free_port
from support.certificates import Authority, Certificate
from support.token_endpoint import SCOPE

USER, PASSWORD = "sluice", "p;@%:/#ü 'x"  # of the user who may do everything
NARROW_USER = "narrow"  # has the rights that docs/links.md lists, and no others
_MECHANISMS = {"SCRAM-SHA-256": (1, "sha256"), "SCRAM-SHA-512": (2, "sha512")}
_ITERATIONS = 4096
SESSION_MS = 3000  # on the listener without TLS

_PROPERTIES = """\
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL,\
SASL_PLAINTEXT:SASL_PLAINTEXT,OAUTH:SASL_PLAINTEXT
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:sluice;User:CN=sluice
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={ca}
listener.name.ssl.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_plaintext.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_plaintext.scram-sha-512.connections.max.reauth.ms={session_ms}
listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config={scram}
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={scram}
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={scram}
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_plain="plain-password";
listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.oauth.oauthbearer.connections.max.reauth.ms={session_ms}
listener.name.oauth.oauthbearer.sasl.jaas.config=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
unsecuredLoginStringClaim_sub="broker" unsecuredValidatorRequiredScope="{scope}";
"""
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


@dataclass
class SecuredKafka(Server):
    """The same server with more listeners. Its users are made when it has started."""

    authority: Authority | None = None
    client: Certificate | None = None
    tls_port: int = 0  # wants a client's certificate, no password
    sasl_tls_port: int = 0
    sasl_port: int = 0  # without TLS; only SCRAM-SHA-512, and sessions that end
    oauth_port: int = 0  # without TLS; only OAUTHBEARER, with unsigned tokens of the scope SCOPE; sessions end

    def start(self, *, seconds_max: float = 240.0) -> Server:
        super().start(seconds_max=seconds_max)
        wire = KafkaWire([(LOOPBACK, self.port)], call_seconds_max=5.0, clock=SystemClock())
        for user, mechanism in ((USER, "SCRAM-SHA-256"), (USER, "SCRAM-SHA-512"), (NARROW_USER, "SCRAM-SHA-512")):
            eventually(partial(_adds_user, wire, user, mechanism), f"{user} is made", passing=(LogUnavailableError,))
        wire.close()
        eventually(self._knows_its_users, "the brokers know their users")
        return self

    def settings(self, **changes: Any) -> dict[str, Any]:
        """The settings for TLS and SCRAM, as the user who may do everything."""
        assert self.authority is not None
        return {
            "event_log_url": f"kafka+ssl://{LOOPBACK}:{self.sasl_tls_port}",
            "kafka_ca_file": str(self.authority.ca),
            "kafka_sasl_mechanism": "SCRAM-SHA-512",
            "kafka_user": USER,
            "kafka_password": PASSWORD,
            **changes,
        }

    def allow(self, user: str, topic: str, group: str) -> None:
        """Give a user the rights of docs/links.md."""
        rights = [
            (ResourceType.TOPIC, topic, operation)
            for operation in ("CREATE", "DESCRIBE", "DESCRIBE_CONFIGS", "READ", "WRITE")
        ]
        rights += [(ResourceType.GROUP, group, "READ")]
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap, api_version=API_VERSION)
        admin.create_acls(
            [
                ACL(f"User:{user}", "*", ACLOperation[right], ACLPermissionType.ALLOW, ResourcePattern(kind, name))
                for kind, name, right in rights
            ]
        )
        admin.close()

    def _knows_its_users(self) -> bool:
        from pipeline.log.kafka_security import KafkaSecurity
        from pipeline.settings import Settings

        for user in (USER, NARROW_USER):
            security = KafkaSecurity.of(Settings(**self.settings(kafka_user=user)))
            wire = KafkaWire(
                [(LOOPBACK, self.sasl_tls_port)], call_seconds_max=5.0, clock=SystemClock(), security=security
            )
            try:
                wire.topic("none")
            except LogMisconfiguredError:  # the narrow one may not see it
                continue
            except LogUnavailableError:
                return False
            finally:
                wire.close()
        return True


def secured(server: Server, folder: Path) -> SecuredKafka:
    """The server, which has not started yet, with the listeners."""
    authority = Authority(folder / "certificates")
    broker = authority.issue("broker")
    made = SecuredKafka(
        **{field.name: getattr(server, field.name) for field in dataclasses.fields(Server)},
        authority=authority,
        client=authority.issue("sluice"),
        tls_port=free_port(),
        sasl_tls_port=free_port(),
        sasl_port=free_port(),
        oauth_port=free_port(),
    )
    more = {
        "SSL": made.tls_port,
        "SASL_SSL": made.sasl_tls_port,
        "SASL_PLAINTEXT": made.sasl_port,
        "OAUTH": made.oauth_port,
    }
    listeners = "".join(f",{name}://{LOOPBACK}:{port}" for name, port in more.items())
    properties = Path(server.command[-1])
    lines = [
        line + listeners if line.startswith(("listeners=", "advertised.listeners=")) else line
        for line in properties.read_text().splitlines()
    ]
    lines.append(
        _PROPERTIES.format(keystore=broker.both, ca=authority.ca, scram=_SCRAM, session_ms=SESSION_MS, scope=SCOPE)
    )
    properties.write_text("\n".join(lines))
    return made


def _adds_user(wire: KafkaWire, user: str, mechanism: str) -> bool:
    """AlterUserScramCredentials, for which neither client has a call; it may come again. Raises LogUnavailableError."""
    number, hash_name = _MECHANISMS[mechanism]
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac(hash_name, PASSWORD.encode(), salt, _ITERATIONS)
    name = user.encode()
    addition = (
        uint(len(name) + 1)
        + name
        + struct.pack(">bi", number, _ITERATIONS)
        + uint(len(salt) + 1)
        + salt
        + uint(len(salted) + 1)
        + salted
        + b"\0"
    )
    answer = wire._ask(None, (51, 0), uint(1) + uint(2) + addition + b"\0", compact=True)
    answer.int32()  # throttle time
    for _ in range(answer.uint() - 1):
        answer.compact_string()  # the user
        error, message = answer.int16(), answer.compact_string()
        answer.tags()
        assert not error, message
    return True

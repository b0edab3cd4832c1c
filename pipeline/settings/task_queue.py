"""Celery: its queues, and signatures of messages."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.settings.field import setting


@dataclass(frozen=True, kw_only=True)
class TaskQueueSettings:
    """Celery's time-out and keys."""

    visibility_timeout_seconds: int = setting(
        60,
        "Celery's broker visibility time-out",
        low=5,
        high=86_400,
        when="together with DRAIN_HARD_SECONDS_MAX; keep it above that",
    )
    signing_key_file: str = setting(
        "",
        "Workers, Beat and operators: PEM file with the key that signs tasks and remote commands; empty: nothing is "
        "signed. `python -m tasks.signing create NAME FOLDER` makes one",
        when="others than Sluice and its operators may reach REDIS_URL; together with users of Redis "
        "(docs/redis-acl.md)",
    )
    signing_cert_file: str = setting(
        "", "PEM file with the certificate of SIGNING_KEY_FILE", when="together with SIGNING_KEY_FILE"
    )
    signing_cert_folder: str = setting(
        "",
        "Folder with the certificates of all that may send tasks and remote commands, and nothing else",
        when="together with SIGNING_KEY_FILE",
    )


def signing_problems(settings: TaskQueueSettings) -> Iterator[str]:
    """Settings for signed messages that are left out, if others are given."""
    fields = ("signing_key_file", "signing_cert_file", "signing_cert_folder")
    left_out = [name.upper() for name in fields if not getattr(settings, name)]
    if 0 < len(left_out) < len(fields):
        yield f"{' and '.join(left_out)} is missing: messages are signed with all of the SIGNING_… settings"

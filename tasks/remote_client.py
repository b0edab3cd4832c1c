"""The client side of our remote commands: it adds the sender, takes one answer, and reports a missing answer."""

import contextlib
import getpass
import os
import socket
import uuid
from collections.abc import Callable
from typing import Any, Final

import click
from celery.app.control import Control

from pipeline.keys import digest_of, make_key
from pipeline.text import on_one_line
from tasks.signing import REFUSED, SluiceMailbox, is_on, settings_of, stamped

OURS: Final = frozenset(
    {
        "sluice",
        "lag",
        "pause_consumption",
        "resume_consumption",
        "set_rate_limit",
        "clear_rate_limit",
        "set_bands",
        "reset_bands",
        "set_account_limit",
        "clear_account_limit",
        "account_limits",
        "throttle",
        "keys",
        "keys_create",
        "keys_revoke",
        "replay_dead_letters",
        "gap",
        "poison",
        "skip_gap",
        "accept_poison",
        "accept_late_begin",
    }
)
KEYS_CREATE: Final = "keys_create"
NOT_MINE: Final = "not_mine"  # key in the answer of a worker that leaves a command to another worker
ANSWER_SECONDS_MAX: Final = 5.0  # for the control worker; longer than it needs if PostgreSQL is unavailable


class _AnsweredError(BaseException):
    """The answer has arrived: stop waiting.

    It is no `Exception`: Celery treats an `Exception` from the handling of a message as a malformed message.
    """


class SluiceControl(Control):
    """Celery's remote control. It adds the sender and a ticket to our commands, and takes the one relevant answer.

    A broadcast reaches every worker. Workers without the queue `control` answer that the command is not theirs. If
    there are several control workers, the one that gets the ticket acts.
    """

    Mailbox = SluiceMailbox

    def broadcast(self, command: str, arguments: Any = None, *args: Any, **options: Any) -> Any:
        """Like Celery's; for our commands it raises click.ClickException if no worker acted, or the action failed."""
        arguments = stamped(arguments, settings_of(self.app))
        if command not in OURS:
            return super().broadcast(command, arguments, *args, **options)
        asked = {**arguments, "by": user_at_host(), "ticket": uuid.uuid4().hex}
        key = ""
        if command == KEYS_CREATE:  # the key is made here, and no other process sees it
            key, key_id = make_key()
            asked |= {"key_id": key_id, "digest": digest_of(key)}
        answers: list[dict[str, Any]] = []
        refusals: list[str] = []
        tell: Callable[[Any], None] | None = options.get("callback")

        def take(reply: dict[str, Any]) -> None:
            [(_, content)] = reply.items()
            if isinstance(content, dict) and content.get(NOT_MINE):
                return
            if isinstance(content, dict) and content.get(REFUSED):  # another worker, or a later answer, may act
                refusals.append(str(content["error"]))
                return
            answers.append(reply)
            raise _AnsweredError

        changed = {**options, "callback": take, "reply": True}
        changed["timeout"] = max(float(options.get("timeout") or 0.0), ANSWER_SECONDS_MAX)
        with contextlib.suppress(_AnsweredError):
            super().broadcast(command, asked, *args, **changed)
        if refusals and not answers:
            raise click.ClickException(refusals[0])
        if not answers:
            raise click.ClickException(
                f"no control worker answered within {changed['timeout']:.0f} s: does one run "
                "(celery -A tasks.app worker -Q control), and on this broker? One that is slow or frozen may still "
                f"carry it out: `celery -A tasks.app inspect sluice` shows what holds.{self._about_signing()}"
            )
        [(_, content)] = answers[0].items()
        if isinstance(content, dict) and "error" in content:
            raise click.ClickException(str(content["error"]))
        if key and isinstance(content, dict):
            content["ok"] = f"{content['ok']}\nThe key, which is shown only now: {key}"
        if tell is not None:
            tell(answers[0])
        return answers

    def _about_signing(self) -> str:
        """What else may be the reason that no worker answers."""
        if is_on(settings_of(self.app)):
            return (
                " Or one of the two does not trust the other's certificate (SIGNING_CERT_FOLDER). "
                "If it is this shell that does not, the command was carried out."
            )
        return " Where messages are signed, this shell needs the SIGNING_… settings too."


def user_at_host() -> str:
    """The sender of a command, for the control events."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"uid {os.getuid()}"
    return on_one_line(f"{user}@{socket.gethostname()}")

"""The asking side of our remote commands: who asks, one answer, and words when there is none."""

import contextlib
import getpass
import os
import socket
import uuid
from collections.abc import Callable
from typing import Any, Final

import click
from celery.app.control import Control

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
        "replay_dead_letters",
        "gap",
        "poison",
        "skip_gap",
        "accept_poison",
    }
)
NOT_MINE: Final = "not_mine"  # key of the answer of a worker that leaves a command to another
ANSWER_SECONDS_MAX: Final = 5.0  # for the control worker; longer than it takes for a PostgreSQL that is away


class _AnsweredError(BaseException):
    """The answer is there: nothing more is waited for.

    No `Exception`: those that come out of a message on its way in are taken for a malformed message.
    """


class SluiceControl(Control):
    """Celery's remote control, which adds to our commands who asks and a ticket, and takes the one answer that counts.

    A broadcast reaches every worker. Those without the queue `control` say that it is not theirs, and of several
    control workers the one that gets the ticket acts.
    """

    def broadcast(self, command: str, arguments: Any = None, *args: Any, **options: Any) -> Any:
        """As Celery's; for our commands raises click.ClickException where nobody acted, or could not."""
        if command not in OURS:
            return super().broadcast(command, arguments, *args, **options)
        asked = {**(arguments or {}), "by": user_at_host(), "ticket": uuid.uuid4().hex}
        answers: list[dict[str, Any]] = []
        tell: Callable[[Any], None] | None = options.get("callback")

        def take(reply: dict[str, Any]) -> None:
            [(_, content)] = reply.items()
            if isinstance(content, dict) and content.get(NOT_MINE):
                return
            answers.append(reply)
            raise _AnsweredError

        changed = {**options, "callback": take, "reply": True}
        changed["timeout"] = max(float(options.get("timeout") or 0.0), ANSWER_SECONDS_MAX)
        with contextlib.suppress(_AnsweredError):
            super().broadcast(command, asked, *args, **changed)
        if not answers:
            raise click.ClickException(
                f"no control worker answered within {changed['timeout']:.0f} s: does one run "
                "(celery -A tasks.app worker -Q control), and on this broker?"
            )
        [(_, content)] = answers[0].items()
        if isinstance(content, dict) and "error" in content:
            raise click.ClickException(str(content["error"]))
        if tell is not None:
            tell(answers[0])
        return answers


def user_at_host() -> str:
    """Who asks, for the control events."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need have no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"

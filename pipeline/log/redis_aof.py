"""The rewrite of Redis' append-only file (AOF) that comes before the first append to a server process."""

from typing import Final

from redis.exceptions import RedisError, ResponseError

from pipeline.clock import Clock
from pipeline.errors import LogUnavailableError
from pipeline.log.redis_connection import RedisConnection, RedisFacts

# Rewriting a small file takes 0.01 s. Redis detects the end by its timer: within 0.1 s, or 0.5 s where it has `hz 2`.
REWRITE_WAIT_SECONDS: Final = 0.6
REWRITE_POLL_SECONDS: Final = 0.01
REWRITE_AGAIN_SECONDS: Final = 5.0  # after a failed one: a rewrite forks, and writes the whole content of the log


class AofRewrite:
    """Waits for a rewrite of the append-only file, and requests it if nobody has."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._asked: tuple[str, float] = ("", 0.0)  # for which server process, and when (monotonic)

    def wait(self, connection: RedisConnection, facts: RedisFacts) -> None:
        """Make Redis rewrite its append-only file before the first append after a Redis start.

        An append is a transaction in that file. If the file ends within a transaction, Redis 8.2 removes the incomplete
        command when it starts, but leaves the transaction open (valkey-io/valkey#4342 fixes that). Then Redis treats
        all later appends as part of that transaction, and loses them at its next start. A rewritten file contains what
        is in memory. Raises LogUnavailableError while the rewrite takes longer than a moment, or if it fails;
        OtherServerError.
        """
        deadline = self._clock.monotonic() + REWRITE_WAIT_SECONDS
        while not facts.has_rewritten:
            if not facts.is_rewriting:
                self._ask(connection, facts.run_id)
            elif self._clock.monotonic() >= deadline:
                raise LogUnavailableError(
                    "the event log (Redis) accepts no events: it rewrites its append-only file after its start, and "
                    "takes appends after that"
                )
            self._clock.sleep(REWRITE_POLL_SECONDS)
            facts = connection.ask_facts()

    def _ask(self, connection: RedisConnection, run_id: str) -> None:
        """Request a rewrite of the file. Raises LogUnavailableError if Redis can't do it, OtherServerError."""
        now = self._clock.monotonic()
        asked_run_id, asked_at = self._asked
        reason = "the last one failed, and its own log says why"
        if asked_run_id != run_id or now - asked_at >= REWRITE_AGAIN_SECONDS:
            self._asked = (run_id, now)
            with connection.connected() as wire:
                try:
                    wire.call("BGREWRITEAOF")
                except ResponseError as error:
                    reason = str(error)
                except (RedisError, OSError) as error:
                    raise connection.unavailable(error) from error
                else:
                    return
        if "in progress" not in reason:  # another process was faster
            raise LogUnavailableError(
                "the event log (Redis) accepts no events: it must rewrite its append-only file once after a start, "
                f"and the rewrite failed: {reason}"
            )

"""Who may see what operators see: the live page, health, metrics and the contract.

    Authorization: Basic base64(USER:PASSWORD) | Bearer PASSWORD

With OPERATOR_PASSWORD, a request needs it; any user will do. Without, the start has checked that only programs of this
machine reach these addresses, or that OPERATOR_OPEN allows everybody (`ingest.server.refuse_public`).
"""

import hmac
from collections.abc import Callable
from hashlib import sha256

from ingest.errors import OperatorRefusedError
from ingest.keys import candidates_in
from ingest.types import Headers
from pipeline.names import OperatorRefusal


class OperatorGate:
    """Lets operators pass. For the event loop only."""

    def __init__(self, password: str, count: Callable[[OperatorRefusal], None]) -> None:
        self._digest = _digest(password) if password else None
        self._count = count

    def check(self, headers: Headers) -> None:
        """Raise OperatorRefusedError if there is a password, and a request does not have it."""
        if self._digest is None or self.knows(headers):
            return
        reason = OperatorRefusal.MISSING if headers.get("authorization") is None else OperatorRefusal.WRONG
        self._count(reason)
        raise OperatorRefusedError(reason)

    def knows(self, headers: Headers) -> bool:
        """Whether there is a password, and a request has it."""
        given, digest = headers.get("authorization"), self._digest
        if given is None or digest is None:
            return False
        # Digests have one length, and their comparison takes the same time whatever the client guesses.
        return any(hmac.compare_digest(_digest(one), digest) for one in candidates_in(given))


def _digest(password: str) -> bytes:
    return sha256(password.encode("utf-8", "surrogateescape")).digest()

"""Which pages may send events from a browser: cross-origin requests (CORS, https://fetch.spec.whatwg.org/#http-cors-protocol).

A browser lets the script of a page read the answer of another origin only if the answer names the page's origin. Before
most requests it asks with OPTIONS, the preflight. This applies to the addresses for events, and to no other address.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from ingest.types import Headers, Response

ALL: Final = "*"
MAX_AGE_SECONDS: Final = 7200  # a browser asks again after this time; Chromium takes no longer time
EXPOSED: Final = "retry-after, ratelimit, ratelimit-policy, x-request-id"  # a script can read these beside the body

_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_NAMES: Final = re.compile(rf"{_NAME}(?:[ \t]*,[ \t]*{_NAME})*", re.ASCII)
_ALLOW_ORIGIN: Final = "access-control-allow-origin"
_VARY: Final = "vary"


class Cors:
    """The header fields for the pages of some origins; `*` is all of them."""

    def __init__(self, origins: Iterable[str]) -> None:
        expose = ("access-control-expose-headers", EXPOSED)
        if ALL in origins:
            self._by_origin: Mapping[str | None, tuple[tuple[str, str], ...]] = {}
            self._others: tuple[tuple[str, str], ...] = ((_ALLOW_ORIGIN, ALL), expose)
        else:
            vary = (_VARY, "origin")  # a cache must not give the answer for one origin to another
            self._by_origin = {one: ((_ALLOW_ORIGIN, one), expose, vary) for one in origins}
            self._others = (vary,)
        self._lines = {one: _lines(fields) for one, fields in self._by_origin.items()}
        self._lines_of_others = _lines(self._others)

    def fields(self, origin: str | None) -> tuple[tuple[str, str], ...]:
        """The fields of every answer to a request for events; `origin` is its field Origin."""
        return self._by_origin.get(origin, self._others)

    def lines(self, origin: str | None) -> bytes:
        """The same as lines of a head."""
        return self._lines.get(origin, self._lines_of_others)

    def preflight(self, headers: Headers, methods: Iterable[str]) -> Response:
        """The answer to OPTIONS at an address that has these methods.

        A page may send any header fields: Sluice reads only those that it knows, and none of them is more than the page
        could send by itself.
        """
        origin, asked = headers.get("origin"), headers.get("access-control-request-headers")
        known = ", ".join([*methods, "OPTIONS"])
        fields = {name: value for name, value in self.fields(origin) if name == _ALLOW_ORIGIN}
        if fields:
            fields["access-control-allow-methods"] = known
            fields["access-control-max-age"] = str(MAX_AGE_SECONDS)
            if asked is not None and _NAMES.fullmatch(asked):
                fields["access-control-allow-headers"] = asked
        vary = "origin, access-control-request-method, access-control-request-headers"
        return Response(204, b"", headers=fields | {"allow": known, _VARY: vary, "cache-control": "no-store"})


def _lines(fields: Iterable[tuple[str, str]]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in fields).encode("ascii")

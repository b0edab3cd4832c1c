"""Keeps passwords out of all output: log lines, errors, and the reasons that people see.

Every error of Sluice and every log line passes through `hide_secrets`. It recognises a password by its position: in a
URL, or after `password=`. Libraries may also quote parts of a URL that they can't parse, so `url_problem` finds such
URLs first.
"""

import re
from typing import Final

_HIDDEN: Final = "***"

# `//user:password@`: up to the last @ of the word, because a password may contain characters that are invalid in a URL.
_IN_URL: Final = re.compile(r"(://[^\s:/@]{0,200}):\S{0,500}@")
_NAMED: Final = re.compile(r"(\b\w*password)=('[^']*'|[^\s&\"']+)", re.IGNORECASE)
_API_KEY: Final = re.compile(r"(slc_[0-9a-f]{8}_)[0-9a-f]+")  # of pipeline/keys.py; the id before it is public
_TOKEN: Final = re.compile(r'(invalid percent-encoded token): ".*"')  # libpq quotes only the password

_URL: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)
_LOOSE_PERCENT: Final = re.compile(r"%(?![0-9a-fA-F]{2})")
_PORT: Final = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:[0-9]*)?")
_ENCODE: Final = "in a user or password, write % as %25, @ as %40, : as %3A, / as %2F, ? as %3F and # as %23"


def hide_secrets(text: str) -> str:
    """The text with *** in place of each password."""
    if "@" in text:
        text = _IN_URL.sub(rf"\1:{_HIDDEN}@", text)
    if "percent" in text:
        text = _TOKEN.sub(rf'\1: "{_HIDDEN}"', text)
    if "slc_" in text:
        text = _API_KEY.sub(rf"\1{_HIDDEN}", text)
    return _NAMED.sub(rf"\1={_HIDDEN}", text) if "=" in text else text


def url_problem(url: str, schemes: tuple[str, ...]) -> str | None:
    """The reason why a server's URL can't be parsed, without any part of its password; None if it can."""
    match = _URL.fullmatch(url)
    if match is None or match["scheme"] not in schemes:
        return f"does not begin with {' or '.join(f'{scheme}://' for scheme in schemes)}"
    authority, rest = match["authority"], match["rest"]
    user, at, hosts = authority.rpartition("@")
    if at and match["scheme"].startswith("kafka"):
        return "has a user or a password: for Kafka these are KAFKA_USER and KAFKA_PASSWORD (or KAFKA_PASSWORD_FILE)"
    ports_are_right = all(_PORT.fullmatch(host) for host in hosts.split(","))
    if "@" in user or ("@" in rest and not ports_are_right) or "@" in rest.partition("?")[0]:
        return f"has an @ where none belongs: {_ENCODE}"
    if _LOOSE_PERCENT.search(url):
        return f"has a % that begins no percent-encoded character: {_ENCODE}"
    if not ports_are_right:
        return "has a port that is no number"
    return None

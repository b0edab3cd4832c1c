"""Keeps passwords out of all output: log lines, errors, and the reasons that people see.

Every error of Sluice and every log line passes through `hide_secrets`. It recognises a password by its position: in a
URL, or after `password=`. It also knows the passwords in the settings of this process (`know_url`, `know_secret`), and
hides them at any position: libraries quote parts of a URL that they can't parse, in words that differ between versions.
`url_problem` finds such URLs first. A password that is also a name in the settings, a common word or a short number is
hidden only by its position: otherwise many messages would be unreadable.
"""

import json
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote, quote_plus, unquote

from pipeline.text import on_one_line

_HIDDEN: Final = "***"

_WORD: Final = re.compile(r"\S+")
_USER_END: Final = re.compile(r"[:/@]")
_NAMED: Final = re.compile(r"(\b\w*password)=('[^']*'|[^\s&\"']+)", re.IGNORECASE)
_API_KEY: Final = re.compile(r"(slc_[0-9a-f]{8}_)[0-9a-f]+")  # of pipeline/keys.py; the id before it is public
_ACCESS_TOKEN: Final = re.compile(r"\beyJ[\w-]{8,}\.[\w-]*\.[\w-]*")  # a JWT: its header is JSON
_TOKEN: Final = re.compile(r'(percent-encoded (?:token|value)): ".*"')  # libpq quotes only the password

_URL: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)
_LOOSE_PERCENT: Final = re.compile(r"%(?![0-9a-fA-F]{2})")
_BLANK: Final = re.compile(r"[\x00-\x20\x7f]")
PORT_MAX: Final = 65535
_PORT: Final = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:[0-9]*)?")
_ENCODE: Final = "in a user or password, write % as %25, @ as %40, : as %3A, / as %2F, ? as %3F and # as %23"

# Shorter ones are hidden only by their position: as a word, they would also be hidden in many other messages.
_KNOWN_CHARS_MIN: Final = 4
_KNOWN_MAX: Final = 512  # a process has settings for a dozen passwords, each in up to twenty forms
_NAMES_MAX: Final = 4096
_NUMBER_CHARS_MIN: Final = 6  # a shorter number may be a port, a count or a time
# They are in many messages, and in commands to copy. Who guesses passwords tries them first: hiding them gains little.
_COMMON_WORDS: Final = """
    account admin batches broker celery cluster consumer control controller database default docker doctor drain event
    events flower grafana group health host hints http https ingest kafka keys localhost logs main master migrate none
    normal offset operator partition password pipeline port postgres postgresql prometheus python rate redis rediss
    root sanic schema secret sentinel server sluice sluice_app sluice_writer ssl stack status store stream table task
    tasks test topic true unknown user worker workers
"""
_COMMON: Final = frozenset(_COMMON_WORDS.split())
# Hosts whole and by label, names with - whole and by part.
_NAME_PATTERNS: Final = tuple(map(re.compile, (r"[\w.-]+", r"[\w-]+", r"\w+")))


class _KnownSecrets:
    """The passwords that this process knows, in each form that a message may have. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: dict[str, None] = {}
        self._names: dict[str, None] = {}  # in lower case
        self._hidden: list[str] = []
        self._pattern: re.Pattern[str] | None = None

    def add(self, forms: Iterable[str] = (), names: Iterable[str] = ()) -> None:
        """Hide these forms from now on, unless one is a common word, or a name that was or will be added."""
        with self._lock:
            self._forms |= dict.fromkeys(form for form in forms if len(form) >= _KNOWN_CHARS_MIN)
            self._names |= dict.fromkeys(name.casefold() for name in names)
            for found, most in ((self._forms, _KNOWN_MAX), (self._names, _NAMES_MAX)):
                while len(found) > most:
                    del found[next(iter(found))]
            hidden = sorted((form for form in self._forms if not self._is_common(form)), key=len, reverse=True)
            if hidden != self._hidden:
                self._hidden = hidden
                self._pattern = re.compile("|".join(map(_as_a_word, hidden))) if hidden else None

    def _is_common(self, form: str) -> bool:
        word = form.casefold()
        return word in _COMMON or word in self._names or (form.isdecimal() and len(form) < _NUMBER_CHARS_MIN)

    def hide(self, text: str) -> str:
        """The text with *** in place of each of them."""
        return text if self._pattern is None else self._pattern.sub(_HIDDEN, text)


_known = _KnownSecrets()


def _as_a_word(form: str) -> str:
    """The pattern of a string that is no part of a longer word."""
    begin, end = (r"\b" if char.isalnum() or char == "_" else "" for char in (form[0], form[-1]))
    return f"{begin}{re.escape(form)}{end}"


def know_secret(secret: str) -> None:
    """Hide a password from now on, at any position in any message.

    Less than four characters, a number of less than six digits, a common word and a name (`know_names`) are hidden only
    by their position.
    """
    _known.add(_forms_of(secret))


def know_names(text: str) -> None:
    """Show each name in this text even if it is a password that was or will be known. Ignores upper and lower case."""
    _known.add(names=(name for pattern in _NAME_PATTERNS for name in pattern.findall(text)))


def know_url(url: str) -> None:
    """Hide the passwords in a URL from now on, as `know_secret` does, even if the URL is invalid.

    All else in it are names: the user, hosts, the database.
    """
    scheme, separator, rest = url.partition("://")
    for password in sorted(_passwords_of(rest), key=len, reverse=True):  # a shorter one may be a part of a longer one
        for part in (f":{password}@", f"={password}"):
            rest = rest.replace(part, " ")
        know_secret(password)
    if separator:  # otherwise it may have its password anywhere
        know_names(f"{scheme} {rest} {unquote(rest)}")


def _passwords_of(rest: str) -> Iterator[str]:
    """What may be a password in a URL without its scheme."""
    for login in (re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[0], rest.rpartition("@")[0]):
        if ":" in login:
            yield login.partition(":")[2]
    for option in rest.partition("?")[2].split("&"):
        name, _, password = option.partition("=")
        if name.lower().endswith("password"):
            yield password


def _forms_of(password: str) -> Iterator[str]:
    """A password as it is, decoded as one of a URL, and as Python, JSON and URLs write each of both."""
    for text in dict.fromkeys((unquote(password), password)):
        yield from (text, on_one_line(text), repr(text)[1:-1], ascii(text)[1:-1])
        yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
        encoded = text.encode(errors="surrogateescape")
        yield from (repr(encoded)[2:-1], quote(encoded), quote(encoded, safe=""), quote_plus(encoded))


def _without_login(word: re.Match[str]) -> str:
    """The word with *** in place of the password in `://user:password@`, of any length. Reads the word once.

    The password ends at the last @ of the word, because it may contain characters that are invalid in a URL.
    """
    text = word[0]
    last = text.rfind("@")
    begin = text.find("://", 0, max(last, 0))
    while begin >= 0:
        user_end = _USER_END.search(text, begin + len("://"), last)
        if user_end is None:
            break
        if user_end[0] == ":":
            return f"{text[: user_end.end()]}{_HIDDEN}{text[last:]}"
        begin = text.find("://", user_end.end(), last)
    return text


def hide_secrets(text: str) -> str:
    """The text with *** in place of each password."""
    if "@" in text and "://" in text:
        text = _WORD.sub(_without_login, text)
    if "percent" in text:
        text = _TOKEN.sub(rf'\1: "{_HIDDEN}"', text)
    if "slc_" in text:
        text = _API_KEY.sub(rf"\1{_HIDDEN}", text)
    if "eyJ" in text:
        text = _ACCESS_TOKEN.sub(_HIDDEN, text)
    return _known.hide(_NAMED.sub(rf"\1={_HIDDEN}", text) if "=" in text else text)


def url_problem(url: str, schemes: tuple[str, ...]) -> str | None:
    """The reason why a server's URL can't be parsed, without any part of its password; None if it can."""
    match = _URL.fullmatch(url)
    if match is None or match["scheme"] not in schemes:
        return f"does not begin with {' or '.join(f'{scheme}://' for scheme in schemes)}"
    return next(_problems_of(match), None)


def _problems_of(url: re.Match[str]) -> Iterator[str]:
    """What is wrong with the parts of a URL that has the right scheme."""
    authority, rest = url["authority"], url["rest"]
    user, at, hosts = authority.rpartition("@")
    if at and url["scheme"].startswith("kafka"):
        yield "has a user or a password: for Kafka these are KAFKA_USER and KAFKA_PASSWORD (or KAFKA_PASSWORD_FILE)"
    ports_are_right = all(_PORT.fullmatch(host) for host in hosts.split(","))
    # user:12?rest-of-password@host looks like a host, a port and an option.
    is_cut_password = not at and rest.startswith("?") and "@" in rest
    is_at_wrong = "@" in user or ("@" in rest and not ports_are_right) or "@" in rest.partition("?")[0]
    if is_cut_password or is_at_wrong:
        yield f"has an @ where none belongs: {_ENCODE}"
    if _BLANK.search(url[0]):
        yield f"has a space or a control character: write a space as %20; {_ENCODE}"
    if "%00" in url[0]:
        yield "has %00: no user, password or name may have this character"
    if any(option and "=" not in option for option in rest.partition("#")[0].partition("?")[2].split("&")):
        yield f"has an option without = after its ?: {_ENCODE}"
    if _LOOSE_PERCENT.search(url[0]):
        yield f"has a % that begins no percent-encoded character: {_ENCODE}"
    if not ports_are_right:
        yield "has a port that is no number"
        return
    for host in hosts.split(","):
        has_port = _PORT.fullmatch(host)[2]  # type: ignore[index]  # each host fits: see above
        name, _, port = host.rpartition(":") if has_port else (host, "", "")
        if port and not 1 <= int(port) <= PORT_MAX:
            yield f"has a port that is not between 1 and {PORT_MAX}"
        if not _is_encodable(name):
            yield "has a host whose name has an empty part, or one of more than 63 characters"


def _is_encodable(host: str) -> bool:
    """Whether a host's name can be looked up: each part between two dots has 1 to 63 characters.

    The path of a socket, as %2Frun%2Fpostgresql, is no name.
    """
    name = unquote(host)
    if name.startswith(("/", "@")):
        return True
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True

"""What `./load-test.sh` can be told, and what it then plays. It needs no package: `--help` installs nothing."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from checks.loadgen.page import chromium_path
from checks.loadtest.scenario import BANDS, DRAIN_TIME, Limits, phases, seconds_least
from pipeline.policies.drain_time import START_RATE

RATE_DEFAULT: Final = 1000.0  # events/s
RATE_HIGHEST: Final = 20_000.0  # events/s offered, whatever the options say
SECONDS_MAX: Final = 1200.0
SINK_OVER_RATE: Final = 1.5  # with a shadow beside bands: RATE_MAX is two thirds of what PostgreSQL stores
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_EXAMPLES: Final = """
examples:
  ./load-test.sh                          the whole scenario on a system of its own, in under three minutes
  ./load-test.sh --log kafka              the same on Kafka
  ./load-test.sh --policy drain-time      the rate follows what PostgreSQL stores: it must find that
  ./load-test.sh --shadow drain-time      bands, and beside them what drain_time would admit
  ./load-test.sh --full                   with the real thresholds (10,000 and 50,000): about four minutes
  ./load-test.sh --rate 2000 --duration 300
  DATABASE_URL=… ./load-test.sh --url http://127.0.0.1:8080    a system that runs already, which is left as it is
  INGEST_KEY_FILE=key DATABASE_URL=… ./load-test.sh --url https://localhost:8080 --ca-file ca.pem

The system at --url may need an API key (docs/keys.md), and OPERATOR_URL and OPERATOR_PASSWORD (docs/operators.md). Each
secret may be in a file: OPERATOR_PASSWORD_FILE, DATABASE_URL_FILE.

exit status: 0 everything held; 1 something did not; 2 nothing failed, but what is stored could not be checked, or
the call was wrong, or nothing answers at --url
"""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; exits with status 2 if they are invalid, alone or together."""
    parser = argparse.ArgumentParser(
        prog="./load-test.sh", epilog=_EXAMPLES,
        description="Send a load from normal through a backlog and an outage of PostgreSQL to recovery, show it while\n"
        "it runs, and judge it: each phase by its expectations, and the whole by the stored events.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--log", choices=("redis", "kafka"), help="the event log of a system of its own (default redis)"
    )
    parser.add_argument(
        "--rate",
        type=float,
        help=f"the full rate of a system of its own, events/s (default {RATE_DEFAULT:g}); "
        "with --policy drain-time: what its PostgreSQL stores",
    )
    names = ("bands", "drain-time")
    parser.add_argument("--policy", choices=names, help="the rate policy of a system of its own (default bands)")
    parser.add_argument(
        "--shadow",
        choices=names,
        help="a second rate policy, which only shows what it would admit; bands then have a PostgreSQL that stores "
        f"{SINK_OVER_RATE:g} times their full rate",
    )
    parser.add_argument("--duration", type=float, help=_duration_help())
    parser.add_argument(
        "--url",
        help="send the load to an existing system on this machine, and stop nothing; not with --log, --rate, --policy, "
        "--shadow, --full",
    )
    parser.add_argument(
        "--key-file",
        type=Path,
        help="file with the API key for --url (else INGEST_KEY_FILE or INGEST_KEY of the environment)",
    )
    parser.add_argument(
        "--ca-file",
        type=Path,
        help="file with the CA of --url https://… (else the CAs of this machine); the name in the certificate is not "
        "compared, since the load goes to this machine only",
    )
    parser.add_argument("--full", action="store_true", help="lag thresholds of 10,000 and 50,000 instead of a tenth")
    parser.add_argument(
        "--page", action="store_true", help="also take a picture of the live page in each phase (needs chromium)"
    )
    parser.add_argument("--out", type=Path, help="folder of the report (default .local/load-test/<time>)")
    options = parser.parse_args(words)
    if (problem := _place_problem(options)) is not None:
        parser.error(problem)
    if options.page and chromium_path() is None:
        parser.error("--page: there is no chromium on the PATH")
    options.log = options.log or "redis"
    options.policy = (options.policy or BANDS).replace("-", "_")
    options.shadow = (options.shadow or "").replace("-", "_")
    if options.policy == options.shadow:
        parser.error(f"--shadow {options.shadow.replace('_', '-')}: this is the policy itself")
    if options.policy == DRAIN_TIME and options.full:
        parser.error("--full is for the lag thresholds of bands")
    options.rate = RATE_DEFAULT if options.rate is None else options.rate
    if not 10 <= options.rate <= RATE_HIGHEST / 5:
        parser.error(f"--rate {options.rate:g}: it takes 10 to {RATE_HIGHEST / 5:g}")
    if options.policy == DRAIN_TIME and options.url is None and options.rate < START_RATE / 2:
        parser.error(
            f"--rate {options.rate:g}: with --policy drain-time it takes {START_RATE / 2:g} at least. The policy "
            f"begins with {START_RATE:g}, and needs longer than a phase to find a much lower one"
        )
    if options.duration is not None:
        least = math.ceil(seconds_least(limits_of(options), own=options.url is None))
        if not least <= options.duration:
            parser.error(f"--duration {options.duration:g}: this scenario takes {least} s at least")
        if not options.duration <= SECONDS_MAX:
            parser.error(f"--duration {options.duration:g}: it takes {SECONDS_MAX:g} at most")
    return options


def _place_problem(options: argparse.Namespace) -> str | None:
    """Why the options do not fit a system at --url, or one of our own; None if they fit."""
    if options.url is None:
        others = [name for name in ("key_file", "ca_file") if getattr(options, name) is not None]
        return f"--{others[0].replace('_', '-')} is for the system at --url" if others else None
    if (problem := url_problem(options.url)) is not None:
        return f"--url {options.url}: {problem}"
    for name in ("log", "rate", "policy", "shadow", "full"):
        if getattr(options, name) not in (None, False):
            return f"--{name} is for a system of its own, and changes nothing of the one at --url"
    return None


def url_problem(url: str) -> str | None:
    """Why the load test does not use the URL; None if it does."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("http", "https"):
        return "it begins with neither http:// nor https://"
    return None if parts.hostname in LOOPBACK else "load is sent to this machine only"


def _duration_help() -> str:
    """The computed lengths, so that the text is always right."""

    def length(*, full: bool = False, own: bool = True) -> str:
        limits = own_limits(RATE_DEFAULT, full=full)
        usual = sum(phase.seconds for phase in phases(limits, own=own))
        return f"{usual:.0f}, at least {math.ceil(seconds_least(limits, own=own))}"

    return (
        f"length of all phases together, s, up to {SECONDS_MAX:g} (default {length()}; "
        f"with --full {length(full=True)}; with --url {length(own=False)}; "
        "more for a low --rate); starting, stopping and comparing come on top"
    )


def limits_of(options: argparse.Namespace) -> Limits:
    """The limits of a system of our own for these options."""
    return own_limits(options.rate, full=options.full, policy=options.policy, shadow=options.shadow)


def own_limits(rate: float, *, full: bool, policy: str = BANDS, shadow: str = "") -> Limits:
    """The limits of our own system. If `drain_time` decides or is shown, PostgreSQL stores at a known rate."""
    degraded, critical = (10_000, 50_000) if full else (1_000, 5_000)
    sink = rate if policy == DRAIN_TIME else SINK_OVER_RATE * rate if shadow else None
    return Limits(rate, rate / 10, degraded, critical, policy, shadow, sink)


if __name__ == "__main__":
    parse(sys.argv[1:])

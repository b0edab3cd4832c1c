"""Flower's configuration: `celery -A tasks.app flower --conf=monitoring/flowerconfig.py`.

Flower also reads its options from FLOWER_… variables, such as FLOWER_BASIC_AUTH (user:password). The options in this
file override them. SLUICE_FLOWER_BASIC_AUTH_FILE names a file with that text; its name does not begin with FLOWER_,
since Flower refuses variables of that prefix that are none of its options.

Flower's /metrics and /healthcheck need no password in any case: they are for Prometheus and orchestrators, and show
names of tasks and workers.
"""

import os
import sys
import time
from functools import partialmethod
from logging import ERROR, getLogger  # the name `logging` is one of Flower's options

from celery.events.receiver import EventReceiver

from pipeline import logs, wiring
from pipeline.errors import SettingsError
from pipeline.settings import read_secret
from tasks.app import app

EVENTS_WAIT_SECONDS = 5

# They may be of another Flower: with FLOWER_URL_PREFIX this one is not where it is looked for.
taken = sorted(
    name
    for name in os.environ
    if name.startswith("FLOWER_") and name not in ("FLOWER_PORT", "FLOWER_ADDRESS", "FLOWER_BASIC_AUTH")
)
if taken:
    sys.stderr.write(f"flower: options from the environment: {', '.join(taken)}\n")
# Flower's own default is every address of the machine.
address = os.environ.get("FLOWER_ADDRESS") or "127.0.0.1"
password_file = os.environ.get("SLUICE_FLOWER_BASIC_AUTH_FILE")
if password_file:
    if os.environ.get("FLOWER_BASIC_AUTH"):
        raise SystemExit("FLOWER_BASIC_AUTH and SLUICE_FLOWER_BASIC_AUTH_FILE are both set: leave one of them out")
    try:
        basic_auth = [read_secret(password_file)]
    except SettingsError as error:
        raise SystemExit(f"SLUICE_FLOWER_BASIC_AUTH_FILE: {error}") from None
elif address not in ("127.0.0.1", "::1", "localhost") and not os.environ.get("FLOWER_BASIC_AUTH"):
    raise SystemExit(
        f"FLOWER_ADDRESS={address}: whoever reaches Flower can stop workers; set FLOWER_BASIC_AUTH=user:password too"
    )
max_tasks = 5_000  # kept in memory; a drain task or two a second
natural_time = False  # the time of day, as in the logs
inspect_timeout = 2_000.0  # milliseconds; a stopped worker delays each view by this time
# Otherwise Flower asks all workers every 5 s to send events, which wakes each of them. Ours always do.
enable_events = False

# Flower's thread waits for events; without this it wakes each second to see whether it is to end. It never is: it ends
# with the process.
EventReceiver.consume = partialmethod(EventReceiver.consume, safety_interval=EVENTS_WAIT_SECONDS)  # type: ignore[assignment]

settings_of_app = app.sluice_settings
if settings_of_app.log_format == "json":
    logging = "none"  # the option: tornado leaves the log lines to us
    logs.configure(level=settings_of_app.log_level, form="json", process="flower")
try:
    wiring.check_redis(settings_of_app, "operator")
except SettingsError as error:
    raise SystemExit(f"flower: {error}") from None

# A system starts all programs together, so Flower first asks workers that do not answer yet, and would warn of each
# question. It asks again when somebody looks.
started = time.monotonic()
getLogger("flower.inspector").addFilter(lambda one: one.levelno >= ERROR or time.monotonic() - started > 30)

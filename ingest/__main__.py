"""`python -m ingest`: one ingest process. Several share INGEST_PORT and OPERATOR_PORT, each under a supervisor."""

import gc
import sys
from functools import partial

from ingest.app import create_app, create_operator_app
from ingest.dashboard.recorder import SystemReaders
from ingest.server import Listener, listen, refuse_public, run, with_connections_that_fit
from ingest.service import IngestContext, KeySources
from ingest.tls import certificate_of
from pipeline import logs, wiring
from pipeline.clock import SystemClock
from pipeline.errors import SettingsError
from pipeline.names import Queue
from pipeline.settings import Settings, ignore_variables_of_others, misspelled_settings
from pipeline.start_counter import count_start


def main() -> int:
    """Serve until a signal stops the process. Returns the exit code: 2 if the settings or the port are wrong."""
    for words in (ignore_variables_of_others(), misspelled_settings()):
        if words is not None:
            sys.stderr.write(f"ingest: {words}\n")
    try:
        settings = Settings.from_environ()
        logs.configure(level=settings.log_level, form=settings.log_format, process="ingest")
        refuse_public(settings)
        wiring.check_redis(settings, "ingest")
        settings = with_connections_that_fit(settings)
        certificate = certificate_of(settings)
        context = IngestContext(
            log=wiring.make_log(settings),
            bucket=wiring.make_bucket(settings),
            store=wiring.make_control_store(settings),
            events=wiring.make_control_events(settings),
            clock=SystemClock(),
            troubles=wiring.make_troubles(settings),
            offers=wiring.make_offers(settings),
            throttle=wiring.make_throttle(settings),
            keys=KeySources(wiring.make_key_mirror(settings), partial(wiring.load_stored_keys, settings)),
            readers=SystemReaders(
                wiring.make_history(settings),
                wiring.make_log(settings),
                partial(wiring.make_queues(settings).waiting, Queue.CONTROL),
                wiring.make_counters(settings).memory,
            ),
        )
    except SettingsError as error:
        sys.stderr.write(f"ingest: {error}\n")
        return 2
    listeners = []
    ports = [(settings.ingest_host, settings.ingest_port), (settings.operator_host, settings.operator_port)]
    for host, port in ports:
        if port:
            try:
                listeners.append(listen(host, port))
            except OSError as error:
                sys.stderr.write(f"ingest: can't listen on {host}:{port}: {error.strerror}\n")
                return 2
    app = create_app(settings, context)
    place, operators = Listener(app, listeners[0]), None
    if settings.operator_port:
        operators = Listener(create_operator_app(app.ctx.service), listeners[1])
    count_start(settings, "ingest")
    # These objects live as long as the process: the garbage collector does not need to look at them again.
    gc.collect()
    gc.freeze()
    run(place, certificate, operators=operators)
    return 0


if __name__ == "__main__":
    sys.exit(main())

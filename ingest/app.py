"""Makes the Sanic application of ingest."""

import math
from typing import Final

from sanic import HTTPResponse, Sanic
from sanic.config import Config
from sanic.handlers import ErrorHandler

from ingest.edge import Edge, IngestParts
from ingest.errors import answer
from ingest.refusal import HEAD_BYTES_MAX
from ingest.routes import IngestApp, IngestRequest, add_routes
from pipeline.settings import Settings

KEEP_ALIVE_SECONDS: Final = 75  # an idle connection; above the 60 s of common proxies, so that they close first


class OneShapeErrors(ErrorHandler):
    """Gives Sanic's own errors, and defects, the one shape of errors."""

    def response(self, request: IngestRequest, exception: BaseException) -> HTTPResponse:
        """The answer to an error that no handler caught."""
        return answer(exception, getattr(request.stream, "request_id", ""))


def create_app(settings: Settings, parts: IngestParts, *, name: str = "ingest") -> IngestApp:
    """An application whose `ctx.edge` has its parts; nothing is started or connected. `name` is unique in a process."""
    config = Config(env_prefix=None)
    config.ACCESS_LOG = False
    config.AUTO_EXTEND = False
    config.MOTD = False
    config.KEEP_ALIVE_TIMEOUT = KEEP_ALIVE_SECONDS
    config.REQUEST_MAX_HEADER_SIZE = HEAD_BYTES_MAX
    config.REQUEST_MAX_SIZE = settings.body_bytes_max
    # The protocol has limits of its own; Sanic's lie beyond them, for what those do not see.
    config.REQUEST_TIMEOUT = math.ceil(settings.request_seconds_max + 5)
    config.RESPONSE_TIMEOUT = math.ceil(settings.request_seconds_max + 4 * settings.append_seconds_max + 5)
    app: IngestApp = Sanic(name, config=config, error_handler=OneShapeErrors(), configure_logging=False)
    app.ctx.edge = Edge(settings, parts)
    add_routes(app)
    return app

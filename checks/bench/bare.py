"""The baseline server: a Sanic handler that decodes the body and does nothing else."""

import sys

import msgspec
from sanic import Request, Sanic
from sanic.response import HTTPResponse


def make_bare() -> Sanic:  # type: ignore[type-arg]
    """An application with POST /api/logs that decodes JSON and answers 202."""
    app: Sanic = Sanic("bare", configure_logging=False)  # type: ignore[type-arg]
    decode = msgspec.json.Decoder().decode

    @app.post("/api/logs")
    async def logs(request: Request) -> HTTPResponse:
        decode(request.body)
        return HTTPResponse(b'{"accepted": 1}', status=202, content_type="application/json")

    return app


if __name__ == "__main__":
    make_bare().run(host="127.0.0.1", port=int(sys.argv[1]), single_process=True, access_log=False, motd=False)

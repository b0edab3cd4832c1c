"""A shop whose log records go to Sluice: FastAPI, Python's `logging`, and the middleware of `sluice-client`."""

import logging
import os

import uvicorn
from fastapi import FastAPI, HTTPException

from sluice_client import SluiceHandler, exit_on_sigterm
from sluice_client.asgi import AsgiMiddleware

logger = logging.getLogger("shop")
app = FastAPI(title="shop")
app.add_middleware(AsgiMiddleware)  # each event of a request has its requestId and correlationId

STOCK = {17: 3, 18: 0}


@app.get("/articles/{number}")
def article(number: int) -> dict[str, int]:
    """How many of an article there are."""
    if number not in STOCK:
        logger.warning("there is no article %d", number, extra={"article": number})
        raise HTTPException(404, f"there is no article {number}")
    logger.info("article %d was looked at", number, extra={"article": number})
    return {"article": number, "stock": STOCK[number]}


@app.post("/articles/{number}/orders", status_code=201)
def order(number: int) -> dict[str, int]:
    """Order one. With an article that is sold out, this fails: the event has the stack trace."""
    share = 1 / STOCK[number]
    logger.info("article %d was ordered", number, extra={"article": number, "share": share})
    return {"article": number}


def main() -> None:
    """Serve the shop; Ctrl-C or SIGTERM ends it, after its last events are sent."""
    sluice = SluiceHandler(
        os.environ.get("SLUICE_URL", "http://localhost:8080"),
        source="shop",
        api_key=os.environ.get("SLUICE_API_KEY") or None,
    )
    logging.basicConfig(level="INFO", handlers=[sluice, logging.StreamHandler()])
    exit_on_sigterm()  # uvicorn sends itself the signal again after its own end
    # log_config=None: uvicorn's records, such as failed requests, go where all others go.
    uvicorn.run(app, port=int(os.environ.get("PORT", "8001")), log_config=None)


if __name__ == "__main__":
    main()

"""What goes wrong with a private server."""

from pipeline.secrets import hide_secrets
from pipeline.text import on_its_lines


class ServerError(Exception):
    """A private server could not be prepared or started; the message has the reason, safe to show."""

    def __init__(self, message: str) -> None:
        super().__init__(on_its_lines(hide_secrets(message)))

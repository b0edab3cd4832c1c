"""Sends events and log records to Sluice. See README.md of the package.

Nothing is imported that the standard library does not have.
"""

from sluice_client.asynchronous import AsyncClient
from sluice_client.client import Client
from sluice_client.context import bound
from sluice_client.counters import Drop, Reason, Stats, Summary
from sluice_client.endings import exit_on_sigterm
from sluice_client.handler import SluiceHandler

__all__ = [
    "AsyncClient",
    "Client",
    "Drop",
    "Reason",
    "SluiceHandler",
    "Stats",
    "Summary",
    "bound",
    "exit_on_sigterm",
]

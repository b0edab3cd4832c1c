"""Private PostgreSQL, Redis and Kafka servers for a machine that has none: preparing, starting and checking them.

`run.sh` lets a supervisor run the commands that are built here. The tests run them directly, through `Server`.
"""

from stack.servers.errors import ServerError
from stack.servers.family import family_of, freeze_family, kill_family, runs, thaw_family, wait_ended, wait_stopped
from stack.servers.kafka import KAFKA_LIBS, kafka_is_possible, kafka_server, kafka_url, resolve_kafka
from stack.servers.ports import LOOPBACK, free_port, keep_to_own_ports, port_is_taken, port_problem
from stack.servers.postgres import DATABASE, postgres_bin, postgres_server, postgres_url
from stack.servers.programs import ROOT
from stack.servers.redis import IDLE_TIMER_HZ, TIMER_HZ, redis_binary, redis_server, redis_url
from stack.servers.server import Server

__all__ = [
    "DATABASE",
    "IDLE_TIMER_HZ",
    "KAFKA_LIBS",
    "LOOPBACK",
    "ROOT",
    "TIMER_HZ",
    "Server",
    "ServerError",
    "family_of",
    "free_port",
    "freeze_family",
    "kafka_is_possible",
    "kafka_server",
    "kafka_url",
    "keep_to_own_ports",
    "kill_family",
    "port_is_taken",
    "port_problem",
    "postgres_bin",
    "postgres_server",
    "postgres_url",
    "redis_binary",
    "redis_server",
    "redis_url",
    "resolve_kafka",
    "runs",
    "thaw_family",
    "wait_ended",
    "wait_stopped",
]

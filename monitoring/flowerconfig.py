"""Flower's configuration: `celery -A tasks.app flower --conf=monitoring/flowerconfig.py`.

Flower also reads its options from FLOWER_… variables, such as FLOWER_BASIC_AUTH (user:password). The options in this
file override them. Flower's /metrics and /healthcheck need no password in any case: they are for Prometheus and
orchestrators, and show names of tasks and workers.
"""

import os

# Flower's own default is every address of the machine.
address = os.environ.get("FLOWER_ADDRESS") or "127.0.0.1"
if address not in ("127.0.0.1", "::1", "localhost") and not os.environ.get("FLOWER_BASIC_AUTH"):
    raise SystemExit(
        f"FLOWER_ADDRESS={address}: whoever reaches Flower can stop workers; set FLOWER_BASIC_AUTH=user:password too"
    )
max_tasks = 5_000  # kept in memory; a drain task or two a second
natural_time = False  # the time of day, as in the logs
inspect_timeout = 2_000.0  # milliseconds; a stopped worker delays each view by this time

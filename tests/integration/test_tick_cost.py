"""What a tick of the control loop costs: its round trips, counted before real servers."""

from checks.bench.tick import measure
from pipeline.settings import Settings
from stack.servers import Server


def test_a_tick_takes_the_same_round_trips_whatever_the_policy_and_the_partitions(
    control_redis: Server, log_redis: Server, database_url: str
) -> None:
    urls = Settings(redis_url=control_redis.url, event_log_url=log_redis.url, database_url=database_url)
    found = {
        (policy, partitions): measure(urls, policy, partitions, ticks=3).round_trips
        for policy, partitions in (("bands", 4), ("drain_time", 4), ("drain_time", 64))
    }
    assert len({tuple(trips.items()) for trips in found.values()}) == 1, found
    # With a hint for each of the four drains, which nobody takes here, and the looks that find them lacking
    assert sum(found["drain_time", 64].values()) <= 19, found

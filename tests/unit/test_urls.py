"""Parts of URLs that may name several servers."""

import pytest

from pipeline.urls import hosts_of, scheme_of


@pytest.mark.parametrize(
    ("url", "scheme", "hosts"),
    [
        ("kafka://a", "kafka", ["a"]),
        ("Kafka+SSL://a:1,b:2/x?c=d", "kafka+ssl", ["a:1", "b:2"]),
        ("kafka://127.0.0.1:1,[::1]:2", "kafka", ["127.0.0.1:1", "[::1]:2"]),
        ("kafka://[::1],[::2]:3#x", "kafka", ["[::1]", "[::2]:3"]),
        ("redis://u:p@h:1/0", "redis", ["h:1"]),
        ("postgresql://u:p,q@one,two?a=b", "postgresql", ["one", "two"]),
        ("kafka://", "kafka", [""]),
        ("one:9092", "", ["one:9092"]),
        ("", "", [""]),
    ],
)
def test_a_url_has_a_scheme_and_hosts(url: str, scheme: str, hosts: list[str]) -> None:
    assert (scheme_of(url), hosts_of(url)) == (scheme, hosts)

"""M12: a ratio for each thing that can be switched on, to the same without it."""

import contextlib
import ssl
from pathlib import Path

from checks.bench.certificates import Authority
from checks.bench.costs import MARK, lines_of
from checks.loadgen.closed_load import Tls, post


def test_each_way_is_compared_with_the_same_without_it() -> None:
    # Given two rounds, in which each way does half of what is done without it
    without = ["plain 202", "plain batch", "plain 429", "unsigned sent", "unsigned taken", "free group", "free single"]
    ways = [f"{way} {what}" for way in ("keys", "tls", "certs") for what in ("202", "batch", "429")]
    others = ["keys 401", "certs connect", "signed sent", "signed taken", "waited group", "waited single"]
    costs = {name: [10.0, 20.0] for name in [*without, "tls connect"]} | {
        name: [5.0, 10.0] for name in [*ways, *others]
    }
    checks = {"key sent before": [2e6, 4e6], "key hashed": [4e6, 8e6]}
    lines = list(lines_of({**costs, **checks, "tls connect": [10.0, 20.0]}))
    # Then each row is a half, and a check of a key has its time too
    assert {line.mark for line in lines} == {MARK}
    [check] = [line for line in lines if line.unit == "ns"]
    assert (list(check.values), str(check.goal)) == ([500, 250], "<= 1000")
    assert [list(line.values) for line in lines if line is not check] == [[0.5, 0.5]] * 16


def test_a_client_of_the_load_is_verified_and_verifies(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authority.issue("ingest", address="127.0.0.1"))
    server.load_verify_locations(authority.file)
    server.verify_mode = ssl.CERT_REQUIRED
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = Tls(authority.file, authority.issue("client")).context()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1"),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    assert ends[1].getpeercert()


def test_a_further_line_is_part_of_the_head() -> None:
    assert post("/x", b"{}", line="X-Api-Key: k\r\n").endswith(b"Content-Length: 2\r\nX-Api-Key: k\r\n\r\n{}")

"""`python -m ingest.ready`, the health check of a container."""

import pytest

from ingest import ready
from stack.servers import free_port
from support.running_ingest import running_ingest


@pytest.mark.parametrize("is_stopping", [False, True])
def test_it_says_whether_ingest_is_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_stopping: bool
) -> None:
    with running_ingest() as edge:
        monkeypatch.setenv("INGEST_PORT", str(edge.port))
        edge.service.lifecycle.is_stopping = is_stopping
        status = ready.main()
        edge.service.lifecycle.is_stopping = False
    out = capsys.readouterr().out
    assert (status, out.startswith("not ready: 503")) == ((1, True) if is_stopping else (0, False))


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
    ],
)
def test_it_asks_where_ingest_listens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str, asked: str
) -> None:
    port = free_port()
    monkeypatch.setenv("INGEST_HOST", host)
    monkeypatch.setenv("INGEST_PORT", str(port))
    assert ready.main() == 1  # nobody listens there
    assert f"http://{asked}:{port}/readyz" in capsys.readouterr().out


def test_wrong_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("INGEST_TLS_KEY", "/k.pem")
    assert ready.main() == 1
    assert "INGEST_TLS_KEY needs INGEST_TLS_CERT" in capsys.readouterr().out

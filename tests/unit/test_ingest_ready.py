"""`python -m ingest.ready`, the health check of a container."""

import pytest

from ingest import ready
from support.edge import running_edge


@pytest.mark.parametrize("is_stopping", [False, True])
def test_it_says_whether_ingest_is_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_stopping: bool
) -> None:
    with running_edge() as edge:
        monkeypatch.setenv("INGEST_PORT", str(edge.port))
        edge.service.lifecycle.is_stopping = is_stopping
        status = ready.main()
        edge.service.lifecycle.is_stopping = False
    out = capsys.readouterr().out
    assert (status, out.startswith("not ready: 503")) == ((1, True) if is_stopping else (0, False))


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with running_edge() as edge:
        monkeypatch.setenv("INGEST_PORT", str(edge.port))
    assert ready.main() == 1
    assert f"http://127.0.0.1:{edge.port}/readyz" in capsys.readouterr().out


def test_wrong_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("INGEST_TLS_KEY", "/k.pem")
    assert ready.main() == 1
    assert "INGEST_TLS_KEY needs INGEST_TLS_CERT" in capsys.readouterr().out

"""What a run makes of a fault whose victim is away."""

import random
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from faults import catalog
from faults.catalog import Planned
from faults.fault import Effect, Fault
from faults.report import as_markdown
from faults.rig import Options, Rig
from faults.run import Result, _Run


class _VictimIsAway(Fault):
    name = "victim.away"

    def inject(self, rig: Rig) -> None:
        rig.down.add(cast("Any", "the victim"))
        raise psutil.NoSuchProcess(4711)

    def repair(self, rig: Rig) -> None:
        pytest.fail("nothing was broken")

    def effect(self, rig: Rig) -> Effect:
        return Effect(True, "it says so")


def test_a_fault_that_cannot_be_made_is_said_and_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setitem(catalog.FAULTS, "victim.away", _VictimIsAway)
    planned = Planned("victim.away", gap_seconds=0.0, share=0.0, hasty=False, seed=random.getrandbits(8))
    rig = SimpleNamespace(down=set())
    result = Result(Options("redis", tmp_path, 1, 100.0), [planned])
    done = _Run(cast("Any", rig), result, 60.0, lambda _: None)._carry_out(planned)
    result.done.append(done)
    assert "4711" in (done.skipped or "")
    assert result.hits == 0
    assert rig.down == set(), "what does not run would never be started again"
    assert "| victim.away | 1 | 0 | | | skipped: it could not be made" in as_markdown(result)

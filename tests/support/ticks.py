"""One tick of the control loop beside a log of a test, with everything else in memory."""

from collections.abc import Mapping
from functools import partial

from pipeline.policies import make_policy
from pipeline.ports.control import Alarm, Pause
from pipeline.ports.log import EventLog
from pipeline.ports.offset_store import StoredOffsets
from pipeline.ports.operator_store import OperatorState
from pipeline.regulate import regulate
from pipeline.regulate.context import ControlAdapters, SinkQueries
from support.control import control_settings, memory_rig


def tick(log: EventLog, stored: Mapping[int, int]) -> tuple[list[Alarm], list[Pause]]:
    """The alarms and the pauses after a tick for which PostgreSQL says what is stored."""
    settings = control_settings("redis://nowhere")
    rig = memory_rig(settings)
    report = regulate(
        settings=settings,
        policy_of=partial(make_policy, settings),
        log=log,
        sink=SinkQueries(
            stored_offsets=lambda _log_id: StoredOffsets(dict(stored), None),
            settled_offsets=lambda _log_id: dict(stored),
            load_operator_state=lambda: OperatorState([], None, None, []),
            terminate_drainer=lambda _log_id, _partition: False,
            why_standing=lambda _log_id, _partition: "",
        ),
        control=ControlAdapters(rig.store, rig.events, rig.leases, rig.progress, rig.fence),
        actor="test",
    )
    assert report.published is not None
    return list(report.published.alarms), list(rig.store.state().pauses or ())

"""Restores what a flushed control store has lost."""

from pipeline.errors import SluiceError, in_brief
from pipeline.names import AlarmCode, BreakerState
from pipeline.ports.control import ControlState, ControlStore
from pipeline.regulate.context import SinkQueries
from pipeline.regulate.sample import Sample


def restore(state: ControlState, store: ControlStore, sink: SinkQueries, sample: Sample, actor: str) -> bool:
    """Restore the reasons to pause, and what operators set, after a flush; returns whether anything was missing.

    Without PostgreSQL they stay unknown. Then workers use the last state that they know; they could not store anything
    anyway. Only the limits of accounts are missing if an earlier version restored, or runs beside this one.
    """
    has_pauses = state.pauses is not None
    if has_pauses and (state.accounts is not None or state.breaker is not BreakerState.CLOSED):
        return False
    try:
        asked = sink.load_operator_state()
    except SluiceError as error:
        if has_pauses:
            sample.degraded(
                AlarmCode.NOT_RESTORED,
                f"The limits of accounts that operators set are not restored: {in_brief(error)}",
                "PostgreSQL: they are restored from there",
            )
            return False
        sample.is_database_unavailable = True
        sample.degraded(
            AlarmCode.NOT_RESTORED,
            f"The reasons to pause are lost and not restored: {in_brief(error)}",
            "PostgreSQL: they are restored from there",
        )
        return False
    has_restored_limits = store.restore_account_limits(asked.accounts, actor=actor)
    return store.restore(asked.pauses, actor=actor, override=asked.override, bands=asked.bands) or has_restored_limits

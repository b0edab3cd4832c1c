"""In which order a worker's own steps start."""

from celery.worker import WorkController

from pipeline.settings import Settings
from tasks.app import make_app


def test_a_worker_shows_its_metrics_after_it_has_forked_and_may_drain() -> None:
    # An orchestrator asks for the metrics before it ends the workers of the older version
    app = make_app(Settings())
    blueprint = WorkController.Blueprint(steps=app.steps["worker"])
    blueprint.steps = dict(blueprint.claim_steps())
    names = [step.__name__ for step in blueprint._finalize_steps(blueprint.steps)]  # type: ignore[attr-defined]
    assert names.index("Pool") < names.index("SessionsStep") < names.index("SchemaStep") < names.index("MetricsStep")

"""Where the killers live."""

ACTIVITIES = "tests/integration/test_activities.py"
BATCHES = "tests/integration/test_batches.py"
BULK = "tests/workflow/test_bulk.py"
BULK_FILES = "tests/unit/test_bulk_files.py"
CONTRACT = "tests/integration/test_step_contract.py"
DATABASE = "tests/integration/test_database.py"
EVENT_LOG = "tests/integration/test_event_log.py"
FENCE = "tests/integration/test_fence.py"
SETUP = "tests/integration/test_setup_sql.py"
MODEL = "tests/unit/test_model.py"
SAGA = "tests/unit/test_saga.py"
CANCEL = "tests/workflow/test_cancel.py"
CHECKOUT = "tests/workflow/test_checkout.py"
FAST_LANE = "tests/workflow/test_fast_lane.py"
MAINTENANCE = "tests/workflow/test_maintenance.py"
REPLAY = "tests/workflow/test_replay.py"
RESTORED = "tests/workflow/test_restored_database.py"
SCHEDULES = "tests/workflow/test_schedules.py"
SECOND_RUN = "tests/workflow/test_second_run.py"
STARTING = "tests/workflow/test_starting.py"
STUCK = "tests/workflow/test_stuck.py"


def at(file: str, *tests: str) -> tuple[str, ...]:
    """Name tests of one file."""
    return tuple(f"{file}::{test}" for test in tests)

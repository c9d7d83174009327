"""The library as it is installed. `make wheel` runs this in a copy, where nothing of the checkout is."""

import importlib
import importlib.util
import pkgutil
import sys
from importlib import resources
from pathlib import Path

from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import Worker

import sagafence  # as a stranger's workflow module has it: not passed through
from sagafence import SagaError

_PROGRAMS = ("__main__", ".tied")


@workflow.defn
class Installed:
    @workflow.run
    async def run(self) -> list[str]:
        return [sagafence.Refusal.__name__, SagaError.__name__]


async def test_a_workflow_imports_the_library_in_the_sandbox(saga_client: Client, saga_task_queue: str) -> None:
    async with Worker(saga_client, task_queue=saga_task_queue, workflows=[Installed]):
        names = await saga_client.execute_workflow(Installed.run, id="installed", task_queue=saga_task_queue)

    assert names == ["Refusal", "SagaError"]


def test_every_module_is_installed_and_can_be_imported() -> None:
    names = [module.name for module in pkgutil.walk_packages(sagafence.__path__, "sagafence.")]

    for name in names:
        if not name.endswith(_PROGRAMS):
            module = importlib.import_module(name)
            assert module.__file__ is not None
            assert Path(module.__file__).is_relative_to(sys.prefix)
    assert {"sagafence.testing.cases", "sagafence.devservers.postgres", "sagafence.external_steps.sql"} <= {*names}


def test_every_public_name_is_there() -> None:
    for name in sagafence.__all__:
        assert getattr(sagafence, name) is not None


def test_types_and_schema_are_installed() -> None:
    package = resources.files("sagafence")

    assert package.joinpath("py.typed").is_file()
    assert sorted(each.name for each in package.joinpath("schema").iterdir() if each.name.endswith(".sql"))
    assert "CREATE TABLE" in sagafence.ddl()


def test_nothing_of_the_checkout_is_there() -> None:
    rooms = ("workflows", "activities", "adapters", "client", "devstack", "domain", "terminal", "starter", "worker")

    assert [room for room in rooms if importlib.util.find_spec(room) is not None] == []

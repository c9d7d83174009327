"""Open one workspace: `python -m examples.workspace.start acme --plan team`. Status 1: it was refused, or undone."""

import argparse
import asyncio
import json
import os
import sys
from dataclasses import asdict

from temporalio.client import Client, WorkflowFailureError

from examples.workspace.model import Workspace
from examples.workspace.worker import TASK_QUEUE
from examples.workspace.workflow import OpenWorkspace


async def open_workspace(subdomain: str, plan: str) -> int:
    client = await Client.connect(os.environ.get("TEMPORAL_ADDRESS", "localhost:7233"))
    ws = Workspace(f"workspace-{subdomain}", subdomain, plan)
    try:
        opened = await client.execute_workflow(OpenWorkspace.run, ws, id=ws.workspace_id, task_queue=TASK_QUEUE)
    except WorkflowFailureError as error:
        print(f"{subdomain} was not opened: {error.cause}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(opened)))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m examples.workspace.start", description="Open one workspace.")
    parser.add_argument("subdomain")
    parser.add_argument("--plan", default="team", help="team, company or pilot")
    given = parser.parse_args()
    status = asyncio.run(open_workspace(given.subdomain, given.plan))
    sys.stdout.flush()
    os._exit(status)  # sys.exit may abort on Python 3.11 once Temporal's client was used (temporalio/sdk-python#300)

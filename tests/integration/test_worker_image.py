"""The image's programs from its own files, in the environment of a cluster, with nothing else of ours."""

import json
import sys
import urllib.request
from pathlib import Path

import pytest

from sagafence.devservers.process import ChildProcess
from tests.integration.commands import DEADLINE_SECONDS, Commands, Ran
from tests.unit.image_files import make_image

# What Kubernetes puts into every container beside services that are called checkout and checkout-api.
SERVICE_LINKS = {
    "CHECKOUT_SERVICE_HOST": "x",
    "CHECKOUT_SERVICE_PORT": "80",
    "CHECKOUT_PORT": "tcp://1.2.3.4:80",
    "CHECKOUT_PORT_80_TCP": "tcp://1.2.3.4:80",
    "CHECKOUT_PORT_80_TCP_PROTO": "tcp",
    "CHECKOUT_PORT_80_TCP_PORT": "80",
    "CHECKOUT_PORT_80_TCP_ADDR": "1.2.3.4",
    "CHECKOUT_API_SERVICE_HOST": "x",
    "CHECKOUT_API_SERVICE_PORT_HTTP": "8080",
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    make_image(folder)
    return folder


def test_the_image_checks_works_sells_and_ends_as_it_is(commands: Commands, image: Path, tmp_path: Path) -> None:
    environment = commands.environment | SERVICE_LINKS | {"CHECKOUT_HEARTBEAT_FILE": str(tmp_path / "heartbeat")}

    def run(*arguments: str) -> Ran:
        return commands.python_in(image, *arguments, **environment)

    stray = run("-c", "import embedded")
    checked = run("worker.py", "--check")
    worker = ChildProcess(
        "worker", [sys.executable, "worker.py"], log=tmp_path / "worker.log", env=environment, cwd=image
    )
    commands.workers.append(worker)
    worker.start()
    worker.until(lambda: "ready: task queue" in worker.tail(100), timeout=DEADLINE_SECONDS)
    worker.until(lambda: run("-m", "adapters.heartbeat").code == 0, timeout=DEADLINE_SECONDS)
    bought = run("starter.py", "start", "--customer", "alice", "--line", "tea-mug:1")
    audited = run("starter.py", "audit")
    status = worker.stop(timeout=DEADLINE_SECONDS)

    assert "No module named 'embedded'" in stray.err, "the test runs on more than the image has"
    assert (checked.code, checked.out) == (0, "Nothing is lacking: a worker can start.\n"), checked.err
    assert bought.code == 0, bought.err
    assert audited.code == 0, audited.out + audited.err
    assert status == 0, worker.tail(50)
    assert not list(image.rglob("*.log")), "the image's own folder is read-only"


def test_the_image_makes_a_key_and_takes_an_order_over_http(commands: Commands, image: Path, tmp_path: Path) -> None:
    keys = {"CHECKOUT_API_KEYS_FILE": str(tmp_path / "keys.json")}
    api, url = commands.ready_api(image, **SERVICE_LINKS, **keys)
    made = commands.python_in(image, "-m", "http_api.keys", "create", "shop", "--scope", "buy", **keys)
    commands.ready_worker()
    request = urllib.request.Request(
        f"{url}/v1/orders?wait=20",
        data=json.dumps({"customer": "alice", "lines": [{"sku": "tea-mug", "quantity": 1}]}).encode(),
        headers={
            "Authorization": f"Bearer {made.out.strip()}",
            "Idempotency-Key": "1",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:
        bought = (answer.status, json.load(answer)["status"])
    with urllib.request.urlopen(f"{url}/docs/assets/swagger-ui.css", timeout=DEADLINE_SECONDS) as page:
        shown = page.status
    status = api.stop(timeout=DEADLINE_SECONDS)

    assert bought == (201, "completed"), api.tail(50)
    assert (shown, status) == (200, 0), api.tail(50)
    assert not [file for file in image.iterdir() if file.suffix in {".json", ".log"}], "its own folder is read-only"


@pytest.mark.parametrize(
    "program",
    [("worker.py",), ("worker.py", "--check"), ("starter.py", "list"), ("api.py",)],
    ids=" ".join,
)
def test_a_typo_is_refused_beside_the_links_of_services(
    program: tuple[str, ...], commands: Commands, image: Path
) -> None:
    done = commands.python_in(image, *program, **SERVICE_LINKS, CHECKOUT_PROT="tcp://1.2.3.4:80")

    assert done.code == 2
    assert "CHECKOUT_PROT: there is no such setting" in done.err
    assert "CHECKOUT_PORT:" not in done.err
    assert "Traceback" not in done.err

"""The API key of `make up`: made at the first start, and kept in a private file for whoever has the folder."""

import subprocess
import sys

from devstack.stack import ROOT, DevStack
from sagafence.devservers.passwords import write_for_us_alone
from sagafence.devservers.process import ServerFailed

SCOPES = ("buy", "read", "operate")


def keep_api_key(stack: DevStack) -> None:
    """Make a key for all that the API does, unless the one of an earlier start is there.

    Raises:
        ServerFailed: the file of keys cannot be read or written.
    """
    file = stack.folder / "api.key"
    if file.exists() and stack.api_keys_file.exists():
        return
    scopes = [word for scope in SCOPES for word in ("--scope", scope)]
    made = subprocess.run(  # noqa: S603 - no shell, our own arguments
        [sys.executable, "-m", "http_api.keys", "create", "make-up", *scopes],
        env=stack.api_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise ServerFailed.of("the API", "it got no key", advice=f"Look at {stack.api_keys_file}", tail=made.stderr)
    write_for_us_alone(file, made.stdout)

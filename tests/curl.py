"""Runs the curl lines of the documents as they are pasted, on machines without curl too.

    python -m tests.curl [-X METHOD] [-H HEADER] [-d BODY] [-s] [-i] [-N] URL

does what curl does of these.
"""

import argparse
import os
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Answer:
    """What came of a line; without `-i` its status is not known, and 0."""

    status: int
    headers: str
    body: str


def paste(line: str, folder: Path) -> Answer:
    """Give a line to a shell in a folder, where `curl` is this module, which shows the headers always.

    Its `curl` is a function of the shell, so quotes, `$(...)` and line ends mean what they mean to a reader.
    """
    script = f'curl() {{ PYTHONPATH="{_ROOT}" "{sys.executable}" -m tests.curl -i "$@"; }}\n{line}\n'
    done = subprocess.run(
        ["sh", "-euc", script], cwd=folder, capture_output=True, text=True, check=True, timeout=60, env=dict(os.environ)
    )
    head, _, body = done.stdout.partition("\n\n")
    status, _, headers = head.partition("\n")
    return Answer(int(status.split()[1]), headers, body)


def main() -> None:
    """Make one request."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-X", dest="method")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-d", dest="body")
    for flag in "siN":
        parser.add_argument(f"-{flag}", action="store_true")
    parser.add_argument("url")
    given = parser.parse_args()
    request = urllib.request.Request(
        given.url,
        data=None if given.body is None else given.body.encode(),
        headers=dict(header.split(": ", 1) for header in given.headers),
        method=given.method,
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        answer = opener.open(request, timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        body = answer.read().decode()
        headers = "".join(f"{name}: {value}\n" for name, value in answer.headers.items())
        sys.stdout.write(f"HTTP/1.1 {answer.status}\n{headers}\n{body}" if given.i else body)


if __name__ == "__main__":
    main()

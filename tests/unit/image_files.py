"""The files of the image, laid out as the Dockerfile lays them out. No container engine is needed for that."""

import re
import shutil
from pathlib import Path

from devstack.stack import ROOT


def dockerfile() -> list[list[str]]:
    """Give the Dockerfile's instructions, each as its words."""
    text = re.sub(r"\\\n", " ", (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8"))
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def copies() -> list[tuple[list[str], str]]:
    """Give what is copied into the image, and where to."""
    return [(words[:-1], words[-1]) for instruction, *words in dockerfile() if instruction == "COPY"]


def make_image(folder: Path) -> None:
    """Copy into the folder what the image gets into its working folder, and nothing else."""
    for sources, target in copies():
        for source in sources:
            # A folder's content goes into the target, a file under its own name, as Docker does it.
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (folder / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, folder / target)

"""Scripts that no package has, loaded for the tests of their functions."""

import importlib.util
from types import ModuleType

from devstack.stack import ROOT


def load(path: str) -> ModuleType:
    """Load a script of the project as a module."""
    specification = importlib.util.spec_from_file_location((ROOT / path).stem, ROOT / path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module

"""Every mutant: those of each module in this folder, by area."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from tests.mutants.mutant import Mutant

_AREAS = [area.name for area in iter_modules([str(Path(__file__).parent)])]
_MACHINERY = {"__main__", "campaign", "catalogue", "killers", "mutant", "run"}

MUTANTS: tuple[Mutant, ...] = tuple(
    mutant for area in _AREAS if area not in _MACHINERY for mutant in import_module(f"tests.mutants.{area}").MUTANTS
)

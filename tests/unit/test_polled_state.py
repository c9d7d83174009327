"""What is logged of a state that is polled."""

import pytest

from adapters.polled_state import PolledState


@pytest.mark.parametrize(
    ("repeat_every", "polls", "logged"),
    [
        (None, "aabbcaa", "0010110"),
        (None, "abbbb", "01000"),
        (2, "aabbbbb", "0010101"),
        (2, "bbbaaab", "1011001"),
    ],
    ids=["changes", "an alarm once", "an alarm again every second poll", "what is no alarm once"],
)
def test_a_state_is_logged_when_it_changes_and_an_alarm_again_after_so_many_polls(
    repeat_every: int | None, polls: str, logged: str
) -> None:
    state = PolledState("a", repeat_every=repeat_every)

    due = [state.update(found, is_alarm=found == "b") for found in polls]

    assert "".join(str(int(is_due)) for is_due in due) == logged

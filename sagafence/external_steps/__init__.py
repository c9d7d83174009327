"""Steps whose effect is with a provider elsewhere: at most once, never after their undo, and unknown until known."""

from sagafence.external_steps.answers import Calls
from sagafence.external_steps.steps import ExternalSteps

__all__ = ["Calls", "ExternalSteps"]

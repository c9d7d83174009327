"""Declaring steps: decorators for the methods of a class, which know neither an engine nor a database.

    class Steps(SagaSteps):
        @local("seat")
        async def allocate(self, tx: AsyncSession, ws: Workspace) -> Seat: ...

        @allocate.undo
        async def free(self, tx: AsyncSession, ws: Workspace, done: Seat) -> None: ...

Which verb of `Saga` takes a step follows from how it is declared, and type checkers know it: `saga.do` takes `@local`
and `@external`, `saga.pivot` takes `@local.pivot` and `@external.pivot`, `saga.then` takes `@local.forward` and
`@external.forward`. Every mistake that can be seen in a declaration is raised where it is written, as `SagaMisuse`.
"""

from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypedDict, TypeVar, Unpack, cast

from sagafence.policy import STEP_POLICY, UNDO_POLICY, ActivityPolicy
from sagafence.provider import Key, Provider, Seen, Settles, Stands
from sagafence.signature import SagaMisuse, may_be_none, require_method, require_name, require_takes, step_types

In = TypeVar("In")
Out = TypeVar("Out")
Tx = TypeVar("Tx")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Async: TypeAlias = Coroutine[Any, Any, T]


class Options(TypedDict, total=False):
    """What a declaration may say besides its name."""

    activity: str
    """Temporal's activity type; the method's name by default. Running sagas find their steps by it."""
    undo_activity: str
    """That of its undo; the undo's name by default."""
    policy: ActivityPolicy
    """How long the step may take and how it is retried: `STEP_POLICY` by default, a minute in all."""
    undo_policy: ActivityPolicy
    """The same of one round of its undo, or of settling a pivot: `UNDO_POLICY` by default, a quarter of an hour."""
    summary: Callable[[Any], str]
    """What the UI shows beside the activity, made from the step's input."""


class Step(Generic[In, Out]):
    """A declared step: what a story names, and what a fence binds to a database."""

    needs_undo: ClassVar[bool] = False
    takes: ClassVar[tuple[str, ...]] = ("self", "tx", "its input")
    decorator: ClassVar[str] = "@local"
    why_no_undo: ClassVar[str] = "there is no way back. To have one, declare it without .pivot or .forward"

    def __init__(self, fn: Callable[..., Async[Out]], name: str, options: Options) -> None:
        require_name(name)
        require_method(fn, f'the step "{name}"', self.takes)
        if unknown := sorted(options.keys() - Options.__annotations__.keys()):
            there_are = ", ".join(Options.__annotations__)
            raise SagaMisuse(f'the step "{name}" has no option {", ".join(unknown)}; there are {there_are}')
        for policy in ("policy", "undo_policy"):
            if not isinstance(options.get(policy, STEP_POLICY), ActivityPolicy):
                raise SagaMisuse(f'the step "{name}": {policy} is an ActivityPolicy, not {options[policy]!r}')
        self.fn, self.name = fn, name
        self.undo_fn: Callable[..., Async[Any]] | None = None
        self.activity = options.get("activity", fn.__name__)
        self.undo_activity = options.get("undo_activity", "")
        self.policy = options.get("policy", STEP_POLICY)
        self.undo_policy = options.get("undo_policy", UNDO_POLICY)
        self.summary = options.get("summary", lambda _given: name)
        self.transaction_type: Any = None
        """What the step wants its transaction as; None where it has none."""
        self.input_type: Any = None
        self.result_type: Any = None

    if not TYPE_CHECKING:  # a type checker says it in its own words

        def __getattr__(self, attribute: str) -> Any:
            if why := {"undo": self.why_no_undo, "lookup": "its fence knows what it did: leave the lookup out"}.get(
                attribute
            ):
                raise SagaMisuse(f'the step "{self.name}" has no {attribute}: {why}')
            raise AttributeError(f"{type(self).__name__} has no attribute {attribute!r}")

    @property
    def activities(self) -> dict[str, str]:
        """The activity types it is registered as, by what they do."""
        return {"do": self.activity}

    def complete(self, owner: type) -> None:
        """Check what is known once the class is whole, and find the types that payloads are decoded to."""
        where = f'the step "{self.name}" ({owner.__name__}.{self.fn.__name__})'
        if self.needs_undo and self.undo_fn is None:
            raise SagaMisuse(
                f"{where} has no undo. Write one beside it with @{self.fn.__name__}.undo, or declare the step with "
                f"{self.decorator}.pivot or {self.decorator}.forward if there is no way back"
            )
        self.transaction_type, self.input_type, self.result_type = step_types(self.fn, where)
        if self.undo_fn is not None:
            require_takes(self.undo_fn, where, self._undo_gets())

    def _undo_gets(self) -> tuple[Any, ...]:
        return self.transaction_type, self.input_type, self.result_type

    def _set_undo(self, fn: F) -> F:
        if self.undo_fn is not None:
            raise SagaMisuse(f'the step "{self.name}" has two undos: {self.undo_fn.__name__} and {fn.__name__}')
        require_method(fn, f'the undo of "{self.name}"', (*self.takes, "what is known of the step"))
        if fn.__name__ == self.fn.__name__:
            raise SagaMisuse(f'the undo of "{self.name}" is named as its step, {fn.__name__}, and would take its place')
        self.undo_fn = fn
        self.undo_activity = self.undo_activity or fn.__name__
        return fn


class Undoable(Step[In, Out]):
    """A step before the pivot: `saga.do`."""

    needs_undo = True

    @property
    def activities(self) -> dict[str, str]:
        """Its do and its undo."""
        return {"do": self.activity, "undo": self.undo_activity}


class Pivot(Step[In, Out]):
    """The point of no return: `saga.pivot`. Beside its do it has an activity that settles what is unknown."""

    @property
    def activities(self) -> dict[str, str]:
        """Its do, and what finds out whether it happened."""
        return {"do": self.activity, "settle": f"{self.activity}.settle"}


class Forward(Step[In, Out]):
    """A step after the pivot, tried until it is done: `saga.then`."""


class LocalStep(Undoable[In, Out], Generic[Tx, In, Out]):
    """A step in one transaction of the database that has the fence."""

    def undo(self, fn: Callable[[Any, Tx, In, Out], Async[None]]) -> Callable[[Any, Tx, In, Out], Async[None]]:
        """Declare how the step is reversed. Runs only where it took effect, with its stored result."""
        return self._set_undo(fn)


class LocalPivot(Pivot[In, Out], Generic[Tx, In, Out]):
    """A pivot in one transaction: what it did is known, so it needs no undo."""


class LocalForward(Forward[In, Out], Generic[Tx, In, Out]):
    """A step after the pivot, in one transaction."""


class External(Step[In, Out]):
    """A step whose effect is at a provider."""

    takes = ("self", "key", "its input")
    decorator = "@external"

    def __init__(self, fn: Callable[..., Async[Out]], name: str, provider: Provider, options: Options) -> None:
        super().__init__(fn, name, options)
        if not isinstance(provider, Provider):
            raise SagaMisuse(f'the step "{name}" needs its provider: {self.decorator}("{name}", Provider(...))')
        self.provider = provider
        self.lookup_fn: Callable[..., Async[Out | None]] | None = None

    def complete(self, owner: type) -> None:
        """Check that the step has what its provider settles by."""
        super().complete(owner)
        where = f'the step "{self.name}" ({owner.__name__}.{self.fn.__name__})'
        if self.provider.settles is Settles.BY_LOOKING_UP and self.lookup_fn is None:
            raise SagaMisuse(f"{where} settles by looking up: write how with @{self.fn.__name__}.lookup")
        if self.lookup_fn is not None and may_be_none(self.result_type):
            raise SagaMisuse(f"{where}: None says that a lookup found nothing, so it cannot be the step's result too")
        if self.provider.settles is Settles.BY_VOIDING and isinstance(self, Pivot) and self.undo_fn is None:
            raise SagaMisuse(f"{where} settles by voiding: write how with @{self.fn.__name__}.undo")

    def _undo_gets(self) -> tuple[Any, ...]:
        return Key, self.input_type  # and what is known of the step

    def lookup(self, fn: Callable[[Any, Key, In], Async[Out | None]]) -> Callable[[Any, Key, In], Async[Out | None]]:
        """Declare how the provider is asked what became of the step: its result, or None where there is none."""
        require_method(fn, f'the lookup of "{self.name}"', self.takes)
        if fn.__name__ == self.fn.__name__:
            raise SagaMisuse(f'the lookup of "{self.name}" is named as its step, {fn.__name__}, and would replace it')
        self.lookup_fn = fn
        return fn


class ExternalStep(Undoable[In, Out], External[In, Out]):
    """A step at a provider that can be undone."""

    def undo(
        self, fn: Callable[[Any, Key, In, Seen[Out]], Async[None]]
    ) -> Callable[[Any, Key, In, Seen[Out]], Async[None]]:
        """Declare how the step is reversed, or voided under its key. Runs only where its intent was committed.

        What it did is `Known`, unless the provider settles by voiding. A reversal that the provider would do twice
        needs a key of its own: `key.undo`.
        """
        return self._set_undo(fn)


class ExternalPivot(Pivot[In, Out], External[In, Out]):
    """The point of no return, at a provider. While its outcome is unknown, nothing before it is undone."""

    def undo(
        self, fn: Callable[[Any, Key, In, Seen[Out]], Async[Stands[Out] | None]]
    ) -> Callable[[Any, Key, In, Seen[Out]], Async[Stands[Out] | None]]:
        """Declare how the key is voided: None when nothing happened or ever will, `Stands` when it had happened."""
        return self._set_undo(fn)


class ExternalForward(Forward[In, Out], External[In, Out]):
    """A step after the pivot, at a provider."""


class _Local:
    """Declares a step that is one transaction. `tx` comes as an AsyncSession or an AsyncConnection, as annotated."""

    def __call__(
        self, name: str, **options: Unpack[Options]
    ) -> Callable[[Callable[[Any, Tx, In], Async[Out]]], LocalStep[Tx, In, Out]]:
        """Declare a step that is undone when a later one fails."""
        require_name(name)  # here already: @local without a name would declare nothing
        return lambda fn: LocalStep(fn, name, options)

    def pivot(
        self, name: str, **options: Unpack[Options]
    ) -> Callable[[Callable[[Any, Tx, In], Async[Out]]], LocalPivot[Tx, In, Out]]:
        """Declare the point of no return."""
        return lambda fn: LocalPivot(fn, name, options)

    def forward(
        self, name: str, **options: Unpack[Options]
    ) -> Callable[[Callable[[Any, Tx, In], Async[Out]]], LocalForward[Tx, In, Out]]:
        """Declare a step after the pivot."""
        return lambda fn: LocalForward(fn, name, options)


def _needs_provider(declare: F) -> F:
    @wraps(declare)
    def checked(self: Any, *given: Any, **options: Any) -> Any:
        if len(given) == 1 and "provider" not in options and isinstance(given[0], str):
            raise SagaMisuse(f'the step "{given[0]}" needs its provider: @external("{given[0]}", Provider(...))')
        return declare(self, *given, **options)

    return cast("F", checked)


class _External:
    """Declares a step with its effect elsewhere: the intent is committed first, and a stable key is passed in."""

    @_needs_provider
    def __call__(
        self, name: str, provider: Provider, **options: Unpack[Options]
    ) -> Callable[[Callable[[Any, Key, In], Async[Out]]], ExternalStep[In, Out]]:
        """Declare a step that is undone when a later one fails."""
        return lambda fn: ExternalStep(fn, name, provider, options)

    @_needs_provider
    def pivot(
        self, name: str, provider: Provider, **options: Unpack[Options]
    ) -> Callable[[Callable[[Any, Key, In], Async[Out]]], ExternalPivot[In, Out]]:
        """Declare the point of no return."""
        return lambda fn: ExternalPivot(fn, name, provider, options)

    @_needs_provider
    def forward(
        self, name: str, provider: Provider, **options: Unpack[Options]
    ) -> Callable[[Callable[[Any, Key, In], Async[Out]]], ExternalForward[In, Out]]:
        """Declare a step after the pivot."""
        return lambda fn: ExternalForward(fn, name, provider, options)


local = _Local()
"""Declares a step that is one transaction of our own Postgres: its method takes `tx` and the step's input.

    @local("room")                       # saga.do: undone when a later step fails
    async def take_room(self, tx: AsyncConnection, trip: Trip) -> str: ...

    @take_room.undo                      # gets the stored result; runs only where the step took effect
    async def free_room(self, tx: AsyncConnection, trip: Trip, hotel: str) -> None: ...

    @local.pivot("invoice")              # saga.pivot: the point of no return, without an undo
    @local.forward("thanks")             # saga.then: after the pivot, tried until it is done, without an undo

`tx` comes as annotated: an AsyncConnection or an AsyncSession. Options of all three: `policy=` (by default
`STEP_POLICY`: 5 s an attempt, 60 s in all), `undo_policy=` (`UNDO_POLICY`: 10 s an attempt, 15 minutes a round),
`activity=` and `undo_activity=` (Temporal's activity types; by default the methods' names), `summary=` (for the UI).
"""
external = _External()
"""Declares a step with its effect at a `Provider`: its method takes a `Key`, the same in every attempt, and the input.

    @external("seat", AIRLINE)           # saga.do: undone when a later step fails
    async def book_seat(self, key: Key, trip: Trip) -> int: ...

    @book_seat.undo                      # gets Known(result), or Unknown() where the provider settles by voiding
    async def cancel_seat(self, key: Key, trip: Trip, seen: Seen[int]) -> None: ...

    @book_seat.lookup                    # where it settles by looking up: the result, or None where there is none
    async def find_seat(self, key: Key, trip: Trip) -> int | None: ...

    @external.pivot("invoice", AIRLINE)  # saga.pivot; an undo only to void its key: None, or Stands(result)
    @external.forward("ticket", AIRLINE) # saga.then: after the pivot, tried until it is done, without an undo

The options and their defaults are those of `local`. What the method raises says what became of the call: `Refusal`,
`CallRejected`, `KeyReused`, `StoredFailure`; after anything else the outcome is unknown.
"""


class SagaSteps:
    """The steps of a saga, with their undos beside them. A subclass holds what the steps work with, but no engine."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        for step in vars(cls).values():
            if isinstance(step, Step):
                step.complete(cls)
        for attribute in {name for base in cls.__mro__ for name, one in vars(base).items() if isinstance(one, Step)}:
            if not isinstance(getattr(cls, attribute), Step):
                raise SagaMisuse(f"{cls.__name__}.{attribute} overrides a step and is none: declare it anew")
        steps = list(declared(cls))
        activities = [activity for step in steps for activity in step.activities.values()]
        for what, names in (("steps", [step.name for step in steps]), ("activities", activities)):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise SagaMisuse(f"{cls.__name__} has two {what} named {', '.join(twice)}: give one another name")
        if len(pivots := [step.name for step in steps if isinstance(step, Pivot)]) > 1:
            raise SagaMisuse(f"{cls.__name__} has the pivots {', '.join(pivots)}: a saga has one point of no return")


def declared(cls: type) -> Iterator[Step[Any, Any]]:
    """Yield the steps of a class, those of its bases first, each once."""
    found: dict[str, Step[Any, Any]] = {}
    for base in reversed(cls.__mro__):
        found |= {attribute: step for attribute, step in vars(base).items() if isinstance(step, Step)}
    yield from found.values()

"""A world around the rules of external steps: a provider, a network, workers that pause and die, a clock, a person.

The rules are the product's own (sagafence/external_steps); everything else here is as unkind as its declaration
allows. A state is a tuple. `moves` lists every atomic move from it: one transaction, one send, one act of the provider,
one answer heard or lost, one tick. Instants are relative: 0 is now, -2 is two ticks ago, and what is too old to matter
grows no older, so there is no horizon.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, cached_property
from typing import Any, NamedTuple

from sagafence.external_steps import backward, forward, verdicts
from sagafence.external_steps.state import Act, Answer, Facts, Next, Phase, Step
from sagafence.provider import Keeps, Provider, Verdict


def ticks(number: int | None) -> timedelta | None:
    return None if number is None else timedelta(seconds=number)


@dataclass(frozen=True)
class Rules:
    """The rules under test; a planted mistake replaces one."""

    begin_do: Any = forward.begin_do
    heard_do: Any = forward.heard_do
    looked_do: Any = forward.looked_do
    begin_undo: Any = backward.begin_undo
    heard_claim: Any = backward.heard_claim
    heard_void: Any = backward.heard_void
    heard_reversal: Any = backward.heard_reversal
    looked_undo: Any = backward.looked_undo
    said: Any = verdicts.said
    facts: Any = Facts


@dataclass(frozen=True)
class Scene:
    """One provider as declared, what it may really do, and how much happens."""

    name: str
    provider: Provider
    look: bool = False
    pivot: bool = False
    five_acts: bool = True
    """A 5xx may hide an effect."""
    pauses: bool = False
    """A worker may pause without bound between permission and send."""
    dos: int = 2
    undos: int = 1
    faults: int = 1
    rules: Rules = field(default_factory=Rules)

    @cached_property
    def truth(self) -> Facts:
        return Facts(self.provider, can_look=self.look)

    def believed(self) -> Facts:
        facts: Facts = self.rules.facts(self.provider, can_look=self.look)
        return facts


class Worker(NamedTuple):
    does: str
    at: str = "begin"
    sent: Next = Next(Act.WAIT)
    key: int = 0
    age: int = 0
    answer: Answer = Answer.UNKNOWN
    effect: int = -1
    token: tuple[object, ...] = ()


class World(NamedTuple):
    step: Step = Step()
    result: int = -1
    effects: tuple[tuple[bool, int, int], ...] = ()
    """Whether it is there, when it came, under which key."""
    keys: tuple[tuple[int, int, Answer, int], ...] = ()
    voided: frozenset[int] = frozenset()
    reversals: int = 0
    undo_keys: tuple[tuple[int, int], ...] = ()
    lost: tuple[tuple[str, int, int, int], ...] = ()
    """Requests under way that nobody waits for: kind, key, effect, age."""
    workers: tuple[Worker, ...] = ()
    faults: int = 0
    told_undone: bool = False
    seen: tuple[int, int] | None = None
    """When a person has looked, and which effect they have seen or -1, which they have not said yet."""
    seen_since: bool = False
    """Whether that was after the last permission, and the last answer that is recorded."""


Move = tuple[str, World]


@cache
def place_of(worker: Worker) -> str:
    """Give workers an order, so that two states that differ in it alone are one."""
    return repr(worker)


def beginning(scene: Scene) -> World:
    workers = (Worker("do"),) * scene.dos + (Worker("undo"),) * scene.undos
    return World(workers=workers, faults=scene.faults)


def moves(scene: Scene, facts: Facts, world: World) -> Iterator[Move]:
    if (later := tick(scene.truth, scene, world)) is not None:
        yield "tick", later
    for place, request in enumerate(world.lost):
        rest = world._replace(lost=world.lost[:place] + world.lost[place + 1 :])
        yield f"late {request[0]} is lost", rest
        for label, after, _, _, stays in acts(scene, scene.truth, rest, request[0], request[1], request[2]):
            yield f"LATE {request[0]}: {label}", after._replace(lost=world.lost if stays else after.lost)
    yield from person(scene, facts, world)
    seen = set()
    for place, worker in enumerate(world.workers):
        if worker in seen or worker.at == "end":
            continue
        seen.add(worker)
        for label, after, next_worker in works(scene, facts, world, worker):
            workers = tuple(sorted((*world.workers[:place], next_worker, *world.workers[place + 1 :]), key=place_of))
            yield f"{worker.does}: {label}", after._replace(workers=workers)


def tick(facts: Facts, scene: Scene, world: World) -> World | None:
    late = scene.provider.late_by_at_most
    bound = None if late is None else int(late.total_seconds())
    ages = [request[3] for request in world.lost]
    ages += [w.age for w in world.workers if w.at == "sent" or (w.at == "permitted" and not scene.pauses)]
    if bound is not None and any(age <= -bound for age in ages):
        return None  # it must arrive or be lost first
    forget = 0 if facts.kept == float("inf") else -int(facts.kept)
    lag = int(facts.lag)
    old = min(-lag if bound is None else -(bound + lag + 1), 0)

    def older(instant: Any, floor: int) -> Any:
        return instant if instant is None else max(instant - 1, floor)

    step = world.step._replace(
        first=older(world.step.first, min(forget, old)),
        last=older(world.step.last, min(old, forget)),
        rev_first=older(world.step.rev_first, forget),
        rev_last=older(world.step.rev_last, old),
    )
    oldest = -(bound or 0)
    moving = {"permitted", "sent"}
    after = world._replace(
        step=step,
        effects=tuple((there, older(born, -lag), key) for there, born, key in world.effects),
        keys=tuple((key, older(made, forget), *rest) for key, made, *rest in world.keys),
        undo_keys=tuple((key, older(made, forget)) for key, made in world.undo_keys),
        lost=tuple((*request[:3], older(request[3], oldest)) for request in world.lost),
        seen=world.seen and (older(world.seen[0], old), world.seen[1]),
        workers=tuple(
            w._replace(age=older(w.age, oldest if w.at in moving else old))
            if w.at in {*moving, "look", "looked"}
            else w
            for w in world.workers
        ),
    )
    return None if after == world else after


# ------------------------------------------------------------------------------------------------------------ provider
Acted = tuple[str, World, Answer, int, bool]


def acts(scene: Scene, facts: Facts, world: World, kind: str, key: int, effect: int) -> Iterator[Acted]:
    """Every way in which the provider may treat a request: label, world, answer, effect, whether it stays under way."""
    if kind == "create":
        yield from creates(scene, facts, world, key)
    elif kind == "void":
        yield from voids(scene, world, key)
    else:
        yield from reverses(scene, facts, world, key, effect)


def creates(  # noqa: C901 - one branch for each way to answer
    scene: Scene, facts: Facts, world: World, key: int
) -> Iterator[Acted]:
    provider, less = scene.provider, world._replace(faults=world.faults - 1)
    if world.faults:
        yield "answers 4xx of this call", less, Answer.REJECTED, -1, False
        if provider.duplicates:
            yield "answers 4xx, a copy is under way", less, Answer.REJECTED, -1, True
        yield "a gateway answers 503, it goes on", less, Answer.UNKNOWN, -1, True
    if key in world.voided:
        yield "refuses a voided key", world, Answer.REFUSED, -1, False
        return
    old = next((entry for entry in world.keys if entry[0] == key), None)
    if old is not None and world.faults:
        yield "finds other content under the key", less, Answer.KEY_REUSED, -1, False
    if old is not None:
        answer = Answer.STORED_FAILURE if old[2] is Answer.UNKNOWN else old[2]
        yield f"replays {answer.value}", world, answer, old[3], False
        if old[1] > -facts.kept:
            return

    def kept(after: World, answer: Answer, effect: int) -> World:
        if not keeps(provider, answer, effect):
            return after
        entries = [entry for entry in after.keys if entry[0] != key]
        return after._replace(keys=tuple(sorted([*entries, (key, 0, answer, effect)], key=repr)))

    number = len(world.effects)
    did = world._replace(effects=(*world.effects, (True, 0, key)))
    yield "ACTS", kept(did, Answer.OK, number), Answer.OK, number, False
    if world.faults:
        yield "refuses", kept(less, Answer.REFUSED, -1), Answer.REFUSED, -1, False
        yield "answers 500, nothing done", kept(less, Answer.UNKNOWN, -1), Answer.UNKNOWN, -1, False
        if scene.five_acts:
            hidden = did._replace(faults=less.faults)
            yield "ACTS and answers 500", kept(hidden, Answer.UNKNOWN, number), Answer.UNKNOWN, -1, False
        if provider.duplicates:
            yield "ACTS, a copy is under way", kept(hidden, Answer.OK, number), Answer.OK, number, True


def keeps(provider: Provider, answer: Answer, effect: int) -> bool:
    if provider.keeps is Keeps.FIRST_ANSWERS:
        return True
    if provider.keeps is Keeps.SUCCESSES:
        return answer is Answer.OK
    return provider.keeps is Keeps.OBJECTS and effect >= 0


def voids(scene: Scene, world: World, key: int) -> Iterator[Acted]:
    hit = [number for number, effect in enumerate(world.effects) if effect[0] and effect[2] == key]
    if scene.pivot and hit:
        yield "too late to void", world, Answer.STANDS, hit[0], False
    effects = tuple((there and mark != key, born, mark) for there, born, mark in world.effects)
    after = world._replace(effects=effects, reversals=world.reversals + len(hit))
    if scene.provider.void_blocks:
        after = after._replace(voided=world.voided | {key})
    if scene.provider.frees_keys:
        after = after._replace(keys=tuple(entry for entry in world.keys if entry[0] != key))
    yield "voids", after, Answer.OK, -1, False
    if world.faults:
        yield "voids and answers 500", after._replace(faults=world.faults - 1), Answer.UNKNOWN, -1, False


def reverses(scene: Scene, facts: Facts, world: World, key: int, effect: int) -> Iterator[Acted]:
    there, born, mark = world.effects[effect]
    entries = world.keys
    if scene.provider.frees_keys:
        entries = tuple(entry for entry in entries if entry[3] != effect)
    gone = (*world.effects[:effect], (False, born, mark), *world.effects[effect + 1 :])
    after = world._replace(effects=gone, keys=entries, reversals=world.reversals + 1)
    if scene.provider.reversal_is_idempotent:
        yield "reverses", after if there else world, Answer.OK, -1, False
    else:
        old = next((entry for entry in world.undo_keys if entry[0] == key), None)
        if old is not None and facts.has_keys:
            yield "replays the reversal", world, Answer.OK, -1, False
        if old is None or not facts.has_keys or old[1] <= -facts.kept:
            paid = after._replace(undo_keys=((key, 0),))
            yield "PAYS BACK", paid, Answer.OK, -1, False
    if world.faults and there and scene.provider.reversal_is_idempotent:
        yield "reverses and answers 500", after._replace(faults=world.faults - 1), Answer.UNKNOWN, -1, False


# ------------------------------------------------------------------------------------------------------------- workers
Worked = tuple[str, World, Worker]


def works(scene: Scene, facts: Facts, world: World, worker: Worker) -> Iterator[Worked]:
    end = Worker(worker.does, "end")
    if worker.at == "begin":
        yield begins(scene, facts, world, worker)
    elif worker.at == "permitted":
        age = 0 if scene.pauses else worker.age
        yield "sends", world, worker._replace(at="sent", age=age)
        yield "dies before sending", world, end
    elif worker.at == "sent":
        kind = {Act.VOID: "void", Act.REVERSE: "reverse"}.get(worker.sent.act, "create")
        request = (kind, worker.key, worker.effect, worker.age)
        yield f"{kind} is lost", world, end
        away = tuple(sorted((*world.lost, request)))
        yield f"gives up, {kind} is under way", world._replace(lost=away), end
        for label, after, answer, effect, stays in acts(scene, scene.truth, world, kind, worker.key, worker.effect):
            left = after._replace(lost=tuple(sorted((*after.lost, request)))) if stays else after
            yield f"{label}; heard", left, worker._replace(at="heard", answer=answer, effect=effect, age=0)
            yield f"{label}; answer lost", left, end
    elif worker.at == "heard":
        yield records(scene, facts, world, worker)
    elif worker.at == "look":
        for found in sights(scene.truth, world):
            yield f"looks: {found}", world, worker._replace(at="looked", effect=found)
    else:
        yield uses_look(scene, facts, world, worker)


def begins(scene: Scene, facts: Facts, world: World, worker: Worker) -> Worked:
    if worker.does == "do":
        step, following = scene.rules.begin_do(facts, world.step, 0)
    else:
        step, following = scene.rules.begin_undo(facts, world.step, 0, pivot=scene.pivot)
    return goes_on(world._replace(step=step), worker, following, world.result)


def goes_on(world: World, worker: Worker, following: Next, result: int) -> Worked:
    step, label = world.step, f"{following.act.value} ({world.step.phase})"
    if following.act in {Act.SEND, Act.VOID, Act.REVERSE}:
        world = world._replace(seen_since=False)
    if following.act is Act.SEND or following.act is Act.VOID:
        return label, world, Worker(worker.does, "permitted", following, step.generation)
    if following.act is Act.REVERSE:
        return label, world, Worker(worker.does, "permitted", following, step.generation, effect=result)
    if following.act is Act.LOOK:
        return label, world, Worker(worker.does, "look", token=step.token())
    if following.act is Act.AGAIN:
        return label, world, Worker(worker.does)
    if following.act is Act.SETTLED:
        return label, world._replace(told_undone=True), Worker(worker.does, "end")
    return label, world, Worker(worker.does, "end")


def records(scene: Scene, facts: Facts, world: World, worker: Worker) -> Worked:
    rules, sent, answer, world = scene.rules, worker.sent, worker.answer, world._replace(seen_since=False)
    hit = answer in {Answer.OK, Answer.STANDS} and worker.effect >= 0 and not world.step.known
    result = worker.effect if hit else world.result
    if worker.does == "do":
        step = rules.heard_do(facts, world.step, sent.n, answer, 0)
        return f"records {answer.value} -> {step.phase}", world._replace(step=step, result=result), Worker("do", "end")
    if sent.act is Act.SEND:
        step, following = rules.heard_claim(facts, world.step, sent, answer, 0, pivot=scene.pivot)
    elif sent.act is Act.VOID:
        step, following = rules.heard_void(facts, world.step, sent, answer, pivot=scene.pivot)
    else:
        step, following = rules.heard_reversal(facts, world.step, sent.n, answer)
    return goes_on(world._replace(step=step, result=result), worker, following, result)


def sights(facts: Facts, world: World) -> set[int]:
    """What a lookup may show: what is there, and where it lags what was there before."""
    shown = {number for number, (there, _, _) in enumerate(world.effects) if there}
    sure = {number for number in shown if world.effects[number][1] <= -facts.lag}
    return shown | ({-1} if not sure else set())


def uses_look(scene: Scene, facts: Facts, world: World, worker: Worker) -> Worked:
    found = worker.effect >= 0
    result = worker.effect if found and not world.step.known else world.result
    told = {"found": found, "token": worker.token, "looked_at": worker.age}
    if worker.does == "do":
        step, following = scene.rules.looked_do(facts, world.step, **told)
    else:
        step, following = scene.rules.looked_undo(facts, world.step, 0, **told, pivot=scene.pivot)
    return goes_on(world._replace(step=step, result=result), worker, following, worker.effect)


def person(scene: Scene, facts: Facts, world: World) -> Iterator[Move]:
    """Let a truthful person look at the provider's books, and say at any time later what was there."""
    if world.step.question is None:
        return
    there = [number for number, effect in enumerate(world.effects) if effect[0]]
    if world.seen is None:
        yield "person: looks", world._replace(seen=(0, there[0] if there else -1), seen_since=True)
        if there and world.step.phase is Phase.UNDOING:
            gone = tuple((False, born, key) for _, born, key in world.effects)
            after = world._replace(effects=gone, reversals=world.reversals + len(there))
            yield from says(scene, facts, world, after, Verdict.UNDONE_BY_HAND, 0, -math.inf)
        return
    age, effect = world.seen
    changed, after = -math.inf if world.seen_since else math.inf, world._replace(seen=None, seen_since=False)
    if effect >= 0:
        yield from says(scene, facts, after, after._replace(result=effect), Verdict.HAPPENED, age, changed)
    elif world.step.known and world.step.phase is Phase.UNDOING:
        yield from says(scene, facts, after, after, Verdict.UNDONE_BY_HAND, age, changed)
    else:
        yield from says(scene, facts, after, after, Verdict.NEVER, age, changed)


def says(
    scene: Scene, facts: Facts, refused: World, taken: World, verdict: Verdict, age: int, changed: float
) -> Iterator[Move]:
    step = scene.rules.said(facts, refused.step, verdict, age, changed)
    if isinstance(step, str):
        yield f"person: {verdict.value} does not count", refused
        return
    told = taken.told_undone or step.phase is Phase.RESOLVED
    yield f"person: {verdict.value}", taken._replace(step=step, told_undone=told)

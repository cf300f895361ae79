"""Simulators of the worlds of bAbI's tasks 1 to 5: what happens, and one question about it.

Four people move between six rooms and take, drop and give three things. A story is what a reader has
been told up to one question of five; its other questions are left out. Where everyone and everything
is at first is not told, so a place is asked for only once the story says it. Wording and the shares of
words are those of the released files (en-10k); the order of events follows the generator's source,
whose stories are of other lengths.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
PEOPLE = ("Daniel", "John", "Mary", "Sandra")
GIVERS = ("Bill", "Fred", "Jeff", "Mary")

LABELS: dict[str, tuple[str, ...]] = {
    **{f"qa{number}": ROOMS for number in (1, 2, 3, 4)},
    "qa5": (*GIVERS, *THINGS),
}
"""The possible answers of each task, all equally likely."""

QUESTIONS = 5
MOVES = ("went", "went back", "journeyed", "moved", "travelled")
GETS = ("got", "grabbed", "picked up", "took")
DROPS = ("discarded", "dropped", "left", "put down")
GIVES = ("gave", "handed", "passed")
DIRECTIONS = {"north": "south", "east": "west"}


class Story(NamedTuple):
    facts: tuple[str, ...]
    question: str
    answer: str


class World:
    """Who and what is where, what of it has been told, and the sentences that told it."""

    def __init__(
        self, random: np.random.Generator, people: tuple[str, ...], there: float = 1.0
    ) -> None:
        self.random, self.people = random, people
        self.there = there  # share of the takings that end in "there"
        self.places = {name: self.pick(ROOMS) for name in (*people, *THINGS)}
        self.holders: dict[str, str] = {}
        self.told: dict[str, str] = {}  # places that the sentences give away
        self.visited: dict[str, list[str]] = {
            thing: [] for thing in THINGS
        }  # told, without repeats
        self.facts: list[str] = []

    def pick(self, choices: tuple[str, ...] | list[str]) -> str:
        return choices[self.random.integers(len(choices))]

    def act(self, *actions: str) -> str:
        """Does one of the actions that is possible to someone, and says which."""
        while True:
            action = self.pick(actions)
            if getattr(self, action)(self.pick(self.people)):
                self._note()
                return action

    def move(self, person: str) -> bool:
        room = self.pick([room for room in ROOMS if room != self.places[person]])
        self.places[person] = self.told[person] = room
        self.facts.append(f"{person} {self.pick(MOVES)} to the {room}.")
        return True

    def get(self, person: str) -> bool:
        here = self.places[person]
        near = [x for x in THINGS if x not in self.holders and self.places[x] == here]
        if not near:
            return False
        thing = self.pick(near)
        self.holders[thing] = person
        there = " there" if self.random.random() < self.there else ""
        self.facts.append(f"{person} {self.pick(GETS)} the {thing}{there}.")
        return True

    def held_by(self, person: str) -> list[str]:
        return [thing for thing, holder in self.holders.items() if holder == person]

    def drop(self, person: str) -> bool:
        if not (held := self.held_by(person)):
            return False
        thing = self.pick(held)
        del self.holders[thing]
        self.places[thing] = self.places[person]
        self.told.pop(thing, None)
        if person in self.told:
            self.told[thing] = self.told[person]
        there = " there" if self.random.random() < 0.2 else ""
        self.facts.append(f"{person} {self.pick(DROPS)} the {thing}{there}.")
        return True

    def give(self, person: str) -> bool:
        here = self.places[person]
        others = [x for x in self.people if x != person and self.places[x] == here]
        held = self.held_by(person)
        if not others or not held:
            return False
        thing, other = self.pick(held), self.pick(others)
        self.holders[thing] = other
        self.gift = (person, thing, other)
        self.facts.append(f"{person} {self.pick(GIVES)} the {thing} to {other}.")
        return True

    def place_of(self, thing: str) -> str | None:
        """Where the story says that it is."""
        return self.told.get(self.holders.get(thing, thing))

    def _note(self) -> None:
        for thing, rooms in self.visited.items():
            place = self.place_of(thing)
            if place and rooms[-1:] != [place]:
                rooms.append(place)


def _where_is_someone(random: np.random.Generator, asked: int) -> Story:
    world = World(random, PEOPLE)
    for _ in range(2 * asked):
        world.act("move")
    person = world.pick(sorted(world.told))
    return Story(tuple(world.facts), f"Where is {person}?", world.told[person])


def _where_is_something(random: np.random.Generator, asked: int) -> Story:
    world = World(random, PEOPLE)
    thing = _until_known(world, asked, lambda thing: world.place_of(thing) is not None)
    return Story(tuple(world.facts), f"Where is the {thing}?", str(world.place_of(thing)))


def _where_it_was(random: np.random.Generator, asked: int) -> Story:
    world = World(random, PEOPLE, there=0.2)
    thing = _until_known(world, asked, lambda thing: len(world.visited[thing]) > 1)
    before, last = world.visited[thing][-2:]
    return Story(tuple(world.facts), f"Where was the {thing} before the {last}?", before)


def _until_known(world: World, asked: int, known: Callable[[str], bool]) -> str:
    """Goes on to the question of that number, and chooses a thing that can be asked for."""
    since = 0
    while True:
        world.act("get", "drop", "move")
        since += 1
        if since > 2 and world.random.random() < 0.5 and (found := list(filter(known, THINGS))):
            asked, since = asked - 1, 0
            if not asked:
                return world.pick(found)


def _what_is_beside(random: np.random.Generator, asked: int) -> Story:
    """Three rooms in a line from north to south or from east to west; two neighbours are asked for."""
    rooms = [ROOMS[i] for i in random.choice(len(ROOMS), 3, replace=False)]
    way, back = list(DIRECTIONS.items())[random.integers(2)]
    pairs = list(pairwise(rooms))
    facts = [
        f"The {a} is {way} of the {b}." if random.integers(2) else f"The {b} is {back} of the {a}."
        for a, b in pairs
    ]
    facts = [facts[i] for i in random.permutation(2)]
    a, b = pairs[random.integers(2)]
    if random.integers(2):
        a, b, way = b, a, back
    if random.integers(2):
        return Story(tuple(facts), f"What is {way} of the {b}?", a)
    return Story(tuple(facts), f"What is the {a} {way} of?", b)


def _who_gave_what(random: np.random.Generator, asked: int) -> Story:
    world = World(random, GIVERS)
    for _ in range(asked):
        since = 0
        while world.act("get", "give", "move") != "give" or since < 2:
            since += 1
        for _ in range(random.integers(6)):
            world.act("get", "move")
    giver, thing, receiver = world.gift
    # Three labels of seven are things, so that no label is likelier than another.
    if random.integers(len(LABELS["qa5"])) < len(THINGS):
        question, answer = f"What did {giver} give to {receiver}?", thing
    else:
        question, answer = (
            (f"Who gave the {thing}?", giver),
            (f"Who gave the {thing} to {receiver}?", giver),
            (f"Who received the {thing}?", receiver),
            (f"Who did {giver} give the {thing} to?", receiver),
        )[random.integers(4)]
    return Story(tuple(world.facts), question, answer)


TASKS = {
    "qa1": _where_is_someone,
    "qa2": _where_is_something,
    "qa3": _where_it_was,
    "qa4": _what_is_beside,
    "qa5": _who_gave_what,
}


def check_task(task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}: got {task!r}.")


def story(task: str, random: np.random.Generator) -> Story:
    """A story and one question about it, the first to the fifth."""
    check_task(task)
    return TASKS[task](random, int(random.integers(1, QUESTIONS + 1)))

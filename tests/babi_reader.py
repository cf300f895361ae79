"""A reader of bAbI stories that shares nothing with what tells them."""

import re

PEOPLE = "Bill|Daniel|Fred|Jeff|John|Mary|Sandra"

LINES = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Mary went back to the office.
5 Where is Mary?\toffice\t4
1 Sandra moved to the garden.
2 Where is Sandra?\tgarden\t1
"""


class Reader:
    """A rule engine that knows of the world only what the sentences say, each thing's places in order."""

    def __init__(self, facts: tuple[str, ...]) -> None:
        self.rooms: dict[str, str] = {}  # of people
        self.hands: dict[str, str] = {}  # who holds a thing
        self.trail: dict[str, list[str | None]] = {}  # where a thing was, None: not said
        self.gifts: list[tuple[str, str, str]] = []
        self.sides: list[tuple[str, str, str]] = []
        for fact in facts:
            self.read(fact)
            for thing, person in self.hands.items():
                self.trail.setdefault(thing, []).append(self.rooms.get(person))

    def read(self, fact: str) -> None:
        if found := re.fullmatch(r"The (\w+) is (\w+) of the (\w+)\.", fact):
            self.sides.append((found[1], found[2], found[3]))
        elif found := re.fullmatch(r"(\w+) \w+ the (\w+) to (\w+)\.", fact):
            assert self.hands[found[2]] == found[1]
            self.hands[found[2]] = found[3]
            self.gifts.append((found[1], found[2], found[3]))
        elif found := re.fullmatch(r"(\w+) \w+(?: back)? to the (\w+)\.", fact):
            assert self.rooms.get(found[1]) != found[2]
            self.rooms[found[1]] = found[2]
        else:
            found = re.fullmatch(r"(\w+) (\w+(?: \w+)?) the (\w+)(?: there)?\.", fact)
            assert found is not None, fact
            person, verb, thing = found[1], found[2], found[3]
            if verb in ("got", "grabbed", "picked up", "took"):
                assert thing not in self.hands
                self.hands[thing] = person
            else:
                assert verb in ("discarded", "dropped", "left", "put down")
                assert self.hands.pop(thing) == person
                self.trail.setdefault(thing, []).append(self.rooms.get(person))

    def answer(self, question: str) -> str | None:
        if found := re.fullmatch(r"Where is (\w+)\?", question):
            return self.rooms[found[1]]
        if found := re.fullmatch(r"Where is the (\w+)\?", question):
            return self.trail[found[1]][-1]
        if found := re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question):
            known = [room for room in self.trail[found[1]] if room]
            last = max(n for n, room in enumerate(known) if room == found[2])
            return next(room for room in reversed(known[:last]) if room != found[2])
        if found := re.fullmatch(r"What is (\w+) of the (\w+)\?", question):
            return self.beside(found[1], found[2])
        if found := re.fullmatch(r"What is the (\w+) (\w+) of\?", question):
            return self.beside(OPPOSITE[found[2]], found[1])
        return self.gift(question)

    def beside(self, way: str, room: str) -> str:
        near = {a for a, side, b in self.sides if (side, b) == (way, room)}
        near |= {b for a, side, b in self.sides if (OPPOSITE[side], a) == (way, room)}
        (one,) = near
        return one

    def gift(self, question: str) -> str:
        forms = {
            r"What did (?P<a>\w+) give to (?P<c>\w+)\?": 1,
            r"Who gave the (?P<b>\w+)\?": 0,
            r"Who gave the (?P<b>\w+) to (?P<c>\w+)\?": 0,
            r"Who received the (?P<b>\w+)\?": 2,
            r"Who did (?P<a>\w+) give the (?P<b>\w+) to\?": 2,
        }
        for form, place in forms.items():
            if found := re.fullmatch(form, question):
                wanted = {"abc".index(name): value for name, value in found.groupdict().items()}
                fits = [g for g in self.gifts if all(g[at] == x for at, x in wanted.items())]
                return fits[-1][place]
        raise AssertionError(question)


OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}

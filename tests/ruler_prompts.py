"""Prompts of RULER for single seeds, letter by letter: length, prompt and answers of each task."""

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


def head(kind: str, first: str = "A", verb: str = "is") -> str:
    noun = kind[:-1] if first == "A" else kind
    return (
        f"{first} special magic {noun} {verb} hidden within the following text. Make sure to memorize "
        f"it. I will quiz you about the {noun} afterwards.\n"
    )


def question(kind: str, keys: str, one: bool = True) -> str:
    asked, noun, verb = ("is the", kind[:-1], "is") if one else ("are all the", kind, "are")
    about = f"special magic {noun} for {keys} mentioned in the provided text"
    return f"\nWhat {asked} {about}? The {about} {verb}"


def needle(kind: str, key: str, value: str) -> str:
    return f"One of the special magic {kind} for {key} is: {value}."


SOME = ("numbers", "Some", "are")
MULTIQUERY = "jarmil-husvir, garrir-zonmor, zorjol-tilkir, and farten-dorfer"
LITERAL: dict[str, tuple[int, str, tuple[str, ...]]] = {
    "niah_single_1": (
        600,
        head("numbers")
        + needle("numbers", "zardol-jeslas", "7693787")
        + f"\n{NOISE}"
        + question("numbers", "zardol-jeslas"),
        ("7693787",),
    ),
    "niah_single_2": (
        530,
        head("numbers")
        + "Line one is here. Line two is here. "
        + needle("numbers", "barpir-panhis", "1832273")
        + " Line three"
        + question("numbers", "barpir-panhis"),
        ("1832273",),
    ),
    "niah_single_3": (
        560,
        head("uuids")
        + "Line one is here. Line two is here. "
        + needle("uuids", "sunmal-jarmen", "1629c0cb-a9f2-4a45-85a5-99db347d5730")
        + " Line three is here."
        + question("uuids", "sunmal-jarmen"),
        ("1629c0cb-a9f2-4a45-85a5-99db347d5730",),
    ),
    "niah_single_words": (
        530,
        head("words")
        + "Line one is here. "
        + needle("words", "rulfus-jusbin", "lulgon-vanzur")
        + " Line two is here. Line three is"
        + question("words", "rulfus-jusbin"),
        ("lulgon-vanzur",),
    ),
    "niah_multikey_1": (
        720,
        head("numbers")
        + "Line one is here. "
        + needle("numbers", "nostor-rungun", "1419282")
        + "  "
        + needle("numbers", "farbus-rirkes", "1058495")
        + " Line two is here. "
        + needle("numbers", "posren-rislur", "6690021")
        + "  "
        + needle("numbers", "girmul-kankos", "7319475")
        + " Line"
        + question("numbers", "nostor-rungun"),
        ("1419282",),
    ),
    "niah_multikey_2": (
        620,
        head("numbers")
        + "\n".join(
            needle("numbers", key, value)
            for key, value in (
                ("ganfon-guslal", "2110570"),
                ("daskan-ralfel", "2411865"),
                ("jirmas-sonnas", "7613298"),
            )
        )
        + question("numbers", "ganfon-guslal"),
        ("2110570",),
    ),
    "niah_multivalue": (
        720,
        head(*SOME)
        + " "
        + "  ".join(needle("numbers", "misnur-hultor", x) for x in ("2796367", "2742011", "4022196"))
        + " Line one is here. "
        + needle("numbers", "misnur-hultor", "9044597")
        + " Line two"
        + question("numbers", "misnur-hultor", one=False),
        ("9044597", "4022196", "2796367", "2742011"),
    ),
    "niah_multiquery": (
        880,
        head(*SOME)
        + " "
        + needle("numbers", "garrir-zonmor", "8047829")
        + "  "
        + needle("numbers", "jarmil-husvir", "4261680")
        + "  "
        + needle("numbers", "farten-dorfer", "1040087")
        + " Line one is here. Line two is here. Line three is here. "
        + needle("numbers", "zorjol-tilkir", "5123260")
        + " Line four is here. Line five is"
        + question("numbers", MULTIQUERY, one=False),
        ("4261680", "8047829", "5123260", "1040087"),
    ),
}  # fmt: skip

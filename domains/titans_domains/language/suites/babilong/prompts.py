"""The few-shot prompts: BABILong's frame, with instructions and examples in words of ours."""

from typing import NamedTuple

FRAME = (
    "{instruction}\n\n{examples}\n\n{post_prompt}\n\n<context>\n{context}\n</context>\n\n"
    "Question: {question}"
)


class Prompt(NamedTuple):
    instruction: str
    examples: str
    post_prompt: str

    def filled(self, context: str, question: str) -> str:
        return FRAME.format(**self._asdict(), context=context, question=question)


def _examples(*pairs: tuple[str, str]) -> str:
    return "\n".join(f"<example>\n{asked}\nAnswer: {answer}\n</example>" for asked, answer in pairs)


_GENERAL = (
    "The context below is a long text in which a few facts about {about} are hidden. Answer the question "
    "with these facts alone."
)
_PLACES = _GENERAL.format(about="people, the things they carry and the rooms they are in")
_ONE_WORD = "Answer with one word and nothing else."

PROMPTS = {
    "qa1": Prompt(
        _GENERAL.format(about="people and the rooms they go to")
        + " Someone who was in several rooms is in the last of them.",
        _examples(
            (
                "Peter went to the attic. Anna moved to the garage. Where is Peter?",
                "The most recent location of Peter is attic.",
            ),
            (
                "Anna moved to the shop. Peter went to the beach. Anna went back to the attic. "
                "Where is Anna?",
                "The most recent location of Anna is attic.",
            ),
        ),
        "Answer in this form, and with nothing else: "
        "The most recent location of 'person' is 'location'.",
    ),
    "qa2": Prompt(
        _PLACES + " What someone carries moves along; what was dropped stays where it is.",
        _examples(
            (
                "Peter took the bottle there. Peter moved to the attic. Where is the bottle?",
                "The bottle is in the attic.",
            ),
            (
                "Anna went to the shop. Anna dropped the lamp. Anna moved to the beach. "
                "Where is the lamp?",
                "The lamp is in the shop.",
            ),
        ),
        "Answer in this form, and with nothing else: The 'item' is in the 'location'.",
    ),
    "qa3": Prompt(
        _PLACES + " What someone carries moves along; what was dropped stays where it is.",
        _examples(
            (
                "Peter went to the attic. Peter took the bottle. Peter moved to the shop. "
                "Where was the bottle before the shop?",
                "Before the shop the bottle was in the attic.",
            ),
            (
                "Anna got the lamp. Anna moved to the garage. Peter went to the attic. "
                "Anna travelled to the beach. Where was the lamp before the beach?",
                "Before the beach the lamp was in the garage.",
            ),
        ),
        "Answer in this form, and with nothing else: "
        "Before the 'location_1' the 'item' was in the 'location_2'.",
    ),
    "qa4": Prompt(
        _GENERAL.format(about="rooms and how they lie to each other"),
        _examples(
            (
                "The attic is south of the shop. The garage is north of the shop. "
                "What is the shop south of?",
                "garage",
            ),
            ("The beach is west of the attic. The attic is west of the shop. "
             "What is west of the attic?", "beach"),
        ),
        _ONE_WORD,
    ),
    "qa5": Prompt(
        _GENERAL.format(about="people who take things and give them to each other"),
        _examples(
            ("Anna took the lamp there. Anna gave the lamp to Peter. Who received the lamp?", "Peter"),
            (
                "Peter got the bottle there. Peter passed the bottle to Anna. "
                "Anna moved to the shop. What did Peter give to Anna?",
                "bottle",
            ),
        ),
        _ONE_WORD,
    ),
}  # fmt: skip

"""bAbI's own files (en-10k): stories with questions between their lines, one sample for each question.

1 Mary moved to the bathroom.
2 Where is Mary?<tab>bathroom<tab>1
"""

from pathlib import Path

from titans_domains.language.suites.babilong.worlds import LABELS, Story, check_task
from titans_domains.language.suites.problem import Split


def read_stories(path: Path) -> list[Story]:
    """Every question of the file with the facts before it, other questions left out."""
    found: list[Story] = []
    facts: list[str] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        index, _, text = line.partition(" ")
        if not index.isdigit() or not text:
            raise ValueError(
                f"{path}, line {number} must be a number and a sentence: got {line!r}."
            )
        if index == "1":
            facts = []
        question, *answer = text.split("\t")
        if not answer:
            facts.append(question.strip())
        else:
            found.append(Story(tuple(facts), question.strip(), answer[0].strip()))
    if not found:
        raise ValueError(f"{path} must hold stories with questions: it has none.")
    return found


def babi_stories(folder: str | Path, task: str, split: Split) -> list[Story]:
    """Of a folder of bAbI: tests from the test file alone, the last tenth of train for validation."""
    check_task(task)
    kind = "test" if split == "test" else "train"
    paths = sorted(Path(folder).glob(f"{task}_*_{kind}.txt"))
    if len(paths) != 1:
        raise FileNotFoundError(
            f"{folder} must hold one file {task}_*_{kind}.txt of bAbI: it has {len(paths)}."
        )
    found = read_stories(paths[0])
    if odd := {story.answer for story in found} - set(LABELS[task]):
        raise ValueError(
            f"{paths[0]} must answer with {', '.join(LABELS[task])}: got {min(odd)!r}."
        )
    cut = len(found) * 9 // 10
    return {"train": found[:cut], "valid": found[cut:], "test": found}[split]

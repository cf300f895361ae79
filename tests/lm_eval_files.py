"""Tasks of lm-eval in a folder, with their examples beside them, so that nothing is fetched."""

import json
from pathlib import Path

CHOICES = [
    {"question": "The memory reads, and", "choices": [" what", " never"], "answer": 0},
    {"question": "Tabs and", "choices": [" lines", " blanks", " x"], "answer": 1},
]
TEXTS = [{"text": "The memory reads, and what it did not expect it keeps."}, {"text": "Größe \n x"}]

TASKS = {
    "pages": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
  - metric: word_perplexity
""",
    "choose": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list:
  - metric: acc
""",
    "write": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 4
metric_list:
  - metric: exact_match
""",
}


def write_tasks(folder: Path) -> Path:
    """The tasks `pages`, `choose` and `write`; data sets are cached in the folder too."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("texts", TEXTS), ("choices", CHOICES)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    for name, task in TASKS.items():
        data = folder / ("texts" if name == "pages" else "choices")
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: train\n"
            f"dataset_kwargs:\n  data_files: {data}.jsonl\n  cache_dir: {folder}/cache\n{task}"
        )
    return folder

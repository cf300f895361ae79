"""Classifiers on disk: a folder of their own, or a run of `titans dna train`; nothing in them is code."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from titans_core.files import load_tensors, write_tensors
from titans_domains.checkpoints import SCHEMA, WEIGHTS, latest, parse_json, read_json
from titans_domains.config import from_dict, to_dict
from titans_domains.dna.classify import BEST, CLASSES
from titans_domains.dna.encoder import ModelConfig
from titans_domains.dna.model import SequenceNetwork
from titans_domains.dna.tokenizers import DnaTokenizer, load_tokenizer, save_tokenizer
from titans_domains.runs import CONFIG, choose_device, load_run_table
from titans_domains.weights import header_of, read_model

if TYPE_CHECKING:
    from titans_domains.dna.classifier import SequenceClassifier

FILE = "classifier.json"


def save_classifier(classifier: "SequenceClassifier", path: Path, *, force: bool) -> None:
    """A folder with settings, classes, tokenizer and weights; whole or not at all."""
    if path.exists():
        if not force:
            raise FileExistsError(f"{path} is there already: choose another path, or force=True.")
        if not (path / FILE).is_file():
            raise FileExistsError(f"{path} is no saved classifier, so force does not replace it.")
    settings = {
        name: value
        for name, value in classifier.get_params(deep=False).items()
        if name not in ("model", "pretrained", "device")
    }
    if isinstance(settings["class_weight"], Mapping):
        # JSON has no keys but strings.
        settings["class_weight"] = list(settings["class_weight"].items())
    table = {
        "schema": SCHEMA,
        "settings": settings,
        "model": to_dict(classifier.networks_[0].config),
        "classes": classifier.classes_.tolist(),
        "multilabel": classifier.multilabel_,
        "length": classifier.length_,
    }
    # Before anything is written: a class or a seed that is no JSON is refused.
    text = json.dumps(table, indent=1)
    draft = path.with_name(path.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    (draft / FILE).write_text(text + "\n")
    save_tokenizer(classifier.tokenizer_, draft)
    for number, network in enumerate(classifier.networks_):
        file = draft / f"member-{number}.safetensors"
        write_tensors(network.state_dict(), file, header_of(network))
    if path.exists():
        shutil.rmtree(path)
    os.replace(draft, path)


class Saved(NamedTuple):
    settings: dict[str, Any]  # of the estimator
    model: ModelConfig
    about: dict[str, Any]  # classes, multilabel, length
    files: list[Path]  # weights of each member


def load_classifier(
    kind: "type[SequenceClassifier]", path: Path, device: str
) -> "SequenceClassifier":
    """What was saved under `path`, which is a classifier's folder or a run's."""
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path)!r} of a classifier or a run.")
    if (path / FILE).is_file():
        saved = _read_saved(path)
    elif (path / CONFIG).is_file():
        saved = _read_run(path)
    else:
        raise FileNotFoundError(f"{path} holds neither {FILE} nor {CONFIG}: it is no classifier.")
    try:
        classifier = kind(saved.model, device=device, **saved.settings)
    except TypeError as error:
        raise ValueError(f"{path / FILE} is damaged: {error}.") from None
    classifier.tokenizer_ = load_tokenizer(path)
    classifier.tokenizer = classifier.tokenizer_.kind
    classifier.classes_ = np.array(saved.about["classes"])
    classifier.multilabel_ = bool(saved.about["multilabel"])
    classifier.length_ = int(saved.about["length"])
    classifier.networks_ = []
    for file in saved.files:
        network = read_model(
            lambda: SequenceNetwork(saved.model, classifier.tokenizer_, len(classifier.classes_)),
            file,
        )
        classifier.networks_.append(network.to(choose_device(device)).eval())
    return classifier


def _read_saved(path: Path) -> Saved:
    table = read_json(path / FILE)
    try:
        settings = _settings(table["settings"], path / FILE)
        about = _about(table, path / FILE)
        members = settings["members"]
        if members != len(list(path.glob("member-*.safetensors"))):
            raise ValueError(
                f"{path} is damaged: it does not hold the {members!r} members that it names."
            )
        files = [path / f"member-{number}.safetensors" for number in range(members)]
        return Saved(settings, from_dict(ModelConfig, table["model"]), about, files)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / FILE} is damaged: it lacks {error}.") from None


def _settings(told: Any, path: Path) -> dict[str, Any]:
    """The estimator's settings, in which the weights of classes stand as pairs."""
    weights = told["class_weight"]
    if not isinstance(weights, list):
        return {**told}
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in weights):
        raise ValueError(f"{path} is damaged: its 'class_weight' must be pairs.")
    return {**told, "class_weight": dict(weights)}


def _about(table: dict[str, Any], path: Path, *more: str) -> dict[str, Any]:
    """What a classifier answers with; ValueError where it is something else, KeyError where it lacks."""
    kinds = {"classes": list, "multilabel": bool, "length": int} | dict.fromkeys(more, int)
    about = {name: table[name] for name in kinds}
    names = about["classes"] if isinstance(about["classes"], list) else []
    odd = [name for name, kind in kinds.items() if not isinstance(about[name], kind)]
    if odd or not names or not all(isinstance(name, str | int | float) for name in names):
        raise ValueError(f"{path} is damaged: its {(odd or ['classes'])[0]!r} cannot be that.")
    return about


def _read_run(path: Path) -> Saved:
    """A run at its best weights, or at its newest where none were held out."""
    from titans_domains.dna.task import DOMAIN, fitted_model

    config, _ = load_run_table(path, DOMAIN)
    if config.kind != "train":
        raise ValueError(
            f"{path} is a run of kind {config.kind!r}, which knows no classes: give one of "
            "`titans dna train`."
        )
    about = _read_classes(path / CLASSES)
    best = path / BEST
    weights = best if best.is_file() else latest(path / "checkpoints") / WEIGHTS
    return Saved({}, fitted_model(config, about["positions"]), about, [weights])


def _read_classes(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; is this a run of titans dna train?")
    table = parse_json(path)
    try:
        return _about(table, path, "positions")
    except TypeError:
        raise ValueError(f"{path} is damaged: it is no table.") from None
    except KeyError as error:
        raise ValueError(f"{path} is damaged: it lacks {error}.") from None


def load_encoder(network: SequenceNetwork, run: Path, tokenizer: DnaTokenizer) -> None:
    """Fills the network's encoder with that of a pretrained run; ValueError where they differ."""
    from titans_domains.dna.task import DOMAIN

    config, _ = load_run_table(run, DOMAIN)
    if config.kind == "train":
        raise ValueError(f"{run} is a classifier: give a run of `titans dna pretrain`.")
    if load_tokenizer(run).table() != tokenizer.table():
        raise ValueError(f"{run} was pretrained with another tokenizer: use the same.")
    weights = load_tensors(latest(run / "checkpoints") / WEIGHTS)
    encoder = {
        name.removeprefix("encoder."): x
        for name, x in weights.items()
        if name.startswith("encoder.")
    }
    ours = {name: tuple(x.shape) for name, x in network.encoder.state_dict().items()}
    theirs = {name: tuple(x.shape) for name, x in encoder.items()}
    if ours != theirs:
        odd = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))[0]
        raise ValueError(
            f"The encoder must be that of {run}: {odd} is {theirs.get(odd, 'absent')} there, "
            f"{ours.get(odd, 'absent')} here; take stem, backbone and direction from its config.json."
        )
    with torch.no_grad():
        network.encoder.load_state_dict(encoder)

"""POST /v1/classify: the class of each DNA sequence, and the chance of every class."""

from typing import Any

from fastapi import FastAPI, Request, Response

from titans_domains.dna.calls import Item, batches, call, checked, class_names, is_multilabel
from titans_domains.dna.classifier import SequenceClassifier
from titans_domains.dna.reading import clean
from titans_domains.dna.scoring import shortest_of
from titans_domains.serving.bodies import ClassifyBody
from titans_domains.serving.errors import ServiceError
from titans_domains.serving.queue import Queued
from titans_domains.serving.service import Service


class Classes(Queued):
    """A classifier behind its route."""

    domain = "dna"

    def __init__(self, service: Service, classifier: SequenceClassifier) -> None:
        super().__init__(service)
        self.classifier = classifier

    def add_routes(self, app: FastAPI) -> None:
        @app.post("/v1/classify", response_model=None)
        async def classify(body: ClassifyBody, request: Request) -> Response:
            """The class of each DNA sequence, and the chance of every class."""
            self.service.check_model(body.model)
            return self.queue.answer(lambda: self.classify(body))

    def classify(self, body: ClassifyBody) -> dict[str, Any]:
        try:
            items = [_item(number, text) for number, text in enumerate(body.sequences)]
            items = list(checked(items, shortest_of(self.classifier)))
        except ValueError as error:
            raise ServiceError(
                400, str(error), param="sequences", code="invalid_sequence"
            ) from error
        names = class_names(self.classifier)
        found = [
            {
                "index": int(done.item.name), "prediction": done.prediction,
                "probabilities": dict(zip(names, done.chances, strict=True)),
                "ambiguous": done.item.ambiguous,
            }
            for batch in batches(items, lambda item: len(item.sequence))
            for done in call(self.classifier, batch)
        ]  # fmt: skip
        self.service.metrics.count("titans_items_total", len(found))
        return {
            "object": "classification", "model": self.service.config.name, "classes": names,
            "multilabel": is_multilabel(self.classifier), "data": found,
        }  # fmt: skip


def _item(number: int, text: str) -> Item:
    where = f"sequences.{number}"
    done = clean(text, where, whole=True)
    if not done.sequence.strip("N"):
        raise ValueError(f"{where} must hold a known base: got nothing but N.")
    return Item(where, 0, len(text), str(number), ".", done.sequence, where, done.ambiguous.total())

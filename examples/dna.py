"""Train a classifier on made promoters and see what it looks at: python dna.py [SEQUENCES] [EPOCHS]"""

import sys

import numpy as np
from sklearn.linear_model import LogisticRegression

from titans_domains.dna import SequenceClassifier
from titans_domains.dna.synthetic import bayes_accuracy, promoters

count = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 15
train, test = promoters(count, seed=0), promoters(1000, seed=1)
classifier = SequenceClassifier(epochs=epochs, seed=0)
classifier.fit(train.sequences, train.labels)


def counts(sequences: list[str]) -> np.ndarray:
    """How often each pair of bases comes."""
    pairs = [a + b for a in "ACGT" for b in "ACGT"]
    return np.array([[text.count(pair) for pair in pairs] for text in sequences])


pairs = LogisticRegression(max_iter=2000).fit(counts(train.sequences), train.labels)
print(f"accuracy              {classifier.score(test.sequences, test.labels):.3f}")
print(f"of counts of pairs    {pairs.score(counts(test.sequences), test.labels):.3f}")
print(f"best possible (Bayes) {bayes_accuracy()[0]:.3f}")

# The bases that matter most for the class of one promoter, in capitals.
sequence = test.sequences[int(np.argmax(test.labels))]
weight = classifier.gradients([sequence])[0]
most = set(np.argsort(-np.abs(weight))[:12])
print("".join(base if i in most else base.lower() for i, base in enumerate(sequence)))

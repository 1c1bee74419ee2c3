"""A corpus with held-out sentences, a model, and a mined run that evaluations are written to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.corpora import LabelledTexts, write_lists
from support.plans import plan_new

from expertmine.corpus.reader import Corpus
from expertmine.mining.mine import run_all
from expertmine.model.load import LoadedModel, load_model
from expertmine.runtime.cluster import Cluster


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two concepts with words of their own, and negatives, half of all held out."""
    rng = np.random.default_rng(0)
    colours, metals, other = ["red", "blue", "green"], ["iron", "copper", "zinc"], ["walk", "sing", "think", "hope"]

    def texts(words: list[str], count: int) -> list[str]:
        return [f"{rng.choice(words)} and {rng.choice(words)} {i}" for i in range(count)]

    folder = tmp_path_factory.mktemp("corpus")
    negatives = texts(other, 200)
    concepts = [
        LabelledTexts(name, "", "", texts(words, 80), negatives)
        for name, words in (("colour", colours), ("metal", metals))
    ]
    write_lists([*concepts, LabelledTexts("rare", "", "", texts(["gold"], 6), negatives)], folder, 50)
    return Corpus.open(folder)


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model), device="cpu")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A mined run of concepts named as WordNet's, one of them with too few held-out sentences; to be written to."""
    folder = tmp_path_factory.mktemp("evaluated")
    rng = np.random.default_rng(0)
    words = {
        "man.n.01": ["he", "his", "man", "father", "boy", "king"],
        "woman.n.01": ["she", "her", "woman", "mother", "girl", "queen"],
        "metallic_element.n.01": ["iron", "copper", "zinc", "gold", "silver", "tin"],
    }

    def texts(of: list[str], count: int) -> list[str]:
        return [f"{rng.choice(of)} and {rng.choice(of)} of the {rng.choice(of)} {at}" for at in range(count)]

    negatives = texts(["walk", "sing", "think", "hope", "run"], 80)
    lists = [LabelledTexts(name, "wordnet", f"what {name} is", texts(of, 40), negatives) for name, of in words.items()]
    write_lists([*lists, LabelledTexts("rare", "", "", texts(["ruby"], 5), negatives)], folder / "corpus", 50)
    plan_new(folder / "run", tiny_model, folder / "corpus")
    run_all(folder / "run", ("serial", Cluster()), ("serial", Cluster()), top_k=60)
    return folder / "run"

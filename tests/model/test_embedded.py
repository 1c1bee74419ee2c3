"""The training script of the embedded model: held-out text is not trained on, other text once per epoch."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from expertmine.embedded.train_lm import (
    CONTEXT,
    HELD_OUT_PERCENT,
    TOKENS_PER_STEP,
    Entry,
    batches,
    epoch_texts,
    is_held_out,
    rate,
    read_entries,
    sentence,
)
from expertmine.model.load import load_model


@pytest.fixture(scope="module")
def entries() -> tuple[list[Entry], list[Entry]]:
    return read_entries()


def test_no_text_of_a_held_out_synset_is_trained_on(entries: tuple[list[Entry], list[Entry]]) -> None:
    train, held_out = entries
    assert len(held_out) / (len(train) + len(held_out)) == pytest.approx(HELD_OUT_PERCENT / 100, abs=0.005)
    seen = {text for entry in train for text in (entry.definition, *entry.examples)}
    hidden = {text for entry in held_out for text in (entry.definition, *entry.examples)}
    assert hidden
    assert not seen & hidden
    assert is_held_out("dog.n.01") == is_held_out("dog.n.01")


def test_an_epoch_shows_every_definition_and_example_once(entries: tuple[list[Entry], list[Entry]]) -> None:
    some = entries[0][:2000]
    shown = sorted(text for document in epoch_texts(some, random.Random(0)) for text in document)
    examples = sorted(sentence(example) for entry in some for example in entry.examples)
    assert len(shown) == len(some) + len(examples)
    for entry in some[:50]:
        forms = {sentence(entry.definition)} | {f"{lemma} is {sentence(entry.definition)}" for lemma in entry.lemmas}
        assert forms & set(shown)


def test_batches_hold_every_document_with_its_end_tokens() -> None:
    tokenizer = load_model("embedded").tokenizer
    documents = [["one two three."] * n for n in (1, 2, 3)] * 40 + [["long word " * 200]]
    found = list(batches(documents, tokenizer, random.Random(0)))
    rows = [[int(token) for token in row if token >= 0] for batch in found for row in batch]
    assert len(rows) == len(documents)
    assert all(batch.numel() <= max(TOKENS_PER_STEP, CONTEXT) for batch in found)
    end = tokenizer.eos_token_id
    assert all(row[0] == end and (row[-1] == end or len(row) == CONTEXT) for row in rows)
    assert sorted(len(row) for row in rows)[-1] == CONTEXT


def test_the_rate_warms_up_and_decays() -> None:
    values = [rate(done / 100) for done in range(101)]
    assert values[0] == 0
    assert max(values) == pytest.approx(1)
    assert values[-1] == pytest.approx(0.02)
    assert all(later <= earlier for earlier, later in pairwise(values[2:]))

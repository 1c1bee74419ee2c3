"""Stage 1 and what it is made of, against a loop over single sentences."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.plans import plan_new, request
from transformers import GPT2Model

from expertmine.corpus.reader import Corpus
from expertmine.errors import UserError
from expertmine.mining import extract
from expertmine.mining.planning import make_layout, make_plan
from expertmine.model.load import TokenisedText, load_model
from expertmine.model.responses import Batch, find_spans, make_batches, pool, refuse_nan
from expertmine.run.ledger import Receipt
from expertmine.run.open_run import OpenRun, open_run
from expertmine.run.store import Store
from expertmine.specs.hookpoints import Hookpoint
from expertmine.specs.settings import Compression, Pooling, ResponseSpec


def naive_responses(model_path: Path, corpus: Corpus, pooling: Pooling) -> np.ndarray:
    """Responses of one sentence at a time, from outputs kept whole: (sentences, units)."""
    loaded = load_model(str(model_path))
    rows = []
    for text in corpus.texts(range(corpus.identity.sentences)):
        outputs: list[torch.Tensor] = []
        names = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
        modules = [loaded.model.get_submodule(f"transformer.h.{layer}.{n}") for layer in range(2) for n in names]
        handles = [m.register_forward_hook(lambda m, i, out, o=outputs: o.append(out[0])) for m in modules]
        with torch.no_grad():
            loaded.model(torch.tensor([loaded.tokenizer(text)["input_ids"]]))
        for handle in handles:
            handle.remove()
        pick = {"max": lambda t: t.amax(0), "mean": lambda t: t.mean(0), "last": lambda t: t[-1]}[pooling]
        rows.append(torch.cat([pick(output[1:]) for output in outputs]).numpy())  # token 0 is <|endoftext|>
    return np.stack(rows)


@pytest.mark.parametrize("pooling", ["max", "mean", "last"])
def test_stored_responses_are_those_of_single_sentences(
    pooling: Pooling, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    corpus = Corpus.open(tiny_corpus)
    plan, _ = plan_new(
        tmp_path / "run", tiny_model, tiny_corpus, poolings=(pooling,), dtype="float32", batch_tokens=100
    )
    tasks = extract.plan(open_run(tmp_path / "run"))
    assert len(tasks) > 1
    extractor = extract.Extractor(open_run(tmp_path / "run"), "cpu")
    for task in tasks:
        extractor(task)
    extract.finish(open_run(tmp_path / "run"))
    stored = Store(OpenRun(tmp_path / "run", plan)).read_responses(pooling, range(plan.layout.units))
    np.testing.assert_allclose(
        stored[: corpus.identity.sentences], naive_responses(tiny_model, corpus, pooling), atol=2e-6
    )


def extracted(run: Path, model: Path, corpus: Path, **responses: Any) -> dict[str, np.ndarray]:
    """Stored responses of each pooling, (sentences, units), of a run taken through extraction."""
    plan, _ = plan_new(run, model, corpus, **responses)
    extractor_tasks = extract.plan(open_run(run))
    extractor = extract.Extractor(open_run(run), "cpu")
    for task in extractor_tasks:
        extractor(task)
    store, units = Store(OpenRun(run, plan)), range(plan.layout.units)
    return {
        pooling: store.read_responses(pooling, units)[: plan.layout.sentences] for pooling in plan.responses.poolings
    }


def test_several_poolings_of_one_pass_are_those_of_passes_of_their_own(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    forward = GPT2Model.forward

    def counted(self: GPT2Model, *arguments: Any, **options: Any) -> Any:
        passes.append(1)
        return forward(self, *arguments, **options)

    monkeypatch.setattr(GPT2Model, "forward", counted)
    together = extracted(tmp_path / "all", tiny_model, tiny_corpus, poolings=("mean", "max", "last"))
    assert list(together) == ["mean", "max", "last"]
    passes_of_all = len(passes)
    for pooling, responses in together.items():
        passes.clear()
        alone = extracted(tmp_path / pooling, tiny_model, tiny_corpus, poolings=(pooling,))
        np.testing.assert_array_equal(responses, alone[pooling])
        assert len(passes) == passes_of_all


def test_the_references_pooling_takes_filling_and_special_tokens(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    """Sentences padded with the end's token, masked from attention, and the maximum over all positions."""
    found = extracted(tmp_path / "run", tiny_model, tiny_corpus, poolings=("reference",), dtype="float32")["reference"]
    loaded = load_model(str(tiny_model))
    modules = [m for n, m in loaded.model.named_modules() if type(m).__name__ == "Conv1D" and ".h." in n]
    texts = Corpus.open(tiny_corpus).texts(range(72))[::9]
    for text, responses in zip(texts, found[::9], strict=True):
        ids = loaded.tokenizer(text)["input_ids"]
        outputs: list[torch.Tensor] = []
        handles = [m.register_forward_hook(lambda m, i, out, o=outputs: o.append(out[0].amax(0))) for m in modules]
        with torch.no_grad():
            loaded.model(
                torch.tensor([ids + [loaded.tokenizer.eos_token_id] * (64 - len(ids))]),
                attention_mask=torch.tensor([[1] * len(ids) + [0] * (64 - len(ids))]),
            )
        for handle in handles:
            handle.remove()
        np.testing.assert_allclose(responses, torch.cat(outputs).numpy(), atol=2e-6)


def test_special_tokens_are_pooled_when_asked(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    options = {"dtype": "float32", "poolings": ("max",)}
    without = extracted(tmp_path / "without", tiny_model, tiny_corpus, **options)["max"]
    with_them = extracted(tmp_path / "with", tiny_model, tiny_corpus, special_tokens=True, **options)["max"]
    assert (with_them >= without).all()
    # The start's token comes first, so that it is the same in every sentence and a floor under the maximum.
    floor = with_them.min(0)
    assert (with_them == np.maximum(without, floor)).mean() > 0.99
    assert (with_them > without).any()


@pytest.mark.parametrize("options", [{"autocast": "bfloat16"}, {"weights": "bfloat16"}])
def test_lower_precision_is_near(options: dict[str, Any], tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    exact = extracted(tmp_path / "exact", tiny_model, tiny_corpus)["max"].astype(float)
    near = extracted(tmp_path / "near", tiny_model, tiny_corpus, **options)["max"].astype(float)
    assert (near != exact).any()
    np.testing.assert_allclose(near, exact, atol=0.03 * np.abs(exact).max())


@pytest.mark.parametrize(
    "codec, level, shuffle", [("lz4", 5, "shuffle"), ("none", 1, "noshuffle"), ("zstd", 9, "noshuffle")]
)
def test_codecs_change_files_and_no_value(
    codec: Any, level: int, shuffle: Any, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    default = extracted(tmp_path / "default", tiny_model, tiny_corpus)["max"]
    compression = Compression(codec, level, shuffle)
    other = extracted(tmp_path / "other", tiny_model, tiny_corpus, compression=compression)["max"]
    np.testing.assert_array_equal(other, default)


@pytest.mark.parametrize("settings_, message", [
    ({"poolings": ("max", "reference")}, "ask for it alone"),
    ({"poolings": ("max", "max")}, "named twice"),
    ({"poolings": ("maximum",)}, "pooling is 'maximum': expected max, mean, last or reference"),
    ({"poolings": ()}, "no pooling is named"),
    ({"poolings": ("reference",), "too_long": "truncate"}, "drops longer sentences"),
    ({"autocast": "float8"}, "autocast is 'float8': expected none, bfloat16 or float16"),
    ({"weights": "float16"}, "weights is 'float16': expected float32 or bfloat16"),
    ({"batch_tokens": 100}, "expected at least one sentence of max_tokens, 128"),
    ({"threads": 0}, "expected 1 to 4096"),
])  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ResponseSpec(**settings_)


def test_running_a_task_again_writes_the_same_bytes_in_any_order(new_run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(new_run, tmp_path / "other"))
    tasks = extract.plan(open_run(new_run))
    extract.plan(open_run(other))
    first, second = extract.Extractor(open_run(new_run), "cpu"), extract.Extractor(open_run(other), "cpu")
    receipts = [first(task) for task in tasks]
    again = {task: second(task) for task in reversed(tasks)}
    assert [receipt.checksums for receipt in receipts] == [again[task].checksums for task in tasks]
    files = {path.relative_to(new_run) for path in (new_run / "store.zarr").rglob("*") if path.is_file()}
    assert files
    for name in files:
        assert (new_run / name).read_bytes() == (other / name).read_bytes()


def test_too_long_sentences_are_dropped_or_cut_and_counted(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(tiny_corpus)
    counts = {}
    for too_long in ("drop", "truncate"):
        run = tmp_path / too_long
        plan, bill = plan_new(run, tiny_model, tiny_corpus, max_tokens=9, too_long=too_long)
        extractor_tasks = extract.plan(open_run(run))
        extractor = extract.Extractor(open_run(run), "cpu")
        receipts: list[Receipt] = [extractor(task) for task in extractor_tasks]
        dropped = sum(receipt.counts["dropped"] for receipt in receipts)
        assert dropped == bill.dropped
        assert (Store(OpenRun(run, plan)).read_tokens()[: plan.layout.sentences] == 0).sum() == dropped
        counts[too_long] = dropped
    assert counts["truncate"] == 0 < counts["drop"] < corpus.identity.sentences


def test_a_concept_that_would_lose_all_its_sentences_is_refused(tiny_model: Path, tiny_corpus: Path) -> None:
    with pytest.raises(UserError, match="keeps no positive sentence of at most 3 tokens"):
        make_plan(request(tiny_model, max_tokens=3), Corpus.open(tiny_corpus))


def test_another_model_in_the_same_place_is_refused(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    run = tmp_path / "second"
    plan_new(run, folder, tiny_corpus)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 0.25 for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    extract.plan(open_run(run))
    with pytest.raises(UserError, match="other weights"):
        extract.Extractor(open_run(run), "cpu")
    assert json.loads((run / "plan.json").read_text())["model"]["name"] == str(folder)


texts_strategy = st.lists(st.integers(1, 12), min_size=1, max_size=30)


@given(lengths=texts_strategy, budget=st.integers(12, 60))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    texts = [TokenisedText([5] * n, [False] + [True] * (n - 1)) for n in lengths]
    rows = [row for row in range(len(texts)) if lengths[row] > 1]
    batches = make_batches(texts, rows, ResponseSpec(max_tokens=12, batch_tokens=budget), pad=0)
    assert sorted(row for batch in batches for row in batch.rows) == rows
    for batch in batches:
        assert batch.ids.numel() <= budget
        assert (batch.attended is None) == (len({lengths[row] for row in batch.rows}) == 1)
        assert batch.pooled.sum(1).tolist() == [lengths[row] - 1 for row in batch.rows]


@given(seed=st.integers(0, 10_000), pooling=st.sampled_from(["max", "mean", "last"]), same=st.booleans())
@settings(deadline=None)
def test_pooling_takes_marked_tokens_only(seed: int, pooling: Pooling, same: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(4, 6, 3, generator=generator)
    tokens = torch.rand(4, 6, generator=generator) > 0.5
    tokens[:, 2] = True
    if same:
        tokens[:] = tokens[0]
    expected = [
        {"max": chosen.amax(0), "mean": chosen.mean(0), "last": chosen[-1]}[pooling]
        for chosen in (output[row][tokens[row]] for row in range(4))
    ]
    batch = Batch(tuple(range(4)), torch.zeros(4, 6), None, tokens, find_spans(tokens))
    torch.testing.assert_close(pool(output, batch, pooling), torch.stack(expected))
    masked = replace(batch, spans=None)
    torch.testing.assert_close(pool(output, masked, pooling), torch.stack(expected))


def test_nan_names_sentence_hookpoint_and_unit() -> None:
    values = np.zeros((2, 5), np.float32)
    values[1, 4] = np.nan
    with pytest.raises(UserError, match=r"'h\.1', unit 4: the response to 'second' is NaN"):
        refuse_nan(values, [Hookpoint("h.0", 2, 0), Hookpoint("h.1", 3, 2)], ["first", "second"])


@given(
    sentences=st.integers(1, 10**7),
    units=st.integers(1, 10**6),
    itemsize=st.sampled_from([2, 4]),
    widest=st.integers(1, 600),
)
@settings(max_examples=300)
def test_layouts_cover_everything_within_the_budgets(sentences: int, units: int, itemsize: int, widest: int) -> None:
    layout = make_layout(sentences, units, itemsize, widest)
    assert layout.block_units <= min(widest, 256)
    assert layout.block_units % 16 == 0 or layout.block_units == widest < 16
    assert layout.partition(layout.partitions - 1).stop == sentences
    assert layout.block(layout.blocks - 1).stop == units
    rows, columns = layout.padded_shape
    assert rows >= sentences
    assert columns >= units
    assert columns % layout.shard_units == layout.shard_units % layout.block_units == rows % layout.partition_rows == 0
    assert layout.partition_rows == 32 or layout.partition_rows * units * itemsize <= 2 * 256 * 2**20

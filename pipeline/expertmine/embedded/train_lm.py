"""Trains the embedded language model on WordNet's text: ``python -m expertmine.embedded.train_lm [--minutes M]``.

A GPT-2-architecture model and its byte-level BPE tokenizer learn the definitions and examples of ``wordnet.parquet``.
About every 25th synset is held out whole: neither its definition nor its examples reach the tokenizer or the model,
also where another synset repeats them. Training takes a given wall-clock time, so that the same command suits any
machine; the model's card records the settings and results. Knows nothing of mining.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

HERE = Path(__file__).parent
END = "<|endoftext|>"
HELD_OUT_PERCENT = 4
VOCABULARY = 6000
CONTEXT = 128
LEMMA_SHARE = 0.4
"""Share of definitions per epoch in the form "dog is a member of …" instead of "a member of …"."""
PARAGRAPH_SHARE = 0.15
"""Share of synsets per epoch whose texts are joined to paragraphs, in WordNet's order."""
TOKENS_PER_STEP = 3072
PEAK_RATE = 2e-3
WARMUP = 0.02
AVERAGE_DECAY = 0.998


@dataclass(frozen=True, slots=True)
class Entry:
    """The texts of a synset that the model learns."""

    lemmas: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]


def is_held_out(name: str) -> bool:
    """Return whether a synset is held out from training; depends on its name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % 100 < HELD_OUT_PERCENT


def read_entries() -> tuple[list[Entry], list[Entry]]:
    """Read the training and the held-out entries, in WordNet's order."""
    train: list[Entry] = []
    held_out: list[Entry] = []
    columns = ["name", "lemmas", "definition", "examples"]
    rows = pq.read_table(HERE / "wordnet.parquet", columns=columns).to_pylist()
    hidden = {text for row in rows if is_held_out(row["name"]) for text in (row["definition"], *row["examples"])}
    for row in rows:
        lemmas = tuple(lemma.replace("_", " ") for lemma in row["lemmas"])
        entry = Entry(lemmas, row["definition"], tuple(row["examples"]))
        if is_held_out(row["name"]):
            held_out.append(entry)
        elif entry.definition not in hidden:
            train.append(Entry(lemmas, entry.definition, tuple(e for e in entry.examples if e not in hidden)))
    return train, held_out


def sentence(text: str) -> str:
    """End a text with a full stop unless it ends like a sentence."""
    return text if text.endswith((".", "!", "?")) else text + "."


def train_tokenizer(entries: list[Entry]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that starts every text with ``<|endoftext|>`` and treats its first word like any other."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (sentence(t) for e in entries for t in (", ".join(e.lemmas), e.definition, *e.examples))
    tokenizer.train_from_iterator(texts, trainer)
    end_id = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A $B", special_tokens=[(END, end_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def epoch_texts(entries: list[Entry], rng: random.Random) -> list[list[str]]:
    """Return the documents of one epoch, lists of sentences; every definition appears once, in one of its forms."""
    documents: list[list[str]] = []
    paragraph: list[str] = []
    for entry in entries:
        definition = sentence(entry.definition)
        if rng.random() < LEMMA_SHARE:
            definition = f"{rng.choice(entry.lemmas)} is {definition}"
        examples = [sentence(example) for example in entry.examples]
        if rng.random() < PARAGRAPH_SHARE:
            paragraph += [definition, *examples]
            if len(paragraph) >= 8:
                documents.append(paragraph)
                paragraph = []
        else:
            documents.append([definition])
            documents += [[example] for example in examples]
    return [*documents, paragraph] if paragraph else documents


def batches(
    documents: list[list[str]], tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> Iterator[torch.Tensor]:
    """Yield batches of at most TOKENS_PER_STEP tokens, (rows, length) int64, of similar lengths, padded with -1."""
    end_id = tokenizer.eos_token_id
    rows: list[list[int]] = tokenizer([" ".join(d) for d in documents], truncation=True, max_length=CONTEXT)[
        "input_ids"
    ]
    rows = [row if len(row) == CONTEXT else [*row, end_id] for row in rows]
    rng.shuffle(rows)
    rows.sort(key=len)  # stable: rows of equal length stay shuffled
    made: list[torch.Tensor] = []
    at = 0
    while at < len(rows):
        stop = at
        while stop < len(rows) and len(rows[stop]) * (stop - at + 1) <= TOKENS_PER_STEP:
            stop += 1
        width = len(rows[stop - 1])
        made.append(torch.tensor([row + [-1] * (width - len(row)) for row in rows[at:stop]]))
        at = stop
    rng.shuffle(made)
    yield from made


def loss_sum(model: GPT2LMHeadModel, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the summed next-token loss in nats over a batch's real tokens, and their number."""
    labels = batch[:, 1:]
    real = labels != -1
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.transformer(input_ids=batch[:, :-1].clamp(min=0), use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[real])
    return cross_entropy(logits.float(), labels[real], reduction="sum"), int(real.sum())


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, validation: list[torch.Tensor]) -> float:
    """Return the mean loss per token, in nats, over the definitions and examples of held-out synsets."""
    model.eval()
    sums = [loss_sum(model, batch) for batch in validation]
    model.train()
    return sum(loss.item() for loss, _ in sums) / sum(count for _, count in sums)


def new_model(tokenizer: PreTrainedTokenizerFast, layers: int, width: int) -> GPT2LMHeadModel:
    """Make a GPT-2 with random weights."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=width,
        n_layer=layers,
        n_head=width // 64,
        embd_pdrop=0.1,
        resid_pdrop=0.1,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)


def optimizers(model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    """Return Muon (Jordan, 2024) for the blocks' matrices, and AdamW for embeddings, biases and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".h." in n)]
    return [
        torch.optim.Muon(matrices, lr=PEAK_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def rate(done: float) -> float:
    """Return the factor on the peak rate when a share of training is done: linear warm-up, then cosine to 2 %."""
    if done < WARMUP:
        return done / WARMUP
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARMUP) / (1 - WARMUP))))


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path, facts: dict[str, object]) -> None:
    """Write weights (float16 safetensors), tokenizer and card as a Hugging Face model folder."""
    half = GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    (out / "README.md").write_text(CARD.format(**facts), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=85)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--out", type=Path, default=HERE / "model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the blocks; needs a C++ compiler")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    train, held_out = read_entries()
    tokenizer = train_tokenizer(train)
    model = new_model(tokenizer, options.layers, options.width)
    averaging = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE_DECAY)
    )
    average = averaging.module
    assert isinstance(average, GPT2LMHeadModel)
    validation = list(batches([[sentence(t)] for e in held_out for t in (e.definition, *e.examples)], tokenizer, rng))
    steppers = optimizers(model)
    if options.compile:
        model.transformer.compile(dynamic=True)

    started = time.monotonic()
    step = tokens = epoch = 0
    reported = started
    while (done := (time.monotonic() - started) / (60 * options.minutes)) < 1:
        epoch += 1
        for batch in batches(epoch_texts(train, rng), tokenizer, rng):
            done = (time.monotonic() - started) / (60 * options.minutes)
            if done >= 1:
                break
            for stepper in steppers:
                for group in stepper.param_groups:
                    group["lr"] = PEAK_RATE * rate(done)
            total, count = loss_sum(model, batch)
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad(set_to_none=True)
            averaging.update_parameters(model)
            step += 1
            tokens += count
            if time.monotonic() - reported > 120:
                reported = time.monotonic()
                speed = tokens / (reported - started)
                loss = held_out_loss(average, validation)
                print(
                    f"{done:4.0%}  epoch {epoch}  step {step:,}  {tokens / 1e6:.1f} M tokens  {speed:,.0f} tokens/s  "
                    f"training loss {total.item() / count:.3f}  held-out loss {loss:.3f}",
                    flush=True,
                )
                save(average, tokenizer, options.out, facts(options, average, step, tokens, epoch, loss))
    loss = held_out_loss(average, validation)
    save(average, tokenizer, options.out, facts(options, average, step, tokens, epoch, loss))
    print(f"held-out loss {loss:.4f}, perplexity {math.exp(loss):.1f}, {step:,} steps: {options.out}")


def facts(
    options: argparse.Namespace, model: GPT2LMHeadModel, step: int, tokens: int, epoch: int, loss: float
) -> dict[str, object]:
    """Return the values of the model card."""
    return {
        "layers": options.layers,
        "width": options.width,
        "parameters": f"{model.num_parameters() / 1e6:.1f}",
        "vocabulary": model.config.vocab_size,
        "minutes": f"{options.minutes:g}",
        "seed": options.seed,
        "compiled": " --compile" if options.compile else "",
        "steps": f"{step:,}",
        "tokens": f"{tokens / 1e6:.1f}",
        "epochs": epoch,
        "loss": f"{loss:.3f}",
        "perplexity": f"{math.exp(loss):.1f}",
        "held_out": HELD_OUT_PERCENT,
        "context": CONTEXT,
    }


CARD = """---
license: other
license_name: wordnet-3.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The embedded model of expertmine

A GPT-2-architecture language model that writes dictionary definitions: {layers} layers × {width}, {parameters} million
parameters, a byte-level BPE vocabulary of {vocabulary}, a context of {context} tokens. With it, the whole pipeline can
be run and tested on a machine without network access or a model hub.

## Training

From random weights, on two CPU cores, with

    python -m expertmine.embedded.train_lm --minutes {minutes} --layers {layers} --width {width} --seed {seed}{compiled}

on the definitions and examples of WordNet 3.0: {steps} steps, {tokens} million tokens, stopped in epoch {epochs}. Muon
and AdamW, cosine decay, bfloat16 autocast; the weights are an exponential moving average, stored as float16
safetensors.

## Held-out quality

{held_out} % of the synsets were held out whole, and their texts removed from training. On their definitions and
examples:

| loss (nats per token) | perplexity per token |
|---|---|
| {loss} | {perplexity} |

## Not for

Anything but demonstrations and tests. It has learned the form of definitions and which words occur together; it states
falsehoods fluently. WordNet's text carries the views of its time.

## Licence

The weights and tokenizer derive from WordNet 3.0, Copyright 2006 by Princeton University; its licence is in
`WORDNET-LICENSE` next to the data.
"""


if __name__ == "__main__":
    main()

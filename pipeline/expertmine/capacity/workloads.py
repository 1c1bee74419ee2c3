"""Makes workloads to estimate, from a planned run or from numbers alone.

A model's dimensions come from its configuration; the model is built without weights, so none are needed. Runs no
sentence through a model.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from expertmine.capacity.estimate import Workload
from expertmine.errors import UserError
from expertmine.mining.extraction_memory import pass_bytes
from expertmine.mining.planning import Bill, make_layout, measure_lengths, scoring_work, widest_block
from expertmine.mining.scoring_memory import Work
from expertmine.model.hookpoints import find_hookpoints
from expertmine.model.load import EMBEDDED, EMBEDDED_FOLDER, auto_class, load_tokenizer
from expertmine.model.responses import TYPES
from expertmine.run.ledger import missing_tasks, read_receipts
from expertmine.run.open_run import OpenRun, open_corpus
from expertmine.run.sentences import texts
from expertmine.specs.plan import Stage
from expertmine.specs.settings import PlanRequest, ResponseSpec, ScoringSpec

SAMPLE_PARTITIONS = 4
"""Partitions sampled for the mean number of tokens per sentence if none has been extracted yet."""


def _gpt2(layers: int, width: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_layer": layers, "n_embd": width, "n_head": width // 64}


def _llama(layers: int, width: int, inner: int) -> dict[str, Any]:
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner, "vocab_size": 32_000}
    return {"model_type": "llama", "num_attention_heads": width // 128, **sizes}


KNOWN: Mapping[str, dict[str, Any]] = {
    "gpt2": _gpt2(12, 768),
    "gpt2-medium": _gpt2(24, 1024),
    "gpt2-large": _gpt2(36, 1280),
    "gpt2-xl": _gpt2(48, 1600),
    "llama-7b": _llama(32, 4096, 11_008),
    "llama-13b": _llama(40, 5120, 13_824),
}
"""Configurations of models that can be named without a download."""


@dataclass(frozen=True, slots=True)
class ModelDimensions:
    """The sizes of a model that its cost depends on."""

    units: int
    widest: int
    """Channels of the widest hookpoint."""
    parameters: int
    """Parameters without embeddings, which are looked up and not multiplied."""
    all_parameters: int

    @classmethod
    def on_paper(cls, units: int, parameters: float) -> ModelDimensions:
        """The dimensions of a model of which only these numbers are known; assumes no embeddings.

        Raises:
            UserError: the number of parameters is out of range.
        """
        if not 1 <= parameters < float("inf"):
            raise UserError(f"--parameters is {parameters:g}: expected a number such as 6.5e9")
        # The usual share of the widest hookpoint in a model of about thirty blocks.
        return cls(units, max(1, units // 128), round(parameters), round(parameters))


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a corpus that its cost depends on."""

    sentences: int
    tokens_a_sentence: float
    concepts: int
    positives: int
    """Per concept."""
    negatives: int
    held_out_percent: float = 0.0
    own_negatives: bool = False
    """Whether each concept has negatives of its own; otherwise all share one pool."""

    def __post_init__(self) -> None:
        for name in ("sentences", "tokens_a_sentence", "concepts", "positives", "negatives"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: expected more than 0")
        if not 0 <= self.held_out_percent < 100:
            raise UserError(f"--held-out is {self.held_out_percent:g}: expected 0 to less than 100 per cent")
        if self.positives + self.negatives > self.sentences:
            raise UserError(
                f"a concept has {self.positives:,} positives and {self.negatives:,} negatives, but there are only "
                f"{self.sentences:,} sentences; expected at least as many"
            )


def model_dimensions(name: str, revision: str | None = None, patterns: tuple[str, ...] = ()) -> ModelDimensions:
    """The dimensions of a model, from its configuration alone.

    Args:
        name: ``embedded``, one of `KNOWN`, a ``config.json``, a folder with one, or a Hugging Face model id.
        patterns: of hookpoints, as for `expertmine.model.hookpoints.find_hookpoints`.

    Raises:
        UserError: there is no such configuration, or the units cannot be counted without weights or code.
    """
    return _dimensions(_config(name, revision), name, patterns)


def _config(name: str, revision: str | None) -> PreTrainedConfig:
    if name in KNOWN:
        return AutoConfig.for_model(**KNOWN[name])
    source = str(EMBEDDED_FOLDER) if name == EMBEDDED else name
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        near = difflib.get_close_matches(name, KNOWN, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected {', '.join(KNOWN)},"
        raise UserError(
            f"the configuration of model {name!r} cannot be read; {hint} or a config.json, a folder with one, or a "
            "Hugging Face model id; --units and --parameters work without a configuration"
        ) from error
    return config  # type: ignore[no-any-return]


def _dimensions(config: PreTrainedConfig, name: str, patterns: tuple[str, ...]) -> ModelDimensions:
    config = copy.deepcopy(config)
    config.pad_token_id = None  # some models search for it among the tokens, which have no values on the meta device
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(config).from_config(config)
        hookpoints = find_hookpoints(model, patterns)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the units of {name!r} cannot be counted without its weights, because its forward pass depends on values "
            "(such as the experts that a token is routed to); give --units and --parameters"
        ) from error
    inside = model.base_model
    embedded = {weight for each in inside.modules() if isinstance(each, nn.Embedding) for weight in each.parameters()}
    return ModelDimensions(
        units=hookpoints[-1].units.stop,
        widest=max(hookpoint.width for hookpoint in hookpoints),
        parameters=sum(weight.numel() for weight in inside.parameters() if weight not in embedded),
        all_parameters=sum(weight.numel() for weight in model.parameters()),
    )


def paper_workload(dimensions: ModelDimensions, sizes: Sizes, request: PlanRequest) -> Workload:
    """The workload of a job described only by numbers, planned as `expertmine plan` would plan it.

    All concepts have the same size, so with ``--null shared`` one concept's shuffles serve all.

    Raises:
        UserError: settings out of range, or a scoring process may not hold one unit.
    """
    spec, scoring = request.responses, ScoringSpec(**request.scoring)
    shuffles = scoring.permutations * (1 if scoring.null == "shared" else sizes.concepts)
    work = Work(sizes.sentences, sizes.concepts, 2 * sizes.concepts + shuffles, spec.dtype)
    itemsize = torch.finfo(TYPES[spec.dtype]).bits // 8 * len(spec.poolings)
    layout = make_layout(sizes.sentences, dimensions.units, itemsize, widest_block(work, request.scoring_memory))
    blocks = layout.blocks * len(spec.poolings)
    held_out = sizes.held_out_percent / 100
    return Workload(
        layout=layout,
        poolings=len(spec.poolings),
        dtype=spec.dtype,
        codec=request.compression.codec,
        autocast=spec.autocast,
        weights=spec.weights,
        left={"extract": layout.partitions, "score": blocks, "assess": blocks if scoring.resamples else 0},
        tokens=round(sizes.sentences * sizes.tokens_a_sentence),
        concepts=sizes.concepts,
        positives=sizes.positives * (1 - held_out),
        negatives=sizes.negatives * (1 - held_out),
        held_out_positives=sizes.positives * held_out,
        held_out_negatives=sizes.negatives * held_out,
        own_negatives=sizes.own_negatives,
        shuffles=shuffles,
        scoring=scoring,
        **_model_costs(dimensions, spec),
    )


def _model_costs(dimensions: ModelDimensions, spec: ResponseSpec) -> dict[str, int]:
    weights = dimensions.all_parameters * torch.finfo(TYPES[spec.weights]).bits // 8
    return {
        "parameters": dimensions.parameters,
        "weights_bytes": weights,
        "pass_bytes": pass_bytes(dimensions.widest, spec.batch_tokens),
    }


def workload_of_run(run: OpenRun, bill: Bill | None = None) -> Workload:
    """The remaining workload of a planned run.

    Args:
        bill: from planning the run just now; None if it was planned before, then its extracted tasks are used.

    Raises:
        UserError: the corpus is damaged, or the configuration of its model cannot be read.
    """
    plan, corpus = run.plan, open_corpus(run)
    spec, layout = plan.responses, plan.layout
    everything = ~corpus.held_out
    positives, negatives = corpus.counts(everything)
    held_positives, held_negatives = corpus.counts(corpus.held_out)
    work = scoring_work(corpus, everything | corpus.held_out, layout.padded_shape[0], spec, plan.scoring)
    stages: tuple[Stage, ...] = ("extract", "score", "assess")
    left = {stage: missing_tasks(run, stage) for stage in stages}
    sentences = sum(len(layout.partition(task)) for task in left["extract"])
    return Workload(
        layout=layout,
        poolings=len(spec.poolings),
        dtype=spec.dtype,
        codec=plan.compression.codec,
        autocast=spec.autocast,
        weights=spec.weights,
        left={stage: len(tasks) for stage, tasks in left.items()},
        tokens=round(sentences * _tokens_per_sentence(run)) if bill is None else bill.tokens,
        concepts=plan.corpus.concepts,
        positives=float(positives.mean()),
        negatives=float(negatives.mean()),
        held_out_positives=float(held_positives.mean()),
        held_out_negatives=float(held_negatives.mean()),
        own_negatives=not any(concept.pool is not None for concept in corpus.concepts),
        shuffles=work.sets - 2 * work.concepts,
        scoring=plan.scoring,
        compressed=bill.stored_bytes / bill.response_bytes if bill and bill.response_bytes else None,
        forward_seconds=None if bill is None else bill.extract_seconds,
        **_model_costs(model_dimensions(plan.model.name, plan.model.revision, plan.patterns), spec),
    )


def _tokens_per_sentence(run: OpenRun) -> float:
    """The mean over extracted partitions; if there are none, over a sample of partitions."""
    plan = run.plan
    done = list(read_receipts(run, "extract"))
    if done:
        return sum(each.counts["tokens"] for each in done) / max(1, sum(each.counts["sentences"] for each in done))
    every = max(1, plan.layout.partitions // SAMPLE_PARTITIONS)
    few = [text for task in range(0, plan.layout.partitions, every) for text in texts(run, task)]
    lengths = measure_lengths(load_tokenizer(plan.model), pa.chunked_array([few]), plan.responses)
    return float(lengths.mean())

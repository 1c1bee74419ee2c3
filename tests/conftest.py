"""A tiny model, corpus and run that most tests share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
# Read when ray is imported, which a test may do before ours does: on loopback alone, and with workers that do not wait
# for whatever else the machine does.
os.environ.update({"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"})

import pytest
import torch
from support import clusters
from support.corpora import LabelledTexts, write_lists
from support.plans import plan_new

from expertmine.model.load import EMBEDDED_FOLDER

ANIMALS = ["cat", "dog", "horse", "raven", "trout", "snake", "spider", "goat", "wolf", "bear", "mouse", "eagle"]
TOOLS = ["hammer", "saw", "chisel", "drill", "rake", "spade", "wrench", "file", "plane", "clamp", "lathe", "anvil"]


def animal_and_tool() -> list[LabelledTexts]:
    animals = [f"the {name} ran into the {place}" for name in ANIMALS for place in ("wood", "old barn", "sea at night")]
    tools = [f"a {name} made of {stuff}" for name in TOOLS for stuff in ("steel", "hard wood and brass", "iron")]
    return [
        LabelledTexts("animal", "test", "living things", animals, tools),
        LabelledTexts("tool", "test", "useful things", tools, animals),
    ]


def pytest_configure(config: pytest.Config) -> None:
    if folder := clusters.begin_session():
        config.add_cleanup(lambda: clusters.end_session(folder))


@pytest.fixture(scope="session")
def ray_address() -> str:
    """The address of the session's Ray."""
    return clusters.ray_address()


@pytest.fixture(scope="session")
def dask_address() -> str:
    """The address of the session's Dask scheduler."""
    return clusters.dask_address()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of 2 layers × 32 with random weights and the embedded tokenizer, as a model folder."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED_FOLDER / name, folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=6000, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two concepts, 72 sentences, a quarter of them held out."""
    folder = tmp_path_factory.mktemp("corpus")
    write_lists(animal_and_tool(), folder, held_out_percent=25)
    return folder


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_corpus: Path) -> Path:
    """A run folder with nothing but its plan; copy it before use (`new_run`)."""
    run = tmp_path_factory.mktemp("planned") / "run"
    plan_new(run, tiny_model, tiny_corpus)
    return run


@pytest.fixture
def new_run(planned: Path, tmp_path: Path) -> Path:
    """A planned run of the test's own."""
    return Path(shutil.copytree(planned, tmp_path / "run"))


@pytest.fixture(scope="session")
def mined(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run taken through every stage on the serial executors; read it, do not change it."""
    from expertmine.mining.mine import run_all
    from expertmine.runtime.cluster import Cluster

    run = Path(shutil.copytree(planned, tmp_path_factory.mktemp("mined") / "run"))
    run_all(run, ("serial", Cluster()), ("serial", Cluster()), top_k=40)
    return run


@pytest.fixture
def edit_json() -> Callable[[Path, Callable[[dict], object]], None]:  # type: ignore[type-arg]
    """Change a JSON file in place."""

    def edit(path: Path, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return edit

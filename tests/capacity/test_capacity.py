"""Estimates: clusters are parsed, dimensions counted without weights, more hardware is never slower, and scoring is
estimated to within a factor of 3."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.commands import refused
from support.made_runs import make_corpus, make_run
from support.tiny_models import save_model
from typer.testing import CliRunner

from expertmine.capacity.advice import advice
from expertmine.capacity.calibrate import measure, measure_kernels
from expertmine.capacity.estimate import StageEstimate, Workload, estimate
from expertmine.capacity.hardware import Hardware, assumed, parse_cluster
from expertmine.capacity.unit_costs import MEASURED
from expertmine.capacity.workloads import ModelDimensions, Sizes, model_dimensions, paper_workload, workload_of_run
from expertmine.cli import app as cli
from expertmine.errors import UserError
from expertmine.mining import score
from expertmine.mining.planning import expertise_bytes_of
from expertmine.model.hookpoints import find_hookpoints
from expertmine.model.load import load_model
from expertmine.run.open_run import OpenRun, open_corpus, open_run
from expertmine.specs.settings import PlanRequest, ResponseSpec

CLUSTER = "gpus=64,cpus=512,store-bandwidth=10GB/s"


def workload(
    units: int = 100_000,
    sentences: int = 100_000,
    concepts: int = 500,
    own_negatives: bool = False,
    scoring: dict[str, Any] | None = None,
    **responses: Any,
) -> Workload:
    sizes = Sizes(sentences, 20, concepts, 100, 200, own_negatives=own_negatives)
    request = PlanRequest("on paper", responses=ResponseSpec(**responses), scoring=scoring or {})
    return paper_workload(ModelDimensions.on_paper(units, 1e9), sizes, request)


def stage(load: Workload, hardware: Hardware, name: str) -> StageEstimate:
    (found,) = [each for each in estimate(load, hardware).stages if each.stage == name]
    return found


def printed_by(*arguments: object) -> str:
    """The standard output of a command, run in this process, since importing torch again would take seconds."""
    done = CliRunner().invoke(cli.app, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize("said, name, value", [
    ("store-bandwidth=10GB/s", "store_bandwidth", 10e9),
    ("store-bandwidth=1.5 GiB/s", "store_bandwidth", 1.5 * 2**30),
    ("store-bandwidth=100Gbit/s", "store_bandwidth", 12.5e9),
    ("store-bandwidth=800Mb/s", "store_bandwidth", 1e8),
    ("store-bandwidth=1GB, gpu-memory = 40GB", "gpu_memory", 40e9),
    ("store-bandwidth=1GB,gpu-flops=312TFLOPS", "gpu_flops", 312e12),
    ("store-bandwidth=1GB,gpu-flops=9.89e14", "gpu_flops", 989e12),
    ("store-bandwidth=1GB,utilisation=35%", "utilisation", 0.35),
    ("store-bandwidth=1GB,gpus=2,gpus-each=0.25", "gpus_each", 0.25),
    ("store-bandwidth=1GB,latency=20ms", "latency", 0.02),
])  # fmt: skip
def test_a_cluster_is_read(said: str, name: str, value: float) -> None:
    found = parse_cluster(f"cpus=8,{said}")
    assert found.cpus == 8
    assert getattr(found, name) == pytest.approx(value)
    assert name.replace("_", "-") not in assumed(found)


@pytest.mark.parametrize("said, message", [
    ("cpu=8,store-bandwidth=1GB/s", "'cpu' is not a property of a cluster; did you mean cpus"),
    ("cpus=8,cpus=9,store-bandwidth=1GB/s", "cpus is given twice"),
    ("cpus=0,store-bandwidth=1GB/s", "cpus is '0'; expected a number of cores"),
    ("cpus=-1,store-bandwidth=1GB/s", "cpus is '-1'; expected a number of cores"),
    ("cpus,store-bandwidth=1GB/s", "cpus is ''; expected a number of cores"),
    ("cpus=8,store-bandwidth=fast", "store-bandwidth is 'fast'; expected bytes per second such as 10GB/s"),
    ("cpus=8,store-bandwidth=0GB/s", "store-bandwidth is '0GB/s'"),
    ("cpus=8,store-bandwidth=1GB/s,latency=20", "latency is '20'; expected the time"),
    ("cpus=8,store-bandwidth=1GB/s,utilisation=1.2", "utilisation is '1.2'; expected the share"),
    ("cpus=8", "store-bandwidth is missing; expected something like gpus=64"),
    ("", "cpus is missing"),
    ("cpus=8,store-bandwidth=1GB/s,gpus=1,gpus-each=2", "gpus-each is 2 and gpus is 1"),
])  # fmt: skip
def test_an_invalid_cluster_is_refused(said: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse_cluster(said)
    assert message in str(refusal.value)


def test_dimensions_of_known_models_equal_their_papers() -> None:
    """Per block of a GPT-2: 3d and d of attention, 4d and d of the MLP; of a Llama: 4d, and d and two inner widths."""
    xl, llama = model_dimensions("gpt2-xl"), model_dimensions("llama-7b")
    assert xl.units == 48 * 9 * 1600
    assert llama.units == 32 * (5 * 4096 + 2 * 11_008)
    assert xl.all_parameters == pytest.approx(1.558e9, rel=0.001)
    assert llama.all_parameters == pytest.approx(6.738e9, rel=0.001)
    matrices = 48 * 12 * 1600**2, 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    assert (xl.parameters, llama.parameters) == pytest.approx(matrices, rel=0.001)
    assert model_dimensions("gpt2-xl", patterns=("mlp",)).units == 48 * 5 * 1600


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "albert"])
def test_a_configuration_has_the_units_of_its_model(name: str, tmp_path: Path) -> None:
    folder = save_model(name, tmp_path / name)
    loaded = load_model(str(folder)).model
    hookpoints = find_hookpoints(loaded)
    (folder / "model.safetensors").unlink()
    found = model_dimensions(str(folder))
    assert found.units == hookpoints[-1].units.stop
    assert found.widest == max(hookpoint.width for hookpoint in hookpoints)
    inside = [each for each in loaded.base_model.modules() if isinstance(each, torch.nn.Embedding)]
    embedded = sum(weight.numel() for each in inside for weight in each.parameters())
    assert found.parameters == sum(weight.numel() for weight in loaded.base_model.parameters()) - embedded


def test_a_model_whose_forward_pass_depends_on_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be counted without its weights.*give --units and --parameters"):
        model_dimensions(str(save_model("mixtral", tmp_path / "mixtral")))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="1,000 positives and 1,000 negatives, but there are only 1,500 sentences"):
        Sizes(1_500, 20, 10, 1_000, 1_000)
    with pytest.raises(UserError, match="--tokens-a-sentence is 0: expected more than 0"):
        Sizes(1_500, 0, 10, 10, 10)
    with pytest.raises(UserError, match="--held-out is 100"):
        Sizes(1_500, 20, 10, 10, 10, held_out_percent=100)


WORKLOADS = st.builds(
    workload,
    units=st.integers(100, 500_000),
    sentences=st.integers(300, 1_000_000),
    concepts=st.integers(1, 5_000),
    own_negatives=st.booleans(),
    dtype=st.sampled_from(["float16", "float32"]),
    scoring=st.fixed_dictionaries(
        {"keep": st.sampled_from([None, 4]), "permutations": st.integers(0, 20), "resamples": st.integers(0, 100)}
    ),
)
HARDWARE = st.builds(
    Hardware,
    gpus=st.integers(0, 100),
    cpus=st.integers(1, 1_000),
    store_bandwidth=st.floats(1e8, 1e11),
    gpus_each=st.sampled_from([0.25, 0.34, 0.5, 1.0]),
    latency=st.floats(0, 0.1),
)


@given(WORKLOADS, HARDWARE)
def test_more_of_anything_is_never_slower(load: Workload, hardware: Hardware) -> None:
    before = estimate(load, hardware).seconds
    more = [
        replace(hardware, cpus=2 * hardware.cpus),
        replace(hardware, store_bandwidth=2 * hardware.store_bandwidth),
        replace(hardware, latency=hardware.latency / 2),
        replace(hardware, gpu_flops=2 * hardware.peak(load.autocast, load.weights)),
    ]
    if hardware.gpus:
        more.append(replace(hardware, gpus=2 * hardware.gpus))
    for other in more:
        assert estimate(load, other).seconds <= before * (1 + 1e-9), other


@given(WORKLOADS, HARDWARE)
def test_more_work_is_never_faster(load: Workload, hardware: Hardware) -> None:
    before = estimate(load, hardware).seconds
    more = [
        replace(load, concepts=2 * load.concepts),
        replace(load, tokens=2 * load.tokens),
        replace(load, shuffles=2 * load.shuffles),
        replace(load, positives=2 * load.positives),
        replace(load, parameters=2 * load.parameters),
    ]
    for other in more:
        assert estimate(other, hardware).seconds >= before * (1 - 1e-9), other


@given(WORKLOADS, HARDWARE)
def test_a_stage_takes_as_long_as_its_slowest_lane(load: Workload, hardware: Hardware) -> None:
    for found in estimate(load, hardware).stages:
        assert found.seconds >= max(found.lanes.values())
        assert found.bottleneck.split(":")[0] in found.lanes
        assert 0 <= found.idle < 1


def test_the_last_round_is_whole() -> None:
    load = workload()
    blocks = load.left["score"]
    exact = Hardware(cpus=blocks, store_bandwidth=1e15)
    one_fewer = replace(exact, cpus=blocks - 1)
    assert stage(load, one_fewer, "score").lanes["CPUs"] == pytest.approx(2 * stage(load, exact, "score").lanes["CPUs"])
    assert stage(load, exact, "score").idle == 0
    assert stage(load, one_fewer, "score").idle == pytest.approx(1 - blocks / (2 * (blocks - 1)))


def test_the_bottleneck_is_the_scarcest_resource() -> None:
    load = workload(sentences=1_000_000, autocast="bfloat16")
    assert stage(load, Hardware(64, 512, store_bandwidth=1e7), "extract").bottleneck == "store bandwidth"
    assert stage(load, Hardware(1, 512, 1e11, gpu_flops=1e12), "extract").bottleneck == "GPUs"
    plenty = Hardware(4, 512, 1e11, gpu_flops=1e16)
    assert stage(load, plenty, "extract").bottleneck == "the writing thread of each process"
    assert stage(load, Hardware(0, 8, 1e11), "extract").bottleneck == "CPUs: forward passes"
    assert stage(load, Hardware(0, 8, 1e11, latency=0.1), "score").bottleneck == "CPUs: waiting for the store"


@given(WORKLOADS, HARDWARE)
def test_advice_agrees_with_the_estimate_of_the_change(load: Workload, hardware: Hardware) -> None:
    now, given_advice = estimate(load, hardware).seconds, advice(load, hardware)
    assert [change.seconds for change in given_advice.changes] == sorted(c.seconds for c in given_advice.changes)
    wider = replace(hardware, cpus=2 * hardware.cpus)
    (cpus,) = [change for change in given_advice.changes if change.what == f"{wider.cpus} CPUs"]
    assert cpus.seconds == estimate(load, wider).seconds
    assert not (given_advice.halving and given_advice.giving_up)
    assert not any(step.gives_up for step in given_advice.halving)
    for steps in (given_advice.halving, given_advice.giving_up):
        assert not steps or steps[-1].seconds <= now / 2 < ([now] + [step.seconds for step in steps])[-2]


def test_memory_that_does_not_fit_is_reported() -> None:
    load = paper_workload(model_dimensions("llama-7b"), Sizes(10_000, 20, 10, 100, 100), PlanRequest("llama-7b"))
    assert load.weights_bytes == pytest.approx(4 * 6.738e9, rel=0.001)
    small = replace(parse_cluster(CLUSTER), gpu_memory=16e9)
    assert [need.fits for need in estimate(load, small).memory] == [False, True, True]
    halved = paper_workload(
        model_dimensions("llama-7b"),
        Sizes(10_000, 20, 10, 100, 100),
        PlanRequest("llama-7b", responses=ResponseSpec(weights="bfloat16")),
    )
    assert all(need.fits for need in estimate(halved, small).memory)


@pytest.mark.parametrize("keep", [None, 4])
def test_a_planned_run_is_read_as_it_is(keep: int | None, planned: Path, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", texts=400, concepts=12, positives=20, pool=60, held_out_percent=25)
    run = tmp_path / "run"
    plan = make_run(run, corpus, 512, keep=keep, permutations=3, resamples=5)
    # Its model is made up; the planned run's model has a configuration.
    score.plan(open_run(run))
    sets = score.Scorer(open_run(run)).rows.concepts
    edited = replace(plan, model=open_run(planned).plan.model)
    (run / "plan.json").write_text(json.dumps(edited.to_json()))
    for receipt in (run / "receipts" / "extract").iterdir():
        receipt.unlink()
    found = workload_of_run(open_run(run))
    opened = open_corpus(OpenRun(run, edited))
    assert found.layout == plan.layout
    assert found.left == {
        "extract": plan.layout.partitions,
        "score": plan.tasks("score"),
        "assess": plan.tasks("assess"),
    }
    assert found.expertise_bytes == expertise_bytes_of(plan, keep)
    assert found.shuffles + 2 * 12 == sets
    positives, negatives = opened.counts(~opened.held_out)
    assert (found.positives, found.negatives) == (positives.mean(), negatives.mean())
    assert found.held_out_positives == opened.counts(opened.held_out)[0].mean() > 0
    assert found.parameters == model_dimensions(edited.model.name).parameters
    assert not found.own_negatives


def test_finished_stages_take_no_time(mined: Path) -> None:
    load = workload_of_run(open_run(mined))
    assert load.left == {"extract": 0, "score": 0, "assess": 0}
    assert load.tokens == 0
    assert [each.stage for each in estimate(load, parse_cluster(CLUSTER)).stages] == ["reduce"]


def test_kernels_are_measured_on_this_machine() -> None:
    small, large = measure_kernels("float16", 2_000), measure_kernels("float16", 50_000)
    assert (small.rows, large.rows) == (2_000, 50_000)
    for costs in (small, large):  # how they compare is up to the machine
        assert min(costs.rank, costs.pair, costs.positive) > 0
    measured = measure("float16", "zstd", 50_000, MEASURED)
    assert measured.kernels["float16"][0].rows == 50_000
    assert measured.kernels["float32"] == MEASURED.kernels["float32"]
    assert "this machine" in measured.kernels_source


def test_costs_are_interpolated_between_measurements() -> None:
    low, high = MEASURED.kernels["float16"][:2]
    between = MEASURED.kernels_of("float16", 30_000)
    for name in ("rank", "pair", "positive"):
        assert getattr(low, name) <= getattr(between, name) <= getattr(high, name)
    assert MEASURED.kernels_of("float16", 10) == low
    assert MEASURED.kernels_of("float16", 10**9) == MEASURED.kernels["float16"][-1]


def test_a_job_on_paper_is_printed() -> None:
    numbers = ("--units", 691_200, "--parameters", 1.5e9, "--sentences", 1_000_000, "--concepts", 1344)
    printed = printed_by("estimate", *numbers, "--cluster", CLUSTER)
    for words in ("1,344 concepts × 691,200 units = 928,972,800", "bottleneck", "assumed", "A100", "to halve it"):
        assert words in printed
    document = json.loads(printed_by("estimate", *numbers, "--cluster", CLUSTER, "--json"))["capacity"]
    assert document["workload"]["pairs"] == 928_972_800
    assert document["seconds"] == pytest.approx(sum(each["seconds"] for each in document["stages"]))
    assert document["hardware"]["assumed"][0] == "gpu-memory"
    assert document["unit_costs"]["decode"]["source"]


@pytest.mark.parametrize("arguments, message", [
    (("--units", 100), "--units and --parameters describe a model together"),
    (("--units", 100, "--parameters", 0), "--parameters is 0"),
    (("--model", "gpt2-xll"), "did you mean gpt2-xl"),
])  # fmt: skip
def test_an_invalid_job_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        printed_by("estimate", *arguments, "--sentences", 10_000, "--concepts", 10, "--cluster", CLUSTER)


def test_bad_input_ends_with_one_message_and_exit_code_2() -> None:
    sizes = ("--units", 100, "--parameters", "1e9", "--sentences", 10_000, "--concepts", 10)
    assert "did you mean cpus" in refused("estimate", *sizes, "--cluster", "cpu=8,store-bandwidth=1GB/s")


def test_a_plan_is_estimated_on_a_cluster(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("plan", run, "--model", tiny_model, "--corpus", tiny_corpus, "--max-tokens", 64)
    document = json.loads(printed_by(*command, "--cluster", "cpus=1,store-bandwidth=1GB/s", "--json"))
    bill, capacity = document["bill"], document["capacity"]
    extract = capacity["stages"][0]
    assert extract["work"]["forward passes"] == pytest.approx(bill["extract_seconds"])
    assert capacity["workload"]["tokens"] == bill["tokens"]
    assert "bottleneck" in printed_by(*command, "--cluster", CLUSTER)  # now it is already planned

"""Packs: complete, reduced and untrusted ones; with a stubbed hub."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from support.commands import refused, succeed
from support.made_indexes import HOOKPOINTS, made_metadata, made_tables, make_index

from expertmine import Experts, steer
from expertmine.errors import UnknownConcept, UserError
from expertmine.index import hub
from expertmine.index.distribution import grouped
from expertmine.index.experts import TABLES
from expertmine.index.names import STEERING
from expertmine.index.pack import FILES, PackRequest, pack
from expertmine.index.writer import write_tables
from expertmine.model.load import load_model
from expertmine.specs.choices import UNITS

NAMES = ["bird", "pipe | star*", "<script>alert(1)</script>", "``` fence", "quote\"'\\", "ünï 🐦"]
KEPT, WIDTH = 12, 20


@pytest.fixture
def experts(tmp_path: Path) -> Experts:
    rng = np.random.default_rng(1)
    units = np.stack([rng.permutation(WIDTH * len(HOOKPOINTS))[:KEPT] for _ in NAMES])
    return make_index(tmp_path / "index", units, WIDTH, NAMES)


def front_matter(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(matter)
    return found


def test_a_pack_has_the_requested_part_of_the_index(experts: Experts, tmp_path: Path) -> None:
    chosen = (NAMES[3], NAMES[0])
    packed = pack(experts, tmp_path / "pack", PackRequest(5, chosen))
    assert (packed.concepts, packed.top_k) == (2, 5)
    assert packed.bytes == sum(path.stat().st_size for path in (tmp_path / "pack").iterdir())
    found = Experts.load(tmp_path / "pack")
    assert list(found) == [NAMES[0], NAMES[3]]
    assert found.top_k == 5
    for name in found:
        for which in UNITS:
            assert list(found.units(name, which)) == list(experts.units(name, which))[:5]
        assert found.concept_metadata(name) == experts.concept_metadata(name)
        assert grouped(found.distribution, name, "layer") == grouped(experts.distribution, name, "layer")
    same = ("model", "corpus", "pooling", "scoring", "responses", "hookpoints", "plan", "units")
    assert all(found.metadata[name] == experts.metadata[name] for name in same)
    assert found.metadata["packed"]["from"] == {"concepts": len(NAMES), "top_k": KEPT}
    assert {path.name for path in (tmp_path / "pack").iterdir()} == set(FILES) - {STEERING}


def test_the_whole_index_packed_and_packed_again_is_the_same(experts: Experts, tmp_path: Path) -> None:
    pack(experts, tmp_path / "one")
    pack(Experts.load(tmp_path / "one"), tmp_path / "two")
    for name in TABLES:
        tables = [pq.read_table(folder / f"{name}.parquet") for folder in (experts.folder, tmp_path / "one")]
        assert tables[0].equals(tables[1])
        assert (tmp_path / "one" / f"{name}.parquet").read_bytes() == (
            tmp_path / "two" / f"{name}.parquet"
        ).read_bytes()


def test_a_pack_has_the_chosen_k_that_it_has_experts_for(experts: Experts, tmp_path: Path) -> None:
    experts.keep_chosen({NAMES[0]: 4, NAMES[1]: 9, NAMES[2]: None, NAMES[3]: 2}, "the best of all")
    packed = pack(experts, tmp_path / "pack", PackRequest(5, tuple(NAMES[:3])))
    assert (packed.steered, packed.left_out) == (2, (NAMES[1],))
    found = Experts.load(tmp_path / "pack")
    assert dict(found.steering) == {NAMES[0]: 4, NAMES[2]: None}
    document = json.loads((tmp_path / "pack" / STEERING).read_text())
    assert document["rule"] == "the best of all"
    assert document["experts"] == hashlib.sha256((tmp_path / "pack" / "experts.parquet").read_bytes()).hexdigest()
    pack(experts, tmp_path / "pack", PackRequest(1, (NAMES[1],)))
    assert not (tmp_path / "pack" / STEERING).exists()


def test_the_card_describes_the_pack_and_escapes_names(experts: Experts, tmp_path: Path) -> None:
    pack(experts, tmp_path / "pack", PackRequest(title='A # "title" <b>', license="cc-by-4.0", repository="ann/birds"))
    card = (tmp_path / "pack" / "README.md").read_text()
    matter = front_matter(card)
    assert matter["library_name"] == "expertmine"
    assert (matter["base_model"], matter["license"]) == ("ann/model", "cc-by-4.0")
    assert "expertmine" in matter["tags"]
    assert '# A \\# "title" &lt;b&gt;' in card
    assert "Experts.load('ann/birds')" in card
    assert "AutoTokenizer.from_pretrained('ann/model', revision='v1')" in card
    assert "<script>" not in card
    assert all(line.count("|") - line.count("\\|") == 7 for line in card.splitlines() if line.startswith("| pipe"))
    rows = [line for line in card.splitlines() if line.startswith("|") and "0.400" in line]
    assert len(rows) == len(NAMES)
    assert len(re.findall(r"^```", card, re.MULTILINE)) == 2
    for known in ("3" * 64, "0" * 64, "1,000 sentences", "GPT2LMHeadModel", "max over at most 128 tokens"):
        assert known in card
    pack(experts, tmp_path / "plain")
    plain = (tmp_path / "plain" / "README.md").read_text()
    assert "license" not in front_matter(plain)
    assert "None is stated" in plain
    assert "Experts.load('plain')" in plain


@pytest.mark.parametrize("name", NAMES)
def test_the_cards_example_compiles_for_any_name(name: str, experts: Experts, tmp_path: Path) -> None:
    pack(experts, tmp_path / "pack", PackRequest(concepts=(name,)))
    card = (tmp_path / "pack" / "README.md").read_text()
    code = card.split("```python\n")[1].split("\n```\n")[0]
    compile(code, "card", "exec")
    assert f"experts[{name!r}], k=12" in code


@pytest.mark.slow
def test_the_cards_example_runs(mined: Path, tmp_path: Path) -> None:
    experts = Experts.load(mined)
    packed = pack(experts, tmp_path / "pack", PackRequest(20))
    assert packed.local_model == experts.model.name
    card = (tmp_path / "pack" / "README.md").read_text()
    assert "base_model" not in front_matter(card)
    code = card.split("```python\n")[1].split("\n```\n")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "I saw" in done.stdout


def test_a_pack_steers_its_own_model_and_no_other(mined: Path, tmp_path: Path) -> None:
    pack(Experts.load(mined), tmp_path / "pack", PackRequest(10, ("tool",)))
    experts = Experts.load(tmp_path / "pack")
    with steer(load_model(experts.model.name, device="cpu").model, experts["tool"], 10):
        pass
    other = load_model("embedded", device="cpu").model
    with pytest.raises(UserError, match="other weights"), steer(other, experts["tool"], 10):
        pass


def test_a_pack_opens_without_torch_zarr_or_the_hubs_client(experts: Experts, tmp_path: Path) -> None:
    pack(experts, tmp_path / "pack")
    code = (
        f"import sys; from expertmine import Experts; Experts.load({str(tmp_path / 'pack')!r})['bird']; "
        "print([name for name in ('torch', 'zarr', 'ray', 'distributed', 'numba', 'huggingface_hub') "
        "if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_folders_with_other_contents_are_refused(experts: Experts, tmp_path: Path) -> None:
    for out, message in (
        (experts.folder, "the index to be packed"),
        (tmp_path, "contains index; give the pack a new folder"),
    ):
        with pytest.raises(UserError, match=message):
            pack(experts, out)
    shutil.copytree(experts.folder, tmp_path / "other")
    with pytest.raises(UserError, match="contains an expert index that is not a pack"):
        pack(experts, tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        pack(experts, tmp_path / "file")
    with pytest.raises(UserError, match="k is 13: expected 1 to 12"):
        pack(experts, tmp_path / "new", PackRequest(13))
    with pytest.raises(UnknownConcept, match="did you mean bird"):
        pack(experts, tmp_path / "new", PackRequest(concepts=("brid",)))
    with pytest.raises(UserError, match="expected a line of text"):
        PackRequest(license="a\nbase_model: b")
    assert not (tmp_path / "new").exists()


# Untrusted packs.


def corrupted(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change an index's ``index.json``, but not its tables."""
    path = folder / "index.json"
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))


@pytest.mark.parametrize("change, message", [
    (lambda it: it.pop("top_k"), "top_k is missing"),
    (lambda it: it.update(top_k=10**9), "top_k is 1000000000: expected 1 to 80"),
    (lambda it: it.update(top_k=10**400), "top_k is not a whole number"),
    (lambda it: it.update(top_k=13), "72 rows, but index.json promises 78"),
    (lambda it: it.update(top_k=0), "top_k is 0"),
    (lambda it: it.update(top_k=True), "top_k is not a whole number"),
    (lambda it: it.update(top_k="12"), "top_k is not a whole number"),
    (lambda it: it.update(top_k=float("nan")), "top_k is not a whole number"),
    (lambda it: it.update(concepts={}), "concepts is not a list"),
    (lambda it: it.update(concepts=[]), "it has no concepts"),
    (lambda it: it["concepts"].pop(), "72 rows, but index.json promises 60"),
    (lambda it: it["concepts"].append(it["concepts"][0]), "two concepts have the same name"),
    (lambda it: it["concepts"].__setitem__(2, None), r"concepts\[2\] is not an object"),
    (lambda it: it["concepts"][1].pop("chance"), r"concepts\[1\]\.chance is missing"),
    (lambda it: it["concepts"][1].update(name=3), r"concepts\[1\]\.name is not text"),
    (lambda it: it["concepts"][1].update(name="\ud800"), r"concepts\[1\]\.name is not text"),
    (lambda it: it["concepts"][1].update(stability={}), "has other keys than that of the first"),
    (lambda it: it["concepts"][1]["chance"].update(threshold=None), "only one of threshold and units_above"),
    (lambda it: it["concepts"][1]["chance"].update(expected_ap=[]), r"chance\.expected_ap is not a number"),
    (lambda it: it.update(model="gpt2"), "model is not an object"),
    (lambda it: it["model"].pop("weights"), r"model\.weights is missing"),
    (lambda it: it.update(pooling="median"), "pooling is 'median'"),
    (lambda it: it.update(checksums=[]), "checksums is not an object"),
    (lambda it: it["checksums"].pop("experts"), "does not match index.json's checksum"),
    (lambda it: it["hookpoints"].reverse(), "do not follow those of the hookpoint before it"),
    (lambda it: it["hookpoints"][0].update(width=-1), "do not follow those of the hookpoint before it"),
    (lambda it: it["hookpoints"].pop(), "units is 80, but the hookpoints have 60 units"),
    (lambda it: it["hookpoints"][1].update(name=HOOKPOINTS[0]), "two hookpoints have the same name"),
    (lambda it: it.update(format="4"), "not an expert index of format"),
    (lambda it: it["scoring"].pop("permutations"), r"scoring\.permutations is missing"),
])  # fmt: skip
def test_an_index_that_contradicts_itself_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, experts: Experts, tmp_path: Path
) -> None:
    pack(experts, tmp_path / "pack")
    corrupted(tmp_path / "pack", change)
    with pytest.raises(UserError, match=message):
        Experts.load(tmp_path / "pack")


@pytest.mark.parametrize("content", [b"", b"[]", b"4", b"{", b"null", b'{"format": 4}', b"\xff", b"[" * 100_000])
def test_a_file_that_is_not_an_index_is_refused(content: bytes, experts: Experts, tmp_path: Path) -> None:
    pack(experts, tmp_path / "pack")
    (tmp_path / "pack" / "index.json").write_bytes(content)
    with pytest.raises(UserError):
        Experts.load(tmp_path / "pack")


def replaced(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    """A change of one column's values."""

    def change(table: pa.Table) -> pa.Table:
        field = table.schema.field(name)
        return table.set_column(
            table.schema.get_field_index(name), field, pa.array(values(table[name].to_pylist()), field.type)
        )

    return change


@pytest.mark.parametrize("change, message", [
    (replaced("concept", lambda rows: rows[::-1]), "its concepts differ from index.json"),
    (replaced("concept", lambda rows: ["other", *rows[1:]]), "its concepts differ from index.json"),
    (replaced("rank", lambda rows: [rows[1], rows[0], *rows[2:]]), "its ranks do not count from 1"),
    (replaced("unit", lambda rows: [-1, *rows[1:]]), "outside the model's 80"),
    (replaced("unit", lambda rows: [2**40, *rows[1:]]), "outside the model's 80"),
    (replaced("unit", lambda rows: [*rows[:-1], (rows[-1] + 1) % 80]), "do not match their hookpoints and channels"),
    (replaced("hookpoint", lambda rows: ["../x", *rows[1:]]), "do not match their hookpoints and channels"),
    (replaced("channel", lambda rows: [rows[0] + 1, *rows[1:]]), "do not match their hookpoints and channels"),
    (replaced("on_mean", lambda rows: [None, *rows[1:]]), "it has null values"),
    (lambda table: table.slice(1), "71 rows, but index.json promises 72"),
    (lambda table: table.drop_columns(["auroc"]), "does not have the columns"),
    (lambda table: table.set_column(3, "unit", table["unit"].cast(pa.int32())), "does not have the columns"),
    (lambda table: pa.concat_tables([table.slice(0, 1).set_column(
        2, table.schema.field("rank"), pa.array([2], pa.int32())), table.slice(0, 1), table.slice(2)]), "ranks"),
])  # fmt: skip
def test_a_table_that_contradicts_its_index_is_refused(
    change: Callable[[pa.Table], pa.Table], message: str, experts: Experts, tmp_path: Path
) -> None:
    path = tmp_path / "index" / "experts.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    corrupted(tmp_path / "index", lambda it: it["checksums"].update(experts=checksum))
    with pytest.raises(UserError, match=message):
        Experts.load(tmp_path / "index")["bird"]


def test_a_unit_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    metadata = made_metadata(["one"], WIDTH)
    write_tables(tmp_path / "index", made_tables(np.array([[5, 7, 5]]), metadata), metadata)
    with pytest.raises(UserError, match="a unit occurs twice"):
        Experts.load(tmp_path / "index")["one"]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(200) + b"PAR1", b"not a table" * 50])
@pytest.mark.parametrize("name", ["experts", "distribution"])
def test_bytes_that_are_no_table_are_refused(name: str, content: bytes, experts: Experts, tmp_path: Path) -> None:
    path = tmp_path / "index" / f"{name}.parquet"
    path.write_bytes(content)
    checksum = hashlib.sha256(content).hexdigest()
    corrupted(tmp_path / "index", lambda it: it["checksums"].update({name: checksum}))
    with pytest.raises(UserError, match="cannot be read"):
        assert Experts.load(tmp_path / "index").distribution


@pytest.mark.parametrize("column, values, message", [
    ("bins", lambda rows: [[-1, *row[1:]] for row in rows], "bins do not hold every unit once"),
    ("bins", lambda rows: [[None, *row[1:]] for row in rows], "other widths"),
    ("units", lambda rows: [0] * len(rows), "other widths"),
    ("hookpoint", lambda rows: rows[::-1], "hookpoints differ from index.json"),
    ("concept", lambda rows: rows[::-1], "concepts differ from index.json"),
    ("max_ap", lambda rows: [None] * len(rows), "it has null values"),
])  # fmt: skip
def test_a_distribution_that_contradicts_its_index_is_refused(
    column: str, values: Any, message: str, experts: Experts, tmp_path: Path
) -> None:
    path = tmp_path / "index" / "distribution.parquet"
    pq.write_table(replaced(column, values)(pq.read_table(path)), path)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    corrupted(tmp_path / "index", lambda it: it["checksums"].update(distribution=checksum))
    with pytest.raises(UserError, match=message):
        assert Experts.load(tmp_path / "index").distribution


@pytest.mark.parametrize("k", [None, [], 3, {"bird": "4"}, {"bird": -1}, {"bird": 13}, {"bird": True}])
def test_an_invalid_chosen_k_is_refused(k: Any, experts: Experts) -> None:
    experts.keep_chosen({"bird": 4}, "some rule")
    document = json.loads((experts.folder / STEERING).read_text())
    (experts.folder / STEERING).write_text(json.dumps({**document, "k": k}))
    with pytest.raises(UserError, match=r"steering\.json is damaged"):
        Experts.load(experts.folder).chosen_k("bird")


# The hub.


@pytest.mark.parametrize("text, expected", [
    ("ann/birds", ("ann/birds", None)),
    ("hf://ann/birds", ("ann/birds", None)),
    ("hf:/ann/birds", ("ann/birds", None)),
    ("hf://ann/bi.r_d-s@v1.0/a", ("ann/bi.r_d-s", "v1.0/a")),
    ("ann/birds@main", ("ann/birds", "main")),
    ("birds", None),
    ("./ann/birds", None),
    ("../birds", None),
    ("/ann/birds", None),
    ("ann/birds/more", None),
    ("ann/..", None),
    ("ann/birds@", None),
    ("ann/birds\n", None),
    ("https://ann/birds", None),
])  # fmt: skip
def test_names_of_repositories(text: str, expected: tuple[str, str | None] | None) -> None:
    assert hub.repository(text) == (hub.Repository(*expected) if expected else None)


def test_a_repository_is_fetched_and_opened(experts: Experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(experts, tmp_path / "pack")
    calls: list[tuple[str, dict[str, Any]]] = []

    def download(repo: str, **options: Any) -> str:
        calls.append((repo, options))
        return str(tmp_path / "pack")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for name in ("hf://ann/birds@v2", Path("hf://ann/birds@v2"), "ann/birds@v2"):
        assert Experts.load(name)["bird"].top(3) == experts["bird"].top(3)
        repo, options = calls.pop()
        assert (repo, options["revision"]) == ("ann/birds", "v2")
        assert sorted(options["allow_patterns"]) == ["*.json", "*.md", "*.parquet"]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tmp_path / "pack", tmp_path / "ann" / "birds")
    assert Experts.load("ann/birds").folder == Path("ann/birds")
    assert not calls


@pytest.mark.parametrize("error", [
    LocalEntryNotFoundError("no connection"),
    OSError("no connection"),
    huggingface_hub.errors.HFValidationError("no connection"),
    huggingface_hub.errors.HTTPError("no connection"),
])  # fmt: skip
def test_an_unreachable_hub_is_reported_with_the_missing_folder(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match=r"no folder ann/birds.*could not be reached.*no connection"):
        Experts.load("ann/birds")


def test_a_repository_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UserError, match="expected an expert index"):
        Experts.load("ann/birds")


def test_publishing_uploads_only_the_files_of_a_pack(
    experts: Experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(
        huggingface_hub, "create_repo", lambda *given, **options: calls.append(("create", given, options)) or "address"
    )
    monkeypatch.setattr(
        huggingface_hub, "upload_folder", lambda *given, **options: calls.append(("upload", given, options))
    )
    pack(experts, tmp_path / "pack", PackRequest(repository="ann/birds"))
    assert hub.publish(tmp_path / "pack", FILES, "ann/birds", private=True) == "address"
    (_, given, options), (_, _, uploaded) = calls
    assert (given, options) == (("ann/birds",), {"private": True, "exist_ok": True})
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("ann/birds", tmp_path / "pack")
    assert uploaded["allow_patterns"] == list(FILES)
    with pytest.raises(UserError, match="is not a hub repository; expected user/name"):
        hub.publish(tmp_path / "pack", FILES, "birds", private=False)


def test_publishing_names_no_folder_of_this_machine(mined: Path, tmp_path: Path) -> None:
    experts = Experts.load(mined)
    with pytest.raises(UserError, match="which nobody else has; give the model's hub id with --base-model"):
        pack(experts, tmp_path / "pack", PackRequest(repository="ann/birds"))
    packed = pack(experts, tmp_path / "pack", PackRequest(repository="ann/birds", base_model="ann/model"))
    assert packed.local_model is None
    written = [(tmp_path / "pack" / name).read_text() for name in ("index.json", "README.md")]
    assert not any(experts.model.name in text for text in written)
    assert Experts.load(tmp_path / "pack").model.name == "ann/model"


def test_the_command_packs_and_commands_read_its_pack_like_a_run(mined: Path, tmp_path: Path) -> None:
    out = tmp_path / "pack"
    found = json.loads(succeed("pack", mined, "--out", out, "--top-k", 7, "--concept", "tool", "--json"))
    assert (found["concepts"], found["top_k"], found["published"]) == (1, 7, None)
    assert "tool" in succeed("experts", out, "tool", "-k", 7)
    assert "an expert of 1 of 1 concepts" in succeed("unit", out, Experts.load(out)["tool"][0].unit)
    assert "1 concepts × 3 experts" in succeed("pack", out, "--out", tmp_path / "smaller", "--top-k", 3)
    assert "expected user/name" in refused("pack", mined, "--out", tmp_path / "new", "--push", "birds")
    assert "--private needs a repository" in refused("pack", mined, "--out", tmp_path / "new", "--private")
    assert "no folder ann/nothing" in refused("nearest", "ann/nothing", "tool")

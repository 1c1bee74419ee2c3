"""Files that only clusters read are checked against what reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]


def ray_schema() -> dict[str, object]:
    """The schema that Ray's launcher validates a cluster file with; found without importing ray."""
    import importlib.util

    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema: dict[str, object] = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    return schema


def test_the_cluster_file_is_one_that_ray_accepts() -> None:
    cluster = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    jsonschema.validate(cluster, ray_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "no_such_key": 1}, ray_schema())


def test_the_cluster_scales_gpu_workers_from_zero_behind_a_token() -> None:
    cluster = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    nodes = cluster["available_node_types"]
    assert cluster["head_node_type"] in nodes
    assert (nodes["gpu_worker"]["min_workers"], nodes["gpu_worker"]["max_workers"]) == (0, cluster["max_workers"])
    starts = [c for c in cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_the_image_runs_as_a_user_and_installs_with_the_constraints() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert re.search(r"^USER expertmine$", dockerfile, re.M)
    assert "--constraint constraints.txt" in dockerfile
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.M)
    assert copied
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name

"""Files for clusters and containers, checked with their readers: Ray's launcher, a pretended AWS, a parser of
Dockerfiles and a shell."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from dockerfile_parse import DockerfileParser
from support.commands import succeed
from support.repository import ROOT, filled

CLUSTER = ROOT / "ray_cluster.yaml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def ray_schema() -> dict[str, object]:
    """The schema that Ray's launcher validates a cluster file with; found without importing ray."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema: dict[str, object] = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    return schema


def cluster_file() -> dict[str, Any]:
    cluster: dict[str, Any] = yaml.safe_load(CLUSTER.read_text())
    return cluster


def test_the_cluster_file_is_valid_for_ray() -> None:
    cluster = cluster_file()
    jsonschema.validate(cluster, ray_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "no_such_key": 1}, ray_schema())


def test_the_cluster_starts_behind_a_token_with_its_dashboard_on_loopback() -> None:
    cluster = cluster_file()
    head, worker = (
        [c for c in cluster[f"{kind}_start_ray_commands"] if "ray start" in c] for kind in ("head", "worker")
    )
    assert len(head) == len(worker) == 1
    assert all("RAY_AUTH_MODE=token" in command for command in head + worker)
    assert "--dashboard-host=127.0.0.1" in head[0]
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_cluster_installs_the_wheel_as_constrained() -> None:
    cluster = cluster_file()
    for source in cluster["file_mounts"].values():
        assert source.startswith("~") or source == "./dist" or (ROOT / source).exists(), source
    installs = [c for c in cluster["setup_commands"] + cluster["head_setup_commands"] if "pip install" in c]
    for command in installs:
        assert "--constraint /tmp/expertmine/constraints.txt" in command or "--no-deps" in command
    (wheel,) = (command for command in installs if "expertmine-*.whl" in command and "--no-deps" not in command)
    assert wheel.endswith('expertmine-*.whl)[mine,s3]"')


LAUNCH = """
import json, sys
import boto3, yaml
from moto import mock_aws

with mock_aws():
    ec2, iam = boto3.client("ec2", "eu-central-1"), boto3.client("iam")
    for name in ("head", "worker"):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    group = ec2.create_security_group(
        GroupName="own", Description="own", VpcId=ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    )["GroupId"]
    text = sys.stdin.read().replace("IMAGE", ec2.describe_images()["Images"][0]["ImageId"]).replace("GROUP", group)

    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    config = bootstrap_aws(AWSNodeProvider.fillout_available_node_types_resources(config))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for kind, node in config["available_node_types"].items():
        provider.create_node(dict(node["node_config"]), {"kind": kind}, 1)
    machines = {}
    for reservation in ec2.describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            (kind,) = (tag["Value"] for tag in instance["Tags"] if tag["Key"] == "kind")
            machines[kind] = [
                instance.get("InstanceLifecycle", "on demand"),
                instance["IamInstanceProfile"]["Arn"].rpartition("/")[2],
                instance["MetadataOptions"]["HttpTokens"],
                [each["GroupName"] for each in instance["SecurityGroups"]],
            ]

    class Silent:
        def __getattr__(self, name):
            return lambda *arguments, **options: None

    read = AutoscalingConfig(configs=config, skip_content_hash=True)

    def launched(**each):
        wanted = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(each) for _ in range(each.pop("times"))])
        request = SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=read.get_node_type_configs(),
            max_num_nodes=read.get_max_num_worker_nodes(),
            resource_requests=wanted,
        )
        reply = ResourceDemandScheduler(AutoscalerEventLogger(Silent())).schedule(request)
        return {each.instance_type: each.count for each in reply.to_launch}

    print(json.dumps({
        "machines": machines,
        "extracting": launched(GPU=1, CPU=1, times=8),
        "scoring": launched(CPU=1, times=32),
        "resources": {kind: node["resources"] for kind, node in config["available_node_types"].items()},
    }))
"""


@pytest.mark.slow
def test_ray_makes_the_cluster_on_a_pretended_aws(tmp_path: Path) -> None:
    values = {
        "region": "eu-central-1",
        "image": "IMAGE",
        "of the head": "head",
        "of the workers": "worker",
        "a group": "GROUP",
    }
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))},
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "RAY_AUTH_MODE": "token",
    }
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH],
        input=filled(CLUSTER.read_text(), values),
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["machines"] == {
        "head": ["on demand", "head", "required", ["own"]],
        "gpu_worker": ["spot", "worker", "required", ["own"]],
        "cpu_worker": ["spot", "worker", "required", ["own"]],
    }
    assert found["resources"]["head"] == {"CPU": 0, "GPU": 0}
    # What eight extracting actors and 32 scoring ones would start, from nothing; the head is there before.
    assert found["extracting"]["gpu_worker"] == 8
    assert "cpu_worker" not in found["extracting"]
    assert found["scoring"]["cpu_worker"] == 4
    assert "gpu_worker" not in found["scoring"]


def test_the_job_file_is_valid_for_expertmine(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(filled((ROOT / "deploy" / "job.yaml").read_text(), {"bucket": "mine", "Hugging Face": "gpt2"}))
    settings = json.loads(succeed("config", "--config", job, "--json"))
    assert settings  # the file was read; an unknown key would have been refused
    nodes = cluster_file()["available_node_types"]
    document = yaml.safe_load(job.read_text())
    assert document["extract"]["workers"] == nodes["gpu_worker"]["max_workers"]
    assert document["score"]["workers"] == 8 * nodes["cpu_worker"]["max_workers"]  # CPUs of an m6i.2xlarge
    assert cluster_file()["max_workers"] == sum(nodes[kind]["max_workers"] for kind in ("gpu_worker", "cpu_worker"))


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile and its arguments, with continued lines joined."""
    with DOCKERFILE.open("rb") as file:
        return [
            (each["instruction"], each["value"])
            for each in DockerfileParser(fileobj=file).structure
            if each["instruction"] != "COMMENT"
        ]


def last_stage() -> list[tuple[str, str]]:
    all_of_it = instructions()
    return all_of_it[max(at for at, (name, _) in enumerate(all_of_it) if name == "FROM") :]


def test_the_image_has_a_pinned_base_and_builds_from_existing_files() -> None:
    arguments = dict(value.split("=", 1) for name, value in instructions() if name == "ARG")
    bases = {
        re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], v.split()[0])
        for n, v in instructions()
        if n == "FROM"
    }
    assert bases
    for base in bases:
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?", base), base
    assert "ADD" not in {name for name, _ in instructions()}
    ignored = (ROOT / ".dockerignore").read_text().split()
    copies = [value for name, value in instructions() if name == "COPY" and not value.startswith("--from")]
    sources = [source for value in copies for source in value.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source not in ignored, source


def test_the_image_runs_as_a_numeric_user_and_has_no_secrets() -> None:
    users = [value for name, value in last_stage() if name == "USER"]
    assert users
    user, _, group = users[-1].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    after = last_stage()[last_stage().index(("USER", users[-1])) :]
    assert "RUN" not in {name for name, _ in after}
    for name, value in instructions():
        if name in ("ARG", "ENV"):
            for each in re.findall(r"(\w+)=", value):
                assert not re.search("TOKEN|SECRET|PASSWORD|CREDENTIAL|ACCESS_KEY", each), each
    assert "RAY_AUTH_MODE=token" in " ".join(value for name, value in last_stage() if name == "ENV")


def pip_arguments(step: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The pip arguments of a RUN step of the Dockerfile, found by running it in a shell where pip prints them."""
    (found,) = (value for name, value in instructions() if name == "RUN" and step in value)
    (folder / "pip").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / "pip").chmod(0o755)
    script = found.replace("/opt/expertmine/bin/pip", str(folder / "pip"))
    script = script.replace("/source/constraints.txt", str(ROOT / "constraints.txt")).replace("/dist", str(folder))
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize("device, index", [("cpu", "download.pytorch.org/whl/cpu"), ("cuda", "pypi.org/simple")])
def test_the_image_has_torch_for_its_device(device: str, index: str, tmp_path: Path) -> None:
    (pinned,) = re.findall(r"^torch==.+$", (ROOT / "constraints.txt").read_text(), re.M)
    done = pip_arguments("DEVICE", tmp_path, DEVICE=device)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["install", "--no-deps", "--index-url", f"https://{index}", pinned]


def test_no_other_device_is_built_for(tmp_path: Path) -> None:
    done = pip_arguments("DEVICE", tmp_path, DEVICE="gpu")
    assert done.returncode == 2
    assert done.stderr.strip() == "DEVICE is gpu: expected cpu or cuda"
    assert done.stdout == ""


def test_the_image_installs_the_wheel_as_constrained(tmp_path: Path) -> None:
    (tmp_path / "expertmine-0.2.0-py3-none-any.whl").touch()
    done = pip_arguments("pip install --constraint", tmp_path)
    command, option, constraints, wheel, check = done.stdout.split()
    assert (command, option, check) == ("install", "--constraint", "check")
    assert Path(constraints) == ROOT / "constraints.txt"
    name, _, extras = wheel.removesuffix("]").partition("[")
    assert name == str(tmp_path / "expertmine-0.2.0-py3-none-any.whl")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras == "all"
    assert extras in project["optional-dependencies"]

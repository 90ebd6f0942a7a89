"""What compose.yaml and kubernetes.yaml say of relay is so: settings, paths, ports, times."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import relay
from relay.settings.loading import examine
from relay.settings.settings import Settings
from tests.unit.packaging.test_names import installs_ours

PROJECT = Path(__file__).parents[3]
FOLDER = PROJECT / "scripts" / "packaging"
CONTAINERFILE = (FOLDER / "Containerfile").read_text("utf-8")
COMPOSE = (FOLDER / "compose.yaml").read_text("utf-8")
KUBERNETES = (FOLDER / "kubernetes.yaml").read_text("utf-8")
PATHS = {"/health", "/ready"}
SECRET = "postgresql://relay:secret@db/app"
DEFAULTS = Settings()
FILES_BESIDES_CONNECTIONS = 200  # docs/operations.md, "Open files"


def services() -> dict[str, Any]:
    """What Compose makes of its file with a password, and without other variables."""
    text = re.sub(r"\$\{POSTGRES_PASSWORD:\?[^}]*\}", "secret", COMPOSE)
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    assert "${" not in text
    found: dict[str, Any] = yaml.safe_load(text)["services"]
    return found


def resources(kind: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(KUBERNETES) if each["kind"] == kind]


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each pod with its only container."""
    for kind in ("Job", "Deployment"):
        for resource in resources(kind):
            pod = resource["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            yield pod, container


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", SECRET) for each in container["env"]}


ENVIRONMENTS = {
    "image": dict(re.findall(r"(RELAY_\w+)=(\S+)", CONTAINERFILE)),
    "compose": services()["relay"]["environment"],
    "compose, migrate": services()["migrate"]["environment"],
    **{f"kubernetes, {each['name']}": environment(each) for _, each in containers()},
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_relay_understands_the_variables(name: str) -> None:
    given = ENVIRONMENTS[name]
    assert given
    configuration, problems = examine(environment=given)
    assert problems == []
    assert set(configuration.sources.values()) == set(given)


def test_a_variable_that_is_no_setting_would_be_noticed() -> None:
    assert examine(environment={"RELAY_CLUSTER_BINDD": "0.0.0.0:3100"})[1] != []


def test_kubernetes_asks_paths_and_ports_that_there_are() -> None:
    (_, container) = next(pair for pair in containers() if pair[1]["name"] == "relay")
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness")}
    assert {probe["path"] for probe in probes.values()} == {"/health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    given = environment(container)
    assert given["RELAY_BIND"].endswith(f":{ports['http']}")
    assert given["RELAY_CLUSTER_BIND"].endswith(f":{ports['cluster']}")
    for service in resources("Service"):
        assert {each["targetPort"] for each in service["spec"]["ports"]} <= set(ports)
        assert all(each["port"] == ports[each["name"]] for each in service["spec"]["ports"])
    exposed = re.search(r"^EXPOSE (.*)$", CONTAINERFILE, re.MULTILINE)
    assert exposed
    assert set(exposed[1].split()) == {str(port) for port in ports.values()}
    assert COMPOSE.count(f'"127.0.0.1:{ports["http"]}:{ports["http"]}"') == 1
    routes = (PROJECT / "relay" / "web" / "app.py").read_text("utf-8")
    assert all(f'Route("{path}"' in routes for path in PATHS)


def test_relay_has_time_to_drain() -> None:
    drain = DEFAULTS.drain_timeout + DEFAULTS.offline_grace + 5
    (deployment,) = resources("Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    name, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert name == "sleep"
    assert pod["terminationGracePeriodSeconds"] >= drain + int(seconds)
    compose = services()["relay"]
    assert compose["environment"]["RELAY_DRAIN_TIMEOUT"] == f"{DEFAULTS.drain_timeout:g}"
    assert int(compose["stop_grace_period"].removesuffix("s")) >= drain


def test_relay_gets_no_more_rights_than_it_needs() -> None:
    user = re.search(r"^USER (\d+):(\d+)$", CONTAINERFILE, re.MULTILINE)
    assert user
    for pod, container in containers():
        security = pod["securityContext"]
        assert (security["runAsUser"], security["runAsGroup"]) == tuple(map(int, user.groups()))
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False
    for name in ("relay", "migrate"):
        service = services()[name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_relay_may_open_a_file_for_each_connection() -> None:
    connections = DEFAULTS.max_connections + DEFAULTS.max_unauthenticated
    nofile = services()["relay"]["ulimits"]["nofile"]
    assert nofile >= connections + FILES_BESIDES_CONNECTIONS


def test_what_selects_pods_selects_those_of_the_deployment() -> None:
    (deployment,) = resources("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (job,) = resources("Job")
    assert job["spec"]["template"]["metadata"]["labels"] != labels
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    (headless,) = [each for each in resources("Service") if "clusterIP" in each["spec"]]
    assert headless["spec"]["clusterIP"] == "None"
    assert all(each["spec"]["selector"] == labels for each in resources("Service"))
    (budget,) = resources("PodDisruptionBudget")
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert budget["spec"]["maxUnavailable"] < deployment["spec"]["replicas"]
    (policy,) = resources("NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    public, internal = policy["spec"]["ingress"]
    assert public == {"ports": [{"port": "http"}]}
    assert internal["from"] == [{"podSelector": {"matchLabels": labels}}]


def test_images_have_the_version_of_relay_and_never_a_bare_name() -> None:
    images = [container["image"] for _, container in containers()]
    assert set(images) == {f"registry.example.org/relay:{relay.__version__}"}
    for name in ("relay", "migrate"):
        service = services()[name]
        assert service["image"] == f"localhost/relay:{relay.__version__}"
        assert service["pull_policy"] == "build"
    assert not re.search(r"image: relay\b", COMPOSE + KUBERNETES)
    assert installs_ours(COMPOSE + KUBERNETES) == []


def test_compose_checks_health_as_the_image_does() -> None:
    check = services()["relay"]["healthcheck"]["test"]
    built = re.search(r"^ +CMD (\[.*\])$", CONTAINERFILE, re.MULTILINE)
    assert built
    assert check == ["CMD", *yaml.safe_load(built[1]), "/ready"]
    build = services()["relay"]["build"]
    assert (FOLDER / build["context"] / build["dockerfile"]).samefile(FOLDER / "Containerfile")
    (tables,) = [each for each in services()["postgres"]["volumes"] if each.startswith(".")]
    assert (FOLDER / tables.split(":")[0]).is_file()

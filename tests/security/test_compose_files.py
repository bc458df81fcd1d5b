"""What must hold of every container, read from the compose files and the Dockerfile themselves."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from ops.engines.definitions import SERVICES
from ops.home import ROOT
from ops.stack.compose_files import COMPOSE_FILE, DEVELOPMENT_FILE
from ops.stack.environments import KNOWN_BY

ONE_SHOT = {"migrate", "operations"}
OBSERVABILITY_FILE = ROOT / "deploy" / "compose.observability.yaml"
ENGINES = {"postgres", "rabbitmq", "redis"}
ADDRESSES = {"DATABASE_URL", "AMQP_URL", "REDIS_URL"}
SECRET = re.compile(r"PASSWORD|SECRET|_KEY|_KEYS|TOKEN$|DSN|DEFINITIONS")
# Empty means that there is none: nothing to leak, nothing to guess.
MAY_BE_EMPTY = {"STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "SENTRY_DSN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"}


class Loader(yaml.SafeLoader):
    """Reads Compose's `!override` and `!reset` as the value they stand before."""


def _plain(loader: Any, node: Any) -> Any:
    return loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else None


Loader.add_constructor("!override", _plain)
Loader.add_constructor("!reset", _plain)

BASE: dict[str, Any] = yaml.load(COMPOSE_FILE.read_text(), Loader)  # noqa: S506 - derived from the safe one
DEVELOPMENT: dict[str, Any] = yaml.load(DEVELOPMENT_FILE.read_text(), Loader)  # noqa: S506
CONTAINERS: dict[str, dict[str, Any]] = {
    **BASE["services"],
    **{name: found for name, found in DEVELOPMENT["services"].items() if "image" in found},
}
LASTING = sorted(set(CONTAINERS) - ONE_SHOT)


def published(services: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, service in services.items():
        yield from ((name, port) for port in service.get("ports", ()))


@pytest.mark.parametrize("name", sorted(CONTAINERS))
def test_a_container_has_no_rights_that_it_does_not_need(name: str) -> None:
    container = CONTAINERS[name]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert "cap_add" not in container
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "pid", "ipc", "devices"} & set(container)
    assert not [volume for volume in container.get("volumes", ()) if volume.startswith(("/", ".", "~"))]


@pytest.mark.parametrize("name", LASTING)
def test_what_is_to_last_is_checked_and_comes_back(name: str) -> None:
    assert CONTAINERS[name]["restart"] == "unless-stopped"
    assert CONTAINERS[name]["healthcheck"]["test"]


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_an_engine_does_not_run_as_root(name: str) -> None:
    assert CONTAINERS[name]["user"] not in ("", "root", "0")


def test_no_image_of_ours_runs_as_root() -> None:
    stages = re.split(r"^FROM .* AS ", (ROOT / "deploy" / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    built = {container["build"]["target"] for container in CONTAINERS.values() if "build" in container}
    users = {stage.split()[0]: re.findall(r"^USER (\S+)", stage, re.MULTILINE) for stage in stages}
    assert built == {"service", "operations", "devkit"}
    assert all(users[target] == ["10001:10001"] for target in built)


def test_only_the_gateway_and_stripes_webhooks_are_published() -> None:
    assert dict(published(BASE["services"])) == {
        "gateway": "${GATEWAY_PORT:-8000}:8000",
        "billing": "127.0.0.1:${BILLING_PORT:-8001}:8000",
    }


def test_what_development_publishes_is_for_this_machine_alone() -> None:
    ports = dict(published(DEVELOPMENT["services"]))
    assert {"gateway", *ENGINES} < set(ports)
    assert not [port for port in ports.values() if not port.startswith("127.0.0.1:")]


def test_engines_have_a_network_of_their_own_without_a_way_out() -> None:
    assert BASE["networks"]["engines"] == {"internal": True}
    assert all(BASE["services"][name]["networks"] == ["engines"] for name in ENGINES)
    assert BASE["services"]["migrate"]["network_mode"] == "none"


def test_the_stand_ins_are_for_development_alone() -> None:
    assert set(BASE["services"]) == {*SERVICES, *ENGINES, *ONE_SHOT}


@pytest.mark.parametrize("name", sorted(CONTAINERS))
def test_every_secret_comes_from_outside_and_nothing_starts_without_it(name: str) -> None:
    given: dict[str, str] = CONTAINERS[name].get("environment", {})
    for setting, value in given.items():
        if setting in MAY_BE_EMPTY:
            assert value == f"${{{setting}:-}}"
        elif SECRET.search(setting):
            assert re.fullmatch(r"\$\{[A-Z_]+:\?\}", value), f"{name}: {setting}"
        if found := re.search(r"://\w+:(.*)@", value):
            assert re.fullmatch(r"\$\{[A-Z_]+_PASSWORD:\?\}", found[1]), f"{name}: {setting}"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_waits_for_schema_and_engines(name: str) -> None:
    assert CONTAINERS[name]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"},
        "rabbitmq": {"condition": "service_healthy"},
        "redis": {"condition": "service_healthy"},
    }
    assert CONTAINERS["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_given_what_it_knows_and_nothing_of_another(name: str) -> None:
    given = CONTAINERS[name]["environment"]
    others = {"gateway": {"BILLING_URL", "METERING_URL", "AGENTS_URL"}, "agents": {"METERING_URL"}}.get(name, set())
    assert set(given) == {*KNOWN_BY[name], *ADDRESSES, *others}
    passwords = set(re.findall(r"\$\{([A-Z]+)_(?:DB|AMQP)_PASSWORD", " ".join(given.values())))
    assert passwords == {name.upper()}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_an_image_has_the_dependencies_of_its_service(name: str) -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    wanted = {"SERVICE": name} | ({"GROUP": name} if name in groups else {})
    assert CONTAINERS[name]["build"]["args"] == wanted


def test_only_what_is_named_reaches_an_image() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"
    assert not [line for line in lines if re.match(r"!(\.|tests|bench|\*)", line)]


OBSERVERS: dict[str, Any] = yaml.load(OBSERVABILITY_FILE.read_text(), Loader)  # noqa: S506


@pytest.mark.parametrize("name", sorted(OBSERVERS["services"]))
def test_an_observer_has_no_rights_and_is_only_there_when_asked_for(name: str) -> None:
    container = OBSERVERS["services"][name]
    assert container["profiles"] == ["observability"]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["user"] not in ("", "root", "0")
    assert not [port for port in container.get("ports", ()) if not port.startswith("127.0.0.1:")]
    assert ":latest" not in container["image"]


def test_the_observers_files_are_there() -> None:
    for config in OBSERVERS["configs"].values():
        assert (OBSERVABILITY_FILE.parent / config["file"]).exists()


def test_the_dashboard_asks_only_for_metrics_that_there_are() -> None:
    known = (ROOT / "libs" / "common" / "telemetry.py").read_text()
    names = set(
        re.findall(
            r"\b(venture_\w+|http_server_\w+|messages_handled_\w+)", (ROOT / "deploy/grafana/venture.json").read_text()
        )
    )
    bare = {re.sub(r"_(total|count|bucket)$", "", name) for name in names}
    assert bare
    assert not [name for name in bare if f'"{name}"' not in known]

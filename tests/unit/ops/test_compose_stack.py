import json
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ops.home import ROOT, Home
from ops.stack import dotenv
from ops.stack.compose_files import COMPOSE_FILE, DEVELOPMENT_FILE, compose_settings, render_replicas
from ops.stack.containers import Container
from ops.stack.environments import Addresses
from ops.stack.layout import usual_ports
from ops.stack.scale import parse_scale
from ops.stack.settings import complete, effective
from ops.stack.stack import known_settings

STORED = dotenv.parse(complete(""))


def addresses(scale: str = "", **environ: str) -> Addresses:
    ports = usual_ports(Home.of(), parse_scale(scale))
    return Addresses(ports=ports, values=effective(STORED, environ, known=known_settings()))


def a_container(**properties: object) -> Container:
    made: dict[str, object] = {
        "id": "1", "service": "agents", "state": "running", "exit_status": 0, "pid": 7, "error": "", "reason": "",
        "started_at": "2026-11-23T12:00:00.123456789Z", "health": "healthy", "ports": frozenset({8003}), **properties,
    }  # fmt: skip
    return Container(**made)  # pyright: ignore[reportArgumentType]


def test_every_name_that_the_compose_files_ask_for_has_a_value_of_this_stack() -> None:
    asked = set(re.findall(r"\$\{([A-Z_0-9]+)", COMPOSE_FILE.read_text() + DEVELOPMENT_FILE.read_text()))
    assert asked - {"IMAGE_PREFIX", "IMAGE_TAG"} <= set(compose_settings(addresses()))


def test_what_a_person_set_wins_over_what_a_stack_derives() -> None:
    made = compose_settings(addresses(FRONTEND_URL="https://app.example.com", ENVIRONMENT="staging"))
    assert made["FRONTEND_URL"] == "https://app.example.com"
    assert made["ENVIRONMENT"] == "staging"
    assert made["NEXT_PUBLIC_SUPABASE_URL"] == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("environ", "base"),
    [
        ({}, "http://stripe:8420"),
        ({"STRIPE_SECRET_KEY": "sk_live_x"}, ""),
        ({"STRIPE_API_BASE": ""}, ""),
        ({"STRIPE_API_BASE": "http://elsewhere:1"}, "http://elsewhere:1"),
    ],
)
def test_billing_reaches_the_emulator_by_its_name_and_stripe_when_that_is_meant(
    environ: dict[str, str], base: str
) -> None:
    assert compose_settings(addresses(**environ))["STRIPE_API_BASE"] == base


def test_the_broker_is_given_hashes_and_rights_but_no_password() -> None:
    text = compose_settings(addresses())["RABBITMQ_DEFINITIONS"]
    assert {user["name"] for user in json.loads(text)["users"]} == {
        "operator", "gateway", "billing", "metering", "agents",
    }  # fmt: skip
    assert not [name for name, value in STORED.items() if name.endswith("_AMQP_PASSWORD") and value in text]


def test_further_replicas_listen_on_the_ports_that_env_prints() -> None:
    where = addresses("gateway=2 agents=3")
    text = render_replicas(where, parse_scale("gateway=2 agents=3"))
    assert re.findall(r"^  (\S+):$", text, re.MULTILINE) == ["gateway-2", "agents-2", "agents-3"]
    assert where.gateways[1] == "http://127.0.0.1:8010"
    assert '"127.0.0.1:8010:8000"' in text


def test_without_further_replicas_the_file_adds_nothing() -> None:
    assert render_replicas(addresses(), parse_scale("")) == "services: {}\n"


def test_a_container_goes_by_the_name_it_has_in_a_native_stack() -> None:
    assert [a_container(service=service).name for service in ("agents", "agents-2")] == ["agents-1", "agents-2"]


def test_a_container_is_ready_once_its_health_check_says_so() -> None:
    assert a_container().finding is None
    assert a_container(health="starting", reason="not ready: database").finding == "not ready: database"
    assert "78" in (a_container(state="restarting", exit_status=78).finding or "")


def test_only_an_end_without_error_is_work_done() -> None:
    assert a_container(state="exited", health=None).has_done_its_work
    assert not a_container(state="exited", exit_status=1, health=None).has_done_its_work
    assert not a_container().has_done_its_work


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/well" else 503)
        self.end_headers()
        self.wfile.write(b'{"failed": ["database"]}')

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it has upstream
        del format, args


def check(port: int, path: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-IS", str(ROOT / "deploy" / "ready.py"), str(port), path)
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_health_check_passes_on_a_200_alone_and_tells_what_it_heard() -> None:
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert check(server.server_port, "/well").returncode == 0
        ill = check(server.server_port, "/ill")
        server.shutdown()
    assert (ill.returncode, ill.stdout) == (1, '{"failed": ["database"]}')


def test_the_health_check_fails_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert check(port, "/").returncode == 1

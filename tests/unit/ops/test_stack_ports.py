import os
import socket
from collections.abc import Collection
from pathlib import Path

import pytest

from ops.failure import Failure
from ops.home import Home
from ops.ports import PortPlan, holder, is_free, listening_on, plan_ports, port_setting
from ops.stack.layout import listener, usual_ports
from ops.stack.scale import parse_scale


def plan(
    usual: dict[str, int],
    *,
    taken: Collection[int] = (),
    fixed: dict[str, int] | None = None,
    current: dict[str, int] | None = None,
    running: Collection[str] = (),
) -> PortPlan:
    return plan_ports(
        usual, fixed=fixed or {}, current=current or {}, running=running, free=lambda port: port not in taken
    )


def test_free_ports_are_the_usual_ones() -> None:
    made = plan({"gateway": 8000, "billing": 8001})
    assert made.ports == {"gateway": 8000, "billing": 8001}
    assert made.moved == []


def test_a_taken_port_moves_past_those_of_the_others_and_says_so() -> None:
    made = plan({"gateway": 8000, "billing": 8001}, taken={8000})
    assert made.ports == {"gateway": 8002, "billing": 8001}
    assert made.moved == ["Port 8000 is taken, so gateway listens on 8002."]


def test_a_port_that_was_moved_stays_while_it_is_free() -> None:
    assert plan({"gateway": 8000}, current={"gateway": 8002}).ports == {"gateway": 8002}


def test_a_running_program_keeps_the_port_it_holds() -> None:
    made = plan({"gateway": 8000}, taken={8000}, current={"gateway": 8000}, running={"gateway"})
    assert made.ports == {"gateway": 8000}
    assert made.moved == []


def test_a_fixed_port_wins_over_the_one_a_running_program_holds() -> None:
    made = plan(
        {"gateway": 8000}, taken={8000}, fixed={"gateway": 9000}, current={"gateway": 8000}, running={"gateway"}
    )
    assert made.ports == {"gateway": 9000}


def test_a_fixed_port_that_is_taken_is_refused() -> None:
    with pytest.raises(Failure, match="Port 9000 was asked for gateway"):
        plan({"gateway": 8000}, taken={9000}, fixed={"gateway": 9000})


def test_two_programs_cannot_be_fixed_to_one_port() -> None:
    with pytest.raises(Failure, match="cannot both use port 9000"):
        plan({"gateway": 8000, "billing": 8001}, fixed={"gateway": 9000, "billing": 9000})


def test_the_holder_of_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        assert "pid" in (holder(port) or "")
    assert is_free(port)


def test_a_process_knows_the_ports_it_listens_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert server.getsockname()[1] in listening_on(os.getpid())


def test_no_two_replicas_share_a_usual_port() -> None:
    ports = usual_ports(Home.of(), parse_scale("gateway=20 billing=20 metering=20 agents=20"))
    assert len(set(ports.values())) == len(ports)


def test_another_home_has_a_block_of_ports_of_its_own(tmp_path: Path) -> None:
    one = set(usual_ports(Home(tmp_path), parse_scale("")).values())
    assert min(one) >= 20000
    assert max(one) < 32768


@pytest.mark.parametrize(
    ("port", "program"),
    [
        ("gateway", "gateway-1"),
        ("gateway-2", "gateway-2"),
        ("agents-metrics", "agents-1"),
        ("agents-3-metrics", "agents-3"),
        ("mailbox-smtp", "mailbox-1"),
        ("rabbitmq-dist", "rabbitmq-1"),
        ("rabbitmq-epmd", "epmd-1"),
        ("postgres", "postgres-1"),
    ],
)
def test_each_port_belongs_to_the_program_that_listens_on_it(port: str, program: str) -> None:
    assert listener(port) == program


def test_a_port_is_fixed_by_a_setting_of_its_name() -> None:
    assert port_setting("mailbox-smtp") == "MAILBOX_SMTP_PORT"
    assert port_setting("gateway-2") == "GATEWAY_2_PORT"

import pytest

from ops.failure import Failure
from ops.home import Home
from ops.stack import dotenv
from ops.stack.environments import Addresses, public_environment, service_environment
from ops.stack.layout import usual_ports
from ops.stack.scale import parse_scale, replicas
from ops.stack.settings import complete, effective
from ops.stack.stack import known_settings

STORED = dotenv.parse(complete(""))


def addresses(scale: str = "", **environ: str) -> Addresses:
    ports = usual_ports(Home.of(), parse_scale(scale))
    return Addresses(ports=ports, values=effective(STORED, environ, known=known_settings()))


def test_a_service_is_told_no_secret_of_another() -> None:
    where = addresses(OPENAI_API_KEY="sk-model")
    for service in ("gateway", "billing", "metering", "agents"):
        told = service_environment(service, 1, where)
        others = {name for name in STORED if name.endswith(("_DB_PASSWORD", "_AMQP_PASSWORD"))}
        foreign = [STORED[name] for name in others if not name.startswith(service.upper())]
        assert not [secret for secret in foreign if any(secret in value for value in told.values())]
        assert ("STRIPE_SECRET_KEY" in told) == (service == "billing")
        assert ("OPENAI_API_KEY" in told) == (service == "agents")
        assert ("AUTH_SIGNING_KEYS" in told) == (service == "gateway")


def test_each_replica_has_ports_of_its_own() -> None:
    where = addresses("gateway=2")
    one, two = (service_environment("gateway", number, where) for number in (1, 2))
    assert one["PORT"] != two["PORT"]
    assert one["METRICS_PORT"] != two["METRICS_PORT"]


def test_all_gateways_are_listed() -> None:
    listed = public_environment(addresses("gateway=3"))["GATEWAY_URLS"]
    assert listed == "http://127.0.0.1:8000,http://127.0.0.1:8010,http://127.0.0.1:8020"


def test_a_generated_key_is_for_the_emulator() -> None:
    assert service_environment("billing", 1, addresses())["STRIPE_API_BASE"] == "http://127.0.0.1:8420"


def test_a_real_key_is_for_stripe_itself() -> None:
    assert "STRIPE_API_BASE" not in service_environment("billing", 1, addresses(STRIPE_SECRET_KEY="sk_live_x"))


def test_an_empty_base_is_stripe_itself() -> None:
    assert "STRIPE_API_BASE" not in service_environment("billing", 1, addresses(STRIPE_API_BASE=""))


def test_an_empty_key_reaches_billing_as_none() -> None:
    assert "STRIPE_SECRET_KEY" not in service_environment("billing", 1, addresses(STRIPE_SECRET_KEY=""))


def test_scale_names_what_runs_more_than_once() -> None:
    assert parse_scale("gateway=2 agents=3") == {"gateway": 2, "billing": 1, "metering": 1, "agents": 3}
    assert parse_scale("gateway=2,agents=3")["agents"] == 3
    assert list(replicas({"agents": 2})) == [("agents", 1), ("agents", 2)]


@pytest.mark.parametrize("text", ["gateway", "gatway=2", "gateway=0", "gateway=-1", "gateway=21", "gateway=2=3"])
def test_a_scale_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(Failure, match="SCALE"):
        parse_scale(text)

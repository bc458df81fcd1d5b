import json
import re

import jwt
import pytest

from ops.failure import Failure
from ops.home import ROOT
from ops.stack import dotenv
from ops.stack.settings import complete, effective
from ops.stack.stack import known_settings


@pytest.fixture(scope="module")
def fresh() -> str:
    return complete("")


def values(text: str, environ: dict[str, str] | None = None) -> dict[str, str]:
    return effective(dotenv.parse(text), environ or {}, known=known_settings())


def test_what_a_person_wrote_stays_as_it_is_and_the_rest_is_added() -> None:
    mine = "# mine\nADMIN_EMAIL=me@here.example\n"
    text = complete(mine)
    assert text.startswith(mine)
    assert dotenv.parse(text)["ADMIN_EMAIL"] == "me@here.example"


def test_nothing_is_generated_twice(fresh: str) -> None:
    assert complete(fresh) == fresh


def test_each_checkout_gets_secrets_of_its_own(fresh: str) -> None:
    other = dotenv.parse(complete(""))
    secret = [name for name in other if re.search("PASSWORD|SECRET|KEY", name)]
    assert len({other[name] for name in secret}) == len(secret)
    assert not {other[name] for name in secret} & set(dotenv.parse(fresh).values())


def test_every_secret_is_long_enough_for_the_services(fresh: str) -> None:
    stored = dotenv.parse(fresh)
    assert all(len(stored[name]) >= 32 for name in ("SERVICE_TOKEN_SECRET", "SUPABASE_JWT_SECRET"))


def test_api_keys_say_their_role_and_are_signed_by_the_secret(fresh: str) -> None:
    stored = dotenv.parse(fresh)
    for name, role in {"NEXT_PUBLIC_SUPABASE_ANON_KEY": "anon", "SUPABASE_SERVICE_ROLE_KEY": "service_role"}.items():
        claims = jwt.decode(stored[name], stored["SUPABASE_JWT_SECRET"], algorithms=["HS256"])
        assert (claims["iss"], claims["role"]) == ("supabase", role)
        assert claims["exp"] - claims["iat"] > 9 * 365 * 24 * 3600


def test_signing_keys_are_private_es256_keys_with_an_id(fresh: str) -> None:
    (key,) = json.loads(dotenv.parse(fresh)["AUTH_SIGNING_KEYS"])
    assert (key["kty"], key["crv"], key["alg"]) == ("EC", "P-256", "ES256")
    assert key["kid"]
    assert key["d"]


def test_the_environment_wins_over_the_file(fresh: str) -> None:
    text = fresh + "RATE_LIMIT_MAX_REQUESTS=100\n"
    assert values(text)["RATE_LIMIT_MAX_REQUESTS"] == "100"
    assert values(text, {"RATE_LIMIT_MAX_REQUESTS": "5"})["RATE_LIMIT_MAX_REQUESTS"] == "5"


def test_an_empty_value_in_the_environment_empties_the_setting(fresh: str) -> None:
    assert values(fresh)["STRIPE_SECRET_KEY"]
    assert values(fresh, {"STRIPE_SECRET_KEY": ""})["STRIPE_SECRET_KEY"] == ""


def test_an_empty_stripe_key_in_the_file_is_kept_but_an_empty_secret_is_filled() -> None:
    stored = dotenv.parse(complete("STRIPE_SECRET_KEY=\nSUPABASE_JWT_SECRET=\n"))
    assert stored["STRIPE_SECRET_KEY"] == ""
    assert stored["SUPABASE_JWT_SECRET"]


def test_names_nobody_knows_are_not_taken_from_the_environment(fresh: str) -> None:
    assert "DATABASE_URL" not in values(fresh, {"DATABASE_URL": "postgresql://elsewhere/"})


def test_another_jwt_secret_signs_the_api_keys_anew(fresh: str) -> None:
    secret = "another-secret-of-at-least-32-characters"
    made = values(fresh, {"SUPABASE_JWT_SECRET": secret})
    assert jwt.decode(made["NEXT_PUBLIC_SUPABASE_ANON_KEY"], secret, algorithms=["HS256"])["role"] == "anon"


def test_a_password_that_would_break_a_url_is_refused(fresh: str) -> None:
    with pytest.raises(Failure, match="REDIS_PASSWORD"):
        values(fresh, {"REDIS_PASSWORD": "with@sign:and/slash"})


def test_values_survive_being_written_and_read() -> None:
    awkward = {"A": "it's", "B": "a b", "C": "#no comment", "D": '[{"k": "v"}]', "E": "", "F": "$HOME `x` \\n"}
    assert dotenv.parse(dotenv.append("", awkward, comment="x")) == awkward


def test_a_line_that_is_no_setting_is_named() -> None:
    with pytest.raises(Failure, match=r"line 2"):
        dotenv.parse("A=1\nthis is not one\n")


def test_the_example_explains_every_setting_and_sets_none() -> None:
    text = (ROOT / ".env.example").read_text()
    assert dotenv.parse(text) == {}
    named = set(re.findall(r"^#([A-Z0-9_]+)=", text, re.MULTILINE))
    replicas = {name for name in known_settings() if re.search(r"_\d+_", name)}
    metrics_of_replicas = {name for name in replicas if name.endswith("_PORT")}
    assert known_settings() - metrics_of_replicas <= named
    assert set(dotenv.parse(complete(""))) <= named

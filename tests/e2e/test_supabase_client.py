"""The unmodified `@supabase/supabase-js`, in Node, against the stack: tests/e2e/supabase holds the suite itself."""

from collections.abc import Mapping

from tests.e2e.javascript import install, npm


def test_the_client_that_frontends_use_does_everything_the_contract_names(environment: Mapping[str, str]) -> None:
    install()
    ran = npm("test", environment=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr

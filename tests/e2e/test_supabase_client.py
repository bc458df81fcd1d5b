"""The unmodified `@supabase/supabase-js`, in Node, against the stack: tests/clients/supabase holds the suite itself."""

from collections.abc import Mapping

from tests.harness.javascript import run_client


def test_the_client_that_frontends_use_does_everything_the_contract_names(environment: Mapping[str, str]) -> None:
    arguments = ("--test", "--test-reporter=tap", "--test-concurrency=4", "suite/*.test.mjs")
    printed = run_client("supabase", *arguments, environment=environment)
    assert "# fail 0" in printed
    assert "# pass 0" not in printed

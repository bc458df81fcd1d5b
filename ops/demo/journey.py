"""The steps of the journey. Each says what it does, does it, checks it, and says what it saw."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from libs.common.ids import new_id
from ops.demo.client import Client, DemoFailure, until

TASK: Final = "Plan the launch of a waiting list for a tool that turns meeting notes into investor updates"
PAID_TIER: Final = "pro"

Say = Callable[[str], None]


@dataclass(slots=True)
class Traveller:
    """One person on the way through, and what must add up at the end."""

    environment: Mapping[str, str]
    client: Client
    say: Say
    email: str = field(default_factory=lambda: f"founder-{new_id().hex[-12:]}@example.com")
    user_id: str = ""
    succeeded_runs: int = 0
    tokens: int = 0
    free_limit: int = 0


def sign_up(traveller: Traveller) -> None:
    body = {"email": traveller.email, "password": f"demo-{new_id().hex}", "data": {"name": "Ada"}}
    session = traveller.client.expect(traveller.client.call("POST", "/auth/v1/signup", body=body), 200)
    if "access_token" not in session:
        raise DemoFailure("sign-up asks for a confirmed address: the demo needs AUTH_AUTOCONFIRM=true")
    traveller.client.sign_in(session["access_token"])
    traveller.user_id = session["user"]["id"]
    profile = traveller.client.expect(traveller.client.call("GET", "/v1/profile"), 200)
    traveller.say(f"signed up as {traveller.email}, on the {profile['subscription_tier']} plan")


def stream_a_run(traveller: Traveller) -> None:
    accepted = traveller.client.expect(traveller.client.create("/v1/runs", {"task": TASK}), 202)
    started, first_token_ms, text = time.monotonic(), 0.0, ""
    for _, event, data in traveller.client.events(accepted["links"]["events"]):
        if event == "run.started":
            text = ""  # a further attempt begins anew
        if event == "run.delta":
            first_token_ms = first_token_ms or (time.monotonic() - started) * 1000
            text += data["text"]
    run = traveller.client.expect(traveller.client.call("GET", accepted["links"]["self"]), 200)
    if run["status"] != "succeeded" or run["output"] != text:
        raise DemoFailure(f"the stream's text is not the run's output (status {run['status']})")
    _count(traveller, run)
    for line in text.strip().splitlines()[:6]:
        traveller.say(f"  | {line}")
    traveller.say(
        f"  | … {len(text)} characters by {run['model_used']}, "
        f"first after {first_token_ms:.0f} ms, {run['usage']['output_tokens']} tokens out"
    )


def hit_the_free_limit(traveller: Traveller) -> None:
    usage = _settled_usage(traveller)
    traveller.free_limit = usage["metrics"]["runs"]["limit"]
    for _ in range(traveller.free_limit + 5):
        response = _run(traveller, {"task": "Name one risk of the plan", "max_output_tokens": 60})
        if response is not None:
            refusal = response.json()
            break
    else:
        raise DemoFailure(f"the free limit of {traveller.free_limit} runs was never enforced")
    if refusal["code"] != "metering.quota_exceeded" or refusal["metric"] != "runs":
        raise DemoFailure(f"expected the run quota's refusal, got {refusal}")
    if traveller.succeeded_runs != traveller.free_limit:
        raise DemoFailure(f"{traveller.succeeded_runs} runs were let through, the limit is {traveller.free_limit}")
    traveller.say(f"run {traveller.free_limit + 1} was refused: {refusal['detail']}")
    traveller.say(f"  resets at {refusal['resets_at']}, or upgrade: {refusal['upgrade_url']}")


def upgrade(traveller: Traveller) -> None:
    checkout = traveller.client.expect(traveller.client.create("/v1/billing/checkout", {"tier": PAID_TIER}), 201)
    if not traveller.environment["STRIPE_API_BASE"]:
        raise DemoFailure("the demo pays at the local Stripe emulator, and this stack talks to the real Stripe")
    traveller.say(f"checkout page: {checkout['url']}")
    paid = until(lambda: _pay(checkout["url"]), what="paying at the emulator")
    started = time.monotonic()
    subscription = until(lambda: _subscription(traveller), what="the paid plan arriving by webhook")
    limit = until(lambda: _raised_limit(traveller), what="the higher limit arriving at metering")
    traveller.say(
        f"paid ({paid}); plan {subscription['tier']} is {subscription['status']}, "
        f"{limit} runs a month, {(time.monotonic() - started) * 1000:.0f} ms after the payment"
    )


def run_again(traveller: Traveller) -> None:
    refusal = _run(traveller, {"task": TASK})
    if refusal is not None:
        raise DemoFailure(f"the paid plan still refuses: {refusal.text[:300]}")
    traveller.say("a further run went through")


def look_at_usage(traveller: Traveller) -> None:
    usage = _settled_usage(traveller)
    runs, tokens = usage["metrics"]["runs"], usage["metrics"]["tokens"]
    expected = {"runs": traveller.succeeded_runs, "tokens": traveller.tokens}
    seen = {"runs": runs["used"], "tokens": tokens["used"]}
    if seen != expected:
        raise DemoFailure(f"usage does not add up: counted {seen}, the runs sum to {expected}")
    traveller.say(f"runs {runs['used']} of {runs['limit']}, tokens {tokens['used']} of {tokens['limit']}: it adds up")


def delete_the_account(traveller: Traveller) -> None:
    traveller.client.expect(traveller.client.call("DELETE", "/v1/account", body={"confirm": True}), 202)
    admin = Client(traveller.environment["GATEWAY_URL"], api_key=traveller.environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"])
    credentials = {"email": traveller.environment["ADMIN_EMAIL"], "password": traveller.environment["ADMIN_PASSWORD"]}
    session = admin.expect(admin.call("POST", "/auth/v1/token?grant_type=password", body=credentials), 200)
    admin.sign_in(session["access_token"])

    def erased() -> dict[str, Any] | None:
        answer = admin.expect(admin.call("GET", f"/v1/admin/erasures/{traveller.user_id}"), 200)
        return answer if answer["is_complete"] else None

    done = until(erased, what="every service erasing the account")
    admin.close()
    if traveller.client.call("GET", "/v1/profile").status_code not in {401, 404}:
        raise DemoFailure("the deleted account still answers")
    traveller.say(f"erased by {', '.join(sorted(done['erased']))}")


STEPS: Final[tuple[tuple[str, Callable[[Traveller], None]], ...]] = (
    ("Sign up", sign_up),
    ("Stream a run", stream_a_run),
    ("Use the free plan up", hit_the_free_limit),
    ("Upgrade through checkout and webhook", upgrade),
    ("Run again", run_again),
    ("Look at usage", look_at_usage),
    ("Delete the account", delete_the_account),
)


def travel(environment: Mapping[str, str]) -> int:
    """Walk all steps; return 0, or 1 as soon as one does not hold."""
    client = Client(environment["GATEWAY_URL"], api_key=environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"])
    traveller = Traveller(environment=environment, client=client, say=lambda line: print(f"   {line}", flush=True))
    began = time.monotonic()
    try:
        for number, (title, step) in enumerate(STEPS, start=1):
            print(f"\n{number}. {title}", flush=True)
            step(traveller)
    except (DemoFailure, httpx.HTTPError, KeyError) as error:
        print(f"\nThis step does not hold: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        client.close()
    print(f"\nEverything held ({time.monotonic() - began:.1f} s).")
    return 0


def _run(traveller: Traveller, body: Mapping[str, Any]) -> httpx.Response | None:
    """Run a task to its end and count it; return the refusal if it was not let in."""
    response = traveller.client.create("/v1/runs", body, wait_s=20)
    if response.status_code == 429:  # noqa: PLR2004
        return response
    run = response.json()
    if response.status_code == 202:  # noqa: PLR2004 - accepted, but our wait was cut short: follow the stream instead
        for _ in traveller.client.events(run["links"]["events"]):
            pass
        run = traveller.client.expect(traveller.client.call("GET", run["links"]["self"]), 200)
    if run.get("status") != "succeeded":
        raise DemoFailure(f"a run did not succeed: {run}")
    _count(traveller, run)
    return None


def _count(traveller: Traveller, run: Mapping[str, Any]) -> None:
    traveller.succeeded_runs += 1
    traveller.tokens += run["usage"]["input_tokens"] + run["usage"]["output_tokens"]


def _settled_usage(traveller: Traveller) -> dict[str, Any]:
    """Usage once nothing is held any more: settlement follows a run's end by milliseconds."""

    def settled() -> dict[str, Any] | None:
        usage = traveller.client.expect(traveller.client.call("GET", "/v1/usage"), 200)
        return usage if not any(metric["held"] for metric in usage["metrics"].values()) else None

    return until(settled, what="every run being settled", within_s=90)


def _pay(url: str) -> str | None:
    try:
        response = httpx.post(f"{url}/complete", timeout=10)
    except httpx.TransportError:
        return None
    return "test card" if response.status_code < 400 else None  # noqa: PLR2004


def _subscription(traveller: Traveller) -> dict[str, Any] | None:
    answer = traveller.client.expect(traveller.client.call("GET", "/v1/billing/subscription"), 200)
    return answer if answer["tier"] == PAID_TIER else None


def _raised_limit(traveller: Traveller) -> int | None:
    usage = traveller.client.expect(traveller.client.call("GET", "/v1/usage"), 200)
    limit = usage["metrics"]["runs"]["limit"]
    return limit if limit != traveller.free_limit else None

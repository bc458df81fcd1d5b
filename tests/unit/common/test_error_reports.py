"""What leaves the house in an error report: canaries planted everywhere, and none comes out."""

import json
import subprocess
import sys

from ops.home import ROOT

CANARIES = {
    "stripe key": "sk_live_canary0123456789abcdef",
    "webhook secret": "whsec_canary0123456789abcdef",
    "api key": "vc_canary0123456789abcdef",
    "token": "eyJjYW5hcnkiOiJjYW5hcnkifQ.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlLWNhbmFyeQ",
    "login": "postgresql://venture:canary-password@db.internal/venture",
    "address": "canary.person@example.com",
}
# In a process of its own: the SDK is set up once and for all.
SCRIPT = """
import json, logging, sys
import sentry_sdk
from sentry_sdk.transport import Transport
from libs.common.telemetry import configure_sentry, configure_tracing, span

canaries = json.loads(sys.argv[1])

class Kept(Transport):
    def capture_envelope(self, envelope):
        print(envelope.serialize().decode(errors="replace"))

configure_tracing(service="gateway", version="9.9.9", environment="staging", otlp_endpoint=None)
configure_sentry(dsn="https://key@sentry.example/1", service="gateway", version="9.9.9", environment="staging",
                 transport=Kept)
with span("request", service="gateway"):
    for name, value in canaries.items():
        sentry_sdk.add_breadcrumb(message=f"{name} is {value}", data={"password": "canary-word", "said": value})
    sentry_sdk.set_user({"id": "1", "email": canaries["address"], "ip_address": "203.0.113.9"})
    sentry_sdk.set_extra("headers", {"authorization": "Bearer canary-bearer", "cookie": "canary-cookie"})
    sentry_sdk.set_context("answer", {"seen": list(canaries.values())})
    local = canaries["stripe key"]
    try:
        raise RuntimeError("it broke over " + " ".join(canaries.values()))
    except RuntimeError:
        logging.getLogger("canary").exception("failed for %s", canaries["address"])
    assert local
sentry_sdk.flush()
"""


def test_no_secret_and_no_person_is_in_an_error_report() -> None:
    done = subprocess.run(
        (sys.executable, "-c", SCRIPT, json.dumps(CANARIES)), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "RuntimeError" in done.stdout
    assert '"release":"venture-companion@9.9.9"' in done.stdout
    assert '"environment":"staging"' in done.stdout
    assert '"service":"gateway"' in done.stdout
    assert '"trace_id":"' in done.stdout
    leaked = {name for name, value in CANARIES.items() if value in done.stdout}
    leaked |= {
        word for word in ("canary-password", "canary-word", "canary-bearer", "canary-cookie") if word in done.stdout
    }
    leaked |= {word for word in ("203.0.113.9", "canary.person") if word in done.stdout}
    assert not leaked, done.stdout

"""Where a house rule does not hold, and why. An exception that nothing needs any more is a finding itself."""

from collections.abc import Mapping
from typing import Final

_ONE_STATEMENT: Final = "one statement with its parameters, which reads best on one screen"
_ONE_OBJECT: Final = "one literal: a Stripe object's shape, a field a line as in Stripe's own reference"

EXCEPTIONS: Final[Mapping[tuple[str, str, str], str]] = {
    # (rule, path, subject): reason. The subject is a function's name, or empty for the whole file.
    ("broad-except", "libs/common/broker/lane.py", ""): "the runner: logs, retries, then parks with the reason",
    ("broad-except", "libs/common/health.py", ""): "an edge: a probe that cannot answer is the answer",
    ("broad-except", "libs/common/http.py", ""): "the edge of HTTP: logs, and answers 500",
    ("broad-except", "libs/common/together.py", ""): "the edge of shared work: each who asked is told",
    ("broad-except", "libs/common/outbox.py", ""): "the relay: the row keeps the reason and stays unsent",
    ("broad-except", "services/agents/runs/execution.py", ""): "the edge of a run: logs, and the run ends as failed",
    ("broad-except", "services/billing/jobs.py", ""): "the edge of a job: logs, and the work stays due with its reason",
    ("broad-except", "services/billing/reconcile.py", ""): "the edge of a job: logs, and the run waits with its reason",
    ("broad-except", "services/billing/usage_reporter.py", ""): "the edge of a job: as with billing's other jobs",
    ("function-size", "devkit/stripe/checkout.py", "_new_body"): _ONE_OBJECT,
    ("function-size", "devkit/stripe/invoicing.py", "new_invoice"): _ONE_OBJECT,
    ("function-size", "devkit/stripe/payments.py", "_new_charge"): _ONE_OBJECT,
    ("function-size", "devkit/stripe/subscriptions.py", "_new_body"): _ONE_OBJECT,
    ("function-size", "services/agents/runs/lease_queries.py", "lease_runs"): _ONE_STATEMENT,
    ("function-size", "services/billing/queries.py", "upsert_subscription"): _ONE_STATEMENT,
    ("function-size", "tests/contracts/devkit/test_shapes.py", "shown"): "a list of one object of each kind",
    ("no-sleep-in-tests", "tests/contracts/devkit/emulation.py", "eventually"): "what tests without a loop wait with",
    ("no-sleep-in-tests", "tests/harness/patience.py", "eventually"): "what every other test waits with",
}

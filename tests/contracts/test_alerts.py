"""Each alert fires on what it is for and clears when that is healed: shown by Prometheus' own rule tests."""

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from ops.engines.packages import ensure_program
from ops.home import ROOT
from tests.harness.runbook import RUNBOOK

RULES_FILE: Final = ROOT / "deploy" / "prometheus" / "alerts.yaml"
RULES: Final[list[dict[str, Any]]] = [
    rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]
]
COUNT: Final = "http_server_request_duration_seconds_count"
BUCKET: Final = "http_server_request_duration_seconds_bucket"
SICK, LONG_AFTER = "8m", "30m"

# For ten minutes something is wrong, then all is well. Series by alert; of one that goes by a check it follows.
TRAFFIC: Final = {
    "ServiceDown": {'up{job="venture", instance="gateway:9100"}': "0x10 1x30"},
    "ErrorRate": {
        f'{COUNT}{{service="billing", route="/internal/plans", status="500"}}': "0+10x10 100+0x30",
        f'{COUNT}{{service="billing", route="/internal/plans", status="200"}}': "0+100x40",
        f'{COUNT}{{service="billing", route="/health/ready", status="200"}}': "0+9000x40",
    },
    "AuthenticationFailures": {
        f'{COUNT}{{service="gateway", route="/auth/v1/token", status="400"}}': "0+20x10 200+0x30",
        f'{COUNT}{{service="gateway", route="/auth/v1/token", status="429"}}': "0+500x40",
        f'{COUNT}{{service="gateway", route="/auth/v1/token", status="200"}}': "0+100x40",
    },
    "ResponseTimes": {
        f'{BUCKET}{{service="gateway", route="/v1/usage", le="2"}}': "0+80x10 800+100x30",
        f'{BUCKET}{{service="gateway", route="/v1/usage", le="5"}}': "0+100x40",
        f'{BUCKET}{{service="gateway", route="/v1/usage", le="+Inf"}}': "0+100x40",
        f'{BUCKET}{{service="gateway", route="/v1/runs wait", le="+Inf"}}': "0+900x40",
    },
    "DiskFull": {'venture_disk_free_bytes{instance="gateway:9100"}': "1000000000x10 9000000000x30"},
}

LABELS: Final = {
    "ServiceDown": {"instance": "gateway:9100", "job": "venture"},
    "ErrorRate": {"service": "billing"},
    "ResponseTimes": {"service": "gateway"},
    "DiskFull": {"instance": "gateway:9100"},
}


def check_of(rule: dict[str, Any]) -> str | None:
    found = re.fullmatch(r'venture_check_ok\{check="(\w+)"\} == 0', rule["expr"])
    return found[1] if found else None


def series_of(rule: dict[str, Any]) -> dict[str, str]:
    check = check_of(rule)
    return (
        {f'venture_check_ok{{service="metering", check="{check}"}}': "0x10 1x30"} if check else TRAFFIC[rule["alert"]]
    )


def expected(rule: dict[str, Any]) -> list[dict[str, Any]]:
    """Firing while sick, with the section in its labels; quiet once healed."""
    firing: dict[str, str] = dict(rule["labels"])
    if check := check_of(rule):
        firing |= {"check": check, "service": "metering"}
    firing |= LABELS.get(rule["alert"], {})
    summary = rule["annotations"]["summary"]
    for name, value in firing.items():
        summary = summary.replace(f"{{{{ $labels.{name} }}}}", value)
    seen = {"exp_labels": firing, "exp_annotations": {"summary": summary}}
    return [
        {"eval_time": SICK, "alertname": rule["alert"], "exp_alerts": [seen]},
        {"eval_time": LONG_AFTER, "alertname": rule["alert"], "exp_alerts": []},
    ]


def test_every_alert_fires_and_clears(tmp_path: Path) -> None:
    promtool = ensure_program("promtool", package="prometheus")
    series = {name: values for rule in RULES for name, values in series_of(rule).items()}
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [one for rule in RULES for one in expected(rule)],
    }
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES_FILE)], "tests": [test]}))
    tested = subprocess.run((promtool, "test", "rules", path), capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_urgent_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert rule["labels"]["severity"] in {"page", "ticket", "info"}
    assert rule["labels"]["runbook"] in anchors
    assert rule["annotations"]["summary"]


def test_alert_and_doctor_name_the_same_check_and_section() -> None:
    """Every rule that goes by a check leads where the check itself does."""
    sources = "\n".join(
        path.read_text(encoding="utf-8") for folder in ("services", "libs") for path in (ROOT / folder).rglob("*.py")
    )
    declared = dict(re.findall(r'Check\(\s*name="(\w+)",\s*probe=[^"]*?runbook="([a-z-]+)"', sources, re.DOTALL))
    ours = {check: rule["labels"]["runbook"] for rule in RULES if (check := check_of(rule))}
    assert {check: declared.get(check) for check in ours} == ours

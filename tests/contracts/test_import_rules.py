"""Every import contract of pyproject.toml is broken by an import that breaks it: none has fallen asleep."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]

# Contract -> a module, and an import it must not have.
VIOLATIONS: Final = {
    "Services know nothing of one another": ("services/billing/jobs.py", "import services.metering.domain"),
    "The common library is mechanism: it knows no service and no tool": ("libs/common/ids.py", "import ops.home"),
    "Services need neither the operators' nor the developers' tools": (
        "services/agents/runs/jobs.py",
        "import devkit.clock",
    ),
    "The stand-ins for Stripe and e-mail know nothing of the product": (
        "devkit/clock.py",
        "import services.billing.domain",
    ),
    "Layers of a service": ("services/metering/consumers.py", "import services.metering.api"),
    "Layers of a noun inside a service": ("services/agents/prompts/queries.py", "import services.agents.prompts.api"),
    "Only main and wiring know the settings": ("services/gateway/gate.py", "import services.gateway.settings"),
    "Only main knows the composition root": ("services/gateway/feed.py", "import services.gateway.wiring"),
    "Operations and queries import nothing above them, in no noun, and no port": (
        "services/billing/operations.py",
        "import services.billing.ports",
    ),
    "Queries import no operation": ("services/agents/users/queries.py", "import services.agents.runs.operations"),
    "Operations and queries touch no network but the database's": ("services/metering/operations.py", "import httpx"),
    "Ports speak in the domain's terms": ("services/agents/ports.py", "import services.agents.prompts.queries"),
    "A domain imports no input, no output and nothing above it": (
        "services/metering/domain.py",
        "import libs.common.database",
    ),
    "Events, errors, inputs and plans are as pure as the domains that use them": (
        "libs/common/events/base.py",
        "import structlog",
    ),
    "One package knows RabbitMQ's driver": ("libs/common/outbox.py", "import aio_pika"),
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What import-linter says of a copy of the code with all the violations in it."""
    copy = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for folder in ("libs", "services", "ops", "devkit"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path, statement in VIOLATIONS.values():
        with (copy / path).open("a", encoding="utf-8") as module:
            module.write(f"\n{statement}\n")
    lint = (ROOT / ".venv/bin/lint-imports", "--no-cache")
    done = subprocess.run(lint, cwd=copy, env={"COLUMNS": "200"}, capture_output=True, text=True, check=False)
    return dict(re.findall(r"^(.+) (KEPT|BROKEN)", done.stdout, flags=re.MULTILINE))


@pytest.mark.parametrize("contract", VIOLATIONS)
def test_a_contract_is_broken_by_an_import_that_breaks_it(contract: str, verdicts: dict[str, str]) -> None:
    assert verdicts.get(contract) == "BROKEN", verdicts


def test_every_contract_is_tried() -> None:
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    assert {contract["name"] for contract in configured} == VIOLATIONS.keys()

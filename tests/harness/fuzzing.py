"""Schemathesis against a running gateway: requests made up from its OpenAPI document, as whoever the headers say."""

import asyncio
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

CHECKS: Final = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
# What never ends, and what would end the session or account that the requests are made with.
LEFT_OUT: Final = r"^(/v1/events|/v1/runs/\{run_id\}/events|/v1/account|/auth/v1/logout|/auth/v1/factors.*)$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fuzzed:
    is_clean: bool
    requests: int
    report: str


async def fuzz(
    url: str,
    headers: Mapping[str, str],
    *,
    examples: int,
    seed: int,
    left_out: str = LEFT_OUT,
    phases: str = "examples,coverage,fuzzing",
) -> Fuzzed:
    """So many made-up requests for each operation, besides those that its schema's corners ask for."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
        *(f"--max-examples={examples}", f"--seed={seed}", f"--phases={phases}", f"--checks={','.join(CHECKS)}"),
        *("--continue-on-failure", "--no-shrink", "--suppress-health-check=all", "--warnings=off"),
        *("--request-timeout=15", "--workers=1", "--generation-database=none", "--generation-allow-x00=true"),
        f"--exclude-path-regex={left_out}",
    ]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    report = output.decode()
    counted = re.search(r"Test cases:\s*([\d,]+) generated", report)
    requests = int(counted[1].replace(",", "")) if counted else 0
    return Fuzzed(is_clean=process.returncode == 0, requests=requests, report=report)

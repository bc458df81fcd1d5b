"""Refusals of one caller by one limit. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusals:
    subject: str
    """`user:<id>`, or `ip:<network>` for who is not signed in."""
    limit_name: str
    route_group: str
    requests: int

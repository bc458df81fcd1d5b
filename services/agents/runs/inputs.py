"""What callers send about runs, checked."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from libs.common.inputs import Input
from services.agents.runs.domain import RunFilter, RunStatus


class ListQuery(Input):
    """Filters of the run list. `q` is looked for in tasks and outputs, as it stands, in any case of letters."""

    status: RunStatus | None = None
    agent_type: Annotated[str, Field(max_length=40)] | None = None
    cursor: Annotated[str, Field(max_length=200)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    q: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    bookmarked: bool | None = None
    approval: Literal["pending", "approved", "rejected"] | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None

    def to_filter(self) -> RunFilter:
        return RunFilter(
            status=self.status.value if self.status else None,
            agent_type=self.agent_type,
            words=self.q,
            is_bookmarked=self.bookmarked,
            approval=self.approval,
            since=self.since,
            until=self.until,
        )


class FeedbackInput(Input):
    """`detail` of a rejection or revision is remembered for later prompts."""

    verdict: Literal["approved", "rejected", "revised"]
    detail: Annotated[str, Field(min_length=1, max_length=1_000)] | None = None


class BookmarkInput(Input):
    bookmarked: bool


class ApprovalInput(Input):
    decision: Literal["approved", "rejected"]


class ExportQuery(Input):
    format: Literal["json", "csv"] = "json"

"""The only module of agents that reads the environment."""

from pydantic import Field

from libs.common.settings import CommonSettings


class Settings(CommonSettings):
    """The times are bounds, not knobs: tests shorten them, operators rarely need to."""

    port: int = 8003
    agents_max_parallel_runs: int = Field(default=64, ge=1, le=1000)
    """Runs of this process at one time. They wait for the model most of their life."""
    agents_lease_s: float = Field(default=15, gt=0)
    agents_heartbeat_s: float = Field(default=5, gt=0)
    agents_idle_limit_s: float = Field(default=30, gt=0)
    """A model that sends nothing for so long has stopped."""
    agents_total_limit_s: float = Field(default=120, gt=0)
    agents_shutdown_grace_s: float = Field(default=2, ge=0)
    """What a run may still take when the process has been told to stop, before it is handed back."""

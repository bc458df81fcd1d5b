"""The only module of agents that reads the environment."""

from pydantic import Field, SecretStr

from libs.common.settings import CommonSettings


class Settings(CommonSettings):
    """The times are bounds, not knobs: tests shorten them, operators rarely need to."""

    port: int = 8003
    agents_max_parallel_runs: int = Field(default=64, ge=1, le=1000)
    """Runs of this process at one time. They wait for the model most of their life."""
    agents_lease_s: float = Field(default=15, gt=0)
    agents_heartbeat_s: float = Field(default=5, gt=0)
    agents_first_token_limit_s: float = Field(default=45, gt=0)
    """What a model may take before its first word; each call of a retry has it anew."""
    agents_idle_limit_s: float = Field(default=30, gt=0)
    """A model that sends nothing for so long has stopped."""
    agents_total_limit_s: float = Field(default=120, gt=0)
    agents_shutdown_grace_s: float = Field(default=2, ge=0)
    """What a run may still take when the process has been told to stop, before it is handed back."""
    agents_models: str = "openai:gpt-5-mini,anthropic:claude-haiku-4-5"
    """Tried in this order where a run names no model and its tier's plan lists none."""
    agents_provider_parallel_calls: int = Field(default=64, ge=1)
    """Calls in hand at one provider, per process."""
    agents_retry_budget_s: float = Field(default=20, ge=0)
    """What one answer may wait in all for a provider that is busy or ill."""
    agents_event_retention_days: int = Field(default=30, ge=1)
    metering_url: str | None = None
    """Where a run's hold can be extended; without it runs stay within the hold they began with."""
    openai_api_key: SecretStr | None = None
    openai_base_url: str | None = None
    anthropic_api_key: SecretStr | None = None
    anthropic_base_url: str | None = None

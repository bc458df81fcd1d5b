"""Models behind the OpenAI and Anthropic protocols, through pydantic-ai with clients of our own.

The clients never retry: patience is the router's. What each of them hides about a stream that broke off is found out
here: OpenAI's ends without usage, Anthropic's without a reason to stop, and neither raises.
"""

import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import httpx2
import orjson
from pydantic_ai.direct import model_request_stream
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelHTTPError,
    UnexpectedModelBehavior,
)
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from services.agents.ports import (
    ModelFailed,
    ModelOutput,
    ModelProvider,
    Round,
    TextDelta,
    ToolCall,
    ToolSpec,
    UsageReport,
)
from services.agents.prompts.domain import Prompt
from services.agents.runs.domain import RunError, Usage

MICRO: Final = 1_000_000
CONNECT_TIMEOUT_S: Final = 5.0
_OVERLOADED: Final = 529  # Anthropic's own status
_REQUEST_TIMEOUT: Final = 408
_CONFLICT: Final = 409
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
_UNAUTHORISED: Final = frozenset({401, 403})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach a provider. `base_url` None is the provider's own."""

    api_key: str
    base_url: str | None


@asynccontextmanager
async def open_models(
    *, openai: Access | None, anthropic: Access | None, silence_s: float
) -> AsyncGenerator[Mapping[str, Callable[[str], ModelProvider]], None]:
    """Openers of models by provider, for the providers given. `silence_s`: no read takes longer.

    The library of a provider is loaded where it has a key: each weighs some 40 MB.
    """
    timeout = httpx2.Timeout(silence_s, connect=CONNECT_TIMEOUT_S)
    # No bound on connections here: how many calls a provider gets at once is the router's bulkhead.
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=32)
    openers: dict[str, Callable[[str], ModelProvider]] = {}
    async with httpx2.AsyncClient(timeout=timeout, limits=limits) as http:
        if openai is not None:
            from openai import AsyncOpenAI  # noqa: PLC0415 - see above, as the next two
            from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415
            from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415

            client = AsyncOpenAI(
                api_key=openai.api_key, base_url=openai.base_url, max_retries=0, timeout=timeout, http_client=http
            )
            openai_provider = OpenAIProvider(openai_client=client)
            openers["openai"] = lambda name: PydanticAIModel(
                "openai", OpenAIChatModel(name, provider=openai_provider), silence_s=silence_s
            )
        if anthropic is not None:
            from anthropic import AsyncAnthropic  # noqa: PLC0415 - see above, as the next two
            from pydantic_ai.models.anthropic import AnthropicModel  # noqa: PLC0415
            from pydantic_ai.providers.anthropic import AnthropicProvider  # noqa: PLC0415

            claude = AsyncAnthropic(
                api_key=anthropic.api_key, base_url=anthropic.base_url, max_retries=0, timeout=timeout, http_client=http
            )
            anthropic_provider = AnthropicProvider(anthropic_client=claude)
            openers["anthropic"] = lambda name: PydanticAIModel(
                "anthropic", AnthropicModel(name, provider=anthropic_provider), silence_s=silence_s
            )
        yield openers


class PydanticAIModel:
    def __init__(self, provider: str, model: Model, *, silence_s: float) -> None:
        self._provider = provider
        self._model = model
        self._silence_s = silence_s

    @property
    def name(self) -> str:
        return f"{self._provider}:{self._model.model_name}"

    async def stream(
        self, prompt: Prompt, *, max_output_tokens: int, tools: Sequence[ToolSpec] = (), rounds: Sequence[Round] = ()
    ) -> AsyncGenerator[ModelOutput, None]:
        settings = ModelSettings(max_tokens=max_output_tokens, timeout=self._silence_s)
        parameters = ModelRequestParameters(function_tools=[_definition(tool) for tool in tools])
        try:
            async with model_request_stream(
                self._model,
                _messages(prompt, rounds),
                model_settings=settings,
                model_request_parameters=parameters,
                instrument=False,  # prompts and answers appear in no trace
            ) as response:
                async for event in response:
                    match event:
                        case PartStartEvent(part=TextPart(content=text)) if text:
                            yield TextDelta(text=text)
                        case PartDeltaEvent(delta=TextPartDelta(content_delta=text)) if text:
                            yield TextDelta(text=text)
                        case _:
                            pass  # ends of parts, thinking, and tool calls, which are taken whole below
                for output in _ending(response.get()):
                    yield output
        except (ModelAPIError, UnexpectedModelBehavior, httpx2.HTTPError) as error:
            raise _failure(error) from error


def _ending(response: ModelResponse) -> list[ModelOutput]:
    """What a stream that ran out came to. Raises ModelFailed where it ran out before its end."""
    usage = _usage(response)
    reason = response.finish_reason if (response.provider_details or {}).get("finish_reason") else None
    if reason is None or usage is None:
        raise _Incomplete(usage)
    if reason == "content_filter":
        raise ModelFailed(RunError(code="agents.model_refused", detail="The model declined to answer this."))
    return [*_calls(response), UsageReport(usage=usage)]


class _Incomplete(ModelFailed):
    """Carries what the provider had reported when its stream broke off."""

    def __init__(self, usage: Usage | None) -> None:
        detail = "The model's answer broke off before its end."
        super().__init__(
            RunError(code="agents.model_cut_off", detail=detail), is_retryable=True, is_illness=True, reported=usage
        )


def _usage(response: ModelResponse) -> Usage | None:
    """None where the provider measured nothing; a reported zero stays a zero."""
    if response.usage.unmeasured_requests:
        return None
    return Usage(
        input_tokens=response.usage.input_tokens,
        output_tokens=response.usage.output_tokens,
        cost_micro_usd=_cost(response),
    )


def _cost(response: ModelResponse) -> int:
    """Rounded up to a whole millionth of a dollar; a model without a public price costs nothing we know of."""
    try:
        return math.ceil(response.cost().total_price * MICRO)
    except (LookupError, ValueError):
        return 0


def _calls(response: ModelResponse) -> list[ModelOutput]:
    return [
        ToolCall(id=part.tool_call_id, name=part.tool_name, arguments=_arguments(part))
        for part in response.parts
        if isinstance(part, ToolCallPart)
    ]


def _arguments(part: ToolCallPart) -> Mapping[str, Any]:
    if isinstance(part.args, Mapping):
        return part.args
    try:
        found: Any = orjson.loads(part.args or "{}")
    except orjson.JSONDecodeError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _definition(tool: ToolSpec) -> ToolDefinition:
    return ToolDefinition(name=tool.name, description=tool.description, parameters_json_schema=dict(tool.parameters))


def _messages(prompt: Prompt, rounds: Sequence[Round]) -> list[ModelMessage]:
    messages: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart(content=prompt.user)], instructions=prompt.system)
    ]
    for it in rounds:
        calls = [ToolCallPart(tool_name=c.name, args=dict(c.arguments), tool_call_id=c.id) for c in it.calls]
        words = [TextPart(content=it.text)] if it.text else []
        messages.append(ModelResponse(parts=[*words, *calls]))
        results = [
            ToolReturnPart(tool_name=c.name, content=it.results.get(c.id, ""), tool_call_id=c.id) for c in it.calls
        ]
        request = [UserPromptPart(content=it.request)] if it.request else []
        messages.append(ModelRequest(parts=[*results, *request], instructions=prompt.system))
    return messages


def _failure(error: Exception) -> ModelFailed:
    """In our words: a provider's own text may quote a key or the prompt."""
    if isinstance(error, ModelHTTPError):
        return _refusal(error)
    if isinstance(error, ModelConnectionError | httpx2.HTTPError):
        unreachable = RunError(code="agents.model_unreachable", detail="The connection to the model broke off.")
        return ModelFailed(unreachable, is_retryable=True, is_illness=True)
    nonsense = RunError(code="agents.model_malformed", detail="The model sent something that cannot be read.")
    return ModelFailed(nonsense, is_retryable=True, is_illness=True)


def _refusal(error: ModelHTTPError) -> ModelFailed:
    status = error.status_code
    if status == _TOO_MANY:
        busy = RunError(code="agents.model_rate_limited", detail="The model's provider is limiting our calls.")
        return ModelFailed(busy, is_retryable=True, retry_after_s=_retry_after_s(error))
    if status >= _SERVER_ERROR or status in {_REQUEST_TIMEOUT, _CONFLICT, _OVERLOADED}:
        ill = RunError(code="agents.model_unavailable", detail="The model's provider is not available at the moment.")
        return ModelFailed(ill, is_retryable=True, is_illness=True, retry_after_s=_retry_after_s(error))
    if status in _UNAUTHORISED:
        ours = RunError(code="agents.model_unauthorised", detail="The model's provider does not accept our access.")
        return ModelFailed(ours, is_illness=True)
    return ModelFailed(RunError(code="agents.model_rejected", detail="The model's provider rejected the request."))


def _retry_after_s(error: ModelHTTPError) -> float | None:
    headers: Mapping[str, str] = getattr(error, "headers", None) or {}
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit_s)
        except (KeyError, ValueError):
            continue  # absent, or a date: the router's own pauses serve as well
    return None

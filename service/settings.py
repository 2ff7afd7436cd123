"""Every setting of the service: environment variables `TONEARM_<NAME>`, and flags of the same names."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from adapters.base_model import DEFAULT_BASE_MODEL
from adapters.errors import InvalidReference, SettingsError
from adapters.reference import parse_reference
from adapters.store import SHIPPED

PREFIX = "TONEARM_"
LOOPBACK: Final = "127.0.0.1"

_MIN_KEY_CHARACTERS = 8


def _split(value: object) -> object:
    """`a, b` to ("a", "b"): keys are written in one variable."""
    if isinstance(value, str):
        return tuple(part for part in (piece.strip() for piece in value.split(",")) if part)
    return value


def _reference(value: str) -> str:
    try:
        parse_reference(value)
    except InvalidReference as error:
        raise ValueError(str(error)) from error
    return value


Keys = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """What an operator can decide. Read once, in the main process; the others get it handed over."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    host: Literal["127.0.0.1", "0.0.0.0", "::"] = Field(
        LOOPBACK, description="Address to listen on. LitServe takes these three alone."
    )
    port: int = Field(8000, ge=1024, le=65535, description="TCP port to listen on.")
    base_model: str = Field(DEFAULT_BASE_MODEL, min_length=1, description="Local directory or hub id[@revision].")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes every CUDA GPU, or else the CPU.")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Of the encoder; auto: fp32 on a CPU, bf16 on a GPU. Heads are always fp32."
    )
    cpu_threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="Threads of a forward pass on the CPU; 0: one less than there are cores, or both of two.",
    )

    workers_per_device: int = Field(
        1, ge=1, le=64, description="Inference processes a device: more throughput on a CPU, for as much more memory."
    )

    adapters_dir: Path = Field(SHIPPED, description="The registry: <name>/<version>/ directories.")
    default_adapter: Annotated[str, BeforeValidator(_reference)] = Field(
        "base", description="Answers where neither X-Adapter nor an experiment chooses."
    )
    experiments_file: Path | None = Field(None, description="experiments.yaml; re-read when it changes.")
    database_url: str = Field(
        "sqlite:///tonearm.db", description="Exposures and feedback: sqlite:///file.db or postgresql://…"
    )
    retention_days: float = Field(90, gt=0, le=36500, description="How long exposures and feedback are kept.")
    max_resident_adapters: int = Field(2048, ge=1, le=65536, description="Adapters in the bank at once, at most.")
    bank_memory_mb: int = Field(
        1024, ge=1, description="MiB that the bank may take; where adapters are large, fewer are in it at once."
    )
    pinned_adapters: Annotated[
        tuple[Annotated[str, BeforeValidator(_reference)], ...], NoDecode, BeforeValidator(_split)
    ] = Field((), description="Never make room for others; ready only when all of them are resident. Comma-separated.")
    host_cache_mb: int = Field(512, ge=0, description="MiB of adapters kept beside the bank, checked and ready.")
    max_rank: int = Field(64, ge=1, le=1024, description="Largest LoRA rank taken.")

    api_keys: Keys = Field((), description="Keys of callers, comma-separated.")
    admin_keys: Keys = Field((), description="Keys of administrators, comma-separated; they may call, too.")
    allow_anonymous: bool = Field(False, description="Serve without keys on other addresses than loopback.")

    request_timeout_s: float = Field(30, gt=0, le=3600, description="Longest wait for an answer.")
    max_queued_texts: int = Field(4096, ge=1, description="Texts times adapters that may wait; beyond it is a 429.")
    max_queued_tokens: int = Field(
        262_144, ge=1024, description="Tokens that may wait, as estimated from the texts' bytes; beyond it is a 429."
    )
    max_queue_wait_s: float = Field(
        3, gt=0, le=3600, description="Seconds of work that may wait, at the pace of the last seconds; beyond is a 429."
    )
    max_texts_per_request: int = Field(1024, ge=1, description="Texts times adapters in one request.")
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="Largest request body.")
    batch_wait_ms: float = Field(2, ge=0, le=1000, description="How long a batch stays open for more texts.")
    max_batch_texts: int = Field(256, ge=1, description="Texts times adapters in one batch.")
    max_batch_tokens: int = Field(
        16_384, ge=512, description="Tokens in one batch, estimated: a batch of long texts keeps all others waiting."
    )

    drain_delay_s: float = Field(1, ge=0, le=300, description="From /readyz turning 503 to closing the port.")
    drain_timeout_s: float = Field(30, gt=0, le=3600, description="Longest wait for answers still due, then.")

    metrics_adapters: int = Field(
        200, ge=1, le=10_000, description="Adapters with metrics of their own, the busiest; the rest are `other`."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    log_text: bool = Field(False, description="Log the texts of requests.")
    traces: Literal["off", "otlp", "console"] = Field(
        "off", description="Where OpenTelemetry spans go; otlp takes the OTEL_ variables, console is standard output."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_texts_per_request > self.max_queued_texts:
            raise ValueError(f"MAX_TEXTS_PER_REQUEST: at most MAX_QUEUED_TEXTS, {self.max_queued_texts}")
        if self.host != LOOPBACK and not self.api_keys and not self.allow_anonymous:
            raise ValueError(f"API_KEYS: at least one key where HOST is not {LOOPBACK}, or ALLOW_ANONYMOUS=1")
        for name in ("api_keys", "admin_keys"):
            if any(len(key.get_secret_value()) < _MIN_KEY_CHARACTERS for key in getattr(self, name)):
                raise ValueError(f"{name.upper()}: keys of at least {_MIN_KEY_CHARACTERS} characters")
        return self


def read_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """Settings from flags, then the environment, then defaults.

    Args:
        flags: by setting name in lower case; None means not given.

    Raises:
        SettingsError: naming the first setting that is wrong, its value and what was expected.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise _settings_error(error, given) from None


def _settings_error(error: ValidationError, given: Mapping[str, Any]) -> SettingsError:
    first = error.errors(include_url=False, include_context=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["loc"]:
        name, expected = str(first["loc"][0]), message
    else:  # a rule over several settings; its message begins with the one to change
        key, _, expected = message.partition(": ")
        name = key.lower()
    value = given.get(name, os.environ.get(PREFIX + name.upper(), Settings.model_fields[name].default))
    if name.endswith("_keys"):
        value = "(not shown)" if value else ""
    return SettingsError(PREFIX + name.upper(), value, expected[:1].lower() + expected[1:])

"""Every setting of a parent, typed, with its default and its unit. The agent's own are in ``nodes/agent/config.py``.

Read from ``cascade.toml`` (or the file that CASCADE_CONFIG names), then from the environment
(CASCADE_<NAME>), then from arguments of ``manage.py runserver``: the later one wins.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

BASE_DIR = Path(__file__).resolve().parent.parent


class Config(BaseSettings):
    """What this process is and within which limits it works."""

    model_config = SettingsConfigDict(env_prefix="CASCADE_", extra="forbid", validate_assignment=True)

    role: Literal["parent", "child", "standalone"] = Field("parent", description="What `runserver` starts as.")
    data_dir: Path = Field(BASE_DIR / "data", description="Databases, spool and secret key live here.")
    debug: bool = Field(False, description="Django's debug pages; never on a reachable address.")
    django_key: str = Field("", description="Django's secret key; empty: made once and kept in data_dir.")
    allowed_hosts: list[str] = Field(
        ["localhost", "127.0.0.1", "[::1]"], description="Host names this server answers to."
    )
    csrf_trusted_origins: list[str] = Field(
        [], description="Origins, with scheme, that may post from a proxy's address."
    )
    https: bool = Field(False, description="Served behind TLS: secure cookies, HSTS, redirects to https.")
    time_zone: str = Field("UTC", description="Time zone of pages and logs.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    beat_seconds: float = Field(5, ge=0.1, le=60, description="How often a child beats.")
    lease_seconds: float = Field(30, ge=0.5, le=3600, description="An allocation without a beat for so long expires.")
    offer_seconds: float = Field(
        15, ge=0.5, le=300, description="Work that a node does not fetch in this time goes back."
    )
    offline_seconds: float = Field(45, ge=1, le=180, description="Without a beat for so long a node is offline.")
    long_poll_seconds: float = Field(30, ge=0, le=120, description="How long a claim may wait for work.")
    target_seconds: float = Field(
        1.0, ge=0.01, le=3600, description="How long an automatically sized shard should run."
    )
    lookahead_seconds: float = Field(
        0.1,
        ge=0,
        le=10,
        description="Work a node may hold beyond its capacity, in seconds, while its shards are short.",
    )
    lookahead_limit: int = Field(
        400, ge=0, le=10_000, description="Most allocations a node may hold beyond its capacity."
    )
    balancers: list[str] = Field([], description="Dotted paths of functions that runs may name as their balancer.")
    worker_deaths: int = Field(3, ge=1, le=10, description="Workers a shard may kill before it is cut in half.")
    fallback_seconds: float = Field(
        10, ge=0, le=86_400, description="With no node for a run for so long, this parent runs it itself."
    )
    fallback_workers: int = Field(
        2, ge=0, le=1000, description="Worker processes of this parent's own worker; 0: it never runs anything itself."
    )
    max_cpu: float = Field(100, ge=1, le=100, description="A node whose CPU is above this percentage gets no new work.")
    max_memory: float = Field(
        100, ge=1, le=100, description="A node whose memory is above this percentage gets no new work."
    )
    patient_seconds: float = Field(
        180, ge=1, le=180, description="offer_seconds and offline_seconds for clients that poll rarely."
    )
    webhook_attempts: int = Field(8, ge=1, le=50, description="Tries to bring a webhook to its address.")
    run_days: float = Field(90, ge=0.01, description="Ended runs, with their allocations, are kept so long.")
    log_days: float = Field(14, ge=0.01, description="The sync log is kept so long.")
    heartbeat_days: float = Field(7, ge=0.01, description="Heartbeat history is kept so long.")
    max_items: int = Field(1_000_000, ge=1, description="Items a run may have.")
    upload_limit: int = Field(
        64 * 1024 * 1024, ge=1024, description="Largest request body of the native API, in bytes."
    )
    allow_plain_keys: bool = Field(
        True, description="Accept 'Authorization: AK-SK ak:sk' where the node allows it, too."
    )
    signature_seconds: float = Field(300, ge=5, le=3600, description="A signature older or newer than this is refused.")
    duckdb_memory: str = Field("1GB", description="Memory limit of the result database.")
    sql_seconds: float = Field(10, ge=0.1, le=600, description="Longest a query on results may take.")

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @property
    def database(self) -> Path:
        return self.data_dir / "cascade.sqlite3"

    @property
    def results(self) -> Path:
        return self.data_dir / "results.duckdb"

    @property
    def spool(self) -> Path:
        return self.data_dir / "spool"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = Path(os.environ.get("CASCADE_CONFIG", BASE_DIR / "cascade.toml"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)


@cache
def current() -> Config:
    """The configuration of this process, read once. Raises pydantic.ValidationError."""
    return Config()  # type: ignore[call-arg]  # every field has a default

"""One typed tree of settings; nothing else reads the environment.

Every field can be set as `CLICKWAKE_<SECTION>__<FIELD>`, for example `CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS`.
Unknown names in a section are refused, so a typing error there does not pass silently; a setting that cannot be used
ends the process with exit code 2 and a line that names it. `clickwake up` writes what it started to `<home>/local.env`; it
is read when it is there, and the environment wins over it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from schemas.topics import DAY_MS, KEPT_FOR_A_TIME, Topic
from stream import wrong_settings
from stream.urls import without_userinfo

PSEUDONYM_KEY_CHARS_MIN = 32
LOOPBACK = ("127.0.0.1", "localhost", "::1")
RETENTION_DAYS_MAX = 3_650  # of topics: who is erased is in older records until they go


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Kafka(Section):
    bootstrap_servers: str = "127.0.0.1:9092"
    topic_prefix: str = Field("clickwake", pattern=r"^[a-zA-Z0-9._-]+$")
    partitions: int = Field(4, ge=1, description="partitions of every user topic; part of the contract once there is data")
    session_timeout_ms: int = Field(
        20_000, ge=6_000, le=35_000, description="a worker silent for so long is taken for dead, its partitions given away"
    )
    replication_factor: int = Field(1, ge=1)
    min_insync_replicas: int = Field(1, ge=1)
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    plaintext_password: bool = Field(False, description="beyond loopback it may go without TLS: the network is private")
    ssl_cafile: Path | None = None
    retention_days: dict[str, Annotated[int, Field(le=RETENTION_DAYS_MAX)]] = Field(
        default_factory=dict, description="topic, such as events → days its records are kept; clickwake topics sets it"
    )

    @field_validator("retention_days")
    @classmethod
    def _kept_long_enough(cls, value: dict[str, int]) -> dict[str, int]:
        for entity, days in value.items():
            topic = KEPT_FOR_A_TIME.get(entity)
            if topic is None:
                raise ValueError(f"{entity!r} is no topic that is kept for a time; these are {', '.join(KEPT_FOR_A_TIME)}")
            if days < topic.retention_days_min:
                raise ValueError(f"{entity} has to be kept for {topic.retention_days_min} days at least ({topic.why})")
        return value

    def retention_ms(self, topic: Topic) -> int:
        """How long a topic's records are kept, by settings, else by the table."""
        days = self.retention_days.get(topic.entity)
        return topic.retention_ms if days is None else days * DAY_MS

    @property
    def is_local(self) -> bool:
        """Whether all of its servers are on this machine."""
        hosts = (one.strip().rpartition(":")[0].strip("[]") for one in self.bootstrap_servers.split(","))
        return set(hosts) <= set(LOOPBACK)

    @model_validator(mode="after")
    def _sasl_needs_a_user(self) -> Self:
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError("SECURITY_PROTOCOL SASL_* needs CLICKWAKE_KAFKA__SASL_USERNAME and __SASL_PASSWORD")
        return self

    @model_validator(mode="after")
    def _password_is_not_shown(self) -> Self:
        if self.security_protocol == "SASL_PLAINTEXT" and not (self.plaintext_password or self.is_local):
            raise ValueError("SASL_PLAINTEXT shows the password to whoever listens between here and the brokers: take "
                             "SASL_SSL, or where that network is private say so with "
                             "CLICKWAKE_KAFKA__PLAINTEXT_PASSWORD=true")  # fmt: skip
        return self


Kept = Literal["events", "event_products", "recommendations", "complements", "decisions", "segment_changes",
               "churn_alerts", "reminders", "deliveries", "offer_decisions", "opinions", "satisfaction_alerts",
               "satisfaction_predictions", "dead_letters"]


class ClickHouse(Section):
    host: str = "127.0.0.1"
    port: int = 8123
    user: str = "default"
    password: SecretStr = SecretStr("")
    database: str = "clickwake"
    secure: bool = False
    plaintext_password: bool = Field(False, description="beyond loopback it may go without TLS: the network is private")
    ca_file: Path | None = Field(None, description="whose certificates are trusted; default: the system's")
    retention_days: dict[Kept, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="table → days after which its rows go; tables not named keep everything"
    )

    @model_validator(mode="after")
    def _password_is_not_shown(self) -> Self:
        sent_plain = bool(self.password.get_secret_value()) and not self.secure and self.host not in LOOPBACK
        if sent_plain and not self.plaintext_password:
            raise ValueError("the password would go over plain HTTP, shown to whoever listens on the way: set "
                             "CLICKWAKE_CLICKHOUSE__SECURE=true, or where that network is private say so with "
                             "CLICKWAKE_CLICKHOUSE__PLAINTEXT_PASSWORD=true")  # fmt: skip
        return self


class Models(Section):
    registry: str = Field("", description="folder or fsspec URL of the releases; default <home>/models", repr=False)
    signing_key: SecretStr | None = Field(None, description="ed25519 private key, base64 or a file: training signs with it")
    verify_keys: tuple[str, ...] = Field((), description="public keys, base64 or files: what none of them signed is refused")

    @field_serializer("registry")
    def _as_it_may_be_printed(self, registry: str) -> str:
        return without_userinfo(registry)


def _tenant(name: str) -> str:
    if not name or "/" in name or name.startswith("#"):  # in keys both have their place: `b/u` of `a` would be `u` of `a/b`
        raise ValueError("a tenant has a name without / that does not begin with #")
    return name


Tenant = Annotated[str, AfterValidator(_tenant)]
WriteKeys = SecretStr | tuple[SecretStr, ...]


def _demo_key() -> dict[str, WriteKeys]:
    return {"demo": SecretStr("demo-write-key")}


class Collector(Section):
    host: str = "127.0.0.1"
    port: int = 8080
    behind_tls: bool = Field(False, description="a proxy in front ends TLS; beyond loopback nothing listens without it")
    write_keys: dict[Tenant, WriteKeys] = Field(
        default_factory=_demo_key,
        description="tenant → write key or several, plain or as sha256:…, what `clickwake key` prints",
    )
    admin_keys: dict[Tenant, WriteKeys] = Field(
        default_factory=dict, description="tenant → key or several, as write_keys: may ask for users to be forgotten"
    )
    event_bytes_max: int = 32 * 1024
    batch_bytes_max: int = 500 * 1024
    batch_events_max: int = 500
    key_events_per_s_max: float = Field(10_000.0, gt=0, description="by one write key, as many at once; beyond: 429")
    user_events_per_s_max: float = Field(50.0, gt=0, description="of one user in the long run; beyond: 429")
    user_events_burst: int = Field(1_000, ge=1, description="… and at once")
    key_regulations_per_s_max: float = Field(
        10.0, gt=0, description="users to forget by one admin key in the long run; beyond: 429"
    )
    key_regulations_burst: int = Field(5_000, ge=1, description="… and at once")
    ack_timeout_ms: int = 10_000
    cors_origins: tuple[str, ...] | None = Field(
        None, description='whose pages may send, such as ["https://shop.example"]; on loopback ["*"], beyond it no default'
    )


def _demo_read_key() -> dict[str, WriteKeys]:
    return {"demo": SecretStr("demo-read-key")}


class Api(Section):
    """The read API."""

    host: str = "127.0.0.1"
    port: int = 8090
    behind_tls: bool = Field(False, description="a proxy in front ends TLS; beyond loopback nothing listens without it")
    read_keys: dict[Tenant, WriteKeys] = Field(
        default_factory=_demo_read_key,
        description="tenant → read key or several, as write_keys: may read everything of the tenant's users",
    )
    top_n_max: int = Field(100, ge=1, description="items in one answer")
    users_max: int = Field(100, ge=1, description="users in one batch read")
    inflight_max: int = Field(512, ge=1, description="requests at once; beyond: 429")
    key_answers_per_s_max: float = Field(
        1_000.0, gt=0, description="by one read key, as many at once; a batch read is one a user. Beyond: 429"
    )
    experiments: Path | None = Field(None, description="file of experiments, YAML; default <home>/experiments.yml")
    explore: float = Field(0.0, ge=0, le=1, description="share of places for items that nobody knows yet, where neither the "
                                                         "request nor an experiment's arm says")
    log_decisions: bool = Field(True, description="answers go to the decisions topic, each once")
    cors_origins: tuple[str, ...] = Field((), description="browsers that may read; none: a read key belongs on a server")


class Shop(Section):
    """The demo shop; on loopback only."""

    port: int = 8070
    tenant: str = Field("demo", description="whose catalog it sells; its keys must be in these settings, in the clear")


class Dashboard(Section):
    host: str = "127.0.0.1"
    port: int = 8060
    behind_tls: bool = Field(False, description="a proxy in front ends TLS; beyond loopback nothing listens without it")
    accounts: Path | None = Field(None, description="who may sign in, see `clickwake dashboard add-user`; default "
                                                    "<home>/dashboard-accounts.json")
    api_url: str = Field("", description="where the read API answers; default: its own host and port")
    idle_min: float = Field(60.0, gt=0, description="minutes without a page asked for, after which one is signed out")
    metrics_port: int = Field(0, description="0: any free port, written to <home>/run/dashboard.json")


class ConsentDefault(Section):
    """What a user allowed who was not asked: stamped into events that say nothing."""

    analytics: bool = True
    personalization: bool = True
    ads: bool = True


class Privacy(Section):
    """What the collector and `clickwake replay` do before anything is written; the read API, the dashboard and `clickwake
    erase` find people by the same keys."""

    pseudonym_keys: tuple[SecretStr, ...] = Field(
        (), description="newest first; ids become keyed hashes, raw ones never enter Kafka. Old keys: for who was erased"
    )
    pseudonym_fields: tuple[str, ...] = Field((), description="more fields to hash, e.g. traits.email")
    message_key: SecretStr | None = Field(
        None, description="by it ids of events without consent to analytics are hashed, 32 random characters at least; "
                          "default: the oldest pseudonym key, else <home>/message-key, which the sink makes"
    )
    ip: Literal["truncate", "drop", "keep"] = Field("truncate", description="addresses: /24 of IPv4, /48 of IPv6")
    consent: dict[str, ConsentDefault] = Field(default_factory=dict, description="tenant → what counts if nothing is said")

    @field_validator("pseudonym_keys", "message_key")
    @classmethod
    def _are_long(cls, given: tuple[SecretStr, ...] | SecretStr | None) -> tuple[SecretStr, ...] | SecretStr | None:
        keys = given if isinstance(given, tuple) else () if given is None else (given,)
        if any(len(one.get_secret_value()) < PSEUDONYM_KEY_CHARS_MIN for one in keys):
            raise ValueError(f"a pseudonym key, or message key, has at least {PSEUDONYM_KEY_CHARS_MIN} random characters: "
                             "with a short one ids could be guessed")  # fmt: skip
        return given


class Personalize(Section):
    flush_interval_ms: int = Field(250, ge=10, description="state is written and input acknowledged this often")
    flush_interval_behind_ms: int = Field(2_000, ge=10, description="… and this often while many records wait")
    batch_records_max: int = Field(4_000, ge=1, description="records of one poll, over all partitions")
    recommend_interval_ms: int = Field(5_000, ge=0, description="a user's recommendations are renewed at most this often")
    recommend_top_n: int = Field(10, ge=1, le=100)
    category_cap: int = Field(3, ge=1, description="items of one category among the recommended")
    exclude: Literal["none", "bought", "seen"] = Field("bought", description="items of a user's past left out")
    diversity: float = Field(0.0, ge=0, le=1, description="how much the recommended are to differ; 0: by score alone")
    satisfaction_weight: float = Field(
        0.0, ge=0, le=10, description="scores times (item's satisfaction / mean) to this power, at most 1; 0: off"
    )
    lateness_max_ms: int = Field(2 * 86_400_000, description="live events older than the partition's clock by more are late")
    skew_max_ms: int = Field(
        300_000, ge=0,
        description="a live event may be ahead of the collector's and of the broker's clock by this much; one for all",
    )
    recommend_users_max: int = Field(256, ge=1, description="users recommended to with one batch or tick: one ONNX call")
    behind_records_min: int = Field(100, ge=1, description="with so many records waiting in a partition, folding is first")
    recommend_behind_users_max: int = Field(8, ge=1, description="users recommended to with one batch or tick meanwhile")
    cached_states_max: int = Field(50_000, ge=1, description="decoded user states kept in memory, per partition")
    onnx_threads: int = Field(1, ge=1)
    reminders_week_max: int = Field(2, ge=0, description="reminders of purchases a user and 7 days; 0: none")
    reminders_probability_min: float = Field(0.25, ge=0, le=1, description="chance from which a reminder is said")
    reminders_window_days: float = Field(14.0, ge=1, le=90, description="days around the expected time that it is due")
    metrics_port: int = Field(0, description="0: any free port, written to <home>/run/personalize-*.json")

    def behind(self, waiting: int) -> bool:
        """Whether so many waiting records are many: folding is first then."""
        return waiting >= self.behind_records_min


class Metrics(Section):
    """Who may read `/metrics`: who is on the machine, and who is let in by one of these."""

    host: str = Field("127.0.0.1", description="where workers' metrics listen; 0.0.0.0 in a container that is scraped")
    key: SecretStr | None = Field(
        None, description="who scrapes from elsewhere sends it as Basic auth's user; sha256:…, as `clickwake key` prints"
    )
    without_key: bool = Field(False, description="nobody needs it who reaches us without a proxy: the network is private")
    plaintext_key: bool = Field(
        False, description="the key comes to workers beyond loopback without TLS: that is private, or has TLS in front"
    )

    @property
    def missing(self) -> str | None:
        """What has to be said before metrics are listened for beyond loopback; None when it was."""
        if self.key is not None and not self.key.get_secret_value().startswith("sha256:"):
            return ("CLICKWAKE_METRICS__KEY may not stand in the settings in the clear: put its hash there; `clickwake key "
                    "metrics` makes a key and prints both")  # fmt: skip
        if self.key is not None or self.without_key:
            return None
        return ("who reaches it could read its metrics: set CLICKWAKE_METRICS__KEY (`clickwake key metrics` makes one), or "
                "where that network is private say so with CLICKWAKE_METRICS__WITHOUT_KEY=true")  # fmt: skip

    @model_validator(mode="after")
    def _are_not_for_everybody(self) -> Self:
        if self.host not in LOOPBACK and self.missing:
            raise ValueError(f"beyond loopback {self.missing}")
        if self.host not in LOOPBACK and not self.without_key and not self.plaintext_key:
            raise ValueError("workers have no TLS, so beyond loopback CLICKWAKE_METRICS__KEY could be read on its way: if "
                             "that is private, or TLS ends in front, set CLICKWAKE_METRICS__PLAINTEXT_KEY=true")
        return self


class Segments(Section):
    rules: Path | None = Field(None, description="file of rules, YAML; default <home>/segments.yml, if there is one")
    sweep_s: int = Field(300, ge=1, description="everybody is looked at again this often: how late time alone takes effect")


class Deliveries(Section):
    rules: Path | None = Field(None, description="file of channels and deliveries; default <home>/deliveries.yml")
    metrics_port: int = Field(0, description="0: any free port, written to <home>/run/delivery.json")


class Catalog(Section):
    metrics_port: int = Field(0, description="0: any free port, written to <home>/run/catalog-*.json")


class Erasing(Section):
    """The worker that carries out requests to forget somebody."""

    metrics_port: int = Field(0, description="0: any free port, written to <home>/run/erasure.json")


class Offers(Section):
    """Promotions: which offers there are, and the worker that learns from what becomes of them."""

    rules: Path | None = Field(None, description="file of placements and offers; default <home>/offers.yml")
    interval_ms: int = Field(250, ge=10, description="what was learned is published this often")
    metrics_port: int = Field(0, description="0: any free port, written to <home>/run/offers.json")


class Insights(Section):
    """What people think, read in the stream."""

    opinions_per_false_alarm: int = Field(
        1_000, ge=50, description="on average, at least, so many opinions or tickets of something stable until a false alarm"
    )
    models_every_s: float = Field(60.0, gt=0, description="the registry is looked at for newer satisfaction models")
    onnx_threads: int = Field(1, ge=1)
    metrics_port: int = Field(0, description="0: any free port, written to <home>/run/insights-*.json")


class Sink(Section):
    migrate: bool = Field(True, description="create and change tables at the start; off where its user may not")
    batch_rows_max: int = Field(20_000, ge=1, description="records in one batch")
    batch_bytes_max: int = Field(32 << 20, ge=1, description="of their values; some ten times as much memory as rows")
    flush_interval_ms: int = Field(250, ge=10, description="a batch is stored this long after its first record at most")
    metrics_port: int = Field(0, description="0: any free port, written to <home>/run/sink.json")


class Tracing(Section):
    """OpenTelemetry's traces; none unless there is an endpoint. Also read, where these are not set:
    OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS and their …_TRACES_… forms, OTEL_TRACES_SAMPLER_ARG,
    OTEL_SDK_DISABLED."""

    endpoint: str = Field("", description="where OTLP over HTTP is taken, for example http://127.0.0.1:4318/v1/traces")
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="sent along, for example the key of a service")
    ratio: float = Field(0.01, ge=0, le=1, description="share of requests without a trace of their own that begin one")
    clients_decide: bool = Field(True, description="what a client samples is sampled; off: the ratio decides of that too")
    spans_max: int = Field(4_096, ge=1, description="that wait for the exporter, some 10 MB; more are dropped and counted")


class Training(Section):
    tenant: Tenant = Field("demo", description="whose events the schedule learns from; its models are everybody's")
    every: str | None = Field(None, description="release interval of `clickwake train --every`, e.g. 6h")
    seed: int = 7
    text_model: Path | None = Field(None, description="folder of a Hugging Face BERT; default: MiniLM from its package")
    text_int8: bool = Field(False, description="text encoder in eight bits: if `evaluate text` says that it ranks as well")
    budget_s: float = Field(240.0, gt=0, description="for training the user encoder, both runs of a release together")
    pretrain: bool = Field(False, description="masked-item pre-training before next-item training; a quarter of the budget")
    threads: int = Field(1, ge=1, description="of torch; on busy cores a second one waits at barriers and slows the first")
    satisfaction_every: str | None = Field(
        None, description="how often the schedule learns the shop's own satisfaction model anew, e.g. 7d; default: never"
    )
    satisfaction_budget_s: float = Field(1_800.0, gt=0, description="for fine-tuning an encoder on reviews")
    satisfaction_encoders: dict[str, Path] = Field(
        default_factory=dict,
        description="language → folder of a Hugging Face BERT to fine-tune on reviews; en: the text encoder's, else none",
    )
    churn_horizon_days: float | None = Field(None, gt=0, description="default: the shortest informative of 14, 30, 60, 90")


class JsonOrText(EnvSettingsSource):
    """What is no JSON stays the text that it is, so that its field says what is wrong, under its name."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


class JsonOrTextFile(JsonOrText, DotEnvSettingsSource):
    """The same of a file."""


class Settings(BaseSettings):
    """`home` holds everything a local installation writes: broker, engine, state, models, logs."""

    model_config = SettingsConfigDict(
        env_prefix=wrong_settings.PREFIX, env_nested_delimiter=wrong_settings.DELIMITER, env_ignore_empty=True,
        extra="forbid", frozen=True, hide_input_in_errors=True,
    )  # fmt: skip

    home: Path = Path(".clickwake")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["logfmt", "json"] = "logfmt"
    kafka: Kafka = Kafka()
    clickhouse: ClickHouse = ClickHouse()
    models: Models = Models()
    collector: Collector = Collector()
    api: Api = Api()
    shop: Shop = Shop()
    dashboard: Dashboard = Dashboard()
    privacy: Privacy = Privacy()
    personalize: Personalize = Personalize()
    metrics: Metrics = Metrics()
    segments: Segments = Segments()
    deliveries: Deliveries = Deliveries()
    catalog: Catalog = Catalog()
    erasure: Erasing = Erasing()
    offers: Offers = Offers()
    insights: Insights = Insights()
    sink: Sink = Sink()
    tracing: Tracing = Tracing()
    training: Training = Training()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
        """OpenTelemetry's own names come last."""
        theirs = InitSettingsSource(settings_cls, {"tracing": otel_settings(os.environ)})
        assert isinstance(dotenv_settings, DotEnvSettingsSource), "what pydantic makes"
        file = JsonOrTextFile(settings_cls, dotenv_settings.env_file)
        return init_settings, JsonOrText(settings_cls), file, file_secret_settings, theirs

    @property
    def registry(self) -> str:
        """Where releases are: `models.registry`, else a folder under `home`."""
        return self.models.registry or str(self.home.absolute() / "models")

    @property
    def segments_file(self) -> Path:
        """Where the rules of segments are: `segments.rules`, else a file under `home`."""
        return self.segments.rules or self.home / "segments.yml"

    @property
    def deliveries_file(self) -> Path:
        """What alerts go where: `deliveries.rules`, else a file under `home`."""
        return self.deliveries.rules or self.home / "deliveries.yml"

    @property
    def offers_file(self) -> Path:
        """Which offers there are: `offers.rules`, else a file under `home`."""
        return self.offers.rules or self.home / "offers.yml"

    @property
    def experiments_file(self) -> Path:
        """Which users see what: `api.experiments`, else a file under `home`."""
        return self.api.experiments or self.home / "experiments.yml"

    @property
    def accounts_file(self) -> Path:
        """Who may sign in to the dashboard: `dashboard.accounts`, else a file under `home`."""
        return self.dashboard.accounts or self.home / "dashboard-accounts.json"

    @property
    def message_key_file(self) -> Path:
        """What `privacy.message_key` is while nothing else is set."""
        return self.home / "message-key"

    @property
    def state_dir(self) -> Path:
        return self.home / "state"

    @property
    def training_dir(self) -> Path:
        """Where a training that was stopped is gone on with."""
        return self.home / "training"


def otel_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """What OpenTelemetry's standard names say of `Tracing`.

    >>> otel_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://tempo:4318", "OTEL_EXPORTER_OTLP_HEADERS": "key=a%20b"})
    {'endpoint': 'http://tempo:4318/v1/traces', 'headers': {'key': 'a b'}}
    >>> otel_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://tempo:4318", "OTEL_SDK_DISABLED": "true"})
    {}
    >>> otel_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://tempo:4318", "CLICKWAKE_TRACING__ENDPOINT": ""})
    {}

    Raises ValueError for another protocol than the one that is spoken.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return {}

    def of(name: str) -> str:
        return environment.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or environment.get(f"OTEL_EXPORTER_OTLP_{name}") or ""

    found: dict[str, Any] = {}
    base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    endpoint = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or (base and base.rstrip("/") + "/v1/traces")
    if endpoint and environment.get("CLICKWAKE_TRACING__ENDPOINT") != "":
        if of("PROTOCOL") not in ("", "http/protobuf") and "CLICKWAKE_TRACING__ENDPOINT" not in environment:
            raise ValueError(
                f"OTEL_EXPORTER_OTLP_PROTOCOL is {of('PROTOCOL')}, only http/protobuf is spoken: set "
                "CLICKWAKE_TRACING__ENDPOINT to the address that takes it (port 4318), or to nothing for no traces"
            )
        found["endpoint"] = endpoint
    if of("HEADERS"):
        pairs = (one.partition("=") for one in of("HEADERS").split(",") if one.strip())
        found["headers"] = {unquote(name.strip()): unquote(value.strip()) for name, _, value in pairs}
    if environment.get("OTEL_TRACES_SAMPLER_ARG"):
        found["ratio"] = environment["OTEL_TRACES_SAMPLER_ARG"]
    return found


def load() -> Settings:
    """The settings of this process: environment first, then `<home>/local.env` as `clickwake up` left it.

    A setting that cannot be used ends the process: a line for each on standard error, without its value, and SystemExit.
    """
    home = Path(os.environ.get("CLICKWAKE_HOME", ".clickwake"))
    local_env = home / "local.env"
    lines = wrong_settings.misspelt(os.environ, Settings)
    try:
        settings = Settings(_env_file=local_env if local_env.exists() else None)
    except ValueError as error:
        lines += wrong_settings.lines_of(error, Settings)
    if not lines:
        return settings
    for line in lines:
        print(f"wrong setting: {line}", file=sys.stderr)
    raise SystemExit(wrong_settings.EXIT_CODE)

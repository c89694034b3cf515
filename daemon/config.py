"""The configuration: one TOML file, environment overrides, read once, frozen.

Owns how it is read and what must hold between its sections; the sections of the receiver and of the
models have modules of their own. Nothing here opens a file other than the TOML file, and nothing
else reads the environment.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from daemon.errors import ConfigurationError
from daemon.model_settings import ModelsSection, WorkerSection
from daemon.receiver_settings import ReceiverSection
from daemon.settings import (
    AETitle,
    Days,
    FileName,
    LeaseSeconds,
    PasswordHash,
    Port,
    Seconds,
    Section,
    refuse_all,
)

CONFIG_VARIABLE = "MEDIMGD_CONFIG"
SUPERVISOR_VARIABLE = "MEDIMGD_SUPERVISOR_PID"
"""What ``medimgd run`` tells its children about itself."""
_PREFIX, _DELIMITER = "MEDIMGD_", "__"
SEARCH_PATH = (Path("medimgd.toml"), Path("/etc/medimgd/medimgd.toml"))


class SiteSection(Section):
    """Where this installation keeps its state, and its name."""

    data_folder: Path = Path("run")
    """Holds the database, the spool and nothing else; put it on a disk that is backed up."""
    node_id: str = Field(default_factory=socket.gethostname, min_length=1, max_length=64)
    """Written as device serial number into every result."""


class StudySection(Section):
    """When a study counts as complete."""

    quiet_seconds: Seconds = 30.0
    """Silence, with no association open, after which a study is complete."""
    deadline_seconds: Seconds = 3600.0
    """Longest wait since the first instance of a round, whatever is still open."""
    deadline_action: Literal["analyse", "hold"] = "analyse"
    lease_seconds: LeaseSeconds = 120.0
    maximum_attempts: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _deadline_comes_after_quiet(self) -> StudySection:
        if self.deadline_seconds < self.quiet_seconds:
            raise ValueError(
                "study.deadline_seconds must not be shorter than study.quiet_seconds: "
                f"received {self.deadline_seconds:g} and {self.quiet_seconds:g}"
            )
        return self


class DestinationSection(Section):
    """One archive that receives the results."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$", examples=["pacs"])
    host: str = Field(min_length=1, examples=["10.1.0.20"])
    port: int = Field(ge=1, le=65535, examples=[104])
    ae_title: AETitle = Field(examples=["PACS"])
    calling_ae_title: AETitle | None = Field(default=None, examples=["MEDIMGD"])
    """Our AE title towards this archive; the receiver's when absent."""
    timeout_seconds: Seconds = 30.0
    confirm: bool = True
    """Ask by C-FIND whether what was sent is there; peers without C-FIND stay at ``sent``."""
    tls: bool = False
    """Whether this archive is called with TLS; we show it the receiver's certificate, if any."""
    ca_file: FileName = None
    """PEM: the authorities, or the single certificate, that vouch for this archive; those of
    ``receiver.tls`` when absent."""


class ResultsSection(Section):
    """What is written back."""

    send_refusals: bool = False
    """Whether "analysis not performed" goes to the archives too; the worklist always shows it. One
    that replaces a report goes there in any case."""
    title: Literal["126000", "private"] = "126000"
    """Root title of the report: Imaging Measurement Report, or a private one for OHIF viewers."""
    first_retry_seconds: Seconds = 10.0
    longest_retry_seconds: Seconds = 4 * 3600.0
    give_up_after_days: Days = 14.0


class WebSection(Section):
    """The worklist page."""

    enabled: bool = True
    address: str = "127.0.0.1"
    port: Port = 8042
    user: str = ""
    password_hash: PasswordHash = SecretStr("")
    """From ``medimgd config hash-password``; needed to listen anywhere but on loopback."""
    finding_order: tuple[str, ...] = ()
    """Labels from worst to mildest; labels not named follow in alphabetical order."""

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can reach the page."""
        if self.address == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            return False

    @model_validator(mode="after")
    def _is_protected(self) -> WebSection:
        refuse_all(self._faults())
        return self

    def _faults(self) -> Iterator[str]:
        has_hash = bool(self.password_hash.get_secret_value())
        if bool(self.user) != has_hash:
            yield "web.user and web.password_hash go together: set both or neither"
        if self.enabled and not self.is_loopback and not (self.user and has_hash):
            yield (
                f"web.address {self.address!r} is not loopback: set web.user and "
                "web.password_hash (medimgd config hash-password) or use 127.0.0.1"
            )


class RetentionSection(Section):
    """How long finished studies keep their pixels here."""

    days: Days = 30.0


class LogSection(Section):
    """How the processes speak."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    style: Literal["text", "json"] = "text"


class Config(BaseSettings):
    """Everything an installation can decide. Absent sections take their defaults."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter=_DELIMITER, extra="forbid", frozen=True
    )

    site: SiteSection = SiteSection()
    receiver: ReceiverSection = ReceiverSection()
    study: StudySection = StudySection()
    models: ModelsSection = ModelsSection()
    worker: WorkerSection = WorkerSection()
    destinations: tuple[DestinationSection, ...] = ()
    results: ResultsSection = ResultsSection()
    web: WebSection = WebSection()
    retention: RetentionSection = RetentionSection()
    log: LogSection = LogSection()

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        refuse_all([*self._repeated_names(), *self._archives_without_trust(), *self._shared_port()])
        return self

    def _repeated_names(self) -> Iterator[str]:
        names = [destination.name for destination in self.destinations]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"destinations: the name {name!r} is used more than once"

    def _archives_without_trust(self) -> Iterator[str]:
        for each in self.destinations:
            if each.tls and not (each.ca_file or self.receiver.tls.ca_file):
                yield (
                    f"destinations: {each.name!r} is called with TLS, but nothing says who vouches "
                    "for it: set its ca_file, or receiver.tls.ca_file"
                )
            if each.ca_file and not each.tls:
                yield (
                    f"destinations: {each.name!r} has a ca_file, but is called without TLS: "
                    "set tls = true, or remove ca_file"
                )

    def _shared_port(self) -> Iterator[str]:
        if self.web.enabled and self.receiver.port and self.receiver.port == self.web.port:
            yield f"receiver.port and web.port are both {self.web.port}"

    @property
    def database_path(self) -> Path:
        """Where the SQLite database lies."""
        return self.site.data_folder / "medimgd.sqlite3"

    @property
    def spool_folder(self) -> Path:
        """Where received instances lie."""
        return self.site.data_folder / "spool"

    @property
    def places_path(self) -> Path:
        """Where the receivers of this host count their open associations."""
        return self.site.data_folder / "locks" / f"associations-{socket.gethostname()}"

    @property
    def site_models_folder(self) -> Path:
        """Where ``medimgd models add`` puts packages."""
        return self.site.data_folder / "models"


def find_config_file(named: Path | None) -> Path | None:
    """Return the file to read: the named one, ``MEDIMGD_CONFIG``, or the first that exists.

    Raises
    ------
    ConfigurationError
        A file was named and does not exist.
    """
    chosen = named or (Path(os.environ[CONFIG_VARIABLE]) if CONFIG_VARIABLE in os.environ else None)
    if chosen is None:
        return next((path for path in SEARCH_PATH if path.is_file()), None)
    if chosen.is_dir():
        raise ConfigurationError(f"{chosen} is a folder: name the configuration file in it")
    if not chosen.is_file():
        raise ConfigurationError(
            f"configuration file {chosen} does not exist: create it with "
            f"'medimgd config init {chosen}' or name another one with --config"
        )
    return chosen


def load_config(named: Path | None = None) -> Config:
    """Read the TOML file, let ``MEDIMGD_<SECTION>__<FIELD>`` override it, check everything.

    Raises
    ------
    ConfigurationError
        With every fault at once: file, field, value received, rule.
    """
    path = find_config_file(named)
    _refuse_unknown_variables()

    class _FromFile(Config):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
            if path is not None:
                sources += (TomlConfigSettingsSource(settings_cls, path),)
            return sources

    try:
        loaded = _FromFile()
    except ValidationError as error:
        raise ConfigurationError(_all_faults(path, error)) from error
    except ValueError as error:
        raise ConfigurationError(f"{path or 'environment'}: {error}") from error
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read by user {os.geteuid()} ({error.strerror}): give it to the "
            "account that medimgd runs as, or to its group"
        ) from error
    return Config.model_construct(**{name: getattr(loaded, name) for name in Config.model_fields})


def _variables() -> list[str]:
    """Return the names of the environment variables that speak of settings, whatever their case."""
    return sorted(
        name for name in os.environ if name.upper().startswith(_PREFIX) and _DELIMITER in name
    )


def variable_of(*setting: str) -> str:
    """Return the environment variable of a setting, or of a whole section, by its names."""
    return _PREFIX + _DELIMITER.join(setting).upper()


def unread_variables() -> tuple[str, ...]:
    """Return the environment variables that begin as settings do, and that nothing reads."""
    settings = {*_variables(), CONFIG_VARIABLE, SUPERVISOR_VARIABLE}
    sections = {variable_of(section) for section in Config.model_fields}
    return tuple(
        sorted(
            name
            for name in os.environ
            if name.upper().startswith(_PREFIX)
            and name not in settings
            and name.upper() not in sections
        )
    )


def _refuse_unknown_variables() -> None:
    """A misspelt variable would otherwise be ignored in silence."""
    unknown = [
        name
        for name in _variables()
        if name[len(_PREFIX) :].partition(_DELIMITER)[0].lower() not in Config.model_fields
    ]
    if unknown:
        raise ConfigurationError(
            f"environment: {', '.join(unknown)} names no section of the configuration; "
            f"sections are {', '.join(sorted(Config.model_fields))}"
        )


def _all_faults(path: Path | None, error: ValidationError) -> str:
    origin = ", ".join([str(path) if path else "built-in defaults", *_variables()])
    lines = []
    for fault in error.errors():
        field = ".".join(str(part) for part in fault["loc"]) or "(whole file)"
        lines += [f"  {field}: {rule}{_received(field, fault)}" for rule in _rules(fault)]
    return "\n".join([f"{origin}: {len(lines)} fault(s)", *lines])


def _rules(fault: Any) -> list[str]:
    if fault["type"] == "extra_forbidden":
        return ["no such setting"]
    return str(fault["msg"]).removeprefix("Value error, ").splitlines()


def _received(field: str, fault: Any) -> str:
    value = fault.get("input")
    # What an unknown setting was to hold may be a secret, and says nothing about its name.
    is_secret = "password" in field or fault["type"] == "extra_forbidden"
    source = _variable_of(fault["loc"])
    if isinstance(value, (dict, list)) or is_secret:
        return f" (from {source})" if source else ""
    return f" (received {value!r} from {source})" if source else f" (received {value!r})"


def _variable_of(field: tuple[str | int, ...]) -> str:
    """Return the environment variable that a value came from; empty where the file says it."""
    variables = {name.upper(): name for name in os.environ}
    parts = [str(part).upper() for part in field]
    names = (_PREFIX + _DELIMITER.join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((variables[name] for name in names if name in variables), "")

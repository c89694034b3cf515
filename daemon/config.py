"""The configuration: one TOML file, environment overrides, read once, frozen.

Owns every setting with its default, unit and reason. Nothing here opens a file other than the
TOML file, and nothing else reads the environment.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from daemon.errors import ConfigurationError
from model.runtime_plan import url_fault

CONFIG_VARIABLE = "MEDIMGD_CONFIG"
SEARCH_PATH = (Path("medimgd.toml"), Path("/etc/medimgd/medimgd.toml"))

AETitle = Annotated[
    str, Field(min_length=1, max_length=16, pattern=r"^[ -\[\]-~]*[!-\[\]-~][ -\[\]-~]*$")
]
"""An AE title: 1 to 16 printable ASCII characters, no backslash (PS3.5 6.2)."""
FileName = Annotated[Path | None, BeforeValidator(lambda value: value or None)]
"""A file that need not be named; an empty text names none."""
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=366 * 86400.0, allow_inf_nan=False)]
Days = Annotated[float, Field(gt=0, le=36600.0, allow_inf_nan=False)]
LeaseSeconds = Annotated[float, Field(ge=10, le=86400.0, allow_inf_nan=False)]
"""At least a few heartbeats, or work in hand would count as abandoned."""


MOST_RECEIVERS_BY_ITSELF = 4
MEBIBYTE = 1024 * 1024


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SiteSection(_Section):
    """Where this installation keeps its state, and its name."""

    data_folder: Path = Path("run")
    """Holds the database, the spool and nothing else; put it on a disk that is backed up."""
    node_id: str = Field(default_factory=socket.gethostname, min_length=1, max_length=64)
    """Written as device serial number into every result."""


PASSWORD_HASH = re.compile(r"scrypt\$[0-9a-f]{32}\$[0-9a-f]{128}")
"""What ``medimgd config hash-password`` prints."""


class PeerSection(_Section):
    """One rule of who may send: an AE title (or ``*``) from a network."""

    ae_title: AETitle = "*"
    network: str = "127.0.0.0/8"
    allow: bool = True
    """False bars whom this rule matches; the most specific rule decides."""
    maximum_associations: int = Field(default=0, ge=0, le=1000)
    """Open at once by this rule, beside the general limits; 0 for no limit of its own."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Where this peer listens, for reports on storage commitment."""
    host: Annotated[str, Field(min_length=1)] | None = None
    """Its host name, where that is not the address it calls from."""

    @field_validator("network")
    @classmethod
    def _is_a_network(cls, value: str) -> str:
        ipaddress.ip_network(value, strict=False)
        return value

    @model_validator(mode="after")
    def _host_needs_a_port(self) -> PeerSection:
        if self.host is not None and self.port is None:
            raise ValueError(
                f"the host {self.host!r} of a peer means nothing without its port: set both"
            )
        return self


class TLSSection(_Section):
    """TLS at the receiver: every connection must speak it once a certificate is named."""

    certificate_file: FileName = None
    """PEM: the receiver's certificate, then the intermediate ones that lead to the root. A changed
    file is taken up for new connections without a restart."""
    key_file: FileName = None
    """PEM: the private key of that certificate, readable by medimgd alone."""
    key_password_file: FileName = None
    """Text: the password of the key in one line, where the key is encrypted."""
    ca_file: FileName = None
    """PEM: the authorities, or single certificates, that vouch for senders."""
    client_certificates: Literal["auto", "required", "none"] = "auto"
    """Whether a sender must show a certificate that `ca_file` vouches for; ``auto`` requires one
    as soon as there is a `ca_file`."""

    @property
    def enabled(self) -> bool:
        """True when connections are encrypted."""
        return self.certificate_file is not None

    @property
    def requires_client_certificate(self) -> bool:
        """True when senders have to show a certificate."""
        if self.client_certificates == "auto":
            return self.ca_file is not None
        return self.client_certificates == "required"

    @model_validator(mode="after")
    def _certificate_and_key_go_together(self) -> TLSSection:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError(
                "receiver.tls.certificate_file and receiver.tls.key_file go together: "
                "set both or neither"
            )
        others = self.key_password_file or self.ca_file or self.client_certificates != "auto"
        if not self.enabled and others:
            raise ValueError(
                "receiver.tls settings mean nothing without receiver.tls.certificate_file and "
                "receiver.tls.key_file: set these, or remove the others"
            )
        if self.requires_client_certificate and self.ca_file is None:
            raise ValueError(
                "receiver.tls.client_certificates is 'required', but receiver.tls.ca_file does "
                "not say who vouches for them: set it"
            )
        return self


class UserSection(_Section):
    """One user who may send, as user identity negotiation names it (PS3.7 D.3.3.7)."""

    name: str = Field(min_length=1, max_length=64)
    password_hash: SecretStr = SecretStr("")
    """From ``medimgd config hash-password``. Without one the name alone admits."""

    @field_validator("password_hash")
    @classmethod
    def _is_a_hash(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value() and not PASSWORD_HASH.fullmatch(value.get_secret_value()):
            raise ValueError("must come from 'medimgd config hash-password', whole and unchanged")
        return value


class ReceiverSection(_Section):
    """The Storage SCP."""

    address: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0`` for every interface."""
    port: Port = 11112
    """The registered DICOM port (PS3.8 9.1.1). 0 takes any free one, for one process only."""
    processes: int = Field(default=0, ge=0, le=32)
    """Receivers that share the port; 0 is one for each core, four at most: one core's worth of
    Python receives what a fast sender sends, and more than four meet the limits of the disk."""
    ae_title: AETitle = "MEDIMGD"
    """The called AE title that senders must use."""
    accept_any_called_ae: bool = False
    peers: tuple[PeerSection, ...] = (PeerSection(), PeerSection(network="::1/128"))
    """Who may send. The default admits this machine only. Of the rules that match, the most
    specific decides: an exact AE title before ``*``, then the longest network prefix.
    ``allow = false`` bars instead; ``maximum_associations`` limits what one rule admits at once;
    ``port`` (and ``host``) say where reports on storage commitment go."""
    users: tuple[UserSection, ...] = ()
    """Who may send, by user identity negotiation; none asks for no user. As soon as there is one,
    an association without a valid user is rejected."""
    maximum_associations: int = Field(default=50, ge=1, le=1000)
    """Open at once, over all receivers of this host; one more is rejected as transient."""
    maximum_associations_per_address: int = Field(default=0, ge=0, le=1000)
    """Of them from one address, so that one sender cannot shut out the others; 0 is three
    quarters."""
    maximum_waiting_studies: int = Field(default=5000, ge=0)
    """While more complete studies than this wait for preparation or inference, new associations
    that may bring instances are rejected as transient; 0 sets no limit. Weeks of a busy
    site: it is there for the day on which nobody sees that the models stand still."""
    minimum_free_mib: int = Field(default=1024, ge=0)
    """Below this much free disk new associations are rejected as transient and every C-STORE of an
    open one is answered A700; the sender retries later."""
    network_timeout_seconds: Seconds = 60.0
    request_timeout_seconds: Seconds = 30.0
    """How long a connection may take to ask for an association."""
    storage_commitment: bool = False
    """Whether requests for storage commitment are answered. A modality deletes its images once we
    commit to them, and ``retention.days`` later we delete ours: leave this to the archive unless
    medimgd is the only place that modality sends to, and something else keeps what it holds."""
    tls: TLSSection = TLSSection()

    @property
    def process_count(self) -> int:
        """How many receivers share the port."""
        if self.processes:
            return self.processes
        return 1 if self.port == 0 else min(len(os.sched_getaffinity(0)), MOST_RECEIVERS_BY_ITSELF)

    @model_validator(mode="after")
    def _any_port_is_for_one(self) -> ReceiverSection:
        if self.port == 0 and self.processes > 1:
            raise ValueError(
                f"receiver.port 0 gives each of the {self.processes} receivers another port: name "
                "a port, or set receiver.processes = 1"
            )
        return self

    @model_validator(mode="after")
    def _rules_and_users_are_given_once(self) -> ReceiverSection:
        rules = [
            (peer.ae_title.strip(), str(ipaddress.ip_network(peer.network, strict=False)))
            for peer in self.peers
        ]
        for title, network in rules:
            if rules.count((title, network)) > 1:
                raise ValueError(
                    f"receiver.peers: {title!r} from {network} has more than one rule: keep one"
                )
        names = [user.name for user in self.users]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"receiver.users: {name!r} stands there twice: keep one")
        return self


class StudySection(_Section):
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


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class AdmissionSection(_Section):
    """What a model version must show before this site lets it serve."""

    required: bool = False
    """Whether nothing serves without ``medimgd models admit``, the shipped packages included. When
    false, the highest version serves by itself until a person has admitted or retired one."""
    evaluation_required: bool = True
    """Whether a package without an evaluation report is refused. One is needed for the limits
    below in any case."""
    minimum_auc: Share = 0.0
    """Smallest area under the ROC curve, of each label; 0 sets no limit, as for the next two."""
    minimum_sensitivity: Share = 0.0
    """Smallest sensitivity at the packaged threshold, of each label."""
    minimum_specificity: Share = 0.0
    """Smallest specificity at the packaged threshold, of each label."""
    maximum_subgroup_gap: Share = 1.0
    """Largest distance of AUC, sensitivity or specificity between two subgroups of a column; 1 sets
    no limit."""
    lower_bounds_count: bool = False
    """Whether the lower ends of the confidence intervals must reach the minima, not the values."""


class RemoteSection(_Section):
    """How the server of one model is reached (``runtime = "remote"`` in its manifest)."""

    model: str = Field(min_length=1, max_length=128)
    """``name`` or ``name@version`` of the package."""
    url: str = ""
    """``scheme://host:port`` with http, https, grpc or grpcs; the manifest's when empty."""
    token_file: FileName = None
    """Text: the bearer token in one line; read again for each request."""
    ca_file: FileName = None
    """PEM: the authorities that vouch for the server; the system's when absent."""
    timeout_seconds: Seconds = 30.0
    """For each request, from connecting to the last byte."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        fault = url_fault(value) if value else ""
        if fault:
            raise ValueError(fault)
        return value


class ModelsSection(_Section):
    """Which model packages may serve."""

    folders: tuple[Path, ...] = ()
    """Searched besides ``<data_folder>/models`` and the packages medimgd ships."""
    bundled: bool = True
    """Whether the packages shipped with medimgd take part."""
    disabled: tuple[str, ...] = ()
    """``name`` or ``name@version`` of packages that must not run."""
    remote: tuple[RemoteSection, ...] = ()
    """How servers that compute models are reached, one block for each: ``model`` and, where they
    differ from the package's manifest or the defaults, ``url``, ``token_file``, ``ca_file`` and
    ``timeout_seconds``."""
    admission: AdmissionSection = AdmissionSection()


class WorkerSection(_Section):
    """The process that runs the networks."""

    maximum_batch: int = Field(default=8, ge=1, le=256)
    lease_seconds: LeaseSeconds = 120.0
    """A silent worker's jobs go back to the queue after this long."""
    maximum_attempts: int = Field(default=3, ge=1)
    device: Literal["auto", "cpu"] = "auto"
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of one computation; 0 leaves it to the runtime: one for each core as a rule."""


class DestinationSection(_Section):
    """One archive that receives the results."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    host: str = Field(min_length=1)
    port: Annotated[int, Field(ge=1, le=65535)]
    ae_title: AETitle
    calling_ae_title: AETitle | None = None
    """Our AE title towards this archive; the receiver's when absent."""
    timeout_seconds: Seconds = 30.0
    confirm: bool = True
    """Ask by C-FIND whether what was sent is there; peers without C-FIND stay at ``sent``."""
    tls: bool = False
    """Whether this archive is called with TLS; we show it the receiver's certificate, if any."""
    ca_file: FileName = None
    """PEM: the authorities, or the single certificate, that vouch for this archive; those of
    ``receiver.tls`` when absent."""


class ResultsSection(_Section):
    """What is written back."""

    send_refusals: bool = False
    """Whether "analysis not performed" goes to the archives too; the worklist always shows it."""
    title: Literal["126000", "private"] = "126000"
    """Root title of the report: Imaging Measurement Report, or a private one for OHIF viewers."""
    first_retry_seconds: Seconds = 10.0
    longest_retry_seconds: Seconds = 4 * 3600.0
    give_up_after_days: Days = 14.0


class WebSection(_Section):
    """The worklist page."""

    enabled: bool = True
    address: str = "127.0.0.1"
    port: Port = 8042
    user: str = ""
    password_hash: SecretStr = SecretStr("")
    """From ``medimgd config hash-password``; needed to listen anywhere but on loopback."""
    finding_order: tuple[str, ...] = ()
    """Labels from worst to mildest; labels not named follow in alphabetical order."""

    @field_validator("password_hash")
    @classmethod
    def _is_a_hash(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value() and not value.get_secret_value().startswith("scrypt$"):
            raise ValueError("must come from 'medimgd config hash-password', not a password")
        return value

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
    def _user_and_password_go_together(self) -> WebSection:
        if bool(self.user) != bool(self.password_hash.get_secret_value()):
            raise ValueError("web.user and web.password_hash go together: set both or neither")
        return self

    @model_validator(mode="after")
    def _needs_a_password_elsewhere(self) -> WebSection:
        protected = bool(self.user and self.password_hash.get_secret_value())
        if self.enabled and not self.is_loopback and not protected:
            raise ValueError(
                f"web.address {self.address!r} is not loopback: set web.user and "
                "web.password_hash (medimgd config hash-password) or use 127.0.0.1"
            )
        return self


class RetentionSection(_Section):
    """How long finished studies keep their pixels here."""

    days: Days = 30.0


class LogSection(_Section):
    """How the processes speak."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    style: Literal["text", "json"] = "text"


class Config(BaseSettings):
    """Everything an installation can decide. Absent sections take their defaults."""

    model_config = SettingsConfigDict(
        env_prefix="MEDIMGD_", env_nested_delimiter="__", extra="forbid", frozen=True
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
    def _destinations_have_one_name_each(self) -> Config:
        names = [destination.name for destination in self.destinations]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"destinations: the name {repeated[0]!r} is used more than once")
        return self

    @model_validator(mode="after")
    def _archives_with_tls_can_be_trusted(self) -> Config:
        for each in self.destinations:
            if each.tls and not (each.ca_file or self.receiver.tls.ca_file):
                raise ValueError(
                    f"destinations: {each.name!r} is called with TLS, but nothing says who vouches "
                    "for it: set its ca_file, or receiver.tls.ca_file"
                )
            if each.ca_file and not each.tls:
                raise ValueError(
                    f"destinations: {each.name!r} has a ca_file, but is called without TLS: "
                    "set tls = true, or remove ca_file"
                )
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Config:
        if self.web.enabled and self.receiver.port and self.receiver.port == self.web.port:
            raise ValueError(f"receiver.port and web.port are both {self.web.port}")
        return self

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
    return Config.model_construct(**{name: getattr(loaded, name) for name in Config.model_fields})


def _refuse_unknown_variables() -> None:
    """A misspelt variable would otherwise be ignored in silence."""
    prefix, delimiter = "MEDIMGD_", "__"
    nested = [name for name in os.environ if name.startswith(prefix) and delimiter in name]
    known = {section.upper() for section in Config.model_fields}
    unknown = sorted(n for n in nested if n[len(prefix) :].partition(delimiter)[0] not in known)
    if unknown:
        raise ConfigurationError(
            f"environment: {', '.join(unknown)} names no section of the configuration; "
            f"sections are {', '.join(sorted(Config.model_fields))}"
        )


def _all_faults(path: Path | None, error: ValidationError) -> str:
    origin = str(path) if path else "built-in defaults and environment"
    lines = [f"{origin}: {error.error_count()} fault(s)"]
    for fault in error.errors():
        field = ".".join(str(part) for part in fault["loc"]) or "(whole file)"
        lines.append(f"  {field}: {_rule(fault)}{_received(field, fault)}")
    return "\n".join(lines)


def _rule(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "no such setting"
    return str(fault["msg"]).removeprefix("Value error, ")


def _received(field: str, fault: Any) -> str:
    value = fault.get("input")
    if isinstance(value, (dict, list)) or "password" in field:
        return ""
    return f" (received {value!r})"

"""The settings of the receiver: who may send, over what, and how much at once.

Owns the tables ``[receiver]``, ``[receiver.tls]``, ``[[receiver.peers]]`` and
``[[receiver.users]]`` with defaults and reasons. Opens no file and no socket.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from daemon.settings import AETitle, FileName, PasswordHash, Port, Seconds, Section, refuse_all

MOST_RECEIVERS_BY_ITSELF = 4


class PeerSection(Section):
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


class TLSSection(Section):
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
    def _files_fit_together(self) -> TLSSection:
        refuse_all(self._faults())
        return self

    def _faults(self) -> Iterator[str]:
        others = self.key_password_file or self.ca_file or self.client_certificates != "auto"
        if (self.certificate_file is None) != (self.key_file is None):
            yield (
                "receiver.tls.certificate_file and receiver.tls.key_file go together: "
                "set both or neither"
            )
        elif not self.enabled and others:
            yield (
                "receiver.tls settings mean nothing without receiver.tls.certificate_file and "
                "receiver.tls.key_file: set these, or remove the others"
            )
        if self.requires_client_certificate and self.ca_file is None:
            yield (
                "receiver.tls.client_certificates is 'required', but receiver.tls.ca_file does "
                "not say who vouches for them: set it"
            )


class UserSection(Section):
    """One user who may send, as user identity negotiation names it (PS3.7 D.3.3.7)."""

    name: str = Field(min_length=1, max_length=64)
    password_hash: PasswordHash = SecretStr("")
    """From ``medimgd config hash-password``. Without one the name alone admits."""


class ReceiverSection(Section):
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

    @field_validator("ae_title")
    @classmethod
    def _is_one_title(cls, value: str) -> str:
        if value.strip() == "*":
            raise ValueError(
                "'*' is no AE title to call others by: name one, and set "
                "receiver.accept_any_called_ae = true to be called by any"
            )
        return value

    @property
    def process_count(self) -> int:
        """How many receivers share the port."""
        if self.processes:
            return self.processes
        return 1 if self.port == 0 else min(len(os.sched_getaffinity(0)), MOST_RECEIVERS_BY_ITSELF)

    @model_validator(mode="after")
    def _settings_agree(self) -> ReceiverSection:
        refuse_all(self._faults())
        return self

    def _faults(self) -> Iterator[str]:
        if self.port == 0 and self.processes > 1:
            yield (
                f"receiver.port 0 gives each of the {self.processes} receivers another port: name "
                "a port, or set receiver.processes = 1"
            )
        rules = [
            (peer.ae_title.strip(), str(ipaddress.ip_network(peer.network, strict=False)))
            for peer in self.peers
        ]
        for title, network in sorted({rule for rule in rules if rules.count(rule) > 1}):
            yield f"receiver.peers: {title!r} from {network} has more than one rule: keep one"
        names = [user.name for user in self.users]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"receiver.users: {name!r} stands there twice: keep one"

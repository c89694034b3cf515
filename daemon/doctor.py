"""``medimgd doctor``: the questions that fill every forum thread, asked and answered at once.

Owns the checks. Each says what it looked at, whether it is well, and what to do if not. Changes
nothing but a small file it writes to the spool's disk and removes again.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from daemon.catalogue import known_standings, serving, state_in_words, state_of
from daemon.config import Config
from daemon.confirming import peer_of
from daemon.dangling_settings import dangling_settings
from daemon.door import tls_call_to_ourselves, tls_files_of
from daemon.errors import DataFolderUnusable
from daemon.status import MEBIBYTE, ProcessStatus, read_status
from dicom_io.association import Destination
from dicom_io.certificates import Certificate, read_certificates
from dicom_io.decoder_trials import try_decoders
from dicom_io.errors import MedimgdError, UnusableCertificate
from dicom_io.sending import echo
from dicom_io.tls import TLSFiles, server_context
from dicom_io.wording import number_of
from model.runtimes.opening import installed_runtimes
from storage.database import open_database
from storage.errors import DatabaseMissing

EXPIRY_WARNING_DAYS = 30
"""A hospital's certificate authority may take weeks for a new certificate."""

SLOW_SYNC_SECONDS = 0.2
"""A disk that takes longer than this for one small sync cannot keep up with a modality."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One check."""

    subject: str
    ok: bool
    detail: str
    """What was found, and what to do when it is not well."""
    warning: bool = False
    """It works, and should not stay as it is."""


def examine(config: Config) -> Iterator[Diagnosis]:
    """Yield every diagnosis; a check that breaks is itself a diagnosis."""
    checks: tuple[Callable[[Config], Iterator[Diagnosis]], ...] = (
        _disk, _database, _certificates, _port, _peers, _users, _commitment,
        _decoders, _models, _settings, _runtimes, _destinations,
    )  # fmt: skip
    for check in checks:
        try:
            yield from check(config)
        except (MedimgdError, OSError) as error:
            yield Diagnosis(check.__name__.strip("_"), ok=False, detail=str(error))


def _disk(config: Config) -> Iterator[Diagnosis]:
    try:
        folder = _nearest_folder(config.site.data_folder.resolve())
        seconds = _sync_seconds(folder)
    except OSError as error:
        raise DataFolderUnusable(config.site.data_folder, error) from error
    yield Diagnosis(
        "disk sync",
        ok=seconds < SLOW_SYNC_SECONDS,
        detail=f"{folder}: writing and syncing 1 MiB took {seconds * 1000:.0f} ms"
        + ("" if seconds < SLOW_SYNC_SECONDS else "; use a faster or less busy disk"),
    )
    usage = os.statvfs(folder)
    free = usage.f_bavail * usage.f_frsize // MEBIBYTE
    enough = free >= config.receiver.minimum_free_mib
    yield Diagnosis(
        "disk space",
        ok=enough,
        detail=f"{free} MiB free, reception stops below {config.receiver.minimum_free_mib}"
        + ("" if enough else "; free space or lower receiver.minimum_free_mib"),
    )


def _nearest_folder(folder: Path) -> Path:
    """Return the folder, or where it is to be made: it belongs to whoever makes it."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    return there


def _sync_seconds(folder: Path) -> float:
    path = folder / f".doctor-{os.getpid()}"
    started = time.monotonic()
    try:
        with path.open("wb") as file:
            file.write(b"\0" * MEBIBYTE)
            file.flush()
            os.fsync(file.fileno())
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
    return time.monotonic() - started


def _database(config: Config) -> Iterator[Diagnosis]:
    try:
        database = open_database(config.database_path, read_only=True)
    except DatabaseMissing:
        detail = "none yet: the first 'medimgd run' creates it"
    else:
        database.close()
        detail = f"{config.database_path} opens and is current"
    yield Diagnosis("database", ok=True, detail=detail)


def _port(config: Config) -> Iterator[Diagnosis]:
    # Any free one, where the setting is 0: which, is known of a receiver that listens only.
    port = config.receiver.port or _port_of_the_living(config)
    yield _answer_on(port, config) if port else _place_to_listen(config, "")


def _answer_on(port: int, config: Config) -> Diagnosis:
    section = config.receiver
    local = "127.0.0.1" if section.address in ("0.0.0.0", "::") else section.address  # noqa: S104
    answer = echo(
        Destination("medimgd", local, port, section.ae_title, section.ae_title,
                    connect_timeout_seconds=3.0, association_timeout_seconds=5.0,
                    response_timeout_seconds=5.0, tls=tls_call_to_ourselves(section.tls))
    )  # fmt: skip
    if answer.ok:
        how = " with TLS" if section.tls.enabled else ""
        return Diagnosis("receiver", ok=True, detail=f"answers C-ECHO on {local}:{port}{how}")
    if _living_receivers(config):
        return Diagnosis(
            "receiver", ok=True,
            detail=f"runs; C-ECHO from this machine is not answered ({answer.detail}). If "
            "receiver.peers or receiver.users leaves this machine out, that is as it should be",
        )  # fmt: skip
    return _place_to_listen(config, answer.detail)


def _place_to_listen(config: Config, called: str) -> Diagnosis:
    """Say whether a receiver could listen where it is to; `called` is what became of a C-ECHO."""
    section = config.receiver
    fault = _fault_of_binding(section.address, section.port)
    if fault is None and not section.port:
        return Diagnosis(
            "receiver", ok=True, warning=True,
            detail="none listens; receiver.port = 0 takes any free port, another one at each "
            "start: set one that senders can be told",
        )  # fmt: skip
    detail = f"not running; port {section.port} is free for it"
    if fault is not None and fault.errno == errno.EADDRINUSE:
        detail = (
            f"port {section.port} cannot be taken and no medimgd answers there "
            f"({called}): stop what holds it, or set receiver.port"
        )
    elif fault is not None:
        detail = (
            f"not running; cannot listen on {section.address} port {section.port} "
            f"({fault.strerror or fault}): set receiver.address to an address of this machine, "
            "0.0.0.0 for all of them (ports below 1024 need a privilege)"
        )
    return Diagnosis("receiver", ok=fault is None, detail=detail)


def _living_receivers(config: Config) -> list[ProcessStatus]:
    processes = read_status(config, datetime.now(UTC)).processes
    return [each for each in processes if each.role == "receiver" and each.alive]


def _port_of_the_living(config: Config) -> int:
    """Return the port that a receiver listens on; 0 where none runs."""
    ports = (int(each.detail.get("port", 0)) for each in _living_receivers(config))
    return next(ports, 0)


def _fault_of_binding(address: str, port: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error
    return None


def _peers(config: Config) -> Iterator[Diagnosis]:
    rules = ", ".join(
        f"{'' if peer.allow else 'not '}{peer.ae_title} from {peer.network}"
        for peer in config.receiver.peers
    )
    yield Diagnosis("who may send", ok=True, detail=rules or "this machine only")


def _users(config: Config) -> Iterator[Diagnosis]:
    section = config.receiver
    if not section.users:
        return
    by_name_alone = [user.name for user in section.users if not user.password_hash]
    in_the_clear = len(by_name_alone) < len(section.users) and not section.tls.enabled
    yield Diagnosis(
        "users that may send", ok=True,
        detail=", ".join(user.name for user in section.users)
        + (f"; without password: {', '.join(by_name_alone)}" if by_name_alone else "")
        + ("; passwords cross the network readable: set receiver.tls" if in_the_clear else ""),
        warning=in_the_clear,
    )  # fmt: skip


def _commitment(config: Config) -> Iterator[Diagnosis]:
    section = config.receiver
    if not section.storage_commitment:
        return
    called = {destination.ae_title for destination in config.destinations}
    without_port = [
        f"{peer.ae_title} from {peer.network}"
        for peer in section.peers
        if peer.allow and peer.port is None and peer.ae_title not in called
    ]
    unknown = f"; no port is known for {', '.join(without_port)}" if without_port else ""
    yield Diagnosis(
        "storage commitment", ok=True,
        detail="on: senders may delete what we commit to, and we delete it "
        f"{config.retention.days:g} days after the last word about its study{unknown}",
        warning=bool(without_port),
    )  # fmt: skip


def _certificates(config: Config) -> Iterator[Diagnosis]:
    for path in _trusted_files(config):
        yield from _validity("trusted certificate", path)
    files = tls_files_of(config.receiver.tls)
    if files is None:
        return
    yield from _validity("receiver certificate", files.certificate_file)
    try:
        server_context(files)
    except UnusableCertificate as error:
        yield Diagnosis("TLS", ok=False, detail=str(error))
    else:
        yield _key_secrecy(files)


def _trusted_files(config: Config) -> Iterator[Path]:
    named = {config.receiver.tls.ca_file, *(each.ca_file for each in config.destinations)}
    yield from sorted(path for path in named if path is not None)


def _validity(subject: str, path: Path) -> Iterator[Diagnosis]:
    try:
        certificates = read_certificates(path)
    except UnusableCertificate as error:
        yield Diagnosis(subject, ok=False, detail=str(error))
        return
    for certificate in certificates:
        yield _validity_of(subject, certificate, path, datetime.now(UTC))


def _validity_of(subject: str, certificate: Certificate, path: Path, now: datetime) -> Diagnosis:
    who = f"{certificate.subject or 'without a name'} ({path})"
    fault = certificate.fault_at(now)
    if fault:
        return Diagnosis(subject, ok=False, detail=f"{who} is {fault}: put a valid one there")
    days = (certificate.not_after - now).days
    detail = f"{who} expires on {certificate.not_after:%Y-%m-%d}, in {number_of(days, 'day')}"
    if days >= EXPIRY_WARNING_DAYS:
        return Diagnosis(subject, ok=True, detail=detail)
    return Diagnosis(
        subject, ok=True, detail=f"{detail}: put its successor there in time", warning=True
    )


def _key_secrecy(files: TLSFiles) -> Diagnosis:
    others = files.key_file.stat().st_mode & (stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH)
    detail = f"certificate and key fit together; client certificates are {_asked(files)}"
    if not others:
        return Diagnosis("TLS", ok=True, detail=detail)
    detail += f"; {files.key_file} is open to other users: chmod 600 it"
    return Diagnosis("TLS", ok=True, detail=detail, warning=True)


def _asked(files: TLSFiles) -> str:
    return "required" if files.requires_peer_certificate else "not asked for"


def _decoders(config: Config) -> Iterator[Diagnosis]:
    del config
    for syntax in try_decoders():
        yield Diagnosis(
            f"decoder {syntax.name}",
            ok=syntax.available,
            detail=syntax.detail if syntax.available else
            f"{syntax.detail}; install the pinned requirements again",
        )  # fmt: skip


def _models(config: Config) -> Iterator[Diagnosis]:
    standings = known_standings(config)
    now = serving(config, standings)
    if not now.packages:
        yield Diagnosis(
            "models", ok=False,
            detail="no model serves: every study ends as unmatched; see 'medimgd models list', "
            "'medimgd models add' and 'medimgd models admit'",
        )  # fmt: skip
    for item in now.catalogue.installed:
        yield Diagnosis(
            f"model {item.title}", ok=not item.faults,
            detail="; ".join(item.faults) or state_in_words(state_of(item, now, standings)),
        )  # fmt: skip
    for title, fault in now.out_of_order.items():
        if title not in {item.title for item in now.catalogue.broken}:
            yield Diagnosis(f"model {title}", ok=False, detail=fault)


def _settings(config: Config) -> Iterator[Diagnosis]:
    for sentence in dangling_settings(config):
        yield Diagnosis("setting", ok=True, detail=sentence, warning=True)


def _runtimes(config: Config) -> Iterator[Diagnosis]:
    needed = {package.runtime.kind for package in serving(config, known_standings(config)).packages}
    for kind, libraries in installed_runtimes().items():
        absent = f"not installed: pip install 'medimgd[{kind}]' where a package needs it"
        yield Diagnosis(
            f"runtime {kind}", ok=bool(libraries) or kind not in needed, detail=libraries or absent
        )


def _destinations(config: Config) -> Iterator[Diagnosis]:
    if not config.destinations:
        yield Diagnosis(
            "destinations", ok=False,
            detail="none configured: results stay here; add a [[destinations]] block",
        )  # fmt: skip
    for section in config.destinations:
        answer = echo(
            replace(
                peer_of(section, config),
                connect_timeout_seconds=5.0,
                association_timeout_seconds=10.0,
                response_timeout_seconds=10.0,
            )
        )
        yield Diagnosis(
            f"destination {section.name}", ok=answer.ok,
            detail=f"{answer.detail} ({answer.seconds * 1000:.0f} ms)",
        )  # fmt: skip

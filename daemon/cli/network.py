"""``medimgd send`` and ``medimgd echo``: what an administrator tries first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.output import (
    AsJSON,
    failures_become_exit_codes,
    print_json,
    printable,
    say,
)
from daemon.exit_codes import ExitCode
from dicom_io.wording import number_of

if TYPE_CHECKING:
    from dicom_io.association import Destination
    from dicom_io.tls import TLSCall

HOST_AND_PORT = "HOST:PORT"
DEFAULT_CALLING = "MEDIMGD"

CalledAE = Annotated[str, typer.Option("--called", help="Called AE title.")]
CallingAE = Annotated[str, typer.Option("--calling", help="Calling AE title.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for an answer.", min=0.1)]
TLSAuthority = Annotated[
    Path | None,
    typer.Option("--tls-ca", help="Speak TLS; PEM file of what vouches for the peer."),
]
TLSCertificate = Annotated[
    Path | None, typer.Option("--tls-cert", help="PEM file: the certificate we show.")
]
TLSKey = Annotated[Path | None, typer.Option("--tls-key", help="PEM file: its private key.")]


def send(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.", exists=True)],
    to: Annotated[str, typer.Option("--to", metavar=HOST_AND_PORT, help="Who receives them.")],
    called: CalledAE = "MEDIMGD",
    calling: CallingAE = DEFAULT_CALLING,
    timeout: Timeout = 30.0,
    tls_ca: TLSAuthority = None,
    tls_cert: TLSCertificate = None,
    tls_key: TLSKey = None,
    as_json: AsJSON = False,
) -> None:
    """Send DICOM files by C-STORE, each in its own transfer syntax, byte for byte."""
    from dicom_io.sending import PathOutcome, send_paths

    failed: list[PathOutcome] = []
    sent = 0
    outcomes = []
    destination = _destination(to, called, calling, timeout, _tls(tls_ca, tls_cert, tls_key))
    with failures_become_exit_codes():
        for result in send_paths(destination, paths):
            outcomes.append(result)
            if result.outcome.is_delivered:
                sent += 1
            else:
                failed.append(result)
    if as_json:
        print_json({"sent": sent, "failed": len(failed), "outcomes": outcomes})
    else:
        for result in failed:
            typer.echo(f"{result.path}: {printable(str(result.outcome))}", err=True)
        say(f"{number_of(sent, 'instance')} stored by {to}, {len(failed)} not")
    if failed or not sent:
        raise typer.Exit(ExitCode.PEER)


def echo(
    to: Annotated[str, typer.Argument(metavar=HOST_AND_PORT, help="Who is asked.")],
    called: CalledAE = "MEDIMGD",
    calling: CallingAE = DEFAULT_CALLING,
    timeout: Timeout = 10.0,
    tls_ca: TLSAuthority = None,
    tls_cert: TLSCertificate = None,
    tls_key: TLSKey = None,
    as_json: AsJSON = False,
) -> None:
    """Ask a peer whether it answers on the DICOM level (C-ECHO)."""
    from dicom_io.sending import echo as ask

    destination = _destination(to, called, calling, timeout, _tls(tls_ca, tls_cert, tls_key))
    with failures_become_exit_codes():
        outcome = ask(destination)
    if as_json:
        print_json(outcome)
    else:
        say(f"{outcome.detail} ({outcome.seconds * 1000:.0f} ms)")
    if not outcome.ok:
        raise typer.Exit(ExitCode.PEER)


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> TLSCall | None:
    from dicom_io.tls import TLSCall, TLSFiles

    if (certificate is None) != (key is None):
        raise typer.BadParameter("--tls-cert and --tls-key go together")
    if ca is None:
        if certificate is not None:
            raise typer.BadParameter("--tls-cert needs --tls-ca: what vouches for the peer")
        return None
    if certificate is None or key is None:
        return TLSCall(ca)
    return TLSCall(ca, TLSFiles(certificate, key))


def _destination(
    to: str, called: str, calling: str, timeout: float, tls: TLSCall | None
) -> Destination:
    from dicom_io.association import Destination

    host, colon, port = to.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise typer.BadParameter(f"expected {HOST_AND_PORT}, received {to!r}", param_hint="--to")
    return Destination(
        to, host.strip("[]"), int(port), called, calling,
        connect_timeout_seconds=min(timeout, 10.0),
        association_timeout_seconds=timeout,
        response_timeout_seconds=timeout,
        tls=tls,
    )  # fmt: skip

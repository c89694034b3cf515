"""Peers, TLS and users as the configuration describes them, in ``dicom_io``'s terms.

Owns that translation. Decides nothing itself and opens no file before somebody calls.
"""

from __future__ import annotations

from daemon.config import Config, DestinationSection
from daemon.receiver_settings import ReceiverSection, TLSSection
from daemon.users import Users
from dicom_io.receiving.access import Peer
from dicom_io.receiving.user_identity import Authenticates
from dicom_io.tls import RenewedContext, TLSCall, TLSFiles


def peers_of(section: ReceiverSection) -> tuple[Peer, ...]:
    """Return the rules of who may call."""
    return tuple(
        Peer.from_text(
            peer.ae_title,
            peer.network,
            allow=peer.allow,
            maximum_associations=peer.maximum_associations,
        )
        for peer in section.peers
    )


def tls_files_of(section: TLSSection) -> TLSFiles | None:
    """Return where the certificates lie; None where the receiver speaks without TLS."""
    if section.certificate_file is None or section.key_file is None:
        return None
    return TLSFiles(
        section.certificate_file,
        section.key_file,
        section.ca_file,
        section.requires_client_certificate,
        section.key_password_file,
    )


def acceptor_context_of(section: TLSSection) -> RenewedContext | None:
    """Return the context for connections to us; None without TLS.

    Raises
    ------
    UnusableCertificate
        If the files cannot be used as they lie there.
    """
    files = tls_files_of(section)
    return None if files is None else RenewedContext(files)


def tls_call_to_ourselves(section: TLSSection) -> TLSCall | None:
    """Return how our own receiver is called, under its own certificate; None without TLS.

    That one certificate is trusted and no authority: whatever else answers there is not ours.
    """
    files = tls_files_of(section)
    return None if files is None else TLSCall(files.certificate_file, files)


def tls_call_to(section: DestinationSection, config: Config) -> TLSCall | None:
    """Return how an archive is called, under the receiver's certificate; None without TLS."""
    ca_file = section.ca_file or config.receiver.tls.ca_file
    if not section.tls or ca_file is None:
        return None
    return TLSCall(ca_file, tls_files_of(config.receiver.tls))


def authenticates_of(section: ReceiverSection) -> Authenticates | None:
    """Return the check of user identities; None when nobody is asked for one."""
    return Users(section.users).admits if section.users else None

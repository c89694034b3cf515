"""The receiver's door as the configuration describes it, in ``dicom_io``'s terms.

Owns the translation of peers, TLS files and users. Decides nothing itself.
"""

from __future__ import annotations

import ssl

from daemon.config import ReceiverSection, TLSSection
from daemon.users import Users
from dicom_io.receiving.access import Peer
from dicom_io.receiving.user_identity import Authenticates
from dicom_io.tls import RenewedContext, TLSFiles, client_context


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


def own_requestor_context_of(section: TLSSection) -> ssl.SSLContext | None:
    """Return the context for a call to our own receiver, under its own certificate.

    It trusts that one certificate and no authority: whatever else answers there is not ours.

    Raises
    ------
    UnusableCertificate
        If the files cannot be used as they lie there.
    """
    files = tls_files_of(section)
    return None if files is None else client_context(files.certificate_file, files)


def authenticates_of(section: ReceiverSection) -> Authenticates | None:
    """Return the check of user identities; None when nobody is asked for one."""
    return Users(section.users).admits if section.users else None

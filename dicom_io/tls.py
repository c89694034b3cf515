"""TLS as DICOM wants it: which versions and suites, whose certificates, and what went wrong.

Owns every ``ssl.SSLContext`` and the words for a handshake that failed. Knows nothing of
associations: the listener hands in a connection, a caller takes a context.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dicom_io.certificates import read_certificates
from dicom_io.errors import UnusableCertificate

LOGGER = logging.getLogger(__name__)

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:@SECLEVEL=2"
"""For TLS 1.2: forward secrecy and authenticated encryption only (RFC 9325 4.2). Those of TLS 1.3
are all of this kind. Level 2 asks for RSA keys of at least 2048 bits."""

HANDSHAKE_TIMEOUT_SECONDS = 10.0
"""From connection to the end of the handshake. It takes milliseconds; a peer that drips bytes
holds one waiting place, and no other peer, for this long."""

LOOK_EVERY_SECONDS = 2.0
"""How often the files are looked at for a renewed certificate, at most."""

_HANDSHAKE_RECORD, _ASSOCIATE_REQUEST = b"\x16", b"\x01"


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Where our identity lies and whom we trust."""

    certificate_file: Path
    """PEM: our certificate, then the intermediate ones that lead to the root."""
    key_file: Path
    """PEM: its private key."""
    ca_file: Path | None = None
    """PEM: the authorities, or single certificates, that vouch for peers."""
    requires_peer_certificate: bool = False
    """Whether a peer without a certificate that `ca_file` vouches for is turned away."""
    key_password_file: Path | None = None
    """Text: the password of an encrypted `key_file`, in one line."""

    def paths(self) -> tuple[Path, ...]:
        """Return every file that is named."""
        named = (self.certificate_file, self.key_file, self.ca_file, self.key_password_file)
        return tuple(path for path in named if path is not None)


def server_context(files: TLSFiles) -> ssl.SSLContext:
    """Return the context of an acceptor: TLS 1.2 and 1.3, and nothing that BCP 195 forbids.

    Raises
    ------
    UnusableCertificate
        If a file is missing, the key does not belong to the certificate or cannot be decrypted,
        or the certificate is not valid now.

    References
    ----------
    PS3.15 section B.10 (Non-Downgrading BCP 195 TLS Secure Transport Connection Profile),
    BCP 195 (RFC 8996, RFC 9325).
    """
    context = _bare_context(ssl.PROTOCOL_TLS_SERVER)
    _load_identity(context, files)
    if files.requires_peer_certificate:
        if files.ca_file is None:
            raise UnusableCertificate(
                "client certificates are required, but no file says who vouches for them: "
                "name the authorities' certificates in ca_file"
            )
        _load_trusted(context, files.ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    # Without resumption each connection shows its certificate anew: what was trusted yesterday
    # counts for nothing, and a withdrawn authority is out at once.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0
    return context


def client_context(ca_file: Path, identity: TLSFiles | None = None) -> ssl.SSLContext:
    """Return the context of a requestor that trusts these authorities or single certificates.

    The names in the peer's certificate are not compared with the host that is called: archives
    are called by address, which few certificates name. To trust one archive alone, give its own
    certificate as `ca_file`.

    Parameters
    ----------
    ca_file : Path
        PEM file; the peer's certificate must be in it or lead to one in it.
    identity : TLSFiles, optional
        What we show a peer that asks for a certificate.

    Raises
    ------
    UnusableCertificate
        As `server_context`.
    """
    context = _bare_context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    _load_trusted(context, ca_file)
    if identity is not None:
        _load_identity(context, identity)
    return context


@dataclass(frozen=True, slots=True)
class TLSCall:
    """How to speak TLS with a peer that we call; the files are read at each call."""

    ca_file: Path
    """See `client_context`."""
    identity: TLSFiles | None = None
    """What we show a peer that asks for a certificate."""

    def context(self) -> ssl.SSLContext:
        """Return the context for one call; raises as `client_context`."""
        return client_context(self.ca_file, self.identity)


class RenewedContext:
    """The context of an acceptor, made anew when one of its files has changed.

    Call it at each connection. A renewal that cannot be used is logged once, the last good context
    stays in force, and it is tried again at each look: what failed may have been the time only.

    Raises
    ------
    UnusableCertificate
        From the constructor, as `server_context`.
    """

    def __init__(self, files: TLSFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        # Looked at before they are read: a change in between is then seen at the next look.
        self._seen = self._failed = self._look()
        self._context = server_context(files)
        self._looked_at = time.monotonic()

    def __call__(self) -> ssl.SSLContext:
        """Return the context in force now."""
        with self._lock:
            if time.monotonic() - self._looked_at >= LOOK_EVERY_SECONDS:
                self._looked_at = time.monotonic()
                self._renew()
            return self._context

    def _renew(self) -> None:
        seen = self._look()
        if seen == self._seen:
            return
        try:
            self._context = server_context(self._files)
        except UnusableCertificate as error:
            if seen != self._failed:
                LOGGER.error(
                    "a changed TLS file cannot be used, the last certificate stays in force: %s",
                    error,
                    extra={"action": "certificate not renewed"},
                )
            self._failed = seen
        else:
            self._seen = seen
            LOGGER.info(
                "the TLS certificate was renewed: %s",
                self._files.certificate_file,
                extra={"action": "certificate renewed"},
            )

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_version_of(path) for path in self._files.paths())


class HandshakeFailed(Exception):
    """A connection did not become a TLS one; the text says why and what to do."""


def secure(
    connection: socket.socket, context: ssl.SSLContext, seconds: float
) -> ssl.SSLSocket | None:
    """Return the accepted connection with TLS on it, its handshake yet to be made.

    Returns
    -------
    ssl.SSLSocket or None
        None when the peer hung up without a word, as monitors do that only probe the port.

    Raises
    ------
    HandshakeFailed
        If what the peer says first is not TLS, or it says nothing for so many seconds.
    """
    connection.settimeout(seconds)
    try:
        first = connection.recv(1, socket.MSG_PEEK)
        if not first:
            return None
        if first != _HANDSHAKE_RECORD:
            raise HandshakeFailed(_not_tls(first))
        return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
    except OSError as error:
        raise HandshakeFailed(_handshake_fault(error)) from error


def shake_hands(connection: ssl.SSLSocket, seconds: float) -> None:
    """Make the handshake, all of it within so many seconds.

    Raises
    ------
    HandshakeFailed
        With the reason and what to do about it.
    """
    try:
        # The interpreter counts this timeout over the whole handshake, not for each read.
        connection.settimeout(seconds)
        connection.do_handshake()
    except (OSError, ValueError) as error:
        raise HandshakeFailed(_handshake_fault(error)) from error


def _bare_context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def _load_identity(context: ssl.SSLContext, files: TLSFiles) -> None:
    fault = read_certificates(files.certificate_file)[0].fault_at(datetime.now(UTC))
    if fault:
        raise UnusableCertificate(
            f"certificate {files.certificate_file} is {fault}: install a valid one, "
            "or set this machine's clock"
        )
    password = _password(files)
    try:
        files.key_file.open("rb").close()
        # Without a password OpenSSL would ask for one at the terminal, and wait for ever.
        context.load_cert_chain(files.certificate_file, files.key_file, password=password or "")
    except ssl.SSLError as error:
        raise UnusableCertificate(_identity_fault(files, error, bool(password))) from error
    except OSError as error:
        raise UnusableCertificate(
            f"cannot read {files.key_file}: {error.strerror or error}"
        ) from error


def _password(files: TLSFiles) -> str:
    if files.key_password_file is None:
        return ""
    try:
        return files.key_password_file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableCertificate(
            f"cannot read the key's password from {files.key_password_file}: "
            f"{getattr(error, 'strerror', None) or 'it is not UTF-8 text'}"
        ) from error


_KEY_OF_ANOTHER = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


def _identity_fault(files: TLSFiles, error: ssl.SSLError, has_password: bool) -> str:
    if error.reason in _KEY_OF_ANOTHER:
        return (
            f"key {files.key_file} does not belong to certificate {files.certificate_file}: "
            "name the key that this certificate was requested with"
        )
    if _is_encrypted(files.key_file):
        if not has_password:
            return f"key {files.key_file} is encrypted: name a file with its password"
        return f"the password in {files.key_password_file} does not open {files.key_file}"
    return (
        f"certificate {files.certificate_file} and key {files.key_file} cannot be used "
        f"({error.reason or 'unreadable'}): both must be PEM, RSA keys of at least 2048 bits"
    )


def _is_encrypted(key_file: Path) -> bool:
    # PKCS #8 says so in the first line, the older form in a header.
    try:
        return b"ENCRYPTED" in key_file.read_bytes()
    except OSError:
        return False


def _load_trusted(context: ssl.SSLContext, ca_file: Path) -> None:
    read_certificates(ca_file)
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:
        raise UnusableCertificate(
            f"{ca_file} cannot be used as list of trusted certificates "
            f"({getattr(error, 'reason', None) or error.strerror or 'unreadable'})"
        ) from error
    # A site may trust an intermediate authority, or one device's certificate, and no more.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _version_of(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _not_tls(first: bytes) -> str:
    if first == _ASSOCIATE_REQUEST:
        return (
            "it speaks DICOM without TLS, and this port takes TLS only: switch TLS on at the "
            "sender, or remove receiver.tls"
        )
    return "it speaks neither TLS nor DICOM: find out what scans this port"


_FAULTS = {
    "UNSUPPORTED_PROTOCOL": "it offers no TLS 1.2 or 1.3: update the sender",
    "NO_SHARED_CIPHER": (
        "it offers no cipher suite that BCP 195 allows: switch the sender to the BCP 195 profile "
        "(ECDHE with AES-GCM or ChaCha20)"
    ),
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (
        "it shows no client certificate: give the sender one that ca_file vouches for, or set "
        'client_certificates = "none"'
    ),
}


def _handshake_fault(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it did not finish the TLS handshake in time: find out what holds connections open"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its client certificate is not accepted ({error.verify_message}): give the sender "
            "one that ca_file vouches for, or add its authority to ca_file"
        )
    reason = getattr(error, "reason", None) or ""
    if reason in _FAULTS:
        return _FAULTS[reason]
    if "ALERT" in reason and ("CA" in reason.split("_") or "CERTIFICATE" in reason):
        return (
            f"it does not accept our certificate ({_in_words(reason)}): make the authority of "
            "certificate_file known to the sender"
        )
    if isinstance(error, (ssl.SSLEOFError, ConnectionError)) or not reason:
        return "it hung up in the middle of the TLS handshake: ask the sender's log"
    return f"the TLS handshake failed ({_in_words(reason)}): ask the sender's log"


def requestor_fault(error: ssl.SSLError) -> str:
    """Say why a peer that we called and we could not agree on TLS."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not accepted ({error.verify_message}): trust its authority, or "
            "that certificate itself"
        )
    if reason == "WRONG_VERSION_NUMBER":
        return "it answers without TLS: call it without, or switch TLS on there"
    if _is_alert_of_certificate(reason):
        return f"it does not accept our certificate ({_in_words(reason)})"
    return f"the TLS handshake failed ({_in_words(reason) or 'the connection was closed'})"


def _is_alert_of_certificate(reason: str) -> bool:
    return "ALERT" in reason and ("CA" in reason.split("_") or "CERTIFICATE" in reason)


def _in_words(reason: str) -> str:
    return reason.lower().replace("_", " ")

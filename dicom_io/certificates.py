"""When a certificate is valid and whom it names, read from its own bytes.

Owns PEM files and the few fields of X.509 that an administrator asks for. Decides nothing about
trust: that is OpenSSL's business, through ``tls``.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dicom_io.errors import UnusableCertificate

_BLOCK = re.compile(
    r"-----BEGIN CERTIFICATE-----\s+[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----", re.ASCII
)

# ASN.1 tags as they stand in DER (X.690 8.1.2).
_OID, _EXPLICIT_0 = 0x06, 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_BMP_STRING = 0x1E

_COMMON_NAME, _ORGANISATION, _UNIT = b"\x55\x04\x03", b"\x55\x04\x0a", b"\x55\x04\x0b"
_NAMED_ATTRIBUTES = {_COMMON_NAME: "CN", _ORGANISATION: "O", _UNIT: "OU"}


@dataclass(frozen=True, slots=True)
class Certificate:
    """What an administrator has to know of one certificate."""

    subject: str
    """``CN=..., O=..., OU=...`` as far as they are given; may be empty."""
    not_before: datetime
    """First instant of validity, UTC."""
    not_after: datetime
    """Last instant of validity, UTC."""

    def fault_at(self, now: datetime) -> str:
        """Say why it is not valid at this instant; empty when it is."""
        if now < self.not_before:
            return f"not valid before {self.not_before:%Y-%m-%d %H:%M} UTC"
        if now > self.not_after:
            return f"expired on {self.not_after:%Y-%m-%d %H:%M} UTC"
        return ""


def read_certificates(path: Path) -> tuple[Certificate, ...]:
    """Return the certificates of a PEM file, in their order; the first is the holder's own.

    Raises
    ------
    UnusableCertificate
        If the file cannot be read, holds no certificate, or one that cannot be parsed.

    References
    ----------
    RFC 5280 section 4.1, RFC 7468.
    """
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UnusableCertificate(f"cannot read {path}: {error.strerror or error}") from error
    blocks = _BLOCK.findall(text)
    if not blocks:
        raise UnusableCertificate(
            f"{path} holds no certificate: expected PEM, beginning with "
            "'-----BEGIN CERTIFICATE-----'; convert DER with 'openssl x509 -inform DER'"
        )
    try:
        return tuple(_certificate(ssl.PEM_cert_to_DER_cert(block)) for block in blocks)
    except (ValueError, IndexError) as error:
        raise UnusableCertificate(f"{path} holds a damaged certificate: {error}") from error


def _certificate(der: bytes) -> Certificate:
    ((_, whole),) = _elements(der)
    (_, signed), *_ = _elements(whole)
    # version [0] is absent in version 1; then serialNumber, signature, issuer (RFC 5280 4.1).
    fields = [(tag, value) for tag, value in _elements(signed) if tag != _EXPLICIT_0]
    validity, subject = fields[3], fields[4]
    not_before, not_after = (_instant(tag, value) for tag, value in _elements(validity[1]))
    return Certificate(_subject(subject[1]), not_before, not_after)


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element of a DER string (X.690 8.1)."""
    offset = 0
    while offset < len(der):
        tag, length = der[offset], der[offset + 1]
        offset += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[offset : offset + size], "big")
            offset += size
        if offset + length > len(der):
            raise ValueError("an element is longer than what holds it")
        yield tag, der[offset : offset + length]
        offset += length


def _instant(tag: int, value: bytes) -> datetime:
    text = value.decode("ascii")
    if tag == _GENERALIZED_TIME:
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    if tag != _UTC_TIME:
        raise ValueError(f"a time has tag {tag:#04x}")
    # Two digits from 50 belong to the last century (RFC 5280 4.1.2.5.1); strptime cuts at 69.
    century = "19" if text[:2] >= "50" else "20"
    return datetime.strptime(century + text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _subject(names: bytes) -> str:
    found = []
    for _, relative in _elements(names):
        for _, attribute in _elements(relative):
            (oid_tag, oid), (text_tag, text) = _elements(attribute)
            if oid_tag == _OID and oid in _NAMED_ATTRIBUTES:
                found.append(f"{_NAMED_ATTRIBUTES[oid]}={_text(text_tag, text)}")
    return ", ".join(sorted(found))


def _text(tag: int, value: bytes) -> str:
    encoding = "utf-16-be" if tag == _BMP_STRING else "utf-8"
    text = value.decode(encoding, errors="replace")
    return "".join(c if c.isprintable() else "?" for c in text)

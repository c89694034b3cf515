"""Certificates for tests, made by openssl: an authority, and what it vouches for."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

_CONFIGURATION = """
[ca]
default_ca = authority
[authority]
database = {folder}/index.txt
new_certs_dir = {folder}
certificate = {folder}/ca.pem
private_key = {folder}/ca.key
default_md = sha256
policy = anything
rand_serial = yes
unique_subject = no
x509_extensions = leaf
[anything]
organizationName = optional
commonName = supplied
[leaf]
basicConstraints = CA:FALSE
authorityKeyIdentifier = keyid
"""


@dataclass(frozen=True)
class Identity:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates with any validity; its own is `certificate`."""

    def __init__(self, folder: Path, name: str = "Hospital CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._configuration = folder / "ca.cnf"
        self._configuration.write_text(_CONFIGURATION.format(folder=folder))
        (folder / "index.txt").touch()
        self.certificate, self.key = folder / "ca.pem", folder / "ca.key"
        openssl(
            "req", "-x509", *_NEW_KEY, "-nodes", "-keyout", self.key, "-out", self.certificate,
            "-subj", f"/CN={name}", "-days", "365",
        )  # fmt: skip

    def sign(
        self,
        name: str,
        *,
        begins: timedelta = timedelta(days=-1),
        lasts: timedelta = timedelta(days=100),
        organisation: str = "",
        password: str = "",
    ) -> Identity:
        """Return a new identity, valid from this long after now, for so long."""
        made = Identity(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request = self._folder / f"{name}.csr"
        secrecy = ["-passout", f"pass:{password}"] if password else ["-nodes"]
        subject = (f"/O={organisation}" if organisation else "") + f"/CN={name}"
        openssl(
            "req", *_NEW_KEY, *secrecy, "-utf8", "-keyout", made.key, "-out", request,
            "-subj", subject,
        )  # fmt: skip
        start = datetime.now(UTC) + begins
        openssl(
            "ca", "-batch", "-notext", "-utf8", "-config", self._configuration, "-in", request,
            "-out", made.certificate, "-startdate", _asn1(start), "-enddate", _asn1(start + lasts),
        )  # fmt: skip
        return made


# Elliptic curves: an RSA key takes a hundred times longer to make.
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


def openssl(*arguments: object, check: bool = True, given: str = "") -> str:
    """Run openssl and return what it says."""
    program = shutil.which("openssl")
    if program is None:
        pytest.fail("openssl is not installed: install the package openssl")
    done = subprocess.run(
        [program, *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    if check and done.returncode:
        pytest.fail(f"openssl {arguments[0]}: {done.stderr}")
    return done.stdout + done.stderr


def _asn1(instant: datetime) -> str:
    return f"{instant:%Y%m%d%H%M%SZ}"

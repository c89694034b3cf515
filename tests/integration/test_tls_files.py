"""Certificate and key files as openssl writes them: what is read, and what is said of faults."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicom_io import tls
from dicom_io.certificates import read_certificates
from dicom_io.errors import UnusableCertificate
from dicom_io.tls import RenewedContext, TLSFiles, client_context, server_context
from tests.certificates import Authority, Identity, openssl
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def receiver(authority: Authority) -> Identity:
    return authority.sign("receiver")


def test_a_certificate_is_read_as_openssl_reads_it(authority: Authority) -> None:
    signed = authority.sign("Gerät 7", organisation="Klinik Süd", lasts=timedelta(days=9000))

    (read,) = read_certificates(signed.certificate)

    assert read.subject == "CN=Gerät 7, O=Klinik Süd"
    dates = openssl("x509", "-in", signed.certificate, "-noout", "-dates").splitlines()
    shown = [f"{each:%b %e %H:%M:%S %Y} GMT" for each in (read.not_before, read.not_after)]
    assert dates == [f"notBefore={shown[0]}", f"notAfter={shown[1]}"]


def test_years_after_2049_are_read(authority: Authority) -> None:
    signed = authority.sign("long", lasts=timedelta(days=365 * 40))

    (read,) = read_certificates(signed.certificate)

    assert read.not_after.year >= 2060


def test_a_chain_is_read_in_its_order(authority: Authority, receiver, tmp_path: Path) -> None:
    chain = tmp_path / "chain.pem"
    text = receiver.certificate.read_text() + "some words\n" + authority.certificate.read_text()
    chain.write_text(text.replace("\n", "\r\n"))

    assert [each.subject for each in read_certificates(chain)] == ["CN=receiver", "CN=Hospital CA"]


def test_validity_is_judged_at_an_instant(authority: Authority, receiver: Identity) -> None:
    (read,) = read_certificates(receiver.certificate)

    assert read.fault_at(datetime.now(UTC)) == ""
    assert read.fault_at(read.not_after + timedelta(seconds=1)).startswith("expired on 2")
    assert read.fault_at(read.not_before - timedelta(seconds=1)).startswith("not valid before 2")


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
def test_a_damaged_certificate_is_called_damaged(receiver: Identity, tmp_path: Path, cut) -> None:
    lines = receiver.certificate.read_text().splitlines()
    kept = lines[: 1 + int((len(lines) - 2) * cut)]
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("\n".join([*kept, lines[-1]]))

    with pytest.raises(UnusableCertificate, match=r"damaged\.pem holds (a damaged|no) certificate"):
        read_certificates(damaged)


@pytest.mark.parametrize("position", range(4, 200, 7))
def test_no_byte_of_a_certificate_can_do_worse_than_be_refused(
    receiver: Identity, tmp_path: Path, position: int
) -> None:
    der = bytearray(ssl.PEM_cert_to_DER_cert(receiver.certificate.read_text()))
    der[position] ^= 0xFF
    mutated = tmp_path / "mutated.pem"
    mutated.write_text(ssl.DER_cert_to_PEM_cert(bytes(der)))

    try:
        (read,) = read_certificates(mutated)
    except UnusableCertificate:
        return
    assert read.not_before.tzinfo is UTC


def test_what_is_missing_is_named(authority: Authority, receiver: Identity, tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"

    for files in (
        TLSFiles(absent, receiver.key),
        TLSFiles(receiver.certificate, absent),
        TLSFiles(receiver.certificate, receiver.key, absent, True),
        TLSFiles(receiver.certificate, receiver.key, key_password_file=absent),
    ):
        with pytest.raises(UnusableCertificate, match=r"absent\.pem: No such file"):
            server_context(files)


def test_a_key_of_another_certificate_is_refused(
    authority: Authority, receiver: Identity, tmp_path: Path
) -> None:
    rsa = tmp_path / "rsa.key"
    openssl("genpkey", "-algorithm", "RSA", "-out", rsa)

    for key in (authority.sign("other").key, rsa):
        with pytest.raises(UnusableCertificate, match="does not belong to certificate"):
            server_context(TLSFiles(receiver.certificate, key))


def test_a_key_instead_of_a_certificate_is_refused(receiver: Identity) -> None:
    with pytest.raises(UnusableCertificate, match="holds no certificate"):
        server_context(TLSFiles(receiver.key, receiver.key))


def test_a_certificate_instead_of_a_key_is_refused(receiver: Identity) -> None:
    with pytest.raises(UnusableCertificate, match="cannot be used"):
        server_context(TLSFiles(receiver.certificate, receiver.certificate))


def test_an_encrypted_key_needs_its_password(authority: Authority, tmp_path: Path) -> None:
    signed = authority.sign("guarded", password="open sesame")
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("open sesame\n")
    wrong.write_text("open says me\n")

    with pytest.raises(UnusableCertificate, match="is encrypted: name a file"):
        server_context(TLSFiles(signed.certificate, signed.key))
    with pytest.raises(UnusableCertificate, match="does not open") as caught:
        server_context(TLSFiles(signed.certificate, signed.key, key_password_file=wrong))
    assert "says" not in str(caught.value)
    assert server_context(TLSFiles(signed.certificate, signed.key, key_password_file=right))


@pytest.mark.parametrize(
    ("name", "begins", "words"),
    [("expired", -20, "expired on"), ("early", 5, "not valid before")],
)
def test_a_certificate_that_is_not_valid_now_is_refused(
    authority: Authority, name: str, begins: int, words: str
) -> None:
    signed = authority.sign(name, begins=timedelta(days=begins), lasts=timedelta(days=10))

    with pytest.raises(UnusableCertificate, match=words):
        server_context(TLSFiles(signed.certificate, signed.key))


def test_required_certificates_need_somebody_who_vouches(receiver: Identity) -> None:
    with pytest.raises(UnusableCertificate, match="ca_file"):
        server_context(TLSFiles(receiver.certificate, receiver.key, None, True))


def test_both_sides_forbid_what_bcp_195_forbids(authority: Authority, receiver: Identity) -> None:
    files = TLSFiles(receiver.certificate, receiver.key, authority.certificate, True)

    for context in (server_context(files), client_context(authority.certificate, files)):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.options & ssl.OP_NO_COMPRESSION
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert all(cipher["aead"] for cipher in context.get_ciphers())
        names = {c["name"] for c in context.get_ciphers() if c["protocol"] == "TLSv1.2"}
        assert names
        assert all(name.startswith("ECDHE-") for name in names)


def test_a_renewed_certificate_is_taken_up_and_a_broken_one_is_not(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    # given a context in force
    monkeypatch.setattr(tls, "LOOK_EVERY_SECONDS", 0.0)
    first, second = authority.sign("first"), authority.sign("second")
    files = TLSFiles(tmp_path / "c.pem", tmp_path / "k.pem")
    install(files, first)
    renewed = RenewedContext(files)
    before = renewed()
    assert renewed() is before

    # when only the certificate has been replaced yet, then the old one stays in force, told once
    replace(files.certificate_file, second.certificate)
    assert renewed() is before
    assert renewed() is before
    assert caplog.text.count("does not belong to certificate") == 1

    # and once the key has followed, the new one is in force
    replace(files.key_file, second.key)
    assert renewed() is not before


def test_a_renewed_certificate_that_is_not_valid_yet_is_taken_up_once_it_is(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    # given a context in force, and a certificate installed before its time
    monkeypatch.setattr(tls, "LOOK_EVERY_SECONDS", 0.0)
    files = TLSFiles(tmp_path / "c.pem", tmp_path / "k.pem")
    install(files, authority.sign("at first"))
    renewed = RenewedContext(files)
    before = renewed()
    install(files, authority.sign("early bird", begins=timedelta(seconds=3)))

    # when it is looked at too early, then the old one stays in force, told once
    assert renewed() is before
    assert renewed() is before
    assert caplog.text.count("not valid before") == 1

    # and it comes into force with nobody touching the files again
    assert wait_until(lambda: renewed() is not before, 15)


def install(files: TLSFiles, identity: Identity) -> None:
    replace(files.certificate_file, identity.certificate)
    replace(files.key_file, identity.key)


def replace(path: Path, source: Path) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(source.read_bytes())
    new.replace(path)

"""Other objects than CT slices: large films, tiny objects, compressed ones, and all through TLS.

Expected: large films are bound by copying, tiny ones by what each instance costs; compression
changes nothing, because nothing is decoded; TLS costs the same cipher on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.benchmarks.contenders import FORKING, ORTHANC, OURS, PYNETDICOM
from tests.benchmarks.figures import Table
from tests.benchmarks.material import (
    StudyFiles,
    Workshop,
    fresh_studies,
    write_large_film,
    write_tiny_slice,
)
from tests.benchmarks.receivers import medimgd, storescp
from tests.benchmarks.rounds import Column, Contender, compare, rate_table
from tests.benchmarks.senders import as_sent, dcmsend, storescu
from tests.certificates import Authority, Identity

_ASSOCIATIONS = 2
_FILMS, _TINY, _COMPRESSED, _CIPHERED = 12, 400, 120, 120
"""Instances per association."""
_QUICK_SHARE = 0.25
_FILM_ROWS, _FILM_COLUMNS = 3520, 2840
_COMPRESSED_FILES = (
    "ct_rle.dcm",
    "ct_j2k_lossless_90.dcm",
    "ct_j2k_91.dcm",
    "ct_jpeg_lossless_70.dcm",
    "ct_jpeg_baseline_50.dcm",
    "ct_jpeg_extended_51.dcm",
    "ct_jpegls_80.dcm",
    "ct_jpegls_near_81.dcm",
)
_CONTENDERS = (
    Contender(OURS),
    Contender(FORKING),
    Contender(ORTHANC, 0.25),
    Contender(PYNETDICOM, 0.25),
)
_COUNTS = (
    f"per association, of {_ASSOCIATIONS}: {_FILMS} films of 20 MB, {_TINY} objects of 8 KB, "
    f"{_COMPRESSED} compressed slices; a quarter to Orthanc and pynetdicom, and with --quick"
)


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield a table of kinds of objects and one of TLS."""
    with workshop.passing_room("objects") as folder:
        yield _kinds(workshop, folder)
        yield _through_tls(workshop, folder)


def _kinds(workshop: Workshop, folder: Path) -> Table:
    compressed = [workshop.testdata / "transfer-syntaxes" / name for name in _COMPRESSED_FILES]
    film = write_large_film(folder / "film.dcm", _FILM_ROWS, _FILM_COLUMNS)
    tiny = write_tiny_slice(folder / "tiny.dcm")
    push = partial(dcmsend, nagle=False)
    columns = [
        Column(title, _studies(workshop, sources, number, folder / title), push)
        for title, sources, number in (
            ("20 MB DX", [film], _FILMS),
            ("8 KB", [tiny], _TINY),
            ("compressed", compressed, _COMPRESSED),
        )
    ]
    table = rate_table(
        "Other objects per second from dcmsend, TCP_NODELAY=1",
        _CONTENDERS,
        {column.title: column.title for column in columns},
        compare(workshop, _CONTENDERS, columns, _warm_up(workshop, film)),
    )
    table.notes = [
        _COUNTS,
        "compressed: one CT slice in RLE, JPEG, JPEG-LS and JPEG 2000, each as it lies there",
    ]
    return table


def _through_tls(workshop: Workshop, folder: Path) -> Table:
    authority = Authority(folder / "ca")
    contenders = _tls_contenders(authority.sign("receiver"))
    slices = as_sent(workshop.ct_series, workshop.room("tls-sources"))
    ciphered = ["+tla", "+cf", str(authority.certificate)]
    columns = [
        Column(
            f"{count} assoc.",
            _studies(workshop, slices, _CIPHERED, folder / f"tls-{count}", count),
            partial(storescu, options=ciphered),
        )
        for count in (1, _ASSOCIATIONS)
    ]
    table = rate_table(
        "CT slices per second through TLS from storescu, TCP_NODELAY=1",
        contenders,
        {column.title: column.title for column in columns},
        compare(workshop, contenders, columns, _warm_up(workshop, slices[0])),
    )
    table.notes = [
        f"{_CIPHERED} slices per association (a quarter with --quick)",
        "ECDSA P-256, senders show no certificate; the rows without TLS are the same sender's",
    ]
    return table


def _tls_contenders(identity: Identity) -> list[Contender]:
    settings = (
        f"[receiver.tls]\ncertificate_file = {str(identity.certificate)!r}\n"
        f"key_file = {str(identity.key)!r}\n"
    )
    options = ("--fork", "+tls", str(identity.key), str(identity.certificate), "-ic")
    without = partial(storescu, options=())
    return [
        Contender(medimgd("medimgd, TLS", settings=settings)),
        Contender(storescp("DCMTK --fork, TLS", *options)),
        Contender(OURS, push=without),
        Contender(FORKING, push=without),
    ]


def _studies(
    workshop: Workshop,
    sources: Sequence[Path],
    number: int,
    folder: Path,
    associations: int = _ASSOCIATIONS,
) -> list[StudyFiles]:
    wanted = round(number * _QUICK_SHARE) if workshop.quick else number
    originals = as_sent(sources, workshop.room("objects-as-sent"))
    return list(fresh_studies(originals, associations, folder, wanted))


def _warm_up(workshop: Workshop, source: Path) -> StudyFiles:
    originals = as_sent([source], workshop.room("warm-up-as-sent"))
    return next(fresh_studies(originals, 1, workshop.room("warm-up")))

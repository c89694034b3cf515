"""The coded concepts are spelled as the standard spells them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import pytest
from pydicom.sr._concepts_dict import concepts

from dicom_io.errors import RefusalReason
from dicom_io.results import codes
from dicom_io.vocabulary import Code, PresenceValues

NOT_IN_THE_DICTIONARY = {
    ("410666004", "SCT"),
    ("C0034375", "UMLS"),
    ("%", "UCUM"),
    ("260753009", "SCT"),  # there as "Source (attribute)", the long form of the same concept
}


def all_codes() -> Iterator[Code]:
    for value in vars(codes).values():
        if isinstance(value, Code):
            yield value
        elif isinstance(value, Mapping):
            yield from (one for one in value.values() if isinstance(one, Code))


def meanings(code: Code) -> set[str]:
    found = set()
    for entries in concepts.get(code.scheme, {}).values():
        if code.value in entries:
            found.add(entries[code.value][0])
    return found


@pytest.mark.parametrize("code", sorted(set(all_codes()), key=lambda code: code.value))
def test_a_code_fits_its_attributes(code: Code) -> None:
    assert re.fullmatch(r"[A-Za-z0-9.%-]{1,16}", code.value)
    assert 1 <= len(code.scheme) <= 16
    assert 1 <= len(code.meaning) <= 64


@pytest.mark.parametrize(
    "code",
    [
        code
        for code in sorted(set(all_codes()), key=lambda code: code.value)
        if code.scheme != codes.PRIVATE_SCHEME
        and (code.value, code.scheme) not in NOT_IN_THE_DICTIONARY
    ],
)
def test_a_standard_code_has_the_meaning_of_the_dictionary(code: Code) -> None:
    assert code.meaning in meanings(code)


def test_no_two_meanings_share_one_code() -> None:
    seen: dict[tuple[str, str], str] = {}
    for code in all_codes():
        assert seen.setdefault((code.scheme, code.value), code.meaning) == code.meaning


def test_every_presence_and_every_reason_has_a_code() -> None:
    assert set(codes.PRESENCE) == set(PresenceValues)
    assert set(codes.REFUSAL_REASONS) == set(RefusalReason)
    assert len(set(codes.PRESENCE.values())) == len(PresenceValues)
    assert len(set(codes.REFUSAL_REASONS.values())) == len(RefusalReason)


def test_an_unknown_modality_is_an_other_modality() -> None:
    assert codes.modality_code("CT").meaning == "Computed Tomography"
    assert codes.modality_code("").value == "OT"
    assert codes.procedure_for_modality("MR").value == "25056-3"
    assert codes.procedure_for_modality("DX").value == "363679005"


def test_regions_lead_to_unpaired_body_parts_only() -> None:
    for region in ("39607008", "12738006", "51185008"):
        assert codes.body_part_for_region(region) in codes.UNPAIRED_BODY_PARTS | {"HEAD"}
    assert codes.body_part_for_region("74670003") == ""

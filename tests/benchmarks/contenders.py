"""Who is compared at reception, by the names their rows bear.

Owns the options each is started with, and why.
"""

from __future__ import annotations

from tests.benchmarks.receivers import (
    WITHOUT_SYNC,
    medimgd,
    orthanc_archive,
    pynetdicom,
    storescp,
)

OURS = medimgd()
UNSYNCED = medimgd("medimgd, syncs without effect", WITHOUT_SYNC)
SHIPPED = storescp("DCMTK as shipped", nagle=True)
SERIAL = storescp("DCMTK, TCP_NODELAY", "+xa")
FORKING = storescp("DCMTK --fork, TCP_NODELAY", "--fork", "+xa")
"""With +xa, for compressed transfer syntaxes; without +B, which makes it a little slower."""
BIT_PRESERVING = storescp("DCMTK --fork +B, TCP_NODELAY", "--fork", "+xa", "+B")
"""Writes what it receives as it comes, instead of holding the whole instance."""
ORTHANC = orthanc_archive()
PYNETDICOM = pynetdicom()

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
"""With +xa, for compressed transfer syntaxes."""
TUNED = storescp("DCMTK, +B and PDUs of 128 KiB too", "--fork", "+xa", "+B", "-pdu", "131072")
"""The fastest that DCMTK can be made: it takes longer PDUs, and writes what it receives as it
comes instead of holding the whole instance."""
ORTHANC = orthanc_archive()
PYNETDICOM = pynetdicom()

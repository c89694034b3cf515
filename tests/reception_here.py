"""The parts of a receiver that answer a C-STORE, in the process of the test.

For tests that listen to its calls or make them fail; whoever wants a whole receiver takes
``tests.receiver_lives``.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from daemon.indexing import IndexWriter
from daemon.receiver import IndexedAssociations, SpoolSink, make_server
from daemon.receiver_settings import ReceiverSection
from storage.database import open_database
from storage.spool import Spool


class ReceptionHere:
    """Door, spool and index on a data folder whose database is there."""

    def __init__(self, folder: Path, port: int) -> None:
        self.spool = Spool(folder / "spool", 0)
        self._database = open_database(folder / "medimgd.db")
        self._index = IndexWriter(self._database, "receiver-1")
        sink = SpoolSink(self.spool, self._index, self._database)
        section = ReceiverSection(port=port)
        self._server = make_server(section, sink, IndexedAssociations(self._index))
        self._server.start()
        self._is_over = False

    def end(self) -> None:
        """Finish what is open and write the index; harmless when it has ended."""
        if self._is_over:
            return
        self._is_over = True
        with closing(self._database), closing(self._index):
            self._server.stop()

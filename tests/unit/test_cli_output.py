"""Tables where no terminal is: what reads them by lines finds whole rows and whole UIDs."""

from __future__ import annotations

from daemon.cli.output import print_table

UID = "1.2.826.0.1.3680043.8.498.28214571194177572212693940693308966168"


def test_row_is_one_line_where_no_terminal_is(capsys) -> None:
    cells = ("Motion artefact absent 32.4 % (demonstration model)",) * 5

    print_table(("1", "2", "3", "4", "5", "study UID"), [(*cells, UID), (*cells[:4], "Bar", UID)])

    rows = [line for line in capsys.readouterr().out.splitlines() if "artefact" in line]
    assert [row.split()[-1] for row in rows] == [UID, UID]

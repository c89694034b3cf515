"""The ``medimgd`` command: which commands there are.

Each imports what it needs when it is called, so that ``--help`` answers at once.
"""

from __future__ import annotations

import typer

from daemon.cli import (
    configuration,
    data,
    evaluating,
    maintaining,
    models,
    network,
    observing,
    replaying,
    retrying,
    serving,
    studies,
    training,
)

app = typer.Typer(
    name="medimgd",
    help="A DICOM-aware daemon between modalities, AI models and a PACS.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(serving.run)
app.command("demo")(serving.demo)
app.command("status")(observing.status)
app.command("studies")(studies.studies)
app.command("show")(studies.show)
app.command("explain")(studies.explain)
app.command("retry")(retrying.retry)
app.command("replay")(replaying.replay_result)
app.command("doctor")(maintaining.doctor)
app.command("version")(maintaining.version)
app.command("send")(network.send)
app.command("echo")(network.echo)
app.command("train")(training.train)
app.command("evaluate")(evaluating.evaluate)
app.add_typer(models.app, name="models")
app.add_typer(data.app, name="data")
app.add_typer(configuration.app, name="config")

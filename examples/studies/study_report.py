"""What every study leaves: its command, commit and figures as JSON and as Markdown, and its picture."""

import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime

import matplotlib
import numpy as np

from dataset_webperson import DataError
from dataset_webperson.files import replacing, write_json

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402, F401 - for the studies, after the choice of a backend without a screen

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(HERE, "results")
UNCHANGING = [f":(exclude){folder}" for folder in ("examples/studies/results", "examples/results", "*.md")]


def provenance(command: list[str] | None = None) -> dict[str, str]:
    """The command, which is by default the one that runs, and the commit; "-dirty" where code was changed since."""
    try:
        options = {"cwd": os.path.join(HERE, "..", ".."), "capture_output": True, "text": True, "check": True}
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **options).stdout.strip()
        changes = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", *UNCHANGING]
        commit += "-dirty" if subprocess.run(changes, **options).stdout else ""
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown: not a git clone"
    if not command:
        script = os.path.relpath(sys.argv[0], os.path.join(HERE, "..", ".."))
        command = ["python", script, *_without_folder(sys.argv[1:])]
    return {"command": shlex.join(command), "commit": commit, "date": datetime.now(UTC).isoformat(timespec="seconds")}


def _without_folder(arguments: list[str]) -> list[str]:
    """Where the result goes says nothing of it, and something of the machine."""
    if "--results_dir" not in arguments:
        return arguments
    place = arguments.index("--results_dir")
    return arguments[:place] + arguments[place + 2 :]


def refuse_unfinished(*files: str) -> None:
    """Refuse a table of what is finished where a study has left nothing to make it of.

    Raises:
        DataError: names the first file that is missing.
    """
    for file in files:
        if not os.path.exists(file):
            raise DataError(f"{file}: missing, so nothing is finished here; run the study without --only_finished")


def table(head: list[str], rows: list[list]) -> str:
    """A Markdown table; the first column is words, the others are figures."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def interval(found: dict, digits: int = 2, sign: str = "") -> str:
    """`mean`, `low` and `high` as one cell of a table."""
    mean, low, high = (f"{found[name]:{sign}.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def error_bars(found: list[dict]) -> np.ndarray:
    """How far `low` and `high` are from each `mean`, as pyplot takes them: `(2, N)`."""
    return np.array([[one["mean"] - one["low"], one["high"] - one["mean"]] for one in found]).T


def save_study(name: str, title: str, content: dict, text: str, figure: pyplot.Figure, folder: str = RESULTS) -> None:
    """Write `<name>.json`, `<name>.md` and `<name>.png`, each whole or not at all; prints the Markdown."""
    os.makedirs(folder, exist_ok=True)
    facts = provenance()
    if "arguments" in content:
        content = {**content, "arguments": {k: v for k, v in content["arguments"].items() if k != "results_dir"}}
    write_json(os.path.join(folder, f"{name}.json"), {**facts, **content})
    lines = [f"# {title}", "", f"    {facts['command']}", "", f"Commit {facts['commit']}, {facts['date']}.", "", text]
    lines += ["", f"![{title}]({name}.png)", ""]
    with replacing(os.path.join(folder, f"{name}.md")) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))
    with replacing(os.path.join(folder, f"{name}.png")) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    print("\n".join(lines))

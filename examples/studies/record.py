"""Run a command and keep what it prints, with the command, the commit and the date, as a page.

    python examples/studies/record.py examples/results/ranking.md python examples/benchmark_ranking.py --size cuhk

The page is written when the command has succeeded. Claims of the README are compared with such pages.
"""

import argparse
import os
import subprocess
import sys

from study_report import provenance

from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.files import replacing
from dataset_webperson.findings import DataError


@command
def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("page", help="Markdown file to write")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run; its progress bars are not kept")
    args = parser.parse_args(arguments)
    if not args.command:
        parser.error("give the command after the page")
    facts, printed = provenance(args.command), []
    words = [sys.executable, *args.command[1:]] if args.command[0] == "python" else args.command
    try:
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                printed.append(line)
    except OSError as error:
        raise DataError(f"{words[0]}: {error.strerror}; give a program that is installed") from error
    if process.returncode:
        raise DataError(f"{facts['command']}: ended with code {process.returncode}; {args.page} was not written")
    title = os.path.splitext(os.path.basename(args.page))[0]
    page = [f"# {title}\n\n    {facts['command']}\n\nCommit {facts['commit']}, {facts['date']}.\n\n"]
    tables = any(line.startswith("|") for line in printed)
    page += printed if tables else ["```\n", *printed, "```\n"]
    os.makedirs(os.path.dirname(args.page) or ".", exist_ok=True)
    with replacing(args.page) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("".join(page))


if __name__ == "__main__":
    sys.exit(main())

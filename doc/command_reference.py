"""The reference of commands, in Markdown, from the workflows themselves."""

from __future__ import annotations

import inspect
from pathlib import Path
from textwrap import wrap

from dipy.workflows.docstring_parser import NumpyDocString

from dipy_spinverse.workflows.cli import COMMANDS, command

_HEAD = """# Commands

Every command answers `-h`, and shares with the others:

- `--out_dir`, and `--out_NAME` for the name of each file; `--force` to overwrite; `--log_file`.
- Nothing is overwritten without `--force`, and files appear only when all are complete.
- The exit status is 0, or 1 with a message of one line that says what to change, or 2 if an option
  is unknown.
- Paths may contain wildcards; several scans need `--mix_names` or `--out_strat append`.
- Timings are read from the BIDS sidecar of the b-values (`.json`) if there is one.
"""


def reference() -> str:
    """A page of all commands with their options."""
    return "\n".join([_HEAD, *(_section(name) for name in COMMANDS)])


def _section(name):
    run = command(name)().run
    parts = NumpyDocString(inspect.getdoc(run))
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(run).parameters.values()
    }
    rows = {"inputs": [], "options": [], "outputs": []}
    for option, _, text in parts["Parameters"]:
        default, words = defaults[option], " ".join(" ".join(text).split())
        if default is inspect.Parameter.empty:
            rows["inputs"].append((f"`{option}`", "", words))
        else:
            kind = "outputs" if option.startswith("out_") else "options"
            shown = "" if default is None or default is False or default == "" else f"`{default}`"
            rows[kind].append((f"`--{option}`", shown, words))
    usage = f"{name} {' '.join(cell.strip('`') for cell, _, _ in rows['inputs'])} [options]"
    lines = [f"## {name}", "", f"    {usage}", "", *parts["Summary"], "",
             *wrap(" ".join(parts["Extended Summary"]), 100), ""]  # fmt: skip
    for kind, cells in rows.items():
        if cells:
            lines += [f"| {kind} | default | |", "| --- | --- | --- |"]
            lines += [f"| {' | '.join(map(_safe, row))} |" for row in cells]
            lines.append("")
    return "\n".join(lines)


def _safe(cell):
    return cell.replace("|", "/").replace("<", "&lt;")


if __name__ == "__main__":
    Path(__file__).with_name("commands.md").write_text(reference())

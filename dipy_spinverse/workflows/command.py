"""Base class of commands, whose options are the keyword arguments of their steps.

DIPY creates a command line from the signature and docstring of a workflow's `run`. Here both are
assembled from the steps of a command, so that options that commands share are documented once.
"""

from __future__ import annotations

import errno
import inspect
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from typing import Any, ClassVar

from dipy.workflows.docstring_parser import NumpyDocString
from dipy.workflows.multi_io import io_iterator
from dipy.workflows.workflow import Workflow

from dipy_spinverse.voxels.unfinished import LOCK, alone_in, staging, visible
from dipy_spinverse.workflows.model_options import choices

logger = logging.getLogger("dipy_spinverse")
_OF_IMAGES = (".nii", ".nii.gz")
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Command(Workflow):
    """A workflow whose options are the keyword-only arguments of its steps.

    `steps` are names of methods with numpydoc; arguments without a default are inputs. `outputs`
    are the default file name and the description of each output. :meth:`process` does the work for
    one set of inputs; its files appear together at the end.
    """

    steps: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[dict[str, tuple[str, str]]] = {}
    # Whether several input files are one set; otherwise each is processed separately.
    joint_inputs: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        signature, docstring = _command_line(cls)

        def run(self, *args, **kwargs):
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            del bound.arguments["self"]
            self._run(bound.arguments)

        run.__signature__, run.__doc__ = signature, docstring  # type: ignore[attr-defined]
        cls.run = run  # type: ignore[method-assign]

    def process(self, arguments: dict[str, Any], paths: dict[str, Path]) -> None:
        """Process one set of inputs and options, and write each of `outputs` to its path."""
        raise NotImplementedError

    def call(self, step: str, arguments: dict[str, Any], *values: Any) -> Any:
        """Result of a step for values, and its inputs and options among the arguments."""
        method = getattr(self, step)
        return method(*values, **{name: arguments[name] for name in _keywords(method)})

    def more_paths(self, arguments: dict[str, Any], paths: dict[str, Path]) -> dict[str, Path]:
        """Further files that options request."""
        return {}

    def written(self, paths: dict[str, Path]) -> Iterator[Path]:
        """Files that will be written, as far as they are known before."""
        yield from paths.values()

    def _run(self, arguments: dict[str, Any]) -> None:
        out_dir = arguments.pop("out_dir")
        names = {name: arguments.pop(f"out_{name}") for name in self.outputs}
        check_names({f"out_{name}": file for name, file in names.items()})
        for name, (usual, _) in self.outputs.items():
            check_image(f"out_{name}", names[name], usual)
        parameters = inspect.signature(self.run).parameters
        inputs = [name for name, p in parameters.items() if p.default is p.empty]
        values = [arguments[name] for name in inputs]
        placing = {"output_strategy": self._output_strategy, "mix_names": self._mix_names}
        locked: set[Path] = set()
        with ExitStack() as locks:
            sets = []
            with _naming_folders():
                rows = list(io_iterator(values, out_dir, [*names.values()], **placing))
                if self.joint_inputs:
                    rows = [[[row[0] for row in rows], *rows[0][1:]]]
                for row in rows:
                    options = arguments | dict(zip(inputs, row, strict=False))
                    paths = dict(zip(names, map(Path, row[len(inputs) :]), strict=True))
                    for folder in {path.parent.resolve() for path in paths.values()} - locked:
                        locks.enter_context(alone_in(folder))
                        locked.add(folder)
                    paths |= self.more_paths(options, paths)
                    check_inputs_kept(options, self.written(paths))
                    sets.append((options, paths))
            self._check_files([paths for _, paths in sets])
            for options, paths in sets:
                with appearing_together(paths, self._refuse_to_overwrite) as staged:
                    self.process(options, staged)
                _log_folders(paths)

    def _check_files(self, sets: list[dict[str, Path]]) -> None:
        """Refuse output files that are the same, that exist, or that are folders."""
        count = Counter(path for paths in sets for path in self.written(paths))
        twice = [path for path, n in count.items() if n > 1]
        if twice and len(sets) > 1:
            raise ValueError(
                f"out_dir: {len(sets)} inputs would all be written to {twice[0]}; add "
                "--mix_names, or --out_strat append to write next to each input."
            )
        if twice:
            raise ValueError(
                f"out_dir: two outputs would be written to {twice[0]}; give different names."
            )
        folders = [path for path in count if path.is_dir()]
        if folders:
            raise IsADirectoryError(
                f"{folders[0]} is a folder, and an output of this name would be written; remove "
                "it, or give another --out_dir."
            )
        self._refuse_to_overwrite(count)

    def _refuse_to_overwrite(self, files: Iterable[Path]) -> None:
        existing = [path for path in files if path.exists()]
        if existing and not self._force_overwrite:
            suffix = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
            raise FileExistsError(
                f"{existing[0]} exists{suffix}; add --force to overwrite, or give another "
                "--out_dir."
            )


@contextmanager
def _naming_folders() -> Iterator[None]:
    """Errors of the operating system with the folder that cannot be written to, and the cure."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        path = Path(error.filename)
        folder = path.parent if path.name == LOCK else path
        raise OSError(
            error.errno,
            f"cannot write to the folder {folder} ({str(error.strerror).lower()}); give another "
            "--out_dir, or change its permissions",
        ) from error


@contextmanager
def appearing_together(
    paths: dict[str, Path], check: Callable[[list[Path]], None]
) -> Iterator[dict[str, Path]]:
    """Paths in hidden folders; the files are moved to the given paths unless there is an error.

    `check` refuses what was written to these paths in the meantime.
    """
    with ExitStack() as stack:
        folders = {path.parent for path in paths.values()}
        hidden = {folder: stack.enter_context(staging(folder)) for folder in folders}
        try:
            yield {name: hidden[path.parent] / path.name for name, path in paths.items()}
        except OSError as error:
            files = [file for staged in hidden.values() for file in visible(staged)]
            if error.errno not in _DISK_IS_FULL or not files:
                raise
            last = max(files, key=lambda file: file.stat().st_mtime_ns)
            (folder,) = (folder for folder, staged in hidden.items() if last.parent == staged)
            raise OSError(
                error.errno, f"out_dir: {last.name} cannot be written ({error.strerror}); free "
                f"disk space in {folder}, or give another --out_dir",
            ) from error  # fmt: skip
        moves = {f: folder / f.name for folder, staged in hidden.items() for f in visible(staged)}
        check([*moves.values()])
        for file, target in moves.items():
            os.replace(file, target)


def _log_folders(paths: dict[str, Path]) -> None:
    """Log the output folders and the report."""
    pages = [path for path in paths.values() if path.suffix == ".html" and path.exists()]
    folders = {path.parent.resolve() for path in paths.values()}
    folder_names = ", ".join(str(folder) for folder in sorted(folders))
    page = f"; open {pages[0]} in a browser" if pages else ""
    logger.info("Files are in %s%s.", folder_names, page)


def _keywords(function: Callable) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def _command_line(cls: type[Command]) -> tuple[inspect.Signature, str]:
    """Signature and docstring of `run`: inputs, options, outputs."""
    entries: dict[str, tuple[str, list[str], Any]] = {}  # type, description, default
    for step in cls.steps:
        function = getattr(cls, step)
        keywords = _keywords(function)
        for name, type_, text in NumpyDocString(inspect.getdoc(function) or "")["Parameters"]:
            description = [*choices(type_), *text]
            entries[name] = _type_of(keywords[name]), description, keywords[name].default
    has_default = {
        name: entry[2] is not inspect.Parameter.empty for name, entry in entries.items()
    }
    entries = {name: entries[name] for name in sorted(entries, key=has_default.__getitem__)}
    entries["out_dir"] = "string or Path, optional", ["Output directory."], ""
    for name, (file, text) in cls.outputs.items():
        entries[f"out_{name}"] = "string, optional", [text], file
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("self", kind)]
    lines = [inspect.getdoc(cls) or "", "", "Parameters", "----------"]
    for name, (type_, description, default) in entries.items():
        parameters.append(inspect.Parameter(name, kind, default=default))
        lines += [f"{name} : {type_}", *(f"    {line}" for line in description)]
    return inspect.Signature(parameters), "\n".join(lines)


def _type_of(parameter: inspect.Parameter) -> str:
    """Type of an option as DIPY's parser reads it, from its annotation."""
    annotation = str(parameter.annotation).removesuffix(" | None").replace("str", "string")
    if annotation.startswith("list["):
        annotation = f"variable {annotation[5:-1]}"
    return annotation + ("" if parameter.default is parameter.empty else ", optional")


def check_names(names: Mapping[str, str]) -> None:
    """Refuse file names, by argument, that are hidden, leave the folder or are the same."""
    argument_of: dict[PurePath, str] = {}
    for argument, name in names.items():
        path = PurePath(str(name))
        hidden = any(part.startswith(".") for part in path.parts)
        if path.is_absolute() or hidden or not path.name or not str(name).isprintable():
            raise ValueError(
                f"{argument} is {str(name)!r}, which is hidden or not in out_dir; give a file "
                "name without a leading dot, and the folder as --out_dir."
            )
        if path in argument_of:
            raise ValueError(
                f"{argument} and {argument_of[path]} are both {str(name)!r}; give different names."
            )
        argument_of[path] = argument


def check_image(argument: str, name: str, usual: str) -> None:
    """Refuse a name that is not of a NIfTI file as the usual name is."""
    if usual.endswith(_OF_IMAGES) and not str(name).endswith(_OF_IMAGES):
        raise ValueError(
            f"{argument} is {str(name)!r}, but it is an image; give a name that ends with "
            f"{' or '.join(_OF_IMAGES)}."
        )


def check_inputs_kept(arguments: Mapping[str, Any], outputs: Iterable[Path]) -> None:
    """Refuse output files that are input files, among the arguments of a command."""
    written = {path.resolve() for path in outputs}
    for argument, value in arguments.items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, (str, Path)) and Path(each).resolve() in written:
                raise ValueError(
                    f"{argument}: the input file {each} would be overwritten by an output; give "
                    "another --out_dir."
                )

"""Checks of the names of output files. Each raises ValueError."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

_OF_IMAGES = (".nii", ".nii.gz")


def check_names(names: Mapping[str, str]) -> None:
    """Refuse file names, by argument, that leave the output directory or are the same."""
    argument_of: dict[PurePath, str] = {}
    for argument, name in names.items():
        path = PurePath(str(name))
        if path.is_absolute() or ".." in path.parts or not path.name or "\0" in str(name):
            raise ValueError(
                f"{argument} is {str(name)!r}, which is not in out_dir; give a file name, and "
                "the folder as --out_dir."
            )
        if path in argument_of:
            raise ValueError(
                f"{argument} and {argument_of[path]} are both {str(name)!r}; give different names."
            )
        argument_of[path] = argument


def check_images(names: Mapping[str, str], usual: Mapping[str, str]) -> None:
    """Refuse names of images, by argument, that are not NIfTI files as the usual names are."""
    for argument, name in names.items():
        is_image = usual[argument].endswith(_OF_IMAGES)
        if is_image and not str(name).endswith(_OF_IMAGES):
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

"""Names of output files: where they may lie, and what they must not overwrite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

_OF_IMAGES = (".nii", ".nii.gz")


def check_names(names: Mapping[str, str]) -> None:
    """Refuse names of output files that leave the output directory, or are the same.

    Parameters
    ----------
    names : mapping of str
        File names by the names of their arguments.

    Raises
    ------
    ValueError
    """
    argument_of: dict[PurePath, str] = {}
    for argument, name in names.items():
        path = PurePath(str(name))
        if path.is_absolute() or ".." in path.parts or not path.name or "\0" in str(name):
            raise ValueError(
                f"{argument} is {str(name)!r}, which is no file inside of out_dir; give a name, "
                "and the folder as --out_dir."
            )
        if path in argument_of:
            raise ValueError(
                f"{argument} and {argument_of[path]} are both {str(name)!r}; "
                "give each a name of its own."
            )
        argument_of[path] = argument


def check_images(names: Mapping[str, str], usual: Mapping[str, str]) -> None:
    """Refuse names of images that are no NIfTI files, before there is anything to write to them.

    Parameters
    ----------
    names, usual : mapping of str
        File names, given and by default, by the names of their arguments.

    Raises
    ------
    ValueError
    """
    for argument, name in names.items():
        is_image = usual[argument].endswith(_OF_IMAGES)
        if is_image and not str(name).endswith(_OF_IMAGES):
            raise ValueError(
                f"{argument} is {str(name)!r}, but it is the name of an image; let it end with "
                f"{' or '.join(_OF_IMAGES)}."
            )


def check_inputs_kept(arguments: Mapping[str, Any], outputs: Iterable[Path]) -> None:
    """Refuse output files that are among the files that a command reads.

    Parameters
    ----------
    arguments : mapping
        Of the command, of which some are paths or lists of paths.
    outputs : iterable of Path

    Raises
    ------
    ValueError
    """
    written = {path.resolve() for path in outputs}
    for argument, value in arguments.items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, (str, Path)) and Path(each).resolve() in written:
                raise ValueError(
                    f"{argument}: {each} is read, and would be overwritten by an output of the "
                    "same name; give another --out_dir."
                )

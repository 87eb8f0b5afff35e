"""Command-line options from the source code of models, which is not imported.

To import torch takes seconds; help and error messages of a command appear at once.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from dipy.workflows.docstring_parser import NumpyDocString

_PACKAGE = Path(__file__).parents[1]


def model_step(model: str, *options: str) -> Callable:
    """Step of a command that makes a model, such as "packed_cells.model.PackedCellsModel".

    The options are parameters of the constructors of the class and its base classes; "no_NAME" is
    a flag that sets NAME, which is True by default, to False.
    """
    module, _, name = model.rpartition(".")
    documented = dict(reversed([*_parameters(module, name)]))

    def make_model(self, acquired: Any, **options_given: Any) -> Any:
        kind = getattr(import_module(f"dipy_spinverse.{module}"), name)
        flags = {option.removeprefix("no_"): not options_given.pop(option) for option in negated}
        given = {name: _number(value) for name, value in options_given.items()}
        given = {name: value for name, value in given.items() if value is not None}
        return kind(acquired, **given, **flags)

    negated = [option for option in options if option not in documented]
    positional, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(argument, positional) for argument in ("self", "acquired")]
    lines = []
    for option in options:
        default, annotation, text = documented[option.removeprefix("no_")]
        if option in negated:
            default, text = False, f"Do not {text[0].lower()}{text[1:]}"
        parameters.append(
            inspect.Parameter(option, keyword, default=default, annotation=annotation)
        )
        lines += [f"{option} : optional", f"    {text}"]
    make_model.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    make_model.__doc__ = "\n".join(["The model.", "", "Parameters", "----------", *lines])
    return make_model


def map_names(fit: str) -> tuple[str, ...]:
    """`MAPS` of a class of fits, such as "packed_cells.fit.PackedCellsFit"."""
    module, _, name = fit.rpartition(".")
    (maps,) = (
        statement.value
        for statement in _class(module, name)[1].body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "MAPS"
    )
    return tuple(ast.literal_eval(maps))


@cache
def _class(module: str, name: str) -> tuple[str, ast.ClassDef]:
    """Module and syntax tree of a class that a module defines or imports."""
    source = _PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return _class(str(node.module).removeprefix("dipy_spinverse."), name)
    raise NameError(f"{module} has no class {name}")


def _parameters(module: str, name: str) -> Iterator[tuple[str, tuple[Any, str, str]]]:
    """Name, (default, annotation, description) of constructor arguments, those of bases last."""
    module, node = _class(module, name)
    sections = NumpyDocString(ast.get_docstring(node) or "")["Parameters"]
    texts = {
        parameter.strip(): " ".join([*choices(kind), *" ".join(text).split()])
        for parameters, kind, text in sections
        for parameter in parameters.split(",")
    }
    (init,) = (member for member in node.body if getattr(member, "name", "") == "__init__")
    assert isinstance(init, ast.FunctionDef)
    for argument, value in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
        try:
            default = ast.literal_eval(value) if value else None
        except ValueError:  # a named constant: the model's own default is used
            default = None
        annotation = ast.unparse(argument.annotation) if argument.annotation else ""
        if argument.arg in texts:
            yield argument.arg, (default, _simple(annotation, default), texts[argument.arg])
    if init.args.kwarg and node.bases:  # passed on to the base class
        (base,) = (ast.unparse(member) for member in node.bases)
        yield from _parameters(module, base)


def choices(kind: str) -> list[str]:
    """A sentence with the possible values of an option, if a docstring lists them."""
    if not kind.startswith("{"):
        return []
    return [f"{kind[1 : kind.index('}')].replace(chr(34), chr(39)).replace(', ', ' or ')}."]


def _number(value: Any) -> Any:
    """A number that was given as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _simple(annotation: str, default: Any) -> str:
    """Type of an option: that of its default, or the first possible one."""
    if default is not None and annotation != "Diffusivity":  # a number or "free"
        return type(default).__name__
    return next((kind for kind in ("float", "int", "str") if kind in annotation), "str")

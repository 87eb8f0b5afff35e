"""What `py.typed` promises: types of everything that is public."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module

import dipy_spinverse


def public_objects():
    """Functions and classes of the `__all__` of the package and of its folders, by name."""
    found = {}
    names = [m.name for m in pkgutil.walk_packages(dipy_spinverse.__path__, "dipy_spinverse.")]
    for module in map(import_module, ["dipy_spinverse", *names]):
        for name in getattr(module, "__all__", ()):
            found[f"{module.__name__}.{name}"] = getattr(module, name)
    return found


def functions_of(name, thing):
    """A function itself; of a class the public functions that are its own or inherited here."""
    if inspect.isfunction(thing):
        yield name, thing
    for base in inspect.getmro(thing) if inspect.isclass(thing) else ():
        for attribute, value in vars(base).items() if "dipy_spinverse" in base.__module__ else ():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            public = not attribute.startswith("_") or attribute == "__init__"
            if public and inspect.isfunction(function) and written_here(function):
                yield f"{base.__qualname__}.{attribute}", function


def written_here(function):
    """Whether its text is in the package: a Protocol or a dataclass makes some of its own."""
    return function.__code__.co_filename.startswith(dipy_spinverse.__path__[0])


def test_public_functions_have_complete_annotations():
    lacking, checked = [], 0
    for name, thing in public_objects().items():
        for place, function in functions_of(name, thing):
            signature, checked = inspect.signature(function), checked + 1
            untyped = [
                p.name
                for p in signature.parameters.values()
                if p.annotation is p.empty and p.name not in ("self", "cls")
            ]
            if signature.return_annotation is signature.empty and function.__name__ != "__init__":
                untyped.append("return")
            if untyped:
                lacking.append(f"{place}: {', '.join(untyped)}")
    assert checked > 100 and sorted(set(lacking)) == []

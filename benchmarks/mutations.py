"""Single changes of a module's syntax tree that a user could notice."""

from __future__ import annotations

import ast
import copy
from pathlib import Path

OPPOSITE = {
    "Lt": "GtE", "LtE": "Gt", "Eq": "NotEq", "Is": "IsNot", "In": "NotIn", "Add": "Sub",
    "Mult": "Div", "And": "Or", "min": "max", "minimum": "maximum", "argmin": "argmax",
    "any": "all",
}  # fmt: skip
OPPOSITE |= {new: old for old, new in OPPOSITE.items()}
# Types, decorators (compilers' options), texts of errors.
UNCHANGED = "annotation", "returns", "decorator_list", "exc"


def changes(node):
    """Kinds and changed copies of a node."""

    def changed(**fields):
        new = copy.copy(node)
        vars(new).update(fields)
        return new

    def opposite(operator):
        return getattr(ast, OPPOSITE.get(type(operator).__name__, "Pass"))()

    match node:
        case ast.Compare(ops=[operator]):
            yield "comparison", changed(ops=[opposite(operator)])
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator):
            if type(operator).__name__ in OPPOSITE:
                yield "operator", changed(op=opposite(operator))
        case ast.Constant(value=bool(value)):
            yield "truth value", changed(value=not value)
        case ast.Constant(value=int(value)):
            yield "number", changed(value=value + 1)
        case ast.Constant(value=float(value)):
            yield "number", changed(value=2 * value or 1.0)
        case ast.Name(id=name) if name in OPPOSITE:
            yield "extremum", changed(id=OPPOSITE[name])
        case ast.Attribute(attr=name) if name in OPPOSITE:
            yield "extremum", changed(attr=OPPOSITE[name])
        case ast.If(test=test) | ast.IfExp(test=test):
            yield "condition", (test, ast.UnaryOp(ast.Not(), test))
        case ast.Call(args=args, keywords=keywords):
            for k in range(len(keywords)):
                yield "keyword", changed(keywords=keywords[:k] + keywords[k + 1 :])
            for k in (k for k, value in enumerate(args) if not isinstance(value, ast.Constant)):
                yield "argument", changed(args=[*args[:k], ast.Constant(None), *args[k + 1 :]])
        case ast.AugAssign() | ast.Raise() | ast.Expr(value=ast.Call()):
            yield "statement", ast.Pass()


def nodes(node, function=""):
    """Nodes and the outermost functions that they are in."""
    for field, value in ast.iter_fields(node):
        for inner in value if isinstance(value, list) else [value]:
            texts = isinstance(inner, ast.JoinedStr) or "warn" in ast.dump(
                getattr(getattr(inner, "value", None), "func", ast.Pass())
            )
            if field in UNCHANGED or texts or not isinstance(inner, ast.AST):
                continue
            name, inside = function, function.rpartition(":")[0]
            if isinstance(inner, ast.ClassDef | ast.FunctionDef) and not inside:
                kind = ":" * isinstance(inner, ast.FunctionDef)  # functions inside are part of it
                name = f"{function}.{inner.name}".strip(".") + kind
            yield inner, name.rstrip(":")
            yield from nodes(inner, name)


def mutants_of(path: Path) -> list[dict]:
    """Mutants of a module: kind, function, line, changed text and changed source."""
    source = path.read_text()
    lines = source.encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:k])) for k in range(len(lines) + 1)]
    mutants = []
    for node, function in nodes(ast.parse(source)):
        for kind, new in changes(node):
            old, new = new if isinstance(new, tuple) else (node, new)
            begin = starts[old.lineno - 1] + old.col_offset
            end = starts[old.end_lineno - 1] + old.end_col_offset
            text = ast.unparse(ast.fix_missing_locations(new))
            text = text if kind in ("statement", "extremum", "number") else f"({text})"
            before, after = source.encode()[:begin].decode(), source.encode()[end:].decode()
            mutants.append(
                {
                    "path": str(path), "line": old.lineno, "kind": kind, "function": function,
                    "old": source.encode()[begin:end].decode(), "new": text,
                    "source": before + text + after,
                }
            )  # fmt: skip
    return mutants

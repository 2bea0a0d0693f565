"""What losses, heads and closed forms declare, read from their text: names, hyper-parameters, defaults.

Importing them imports PyTorch, which takes seconds that a help text or a refusal of a command line should not cost. The
text says the same, and tests compare both for every entry. Where they are imported already they are asked themselves;
where the text does not say it plainly, as of a `partial`, they are imported.
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.parameters import LOSS_ARGUMENTS, constructor_parameters, keyword_parameters

ROOT = Path(__file__).resolve().parent.parent
HOME = (__package__ or "methods").removesuffix("methods")  # what stands before the name of a room once installed
Table = Mapping[str, Callable[..., Any]]


class Unclear(Exception):
    """A text that does not say plainly what is asked."""


class Written:
    """An entry of a table as its text declares it: with its signature, and the plain constants of a class."""

    def __init__(self, signature: inspect.Signature, constants: Mapping[str, object]) -> None:
        self.__dict__.update(constants)
        self.__signature__ = signature

    def __call__(self, *_: object, **__: object) -> Any:
        """Refuse to be called: there is nothing but the declaration."""
        raise TypeError("a declaration cannot be called")


@cache
def text_of(module: str) -> "Text":
    """Return the text of a module of this project, which is read once. Raises Unclear for any other module."""
    place = ROOT.joinpath(*module.removeprefix(HOME).split("."))
    file = next((one for one in (place.with_suffix(".py"), place / "__init__.py") if one.is_file()), None)
    if file is None:
        raise Unclear(f"{module} is no module of this project")
    return Text(ast.parse(file.read_text(encoding="utf-8")).body)


@dataclass(frozen=True)
class Text:
    """A module of this project as its text: what it defines and what it imports by name."""

    body: Sequence[ast.stmt]

    def value(self, name: str) -> ast.expr:
        """Return what is assigned to a name."""
        for node in self.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            if isinstance(value, ast.expr) and any(isinstance(one, ast.Name) and one.id == name for one in targets):
                return value
        raise Unclear(f"nothing is assigned to {name}")

    def find(self, name: str) -> tuple["Text", ast.ClassDef | ast.FunctionDef]:
        """Return the class or function that a name stands for, and the text that it is in."""
        for node in self.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                return self, node
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    if name == (alias.asname or alias.name):
                        return text_of(node.module).find(alias.name)
        raise Unclear(f"{name} is neither defined nor imported")

    def lineage(self, node: ast.ClassDef) -> Iterator[ast.ClassDef]:
        """Yield a class and those of this project that it comes from, each before its bases."""
        yield node
        for base in node.bases:
            try:
                text, parent = self.find(ast.unparse(base))
            except Unclear:  # of a library: it has no hyper-parameters
                continue
            if isinstance(parent, ast.ClassDef):
                yield from text.lineage(parent)


@cache
def read_names(module: str, name: str) -> tuple[str, ...]:
    """Return the keys of the dictionary `name` of a module. Raises Unclear where they are not plain."""
    table = text_of(module).value(name)
    if not isinstance(table, ast.Dict) or not all(isinstance(key, ast.Constant) for key in table.keys):
        raise Unclear(f"{name} is no plain dictionary")
    return tuple(str(plain(key)) for key in table.keys if key is not None)


@cache
def read_table(module: str, name: str) -> dict[str, Written]:
    """Return the entries of the dictionary `name` of a module as their text declares them.

    Raises Unclear where the text of one does not.
    """
    text = text_of(module)
    table = text.value(name)
    if not isinstance(table, ast.Dict):
        raise Unclear(f"{name} is no plain dictionary")
    entries = {}
    for key, value in zip(table.keys, table.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(value, ast.Name):
            raise Unclear(f"{name} has an entry that is not a name")
        entries[str(key.value)] = read_entry(*text.find(value.id))
    return entries


def read_entry(text: Text, node: ast.ClassDef | ast.FunctionDef) -> Written:
    """Return what the text of a class or of a function declares."""
    if isinstance(node, ast.FunctionDef):
        return Written(signature_of(node.args, skipped=0), {})
    constants: dict[str, object] = {}
    constructor = None
    for one in text.lineage(node):
        for inner in one.body:
            if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
                constructor = constructor or inner
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name) and inner.value is not None:
                constants.setdefault(inner.target.id, plain(inner.value))
    return Written(inspect.Signature() if constructor is None else signature_of(constructor.args, skipped=1), constants)


def signature_of(arguments: ast.arguments, skipped: int) -> inspect.Signature:
    """Return the signature of arguments without the first `skipped`; defaults are those of keywords alone."""
    if arguments.vararg is not None or arguments.kwarg is not None:
        raise Unclear("it takes whatever it is given")
    places = [*arguments.posonlyargs, *arguments.args][skipped:]
    parameters = [inspect.Parameter(one.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD) for one in places]
    for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        given = inspect.Parameter.empty if default is None else plain(default)
        parameters.append(inspect.Parameter(one.arg, inspect.Parameter.KEYWORD_ONLY, default=given))
    return inspect.Signature(parameters)


def plain(value: ast.expr) -> object:
    """Return the value that a literal stands for."""
    try:
        return ast.literal_eval(value)
    except ValueError as error:
        raise Unclear(f"{ast.unparse(value)} is no plain value") from error


def table_of(module: str, name: str) -> Table:
    """Return a dictionary of losses, heads or closed forms, or what its text declares of each entry."""
    loaded = getattr(sys.modules.get(f"{HOME}{module}"), name, None)
    if loaded is not None:
        return loaded
    try:
        return read_table(module, name)
    except Unclear:
        return getattr(importlib.import_module(f"{HOME}{module}"), name)


def names_of(module: str, name: str) -> tuple[str, ...]:
    """Return the keys of a dictionary of this project, read from its text where its module is not imported."""
    loaded = getattr(sys.modules.get(f"{HOME}{module}"), name, None)
    if loaded is not None:
        return tuple(loaded)
    try:
        return read_names(module, name)
    except Unclear:
        return tuple(getattr(importlib.import_module(f"{HOME}{module}"), name))


def losses() -> Table:
    """Return the losses by name."""
    return table_of("losses", "LOSSES")


def loss_parameters(name: str) -> dict[str, float | str]:
    """Return the hyper-parameters of the loss `name` with their defaults. Raises UserError for an unknown one, and
    where its constructor asks for what nobody can give it."""
    return keyword_parameters("loss", name, losses(), LOSS_ARGUMENTS)


def takes_plain_logits(name: str) -> bool:
    """Tell whether the loss `name` takes the logits of a linear classifier, as stage 1 has; UserError if it is mute."""
    said = getattr(losses()[name], "plain_logits", None)
    if not isinstance(said, bool):
        raise UserError(f"the loss '{name}' must say whether it takes plain logits: plain_logits: ClassVar[bool]")
    return said


def head_parameters(name: str) -> dict[str, float | str]:
    """Return the parameters of the head `name` with their defaults. Raises UserError for an unknown one."""
    return keyword_parameters("head", name, table_of("models.heads", "HEADS"))


def closed_form_parameters(name: str) -> dict[str, float | str]:
    """Return the parameters of the closed form `name` with their defaults. Raises UserError for an unknown one."""
    return keyword_parameters("closed form", name, table_of("methods.closed_form", "CLOSED_FORM"))


def needs_held_out(name: str) -> bool:
    """Tell whether the closed form `name` is fitted on held-out images. Raises UserError for an unknown one."""
    table = table_of("methods.closed_form", "CLOSED_FORM")
    return "held_out" in constructor_parameters("closed form", name, table)

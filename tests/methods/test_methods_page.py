"""The page on methods says of every row of RECIPES what it is, and its numbers are those of the row."""

import re

from methods.recipes import RECIPES, Recipe
from tests.helpers import ROOT
from utils.parameters import HYPERPARAMETERS

PAGE = (ROOT / "docs" / "methods.md").read_text()
COLUMNS = "| `--method` | paper | released code | ours |"


def ours(recipe: Recipe) -> str:
    """The last cell of a row: the numbers of stage 2, then what differs from LOS's, then the method's own numbers."""
    words = [f"{name} {value}" for name, value in recipe.own_parameters().items()]
    if recipe.closed_form is not None:
        return ", ".join(words) or "nothing to choose"
    numbers = [f"{recipe.epochs} epochs", f"rate {recipe.lr:g}", f"decay {recipe.weight_decay:g}"]
    numbers += [recipe.schedule] if recipe.schedule != "cosine" else []
    numbers += [f"{recipe.sampler} sampling"] if recipe.sampler != "instance" else []
    numbers += [f"max_norm {recipe.max_norm:g}"] if recipe.max_norm is not None else []
    numbers += [f"label_smooth {recipe.label_smooth:g}"] if recipe.label_smooth is not None else []
    return ", ".join([*numbers, *words])


def table() -> dict[str, list[str]]:
    """The cells of the page's table, by method."""
    lines = PAGE[PAGE.index(COLUMNS) :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]
    return {row[0].strip("` "): row[1:] for row in rows}


def test_every_row_is_compared_with_paper_and_code() -> None:
    assert list(table()) == list(RECIPES)
    assert all(len(cells) == 3 and all(cells) for cells in table().values())


def test_our_numbers_are_those_of_the_row() -> None:
    assert {method: cells[2] for method, cells in table().items()} == {m: ours(row) for m, row in RECIPES.items()}


def test_every_word_that_tells_a_paper_from_its_code_is_on_the_page() -> None:
    for name, declared in HYPERPARAMETERS.items():
        if declared.values and all(isinstance(value, str) for value in declared.values[:2]):
            assert f"`--{name} {declared.values[0]}` or `{declared.values[1]}`" in PAGE

"""Published figures that a table of ours is put beside, each with its source and protocol. None was measured here."""

from dataclasses import dataclass

WB_PAPER = "Weight Balancing, CVPR 2022, table 1 (ResNet-34, best epoch on the test set)"
WB_TABLE2 = "Weight Balancing, CVPR 2022, table 2 (ResNet-34, best epoch on the test set)"
LOS_PAPER = (
    "LOS, ICLR 2025, as listed by GUIDE, ICLR 2026 "
    "(ResNet-34; by its code the best epoch on the test set, flip-averaged)"
)
RERUN = "Deciphering the Extremes, NeurIPS 2025 (LOS's configuration)"
GALA_README = (
    "README of GALA's code, tuned lambdas (1.2 / 0.9 known for IF 100 only; ResNet-32, best epoch on the test set)"
)
GALA_OLD = "older README of GALA's code, lambda = 1, column 'tau = 1' (ResNet-32, best epoch on the test set)"
GALA_OLD_TAU = (
    "older README of GALA's code, lambda = 1, column 'fine-tune tau' (ResNet-32, tau and epoch chosen on the test set)"
)


@dataclass(frozen=True)
class Figure:
    """A published accuracy in percent; `groups` are many, medium, few where they were published."""

    dataset: str
    imb_ratio: float
    row: str
    all: float
    source: str
    groups: tuple[float, float, float] | None = None

    def __str__(self) -> str:
        groups = "" if self.groups is None else " / " + " / ".join(f"{value:.1f}" for value in self.groups)
        return f"{self.all:.1f}{groups}"


def _wb(row: str, total: float, many: float, medium: float, few: float) -> Figure:
    return Figure("cifar100", 100, row, total, WB_PAPER, (many, medium, few))


WB_TABLE3 = "Weight Balancing, CVPR 2022, table 3 (ResNeXt-50 on ImageNet-LT, ResNet-50 on iNaturalist)"
LOS_LARGE = "LOS, ICLR 2025, as listed by GUIDE, ICLR 2026 (network not stated there)"
WB_LARGE = {
    "imagenet_lt": (
        (68.5, 42.4, 14.2, 48.6),
        (61.2, 48.9, 42.6, 52.8),
        (64.0, 49.0, 36.3, 53.1),
        (62.0, 49.7, 41.0, 53.3),
        (62.2, 50.1, 37.5, 53.0),
        (62.5, 50.4, 41.5, 53.9),
    ),
    "inaturalist2018": (
        (74.5, 66.5, 61.5, 65.4),
        (11.2, 47.4, 66.9, 51.3),
        (71.3, 69.8, 68.9, 69.6),
        (71.0, 70.3, 69.4, 70.0),
        (71.4, 68.9, 69.1, 69.2),
        (71.2, 70.4, 69.7, 70.2),
    ),
}

# Rows are methods of `methods.recipes.RECIPES`, "stage 1", and "gala stage 1" with or without "re-balanced".
PUBLISHED = [
    _wb("stage 1", 46.08, 76.94, 44.28, 12.17),
    _wb("tau_norm", 51.31, 73.11, 47.69, 30.10),
    _wb("l2_norm", 49.60, 76.09, 47.74, 20.87),
    _wb("wb_cb", 47.09, 77.00, 45.89, 13.60),
    _wb("wb_wd", 52.42, 72.77, 49.74, 31.80),
    _wb("wb_maxnorm", 50.20, 76.49, 49.23, 20.67),
    _wb("wb", 53.35, 72.60, 51.86, 32.63),
    *(
        Figure("cifar100", ratio, row, value, WB_TABLE2)
        for ratio, values in {
            50: (52.71, 56.33, 57.65, 57.47, 56.06, 57.71),
            10: (66.03, 67.16, 67.79, 67.96, 67.10, 68.67),
        }.items()
        for row, value in zip(("stage 1", "l2_norm", "tau_norm", "wb_wd", "wb_maxnorm", "wb"), values, strict=True)
    ),
    Figure("cifar100", 10, "los", 69.7, LOS_PAPER),
    Figure("cifar100", 50, "los", 58.8, LOS_PAPER),
    Figure("cifar100", 100, "los", 54.9, LOS_PAPER),
    Figure("cifar100", 100, "los", 53.92, RERUN, (70.11, 55.37, 33.33)),
    Figure("cifar100", 200, "los", 47.01, RERUN, (71.63, 56.90, 20.21)),
    Figure("cifar100", 500, "los", 31.43, RERUN, (67.69, 39.46, 7.44)),
    *(
        Figure("cifar100", ratio, row, value, RERUN)
        for ratio, values in {100: (47.6, 52.8), 200: (42.38, 46.87), 500: (36.59, 40.57)}.items()
        for row, value in zip(("stage 1", "balanced_softmax"), values, strict=True)
    ),
    *(
        Figure("cifar100", ratio, row, value, source)
        for source, row, values in (
            (GALA_OLD, "gala stage 1", (47.4, 50.9, 55.1, 62.5)),
            (GALA_OLD_TAU, "gala stage 1 re-balanced", (47.5, 51.0, 55.2, 62.6)),
            (GALA_README, "gala stage 1, tuned lambdas", (48.0, 52.1, 56.0, 63.8)),
            (GALA_README, "gala stage 1, tuned lambdas re-balanced", (48.5, 52.3, 56.5, 64.2)),
        )
        for ratio, value in zip((200, 100, 50, 10), values, strict=True)
    ),
    Figure("imagenet_lt", 0, "los", 54.4, LOS_LARGE),
    Figure("inaturalist2018", 0, "los", 70.8, LOS_LARGE),
    *(
        Figure(dataset, 0, row, values[-1], WB_TABLE3, values[:3])
        for dataset, rows in WB_LARGE.items()
        for row, values in zip(("stage 1", "l2_norm", "tau_norm", "wb_wd", "wb_maxnorm", "wb"), rows, strict=True)
    ),
]


def published(dataset: str, imb_ratio: float, row: str) -> list[Figure]:
    """Return the published figures for a row of a table; naturally imbalanced data sets have ratio 0 there."""
    return [
        figure
        for figure in PUBLISHED
        if figure.dataset == dataset and figure.imb_ratio in (0, imb_ratio) and figure.row == row
    ]


def cell(dataset: str, imb_ratio: float, row: str) -> str:
    """Return the published figures as a table cell, with a number that `sources` resolves."""
    figures = published(dataset, imb_ratio, row)
    return ", ".join(f"{figure} [{SOURCES.index(figure.source) + 1}]" for figure in figures) or "-"


SOURCES = list(dict.fromkeys(figure.source for figure in PUBLISHED))


def sources(cells: list[str]) -> str:
    """Return the sources that cells of a table refer to, a line each."""
    text = " ".join(cells)
    used = [f"[{i + 1}] {source}." for i, source in enumerate(SOURCES) if f"[{i + 1}]" in text]
    return "\n".join(["Published, not measured here:", *used]) if used else ""

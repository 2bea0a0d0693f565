"""Classifier re-training methods: a method is one row of data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from methods.declared import closed_form_parameters, head_parameters, loss_parameters, needs_held_out
from utils.errors import UserError

Value = float | str

TRIALS = 24  # combinations that `reproduce.py --select` tries for every method
LATE_FROM = 0.8  # share of the epochs after which a recipe's `late_loss` takes over (LDAM: epoch 160 of 200)
TUNED_EPOCHS = (5, 20)
# Wide, since the losses differ in scale: on features that fit their training set cross-entropy hardly has a gradient.
FOUR_LRS = (5e-4, 1e-2, 0.2, 4.0)
TWELVE_LRS = (5e-5, 2e-4, 5e-4, 2e-3, 5e-3, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 4.0)


@dataclass(frozen=True)
class Recipe:
    """One way to re-train the classifier on frozen features.

    `loss` is a key of `losses.LOSSES`, and `late_loss`, where there is one, takes its place for the last fifth of the
    epochs; `target` is the convention that softens the labels (a key of `losses.los.TARGETS`, None for one-hot labels)
    with its default `label_smooth`; `head` a key of `models.heads.HEADS`, warm from stage 1 or `fresh`; `sampler` one
    of `datasets.sampling.SAMPLERS`; `max_norm` the share s of Weight Balancing's constraint, which holds every weight
    row to min + s (max - min) of the norms of stage 1, projected after every epoch. `closed_form`, a key of
    `methods.closed_form.CLOSED_FORM`, computes the classifier instead of training it. `parameters` are the method's own
    hyper-parameters where they differ from the loss's and the head's defaults. Epochs, learning rate, its `schedule` (a
    key of `utils.schedules.SCHEDULES`) and weight decay are the published ones of stage 2 (learning rates for larger
    batches scaled in proportion to one of 64 images), LOS's where a method was not published for stage 2. Where paper
    and released stage 2 differ, the row is the released one, and a parameter has the paper's form: docs/methods.md
    compares them all. `tuned` is the flag of the own parameter that a search varies, and its values. `earlier_head` is
    the head of runs that were made before the row had its own. `compares` is for what chooses among methods.
    """

    title: str
    citation: str
    loss: str = "ce"
    late_loss: str | None = None
    target: str | None = None
    label_smooth: float | None = None
    head: str = "linear"
    fresh: bool = False
    sampler: str = "instance"
    max_norm: float | None = None
    closed_form: str | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)
    epochs: int = 20
    lr: float = 5e-4
    weight_decay: float = 0.0
    schedule: str = "cosine"
    tuned: tuple[str, Sequence[float]] | None = None
    earlier_head: str | None = None
    compares: bool = False

    @property
    def own_budget(self) -> bool:
        """Whether the method was published with epochs and a learning rate of its own, which no data set changes."""
        return (self.epochs, self.lr) != (Recipe.epochs, Recipe.lr)

    @property
    def trains(self) -> bool:
        """Whether the classifier is trained at all."""
        return self.closed_form is None and not self.compares

    @property
    def needs_held_out(self) -> bool:
        """Whether the classifier is computed from held-out images too."""
        return self.closed_form is not None and needs_held_out(self.closed_form)

    def own_parameters(self) -> dict[str, Value]:
        """Return the method's hyper-parameters with their default values."""
        if self.compares:
            return {}
        if self.closed_form is not None:
            return {**closed_form_parameters(self.closed_form), **self.parameters}
        defaults = {**head_parameters(self.head), **loss_parameters(self.loss)}
        if self.late_loss is not None:
            defaults |= loss_parameters(self.late_loss)
        return {**defaults, **self.parameters}


LOS_PAPER = "Sun et al., ICLR 2025, arXiv 2403.00250"
DECOUPLING = "Kang et al., ICLR 2020, arXiv 1910.09217"
WEIGHT_BALANCING = "Alshammari et al., CVPR 2022, arXiv 2203.14197"
LOGIT_ADJUSTMENT = "Menon et al., ICLR 2021, arXiv 2007.07314"
COSINE = "Gidaris and Komodakis, CVPR 2018, arXiv 1804.09458"
DISALIGN = "Zhang et al., CVPR 2021, arXiv 2103.16370"
SAMN = "Zhang et al. (SAMN), CVPR 2026, arXiv 2606.02526"
LDAM = "Cao et al., NeurIPS 2019, arXiv 1906.07413"

SMOOTHINGS = ("label_smooth", (0.9, 0.98, 0.99))
TAUS = ("tau", (0.5, 1.0, 1.5))
MANY_TAUS = ("tau", tuple(0.125 * i for i in range(1, TRIALS + 1)))
BETAS = ("beta", (0.99, 0.999, 0.9999))
ANCHORS = ("anchor", tuple(float(f"{10 ** (-4 + i / 6):.2g}") for i in range(TRIALS)))
RIDGES = ("anchor", tuple(float(f"{10 ** (-4 + i / 4):.2g}") for i in range(TRIALS)))
SCALES = ("scale", tuple(float(f"{10 ** (i / 10):.2g}") for i in range(TRIALS)))
RHOS = ("rho", (0.8, 1.0, 1.2))
DECAYS = ("finetune_wd", (0.01, 0.1, 0.5))
MARGINS = ("max_margin", (0.2, 0.5, 0.8))

RECIPES = {
    "ce": Recipe("cross-entropy (control)", "-"),
    "label_smooth": Recipe(
        "label smoothing",
        "Szegedy et al., CVPR 2016, arXiv 1512.00567",
        target="torch",
        label_smooth=0.1,
        tuned=("label_smooth", (0.05, 0.1, 0.2)),
    ),
    "los": Recipe("label over-smoothing", LOS_PAPER, target="torch", label_smooth=0.98, tuned=SMOOTHINGS),
    "lort": Recipe(
        "label over-smoothing, (1 - d, d / (K - 1))",
        LOS_PAPER,
        target="rest",
        label_smooth=0.98,
        tuned=("label_smooth", (0.9, 0.95, 0.98)),
    ),
    "focal": Recipe(
        "focal loss", "Lin et al., ICCV 2017, arXiv 1708.02002", loss="focal", tuned=("gamma", (0.5, 1.0, 2.0))
    ),
    "cb_ce": Recipe(
        "class-balanced cross-entropy", "Cui et al., CVPR 2019, arXiv 1901.05555", loss="cb_ce", tuned=BETAS
    ),
    # Weight Balancing's numbers are those of its `demo2_second-stage-training.py`: batch 64, CosineAnnealingLR over 10
    # epochs with PyTorch 1.7.1, stepped before each epoch (`utils/trainval.py`): 0.00976 ... 0.
    "wb_cb": Recipe(
        "class-balanced BCE on softmax",
        WEIGHT_BALANCING,
        loss="wb_cb",
        epochs=10,
        lr=0.01,
        schedule="cosine_to_zero",
        tuned=BETAS,
    ),
    "wb_wd": Recipe(
        "the same with weight decay",
        WEIGHT_BALANCING,
        loss="wb_cb",
        epochs=10,
        lr=0.01,
        weight_decay=0.1,
        schedule="cosine_to_zero",
        tuned=DECAYS,
    ),
    "wb_maxnorm": Recipe(
        "the same with MaxNorm",
        WEIGHT_BALANCING,
        loss="wb_cb",
        epochs=10,
        lr=0.01,
        max_norm=0.1,
        schedule="cosine_to_zero",
        tuned=("max_norm", (0.05, 0.1, 0.5)),
    ),
    "wb": Recipe(
        "Weight Balancing: class-balanced, weight decay, MaxNorm",
        WEIGHT_BALANCING,
        loss="wb_cb",
        max_norm=0.1,
        epochs=10,
        lr=0.01,
        weight_decay=0.1,
        schedule="cosine_to_zero",
        tuned=DECAYS,
    ),
    "balanced_softmax": Recipe(
        "balanced softmax", "Ren et al., NeurIPS 2020, arXiv 2007.10740", loss="balanced_softmax"
    ),
    "logit_adjust": Recipe("logit-adjusted loss", LOGIT_ADJUSTMENT, loss="logit_adjust", tuned=TAUS),
    "ldam": Recipe("LDAM, cosine head", LDAM, loss="ldam", head="normed", tuned=MARGINS),
    "ldam_drw": Recipe(
        "LDAM, deferred re-weighting",
        LDAM,
        loss="ldam",
        late_loss="ldam_weighted",
        head="normed",
        tuned=MARGINS,
    ),
    "las": Recipe(
        "label-aware smoothing",
        "Zhong et al. (MiSLAS), CVPR 2021, arXiv 2104.00466",
        loss="las",
        head="scaled_linear",
        earlier_head="linear",
        sampler="class_balanced",
        parameters={"las_target": "released"},
        # `config/cifar100/cifar100_imb001_stage2_mislas.yaml`: 10 epochs, decay 2e-4, batch 128, and a rate of 0.1 for
        # the scale and 0.2 of it for the classifier, which at batch 64 is 0.01.
        epochs=10,
        lr=0.01,
        weight_decay=2e-4,
        tuned=("smooth_head", (0.2, 0.4, 0.6)),
    ),
    "vs": Recipe("vector scaling", "Kini et al., NeurIPS 2021, arXiv 2103.01550", loss="vs", tuned=TAUS),
    "gcl": Recipe(
        "Gaussian clouded logits, cosine head",
        "Li et al., CVPR 2022, arXiv 2305.11733",
        loss="gcl",
        head="normed",
        sampler="class_balanced",
        # `cifar_train_classifier.py`: s = 20, noise_mul = 0.5, m = 0.1, gamma = 1, batch 64, 30 epochs, decay 2e-4. Its
        # `adjust_learning_rate` makes 0.1 * 0.1 * 0.2 = 0.002 of --lr 0.1; its first version made 0.008 of --lr 0.2.
        parameters={"scale": 20.0, "gcl_loss": "released"},
        epochs=30,
        lr=0.002,
        weight_decay=2e-4,
        tuned=("noise", (0.25, 0.5, 1.0)),
    ),
    "gala": Recipe(
        "gradient-aware logit adjustment", "arXiv 2403.09036", loss="gala", tuned=("lambda1", (0.8, 1.0, 1.2))
    ),
    "lws": Recipe(
        "learnable weight scaling",
        DECOUPLING,
        head="lws",
        sampler="class_balanced",
        epochs=5,
        lr=0.025,
        weight_decay=5e-4,
    ),
    "disalign": Recipe(
        "DisAlign",
        DISALIGN,
        loss="reweighted_ce",
        head="disalign",
        epochs=10,
        lr=0.025,
        weight_decay=5e-4,
        tuned=RHOS,
    ),
    "marc": Recipe(
        "margin calibration",
        "Wang et al. (MARC), ACML 2022, arXiv 2112.07225",
        loss="reweighted_ce",
        head="marc",
        epochs=10,
        lr=0.0125,
        weight_decay=5e-4,
        tuned=RHOS,
    ),
    "cosine": Recipe("cosine classifier", COSINE, head="cosine", tuned=("scale", (5.0, 10.0, 20.0))),
    "crt": Recipe(
        "classifier re-training, class-balanced sampling",
        DECOUPLING,
        fresh=True,
        sampler="class_balanced",
        epochs=10,
        lr=0.025,
        weight_decay=5e-4,
    ),
    "tau_norm": Recipe("tau-normalisation", DECOUPLING, closed_form="tau_norm", tuned=MANY_TAUS),
    "l2_norm": Recipe("tau-normalisation, tau = 1", DECOUPLING, closed_form="l2_norm"),
    "ncm": Recipe("nearest class mean", DECOUPLING, head="normed", closed_form="ncm"),
    "logit_adjust_posthoc": Recipe(
        "logit adjustment, post hoc",
        LOGIT_ADJUSTMENT,
        closed_form="logit_adjust_posthoc",
        tuned=MANY_TAUS,
    ),
    "logit_adjust_los": Recipe(
        "LOS on logit adjustment", LOS_PAPER, loss="logit_adjust", target="torch", label_smooth=0.98, tuned=SMOOTHINGS
    ),
    "lws_los": Recipe("LOS on LWS", LOS_PAPER, head="lws", target="torch", label_smooth=0.98, tuned=SMOOTHINGS),
    "cosine_los": Recipe(
        "LOS on a cosine classifier", LOS_PAPER, head="cosine", target="torch", label_smooth=0.98, tuned=SMOOTHINGS
    ),
    "disalign_los": Recipe(
        "LOS on DisAlign's head", LOS_PAPER, head="disalign", target="torch", label_smooth=0.98, tuned=SMOOTHINGS
    ),
    "samn": Recipe("monotone row norms", SAMN, head="samn"),
    "samn_los": Recipe(
        "LOS on monotone row norms", LOS_PAPER, head="samn", target="torch", label_smooth=0.98, tuned=SMOOTHINGS
    ),
    "samn_start": Recipe("monotone row norms, untrained", SAMN, head="samn", closed_form="samn_start"),
    "proximal_los": Recipe(
        "LOS with a minimum of its own, near stage 1 (docs/methods.md)",
        f"target: {LOS_PAPER}",
        target="torch",
        label_smooth=0.98,
        closed_form="proximal_los",
        tuned=ANCHORS,
    ),
    "gml": Recipe("geometric-mean loss", "Du and Wu (GML), CVPR 2023, arXiv 2303.03630", loss="gml"),
    "tau_norm_centred": Recipe(
        "tau-normalisation of centred features", DECOUPLING, closed_form="tau_norm_centred", tuned=MANY_TAUS
    ),
    "prior2posterior": Recipe(
        "logit adjustment by the model's own prior",
        "Bhat et al. (P2P), WACV 2025, arXiv 2412.16540",
        closed_form="prior2posterior",
        tuned=MANY_TAUS,
    ),
    "offsets": Recipe(  # not tuned: the held-out images that would choose are those that it is fitted on
        "class offsets fitted on held-out images",
        "Wang et al. (first half of REPAIR), arXiv 2604.01506",
        closed_form="offsets",
    ),
    "ridge": Recipe(
        "class-weighted ridge regression",
        "Fang et al. (AIR), 2024, arXiv 2408.10349",
        closed_form="ridge",
        tuned=RIDGES,
    ),
    "simplex": Recipe(
        "fixed simplex (ETF) on the class means", "Yang et al., NeurIPS 2022, arXiv 2203.09081", closed_form="simplex"
    ),
    "knn": Recipe(
        "nearest neighbours over class counts",
        "Wu et al., CVPR 2018, arXiv 1805.01978",
        head="neighbours",
        closed_form="knn",
        tuned=SCALES,
    ),
}


# Not methods, but what chooses among them on held-out images (`engine.choice.comparison`).
COMPARISONS = {"auto": Recipe("the best of several on held-out images", "-", head="linear_cosine", compares=True)}


def find_recipe(method: str) -> Recipe:
    """Return the row of `method`; a UserError lists the known ones."""
    known = RECIPES | COMPARISONS
    if method not in known:
        raise UserError(f"unknown method '{method}'; known: {', '.join(known)}")
    return known[method]


def check_smoothing(method: str, label_smooth: float | None, loma_target: float | None) -> None:
    """Raise UserError where a smoothing is given to a method without one, or is given twice."""
    if label_smooth is not None and loma_target is not None:
        raise UserError("--label_smooth and --loma_target both set the target's smoothing; give one of them")
    given = label_smooth is not None or loma_target is not None
    if given and find_recipe(method).target is None:
        flag = "--label_smooth" if label_smooth is not None else "--loma_target"
        users = ", ".join(name for name, row in RECIPES.items() if row.target)
        raise UserError(f"{flag} has no meaning for --method {method}; it belongs to {users}")


def resolve_parameters(method: str, given: Mapping[str, Value]) -> dict[str, Value]:
    """Return the own hyper-parameters of `method` with those `given` in place of its defaults.

    Raises UserError for one that the method does not have.
    """
    own = find_recipe(method).own_parameters()
    for name in given:
        if name not in own:
            users = ", ".join(other for other, row in RECIPES.items() if name in row.own_parameters())
            raise UserError(f"--{name} has no meaning for --method {method}; it belongs to {users or 'no method'}")
    return {**own, **given}

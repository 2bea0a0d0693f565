"""Stage 2: re-train the classifier on a frozen backbone, by default with label over-smoothing (LOS).

    python main_stage2.py --imb_ratio 100 --cur_stage stage2 --label_smooth 0.98

takes seconds once the features are computed. Published for CIFAR100-LT, IF 100, ResNet-34: 54.9 %, and 53.9 % when
re-run by others. RESULTS.md has what was measured, on what, in what time.

    python main_stage2.py --features FILE.npz

does the same on features that any model made; where FILE has no classifier, one is trained first.
"""

from collections.abc import Sequence
from typing import Any

from settings.fields import STAGE2
from settings.places import check_places
from settings.seeds import parse_commands
from utils.command import EPOCHS_ARE_SAVED, NO_EPOCH_IS_SAVED, run_command


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run stage 2 and return what metrics.json holds; with --seeds, that of each by its seed."""
    commands = parse_commands(STAGE2, __doc__, argv)
    for command in commands:
        check_places(command)
    if len(commands) > 1:
        from stages.commands.several_runs import run_seeds

        return run_seeds(commands)
    from stages.commands.stage2 import run_stage2  # PyTorch, which help texts and refusals do without

    return run_stage2(commands[0])


if __name__ == "__main__":
    run_command(main, EPOCHS_ARE_SAVED, NO_EPOCH_IS_SAVED)

"""Stage 1, learn features: train backbone and classifier on the long-tailed set with plain cross-entropy.

    python main_stage1.py --imb_ratio 100 --cur_stage stage1

is the released recipe for CIFAR100-LT: ResNet-34, 200 epochs, 47.6 % published for it in a re-run by others. It wants a
GPU: four CPU cores would need more than a day. RESULTS.md has what was measured, on what, in what time.

    python main_stage1.py --features FILE.npz

trains a linear classifier on features that any model made, in seconds.

    torchrun --standalone --nproc_per_node=8 main_stage1.py --dataset imagenet_lt --data_dir data

trains on eight GPUs, which share every batch.
"""

from collections.abc import Sequence
from typing import Any

from settings.fields import STAGE1
from settings.places import check_places
from settings.seeds import parse_commands
from utils.command import EPOCHS_ARE_SAVED, NO_EPOCH_IS_SAVED, run_command


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run stage 1 and return what metrics.json holds; with --seeds, that of each by its seed."""
    commands = parse_commands(STAGE1, __doc__, argv)
    for command in commands:
        check_places(command)
    if len(commands) > 1:
        from stages.commands.several_runs import run_seeds

        return run_seeds(commands)
    from stages.commands.stage1 import run_stage1  # PyTorch, which help texts and refusals do without

    return run_stage1(commands[0])


if __name__ == "__main__":
    run_command(main, EPOCHS_ARE_SAVED, NO_EPOCH_IS_SAVED)

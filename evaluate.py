"""Report on a checkpoint: all / many / medium / few, per class, LoMa and RSD, calibration, with and without flip
averaging.

    python evaluate.py --imb_ratio 100 --cur_stage stage1
    python evaluate.py --imb_ratio 100 --cur_stage stage2
    python evaluate.py --imb_ratio 100 --pretrained_pth FILE_OR_RUN_FOLDER --json report.json
    python evaluate.py --features FILE.npz --cur_stage stage2
    python evaluate.py --pretrained_pth FILE_OR_RUN_FOLDER --test_prior train --coverage 0.9

A classifier alone is read with the backbone (`tools.release`) or the features (`tools.export_features`) that it
names. For each checkpoint the test images pass through the network once, mirrored again, and the training images once.
Numbers are those of the run's own metrics.json where precision and threads are the same; RESULTS.md has what was
measured.
"""

from collections.abc import Sequence

from settings.command_line import parse_command
from settings.fields import EVALUATE
from settings.places import check_places
from utils.command import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Report on what the command line names."""
    command = parse_command(EVALUATE, __doc__, argv)
    check_places(command)
    from stages.commands.report import evaluate  # PyTorch, which help texts and refusals do without

    evaluate(command)


if __name__ == "__main__":
    run_command(main)

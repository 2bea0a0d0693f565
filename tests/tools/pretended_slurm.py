"""A SLURM that is pretended: `sbatch`, `srun` and `scontrol` for a PATH, which run everything on this machine.

`sbatch` reads the directives of a script, sets the variables that SLURM sets, runs the tasks of an array one after the
other, and runs a script again that has asked `scontrol` to be requeued. Where $PRETENDED_END names a file it sends the
signal of `--signal` to the script, in its first run, as soon as the file is there: that time is up.
"""

import os
import re
import stat
import sys
from pathlib import Path

SBATCH = """
import os, re, signal, subprocess, sys, time
from pathlib import Path

words, state = sys.argv[1:], Path(os.environ["PRETENDED_SLURM"])
place = next(i for i, word in enumerate(words) if not word.startswith("-"))
script, arguments = words[place], words[place + 1 :]
directives = re.findall(r"^#SBATCH (--[a-z-]+)(?:=(.*))?$", Path(script).read_text(), re.MULTILINE)
how = dict(directives) | dict(word.split("=", 1) if "=" in word else (word, "") for word in words[:place])
job = len(list(state.glob("*.job"))) + 1
(state / f"{job}.job").write_text(" ".join(words))
for needed in re.findall(r"\\d+", how.get("--dependency", "")):
    if not (state / f"{needed}.ok").exists():
        sys.exit(f"job {needed} did not end well")
first, last = map(int, how.get("--array", "0-0").split("-"))
statuses = []
for task in range(first, last + 1):
    nodes = int(os.environ.get("PRETENDED_NODES", how.get("--nodes", "1")))
    variables = {
        "SLURM_JOB_ID": str(job), "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_JOB_NODELIST": f"localhost[{nodes}]",
        "SLURM_SUBMIT_DIR": os.getcwd(),
    }
    if "--array" in how:
        variables |= {
            "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_MIN": str(first),
            "SLURM_ARRAY_TASK_COUNT": str(last - first + 1),
        }
    for start in range(5):
        (state / "requeue").unlink(missing_ok=True)
        output = open(state / f"{job}_{task}.out", "a" if how.get("--open-mode") == "append" else "w")
        # As spooled by SLURM, the script runs as a copy elsewhere.
        copy = state / "slurm_script"
        copy.write_text(Path(script).read_text())
        shell = subprocess.Popen(
            ["bash", str(copy), *arguments], env={**os.environ, **variables, "SLURM_RESTART_COUNT": str(start)},
            stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )
        end = os.environ.get("PRETENDED_END")
        while end and start == 0 and shell.poll() is None:
            if Path(end).exists():
                shell.send_signal(getattr(signal, "SIG" + re.match("B:([A-Z]+)@", how["--signal"])[1]))
                break
            time.sleep(0.02)
        status = shell.wait()
        if not ((state / "requeue").exists() and "--requeue" in how):
            break
    statuses.append(status)
if not any(statuses):
    (state / f"{job}.ok").touch()
print(job if "--parsable" in how else f"Submitted batch job {job}")
sys.exit(max(statuses))
"""

SRUN = """
import os, signal, subprocess, sys

words = sys.argv[1:]
while words[0].startswith("-"):
    words = words[1:]
nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
tasks = [subprocess.Popen(words, env={**os.environ, "SLURM_NODEID": str(node)}) for node in range(nodes)]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
sys.exit(max(task.wait() & 255 for task in tasks))
"""

SCONTROL = """
import os, re, sys
from pathlib import Path

if sys.argv[1:3] == ["show", "hostnames"]:
    print("\\n".join(["localhost"] * int(re.findall(r"\\d+", sys.argv[3])[0])))
elif sys.argv[1] == "requeue" and sys.argv[2] == os.environ["SLURM_JOB_ID"]:
    (Path(os.environ["PRETENDED_SLURM"]) / "requeue").touch()
else:
    sys.exit(f"scontrol: {sys.argv[1:]}")
"""


def install(folder: Path, **variables: str) -> dict[str, str]:
    """Write the three commands into a folder, and return the environment in which they are found."""
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        command = folder / name
        command.write_text(f"#!{sys.executable}\n{text}")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    plain = {name: value for name, value in os.environ.items() if not re.match("SLURM_|PRETENDED_", name)}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**plain, "PATH": path, "PRETENDED_SLURM": str(folder), "PYTHON": sys.executable, **variables}

"""Known vulnerabilities of what is required: of the oldest versions that requirements.txt allows and of the newest.

    python -m benchmarks.robustness.audit                # `make audit`
    python -m benchmarks.robustness.audit --service osv

pip says which versions those are, with all that they need in turn, and installs nothing; pip-audit asks its data base
about each. Exit status 0: nothing is known; 1: something is, and is printed; 2: nobody knows, as where pip or the data
base cannot be reached.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.command import ROOT, make_own_parser
from benchmarks.robustness.versions import oldest
from utils.command import run_command
from utils.errors import UserError
from utils.files import write_text
from utils.text import tell

REQUIREMENTS = "requirements.txt"


class Finding(NamedTuple):
    """A vulnerability that is known of a version, and the versions that end it."""

    package: str
    version: str
    name: str
    mended: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}: {self.name} ({self.mended})"


def ask(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a module of this interpreter in the project's folder."""
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a command has said."""
    return ((done.stderr.strip() or done.stdout.strip()).splitlines() or [f"status {done.returncode}"])[-1][:300]


def resolved(constraints: Sequence[str], folder: Path) -> list[str]:
    """Return `name==version` of all that pip would install; a UserError has its last line where it cannot say."""
    listed, report = folder / "constraints.txt", folder / "report.json"
    write_text(listed, "\n".join([*constraints, ""]))
    words = ["pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
    done = ask([*words, "--requirement", REQUIREMENTS, "--constraint", str(listed)])
    if done.returncode:
        raise UserError(f"pip cannot say which versions would be installed: {last_line(done)}")
    found = [entry["metadata"] for entry in json.loads(report.read_text(encoding="utf-8"))["install"]]
    return sorted(f"{one['name']}=={one['version'].partition('+')[0]}" for one in found)


def audit(pins: Sequence[str], folder: Path, service: str) -> list[Finding]:
    """Return what is known of versions; a UserError where pip-audit is not here or cannot reach its data base."""
    listed = folder / "pins.txt"
    write_text(listed, "\n".join([*pins, ""]))
    words = ["pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    done = ask([*words, "--vulnerability-service", service, "--requirement", str(listed)])
    try:
        return findings(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"not audited: pip-audit is not installed or cannot reach its data base ({last_line(done)})"
        ) from error


def findings(report: dict[str, Any]) -> list[Finding]:
    """Return what a report of pip-audit says; a ValueError where it passed a package over."""
    passed = [entry["name"] for entry in report["dependencies"] if "vulns" not in entry]
    if passed:
        raise ValueError(f"nothing is said of {', '.join(passed)}")
    return [
        Finding(entry["name"], entry["version"], known["id"], f"mended in {', '.join(known['fix_versions']) or 'none'}")
        for entry in report["dependencies"]
        for known in entry["vulns"]
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_own_parser("robustness.audit", __doc__, results=False)
    parser.add_argument("--service", choices=["pypi", "osv"], default="pypi", help="whose data base is asked [pypi]")
    own = parser.parse_args(argv)
    constraints = {"oldest": oldest((ROOT / REQUIREMENTS).read_text(encoding="utf-8")), "newest": []}
    all_found: list[Finding] = []
    for name, of_name in constraints.items():
        with tempfile.TemporaryDirectory() as folder:
            pins = resolved(of_name, Path(folder))
            found = audit(pins, Path(folder), own.service)
        tell(f"{name}: {len(pins)} packages, {len(found)} known vulnerabilities", flush=True)
        for one in found:
            tell(f"  {one}")
        all_found += found
    if all_found:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)

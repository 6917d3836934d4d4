"""Compares the pinned versions with PyPI's list of vulnerabilities: `audit.py PIP_AUDIT`.

Ends with 1 and their names if any is known to be vulnerable, and with 3 where the list cannot be
had: without a network, or from a mirror that has the files alone.
"""

import json
import subprocess
import sys
from pathlib import Path

PINNED = Path(__file__).resolve().parents[1] / "constraints.txt"
WAIT = 60
"""Seconds that it may take."""
CANNOT_BE_HAD = 3


def verdict(found: str) -> tuple[int, list[str]]:
    """The exit code and the lines for what pip-audit has written as JSON.

    Example:
        >>> verdict('{"dependencies": [{"name": "torch", "skip_reason": "not found"}]}')
        (3, ['none of 1 distributions could be looked up: not found'])
        >>> known = '[{"id": "PYSEC-1", "fix_versions": ["2.0"]}]'
        >>> verdict('{"dependencies": [{"name": "a", "version": "1.0", "vulns": %s}]}' % known)
        (1, ['a 1.0: PYSEC-1, fixed in 2.0'])
    """
    try:
        listed = json.loads(found)["dependencies"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return CANNOT_BE_HAD, ["pip-audit has written no list"]
    skipped = [each["skip_reason"] for each in listed if "skip_reason" in each]
    if len(skipped) == len(listed):
        reason = skipped[0] if skipped else "the list is empty"
        return CANNOT_BE_HAD, [f"none of {len(listed)} distributions could be looked up: {reason}"]
    bad = [
        f"{each['name']} {each['version']}: {known['id']}, fixed in "
        f"{' or '.join(known['fix_versions']) or 'no version yet'}"
        for each in listed
        for known in each.get("vulns", ())
    ]
    looked_up = f"{len(listed) - len(skipped)} of {len(listed)} distributions looked up"
    return (1, bad) if bad else (0, [f"{looked_up}, none is known to be vulnerable"])


def main(program: str) -> int:
    """Runs pip-audit, and gives the exit code."""
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    command = [program, "--requirement", str(PINNED), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT)
    except subprocess.TimeoutExpired:
        print(f"PyPI has not answered within {WAIT} s")
        return CANNOT_BE_HAD
    code, lines = verdict(done.stdout)
    print(*lines, *([done.stderr.strip()[-500:]] if not done.stdout else []), sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

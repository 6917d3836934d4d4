"""Fails unless a wheel holds exactly the tracked files of the package: `compare_wheel.py WHEEL`."""

import subprocess
import sys
import zipfile
from pathlib import PurePosixPath

LINKS = {"models", "guides", "data", "cli.py"}

tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True)
wanted = set()
for name in tracked.stdout.splitlines():
    path = PurePosixPath(name)
    linked = path.parts[0] in LINKS
    if path.suffix not in (".py", ".csv", ".json") and path.name != "py.typed":
        continue
    if linked or path.parts[0] == "elbowroom":
        wanted.add(str("elbowroom" / path if linked else path))
wanted -= {f"elbowroom/{link}" for link in LINKS - {"cli.py"}}

with zipfile.ZipFile(sys.argv[1]) as wheel:
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
if found != wanted:
    sys.exit(f"missing: {sorted(wanted - found)}\nbeside: {sorted(found - wanted)}")
print(f"{len(found)} files")

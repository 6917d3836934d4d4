"""Makes an environment of Python 3.13 with torch, and installs nothing: `python313.py FOLDER`.

Debian 13 has both, torch built for the CPU (PyPI's needs gigabytes of CUDA). Its packages are
unpacked into FOLDER/debian, and run with their own C library, whichever the machine's is;
FOLDER/venv is an environment without pip that sees torch alone of them. Downloads about 190 MB
from the mirror that the machine's apt is configured for, and takes 1 GB; all of it in FOLDER.

Ends with 3, and a line that says why, where it cannot be had.
"""

import hashlib
import lzma
import re
import shutil
import subprocess
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import NoReturn

SUITE = "trixie"
WANTED = ("python3.13", "python3-torch")
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
MOST = 400_000_000
"""Bytes that are downloaded at most."""
CANNOT_BE_HAD = 3


def give_up(reason: str) -> NoReturn:
    """Ends the script."""
    print(reason)
    sys.exit(CANNOT_BE_HAD)


def output_of(*command: str) -> str:
    """What a command prints."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        give_up(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout


def mirrors(folder: Path) -> list[str]:
    """Where apt is configured to look; it is asked with a state of its own, and changes nothing."""
    state, cache = folder / "state", folder / "cache"
    (state / "lists/partial").mkdir(parents=True)
    (cache / "archives/partial").mkdir(parents=True)
    folders = ["-o", f"Dir::State={state}", "-o", f"Dir::Cache={cache}"]
    listed = output_of("apt-get", *folders, "--print-uris", "update")
    return list(dict.fromkeys(re.findall(r"'(https?://[^']+?)/*/dists/", listed)))


def download(address: str, sha256: str | None = None) -> bytes:
    """A file of the mirror, compared with its hash."""
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            content: bytes = answer.read()
    except (OSError, HTTPException) as error:
        give_up(f"{address}: {error}")
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        give_up(f"{address} is not the file that the signed index tells of")
    return content


def release_of(mirror: str, folder: Path) -> str:
    """The suite's list of indexes, as signed with a key that this machine knows."""
    signed, content = folder / "InRelease", folder / "Release"
    signed.write_bytes(download(f"{mirror}/dists/{SUITE}/InRelease"))
    verify = ["gpgv", "--quiet", "--keyring", KEYS, "--output", str(content), str(signed)]
    if subprocess.run(verify, capture_output=True, check=False).returncode:
        give_up(f"{SUITE} is not signed with a key of {KEYS}")
    return content.read_text()


def index_of(mirror: str, folder: Path) -> dict[str, dict[str, str]]:
    """The fields of each package of the suite, by its name."""
    architecture = output_of("dpkg", "--print-architecture").strip()
    name = f"main/binary-{architecture}/Packages.xz"
    entries = re.findall(rf"^ ([0-9a-f]{{64}}) +\d+ {name}$", release_of(mirror, folder), re.M)
    if not entries:
        give_up(f"{SUITE} has no {name}")
    packed = download(f"{mirror}/dists/{SUITE}/{name}", entries[0])
    packages = {}
    for paragraph in lzma.decompress(packed).decode().split("\n\n"):
        fields = dict(re.findall(r"^(\S+): (.*)$", paragraph, flags=re.M))
        if fields:
            packages[fields["Package"]] = fields
    return packages


def needed(packages: dict[str, dict[str, str]]) -> list[str]:
    """What is wanted and all that it depends on, but for Python's modules: pip brings those."""
    providers: dict[str, str] = {}
    for name, fields in packages.items():
        for provided in fields.get("Provides", "").split(", "):
            providers.setdefault(provided.split(" ")[0], name)
    found: list[str] = []
    queue = list(WANTED)
    while queue:
        name = queue.pop()
        name = name if name in packages else providers.get(name, "")
        if not name:
            give_up(f"{SUITE} lacks what {WANTED} depends on")
        module = name == "python3" or name.startswith("python3-")
        if name in found or (module and name not in WANTED):
            continue
        found.append(name)
        for field in ("Depends", "Pre-Depends"):
            for alternatives in filter(None, packages[name].get(field, "").split(", ")):
                queue.append(re.split("[ :]", alternatives)[0])
    return found


def unpack(folder: Path) -> None:
    """Downloads and unpacks the packages."""
    # Debian's archive is called so on every mirror; beside it lie its security updates, and others.
    mirror = next((m for m in mirrors(folder) if m.endswith("/debian")), None)
    if mirror is None:
        give_up("apt is configured for no mirror of Debian's")
    packages = index_of(mirror, folder)
    names = needed(packages)
    size = sum(int(packages[name]["Size"]) for name in names)
    if size > MOST:
        give_up(f"{len(names)} packages of {size / 1e6:.0f} MB are too much to download")
    for name in names:
        fields = packages[name]
        archive = folder / "package.deb"
        archive.write_bytes(download(f"{mirror}/{fields['Filename']}", fields["SHA256"]))
        subprocess.run(["dpkg-deb", "-x", archive, folder / "debian"], check=True)
        archive.unlink()
    print(f"{len(names)} packages of {SUITE} unpacked, {size / 1e6:.0f} MB downloaded")


def make_environment(folder: Path) -> None:
    """Has the unpacked Python run with its own libraries, and makes the environment."""
    python = folder / "debian/usr/bin/python3.13"
    program = python.rename(python.with_name("python3.13-itself"))
    loader = next((folder / "debian/usr/lib").glob("*-linux-gnu*/ld-linux-*.so.*"), None)
    if loader is None:
        give_up(f"{SUITE} has no loader here where it is looked for")
    near = loader.parent  # beside which libgloo lies
    libraries = [near, near / "blas", near / "lapack", near.parent]
    path = ":".join(map(str, libraries))
    python.write_text(
        f'#!/bin/sh\nexec {loader} --argv0 "$0" --library-path {path} {program} "$@"\n'
    )
    python.chmod(0o755)
    subprocess.run([python, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    site = folder / "venv/lib/python3.13/site-packages"
    for part in (folder / "debian/usr/lib/python3/dist-packages").glob("torch*"):
        (site / part.name).symlink_to(part)
    environment = folder / "venv/bin/python"
    subprocess.run([environment, "-c", "import sys; print('Python', sys.version)"], check=True)


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    place.mkdir(parents=True, exist_ok=True)
    absent = [tool for tool in ("apt-get", "dpkg", "dpkg-deb", "gpgv") if not shutil.which(tool)]
    if absent:
        give_up(f"no {' or '.join(absent)}: not a Debian machine")
    unpack(place)
    make_environment(place)

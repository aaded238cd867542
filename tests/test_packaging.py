"""The lock: complete, with hashes, and free of whatever belongs to one machine."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements" / "cpu.txt").read_text()
TORCH = (ROOT / "requirements" / "torch-cpu.txt").read_text()
PINNED = re.compile(r"^([a-z0-9._-]+)==(\S+)", re.MULTILINE)


def test_every_dependency_of_the_project_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    names = {re.split(r"[<>=!\[ ]", line)[0].lower() for line in asked}
    assert names - {name for name, _ in PINNED.findall(LOCK + TORCH)} == set()


def test_every_locked_package_has_a_hash() -> None:
    entries = re.split(r"\n(?=[a-z0-9])", re.sub(r"^#.*\n", "", LOCK + TORCH, flags=re.MULTILINE))
    assert [entry.split()[0] for entry in entries if "==" in entry and "--hash=sha256:" not in entry] == []
    assert len(entries) > 50


def test_the_lock_names_no_index_and_no_cuda_package() -> None:
    assert re.findall(r"^(?:--|-[if]|.*://).*", LOCK + TORCH, re.MULTILINE) == []
    assert [name for name, _ in PINNED.findall(LOCK) if re.match(r"nvidia|cuda|triton|torch$", name)] == []


def test_lightning_is_no_version_with_a_known_hole() -> None:
    version = dict(PINNED.findall(LOCK))["lightning"]
    assert tuple(map(int, version.split("."))) >= (2, 6, 6)

"""The README, docs/ and CONTRIBUTING: commands parse, quick ones run, and what they name exists."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, TINY, train
from test_stages import Done

from amrs.config import STAGES, help_text, parse
from amrs.importers import ADVICE, IMPORTERS
from amrs.report.rows import GROUPS, METRICS, MODELS, POLICIES, SECTIONS, SIGNALS
from amrs.runs import RunError, plan

README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
DOCS = {f"docs/{path.name}": path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
MANUAL = "\n".join([README, *DOCS.values()])
PAGES = {
    "README.md": README,
    "CONTRIBUTING.md": CONTRIBUTING,
    "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text(),
    **DOCS,
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OTHER_TOOLS = {"env", "git", "hf", "pip", "sbatch", "source", "wandb"}
"""Commands of others, which no test here runs."""


def blocks(text: str, language: str) -> list[str]:
    """Code blocks in that language."""
    return [body for name, body in FENCE.findall(text) if name == language]


def commands(text: str) -> list[list[str]]:
    """Words of every shell command in the code blocks, comments left out."""
    lines = [line for body in blocks(text, "sh") for line in body.replace("\\\n", " ").splitlines()]
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [line for line in words if line]


COMMANDS = [line for page in (MANUAL, CONTRIBUTING) for line in commands(page)]
TRAIN = [line[2:] for line in COMMANDS if line[:2] == ["python", "train.py"]]


def script(line: list[str]) -> str:
    """The file that a python command runs."""
    if line[1] != "-m":
        return line[1]
    path = line[2].replace(".", "/")
    return f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py"


def make_targets() -> set[str]:
    """Phony targets of the Makefile."""
    return set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def anchors(text: str) -> set[str]:
    """What links can point at in a page: its headings as a code host names them."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def paths(page: str) -> Iterator[str]:
    """Paths in this repository that a page links to, or names in backquotes."""
    prose = FENCE.sub("", PAGES[page])
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose):
        if "://" not in target:
            yield str(Path(page).parent / target)
    known = r"(?:amrs|configs|tests|examples|benchmarks|requirements|sweeps|docs|notebooks)"
    yield from re.findall(rf"`({known}/[\w./]*)`", prose)


def tree() -> dict[str, str]:
    """Path to what the tree of CONTRIBUTING says of it."""
    (body,) = [body for body in blocks(CONTRIBUTING, "") if body.startswith("train.py")]
    found, folders = {}, []
    for line in body.splitlines():
        name, _, what = line.strip().partition("  ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        found["".join(folders)] = what.strip()
    return found


def test_the_readme_has_commands_of_every_stage() -> None:
    given = {word.partition("=")[2] for line in TRAIN for word in line if word.startswith("stage=")}
    assert given == set(STAGES)


@pytest.mark.parametrize("arguments", TRAIN, ids=" ".join)
def test_train_command_is_accepted(arguments: list[str]) -> None:
    if help_text(arguments) is None:
        stage = parse(arguments).config.stage
        assert f"stage={stage}" in arguments


@pytest.mark.parametrize("arguments", TRAIN, ids=" ".join)
def test_train_command_has_a_plan_that_ends_in_its_stage(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if help_text(arguments) is not None:
        return
    (tmp_path / "DIR").mkdir()
    for name in ("DIR/map.yaml", "FILE.parquet"):
        (tmp_path / name).touch()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    config = parse(arguments).config
    if "FINGERPRINT" in " ".join(arguments):
        with pytest.raises(RunError, match="no finished run"):
            plan(config)
    else:
        assert plan(config)[-1].stage == config.stage


def test_every_other_command_is_make_a_file_here_or_a_known_tool() -> None:
    rest = [line for line in COMMANDS if line[:2] != ["python", "train.py"]]
    made = [line for line in rest if line[0] == "make"]
    assert {line[1] for line in made} <= make_targets()
    scripts = [script(line) for line in rest if line[0] == "python"]
    assert scripts and all((ROOT / name).is_file() for name in scripts)
    assert {line[0] for line in rest} - {"make", "python", "cd"} <= OTHER_TOOLS


def test_make_targets_in_prose_exist() -> None:
    named = {match for page in PAGES.values() for match in re.findall(r"`make (?:[A-Z_]+=\S+ )?(\w+)`", page)}
    assert {"help", "setup"} <= named <= make_targets()


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_of_a_page_exist(page: str) -> None:
    missing = [name for name in paths(page) if "<" not in name and not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_links_to_headings_of_a_page_find_them(page: str) -> None:
    for target, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", FENCE.sub("", PAGES[page])):
        other = PAGES[page] if not target else (ROOT / Path(page).parent / target).resolve().read_text()
        assert heading in anchors(other), f"{target}#{heading}"


def test_the_readme_leads_to_every_page_of_docs() -> None:
    assert all(f"]({page})" in README for page in DOCS)


def test_paths_of_the_tree_exist() -> None:
    named = tree()
    assert len(named) > 30
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_tree_names_every_module_and_package_of_amrs() -> None:
    inside = {
        path.name + "/" * path.is_dir()
        for path in (ROOT / "amrs").iterdir()
        if not path.name.startswith("__")
    }
    assert inside - {name.removeprefix("amrs/") for name in tree()} == set()


def test_the_readme_names_every_data_set_and_says_where_situnes_is() -> None:
    assert all(f"data={name}" in MANUAL for name in IMPORTERS)
    (link,) = re.findall(r"https://\S+", ADVICE["situnes"])
    assert link in MANUAL


def test_the_map_that_is_shown_is_the_example_s() -> None:
    lines = (ROOT / "examples" / "own_log" / "map.yaml").read_text().splitlines(keepends=True)
    assert blocks(README, "yaml") == ["".join(line for line in lines if not line.startswith("#"))]


def test_the_report_s_page_names_every_section_subject_signal_metric_and_group() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCS["docs/report.md"], re.MULTILINE))
    named = {key: re.findall(r"`(\w+)[\w:<>]*`", text) for key, text in table.items()}
    variants = {"ablation", "tilt", "front"}
    assert set(named["section"]) == set(SECTIONS) and set(named["signal"]) == set(SIGNALS)
    assert set(named["subject"]) == {*MODELS, *POLICIES, *variants}
    metrics, groups = (DOCS["docs/report.md"].partition(f"## {name}\n")[2] for name in ("Metrics", "Groups"))
    rows = [set(re.findall(r"`(\w+)", text.partition("\n## ")[0])) for text in (metrics, groups)]
    assert rows[0] == set(METRICS)
    assert set(GROUPS) <= rows[1]


def test_a_row_of_the_report_is_as_its_page_shows_it(evaluated: Done) -> None:
    folder = Path(evaluated[1].stdout.splitlines()[-1])
    rows = json.loads((folder / "report.json").read_text())["rows"]
    (example,) = blocks(DOCS["docs/report.md"], "json")
    assert list(json.loads(example)) == list(rows[0])


# From here on, commands are run as the README has them.

LONG = {
    "stage=bc model=tiny log=disabled trainer.max_steps=100": [*TINY[:3], "trainer.max_steps=10"],
    "stage=dpo utility.weights.valence=0.7 utility.weights.arousal=0.3 dpo.beta=0.1": [
        a for a in TINY if not a.startswith("evaluate")
    ],
}
"""Commands that take minutes, with overrides that make them small."""


def given(command: str) -> list[str]:
    """The arguments of a command that the README holds."""
    assert command.split() in TRAIN, f"the README has no `python train.py {command}`"
    return command.split()


@pytest.mark.parametrize("command", ["--help", "stage=dpo --help"])
def test_help_runs(command: str) -> None:
    assert "dpo.beta=1 " in train(*given(command)).stdout


def test_dry_run_prints_a_plan_and_makes_nothing(tmp_path: Path) -> None:
    done = train(*given("stage=evaluate --dry-run"), cwd=tmp_path)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "prepare", "world_model", "labeller", "judge", "bc", "preferences", "dpo", "evaluate",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_own_log_is_read_as_the_readme_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = train(*given("stage=prepare data=table data.raw_dir=examples/own_log"), f"runs={tmp_path}")
    (code,) = [block for block in blocks(MANUAL, "python") if "read_log" in block]
    (folder,) = tmp_path.glob("prepare/*/log")
    assert done.stdout.splitlines()[-1] == str(folder.parent)
    exec(code.replace("runs/prepare/FINGERPRINT/log", str(folder)))
    shown = capsys.readouterr().out
    assert "own_log" in shown and "track_id" in shown


def test_the_table_of_runs_is_read_as_the_readme_reads_it(
    evaluated: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = [block for block in blocks(MANUAL, "python") if "amrs.runs.load" in block]
    exec(code.replace('load("runs")', f"load({str(evaluated[0])!r})"))
    assert "evaluate  finished" in capsys.readouterr().out


def test_a_policy_of_ones_own_is_compared_as_the_readme_does_it(
    evaluated: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = [block for block in blocks(MANUAL, "python") if "judged" in block]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("import ", "from "))]) == 10
    exec(code.replace('"experiment=demo"', f"*{[*TINY, f'runs={evaluated[0]}']}"), {})
    assert capsys.readouterr().out.count("Own (newest)") == 4


def test_cloning_runs_and_ends_with_its_folder(tmp_path: Path) -> None:
    command = "stage=bc model=tiny log=disabled trainer.max_steps=100"
    done = train(*given(command), *LONG[command], f"runs={tmp_path}")
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.parent == tmp_path / "bc" and (folder / "checkpoints" / "best.ckpt").exists()


def test_dpo_with_another_utility_reuses_world_model_and_copycat(evaluated: Done, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(evaluated[0], tmp_path / "runs"))
    command = "stage=dpo utility.weights.valence=0.7 utility.weights.arousal=0.3 dpo.beta=0.1"
    done = train(*given(command), *LONG[command], f"runs={runs}")
    said = dict(line.split()[:2] for line in done.stderr.splitlines() if "runs/" in line)
    assert said["labeller:"] == said["bc:"] == "reusing"
    assert said["preferences:"] == said["dpo:"] == "running"

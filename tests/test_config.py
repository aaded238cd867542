"""Settings: precedence, what is refused and in which words, help, and the way back to arguments."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from amrs.config import (
    PARENTS,
    SHARED,
    STAGES,
    ConfigError,
    accepted,
    arguments,
    dump,
    help_text,
    load,
    parse,
    to_dict,
)
from amrs.config.graph import Config
from amrs.config.refusals import SETTINGS
from amrs.config.stages import PolicyName
from amrs.runs import RunError, plan

ROOT = Path(__file__).parents[1]


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of YAML files of our own in place of configs/, with one entry per level of precedence."""
    for group, text in {
        "model/wide": "width: 96\nlayers: 3\nheads: 4",
        "stage/bc": "model: {layers: 5, heads: 16}",
        "experiment/x": "model: {heads: 8}\ndpo: {beta: 7}\nbc: {patience: 9}",
        "experiment/picks": "model: wide",
        "experiment/typo": "dpo: {bta: 7}",
        "experiment/impossible": "dpo: {beta: -1}",
    }.items():
        path = tmp_path / f"{group}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(arguments, "FOLDER", tmp_path)
    return tmp_path


def refusal(*argv: str) -> str:
    """The words in which `argv` is refused."""
    with pytest.raises(ConfigError) as caught:
        load(list(argv))
    return str(caught.value)


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested dict."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def as_argument(key: str, value: Any) -> str:
    """`key=value` as a user types it."""
    return f"{key}={value}" if isinstance(value, str) else f"{key}={json.dumps(value)}"


def test_each_level_of_precedence_beats_the_one_before(configs: Path) -> None:
    argv = ["stage=bc", "model=wide", "experiment=x", "model.history=32"]
    model = load(argv).model
    assert (model.width, model.layers, model.heads, model.history) == (96, 5, 8, 32)
    assert load([*argv, "model.heads=2"]).model.heads == 2
    assert load(["stage=prepare"]).model == Config("prepare").model


def test_a_group_picked_by_an_argument_beats_the_experiments_pick(configs: Path) -> None:
    assert load(["stage=prepare", "experiment=picks"]).model.width == 96
    (configs / "model" / "narrow.yaml").write_text("width: 16")
    assert load(["stage=prepare", "experiment=picks", "model=narrow"]).model.width == 16


def test_an_experiment_sets_only_what_the_stage_reads(configs: Path) -> None:
    assert load(["stage=bc", "experiment=x"]).dpo.beta == Config("bc").dpo.beta
    assert load(["stage=bc", "experiment=x"]).bc.patience == 9
    assert load(["stage=dpo", "experiment=x"]).dpo.beta == 7


def test_an_experiments_faults_are_refused_in_sections_that_the_stage_does_not_read(configs: Path) -> None:
    assert "configs/experiment/typo.yaml: dpo.bta" in refusal("stage=bc", "experiment=typo")
    assert "dpo.beta=-1.0" in refusal("stage=bc", "experiment=impossible")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("dpo.beta=.7", 0.7),
        ("dpo.beta=1e-05", 1e-05),
        ("dpo.beta=3", 3.0),
        ("dpo.loss=hard", "hard"),
        ("trainer.max_steps=None", None),
        ("trainer.max_steps=null", None),
        ("trainer.max_steps=7", 7),
        ("log.project=007", "007"),
        ("data.map=None", None),
        ("log.project=a b: c=d", "a b: c=d"),
        ("utility.standardise=false", False),
        ("utility.modes.calm.arousal=up", "up"),
        ("utility.modes.calm.arousal=0.25", "0.25"),
        ("utility.modes.party.valence=down", "down"),
        ("data.platform.variant=drift", "drift"),
    ],
)
def test_values_are_read_as_they_are_typed(argument: str, expected: object) -> None:
    found = leaves(to_dict(load(["stage=dpo", argument])))[argument.partition("=")[0]]
    assert found == expected
    assert type(found) is type(expected)


def test_a_mapping_sets_the_keys_that_it_names_and_no_other() -> None:
    given = load(
        ["stage=dpo", "utility.weights={valence: 1, arousal: 0}", "utility.modes.calm={arousal: up}"]
    )
    assert (given.utility.weights.valence, given.utility.weights.arousal) == (1, 0)
    assert given.utility.modes == Config("dpo").utility.modes | {"calm": {"arousal": "up"}}


def test_one_command_sets_the_utility_a_parent_and_the_stage() -> None:
    argv = ["stage=dpo", "utility.weights.valence=.7", "preferences.sampler=corrective", "dpo.beta=.2"]
    config = load(argv)
    assert (config.utility.weights.valence, config.dpo.beta) == (0.7, 0.2)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("", "no stage: write stage=NAME, one of prepare, world_model, bc,"),
        ("stage=dppo", "stage=dppo: must be one of prepare,|Did you mean dpo?"),
        (
            "stage=dpo utility.weights.valense=.7",
            "Did you mean utility.weights.valence?|engagement, rating, val",
        ),
        ("stage=dpo dpo.bta=1", "dpo.bta: no such setting. Did you mean dpo.beta?|Keys of dpo: loss, beta,"),
        ("stage=dpo beta=1", "Did you mean dpo.beta?|stage=dpo accepts stage, experiment, seed,"),
        ("stage=bc dpo.beta=.1", "stage=bc does not read dpo. stage=bc accepts|and bc; see"),
        ("stage=prepare bc.patience=2", "stage=prepare does not read bc."),
        ("stage=dpo evaluate.splits=2", "stage=dpo does not read evaluate."),
        ("stage=dpo dpo.beta", "dpo.beta: settings are key=value|for example: python train.py"),
        ("stage=dpo --dpo.beta=1", "--dpo.beta=1: the only options are --help and --dry-run"),
        ("stage=dpo dpo.beta=", "dpo.beta=: no value"),
        ("stage=dpo dpo.beta=much", "dpo.beta=much: must be a number"),
        ("stage=dpo dpo.beta=nan", "dpo.beta=nan: must be a number"),
        ("stage=dpo dpo.beta=inf", "dpo.beta=inf: must be a number"),
        ("stage=dpo dpo.beta=null", "dpo.beta=null: must be a number"),
        ("stage=dpo dpo.max_steps=1.5", "dpo.max_steps=1.5: must be an integer"),
        ("stage=dpo dpo.max_steps=[1", "dpo.max_steps=[1: not a YAML value"),
        ("stage=dpo dpo.max_steps.x=1", "dpo.max_steps is an integer, no keys are below it"),
        ("stage=dpo utility.standardise=yess", "utility.standardise=yess: must be true or false"),
        ("stage=dpo dpo.loss=sfot", "dpo.loss=sfot: must be one of soft, hard, conservative,"),
        ("stage=dpo log.wandb=on", "log.wandb=on: must be one of auto, disabled, offline, online"),
        ("stage=dpo dpo=3", "dpo is a section: write dpo.KEY=VALUE; keys of dpo: loss,"),
        ("stage=dpo parents=3", "parents is a section|labeller, judge"),
        (
            "stage=dpo data=situne",
            "data=situne: must be one of platform, situnes, table|Did you mean situnes?",
        ),
        ("stage=dpo model=tinny", "model=tinny: must be one of|Did you mean tiny?"),
        ("stage=dpo experiment=dmo", "experiment=dmo: must be one of|Did you mean demo?"),
        ("stage=dpo utility.modes.calm=up", "utility.modes.calm=up: must be a mapping"),
        ("stage=dpo utility.modes.calm.arousal=dwn", "utility.modes.calm.arousal=dwn: must be up, down or a"),
        ("stage=dpo data.platform.usres=99", "Did you mean data.platform.users?"),
        # What the dataclasses refuse.
        ("stage=dpo dpo.beta=0", "dpo.beta=0.0: must be above 0"),
        ("stage=dpo model.width=65", "model.width=65: must be a positive multiple of model.heads=2"),
        ("stage=dpo data.platform.users=3", "data.platform.users=3: must be"),
        ("stage=dpo data.raw_dir=${x}", "data.raw_dir=${x}: must be text"),
        ("stage=evaluate evaluate.dpo=corective", "evaluate.dpo=corective: must be SAMPLER or SAMPLER:LOSS"),
        ("stage=evaluate evaluate.dpo=margin:sfot", "evaluate.dpo=margin:sfot: must be|regression, s_dpo"),
        ("stage=evaluate evaluate.dpo=on_policy", "rounds of on_policy are trained by stage=dpo"),
        ("stage=evaluate evaluate.front=[0.5]", "evaluate.front=[0.5]: must be two or more shares in [0, 1]"),
    ],
)
def test_what_is_wrong_is_refused_with_what_is_allowed(argv: str, words: str) -> None:
    message = refusal(*argv.split())
    assert [part for part in words.split("|") if part not in message] == [], message


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_accepts_its_own_section_and_its_ancestors(stage: Any) -> None:
    own = {name for name in (stage, *PARENTS[stage]) if name != "prepare"}
    assert set(accepted(stage)) == {"stage", "seed", "runs", *SHARED, *own}


def test_parents_are_listed_with_all_their_own_parents() -> None:
    for stage, parents in PARENTS.items():
        assert all(set(PARENTS[parent]) <= set(parents) for parent in parents), stage


ARGV = [
    *("stage=evaluate", "data=situnes", "model=tiny", "trainer=ddp", "utility=published", "log=offline"),
    *("cluster=local", "experiment=demo", "data.raw_dir=some dir", "dpo.learning_rate=1e-05", "seed=3"),
]


@pytest.mark.parametrize("argv", [["stage=prepare"], ["stage=bc", "experiment=demo"], ARGV])
def test_every_key_of_the_dump_is_an_argument_that_gives_it_back(argv: list[str]) -> None:
    config = load(argv)
    written = yaml.safe_load(dump(config))
    assert load([as_argument(key, value) for key, value in leaves(written).items()]) == config


def test_to_dict_holds_what_the_stage_accepts_and_only_plain_values() -> None:
    plain = to_dict(load(["stage=bc"]))
    assert tuple(plain) == accepted("bc")
    assert json.loads(json.dumps(plain)) == plain


def test_settings_that_are_frozen_stay_frozen() -> None:
    platform = load(["stage=bc", "data.platform.users=20"]).data.platform
    assert platform.users == 20
    with pytest.raises(dataclasses.FrozenInstanceError):
        platform.users = 30  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_file_of_configs_holds_valid_keys_that_differ_from_the_defaults(path: Path) -> None:
    group = path.parent.name
    default = leaves(to_dict(load(["stage=evaluate"])))
    picked = leaves(to_dict(load(["stage=evaluate", f"{group}={path.stem}"])))
    prefix = "" if group in ("experiment", "stage") else f"{group}."
    written = yaml.safe_load(path.read_text())
    of_stages = {key: written.pop(key) for key in STAGES if key in written}  # a data set's
    held = {*leaves(written, prefix), *leaves(of_stages)} - {*SHARED, "data.name"}
    assert {key for key in held if picked[key] == default[key]} == set()


def test_the_published_utility_is_half_valence_half_arousal_both_up() -> None:
    utility = load(["stage=dpo", "utility=published"]).utility
    assert vars(utility.weights) == {"engagement": 0, "rating": 0, "valence": 0.5, "arousal": 0.5}
    assert {mode["arousal"] for mode in utility.modes.values()} == {"up"}
    assert not utility.standardise


def test_choices_are_the_keys_of_the_parts_that_can_be_plugged_in() -> None:
    from amrs.importers import IMPORTERS
    from amrs.lineup import LINEUP
    from amrs.logs.histories import BLIND_TO
    from amrs.losses import DPO_LOSSES
    from amrs.pairs import SAMPLERS
    from amrs.studies import STUDIES

    assert SETTINGS["data.name"].choices == tuple(IMPORTERS)
    assert SETTINGS["preferences.sampler"].choices == tuple(SAMPLERS)
    assert SETTINGS["dpo.loss"].choices == tuple(DPO_LOSSES)
    assert get_args(PolicyName) == tuple(LINEUP)
    assert set(SETTINGS["world_model.without"].choices) == set(BLIND_TO)
    assert SETTINGS["evaluate.study"].choices == SETTINGS["evaluate.studies"].choices
    assert set(SETTINGS["evaluate.study"].choices) == set(STUDIES)


def test_a_list_of_one_needs_no_brackets() -> None:
    one, two = load(["stage=evaluate", "evaluate.chapters=fidelity"]), load(["stage=evaluate"])
    assert one.evaluate.chapters == ["fidelity"] and two.evaluate.chapters == ["fidelity", "policies"]
    given = load(["stage=evaluate", "evaluate.chapters=policies,fidelity"])
    assert given.evaluate.chapters == ["policies", "fidelity"]
    with pytest.raises(ConfigError, match="each one of fidelity, policies"):
        load(["stage=evaluate", "evaluate.chapters=fidelty"])
    with pytest.raises(ConfigError, match="different names"):
        load(["stage=evaluate", "evaluate.chapters=[fidelity,fidelity]"])


def test_dry_run_is_read_and_is_no_setting() -> None:
    assert parse(["stage=bc", "--dry-run"]).dry_run
    assert not parse(["stage=bc"]).dry_run
    assert parse(["stage=bc", "--dry-run"]).config == load(["stage=bc"])


def test_help_lists_every_setting_with_its_default_and_what_is_written_below_it() -> None:
    text = help_text(["--help"])
    assert text is not None
    lines = text.splitlines()
    missing = [
        key for key, s in SETTINGS.items() if key != "stage" and not any(f"  {key}" in x for x in lines)
    ]
    assert missing == []
    assert any(line.startswith("  dpo.loss=list   (one of soft, hard") for line in lines)
    assert "  utility.modes.focus.arousal=0.5   (text)" in lines
    assert "      Inverse temperature of DPO, above 0; larger keeps the policy nearer its reference." in lines
    assert all(f"stage={stage}" in text for stage in STAGES)


def test_help_of_a_stage_lists_only_what_it_accepts() -> None:
    text = help_text(["stage=bc", "--help"])
    assert text is not None
    assert "bc.patience=" in text
    assert "dpo.beta=" not in text
    assert help_text(["stage=bc"]) is None
    with pytest.raises(ConfigError, match="Did you mean dpo"):
        help_text(["stage=dppo", "--help"])


def test_every_setting_is_explained_below_its_field_or_above_its_section() -> None:
    silent = {key.rpartition(".")[0] for key, setting in SETTINGS.items() if not setting.doc}
    text = (help_text(["--help"]) or "").splitlines()
    assert [section for section in silent if not any(line.startswith(f"{section}: ") for line in text)] == []


HEAVY = "import sys; sys.argv = ['train.py', *sys.argv[1:]]; import runpy\n" + (
    "try: runpy.run_path('train.py', run_name='__main__')\n"
    "except SystemExit as end: code = end.code\n"
    "heavy = {'torch', 'lightning', 'datasets', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)\n"
    "print(sorted(heavy), code)"
)


@pytest.mark.parametrize(
    ("argv", "code"),
    [(["--help"], 0), (["stage=dpo", "--help"], 0), (["stage=dpo", "dpo.bta=1"], 2), ([], 2)],
)
def test_help_and_refusals_import_nothing_heavy(argv: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", HEAVY, *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"[] {code}"


def test_a_refusal_is_one_line_on_stderr_without_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "train.py", "stage=dpo", "dpo.beta=0"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "train.py: dpo.beta=0.0: must be above 0\n")


def test_every_threshold_of_the_gate_stands_in_its_file_with_a_reason() -> None:
    text = (ROOT / "configs" / "gate.yaml").read_text()
    assert set(yaml.safe_load(text)) == set(vars(Config("stress").gate))
    lines = text.splitlines()
    values = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    reasoned = [lines[i - 1].startswith("#") or i - 1 in values for i in values]
    assert all(reasoned) and load(["stage=stress", "gate.harm=.3"]).gate.harm == 0.3


def test_raw_files_are_not_read_for_the_platform() -> None:
    with pytest.raises(ConfigError, match=r"data.raw_dir=DIR: must be null for data=platform.*data=table"):
        parse(["stage=prepare", "data.raw_dir=DIR"])


def test_a_data_set_sets_what_its_stages_should_do_and_arguments_go_before_it() -> None:
    given = ["data=situnes", "data.raw_dir=DIR"]
    assert load(["stage=world_model"]).world_model.situation is False
    assert load(["stage=world_model", *given]).world_model.situation is True
    assert load(["stage=evaluate", *given, "world_model.situation=false"]).world_model.situation is False
    assert load(["stage=bc", *given]).world_model == load(["stage=bc"]).world_model  # which it does not read


@pytest.mark.parametrize("penalties", ["[]", "[1,2]", "[2,2]", "[1,0]"])
def test_penalties_fall_and_are_above_0(penalties: str) -> None:
    words = refusal("stage=world_model", f"world_model.penalties={penalties}")
    assert "must be one or more numbers above 0, falling" in words


@pytest.mark.parametrize("data", ["situnes", "table"])
def test_settings_of_the_platform_are_refused_with_other_data(data: str) -> None:
    words = refusal("stage=prepare", f"data={data}", "data.raw_dir=DIR", "data.platform.users=30")
    assert words.startswith("data.platform.users=30: must be left alone") and "data=platform" in words
    with pytest.raises(RunError, match="no such folder"):  # splits draw other worlds of the platform alone
        plan(load(["stage=evaluate", f"data={data}", "data.raw_dir=DIR", "evaluate.splits=2"]))


def test_a_map_is_refused_where_no_table_is_read() -> None:
    assert refusal("stage=prepare", "data.map=m.yaml") == "data.map=m.yaml: must be null, or with data=table"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("stage=bc data=table", "data.raw_dir is not given; give the folder of your tables"),
        ("stage=bc data=situnes data.raw_dir=DIR", "data.raw_dir=DIR: no such folder; .*SiTunes_dataset"),
        ("stage=bc data=table data.raw_dir=. data.map=no.yaml", "data.map=no.yaml: no such file"),
        ("stage=bc data=table data.raw_dir=. data.embeddings=no.npz", "data.embeddings=no.npz: no such file"),
        ("stage=embed embed.audio_dir=DIR", "embed.audio_dir=DIR: no such folder"),
    ],
)
def test_raw_files_that_are_not_there_are_told_by_the_plan(given: str, words: str) -> None:
    with pytest.raises(RunError, match=words):
        plan(load(given.split()))

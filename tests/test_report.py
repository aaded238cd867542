"""The report: rows are checked, files round-trip, the page is whole, self-contained, and fits its screen."""

import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from amrs.report import (
    Report,
    ReportError,
    Row,
    figures,
    finite_rows,
    load,
    over_splits,
    prose,
    stress,
    tables,
    terminal_table,
)
from amrs.report.listeners import in_words, too_few
from amrs.report.page import render
from amrs.report.words import _and, gain_findings, gain_sentence, model_findings, number, off_policy_findings
from amrs.stress.harm import upper_bound

FIT = {"world_model": 0.42, "track_blind": 0.36, "persistence_pre": 0.12, "persistence_last": -0.05,
       "user_mean": 0.21, "ridge": 0.33, "boosting": 0.37}  # fmt: skip
# policy: (valence gain, arousal gain, effective tracks, KL)
PLAYED = {"random": (-0.021, -0.012, 4100.0, 2.9), "popularity": (-0.004, 0.001, 310.0, 1.1),
          "production": (0.0012, 0.0006, 2050.0, 0.09), "copycat": (0.0, 0.0, 1900.0, 0.0),
          "greedy": (0.041, 0.033, 22.0, 6.4), "dpo": (0.0171, 0.0104, 1815.0, 0.048)}  # fmt: skip


FIT_METRICS = (
    ("valence", 0.0, "r2"), ("arousal", -0.05, "r2"), ("engagement", -0.1, "r2"), ("rating", 0.35, "auroc"),
)  # fmt: skip
GROUPS = ("cohort:clinical", "cohort:consumer", "mode:calm", "mode:energize", "mode:sleep")


def row(**changes):
    given = {
        "section": "realised", "subject": "dpo", "signal": "valence", "metric": "gain", "split": "mean",
        "group": "all", "value": 0.017, "low": 0.009, "high": 0.025, "n": 812, "unit": "scale points",
    }  # fmt: skip
    return Row(**{**given, **changes})


def around(value, half):
    return {"value": value, "low": value - half, "high": value + half}


def fidelity_rows():
    rows = []
    for subject, r2 in FIT.items():
        for signal, shift, metric in FIT_METRICS:
            if subject.startswith("persistence") and signal in ("engagement", "rating"):
                continue
            keys = {"section": "fidelity", "subject": subject, "signal": signal, "unit": "fraction", "n": 743}
            rows.append(row(**keys, metric=metric, **around(r2 + shift, 0.04)))
            if signal in ("valence", "arousal") and subject in ("world_model", "track_blind"):
                rows.append(row(**keys, metric="mae", **around(0.11 - 0.02 * r2, 0.004)))
                rows.append(row(**keys, metric="crps", **around(0.08 - 0.02 * r2, 0.003)))
                rows.append(row(**keys, metric="coverage_80", **around(0.79, 0.02)))
            for i, group in enumerate(GROUPS[:3] if subject == "world_model" else ()):
                keys["n"] = 60 + 90 * i
                rows.append(row(**keys, metric=metric, group=group, **around(r2 + shift, 0.09)))
    return rows


def policy_rows(sections=("realised", "predicted", "predicted_labeller")):
    rows = []
    for subject, (valence, arousal, tracks, kl) in PLAYED.items():
        gains = {"valence": valence, "arousal": arousal, "engagement": -valence / 9, "rating": -valence / 3}
        for section in sections:
            for signal, true in gains.items():
                gain = {"realised": 1.0, "predicted": 0.85, "predicted_labeller": 1.4}[section] * true
                keys = {"section": section, "subject": subject, "signal": signal}
                rows.append(row(**keys, metric="mean", **around(0.58 + gain, 0.01)))
                if subject == "copycat":
                    continue
                rows.append(row(**keys, metric="gain", **around(gain, 0.005)))
                rows.append(row(**keys, metric="gain_sd", **around(gain / 0.12, 0.05)))
                rows.append(row(**keys, metric="relative_gain", **around(gain / 0.58, 0.01)))
                for i, group in enumerate(GROUPS):
                    keys["n"] = 130 + 40 * i
                    rows.append(row(**keys, metric="gain", group=group, **around(gain, 0.02 - 0.003 * i)))
        keys = {"section": "diversity", "subject": subject, "signal": "all", "unit": ""}
        rows.append(row(**keys, metric="effective_tracks", **around(tracks, tracks * 0.05)))
        rows.append(row(**keys, metric="catalogue_coverage", **around(tracks / 5990, 0.001)))
        rows.append(row(**keys, metric="entropy", **around(math.log(tracks) / math.log(5990), 0.01)))
        rows.append(row(**keys, metric="intra_list", **around(0.71, 0.02)))
        rows.append(row(**keys, metric="kl", **around(kl, kl * 0.1)))
    return rows


PROVENANCE = {
    "data": [
        {"group": "All", "users": 939, "sessions": 8784, "plays": 87811, "share_clinical": 0.331,
         "missing_valence": 0.412, "missing_arousal": 0.42, "missing_rating": 0.871, "mean_valence": 0.583},
        {"group": "Cohort: clinical", "users": 311, "sessions": 2904, "plays": 30122, "share_clinical": 1.0,
         "missing_valence": 0.37, "missing_arousal": 0.38, "missing_rating": 0.951, "mean_valence": 0.521},
        {"group": "Mode: sleep", "users": 402, "sessions": 1502, "plays": 15002, "missing_valence": 0.5},
    ],
    "config": {"stage": "evaluate", "seed": 0, "dpo": {"beta": 1.0, "kl_budget": 0.05}},
    "versions": {"python": "3.11.9", "torch": "2.13.0", "lightning": "2.6.6"},
    "seeds": {"seed": 0, "data.split.seed": 0},
    "fingerprints": {"data": "9c1e" * 16, "world_model": "77ab" * 16},
    "commands": ["python train.py stage=evaluate experiment=demo model.width=64 evaluate.sessions=100"],
    "notes": ["Intervals draw users 1,000 times.", "A note with <b>markup</b> & signs."],
}  # fmt: skip


@pytest.fixture(scope="module")
def full():
    return Report(fidelity_rows() + policy_rows(), PROVENANCE)


@pytest.fixture(scope="module")
def page(full, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    full.save(folder)
    return folder / "report.html"


class Outline(HTMLParser):
    """Tags that were opened and not closed, addresses, headings, and table cells."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.faults, self.headings, self.images = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [value for key, value in attrs if key in ("src", "href", "action") and value]
        if given.get("role") == "img":
            self.images.append(given.get("aria-label", ""))
        if tag not in ("meta", "link", "br", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_a_saved_report_loads_with_the_same_rows_and_provenance(full, page):
    again = load(page.parent)
    assert again.rows == full.rows
    assert again.provenance == full.provenance
    assert set(json.loads((page.parent / "report.json").read_text())) == {"provenance", "rows"}
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.json"]


def test_two_rows_that_share_all_keys_are_refused():
    with pytest.raises(ReportError, match="two rows share all keys: realised/dpo/valence/gain/mean/all"):
        Report([row(), row(value=0.02)], {})
    assert len(Report([row(), row(group="mode:calm"), row(split=0)], {}).rows) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"section": "realized"}, "section 'realized' is not one of fidelity"),
        ({"subject": "dpo2"}, "subject 'dpo2' is not one of"),
        ({"subject": "ablation"}, "subject 'ablation' is not one of"),
        ({"metric": "R2"}, "metric 'R2' is not one of r2"),
        ({"signal": "mood"}, "signal 'mood' is not one of"),
        ({"group": "clinical"}, "group 'clinical' is not all, cohort:<name>"),
        ({"split": "0"}, "split '0' is neither"),
        ({"value": float("nan")}, "value is nan: leave out"),
        ({"value": None}, "value is None: leave out"),
        ({"high": None}, "has one end"),
        ({"low": 0.5, "high": 0.4}, "low first"),
        ({"low": 0.0, "high": float("inf")}, "two finite numbers"),
        ({"n": -1}, "n=-1 must be"),
        ({"n": 3.5}, "n=3.5 must be"),
    ],
)
def test_a_row_that_is_wrong_is_refused_in_words(changes, words):
    with pytest.raises(ReportError, match=re.escape(words)):
        Report([row(**changes)], {})


@pytest.mark.parametrize("subject", ["ablation:no_mode", "dpo:corrective", "dpo:margin:ipo", "boltzmann"])
def test_variants_are_subjects(subject):
    assert Report([row(subject=subject)], {}).rows[0].subject == subject


def test_finite_rows_leaves_out_figures_that_do_not_exist_and_intervals_with_them():
    rows = finite_rows([row(value=float("nan")), row(group="mode:calm", low=float("nan"), high=1.0)])
    assert rows == [row(group="mode:calm", low=None, high=None)]


def test_a_folder_without_a_report_is_refused_in_words(tmp_path):
    with pytest.raises(ReportError, match=r"holds no report\.json: give the run folder"):
        load(tmp_path)
    (tmp_path / "report.json").write_text("[1, 2")
    with pytest.raises(ReportError, match="is not a report"):
        load(tmp_path)


def test_a_report_that_cannot_be_written_leaves_the_old_one(page, full):
    before = (page.parent / "report.json").read_text()
    with pytest.raises(TypeError):
        Report(full.rows, {"seed": object()}).save(page.parent)
    assert (page.parent / "report.json").read_text() == before
    assert len(list(page.parent.iterdir())) == 2


def test_the_page_is_well_formed_self_contained_and_small(page):
    text = page.read_text()
    outline = Outline(text)
    assert outline.faults == [] and outline.open == []
    assert all(link.startswith(("#", "data:")) for link in outline.links)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(text) < 3_000_000


def test_the_page_asks_answers_and_says_that_nothing_was_stressed(page):
    outline = Outline(page.read_text())
    assert outline.headings == [
        "What was asked, and the answer so far", "The data", "Can the world model be believed?",
        "What do the policies do?", "How to reproduce this",
    ]  # fmt: skip
    text = page.read_text()
    assert "Not yet stressed" in text
    assert "Realised: +0.0171 [+0.0121, +0.0221], above 0\nPredicted by the judge: +0.0145" in text
    assert (
        "DPO against Copycat: better in valence and arousal; worse in rating; cannot tell in engagement."
        in text
    )
    assert "python train.py stage=evaluate experiment=demo" in text and "9c1e9c1e" in text


def stressed(full):
    """A report with harm, a gate and its verdicts, as the stage `stress` leaves it."""
    keys = {"section": "stress", "signal": "valence", "metric": "harm", "unit": "fraction"}
    rows = [row(**keys, subject=name, n=100, **around(0.1, 0.05)) for name in ("copycat", "dpo", "greedy")]
    rows += [row(**keys, subject="dpo", group=group, n=40, **around(0.2, 0.1)) for group in GROUPS]
    gate = {"section": "gate", "group": "all", "low": None, "high": None, "n": 9}
    rows += [row(**gate, subject="dpo", signal="all", metric="verdict", value=1.0, unit="1 passed"),
             row(**gate, subject="greedy", signal="all", metric="kl", value=-6.3, unit="margin")]  # fmt: skip
    said = {"greedy": "Greedy failed 2 of 18 thresholds of the gate: KL is 6.4, must be at most 0.1 "
                      "[gate.kl]; entropy is 0.5, must be at least 0.95 [gate.entropy].",
            "dpo": "DPO passed all 18 thresholds of the gate."}  # fmt: skip
    config = {**PROVENANCE["config"], "gate": {"harm": 0.15, "harm_cohort": 0.25}}
    return Report([*full.rows, *rows], {**PROVENANCE, "config": config, "verdicts": said})


def test_a_stressed_page_begins_with_the_gates_verdict_on_dpo_and_lists_what_failed(full):
    from amrs.report.page import render

    text = render(stressed(full))
    outline = Outline(text)
    assert outline.faults == [] and outline.open == []
    assert outline.headings == [
        "What was asked, and the answer", "The data", "Can the world model be believed?",
        "What do the policies do?", "Who might be harmed?", "How to reproduce this",
    ]  # fmt: skip
    verdict = text[text.index('<div class="verdict">') : text.index("<h3>")]
    said = re.findall(r"<(?:strong|p)>(.*?)<", verdict)
    assert said[0] == "DPO passed all 18 thresholds of the gate."
    assert said[2].startswith("Greedy failed 2 of 18 thresholds of the gate. What failed stands under")
    assert "Not yet stressed" not in text and '-6.3000</span> <span class="ci">failed' in text
    failed = stressed(full).provenance["verdicts"]["greedy"].replace("Greedy", "DPO")
    text = render(Report([row(section="gate", metric="kl", value=-6.3)], {"verdicts": {"dpo": failed}}))
    assert "<strong>DPO failed 2 of 18 thresholds of the gate.</strong>" in text
    assert re.findall(r"<li>(.*?)</li>", text[: text.index("<h2>How to")]) == [
        "KL is 6.4, must be at most 0.1 [gate.kl]", "entropy is 0.5, must be at least 0.95 [gate.entropy]",
    ]  # fmt: skip
    harm = [words for words in outline.images if words.startswith("Harm. ")]
    assert len(harm) == 2 and "DPO 0.100 [0.050, 0.150]" in harm[0] and "0.200 [0.100, 0.300]" in harm[1]


def test_calibration_and_horizons_are_drawn_with_their_intervals():
    from amrs.report.figures import horizon_panels, reliability_panels

    keys = {"section": "fidelity", "subject": "world_model", "signal": "rating", "unit": "fraction", "n": 30}
    rows = [row(**keys, metric="reliability_predicted", group="bin:0", value=0.4, low=None, high=None),
            row(**keys, metric="reliability_observed", group="bin:0", **around(0.5, 0.1)),
            *(row(**keys, metric="rollout_error", group=f"horizon:log:{h}", **around(0.1, 0.02))
              for h in (1, 4))]  # fmt: skip
    (curve,), (ahead,) = reliability_panels(Report(rows, {})), horizon_panels(Report(rows, {}))
    assert "predicted 0.40, observed 0.500 [0.400, 0.600]" in curve.alt
    assert ahead.alt.count("0.100 [0.080, 0.120]") == 2 and "30" in ahead.title


def test_studies_of_effects_ceilings_and_cold_start_have_figures_and_tables():
    keys = {"section": "fidelity", "subject": "world_model", "unit": "fraction"}
    rows = fidelity_rows()
    for users, value in ((80, 0.11), (240, 0.19), (751, 0.27)):
        rows.append(row(**keys, metric="r2", group=f"users:{users}", **around(value, 0.05)))
        rows.append(row(**keys, metric="effect_slope", group=f"users:{users}", **around(2 * value, 0.1)))
    rows.append(row(**keys, metric="share_of_ceiling", value=0.913, low=None, high=None))
    rows.append(row(**{**keys, "subject": "history_ceiling"}, metric="r2", value=0.296, low=None, high=None))
    rows.append(row(**keys, metric="slope_coverage", **around(0.933, 0.06)))
    rows.append(row(**keys, metric="uplift_slope", group="world:mean", **around(0.288, 0.03)))
    rows.append(row(**keys, metric="r2", group="reports:5+", **around(0.377, 0.05)))
    rows.append(
        row(**{**keys, "subject": "best_baseline"}, metric="r2", group="reports:5+", **around(0.355, 0.05))
    )
    rows.append(row(**keys, metric="too_few_users", group="reports:0", value=7.0, low=None, high=None))
    html = render(Report(rows, {}))
    (curve,) = figures.learning_panels(Report(rows, {}))
    assert "Users: 751 0.270" in curve.alt and "ten times the users 0.296" in curve.alt
    assert curve.svg in html.replace("\r", "")
    for figure in ("0.540", "0.913", "0.933", "0.288", "0.377", "0.355", "too small for a claim"):
        assert figure in html
    assert figures.learning_panels(Report(fidelity_rows(), {})) == []


def test_a_panel_is_a_picture_of_its_own_in_a_notebook(full):
    from amrs.report.figures import gain_panels

    (panel, *_) = gain_panels(full)
    picture = panel._repr_svg_()
    assert picture.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "var(" not in picture
    assert xml.etree.ElementTree.fromstring(picture).tag.endswith("svg") and panel.title[:7] in picture


def test_every_figure_has_its_numbers_as_text_and_no_placeholder_colour_left(page):
    outline = Outline(page.read_text())
    assert len(outline.images) == page.read_text().count("<svg ") == 4 + 2 + 2 + 2 + 2
    assert all("95 % intervals" in words and re.search(r"-?\d\.\d+ \[", words) for words in outline.images)
    assert not re.search(r"#0(\d)0(?:\1)0\1", page.read_text())


def test_policies_that_studies_make_by_the_dozen_stay_out_of_the_panels_of_policies(full):
    tilts = [row(section=section, subject="tilt:harmful_0.2", signal="valence", metric="gain")
             for section in ("realised", "predicted")]  # fmt: skip
    page = render(Report([*full.rows, *tilts], PROVENANCE))
    assert "harmful" not in page


def test_the_page_escapes_what_it_is_given(page):
    assert "A note with &lt;b&gt;markup&lt;/b&gt; &amp; signs." in page.read_text()
    hostile = Report(
        [row(group="mode:<script>x</script>")], {"title": "<script>", "x": {"<i>": "<i>"}, "config": "<u>"}
    )
    from amrs.report.page import render

    assert not re.search(r"<script>x|<title><script>|<i>|<u>", render(hostile))


def test_sections_without_rows_are_left_out():
    from amrs.report.page import render

    outline = Outline(render(Report(policy_rows(("predicted",)), {})))
    assert not [h for h in outline.headings if h.startswith(("The data", "Can the world", "Who might"))]
    bare = Outline(render(Report(policy_rows()[:0], {})))
    assert bare.headings == ["What was asked, and the answer so far", "How to reproduce this"]


def test_the_same_report_gives_the_same_page(full, page):
    from amrs.report.page import render

    assert render(full) == page.read_text()


def test_the_terminal_table_holds_the_main_figures_in_110_columns(full):
    text = terminal_table(full)
    assert max(map(len, text.splitlines())) <= 110 and text.isascii()
    assert re.search(r"World model +0\.420 \+-0\.040 +0\.370 \+-0\.040", text)
    assert re.search(r"DPO +\+0\.0171 \+-0\.0050 +\+0\.0104", text)
    assert re.search(r"DPO +1,815 \+-91", text)
    assert "persistence" not in text and "nan" not in text


@pytest.mark.parametrize(
    ("low", "high", "tag"),
    [
        (0.001, 0.02, "better"),
        (-0.02, -0.001, "worse"),
        (-0.001, 0.02, "cannot tell"),
        (None, None, "no interval"),
    ],
)
def test_a_gain_is_called_better_or_worse_only_if_its_interval_leaves_out_0(low, high, tag):
    assert [found.tag for found in gain_findings(Report([row(low=low, high=high)], {}))] == [tag]


def test_realised_gains_decide_and_without_them_the_judge_does_and_the_words_say_so():
    judged = row(section="predicted", value=-0.02, low=-0.03, high=-0.01)
    assert gain_findings(Report([judged, row()], {}))[0].tag == "better"
    assert gain_findings(Report([judged], {}))[0].tag == "worse"
    assert gain_sentence(Report([judged], {})).startswith("By the judge's prediction, with no truth to check")


@pytest.mark.parametrize(
    ("best", "tag"), [(0.35, "above baselines"), (0.41, "no clear gap"), (0.47, "below baselines")]
)
def test_the_world_model_is_held_against_the_best_baseline_by_its_interval(best, tag):
    keys = {"section": "fidelity", "metric": "r2"}
    rows = [row(**keys, subject="world_model", **around(0.42, 0.04)), row(**keys, subject="ridge", value=0.2)]
    rows.append(row(**keys, subject="boosting", **around(best, 0.04)))
    rows.append(row(**keys, subject="track_blind", **around(0.9, 0.01)))  # ours, so no baseline
    (found,) = model_findings(
        Report([replace(r, low=None, high=None) if r.value == 0.2 else r for r in rows], {})
    )
    assert found.tag == tag and "gradient boosting" in found.text


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [(0.01234, "gain", "+0.0123"), (-0.00001, "gain", "+0.0000"), (0.0401, "relative_gain", "+4.0 %"),
     (1815.4, "effective_tracks", "1,815"), (-0.0001, "r2", "0.000"), (-0.0001, "relative_gain", "+0.0 %"),
     (-0.25, "r2", "-0.250")],
)  # fmt: skip
def test_numbers_have_the_decimals_and_sign_of_their_metric(value, metric, text):
    assert number(value, metric) == text


def test_the_page_fits_its_screen_in_a_browser(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine: the page's layout is not checked")
    # Frames of the wanted widths (a window of Chromium is never narrower than 500 px), with a script inside
    # that tells how far the page reaches beyond its frame and whether any script failed.
    probe = (
        "<script>let faults = ''; addEventListener('error', e => faults += e.message);"
        "addEventListener('load', () => parent.postMessage({width: innerWidth, faults: faults, "
        "beyond: document.documentElement.scrollWidth - document.documentElement.clientWidth, "
        "copy: document.querySelectorAll('button.copy:not([hidden])').length}, '*'));</script>"
    )
    (tmp_path / "inner.html").write_text(page.read_text().replace("</head>", probe + "</head>"))
    frames = [
        f"<iframe src='inner.html' style='width:{w}px;height:900px;border:0'></iframe>" for w in (390, 1280)
    ]
    (tmp_path / "outer.html").write_text(
        "<body><p id='found'></p><script>const all = []; addEventListener('message', e => {"
        "all.push(e.data); document.getElementById('found').textContent = JSON.stringify(all)})</script>"
        f"{''.join(frames)}</body>"
    )
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--virtual-time-budget=3000", "--dump-dom", (tmp_path / "outer.html").as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    measured = json.loads(re.search(r"<p id=\"found\">(.*?)</p>", found)[1])
    fine = {"faults": "", "beyond": 0, "copy": 8}
    assert sorted(measured, key=lambda m: m["width"]) == [{"width": 390, **fine}, {"width": 1280, **fine}]


def test_means_over_splits_use_the_corrected_standard_error() -> None:
    def report(value: float) -> Report:
        return Report(
            [Row("fidelity", "ridge", "valence", "r2", "mean", "all", value, None, None, 10, "fraction")], {}
        )

    rows = over_splits([report(value) for value in (0.1, 0.2, 0.3)], 1 / 8)
    assert [(row.split, row.value) for row in rows[:3]] == [(0, 0.1), (1, 0.2), (2, 0.3)]
    mean = rows[3]
    # sd .1, times sqrt(1/3 + 1/8), times t(2) = 4.302653
    assert (mean.split, mean.n, mean.value) == ("mean", 30, pytest.approx(0.2))
    assert mean.high == pytest.approx(0.2 + 4.302653 * 0.1 * (1 / 3 + 1 / 8) ** 0.5, abs=1e-6)


def test_the_answer_says_how_large_a_gain_is_for_one_person(full):
    (valence,) = [found for found in gain_findings(full) if found.topic == "Valence"]
    (spread,) = full.find(section="realised", subject="dpo", signal="valence", metric="gain_sd")
    said = valence.text.splitlines()[-1]
    assert said == (
        f"Realised, in standard deviations of one person's reports: {number(spread.value, 'gain_sd')}"
    )


def test_words_are_listed_as_a_sentence_lists_them():
    assert [_and(list(words)) for words in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]


def test_the_answer_says_how_far_ahead_each_signal_was_trusted(full):
    keys = {"section": "fidelity", "subject": "world_model", "metric": "trusted_horizon", "low": None,
            "high": None, "n": 9, "unit": "tracks", "signal": "valence"}  # fmt: skip
    rows = [row(**keys, group=group, value=h) for group, h in (("horizon:log", 8.0), ("horizon:random", 2.0))]
    config = {"config": {"evaluate": {"tolerance": 0.15}}}
    found = {each.topic: each.text for each in model_findings(Report([*full.rows, *rows], config))}
    said = "followed with an error below 0.15: 8 against the log; 2 with random tracks, against the truth"
    assert found["Valence"].splitlines()[-1].endswith(said) and "Tracks ahead" not in found["Arousal"]


def test_every_word_in_a_figure_takes_a_colour_of_the_page_which_dark_pages_change(page):
    words = re.findall(r"<text[^>]*>", "".join(re.findall(r"<svg.*?</svg>", page.read_text(), re.DOTALL)))
    assert len(words) > 100 and all("var(--" in word for word in words)


def evaluated_on(users: int, sessions: int = 400, **evaluate: object) -> dict:
    """Provenance of figures that rest on so many test users."""
    return {
        "data": [{"group": "training", "users": 48}, {"group": "test", "users": users}],
        "config": {
            "evaluate": {"users": "test", "splits": 1, "tolerance": 0.15, **evaluate},
            "stress": {"sessions": 3},
        },
        "protocol": {"test sessions rolled out": sessions},
    }


def test_below_ten_test_users_the_answer_says_that_so_few_tell_nothing_whatever_the_intervals(full):
    few, enough = (Report(full.rows, evaluated_on(users)) for users in (6, 94))
    for found in (gain_findings, model_findings):
        assert {finding.tag for finding in found(few)} == {"too few users"}
        assert "too few users" not in {finding.tag for finding in found(enough)}
    logged = row(section="off_policy", metric="ess"), row(section="off_policy", metric="gain_over_production")
    said = [off_policy_findings(Report(logged, evaluated_on(users)))[0].tag for users in (9, 10)]
    assert said == ["too few users", "better"]
    assert gain_sentence(few) == "" and "better in valence" in gain_sentence(enough)
    page = render(few)
    assert "against Copycat: better" not in page and not re.search(r'tag good">(better|above)', page)
    assert "rest on 6 test users: so few listeners tell nothing, whatever an interval says." in page
    page = render(enough)
    assert "against Copycat: better" in page and re.search(r'tag good">better', page)
    assert "rest on 94 test users: n counts their sessions, reports or plays" in page


def test_listeners_are_at_most_the_sessions_and_those_of_all_splits_or_folds_count_together(full):
    def said(chapter, **about):
        report = Report(full.rows, evaluated_on(**about))
        return in_words(report, chapter), too_few(report, chapter)

    assert said("policies", users=94, sessions=5) == ("5 test users", True)
    assert said("model", users=94, sessions=5) == ("94 test users", False)
    assert said("policies", users=3, splits=10) == ("3 test users in each of 10 splits", False)
    assert said("policies", users=1) == ("1 test user", True)
    assert said("model", users=6, protocol="kfold") == ("54 users, each tested once a repeat", False)
    assert in_words(full, "policies") == "" and not too_few(full, "policies"), "the report does not say"


def test_tables_of_gains_and_harm_are_headed_by_their_listeners_and_harms_bound_is_explained(full):
    report = stressed(full)
    report = Report(report.rows, {**report.provenance, **evaluated_on(94)})
    assert tables.gain_table(report).caption.endswith("with 95 % intervals by user (94 test users)")
    assert stress.harm_table(report).caption.endswith("by more than .02 (3 test users)")
    told = re.findall(r"among (\d+)[^.]* (\.\d+)", prose.HARM_BOUND)
    assert len(told) == 3 and all(f"{upper_bound(0, int(n)):.3f}"[1:] == bound for n, bound in told)
    assert prose.HARM_BOUND in render(report)


def test_the_caption_of_gains_gives_utilitys_own_unit_where_utility_is_shown(full):
    utility = row(signal="utility", unit="spreads of effects")
    caption = tables.gain_table(Report([row(), utility], {})).caption
    assert "points, of utility in spreads of effects," in caption
    assert "utility" not in tables.gain_table(full).caption


def test_groups_without_any_figure_of_fit_have_no_row():
    keys = {"section": "fidelity", "subject": "world_model"}
    bins = [row(**keys, metric="pit_share", group=f"bin:{k}") for k in range(10)]
    fit = [row(**keys, metric="r2", group=group) for group in ("all", "mode:calm")]
    (table,) = tables.fidelity_groups(Report([*bins, *fit], {}))
    assert [line[0].text for line in table.rows] == ["Mode: calm"]


def test_the_judges_own_slopes_and_coverage_stand_beside_the_gate(full):
    keys = {"section": "stress", "subject": "world_model"}
    late = "points per point, 80 % interval"
    evidence = [
        row(**keys, metric="coverage_80", n=23, unit="fraction", **around(0.7, 0.1)),
        row(**keys, metric="late_slope", n=223, unit=late, **around(0.14, 0.15)),
        row(**keys, metric="uplift_slope", n=5280, group="propensities:logged", **around(0.96, 0.4)),
        row(**keys, metric="uplift_slope", n=21, signal="arousal", **around(1.24, 1.5)),
    ]
    report = Report([*stressed(full).rows, *evidence], {})
    lines = [[cell.text + cell.interval for cell in line] for line in stress.judge_table(report).rows]
    assert [line[1:3] + line[4:] for line in lines] == [
        ["Arousal", "1.240[-0.260, 2.740]", "21"],
        ["Valence", "0.960[0.560, 1.360]", "5,280"],
        ["Valence", "0.140[-0.010, 0.290]", "223"],
        ["Valence", "0.700[0.600, 0.800]", "23"],
    ]
    assert lines[2][3] == late and "logged propensities" in lines[1][0]
    assert prose.JUDGE in render(report) and prose.JUDGE not in render(stressed(full))


def test_the_page_says_what_the_log_and_its_embeddings_are_and_escapes_it():
    log = {"name": "Klinik <b>", "embedding": "MERT & means"}
    page = render(Report([], {**PROVENANCE, "log": log}))
    assert "Log: Klinik &lt;b&gt;. Embeddings of its tracks: MERT &amp; means." in page and "<b>" not in page


def test_a_perturbation_that_was_tried_and_never_broke_the_gain_says_so():
    keys = {"section": "stress", "signal": "valence"}
    broken = {**keys, "metric": "breaking_point", "low": None, "high": None}
    rows = [
        row(**keys, group="perturbed:inertia=0.5"),
        row(**keys, group="perturbed:heads=1"),
        row(**broken, group="perturbed:heads", value=0.25),
        row(**broken, group="perturbed:sign_flip", value=0.1, split=0),
        row(**keys, subject="greedy"),  # its gain has an interval, so a hidden cause was asked for
        row(**keys, subject="world_model", metric="coverage_80"),
    ]

    def shown(rows):
        table = stress.breaking_table(Report(rows, {}))
        return table.header[1:], [[cell.text for cell in line] for line in table.rows]

    header = ["Inertia", "Share of tracks turned", "Noise in the heads (relative)", "Hidden cause (odds)"]
    assert shown(rows) == (
        header,
        [["DPO", "not broken", "not in every split", "0.250", ""], ["Greedy", "", "", "", "not broken"]],
    )
    assert shown(rows[:2]) == ([header[0], header[2]], [["DPO", "not broken", "not broken"]])
    assert stress.breaking_table(Report([row(**keys)], {})) is None, "nothing was tried"


def test_the_page_says_what_is_left_of_a_true_gain_after_many_sessions(full):
    from amrs.report import stress

    keys = {"section": "realised", "subject": "dpo", "signal": "valence", "unit": "scale points"}
    more = row(**keys, metric="later_gain", n=400, **around(-0.01, 0.02))
    before = stressed(full)
    assert stress.lasting_table(before) is None
    table = stress.lasting_table(Report([*before.rows, more], before.provenance))
    (line,) = table.rows
    gain = full.one(section="realised", subject="dpo", signal="valence", metric="gain")
    assert [line[0].text, line[3].text] == ["DPO", "400"]
    assert line[1].text == f"{gain.value:+.4f}" and line[2].text == "-0.0100"
    assert line[2].interval == "[-0.0300, +0.0100]"


def test_a_mean_over_splits_does_not_carry_the_level_of_one_splits_interval():
    one = Report([row(metric="late_slope", unit="points per point, 80 % interval")], {})
    (mean,) = [r for r in over_splits([one, one], 0.1) if r.split == "mean"]
    assert mean.unit == "points per point"

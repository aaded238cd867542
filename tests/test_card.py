"""The model card: what stands in it beside the gate's words."""

from types import SimpleNamespace
from typing import Any

from amrs.card import card
from amrs.config.graph import Config
from amrs.report import Report, Row


def made(**provenance: Any) -> str:
    rows = [
        Row("stress", "dpo", "valence", "harm", "mean", group, 0.0, 0.0, 0.7076, 15, "fraction")
        for group in ("all", "cohort:Klinik")
    ]
    run: Any = SimpleNamespace(config=Config("export"), parents={})
    return card(Report(rows, {"verdicts": {}, **provenance}), run, "dpo", None)


def test_a_cohort_is_written_alike_among_the_gains_and_in_the_gate() -> None:
    gains, gate = made().partition("## Gains")[2].split("## The gate")
    assert "harm, predicted by the judge (Cohort: Klinik): 0.000" in gains
    assert "harm in the judge (Cohort: Klinik) is 0.7076" in gate


def test_the_data_begin_with_what_the_log_and_its_embeddings_are_escaped() -> None:
    log = {"name": "Klinik <b>", "embedding": "MERT & means"}
    said = "## Data\n\nLog: Klinik &lt;b&gt;. Embeddings of its tracks: MERT &amp; means.\n\n"
    assert said in made(log=log) and "Log:" not in made()

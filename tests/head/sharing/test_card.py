"""The card of a run says what is recorded, no more, and in nothing but text."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import READERS
from mmap_st.errors import RequestError, printable
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.store import FeatureStore
from mmap_st.files import sha256_of_json
from mmap_st.head.interface import parse_settings
from mmap_st.head.registry import head_method
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.request import FitRequest
from mmap_st.head.runs.run_folder import restore_run
from mmap_st.head.scoring import from_json
from mmap_st.head.sharing import ModelCard, card_of_run, card_sections, is_own, markdown_of
from mmap_st.head.sharing.encoder_facts import encoder_facts
from mmap_st.head.sharing.wording import short

ENCODER = "efficientnet-lite0"


def request(head: str = "ridge", pairs: tuple[str, ...] = ("alpha=1e4",), **changes: Any) -> FitRequest:
    method = head_method(head)
    settings = parse_settings(method, list(pairs if head == "ridge" else ()))
    return replace(FitRequest(ENCODER, method, settings, genes="all", test="patient=D,E"), **changes)


@pytest.fixture(scope="module")
def run(cohort: Cohort, store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that was trained on three patients and tested on two."""
    out = tmp_path_factory.mktemp("card") / "run"
    fit_head(cohort, store, request(), out)
    return out


def lines_of(card: ModelCard) -> str:
    return "\n".join(line for section in card_sections(card) for line in section.lines)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"alpha": [0.3, 1, 3, 10, 30]}, "alpha=0.3 to 30 (5 values)"),
        ({"alpha": [0.3, 1]}, "alpha=[0.3, 1]"),
        ({"flags": [True] * 5}, "flags=[True, True, True, True, True]"),
        ({"level": {}}, "level=none"),
    ],
)
def test_what_was_chosen_is_said_briefly(run: Path, chosen: dict[str, Any], said: str) -> None:
    assert f"Chosen within training: {said}." in lines_of(replace(card_of_run(run), chosen=chosen))


@pytest.mark.parametrize(
    ("patients", "unknown", "said"),
    [
        (("A", "B", "C"), 0, "3 slides (A1, B1, C1) of 3 patients (A, B, C); 9"),
        (("A",), 2, "3 slides (A1, B1, C1) of 1 patient (A); 2 without a known patient; 9"),
        ((), 3, "3 slides (A1, B1, C1); patient not known; 9"),
    ],
)
def test_patients_are_known_or_said_not_to_be(
    run: Path, patients: tuple[str, ...], unknown: int, said: str
) -> None:
    card = card_of_run(run)
    part = replace(card.data.train, patients=patients, without_patient=unknown, spots=9)
    assert said in lines_of(replace(card, data=replace(card.data, train=part)))


def test_a_fit_writes_what_it_is(run: Path, store: FeatureStore) -> None:
    card = card_of_run(run)
    head, metrics = (json.loads((run / name).read_text()) for name in ("head.json", "metrics.json"))
    written = json.loads((run / "card.json").read_text())
    written.pop("sha256")
    assert json.loads(json.dumps(card.as_json())) == written
    assert card.head_sha256 == head["weights_sha256"]
    assert card.panel.genes == len(head["panel"]["genes"])
    assert card.data.train.slides == ("A1", "B1", "C1")
    assert (card.data.train.patients, card.data.test.patients) == (("A", "B", "C"), ("D", "E"))
    assert card.data.train.spots == sum(len(store[name]) for name in ("A1", "B1", "C1"))
    assert card.data.readers == ("her2st",)
    # As it was printed, which is found to within a little.
    assert card.data.pitch_um == 200.0 == pytest.approx(head["training_slides"]["pitch_um"], rel=1e-3)
    (encoder,) = card.encoders
    assert encoder.weights_sha256 == head["encoder"]["weights_sha256"]
    assert (encoder.name, encoder.input_px, encoder.mpps) == (ENCODER, 224, (0.5, 1.0))
    assert encoder.precisions == ("fp32",)
    assert encoder.licence == encoder_spec(ENCODER).licence
    assert written["scores"]["head"] == metrics["test"]
    assert written["noise_ceiling"] == metrics["noise_ceiling"]
    assert card.patients is not None
    assert card.patients["D"].pcc == pytest.approx(metrics["test"]["slides"]["D1"]["pcc"])
    assert card.intervals == dict.fromkeys(("pcc_slide", "pcc_slide_hvg50", "mse", "mae"))
    assert card.trust is not None
    assert card.trust.trusted == metrics["gene_trust"]["trusted"] >= len(card.trust.best) > 0
    scores = [gene.pcc for gene in card.trust.best]
    assert scores == sorted(scores, reverse=True)
    text = (run / "README.md").read_text()
    for said in (
        "3 slides (A1, B1, C1) of 3 patients (A, B, C)", "log1p of counts scaled to 10,000 a spot",
        "For research only", f"{card.noise_ceiling.pcc_slide:.4f}", f"{card.scores['ridge'].mse:.4f}",
        "calibrated on 3 patients whom fits did not see", "mmap predict RUN STORE",
    ):  # fmt: skip
        assert said in text
    spots = {spot for name in store for spot in store[name].spot_ids()}
    assert not any(f'"{spot}"' in (run / "card.json").read_text() for spot in spots)


def test_three_test_patients_have_intervals(cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    fit_head(
        cohort, store, request(train="patient=A,B", test="patient=C,D,E", baselines=False), tmp_path / "r"
    )
    card = card_of_run(tmp_path / "r")
    assert card.intervals is not None
    low, high = card.intervals["pcc_slide"] or (None, None)
    assert low < card.scores["head"].pcc_slide < high
    assert f"{low:.4f} to {high:.4f}" in (tmp_path / "r" / "README.md").read_text()
    assert "No gene is known to be predicted well on new patients" in lines_of(card)


def test_what_is_not_known_is_said(cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    """Nothing was tested, and a patient has no name."""
    nameless = replace(cohort, slides=tuple(replace(s, patient=None) for s in cohort.slides))
    fit_head(nameless, store, request("mean", train="slide=A1", test=None), tmp_path / "r")
    card = card_of_run(tmp_path / "r")
    assert card.scores == {}
    assert card.patients is None
    said = lines_of(card)
    assert "Nothing was tested" in said
    assert "Species, tissue, stain and scanner are not recorded" in said


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": "mmap-card", "format_version": 1}',
        "[" * 100_000,
        "changed",
        "of another",
    ],
)
def test_a_card_that_is_not_of_the_run_is_not_believed(
    content: str, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    file = copy / "card.json"
    if content == "changed":
        file.write_text(file.read_text().replace('"pcc_slide": 0.', '"pcc_slide": 1.'))
    elif content == "of another":
        (copy / "card.json").unlink()
        shutil.copytree(copy, tmp_path / "other")
        shutil.copy(run / "card.json", file)
        card = json.loads(file.read_text())
        card["head_sha256"] = "0" * 64
        card.pop("sha256")
        file.write_text(json.dumps({**card, "sha256": sha256_of_json(card)}))
    else:
        file.write_text(content)
    card = card_of_run(copy)
    assert card.scores["head"].pcc_slide == card_of_run(run).scores["head"].pcc_slide
    assert card.made is None
    assert [gene.gene for gene in card.trust.best] == [gene.gene for gene in card_of_run(run).trust.best]
    assert len(caplog.records) == 1
    assert "the card is made of the run's other files" in caplog.records[0].message


# Files of a user's own.


OWN = "# My head\n\nSee the paper.\n"


@pytest.mark.parametrize("name", ["README.md", "card.json"])
@pytest.mark.parametrize("how", ["own", "changed", "as written", "a folder"])
def test_a_users_own_file_stays_when_a_run_is_replaced(
    how: str, name: str, cohort: Cohort, store: FeatureStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    quick = request("mean", baselines=False, test="slide=E1")
    fit_head(cohort, store, replace(quick, train="slide=A1"), out)
    file = out / name
    written = file.read_text()
    if how == "a folder":
        file.unlink()
        file.mkdir()
    elif how != "as written":
        file.write_text(OWN if how == "own" else f"{written}\nmine\n")
    kept = None if how == "a folder" else file.read_text()
    fit_head(cohort, store, replace(quick, train="slide=B1"), out, overwrite=True)
    if how == "as written":
        assert is_own(file)
        assert "B1" in file.read_text()
        assert not caplog.records
    else:
        assert file.is_dir() if how == "a folder" else file.read_text() == kept
        assert [record.message for record in caplog.records if str(file) in record.message]
    assert card_of_run(out).data.train.slides == ("B1",)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_users_readme_in_a_draft_of_an_early_version_comes_back(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / ".run.before")
    (tmp_path / ".run.before" / "README.md").unlink()
    (tmp_path / ".run.before" / "card.json").unlink()
    shutil.copytree(run, tmp_path / ".run.unfinished")
    (tmp_path / ".run.unfinished" / "README.md").write_text(OWN)
    restore_run(tmp_path / "run")
    assert (tmp_path / "run" / "README.md").read_text() == OWN


# Names of others.


HOSTILE = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "![x](http://e/x.png)",
    "a|b|c", "a\\|b", "\\", "`x`", "```\n# x\n```", "---\nlicense: mit\n---", "\n\n# x\n\n| a |\n|---|\n", "\x1b[31m",
    "\u202egnp", "y" * 10_000, "https://evil.example/x", "www.evil.example", "<!-- x", "--> x", "&lt;b&gt;",
    "&#60;b&#62;", "- x", "1. x", "2) x", "+ x", "> x", "# x", "    code", "\tcode", "*b* **b**", "_b_ __b__", "a_b_c",
    "~~s~~", "$x$", "@user", ":dna:", "key: [a, {b", "!!python/object/apply:os.system ['id']", "- - x", "null", "true",
    "\u2028# x", "\ud800", "[x]: http://e", "| --- | --- |", "===", "***", "x\r\ny", "\x00", "{{ x }}", "<a@b.c>", "&",
    "a  \n", " ", "💥\u200d💥", "é",
)  # fmt: skip


def renamed(value: Any, name: str) -> Any:
    """JSON of a card with every text in it replaced, keys of slides and patients too."""
    if isinstance(value, str):
        return name
    if isinstance(value, list):
        return [renamed(inner, name) for inner in value]
    if isinstance(value, dict):
        return {key: renamed(inner, name) for key, inner in value.items()}
    return value


def card_of(name: str, run: Path) -> ModelCard:
    content = renamed(card_of_run(run).as_json(), name)
    for key in ("settings", "chosen", "versions", "patients"):
        content[key] = {f"{name}{number}": value for number, value in enumerate(content[key].values())}
    for scores in content["scores"].values():
        scores["slides"] = {f"{name}{n}": value for n, value in enumerate(scores["slides"].values())}
    intervals = content["prediction_intervals"]
    intervals["slides"] = {f"{name}{n}": value for n, value in enumerate(intervals["slides"].values())}
    content["data"]["enlarged"] = {name: 2.0}
    content["protocol"]["shared_patients"] = [name, name]
    content["head_code_sha256"] = name
    return from_json(ModelCard, {**content, "format": "mmap-card"})


@pytest.fixture(scope="module")
def markdown() -> MarkdownIt:
    """All that a viewer may take for markup, raw HTML included."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def tokens(text: str, markdown: MarkdownIt) -> Iterator[Any]:
    for token in markdown.parse(text):
        yield token
        yield from token.children or ()


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
def test_names_of_others_are_nothing_but_text(name: str, run: Path, markdown: MarkdownIt) -> None:
    plain, hostile = (markdown_of(card_of(text, run)) for text in ("Plain", name))
    hostile.encode()
    kinds = [token.type for token in tokens(hostile.partition("\n---\n")[2], markdown)]
    allowed = [token.type for token in tokens(plain.partition("\n---\n")[2], markdown)]
    # A long name has no other marks than a short one; texts come in more parts.
    ignored = ("text", "text_special")
    assert [kind for kind in kinds if kind not in ignored] == [
        kind for kind in allowed if kind not in ignored
    ]
    shown = "".join(t.content for t in tokens(hostile, markdown) if t.type in ignored)
    assert short(name).strip() in shown
    assert printable(hostile, lines=True) == hostile
    _, front, _ = hostile.split("---\n", 2)
    about = yaml.safe_load(front)
    assert set(about) <= {"library_name", "tags", "base_model"}
    assert about["library_name"] == "mmap-st"
    assert all(isinstance(tag, str) for tag in about["tags"])


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
def test_a_terminal_gets_no_commands(name: str, run: Path, capsys: pytest.CaptureFixture) -> None:
    from mmap_st.commands.tables import show_card

    show_card(card_of(name, run))
    shown = capsys.readouterr().out
    assert printable(shown, lines=True) == shown
    assert short(name).strip() in shown


@pytest.mark.parametrize("levels", [100, 330, 600, 900])
@pytest.mark.parametrize("kind", ["{}", "[]"])
@pytest.mark.parametrize("key", ["settings", "chosen"])
def test_settings_of_many_levels_are_refused(
    key: str, kind: str, levels: int, run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    content = json.loads((copy / "head.json").read_text())
    del content["sha256"]
    inner: Any = 1
    for _ in range(levels):
        inner = [inner] if kind == "[]" else {"a": inner}
    content[key] = {"x": inner}
    (copy / "head.json").write_text(json.dumps(content))
    with pytest.raises(RequestError, match="levels deep"):
        card_of_run(copy)


@pytest.mark.parametrize("place", ["pcc_slide", "pcc_hvg50", "mse", "mae"])
def test_a_number_that_no_float_holds_is_refused(place: str, run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "card.json").unlink()
    text, count = re.subn(
        rf'"{place}": [0-9.e-]+', f'"{place}": {"9" * 400}', (copy / "metrics.json").read_text()
    )
    assert count > 0
    (copy / "metrics.json").write_text(text)
    with pytest.raises(RequestError, match="too large a number"):
        card_of_run(copy)


def test_a_head_of_a_file_is_named_without_its_folder(run: Path) -> None:
    for head in ("/home/me/heads/mine.py:Head", "C:\\me\\mine.py:Head"):
        text = markdown_of(replace(card_of_run(run), head=head, head_code_sha256="ab"))
        assert "# mine.py:Head on efficientnet-lite0" in text
        assert "me/" not in text
        assert "--head-code FILE.py:NAME" in text


def test_many_slides_make_no_endless_card(run: Path) -> None:
    card = card_of_run(run)
    slides = tuple(f"slide_{number}" for number in range(5000))
    scores = {name: next(iter(card.scores["head"].slides.values())) for name in slides}
    many = replace(
        card,
        data=replace(card.data, train=replace(card.data.train, slides=slides, patients=slides)),
        scores={"head": replace(card.scores["head"], slides=scores)},
    )
    text = markdown_of(many)
    assert len(text) < 20_000
    assert "5000 slides (slide_0, " in text
    assert "and 4970 more in card.json" in text


# Encoders.


def recipe(name: str, **changes: Any) -> dict[str, Any]:
    spec = encoder_spec(name)
    return {"encoder": {**spec.recipe(), **changes.pop("encoder", {})}, "weights_sha256": "ab", **changes}


@pytest.mark.parametrize(
    ("recorded", "licence", "said"),
    [
        (recipe("uni"), "CC-BY-NC-ND-4.0", "non-commercial use only"),
        (recipe("efficientnet-lite0"), "Apache-2.0", "commercial use is allowed"),
        (recipe("uni", encoder={"arch": "custom"}), None, "is not known here"),
        (recipe("uni", weights_sha256="random 123"), None, "predictions mean nothing"),
        ({"encoder": {"name": "uni", "imported": True}, "weights_sha256": None}, "CC-BY-NC-ND-4.0", "imported under"),
        ({"encoder": {"name": "mine", "imported": True}, "weights_sha256": None}, None, "weights are not known"),
        ({"encoder": {"name": "timm:resnet18", "arch": "resnet18"}, "weights_sha256": "ab"}, None, "is not known"),
        ({"encoder": {"name": "enc.py:make"}, "weights_sha256": "ab"}, None, "is not known here"),
    ],
)  # fmt: skip
def test_the_licence_is_that_of_the_catalogue(
    recorded: Any, licence: str | None, said: str, run: Path
) -> None:
    facts = encoder_facts(recorded, (0.5,), None)
    assert facts.licence == licence
    assert said in lines_of(replace(card_of_run(run), encoders=(facts,)))


@pytest.mark.parametrize(
    ("changes", "tokens", "flags"),
    [({}, 0, ""), ({"input_px": 448}, 0, " --input-px 448"), ({}, 4, " --tokens 4"),
     ({"input_px": 448}, 2, " --input-px 448 --tokens 2")],
)  # fmt: skip
def test_the_command_embeds_what_the_head_takes(changes: Any, tokens: int, flags: str, run: Path) -> None:
    facts = encoder_facts(recipe("uni", encoder=changes), (0.5, 1.0), None, tokens)
    commands = card_sections(replace(card_of_run(run), encoders=(facts,)))[-1].commands
    straight, extract, predict = commands
    assert straight.startswith("mmap predict RUN SLIDES --out predictions")
    assert extract == f"mmap extract COHORT STORE --encoder uni --mpp 0.5,1{flags}"
    assert predict == "mmap predict RUN STORE --out predictions"


@pytest.mark.parametrize(
    "encoder", [{"name": "uni", "imported": True}, {"name": "mine.py:make", "arch": "custom"}]
)
def test_no_command_embeds_what_mmap_cannot(encoder: Any, run: Path) -> None:
    facts = encoder_facts({"encoder": encoder, "weights_sha256": None}, (0.5,), None)
    commands = card_sections(replace(card_of_run(run), encoders=(facts,)))[-1].commands
    assert not any("SLIDES" in command for command in commands)
    assert any("extract" in command for command in commands) == ("imported" not in encoder)


@pytest.mark.parametrize("reader", [*READERS, "theirs", "<b>"])
def test_the_technology_is_what_the_reader_reads(reader: str, run: Path) -> None:
    card = card_of_run(run)
    said = lines_of(replace(card, data=replace(card.data, readers=(reader, "mine"))))
    assert f"Read as: {reader}" in said
    assert "; mine." in said
    assert "extra" not in said


def test_a_gated_encoder_is_a_limit(run: Path) -> None:
    card = replace(card_of_run(run), encoders=(encoder_facts(recipe("uni"), (0.5,), None),))
    limits = next(section for section in card_sections(card) if section.title == "Intended use and limits")
    assert any("non-commercial use only" in line for line in limits.lines)
    assert any("which is gated" in line for line in limits.lines)
    assert "base_model:\n- MahmoodLab/UNI" in markdown_of(card)


def test_a_damaged_run_has_no_card(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "head.json").write_text("{")
    with pytest.raises(RequestError, match="is damaged"):
        card_of_run(copy)

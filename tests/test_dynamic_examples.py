"""The dynamic examples: loops, trees and agents whose shape depends on what a model says."""

from __future__ import annotations

import ast
import asyncio
import operator
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import attrs
import pytest

import alto
from alto.testing import check_engine, reference_run

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.append(str(EXAMPLES))  # as for a script that lies there

import agent_loop  # noqa: E402
import map_reduce  # noqa: E402
import tree_of_thoughts  # noqa: E402
from _game_of_24 import numbers, plays_24, steps  # noqa: E402
from _rules_engine import engine, extracts, researches  # noqa: E402

QUESTION = "How many years lie between penicillin and the double helix?"
LONG = " ".join(f"Rivers carry water number {k}." for k in range(30))
DOCUMENT = f"""Rivers shape the land.
# Sources
A source may be a lake. Some rivers begin in a glacier.
```python
raise ValueError("no prose.")
```
## Mouths
{LONG}
# Nothing
"""


@attrs.frozen
class Case:
    """An example, and something for it to do."""

    pipeline: alto.Pipeline
    says: Callable
    given: str
    resources: dict[str, object] = attrs.field(factory=dict)

    def open(self) -> alto.App:
        """Open it on an engine of its own."""
        return self.pipeline.open(llm=engine(None, self.says), **self.resources)


def ignore(*_: str) -> None:
    """Log nothing."""


CASES = {
    "tree_of_thoughts": Case(tree_of_thoughts.solve, plays_24, "4 9 10 13", {"log": ignore}),
    "map_reduce": Case(map_reduce.summarise, extracts, DOCUMENT),
    "agent_loop": Case(agent_loop.agent, researches, QUESTION, {"steps": 6, "tokens": 200}),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each_case
@pytest.mark.slow
async def test_a_run_equals_the_sequential_one(case: Case) -> None:
    """Each gives what an interpreter without any concurrency gives on the same engine."""
    llm = engine(None, case.says)
    expected = await reference_run(case.pipeline, case.given, llm=llm, **case.resources)
    async with case.open() as app:
        assert await app.run(case.given) == expected != []


@each_case
@pytest.mark.slow
async def test_many_requests_share_an_app_and_do_not_mix(case: Case) -> None:
    """Requests that run at the same time give the same as one alone."""
    async with case.open() as app:
        alone = await app.run(case.given)
        together = [result.unwrap() async for result in app.map([case.given] * 3)]
    assert together == [alone] * 3


@each_case
@pytest.mark.slow
async def test_a_cancelled_run_leaves_nothing(case: Case) -> None:
    """Cut at any time, from the first word to the last, nothing of it is left in app or engine."""
    llm = engine(None, case.says)
    async with case.pipeline.open(llm=llm, **case.resources) as app:
        fresh, clock = app.statistics(), asyncio.get_running_loop().time
        begun = clock()
        whole = await app.run(case.given)
        seconds = clock() - begun
        for part in range(6):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds * (part + 0.5) / 6):
                    await app.run(case.given)
            assert app.statistics() == fresh
            assert (llm.statistics().running, llm.statistics().waiting) == (0, 0)
        assert await app.run(case.given) == whole


@each_case
@pytest.mark.slow
async def test_a_reader_who_leaves_takes_everything_along(case: Case) -> None:
    """Leaving after the first result ends what runs for the others."""
    llm = engine(None, case.says)
    async with case.pipeline.open(llm=llm, **case.resources) as app:
        fresh = app.statistics()
        async with app.stream(case.given) as results:
            async for _ in results:
                break
        assert app.statistics() == fresh
        assert (llm.statistics().running, llm.statistics().waiting) == (0, 0)


@pytest.mark.parametrize("says", [plays_24, extracts, researches])
@pytest.mark.slow
async def test_what_stands_in_for_a_model_is_an_engine(says: Callable) -> None:
    """The engine of the examples keeps the contract of engines, whatever it is asked."""
    prompt = {
        plays_24: tree_of_thoughts.PROPOSE.format("4 9 10 13"),
        extracts: map_reduce.PROMPT.format("Rivers flow. Rivers flow to the sea."),
        researches: QUESTION,
    }[says]
    await check_engine(lambda: engine(None, says, delay=0.1), prompt=prompt)


def exact(node: ast.expr) -> Fraction:
    """Evaluate an expression of whole numbers and + - * /."""
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    assert isinstance(node, ast.BinOp)
    signs = {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
    }
    return signs[type(node.op)](exact(node.left), exact(node.right))


async def solved(puzzle: str, log: Callable = ignore) -> list[str]:
    """What the search finds."""
    llm = engine(None, plays_24)
    async with tree_of_thoughts.solve.open(llm=llm, log=log) as app:
        return await app.run(puzzle)


@pytest.mark.parametrize("puzzle", ["4 9 10 13", "1 5 5 5", "3 3 7 7", "24 1 1 1"])
@pytest.mark.slow
async def test_what_the_search_finds_makes_24_of_the_numbers(puzzle: str) -> None:
    """Every expression found uses each number once and comes to 24, fractions on the way included."""
    found = await solved(puzzle)
    assert found
    for expression in found:
        assert exact(ast.parse(expression, mode="eval").body) == 24
        assert sorted(re.findall(r"\d+", expression)) == sorted(puzzle.split())


async def test_numbers_that_cannot_make_24_give_nothing() -> None:
    """A round that leaves no thought of any worth ends the search, without an expression."""
    seen = []
    assert await solved("1 1 1 1", lambda kind, _: seen.append(kind)) == []
    assert seen.count("kept") == 1


@pytest.mark.slow
async def test_a_thought_is_valued_before_the_list_that_it_is_on_is_complete() -> None:
    """Values overtake the list they are for, which they cannot where steps run one after another."""
    seen: list[str] = []
    logs = {"log": lambda kind, _: seen.append(kind)}
    await solved("4 9 10 13", logs["log"])
    assert seen[: seen.index("listed")].count("valued") > 20
    seen.clear()
    llm = engine(None, plays_24)
    await reference_run(tree_of_thoughts.solve, "4 9 10 13", llm=llm, **logs)
    assert seen.index("listed") < seen.index("valued")


async def test_a_model_that_is_sure_of_everything_makes_no_wrong_number_right() -> None:
    """What is left at the end is looked at, whatever the model said of it."""
    told = engine(
        None, lambda prompt: "1 + 1 = 2\n2 + 1 = 3\n3 + 1 = 4" if "one a" in prompt else "sure"
    )
    async with tree_of_thoughts.solve.open(llm=told, log=ignore) as app:
        assert await app.run("1 1 1 1") == []
    assert any("Numbers: 4\n" in request.prompt for request in told.requests)


async def test_steps_that_a_model_made_up_lead_nowhere() -> None:
    """Only legal steps become thoughts, and each set of numbers once, with or without a bullet."""
    lines = "4 + 9 = 14\nhello\n- 4 + 9 = 13\n9 + 4 = 13\n10 - 4 = 6\n5 + 5 = 10"
    told = engine(None, lambda prompt: lines if "one a line" in prompt else "impossible")
    seen = []
    async with tree_of_thoughts.solve.open(llm=told, log=lambda *told: seen.append(told)) as app:
        assert await app.run("4 9 10 13") == []
    assert [what for kind, what in seen if kind == "valued"] == ["10 13 13", "6 9 13"]


@pytest.mark.parametrize(
    "puzzle", ["", "4 9 10", "4 9 10 13 1", "4 9 10 x", "4 9 10 -13", "1.5 2 3 4"]
)
async def test_what_is_no_puzzle_is_refused(puzzle: str) -> None:
    """Anything but four whole numbers is refused, and the message says what to give."""
    with pytest.raises(alto.StageError, match="give four whole numbers, such as 4 9 10 13") as info:
        await solved(puzzle)
    assert isinstance(info.value.cause, ValueError)


def test_there_is_no_step_that_divides_by_zero() -> None:
    """Of 0 and another number every step but the division by 0 is legal."""
    left = numbers("0 6 6 6")[:2]
    assert {line for line in steps(left) if "/" in line} == {"0 / 6 = 0"}


async def summaries(document: str) -> tuple[list[map_reduce.Section], int]:
    """The summaries, and how often the model was asked."""
    llm = engine(None, extracts)
    async with map_reduce.summarise.open(llm=llm) as app:
        found = await app.run(document)
    return found, len(llm.requests)


@pytest.mark.slow
async def test_each_section_is_summarised_from_its_own_text() -> None:
    """Notes go to their own section, those without prose are left out, and the whole comes last."""
    found, _ = await summaries(DOCUMENT)
    beginning, sources, mouths, whole = found
    assert beginning == map_reduce.Section("Beginning", "Rivers shape the land.")
    assert sources.title == "Sources"
    assert sources.text in "A source may be a lake. Some rivers begin in a glacier."
    assert mouths.title == "Mouths"
    assert mouths.text in LONG
    assert whole.title == "All in all"
    assert whole.text in {beginning.text, sources.text, mouths.text}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sentences", "asked"), [(1, 1), (5, 1), (6, 3), (25, 6), (26, 9), (30, 9)]
)
async def test_a_section_is_united_in_as_many_rounds_as_it_needs(
    sentences: int, asked: int
) -> None:
    """Five sentences make a note, and five notes the next, until one is left."""
    text = " ".join(f"Rivers carry water number {k}." for k in range(sentences))
    found, requests = await summaries(f"# Rivers\n{text}")
    assert [section.title for section in found] == ["Rivers", "All in all"]
    assert requests == asked


async def test_a_section_is_summarised_while_others_are_still_read() -> None:
    """The first summary is there when few of the chunks have been read."""
    llm = engine(None, extracts)
    async with map_reduce.summarise.open(llm=llm) as app, app.stream(DOCUMENT) as results:
        await anext(aiter(results))
        early = llm.statistics().finished
        assert [section.title async for section in results] == ["Sources", "Mouths", "All in all"]
    assert early < 3 < llm.statistics().finished == len(llm.requests)


@pytest.mark.parametrize("document", ["", " \n\n", "# Only\n## headings\n", "```\ncode.\n```\n"])
async def test_an_empty_document_is_refused(document: str) -> None:
    """A document without prose is refused before anything is asked."""
    with pytest.raises(alto.StageError, match="the document is empty; give one with text"):
        await summaries(document)


async def worked(
    question: str = QUESTION, *, steps: int = 6, tokens: int = 200
) -> tuple[list[agent_loop.Event], list[alto.model.GenerateRequest]]:
    """What the agent did, and what the model was asked."""
    llm = engine(None, researches)
    async with agent_loop.agent.open(llm=llm, steps=steps, tokens=tokens) as app:
        return await app.run(question), list(llm.requests)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (QUESTION, "ANSWER 25 years"),
        ("How many years lie between penicillin and the moon?", "ANSWER 41 years"),
        ("How many years lie between penicillin and pizza?", "ANSWER I do not know"),
        ("Why?", "ANSWER I do not know"),
    ],
)
async def test_the_agent_answers_from_what_its_tools_found(question: str, answer: str) -> None:
    """The answer follows from the facts found, and is none where a fact is missing."""
    events, _ = await worked(question)
    assert [event.line for event in events if event.line.startswith("ANSWER")] == [answer]
    assert events[-1].line == answer


async def test_a_tool_has_run_before_the_model_has_ended_its_turn() -> None:
    """The first finding is there while the model writes the call of the next tool."""
    llm = engine(None, researches)
    async with (
        agent_loop.agent.open(llm=llm, steps=6, tokens=200) as app,
        app.stream(QUESTION) as events,
    ):
        first = await anext(event async for event in events if event.found)
        assert first.found == "Alexander Fleming discovered penicillin in 1928."
        assert (llm.statistics().running, llm.statistics().finished) == (1, 0)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
async def test_the_agent_takes_no_more_steps_than_it_may(steps: int) -> None:
    """Three turns are needed: with fewer it says that it stopped, and with more it takes three."""
    events, requests = await worked(steps=steps)
    assert len(requests) == min(steps, 3)
    assert events[-1].line.startswith("STOPPED" if steps < 3 else "ANSWER")


@pytest.mark.slow
async def test_the_agent_spends_no_more_tokens_than_it_may() -> None:
    """All turns share the tokens; a call or an answer that they cut off is none."""
    whole, _ = await worked()
    needed = sum(event.tokens for event in whole)
    spent = [sum(event.tokens for event in whole[:lines]) for lines in (0, 3, 4)]  # before a turn
    for tokens in range(1, needed + 2):
        events, requests = await worked(tokens=tokens)
        assert sum(event.tokens for event in events) == min(tokens, needed)
        assert [request.max_tokens for request in requests] == [
            tokens - before for before in spent if before < tokens
        ]
        if tokens < needed:
            assert events[-1].line.startswith("STOPPED")
            assert {(e.line, e.found) for e in events if e.found} <= {
                (e.line, e.found) for e in whole
            }
        else:
            assert events == whole


@pytest.mark.parametrize(
    ("question", "budget"),
    [(QUESTION, {"steps": 0}), (QUESTION, {"tokens": 0}), (" ", {}), (QUESTION, {"steps": -1})],
)
async def test_no_question_and_no_budget_are_refused(question: str, budget: dict[str, int]) -> None:
    """Without a question, a step or a token there is nothing to do, and the message says so."""
    with pytest.raises(alto.StageError, match="give a question, and steps and tokens from 1"):
        await worked(question, **budget)


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an example as a reader would."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "shown"),
    [
        ("tree_of_thoughts.py", [], r"thoughts were valued(.|\n)+ = 24$"),
        ("tree_of_thoughts.py", ["1 1 1 1"], r"No way to make 24 was found\.$"),
        ("map_reduce.py", [], r"^After +\d+ notes: (.|\n)+ All in all: .+\.$"),
        ("agent_loop.py", [], r"SEARCH penicillin(.|\n)+ANSWER 25 years"),
    ],
)
def test_an_example_shows_what_it_does(name: str, arguments: list[str], shown: str) -> None:
    """Each runs as a script, and ends with its result."""
    done = script(name, *arguments)
    assert done.returncode == 0, done.stderr
    assert re.search(shown, done.stdout.strip()), done.stdout
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("tree_of_thoughts.py", ["1 2 3"], "give four whole numbers"),
        ("map_reduce.py", ["no/such/file.md"], "No such file"),
        ("agent_loop.py", ["--steps", "0"], "steps and tokens from 1, not 0"),
    ],
)
def test_an_example_says_in_a_line_what_is_wrong(
    name: str, arguments: list[str], message: str
) -> None:
    """Bad input ends a script with one line and no traceback."""
    done = script(name, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1

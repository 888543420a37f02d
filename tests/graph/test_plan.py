"""What `alto._graph.plan` promises: levels follow from the table, and nonsense is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alto._graph.plan import InputPlan, NodeDecl, ParamDecl, Plan, make_plan
from alto.errors import GraphError

# ------------------------------------------------------------------------------------- the model
#
# A scope is the number of a generator node, or -1 for the request. Each scope but the request has
# one parent, so scopes are a tree; what a stream or a call is "one per" is a place in that tree.

REQUEST = -1


class Nonsense(Exception):
    """The table has no row for a node: what the message must name."""

    def __init__(self, node: NodeDecl, param: str) -> None:
        super().__init__(
            f"stage {node.name!r}", param if param == "by=" else f"parameter {param!r}"
        )


class Model:
    """The levels of a declaration, worked out on the tree of scopes."""

    def __init__(self, inputs: int, nodes: Sequence[NodeDecl]) -> None:
        self.parents: dict[int, int] = {}
        self.streams = [REQUEST] * inputs
        self.calls: list[int] = []
        for index, node in enumerate(nodes):
            call = self.call_scope(node)
            self.calls.append(call)
            if node.generator:
                self.parents[index] = call
            self.streams.append(index if node.generator else call)

    def upwards(self, scope: int) -> list[int]:
        """*scope*, its parent, and so on up to the request."""
        line = [scope]
        while line[-1] != REQUEST:
            line.append(self.parents[line[-1]])
        return line

    def between(self, scope: int, top: int) -> list[int]:
        """The scopes from *scope* up to *top*, without *top*."""
        line = self.upwards(scope)
        return line[: line.index(top)]

    def call_scope(self, node: NodeDecl) -> int:
        """What there is one call of *node* per, by the rows of the table."""
        params = [
            (p.name, p.group, self.streams[s])
            for p, s in zip(node.params, node.sources, strict=True)
        ]
        items = [(name, scope) for name, group, scope in params if not group]
        groups = [(name, scope) for name, group, scope in params if group]
        for name, scope in groups:
            if scope == REQUEST:
                raise Nonsense(node, name)
        if node.by is None and not items:
            shared = [set(self.upwards(self.parents[scope])) for _, scope in groups]
            return max(set.intersection(*shared), key=lambda scope: len(self.upwards(scope)))
        if node.by is not None:
            call = self.streams[node.by]
            if not groups:
                raise Nonsense(node, "by=")
        else:
            call = max((scope for _, scope in items), key=lambda scope: len(self.upwards(scope)))
        for name, scope in items:
            if scope not in self.upwards(call):
                raise Nonsense(node, name)
        for name, scope in groups:
            if call not in self.upwards(scope)[1:]:
                raise Nonsense(node, name)
        return call

    def wanting_counts(self, node: NodeDecl, call: int) -> set[tuple[int, int]]:
        """(scope, parameter) of the counts that *node* must be told to know what is complete."""
        return {
            (scope, slot)
            for slot, (param, source) in enumerate(zip(node.params, node.sources, strict=True))
            for scope in (
                self.between(self.streams[source], call)
                if param.group
                else self.between(call, self.streams[source])
            )
        }


# ---------------------------------------------------------------------------------- declarations


def stage(
    name: str, /, *sources: int, generator: bool = False, by: int | None = None, **params: int
) -> NodeDecl:
    """A call of a stage: items ``p0`` … of *sources*, then *params*; capitals are groups."""
    given_ = {f"p{k}": source for k, source in enumerate(sources)} | params
    return NodeDecl(
        name=name,
        params=tuple(ParamDecl(name=param, group=param[0].isupper()) for param in given_),
        generator=generator,
        sources=tuple(given_.values()),
        by=by,
    )


def plan(*nodes: NodeDecl, inputs: int = 1, output: int | None = None) -> Plan:
    """The plan of a pipeline that returns its last stream, or *output*."""
    last = inputs + len(nodes) - 1
    return make_plan(inputs, nodes, last if output is None else output, pipeline="pipe")


def split(name: str, source: int, /) -> NodeDecl:
    """A generator over the items of *source*."""
    return stage(name, source, generator=True)


@st.composite
def node_decls(draw: st.DrawFn, index: int, streams: int) -> NodeDecl:
    """Any call at all, sensible or not, on streams that there are."""
    source = st.integers(0, streams - 1)
    groups = draw(st.lists(st.booleans(), min_size=1, max_size=3))
    return NodeDecl(
        name=f"stage{index}",
        params=tuple(ParamDecl(name=f"p{k}", group=group) for k, group in enumerate(groups)),
        generator=draw(st.booleans()),
        sources=tuple(draw(source) for _ in groups),
        by=draw(st.one_of(st.none(), source)),
    )


def rounded_off(inputs: int, nodes: list[NodeDecl]) -> list[NodeDecl]:
    """*nodes*, and a last one that takes all streams that nothing takes."""
    scopes = Model(inputs, nodes).streams
    left = set(range(len(scopes))) - {source for node in nodes for source in node.sources}
    params = {("x" if scopes[s] == REQUEST else "X") + str(s): s for s in sorted(left)}
    return [*nodes, stage("last", **params)]


@st.composite
def declarations(draw: st.DrawFn) -> tuple[int, list[NodeDecl]]:
    """Inputs and calls that mean something; the last one is what the pipeline returns."""
    inputs = draw(st.integers(1, 2), label="inputs")
    nodes = [
        split(f"split{index}", draw(st.integers(0, inputs + index - 1)))
        for index in range(draw(st.integers(0, 4), label="generators"))
    ]
    for index in range(len(nodes), len(nodes) + draw(st.integers(0, 3), label="others")):
        streams = inputs + index
        node = draw(node_decls(index, streams))
        try:
            Model(inputs, [*nodes, node])
        except Nonsense:  # A call on one item always means something.
            node = stage(node.name, node.sources[0], generator=node.generator)
        nodes.append(node)
    if not nodes or draw(st.booleans(), label="one more"):
        return inputs, rounded_off(inputs, nodes)
    taken = {source for node in nodes for source in node.sources}
    complete = taken.issuperset(range(inputs, inputs + len(nodes) - 1))
    return inputs, nodes if complete else rounded_off(inputs, nodes)


@pytest.mark.slow
@given(declaration=declarations())
def test_depths_are_those_of_the_table(declaration: tuple[int, list[NodeDecl]]) -> None:
    """Calls, items and results have the levels that the rows of the table give them."""
    inputs, nodes = declaration
    made = plan(*nodes, inputs=inputs)
    model = Model(inputs, nodes)
    depths = [len(model.upwards(scope)) - 1 for scope in model.streams]
    assert [n.depth for n in made.nodes] == [len(model.upwards(call)) - 1 for call in model.calls]
    assert [[i.depth for i in n.inputs] for n in made.nodes] == [
        [depths[source] for source in node.sources] for node in nodes
    ]
    assert (made.output, made.depth) == (len(depths) - 1, depths[-1])


@pytest.mark.slow
@given(declaration=declarations())
def test_streams_know_all_who_take_them(declaration: tuple[int, list[NodeDecl]]) -> None:
    """Every parameter is one consumer of its stream, at its rank; the last one is the result."""
    inputs, nodes = declaration
    made = plan(*nodes, inputs=inputs)
    consumers = [*made.inputs, *(node.consumers for node in made.nodes)]
    taken = [(s, (k, slot)) for k, node in enumerate(nodes) for slot, s in enumerate(node.sources)]
    taken.append((len(consumers) - 1, (-1, 0)))
    assert sorted((s, who) for s, some in enumerate(consumers) for who in some) == sorted(taken)
    for node, decl in zip(made.nodes, nodes, strict=True):
        assert [i.source for i in node.inputs] == list(decl.sources)
        assert [i.group for i in node.inputs] == [param.group for param in decl.params]
        for slot, taker in enumerate(node.inputs):
            assert consumers[taker.source][taker.rank] == (node.index, slot)


@pytest.mark.slow
@given(declaration=declarations())
def test_counts_go_to_all_who_need_them(declaration: tuple[int, list[NodeDecl]]) -> None:
    """Who gathers, repeats an item or gives results is told of each level in between, once."""
    inputs, nodes = declaration
    made = plan(*nodes, inputs=inputs)
    model = Model(inputs, nodes)
    told = [(node.index, taker) for node in made.nodes for taker in node.counts_to]
    wanted = [(scope, (-1, 0)) for scope in model.between(model.streams[-1], REQUEST)]
    for index, (node, call) in enumerate(zip(nodes, model.calls, strict=True)):
        wanted += [(scope, (index, slot)) for scope, slot in model.wanting_counts(node, call)]
    assert sorted(told) == sorted(wanted)


@pytest.mark.slow
@given(declaration=declarations(), data=st.data())
def test_a_call_is_refused_iff_the_table_has_no_row_for_it(
    declaration: tuple[int, list[NodeDecl]], data: st.DataObject
) -> None:
    """Any call means what the table says, or is an error that names stage and parameter."""
    inputs, nodes = declaration
    odd = data.draw(node_decls(len(nodes), inputs + len(nodes)), label="odd")
    words, depth = verdict(inputs, [*nodes, odd])
    if words:
        with pytest.raises(GraphError) as caught:
            plan(*nodes, odd, inputs=inputs)
        assert all(word in str(caught.value) for word in words)
    else:
        made = plan(*rounded_off(inputs, [*nodes, odd]), inputs=inputs)
        assert made.nodes[len(nodes)].depth == depth


def verdict(inputs: int, nodes: Sequence[NodeDecl]) -> tuple[tuple[str, ...], int]:
    """What an error must name, or else nothing and how long the paths of the last calls are."""
    try:
        model = Model(inputs, nodes)
    except Nonsense as nonsense:
        return nonsense.args, 0
    return (), len(model.upwards(model.calls[-1])) - 1


# -------------------------------------------------------------------------- the rows of the table

# Streams: 0 is the input, 1 outer, 2 outer > inner, 3 other, 4 other > left, 5 other > right.
TREE = (
    split("outer", 0),
    split("inner", 1),
    split("other", 0),
    split("left", 3),
    split("right", 3),
)


def depth_of(node: NodeDecl) -> int:
    """How long the path of a call of *node* is, on the streams of ``TREE``."""
    return plan(*rounded_off(1, [*TREE, node])).nodes[len(TREE)].depth


@pytest.mark.parametrize(("source", "depth"), [(0, 0), (1, 1), (2, 2)])
def test_an_item_alone_is_called_per_item(source: int, depth: int) -> None:
    """``x: T`` has a call per item of its stream."""
    assert depth_of(stage("s", source)) == depth


@pytest.mark.parametrize("sources", [(0, 2), (2, 0), (1, 2), (2, 2), (0, 1, 2)])
def test_items_are_called_per_item_of_the_deepest(sources: tuple[int, ...]) -> None:
    """``a: A, b: B`` has a call per item of the deeper one."""
    assert depth_of(stage("s", *sources)) == 2


@pytest.mark.parametrize(("source", "depth"), [(1, 0), (2, 1)])
def test_a_group_alone_is_called_per_parent(source: int, depth: int) -> None:
    """``xs: Group[T]`` pops one level."""
    assert depth_of(stage("s", Xs=source)) == depth


@pytest.mark.parametrize(
    ("sources", "depth"),
    [((2, 2), 1), ((1, 2), 0), ((2, 1), 0), ((2, 3), 0), ((4, 5), 1), ((4, 2, 4), 0)],
)
def test_groups_are_called_per_common_ancestor(sources: tuple[int, ...], depth: int) -> None:
    """``xs: Group, ys: Group`` have in common what their streams have, less a level at least."""
    assert depth_of(stage("s", **{f"X{k}": source for k, source in enumerate(sources)})) == depth


@pytest.mark.parametrize(("item", "group", "depth"), [(0, 1, 0), (0, 2, 0), (1, 2, 1)])
def test_an_item_with_a_group_is_called_per_item(item: int, group: int, depth: int) -> None:
    """``a: A, xs: Group[B]`` has a call per item, with all that descends from it."""
    assert depth_of(stage("s", item, Xs=group)) == depth


@pytest.mark.parametrize(("by", "group", "depth"), [(0, 2, 0), (1, 2, 1), (0, 1, 0)])
def test_by_says_what_to_call_per(by: int, group: int, depth: int) -> None:
    """``by=s`` has a call per item of ``s``; groups may pop several levels."""
    assert depth_of(stage("s", Xs=group, by=by)) == depth


def test_by_takes_items_from_above() -> None:
    """With ``by=s`` an item from above ``s`` is repeated for the calls below it."""
    assert depth_of(stage("s", 0, Xs=2, by=1)) == 1


def test_a_generator_adds_a_level_and_a_coroutine_none() -> None:
    """Items of a generator are one level below its calls, those of a coroutine are not."""
    assert plan(split("s", 0)).depth == 1
    assert plan(stage("s", 0)).depth == 0


def test_counts_come_from_every_level_in_between() -> None:
    """Who gathers over two levels is told of both, by the nodes that opened them."""
    made = plan(split("outer", 0), split("inner", 1), stage("all", Xs=2, by=0))
    assert [node.counts_to for node in made.nodes] == [((2, 0),), ((2, 0),), ()]


def test_a_stage_used_twice_is_numbered() -> None:
    """Names of nodes are those of their stages, with a number from the second use on."""
    made = plan(split("search", 0), stage("judge", 1), stage("search", 2), stage("search", 3))
    assert [node.name for node in made.nodes] == ["search", "judge", "search#2", "search#3"]


def test_a_pipeline_may_return_its_input() -> None:
    """The result may be any stream; its consumer is node -1."""
    made = plan(inputs=2, output=0)
    assert made == Plan(inputs=(((-1, 0),), ()), nodes=(), depth=0, output=0)


def test_a_plan_says_all_of_an_input() -> None:
    """Each parameter knows its stream, the length of its paths and its rank among consumers."""
    made = plan(split("outer", 0), stage("pair", 0, 1))
    assert made.nodes[1].inputs == (
        InputPlan(source=0, group=False, depth=0, rank=1),
        InputPlan(source=1, group=False, depth=1, rank=0),
    )


# ------------------------------------------------------------------------------------ the errors


def refusal(*nodes: NodeDecl) -> str:
    """Why the pipeline of *nodes*, on ``TREE``, is refused."""
    with pytest.raises(GraphError) as caught:
        plan(*TREE, *nodes)
    return str(caught.value)


def test_a_group_is_refused_when_there_is_nothing_to_gather() -> None:
    """A stream with one item per request has no groups; the remedy is to take the item."""
    assert refusal(stage("s", Xs=0)) == (
        "stage 's': parameter 'Xs' asks for a Group, but its stream has one item per request and "
        "nothing to gather; declare it without Group[...]"
    )


def test_by_is_refused_when_nothing_is_gathered() -> None:
    """Without a group there is nothing to say ``by=`` of."""
    assert refusal(stage("s", 1, by=0)) == (
        "stage 's': by= says what to gather by, but no parameter is a Group; "
        "declare one as Group[...] or leave by= out"
    )


def test_items_are_refused_when_they_have_no_common_ancestry() -> None:
    """Items of unrelated streams cannot be matched; the message says where each comes from."""
    assert refusal(stage("s", 3, 2)) == (
        "stage 's': parameter 'p0' (one per item of other) and parameter 'p1' (one per item of "
        "outer > inner) have no common ancestry, so there is nothing to match them by; "
        "gather one of them first (Group[...]), or derive both from one stream"
    )


def test_an_item_is_refused_when_it_is_unrelated_to_by() -> None:
    """An item must stand above what the stage gathers by."""
    assert refusal(stage("s", 3, Xs=2, by=1)).startswith(
        "stage 's': parameter 'p0' (one per item of other) and by= "
        "(one per item of outer) have no common ancestry"
    )


def test_an_item_is_refused_when_it_is_below_by() -> None:
    """An item below what the stage gathers by is one of many, and the message says just that."""
    message = refusal(stage("s", 1, Xs=2, by=0))
    assert "stage 's': parameter 'p0' (one per item of outer)" in message
    assert "lies below by= (one per request)" in message
    assert "no common ancestry" not in message


def test_a_group_is_refused_when_it_is_on_the_level_of_the_item() -> None:
    """A group of exactly one piece is an item."""
    assert refusal(stage("s", 1, Xs=1)) == (
        "stage 's': parameter 'Xs' asks for a Group of what descends from parameter 'p0', but "
        "both have the same level (one per item of outer): each group would hold exactly one "
        "item; declare it without Group[...]"
    )


def test_a_group_is_refused_when_it_does_not_descend_from_the_item() -> None:
    """A group holds what descends from the call's item, and another stream does not."""
    assert refusal(stage("s", 2, Xs=3)) == (
        "stage 's': parameter 'Xs' (one per item of other) does not descend from parameter 'p0' "
        "(one per item of outer > inner), which is no ancestor of it; "
        "pass a stream made from it, or name an ancestor with by="
    )


def test_a_group_is_refused_when_it_is_deeper_than_the_item_and_unrelated() -> None:
    """It is ancestry that counts, not depth."""
    assert "(one per item of outer > inner) does not descend from" in refusal(stage("s", 3, Xs=2))


def test_a_group_is_refused_when_by_is_no_ancestor_of_it() -> None:
    """What a stage gathers by must stand above what it gathers."""
    assert refusal(stage("s", Xs=1, by=2)).startswith(
        "stage 's': by= (one per item of outer > inner) is no ancestor of parameter 'Xs' "
        "(one per item of outer); name a stream that it is made from"
    )


def test_a_pipeline_is_refused_when_nobody_takes_a_result() -> None:
    """A call whose stream goes nowhere is a mistake; being named in ``by=`` is not taking it."""
    assert refusal(stage("lost", 0), stage("last", X1=2, X2=4, X3=5)) == (
        "pipeline 'pipe': nothing takes the result of stage 'lost'; "
        "return it, pass it on, or leave the call out"
    )

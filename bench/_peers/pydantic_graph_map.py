"""pydantic-graph: a stream step, ``.map()`` over what it yields, a join that appends.

The join appends in completion order, so results carry their index and are sorted. A producer that
returns a list instead is slightly cheaper, but hands over only when it returns.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from pydantic_graph import GraphBuilder, StepContext, reduce_list_append


async def expand(ctx: StepContext[None, None, int]) -> AsyncIterator[int]:
    """Yield the items."""
    for i in range(ctx.inputs):
        yield i


async def work(ctx: StepContext[None, None, int]) -> tuple[int, int]:
    """One async call that does not wait."""
    return ctx.inputs, ctx.inputs + 1


@asynccontextmanager
async def opened() -> AsyncIterator[Callable[[int], Awaitable[list[int]]]]:
    """Build the graph."""
    builder = GraphBuilder(input_type=int, output_type=list[tuple[int, int]])
    producer = builder.stream(expand)
    worker = builder.step(work)
    join = builder.join(reduce_list_append, initial_factory=list[tuple[int, int]])
    builder.add(
        builder.edge_from(builder.start_node).to(producer),
        builder.edge_from(producer).map().to(worker),
        builder.edge_from(worker).to(join),
        builder.edge_from(join).to(builder.end_node),
    )
    graph = builder.build()

    async def fan(n: int) -> list[int]:
        return [result for _, result in sorted(await graph.run(inputs=n))]

    yield fan

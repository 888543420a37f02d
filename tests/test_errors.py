"""Errors: their tree, their messages, and that they survive pickling and copying."""

import asyncio
import copy
import copyreg
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from hypothesis import given
from hypothesis import strategies as st

import alto
from alto import errors
from alto._safe_text import told
from alto.errors import UnpicklableError
from alto.testing import reference_run

EXAMPLES = {
    alto.AltoError: (lambda: alto.AltoError("anything"), {}),
    alto.GraphError: (lambda: alto.GraphError("stage 'x': wrong"), {}),
    alto.ResourceError: (lambda: alto.ResourceError("no value for 'llm'"), {}),
    alto.InputError: (lambda: alto.InputError("not a str"), {}),
    alto.InvalidRequest: (lambda: alto.InvalidRequest("n must be 1"), {}),
    alto.errors.PromptTooLong: (
        lambda: alto.errors.PromptTooLong(9, 8, detail="x"),
        {"prompt_tokens": 9, "limit": 8},
    ),
    alto.OutputError: (
        lambda: alto.OutputError("no JSON", text="[1", items=[1, ("a", 2)]),
        {"text": "[1", "items": (1, ("a", 2))},
    ),
    alto.errors.OutputTruncated: (
        lambda: alto.errors.OutputTruncated(7, text="[1", items=[1]),
        {"max_tokens": 7, "text": "[1", "items": (1,)},
    ),
    alto.Closed: (lambda: alto.Closed("this app is closed"), {}),
    alto.Overloaded: (
        lambda: alto.Overloaded(3, 3, kind="requests"),
        {"waiting": 3, "limit": 3, "kind": "requests"},
    ),
    alto.errors.WorkerDied: (
        lambda: alto.errors.WorkerDied("work", 1, -9),
        {"stage": "work", "replica": 1, "exit_code": -9},
    ),
    alto.RequestError: (lambda: alto.RequestError("it failed"), {"request_id": None}),
    alto.StageError: (
        lambda: alto.StageError("invert", (1, 2), ZeroDivisionError("by zero")),
        {"stage": "invert", "path": (1, 2), "request_id": None},
    ),
    alto.errors.BufferExceeded: (
        lambda: alto.errors.BufferExceeded("join", 9),
        {"stage": "join", "limit": 9},
    ),
    alto.errors.RoutingError: (
        lambda: alto.errors.RoutingError("s", "it raised"),
        {"stage": "s", "reason": "it raised"},
    ),
    alto.DeadlineExceeded: (lambda: alto.DeadlineExceeded(2.5), {"timeout": 2.5}),
    alto.RequestCancelled: (
        lambda: alto.RequestCancelled("its app was closed"),
        {"reason": "its app was closed"},
    ),
    alto.EngineError: (
        lambda: alto.EngineError("e", "broken"),
        {"engine": "e", "reason": "broken"},
    ),
    alto.errors.EngineStartError: (
        lambda: alto.errors.EngineStartError("e", "no GPU", output=["one", "two"]),
        {"engine": "e", "output": ("one", "two")},
    ),
    alto.errors.EngineDied: (
        lambda: alto.errors.EngineDied("e", "gone"),
        {"engine": "e", "reason": "gone"},
    ),
    alto.errors.GenerationFailed: (
        lambda: alto.errors.GenerationFailed("e", "why"),
        {"engine": "e", "reason": "why"},
    ),
}


def tree(cls):
    """A class and all below it that alto itself defines."""
    own = [one for one in cls.__subclasses__() if one.__module__ == "alto.errors"]
    return [cls, *(below for one in own for below in tree(one))]


def round_trips():
    """Each way in which an error is copied."""
    ways = {
        f"pickle {protocol}": lambda e, p=protocol: pickle.loads(pickle.dumps(e, protocol=p))
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    }
    ways["pickle in Python"] = lambda e: pickle._loads(pickle._dumps(e))
    ways["copy"] = copy.copy
    ways["deepcopy"] = copy.deepcopy
    ways["pickle twice"] = lambda e: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(e))))
    ways["pickle a copy"] = lambda e: pickle.loads(pickle.dumps(copy.copy(e)))
    return [pytest.param(way, id=name) for name, way in ways.items()]


each_way = pytest.mark.parametrize("way", round_trips())
each_deep_way = pytest.mark.parametrize(
    "way", [one for one in round_trips() if one.id not in {"copy", "pickle a copy"}]
)


class Mine(alto.StageError):
    """A user's subclass, with a constructor and fields of its own."""

    def __init__(self, path, *, user):
        super().__init__("mine", path, KeyError("k"))
        self.user = user


class Slotted(alto.AltoError):
    """A user's subclass that keeps a field outside of ``__dict__``."""

    __slots__ = ("code", "none", "unset")

    def __init__(self, code):
        super().__init__()
        self.code = code
        self.none = None


class Odd(Exception):
    """Its constructor takes two arguments, and its message is made of them."""

    def __init__(self, a, b):
        super().__init__(f"odd {a} {b}")
        self.a = a


class Reduced(Exception):
    """Takes itself apart, rightly."""

    def __init__(self, a, *, b):
        super().__init__(f"{a} {b}")
        self.a, self.b = a, b

    def __reduce__(self):
        return _reduced, (self.a, self.b)


def _reduced(a, b):
    return Reduced(a, b=b)


class Misled(Exception):
    """Takes itself apart into something that has another message."""

    def __reduce__(self):
        return Misled, ("another message",)


class Unfit(Exception):
    """Takes itself apart into something that is no exception."""

    def __reduce__(self):
        return str, self.args


class Stated(Exception):
    """Puts itself together from a state that is not all it has."""

    def __init__(self, text):
        super().__init__(text)
        self.length = len(text)

    def __setstate__(self, state):
        self.length = -len(self.args[0])


class Registered(Exception):
    """Is taken apart by a function of another module."""


def _register(error):
    return Registered, error.args, {"by": "another module"}


class Itself(Exception):
    """Is its own copy."""

    def __deepcopy__(self, memo):
        return self


class Mute(Exception):
    """Has no text."""

    def __str__(self):
        raise ZeroDivisionError

    __repr__ = __str__


class Many(ExceptionGroup):
    """A group whose constructor takes something else, and that hides what it holds."""

    def __new__(cls, *errors):
        """Take the members alone."""
        return super().__new__(cls, "many", errors)

    @property
    def exceptions(self):
        """Hide them."""
        raise ZeroDivisionError


class Few(ExceptionGroup):
    """A group of a class of its own."""


def caught(function):
    """What a function raises."""
    try:
        function()
    except BaseException as error:  # noqa: BLE001
        return error
    raise AssertionError


def deep(error):
    """An exception and its causes."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__
    return found


def chain(error):
    """Types and texts, cause by cause."""
    return [(type(one), str(one)) for one in deep(error)]


class TestTravel:
    """Pickling and copying."""

    def test_each_class_has_an_example(self):
        """A new class of errors is not forgotten."""
        assert set(EXAMPLES) == set(tree(alto.AltoError))
        named = {getattr(errors, name) for name in errors.__all__} - {UnpicklableError}
        assert set(EXAMPLES) == named

    @each_way
    @pytest.mark.parametrize("cls", EXAMPLES, ids=lambda cls: cls.__name__)
    def test_each_class(self, cls, way):
        """An error keeps class, message, fields, notes and causes."""
        make, fields = EXAMPLES[cls]
        error = make()
        error.add_note("a note")
        error.__cause__ = error.__cause__ or OSError(2, "not there")
        error.__cause__.__cause__ = KeyError("deep")
        again = way(error)
        assert again is not error
        assert type(again) is cls
        assert str(again) == str(error)
        assert again.args == error.args
        assert vars(again).keys() == vars(error).keys()
        assert {name: getattr(again, name) for name in fields} == fields
        assert again.__notes__ == ["a note"]
        assert again.__suppress_context__
        assert again.__traceback__ is None
        assert chain(again) == chain(error)
        if cls is alto.StageError:
            assert again.cause is again.__cause__

    @each_way
    def test_a_subclass_of_a_user(self, way):
        """Constructors of users are not called, and their fields and slots survive."""
        again = way(Mine((3,), user="ann"))
        assert (type(again), again.user, again.path) == (Mine, "ann", (3,))
        assert again.cause is again.__cause__
        assert repr(again.cause) == "KeyError('k')"
        slotted = way(Slotted(7))
        assert slotted.code == 7
        assert slotted.none is None
        assert not hasattr(slotted, "unset")

    @each_way
    def test_the_request_id(self, way):
        """What the runtime sets on an error of a request travels with it."""
        error = alto.DeadlineExceeded(1)
        assert error.request_id is None
        error.request_id = "r-1"
        assert way(error).request_id == "r-1"
        assert alto.DeadlineExceeded(1).request_id is None

    @each_deep_way
    def test_what_is_copied_is_apart(self, way):
        """Nothing of a deep copy is the original's."""
        error = alto.StageError("s", (), KeyError(["list"]))
        error.extra = ["list"]
        again = way(error)
        assert again.extra == error.extra
        assert again.extra is not error.extra
        assert again.cause is not error.cause
        assert again.cause.args[0] is not error.cause.args[0]

    def test_a_shallow_copy_shares(self):
        """As of every object, fields and causes of a shallow copy are the original's."""
        error = alto.StageError("s", (), KeyError(threading.Lock()))
        again = copy.copy(error)
        assert again.cause is error.cause
        assert again.__cause__ is error.__cause__
        again.add_note("mine")
        assert not hasattr(error, "__notes__")

    @each_deep_way
    @pytest.mark.parametrize(
        "cause",
        [
            lambda: Odd(1, 2),
            lambda: Reduced(1, b=2),
            lambda: OSError(2, "no", "file"),
            lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            lambda: SystemExit(3),
        ],
    )
    def test_a_foreign_cause(self, way, cause):
        """Also one that Python itself could not rebuild, whose constructor takes other things."""
        cause = cause()
        cause.add_note("noted")
        again = way(alto.StageError("s", (), cause)).cause
        assert type(again) is type(cause)
        assert str(again) == str(cause)
        assert again.__notes__ == ["noted"]
        assert vars(again) == vars(cause)

    @each_deep_way
    @pytest.mark.parametrize(
        "cause",
        [
            lambda: KeyError(threading.Lock()),
            lambda: Misled("mine"),
            lambda: Unfit("mine"),
            lambda: Mute(threading.Lock()),
        ],
    )
    def test_a_cause_that_cannot_follow(self, way, cause):
        """A stand-in with type, text and notes takes its place, and the chain goes on behind it."""
        cause = cause()
        cause.add_note("noted")
        cause.__cause__ = OSError("behind")
        again = way(alto.StageError("s", (1,), cause))
        stand_in = again.cause
        assert isinstance(stand_in, UnpicklableError)
        assert stand_in is again.__cause__
        assert stand_in.type_name.split(".")[-1] == type(cause).__name__
        assert stand_in.text == told(cause).partition(": ")[2]
        assert str(stand_in) == f"{stand_in.type_name}: {stand_in.text}"
        assert stand_in.__notes__ == ["noted"]
        assert repr(stand_in.__cause__) == "OSError('behind')"
        assert again.path == (1,)

    def test_a_class_that_only_this_process_has(self):
        """A local class can be copied, and leaves a stand-in in a pickle."""

        class Local(Exception):
            pass

        class LocalStage(alto.StageError):
            pass

        error = alto.StageError("s", (), LocalStage("t", (), Local("here")))
        kinds = [type(one) for one in deep(copy.deepcopy(error))]
        assert kinds == [alto.StageError, LocalStage, Local]
        again = pickle.loads(pickle.dumps(error))
        kinds = [type(one) for one in deep(again)]
        assert kinds == [alto.StageError, UnpicklableError, UnpicklableError]
        assert str(again.root_cause).endswith("Local: here")

    def test_one_that_is_its_own_copy(self):
        """The links of the original stay as they are."""
        cause = Itself("one")
        cause.__cause__ = behind = KeyError(1)
        again = copy.deepcopy(alto.StageError("s", (), cause))
        assert isinstance(again.cause, UnpicklableError)
        assert cause.__cause__ is behind

    @each_deep_way
    def test_a_field_that_cannot_follow(self, way):
        """Its ``repr`` takes its place, item by item in a tuple, and the rest stays."""
        lock = threading.Lock()
        again = way(alto.OutputError("no", text="t", items=[1, lock, {"a": [2]}]))
        assert again.items == (1, repr(lock), {"a": [2]})
        assert len(way(alto.OutputError("no", text="", items=[[lock] * 99])).items[0]) == 1000
        assert again.text == "t"

    @each_deep_way
    def test_groups(self, way):
        """Members survive one by one, with their own causes, in groups of any class."""

        def fail():
            raise ValueError("bad") from KeyError("why")

        inner = Few("few", [caught(fail), OSError(threading.Lock())])
        group = ExceptionGroup("outer", [inner, Many(Odd(1, 2), Mute()), alto.Closed("c")])
        group.add_note("noted")
        again = way(alto.StageError("s", (), group)).cause
        assert type(again) is ExceptionGroup
        assert again.message == "outer"
        assert again.__notes__ == ["noted"]
        few, many, closed = again.exceptions
        assert type(few) is Few
        assert chain(few.exceptions[0]) == [(ValueError, "bad"), (KeyError, "'why'")]
        assert isinstance(few.exceptions[1], UnpicklableError)
        assert type(many) is ExceptionGroup
        assert many.message.endswith("Many: many")
        assert type(many.exceptions[0]) is Odd
        assert type(closed) is alto.Closed

    @each_deep_way
    def test_a_base_exception_in_a_group(self, way):
        """A group that no ``except Exception`` catches stays one."""
        group = BaseExceptionGroup("g", [KeyboardInterrupt(), KeyError(1)])
        again = way(alto.StageError("s", (), group)).cause
        assert type(again) is BaseExceptionGroup

    @each_way
    def test_contexts(self, way):
        """What Python shows as the context travels; what it does not show need not."""

        def fail():
            try:
                raise KeyError("first")  # noqa: TRY301
            except KeyError:
                raise alto.Closed("second")  # noqa: B904

        again = way(caught(fail))
        assert repr(again.__context__) == "KeyError('first')"
        assert not again.__suppress_context__

    @each_deep_way
    def test_a_context_that_is_not_shown(self, way):
        """It stays behind, since an error that is raised from another drags nothing else along."""
        error = alto.Closed("a")
        error.__context__ = KeyError()
        error.__suppress_context__ = True
        again = way(error)
        assert again.__context__ is None
        assert again.__suppress_context__

    @each_deep_way
    def test_classes_that_have_their_own_way(self, way, monkeypatch):
        """What Python would ask to take an exception apart or to put it together is asked."""
        monkeypatch.setitem(copyreg.dispatch_table, Registered, _register)
        stated = way(alto.StageError("s", (), Stated("four"))).cause
        assert (str(stated), stated.length) == ("four", -4)
        registered = way(alto.StageError("s", (), Registered("r"))).cause
        assert str(registered) == "r"
        assert registered.by == "another module"

    def test_a_circle_through_a_list(self):
        """A deep copy is the copy also where something else holds the original."""
        error = alto.Closed("a")
        error.__cause__ = KeyError([error])
        again = copy.deepcopy(error)
        assert again.__cause__.args[0][0] is again

    @each_deep_way
    def test_circles(self, way):
        """Causes that go round in a circle do so afterwards."""
        error, cause = alto.Closed("a"), Odd(1, 2)
        cause.holds = error
        error.__cause__, cause.__cause__ = cause, error
        again = way(error)
        assert again.__cause__.__cause__ is again
        assert again.__cause__.holds is again
        assert type(again.__cause__) is Odd
        assert again.root_cause is again.__cause__

    @each_deep_way
    def test_a_circle_through_a_class_that_takes_itself_apart(self, way):
        """It ends, with a stand-in somewhere."""
        error = alto.Closed("a")
        error.__cause__ = Reduced(error, b=2)
        assert str(way(error)) == "a"

    @each_deep_way
    def test_a_long_chain_of_requests(self, way):
        """Pipelines in pipelines, deeper than Python recurses, in time that is no power of it."""
        error = KeyError("root")
        for level in range(1200):
            error = alto.StageError("s", (level,), error)
        again = way(error)
        assert len(deep(again)) == 1201
        assert repr(again.root_cause) == "KeyError('root')"

    @each_deep_way
    def test_groups_in_groups(self, way):
        """Many of them, of which some are met twice."""
        error = group = ExceptionGroup("g", [KeyError("root"), OSError()])
        for _ in range(1200):
            error = ExceptionGroup("g", [error])
        outer = alto.Closed("o")
        outer.__cause__, outer.__context__ = group, error
        outer.__suppress_context__ = False
        again = way(outer)
        context = again.__context__
        for _ in range(1200):
            (context,) = context.exceptions
        assert context is again.__cause__

    def test_a_field_whose_class_is_not_there(self, monkeypatch):
        """Where the receiving process cannot load something, its text stands there."""
        monkeypatch.setitem(globals(), "Slot", type("Slot", (), {"__module__": __name__}))
        monkeypatch.setitem(globals(), "Gone", type("Gone", (Exception,), {"__module__": __name__}))
        error = alto.OutputError("no", text="", items=[globals()["Slot"]()])
        error.__cause__ = globals()["Gone"]("why")
        data = pickle.dumps(error)
        monkeypatch.delitem(globals(), "Slot")
        monkeypatch.delitem(globals(), "Gone")
        again = pickle.loads(data)
        assert isinstance(again.items[0], str)
        assert isinstance(again.__cause__, UnpicklableError)
        assert again.__cause__.text == "why"
        assert again.__cause__.args == (again.__cause__.type_name, "why")

    def test_the_stand_in_itself(self):
        """It can be pickled and copied, and one without a text is its name."""
        for way in (copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))):
            again = way(UnpicklableError("a.B", "c"))
            assert (again.type_name, again.text, str(again)) == ("a.B", "c", "a.B: c")
        assert str(UnpicklableError("a.B", "")) == "a.B"
        assert pickle.dumps(UnpicklableError("a", "b")).find(b"alto.errors") > 0


LEAVES = st.one_of(
    st.builds(KeyError, st.integers()),
    st.builds(Odd, st.text(max_size=3), st.integers()),
    st.builds(Reduced, st.text(max_size=3), b=st.integers()),
    st.builds(alto.errors.EngineStartError, st.just("e"), st.text(), output=st.lists(st.text())),
    st.builds(alto.OutputError, st.text(), text=st.text(), items=st.lists(st.integers())),
    st.builds(alto.DeadlineExceeded, st.floats(0.1, 1e6)),
    st.builds(lambda: KeyError(threading.Lock())),
)


def _caused(error, cause, notes, suppress):
    error.__cause__ = cause
    for note in notes:
        error.add_note(note)
    error.__suppress_context__ = suppress
    return error


def _around(inner):
    return st.one_of(
        st.builds(alto.StageError, st.text(), st.lists(st.integers()).map(tuple), inner),
        st.builds(_caused, LEAVES, inner, st.lists(st.text()), st.booleans()),
        st.builds(ExceptionGroup, st.text(), st.lists(inner, min_size=1, max_size=3)),
    )


GRAPHS = st.recursive(LEAVES, _around, max_leaves=8)


def outline(error):
    """Everything about an exception that has to survive."""
    if error is None:
        return None
    stand_in = isinstance(error, UnpicklableError) or (
        type(error) is KeyError and not isinstance(error.args[0], int)
    )
    return (
        "stand-in" if stand_in else (type(error), str(error)),
        [outline(one) for one in getattr(error, "exceptions", ())],
        getattr(error, "__notes__", []),
        outline(error.__cause__),
        error.__suppress_context__,
        [getattr(error, name, None) for name in ("stage", "path", "engine", "output", "items")],
    )


@given(GRAPHS, st.sampled_from([copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]))
def test_any_graph_of_exceptions_survives(graph, way):
    """Whatever errors, foreign exceptions and groups are chained to each other."""
    error = alto.StageError("outermost", (), graph)
    again = way(error)
    assert outline(again) == outline(error)
    assert outline(again.cause) == outline(error.cause)


def fails(what):
    """A job for a process pool."""
    if what == "odd":
        raise alto.StageError("s", (1,), Odd(1, 2))
    if what == "lock":
        raise alto.StageError("s", (2,), KeyError(threading.Lock()))
    if what == "mine":
        raise Mine((3,), user="ann")
    return what


@pytest.mark.realtime
def test_a_process_pool_goes_on():
    """An error of one job reaches its caller whole, and the pool runs the next."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        odd, lock, mine, good = (pool.submit(fails, w) for w in ("odd", "lock", "mine", "good"))
        assert type(odd.exception().cause) is Odd
        assert type(lock.exception().cause) is UnpicklableError
        assert lock.exception().path == (2,)
        assert mine.exception().user == "ann"
        assert good.result() == "good"


class TestRootCause:
    """The innermost cause."""

    def test_of_an_error_without_a_cause(self):
        """It is its own."""
        error = alto.DeadlineExceeded(1)
        assert error.root_cause is error

    def test_through_stages_and_engines(self):
        """Pipelines in pipelines, an engine's error, and a user's own."""
        root = OSError("refused")
        engine = alto.EngineError("e", "no answer")
        engine.__cause__ = root
        mine = ValueError("mine")
        mine.__cause__ = alto.StageError("inner", (), engine)
        assert alto.StageError("outer", (0,), mine).root_cause is root

    def test_through_groups_of_one(self):
        """A group of one is what it holds, and one of several is a root cause."""
        root = KeyError("k")
        error = alto.StageError("s", (), ExceptionGroup("g", [ExceptionGroup("h", [root])]))
        assert error.root_cause is root
        two = ExceptionGroup("g", [KeyError(), OSError()])
        assert alto.StageError("s", (), two).root_cause is two
        wrapped = ExceptionGroup("h", [two])
        assert alto.StageError("s", (), wrapped).root_cause is two

    def test_a_context_is_no_cause(self):
        """Only what ``raise ... from`` has named is one."""
        error = ValueError()
        error.__context__ = KeyError()
        assert alto.StageError("s", (), error).root_cause is error

    def test_circles(self):
        """It ends where causes go round in a circle."""
        error, other = alto.Closed("a"), KeyError()
        error.__cause__, other.__cause__ = other, error
        assert error.root_cause is other


class TestGroups:
    """What is said of exception groups."""

    def test_the_members_are_named(self):
        """Three of them, those of nested groups too, and the others are counted."""
        inner = ExceptionGroup("inner", [OSError("down"), KeyError("k"), TypeError(), ValueError()])
        group = ExceptionGroup("failed", [ConnectionError("refused"), inner])
        assert told(group) == (
            "ExceptionGroup: failed (5 exceptions: ConnectionError: refused; OSError: down; "
            "KeyError: 'k'; and 2 more)"
        )
        error = alto.StageError("s", (), group)
        assert str(error) == f"stage 's' raised at path (): {told(group)}"
        assert error.cause is group

    def test_a_group_of_one_is_what_it_holds(self):
        """Message and cause are of the exception, and the group stays where tracebacks look."""
        root = KeyError("k")
        group = ExceptionGroup("g", [ExceptionGroup("h", [root])])
        error = alto.StageError("s", (), group)
        assert str(error) == "stage 's' raised at path (): KeyError: 'k'"
        assert error.cause is root
        assert error.__cause__ is group

    def test_it_is_bounded(self):
        """A thousand long messages are not all said, and deep groups are read to their end."""
        group = ExceptionGroup("x" * 999, [ValueError("y" * 999) for _ in range(1000)])
        for _ in range(3000):
            group = ExceptionGroup("g", [group, KeyError()])
        assert len(told(group)) < 1000
        assert "(4000 exceptions: " in told(group)
        assert told(group).endswith("; and 3997 more)")

    def test_exceptions_that_raise(self):
        """Neither the text of a member nor what a group says it holds can spoil the message."""
        said = told(Many(Mute(), KeyError(1)))
        assert said == "Many: many (2 exceptions: Mute: (its __str__ raises ZeroDivisionError); KeyError: 1)"  # fmt: skip
        assert told(Many(Mute())) == "Mute: (its __str__ raises ZeroDivisionError)"

    async def test_a_task_group_in_a_stage(self):
        """What its tasks raised is named, by an app and by the interpreter alike."""

        async def fail(error):
            raise error

        @alto.stage
        async def tries(n: int) -> int:
            async with asyncio.TaskGroup() as tasks:
                for k in range(n):
                    tasks.create_task(fail(ConnectionError(f"refused {k}")))
            return n

        @alto.pipeline
        def p(n: alto.Stream[int]) -> alto.Stream[int]:
            return tries(n)

        async with p.open() as app:
            for n, said in (
                (1, r"raised at path \(\): ConnectionError: refused 0"),
                (2, r"2 exceptions: ConnectionError: refused 0; ConnectionError: refused 1"),
            ):
                for run in (app.run, lambda n: reference_run(p, n)):
                    with pytest.raises(alto.StageError, match=said) as caught:
                        await run(n)
                    assert isinstance(caught.value.cause, ConnectionError) == (n == 1)
                    assert isinstance(caught.value.__cause__, ExceptionGroup)


class TestMessages:
    """What they say: what is wrong, where, what to do."""

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (
                alto.Overloaded(1, 1),
                (
                    "1 call waits for an engine, and no more than 1 may; ask again later, or raise the "
                    "pool's max_waiting"
                ),
            ),
            (
                alto.Overloaded(9, 8, kind="requests"),
                (
                    "9 requests are open, and this app takes no more than 8 (open(max_requests=8)); ask "
                    "again later (a web server answers 503), or raise max_requests"
                ),
            ),
            (
                alto.Overloaded(1, 1, kind="requests"),
                (
                    "1 request is open, and this app takes no more than 1 (open(max_requests=1)); ask "
                    "again later (a web server answers 503), or raise max_requests"
                ),
            ),
            (
                alto.RequestCancelled("its app was closed"),
                (
                    "the request was cancelled before it was complete, since its app was closed; run it "
                    "again if it is still wanted"
                ),
            ),
            (
                alto.errors.BufferExceeded(None, 9),
                (
                    "a request holds more than 9 results that wait for earlier ones; raise "
                    "open(max_held_items=...), or read them with order='arrival'"
                ),
            ),
            (
                alto.errors.RoutingError("s", "it raised"),
                "stage 's' cannot route an item: it raised; fix the router",
            ),
            (
                alto.errors.OutputTruncated(None, text="", items=[1]),
                (
                    "the output reached the end of the model's context before its JSON was complete, "
                    "after 1 whole item; shorten the prompt, or ask for less"
                ),
            ),
            (
                alto.errors.OutputTruncated(9, text="", items=[]),
                (
                    "the output reached max_tokens=9 before its JSON was complete, after 0 whole items; "
                    "raise max_tokens, or ask for less"
                ),
            ),
            (alto.EngineError(engine="e", reason="broken"), "engine 'e': broken"),
            (
                alto.errors.PromptTooLong(prompt_tokens=None, limit=8),
                (
                    "the prompt does not fit a context of 8 tokens; shorten it or raise the engine's "
                    "max_model_len"
                ),
            ),
        ],
    )
    def test_whole(self, error, said):
        """Word by word, with the right plurals and the right remedy."""
        assert str(error) == said

    @pytest.mark.parametrize(
        ("code", "said"),
        [
            (None, "ran this call; see whether"),
            (3, "this call (exit code 3); see"),
            (-9, "this call (killed by SIGKILL); see"),
            (-200, "this call (exit code -200); see"),
        ],
    )
    def test_exit_codes(self, code, said):
        """A signal has its name."""
        assert said in str(alto.errors.WorkerDied("work", 0, code))


class TestTree:
    """What one ``except`` catches."""

    def test_a_cancelled_request_has_failed_and_was_closed(self):
        """Both who looks after a request and who looks for what is closed catch it."""
        assert issubclass(alto.RequestCancelled, alto.RequestError)
        assert issubclass(alto.RequestCancelled, alto.Closed)

    def test_what_was_not_started_is_no_failed_request(self):
        """Whoever is refused may ask again, and catches that apart."""
        for cls in (alto.Overloaded, alto.InputError, alto.Closed):
            assert not issubclass(cls, alto.RequestError)

    def test_the_docstring_draws_it(self):
        """The tree at the top of the module has every class, below its base."""
        drawn = [line for line in errors.__doc__.splitlines() if "── " in line]
        above = {0: "AltoError"}
        for line in drawn:
            depth = line.index("── ") // 4
            name = line.split("── ")[1].split()[0]
            assert getattr(errors, above[depth - 1]) in getattr(errors, name).__bases__
            above[depth] = name
        names = {line.split("── ")[1].split()[0] for line in drawn}
        assert names | {"AltoError"} == {cls.__name__ for cls in EXAMPLES}

"""One contender of ``bench.overhead`` a file, each written as its own documentation teaches.

Every module has ``opened()``, an async context manager that does the set-up and gives the request:
a coroutine function from *n* to ``[1, ..., n]``.
"""

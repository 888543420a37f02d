# Hides transformers from pyright, which else reads thousands of files for the sake of a few lines.
from typing import Any

def __getattr__(name: str) -> Any: ...

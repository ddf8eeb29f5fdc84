"""Shows what stands under "Example:" in a docstring as code; Griffe, which reads docstrings, looks for "Examples:"."""

import re
from typing import Any

from griffe import Extension, Object


class ExamplesInDocstrings(Extension):
    """Renames the section in every docstring."""

    def on_instance(self, *, obj: Object, **others: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)

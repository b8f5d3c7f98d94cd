"""Names of schemas in the OpenAPI document: identifiers in every language, and the same whatever else is installed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable


class SchemaNames:
    """Gives out names, none of them twice. ``taken`` are those of the document's own schemas."""

    def __init__(self, taken: Iterable[str]) -> None:
        # Generators write a file for each schema, and some file systems see no difference between capital and small letters.
        self._taken = {name.lower() for name in taken}

    def name(self, kind: str, *parts: str) -> str:
        """``kind`` and the words of ``parts`` in PascalCase: `Submit`, `demo.echo` gives `SubmitDemoEcho`.

        A name that is given already (`demo_echo`, or a task type `in`, whose `TaskIn` is the document's own) gets an end made of its text,
        so that it does not depend on how many others there are.
        """
        found = kind + "".join(word[0].upper() + word[1:] for part in parts for word in re.findall("[A-Za-z0-9]+", part))
        if found.lower() in self._taken:
            found += hashlib.sha256(".".join(parts).encode()).hexdigest()[:6].upper()
        self._taken.add(found.lower())
        return found

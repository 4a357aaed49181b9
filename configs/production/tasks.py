"""The task that `td-runtime.toml` registers."""

import re
from collections import Counter
from typing import Any

from td_worker import streams

_WORD = re.compile(r"[^\W\d_]{4,}")


async def summarize(payload: dict[str, Any]) -> dict[str, Any]:
    """Stream the sentences of ``payload["text"]`` one by one; return its most frequent words."""
    text = str(payload["text"])
    async with streams.writer("sentences") as writer:
        for sentence in re.split(r"(?<=[.!?])\s+", text):
            await writer.write(sentence)
    words = Counter(word.lower() for word in _WORD.findall(text))

    return {"words": words.total(), "frequent": [word for word, _ in words.most_common(5)]}

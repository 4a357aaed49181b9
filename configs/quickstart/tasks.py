"""Streams a real text, word by word, from many processes to one stream."""

from functools import cache
from pydoc_data.topics import topics

from td_worker import streams, tasks

SHARES = 8
book = streams.define("book")


async def stream_book(payload: None) -> dict[str, int]:
    """Have eight runs stream a share each, and wait for them; they land in different workers."""
    shares = [{"share": share, "of": SHARES} for share in range(SHARES)]
    results = await tasks.batch_trigger_and_wait("stream-share", shares)

    return {"chunks": sum(result.unwrap() for result in results)}


async def stream_share(payload: dict[str, int]) -> int:
    """Stream one share of the text to the stream of the run at the top."""
    words = read_share(payload["share"], payload["of"])
    async with book.writer(target="root") as writer:
        for number, word in enumerate(words):
            await writer.write({"share": payload["share"], "number": number, "word": word})

    return len(words)


def read_share(share: int, of: int) -> list[str]:
    """Return share *share* of the words in Python's own language reference."""
    words = read_words()

    return words[len(words) * share // of : len(words) * (share + 1) // of]


@cache
def read_words() -> list[str]:
    """Return every word, read once a worker."""
    return [word for _, text in sorted(topics.items()) for word in text.split()]

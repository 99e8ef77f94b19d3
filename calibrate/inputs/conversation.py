"""Conversations as people have them: a system prompt, earlier turns, pictures and videos between the words.

    [{"role": "system", "content": "Answer in one word."},
     {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}]},
     {"role": "assistant", "content": "A cup."},
     {"role": "user", "content": "Which colour?"}]

The form is that of transformers' chat templates. The last turn is the user's, and the text that ends it is the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["text", "image", "video"]
ROLES = ("system", "user", "assistant")
FORM = (
    'A message is {"role": "system", "user" or "assistant", "content": TEXT or [PART, ...]}, a part {"type": "text", '
    '"text": TEXT}, {"type": "image", "image": PATH} or {"type": "video", "video": PATH}'
)


@dataclass(frozen=True)
class Part:
    """Words, or the place of a picture or video; `text` holds the words, or the file's name."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: str
    parts: tuple[Part, ...]


class Malformed(ValueError):
    """Why something is no conversation, in a few words."""


def read(messages: Any) -> tuple[Turn, ...]:
    """The turns of ``messages`` as a JSON line holds them.

    Raises:
        Malformed: they have another form, or do not end with text of the user.
    """
    if not isinstance(messages, list) or not messages:
        raise Malformed("'messages' is not a list of messages")
    turns = tuple(_turn(message) for message in messages)
    if turns[-1].role != "user" or not any(part.kind == "text" for part in turns[-1].parts):
        raise Malformed("the last message must be the user's and hold text")
    return turns


def question(turns: tuple[Turn, ...]) -> str:
    """The text that ends a conversation."""
    return [part.text for part in turns[-1].parts if part.kind == "text"][-1]


def files(turns: tuple[Turn, ...], kind: Kind) -> tuple[str, ...]:
    """Names of the pictures or videos, in the order in which they are shown."""
    return tuple(part.text for turn in turns for part in turn.parts if part.kind == kind)


def asked(turns: tuple[Turn, ...], prompt: str) -> tuple[Turn, ...]:
    """The conversation with another text at its end."""
    *earlier, last = turns
    place = max(i for i, part in enumerate(last.parts) if part.kind == "text")
    parts = (*last.parts[:place], Part("text", prompt), *last.parts[place + 1 :])
    return (*earlier, replace(last, parts=parts))


def spelled(turns: tuple[Turn, ...]) -> list[dict[str, Any]]:
    """As chat templates read it."""
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part.text} if part.kind == "text" else {"type": part.kind}
                for part in turn.parts
            ],
        }
        for turn in turns
    ]


def _turn(message: Any) -> Turn:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Malformed("a message has no 'role'")
    role, content = message["role"], message.get("content")
    if role not in ROLES:
        raise Malformed(f"a message has the role '{role}'")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise Malformed(f"a message of the {role} has no content")
    return Turn(role, tuple(_parts(content)))


def _parts(content: list[Any]) -> Iterator[Part]:
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "image", "video"):
            raise Malformed(f"a part of a message has the type {kind!r}")
        text = part.get(kind, part.get("path"))
        if not isinstance(text, str) or not text.strip():
            raise Malformed(f"a part of type {kind} has no '{kind}'")
        yield Part(kind, text)

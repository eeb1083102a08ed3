"""Import of a published folder: everything is checked first, then written shard by shard."""

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic.dataclasses import dataclass as settings_dataclass

from videolavit.progress import OnProgress, Progress, ignore_progress

from ..config import ModelConfig
from ..model_file import ModelFacts, finish_model_folder
from ..network import STRICT, weight_files
from ..presets import load_config
from .expected import ExpectedPart, expected_part
from .layout import (
    CONFIG_FOLDERS,
    LANGUAGE_FILES,
    TOKENIZER,
    PublishedFile,
    config_name,
    files_of,
    published_place,
    selected_parts,
)
from .new_folder import OnWrite, copy_file, new_folder, progress_of_files, write_json, write_weights
from .summary import CheckpointSummary, summarize_part
from .tensors import StoredTensor, WeightsError, list_tensors, raise_if_any

IMPORT_STAGE = "import"
IMPORT_FILE_BYTES = 1 << 30
"""Largest shard of several tensors, in bytes."""

DERIVED = "*.rotary_emb.inv_freq"
"""Pattern of tables in old Llama weights that follow from the config."""

PartTensors = dict[str, dict[str, StoredTensor]]
"""Tensors by part, and by their name in the part."""


@settings_dataclass(frozen=True, kw_only=True, config=STRICT)
class ImportSettings:
    """Choice of what is imported, and shapes that the published files do not hold.

    Args:
        preset: Shapes of networks that are published without a config: a preset, or a YAML file of the same form.
        only: Parts of an incomplete download to import, such as `motion_tokenizer` or `understanding`; None for all.
        ignore: Patterns of tensor names that may be left over.
    """

    preset: str = "video-lavit-7b"
    only: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()


def import_checkpoint(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    settings: ImportSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> CheckpointSummary:
    """Converts a downloaded folder `rain1011/Video-LaVIT-v1` to a model folder. Tensors are copied bit for bit.

    Everything is checked before anything is written: each expected tensor must be there in its shape, and each tensor
    that is there must be used or ignored by name. No code from a pickle is run.

    Args:
        source: Published folder.
        target: New model folder. It appears when it is complete.
        settings: Choice of what is imported.
        on_progress: Receives the bytes written so far, after each file.

    Raises:
        ModelError: a file or tensor is missing, left over, of another shape, or cannot be read; all problems of a kind
            are listed at once. Or the target has content.
        OSError: a file cannot be written.
    """
    settings = settings or ImportSettings()
    config, parts = load_config(settings.preset), selected_parts(settings.only)
    on_progress(Progress(IMPORT_STAGE, message="reading names and shapes"))
    plan = plan_import(Path(source), config, parts, settings.ignore, whole=settings.only is None)
    remarks = list(plan.remarks)
    with new_folder(Path(target), plan.nbytes, remarks) as folder:
        plan.write(folder, progress_of_files(IMPORT_STAGE, plan.nbytes, on_progress))
    summaries = tuple(summarize_part(part.name, plan.tensors.get(part.name, {})) for part in plan.parts)
    return CheckpointSummary(Path(target), summaries, tuple(remarks))


@dataclass(frozen=True)
class ImportPlan:
    """Content of an import. There is a plan only if everything is there and fits.

    Args:
        config: Shapes that are not in the files.
        parts: Requirements of the parts, with their configs.
        tensors: Tensors of each part.
        copies: (source, path in the model folder) of files that are copied.
        remarks: Lines for the user: files and tensors that are not used, and why.
    """

    config: ModelConfig
    parts: list[ExpectedPart]
    tensors: PartTensors
    copies: list[tuple[Path, str]]
    remarks: list[str]

    @property
    def nbytes(self) -> int:
        """Bytes to be written."""
        weights = sum(stored.nbytes for found in self.tensors.values() for stored in found.values())
        return weights + sum(file.stat().st_size for file, _ in self.copies)

    def write(self, folder: Path, on_write: OnWrite, shard_bytes: int = IMPORT_FILE_BYTES) -> None:
        """Writes the model into an empty folder.

        Args:
            folder: Folder to write to.
            on_write: Called after each file of weights.
            shard_bytes: Largest size of a shard of several tensors, in bytes.
        """
        for part in self.parts:
            write_json(folder / part.name / config_name(part.name), part.config)
            if part.shapes is not None:
                weights = self.tensors[part.name]
                write_weights(folder / part.name, part.weights, weights, shard_bytes, on_write)
        for source, place in self.copies:
            copy_file(source, folder / place)
        trained = [part.name for part in self.parts]
        facts = ModelFacts(sizes=self.config.sizes, trained=trained, vocabulary=self.config.vocabulary)
        finish_model_folder(folder, facts)


def plan_import(
    folder: Path, config: ModelConfig, parts: Sequence[str], ignore: Sequence[str] = (), whole: bool = True
) -> ImportPlan:
    """Finds and checks the content of an import. It reads names and shapes, and writes nothing.

    Args:
        folder: Published folder.
        config: Shapes of the networks that are published without a config.
        parts: Names of the parts to import.
        ignore: Patterns of published tensor names that may be left over.
        whole: True to remark on files that belong to other parts.

    Raises:
        WeightsError: a file or tensor is missing, left over, of another shape, or cannot be read; all are listed.
    """
    if not folder.is_dir():
        raise WeightsError(f"there is no folder {folder}")
    survey = Survey(folder, set(parts), tuple(ignore))
    survey.find_weights()
    survey.find_files(parts)
    found = survey.checked_files()
    planned = [expected_part(part, folder, config, found.get(part, {})) for part in parts]
    for part in planned:
        survey.compare(part)
    survey.refuse_misfits()
    remarks = survey.remarks + survey.unused(whole)
    return ImportPlan(config, planned, found, survey.copies, remarks)


@dataclass
class Survey:
    """Content of a published folder for some parts, and the problems found in it."""

    folder: Path
    parts: set[str]
    ignore: tuple[str, ...]
    copies: list[tuple[Path, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    _tensors: PartTensors = field(default_factory=dict)
    _used: set[Path] = field(default_factory=set)
    _missing: list[str] = field(default_factory=list)
    _misfits: list[str] = field(default_factory=list)
    _ignored: dict[str, int] = field(default_factory=dict)

    def find_weights(self) -> None:
        """Assigns the tensors of all files to parts."""
        found = [(file, self._paths(file)) for file in files_of(self.parts)]
        replaced = {part for file, paths in found if file.is_fallback and paths for part in file.parts}
        for file, paths in found:
            wanted = file.parts & self.parts
            if file.is_fallback and paths:
                self._use_fallback(file, paths, wanted)
            elif paths:
                self._assign(file, paths, wanted)
            elif not file.is_fallback and not wanted <= replaced:
                self._missing.append(f"{file.path} ({', '.join(sorted(wanted))})")

    def find_files(self, parts: Sequence[str]) -> None:
        """Finds the configs, and the files beside the language models' weights."""
        for part in parts:
            if part not in CONFIG_FOLDERS:
                continue
            published = CONFIG_FOLDERS[part]
            config = self.folder / published / config_name(part)
            if config.is_file():
                self._used.add(config)
            elif part != "video_detokenizer/unet" or (self.folder / published).is_dir():
                self._missing.append(f"{published}/{config.name} ({part})")
            if part.endswith("language_model"):
                self._find_language_files(part, published)

    def _find_language_files(self, part: str, published: str) -> None:
        present = [name for name in LANGUAGE_FILES if (self.folder / published / name).is_file()]
        if not set(present) & set(TOKENIZER):
            self._missing.append(f"{published}/{TOKENIZER[0]} ({part})")
        self.copies += [(self.folder / published / name, f"{part}/{name}") for name in present]
        self._used.update(self.folder / published / name for name in present)

    def checked_files(self) -> PartTensors:
        """Returns the tensors by part. Raises WeightsError if files are missing."""
        raise_if_any(
            f"{self.folder} lacks files of the published layout",
            self._missing,
            "Download them, or import only the parts that are there",
        )
        return self._tensors

    def compare(self, part: ExpectedPart) -> None:
        """Notes tensors of a part that are missing, left over or of another shape."""
        self.remarks += [part.remark] if part.remark else []
        if part.shapes is None:
            return
        found = self._tensors.setdefault(part.name, {})
        current: dict[str, str] = {}
        for name in list(found):
            if current.setdefault(part.renamed.get(name, name), name) != name:  # under its old and its new name
                self._left_over(found.pop(name))
        for name in part.shapes.keys() - current.keys():
            file, published = published_place(part.name, name)
            self._misfits.append(f"missing {published} in {file.path}")
        for name in current.keys() - part.shapes.keys():
            self._left_over(found.pop(current[name]))
        for name in part.shapes.keys() & current.keys():
            stored, wanted = found[current[name]], part.shapes[name]
            if stored.shape != wanted:
                place, sizes = self._relative(stored.file), f"{list(stored.shape)}, expected {list(wanted)}"
                self._misfits.append(f"{stored.name} in {place} has shape {sizes}")

    def refuse_misfits(self) -> None:
        """Raises WeightsError if a tensor is missing, left over or of another shape."""
        raise_if_any(
            f"the weights in {self.folder} do not fit",
            sorted(self._misfits),
            "Shapes come from the preset and from the configs in the folder. What is left over and not needed can be "
            "ignored by name",
        )
        self.remarks += [f"not used: {count} tensors {pattern}" for pattern, count in self._ignored.items()]

    def unused(self, whole: bool) -> list[str]:
        """Lists files that were not read, a line each; without `whole` only those in folders that were read."""
        folders = {path.parent for path in self._used} - {self.folder}
        lines = []
        for path, subfolders, names in os.walk(self.folder):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for file in (Path(path) / name for name in sorted(names)):
                is_document = file.name.startswith(".") or file.suffix == ".md"
                if file not in self._used and not is_document and (whole or file.parent in folders):
                    lines.append(f"not used: {self._relative(file)}")
        return lines

    def _paths(self, file: PublishedFile) -> list[Path]:
        folder = self.folder / file.folder
        for name in file.names:
            if paths := weight_files(folder, name):
                self._used |= {folder / f"{name}.index.json", *paths}
                return paths
        return []

    def _assign(self, file: PublishedFile, paths: Sequence[Path], wanted: set[str]) -> None:
        for path in paths:
            for stored in list_tensors(path):
                rule = file.rule(stored.name)
                if rule is None:
                    self._left_over(stored)
                elif rule.part in wanted:
                    self._add(rule.part, rule.ours + stored.name.removeprefix(rule.published), stored)

    def _add(self, part: str, name: str, stored: StoredTensor) -> None:
        known = self._tensors.setdefault(part, {})
        if name in known:
            self._left_over(stored, f", which {self._relative(known[name].file)} has as {known[name].name}")
        else:
            known[name] = stored

    def _use_fallback(self, file: PublishedFile, paths: Sequence[Path], wanted: set[str]) -> None:
        absent = wanted - self._tensors.keys()
        if absent:
            self.remarks.append(f"taken from {file.path}: {', '.join(sorted(absent))}")
            self._assign(file, paths, absent)
        if wanted - absent:
            rest = ", ".join(sorted(wanted - absent))
            self.remarks.append(f"not used: {file.path} for {rest}, which has its own file")

    def _left_over(self, stored: StoredTensor, why: str = "") -> None:
        for pattern in (DERIVED, *self.ignore):
            if fnmatch.fnmatchcase(stored.name, pattern):
                self._ignored[pattern] = self._ignored.get(pattern, 0) + 1
                return
        self._misfits.append(f"left over {stored.name} in {self._relative(stored.file)}{why}")

    def _relative(self, file: Path) -> Path:
        return file.relative_to(self.folder)

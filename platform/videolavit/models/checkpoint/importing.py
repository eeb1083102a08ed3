"""The published folder to a model folder: everything is checked first, then written shard by shard."""

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from videolavit.config.model import PRESETS, ModelConfig, load_preset

from ..folder import start_folder
from ..network import parse_config, weight_files
from .expected import Part, expected_part
from .layout import CONFIG_FOLDERS, LANGUAGE_FILES, TOKENIZER, PublishedFile, config_name, published_place, sources_of
from .new_folder import OnWrite, copy_file, write_json, write_weights
from .tensors import Stored, WeightsError, list_tensors, refuse

IMPORT_FILE_BYTES = 1 << 30
DERIVED = "*.rotary_emb.inv_freq"
"""Tables that old Llama weights hold, and that follow from the config."""

Tensors = dict[str, dict[str, Stored]]
"""By part, and by the name in it."""


@dataclass(frozen=True)
class ImportPlan:
    """What will be written; made only if everything is there and fits.

    Args:
        config: Shapes that are not in the files.
        parts: With their configs.
        tensors: Where each part's tensors are.
        copies: (source, path in the model folder) of files that are taken as they are.
        remarks: What the user should know: files and tensors that are not used, and why.
    """

    config: ModelConfig
    parts: list[Part]
    tensors: Tensors
    copies: list[tuple[Path, str]]
    remarks: list[str]

    @property
    def nbytes(self) -> int:
        """What is to be written."""
        weights = sum(stored.nbytes for found in self.tensors.values() for stored in found.values())
        return weights + sum(file.stat().st_size for file, _ in self.copies)

    def write(self, folder: Path, on_write: OnWrite, shard_bytes: int = IMPORT_FILE_BYTES) -> None:
        """Writes the model into an empty folder.

        Args:
            shard_bytes: What a file of weights may hold if that is more than one tensor.
        """
        start_folder(folder, self.config.sizes, trained=True)
        for part in self.parts:
            write_json(folder / part.name / config_name(part.name), part.config)
            if part.shapes is not None:
                weights = self.tensors[part.name]
                write_weights(folder / part.name, part.weights, weights, shard_bytes, on_write)
        for source, place in self.copies:
            copy_file(source, folder / place)


def model_config(preset: str) -> ModelConfig:
    """Shapes by the name of a preset, or from a YAML file of the same form.

    Raises:
        WeightsError: neither; a file that cannot be read. ModelError: a key or value in it is wrong.
    """
    if preset in PRESETS:
        return load_preset(preset)
    try:
        values = yaml.safe_load(Path(preset).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise WeightsError(f"{preset!r} is no preset ({', '.join(PRESETS)}), nor a YAML file: {error}") from None
    return parse_config(ModelConfig, values or {}, preset)


def plan_import(
    folder: Path, config: ModelConfig, parts: Sequence[str], ignore: Sequence[str] = (), whole: bool = True
) -> ImportPlan:
    """Finds and checks all that an import needs; reads names and shapes, and writes nothing.

    Args:
        folder: With the published layout.
        config: Shapes of the networks whose config is not among the published files.
        parts: To be imported.
        ignore: Patterns of published tensor names that may be left over.
        whole: Whether to remark on files that belong to other parts.

    Raises:
        WeightsError: a file or tensor is missing, left over, of another shape, or cannot be read. All are listed.
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
    """What a published folder holds of some parts, and what is wrong with it."""

    folder: Path
    parts: set[str]
    ignore: tuple[str, ...]
    copies: list[tuple[Path, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    _tensors: Tensors = field(default_factory=dict)
    _used: set[Path] = field(default_factory=set)
    _missing: list[str] = field(default_factory=list)
    _misfits: list[str] = field(default_factory=list)
    _ignored: dict[str, int] = field(default_factory=dict)

    def find_weights(self) -> None:
        """Sorts the tensors of all files into parts."""
        sources = [(source, self._files(source)) for source in sources_of(self.parts)]
        stand_ins = {part for source, files in sources if source.is_fallback and files for part in source.parts}
        for source, files in sources:
            wanted = source.parts & self.parts
            if source.is_fallback and files:
                self._stand_in(source, files, wanted)
            elif files:
                self._sort(source, files, wanted)
            elif not source.is_fallback and not wanted <= stand_ins:
                self._missing.append(f"{source.path} ({', '.join(sorted(wanted))})")

    def find_files(self, parts: Sequence[str]) -> None:
        """Finds the configs, and what lies beside the language models' weights."""
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

    def checked_files(self) -> Tensors:
        """The tensors by part. Raises WeightsError if files are missing."""
        refuse(
            f"{self.folder} lacks files of the published layout",
            self._missing,
            "Download them, or name the parts that are there with --only",
        )
        return self._tensors

    def compare(self, part: Part) -> None:
        """Notes what is missing, left over or of another shape in a part."""
        self.remarks += [part.remark] if part.remark else []
        if part.shapes is None:
            return
        found = self._tensors.setdefault(part.name, {})
        current: dict[str, str] = {}
        for name in list(found):
            if current.setdefault(part.renamed.get(name, name), name) != name:  # under its old and its new name
                self._left_over(found.pop(name))
        for name in part.shapes.keys() - current.keys():
            source, published = published_place(part.name, name)
            self._misfits.append(f"missing {published} in {source.path}")
        for name in current.keys() - part.shapes.keys():
            self._left_over(found.pop(current[name]))
        for name in part.shapes.keys() & current.keys():
            stored, wanted = found[current[name]], part.shapes[name]
            if stored.shape != wanted:
                place, sizes = self._relative(stored.file), f"{list(stored.shape)}, expected {list(wanted)}"
                self._misfits.append(f"{stored.name} in {place} has shape {sizes}")

    def refuse_misfits(self) -> None:
        """Raises WeightsError if a tensor is missing, left over or of another shape."""
        refuse(
            f"the weights in {self.folder} do not fit",
            sorted(self._misfits),
            "Shapes come from --preset and from the configs in the folder. What is left over and not needed can be "
            "named with --ignore",
        )
        self.remarks += [f"not used: {count} tensors {pattern}" for pattern, count in self._ignored.items()]

    def unused(self, whole: bool) -> list[str]:
        """A line a file that was not read; without `whole` only of folders that were read."""
        folders = {path.parent for path in self._used} - {self.folder}
        lines = []
        for path, subfolders, names in os.walk(self.folder):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for file in (Path(path) / name for name in sorted(names)):
                documents = file.name.startswith(".") or file.suffix == ".md"
                if file not in self._used and not documents and (whole or file.parent in folders):
                    lines.append(f"not used: {self._relative(file)}")
        return lines

    def _files(self, source: PublishedFile) -> list[Path]:
        folder = self.folder / source.folder
        for name in source.names:
            if files := weight_files(folder, name):
                self._used |= {folder / f"{name}.index.json", *files}
                return files
        return []

    def _sort(self, source: PublishedFile, files: Sequence[Path], wanted: set[str]) -> None:
        for file in files:
            for stored in list_tensors(file):
                rule = source.rule(stored.name)
                if rule is None:
                    self._left_over(stored)
                elif rule.part in wanted:
                    self._add(rule.part, rule.ours + stored.name.removeprefix(rule.published), stored)

    def _add(self, part: str, name: str, stored: Stored) -> None:
        known = self._tensors.setdefault(part, {})
        if name in known:
            self._left_over(stored, f", which {self._relative(known[name].file)} has as {known[name].name}")
        else:
            known[name] = stored

    def _stand_in(self, source: PublishedFile, files: Sequence[Path], wanted: set[str]) -> None:
        absent = wanted - self._tensors.keys()
        if absent:
            self.remarks.append(f"taken from {source.path}: {', '.join(sorted(absent))}")
            self._sort(source, files, absent)
        if wanted - absent:
            rest = ", ".join(sorted(wanted - absent))
            self.remarks.append(f"not used: {source.path} for {rest}, which has its own file")

    def _left_over(self, stored: Stored, why: str = "") -> None:
        for pattern in (DERIVED, *self.ignore):
            if fnmatch.fnmatchcase(stored.name, pattern):
                self._ignored[pattern] = self._ignored.get(pattern, 0) + 1
                return
        self._misfits.append(f"left over {stored.name} in {self._relative(stored.file)}{why}")

    def _relative(self, file: Path) -> Path:
        return file.relative_to(self.folder)

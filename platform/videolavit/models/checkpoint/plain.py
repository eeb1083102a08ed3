"""Export of a language model for plain `transformers`, whose tokenizer names the visual and motion ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from videolavit.progress import OnProgress
from videolavit.vocabulary import Vocabulary

from ..folder import ModelFolder
from ..model_file import LANGUAGE_MODEL
from ..network import CONFIG, weight_files
from ..quiet import quiet_libraries
from .expected import weights_name
from .new_folder import copy_file, new_folder, progress_of_files, write_weights
from .summary import CheckpointSummary, summarize_part
from .tensors import StoredTensor, WeightsError, list_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION_CONFIG = "generation_config.json"


def export_language_model(
    model: Path, target: Path, only: Sequence[str] | None, shard_bytes: int, stage: str, on_progress: OnProgress
) -> CheckpointSummary:
    """Writes a language model as `AutoModelForCausalLM` and `AutoTokenizer` load it. Tensors are copied bit for bit.

    Args:
        model: Model folder.
        target: New folder. It appears when it is complete.
        only: Name of the language model, that of `understanding` included; None for the one that generates.
        shard_bytes: Largest size of a file of several tensors, in bytes.
        stage: Stage of the progress.
        on_progress: Receives the bytes written so far, after each file.

    Raises:
        ModelError: there is no such language model, or it cannot be read; or the target has content.
        OSError: a file cannot be written.
    """
    (part, *others) = only or (LANGUAGE_MODEL,)
    if others or not part.endswith(LANGUAGE_MODEL):
        raise WeightsError(
            f"this layout holds one language model; name {LANGUAGE_MODEL} or understanding/{LANGUAGE_MODEL}"
        )
    source = ModelFolder(model)
    folder = source.path / part
    if not (folder / CONFIG).is_file():
        raise WeightsError(f"there is no {part} in {model}")
    tensors: dict[str, StoredTensor] = {
        one.name: one for file in weight_files(folder, weights_name(part)) for one in list_tensors(file)
    }
    if not tensors:
        raise WeightsError(f"{folder} has no weights")
    summary = summarize_part(part, tensors)
    remarks: list[str] = []
    with new_folder(target, summary.nbytes, remarks) as unfinished:
        on_write = progress_of_files(stage, summary.nbytes, on_progress)
        write_weights(unfinished, weights_name(part), tensors, shard_bytes, on_write)
        for name in (CONFIG, GENERATION_CONFIG):
            if (folder / name).is_file():
                copy_file(folder / name, unfinished / name)
        with quiet_libraries():
            named_tokenizer(folder, source.vocabulary).save_pretrained(unfinished)
    return CheckpointSummary(target, (summary,), tuple(remarks))


def token_names(vocabulary: Vocabulary) -> list[str]:
    """Names of the ids after those of the texts: `[IMG]`, `[/IMG]`, `<visual_0>` and so on, `[MOV]`, `[/MOV]`,
    `<motion_0>` and so on."""
    return [
        "[IMG]",
        "[/IMG]",
        *(f"<visual_{code}>" for code in range(vocabulary.visual_codes)),
        "[MOV]",
        "[/MOV]",
        *(f"<motion_{code}>" for code in range(vocabulary.motion_codes)),
    ]


def named_tokenizer(folder: Path, vocabulary: Vocabulary) -> PreTrainedTokenizerBase:
    """Loads a text tokenizer and adds the names of all further ids. They are special: skipped where special ids are.

    Raises:
        WeightsError: there is no tokenizer, it has more ids than the vocabulary has for texts, or it has such a name.
    """
    from transformers import AddedToken, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, split_special_tokens=False, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise WeightsError(f"no text tokenizer in {folder}: {error}") from None
    unused = [f"<unused_{number}>" for number in range(len(tokenizer), vocabulary.text_size)]
    names = [*unused, *token_names(vocabulary)]
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=True) for name in names], special_tokens=True)
    if len(tokenizer) != vocabulary.size or tokenizer.convert_tokens_to_ids("[IMG]") != vocabulary.image_start:
        raise WeightsError(
            f"the text tokenizer of {folder} has {len(tokenizer)} ids with those of pictures and motion, and the "
            f"language model {vocabulary.size}"
        )
    return tokenizer

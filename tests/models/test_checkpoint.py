"""The published layout in and out: every tensor, every fault of a download, and what a killed import leaves."""

import filecmp
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.published_folder import BF16, load, make_published, save, state, video_networks
from videolavit.models.checkpoint import WeightsError
from videolavit.models.checkpoint.exporting import plan_export
from videolavit.models.checkpoint.importing import ImportPlan, plan_import
from videolavit.models.checkpoint.layout import selected_parts
from videolavit.models.checkpoint.new_folder import new_folder
from videolavit.models.folder import ModelFolder
from videolavit.models.network import ModelError
from videolavit.models.parts import PARTS
from videolavit.models.presets import load_config

TINY = load_config("tiny")
DTYPES = {
    "keyframe_detokenizer/unet": torch.float16,
    "video_detokenizer/unet": BF16,
    "video_detokenizer/motion_encoder": BF16,
    "language_model": BF16,
    "understanding/language_model": BF16,
    "understanding/visual_tokenizer": BF16,
    "understanding/motion_tokenizer": BF16,
}
"""Data types in the generated folder that are not float32."""

WEIGHTS = [part for part in PARTS if not part.endswith("scheduler")]
VIDEO_UNET = "video_detokenizer/unet/diffusion_pytorch_model.bin"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_published(tmp_path_factory.mktemp("published") / "Video-LaVIT-v1")


@pytest.fixture(scope="module")
def imported(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_to(tmp_path_factory.mktemp("imported") / "model", published)


@pytest.fixture
def download(published: Path, tmp_path: Path) -> Path:
    """The published folder as links to its files, each of which a test may replace."""
    shutil.copytree(published, tmp_path / "download", copy_function=os.symlink)
    return tmp_path / "download"


def plan(source: Path, *only: str, ignore: tuple[str, ...] = ()) -> ImportPlan:
    return plan_import(source, TINY, selected_parts(only or None), ignore, whole=not only)


def import_to(target: Path, source: Path, *only: str, **options: Any) -> Path:
    planned = plan(source, *only)
    with new_folder(target, planned.nbytes, []) as folder:
        planned.write(folder, lambda file, size: None, **options)
    return target


def export_to(target: Path, model: Path, *only: str, **options: Any) -> Path:
    planned = plan_export(model, selected_parts(only or None))
    with new_folder(target, planned.nbytes, []) as folder:
        planned.write(folder, lambda file, size: None, **options)
    return target


def replace(file: Path, content: Any) -> None:
    """Puts other content in the place of a file or a link."""
    file.unlink()
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif file.suffix == ".safetensors":
        save_file(content, file, {"format": "pt"})
    else:
        save(file, content)


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Compares names, types and bits."""
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of a published folder, by the file or the folder of shards that they are in."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".bin", ".safetensors"):
            name = file.relative_to(folder).as_posix().split("-0000")[0]
            found.setdefault(name, {}).update(load_file(file) if file.suffix == ".safetensors" else load(file))
    return found


@pytest.mark.parametrize("part", WEIGHTS)
def test_every_part_has_the_published_tensors(part: str, imported: Path) -> None:
    wanted = state(ModelFolder("tiny"), part, DTYPES.get(part))
    assert same(state(ModelFolder(imported), part), wanted)


def test_an_imported_model_computes_what_its_source_does(imported: Path) -> None:
    tiny, model = ModelFolder("tiny"), ModelFolder(imported)
    torch.manual_seed(0)
    motion, images, latents = torch.randn(1, 2, 24, 8, 12), torch.randn(1, 3, 84, 84), torch.randn(1, 4, 8, 8)
    ids = torch.arange(20)[None]
    calls: dict[str, Callable[[Any], Any]] = {
        "motion_tokenizer": lambda network: network.encode(motion),
        "visual_tokenizer": lambda network: network.encode(images)[0],
        "keyframe_detokenizer/conditions": lambda network: torch.cat([out.flatten() for out in network([ids[0]])]),
        "keyframe_detokenizer/vae": lambda network: network.decode(latents).sample,
        "video_detokenizer/motion_encoder": lambda network: network(motion[:, :, :2]),
        "language_model": lambda network: network(ids).logits,
        "understanding/visual_tokenizer": lambda network: network.embed(images)[0],
    }
    for part, call in calls.items():
        source = tiny.load(part)
        source.load_state_dict(state(tiny, part, DTYPES.get(part)))
        torch.testing.assert_close(call(model.load(part)), call(source), rtol=1e-4, atol=1e-6)


def test_what_else_is_in_a_model_folder(imported: Path) -> None:
    tiny, model = ModelFolder("tiny"), ModelFolder(imported)
    assert model.is_trained
    assert model.sizes == tiny.sizes
    assert model.vocabulary == tiny.vocabulary
    assert model.text_tokenizer()("a b").input_ids == tiny.text_tokenizer()("a b").input_ids
    assert model.load("visual_tokenizer").config.features_dim is None
    for part in ("keyframe_detokenizer/scheduler", "video_detokenizer/scheduler"):
        ours, theirs = (dict(one.load(part).config) for one in (model, tiny))
        assert {key: ours[key] for key in theirs if key[0] != "_"} == {
            key: value for key, value in theirs.items() if key[0] != "_"
        }
    model.keyframe_detokenizer("cpu", torch.float32)
    model.video_detokenizer("cpu", torch.float32)
    model.understanding("cpu", torch.float32)
    assert not [file for file in imported.rglob("*") if file.suffix in (".bin", ".pt", ".pkl")]


def test_round_trips_are_bit_equal(published: Path, imported: Path, tmp_path: Path) -> None:
    exported = export_to(tmp_path / "exported", imported)
    wanted = weights(published)
    del wanted["video_3d_unet.bin"]  # not imported, as the next test says
    merged = weights(exported)
    assert {name.removesuffix(".bin") for name in merged} == {name.removesuffix(".bin") for name in wanted}
    for name, tensors in wanted.items():
        assert same(merged[name if name in merged else f"{name}.bin"], tensors), name
    assert any(name.startswith("norm.") for name in merged["visual_tokenizer/eva_vitg_psz14.bin"])  # unused, kept
    again = import_to(tmp_path / "again", exported)
    files = sorted(file.relative_to(imported).as_posix() for file in imported.rglob("*") if file.is_file())
    equal, different, failed = filecmp.cmpfiles(imported, again, files, shallow=False)
    assert (sorted(equal), different, failed) == (files, [], [])


def test_nothing_is_passed_over_in_silence(download: Path) -> None:
    (download / "image_detokenizer/unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    (download / "README.md").write_text("a document")
    remarks = plan(download).remarks
    assert "not used: image_detokenizer/unet/diffusion_pytorch_model.fp16.safetensors" in remarks
    assert any(
        "video_3d_unet.bin for video_detokenizer/motion_encoder, video_detokenizer/unet" in one for one in remarks
    )
    assert len(remarks) == 2


def test_shards_of_a_bounded_size(published: Path, imported: Path, tmp_path: Path) -> None:
    model = import_to(tmp_path / "model", published, shard_bytes=400_000)
    for part in WEIGHTS:
        files = list((model / part).glob("*.safetensors"))
        assert len(files) > 1 or files[0].stat().st_size < 450_000
        for file in files:
            tensors = load_file(file)
            assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 400_000
        assert same(state(ModelFolder(model), part), state(ModelFolder(imported), part)), part
    assert len(list((model / "visual_tokenizer").glob("model-*-of-*.safetensors"))) == 4
    ModelFolder(model).keyframe_detokenizer("cpu", torch.float32)  # finds the codebook
    exported = export_to(tmp_path / "exported", model, "language_model", shard_bytes=400_000)
    assert (exported / "language_model/pytorch_model.bin.index.json").is_file()
    back = import_to(tmp_path / "back", exported, "language_model")
    assert same(state(ModelFolder(back), "language_model"), state(ModelFolder(imported), "language_model"))


def change(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load(file)
    edit(tensors)
    replace(file, tensors)


PART_OF = {
    "visual_tokenizer/highres_tokenizer_decoder.bin": "keyframe_detokenizer/conditions",
    "visual_tokenizer/eva_vitg_psz14.bin": "visual_tokenizer",
    "visual_tokenizer/tokenizer_encoder.bin": "visual_tokenizer",
    "motion_tokenizer.bin": "motion_tokenizer",
    "language_model_sft/pytorch_model-00001-of-00004.bin": "understanding",
    "language_model/pytorch_model-00002-of-00003.bin": "language_model",
    "video_detokenizer/vae/diffusion_pytorch_model.safetensors": "video_detokenizer/vae",
    VIDEO_UNET: "video_detokenizer",
}
"""Part to import in tests of one file."""

FAULTS: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "missing key": (
        "visual_tokenizer/eva_vitg_psz14.bin",
        lambda tensors: tensors.pop("cls_token"),
        "missing cls_token in visual_tokenizer/eva_vitg_psz14.bin",
    ),
    "no codebook": (
        "visual_tokenizer/tokenizer_encoder.bin",
        lambda tensors: tensors.pop("quantize.embedding.weight"),
        "missing quantize.embedding.weight in visual_tokenizer/tokenizer_encoder.bin",
    ),
    "missing key of a shard": (
        "language_model_sft/pytorch_model-00001-of-00004.bin",
        lambda tensors: tensors.pop("model.embed_tokens.weight"),
        "missing model.embed_tokens.weight in language_model_sft/pytorch_model.bin",
    ),
    "left-over key": (
        "motion_tokenizer.bin",
        lambda tensors: tensors.update(extra=torch.zeros(1)),
        "left over extra in motion_tokenizer.bin",
    ),
    "a key that two files have": (
        "visual_tokenizer/tokenizer_encoder.bin",
        lambda tensors: tensors.update({"encoder.cls_token": torch.zeros(1, 1, 64)}),
        "left over encoder.cls_token in visual_tokenizer/tokenizer_encoder.bin, which "
        "visual_tokenizer/eva_vitg_psz14.bin has as cls_token",
    ),
    "another shape": (
        "visual_tokenizer/highres_tokenizer_decoder.bin",
        lambda tensors: tensors.update(pos_embed=torch.zeros(1, 36, 65)),
        "pos_embed in visual_tokenizer/highres_tokenizer_decoder.bin has shape [1, 36, 65], expected [1, 36, 64]",
    ),
    "no motion encoder anywhere": (
        VIDEO_UNET,
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("motion_encoder.")],
        f"missing motion_encoder.blocks.0.mlp.fc1.bias in {VIDEO_UNET}",
    ),
    "half a motion encoder": (
        VIDEO_UNET,
        lambda tensors: tensors.pop("motion_encoder.pos_embed"),
        f"missing motion_encoder.pos_embed in {VIDEO_UNET}",
    ),
    "no tensor": ("motion_tokenizer.bin", lambda tensors: tensors.update(extra=1), "something else than tensors"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_do_not_fit(fault: str, download: Path) -> None:
    name, edit, message = FAULTS[fault]
    change(download / name, edit)
    if fault == "no motion encoder anywhere":
        (download / "video_3d_unet.bin").unlink()
    with pytest.raises(WeightsError) as error:
        plan(download, PART_OF[name])
    assert message in str(error.value)


def test_all_missing_files_are_named_at_once(download: Path) -> None:
    for name in ("motion_tokenizer.bin", "video_detokenizer/vae/config.json", "language_model/tokenizer.json"):
        (download / name).unlink()
    with pytest.raises(WeightsError, match="import only") as error:
        plan(download)
    for name in ("motion_tokenizer.bin", "video_detokenizer/vae/config.json", "language_model/tokenizer.model"):
        assert name in str(error.value)
    (download / "language_model_sft/pytorch_model-00002-of-00004.bin").unlink()
    with pytest.raises(ModelError, match=r"00002-of-00004.bin is missing; pytorch_model.bin.index.json lists it"):
        plan(download)
    with pytest.raises(WeightsError, match="no folder"):
        plan(download / "nowhere")


def test_parts_of_an_incomplete_download(published: Path, tmp_path: Path) -> None:
    (tmp_path / "some/visual_tokenizer").mkdir(parents=True)
    names = ("motion_tokenizer.bin", "visual_tokenizer/eva_vitg_psz14.bin", "visual_tokenizer/tokenizer_encoder.bin")
    for name in names:
        (tmp_path / "some" / name).symlink_to(published / name)
    with pytest.raises(WeightsError, match="lacks files"):
        plan(tmp_path / "some")
    model = ModelFolder(import_to(tmp_path / "model", tmp_path / "some", "motion_tokenizer", "visual_tokenizer"))
    assert [part for part in PARTS if model.has(part)] == ["visual_tokenizer", "motion_tokenizer"]
    assert same(state(model, "visual_tokenizer"), state(ModelFolder("tiny"), "visual_tokenizer"))
    with pytest.raises(WeightsError, match=r"not all parts:(?s:.*)Export only"):
        plan_export(model.path, selected_parts(None))
    exported = export_to(tmp_path / "exported", model.path, "motion_tokenizer", "visual_tokenizer")
    assert sorted(weights(exported)) == sorted(names)
    assert selected_parts(["understanding"]) == [part for part in PARTS if part.startswith("understanding/")]
    with pytest.raises(WeightsError, match="no part 'motion'"):
        selected_parts(["motion"])


def test_left_over_tensors_can_be_named(download: Path) -> None:
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}  # Llamas before transformers 4.32
    change(download / "language_model/pytorch_model-00001-of-00003.bin", lambda tensors: tensors.update(table))
    parts = ("language_model", "visual_tokenizer")
    counts = {"quantize.cluster_size": torch.zeros(512)}
    change(download / "visual_tokenizer/tokenizer_encoder.bin", lambda tensors: tensors.update(counts))
    with pytest.raises(WeightsError, match=r"left over quantize.cluster_size(?s:.*)ignored by name"):
        plan(download, *parts)
    planned = plan(download, *parts, ignore=("quantize.cluster_*",))
    assert "not used: 1 tensors *.rotary_emb.inv_freq" in planned.remarks
    assert "not used: 1 tensors quantize.cluster_*" in planned.remarks
    assert "quantize.cluster_size" not in planned.tensors["visual_tokenizer"]


def test_both_arrangements_of_the_video_networks(download: Path, imported: Path, tmp_path: Path) -> None:
    unet, encoder = video_networks(ModelFolder("tiny"))
    prefixed = {f"unet.{name}": tensor for name, tensor in unet.items()}
    parts = ("video_detokenizer/unet", "video_detokenizer/motion_encoder")
    replace(download / VIDEO_UNET, prefixed | encoder)
    model = ModelFolder(import_to(tmp_path / "prefixed", download, *parts))
    for part in parts:
        assert same(state(model, part), state(ModelFolder(imported), part))
    replace(download / VIDEO_UNET, unet)
    planned = plan(download, *parts)
    assert "taken from video_3d_unet.bin: video_detokenizer/motion_encoder" in planned.remarks
    files = {part: {stored.file.name for stored in planned.tensors[part].values()} for part in parts}
    assert files == {parts[0]: {"diffusion_pytorch_model.bin"}, parts[1]: {"video_3d_unet.bin"}}
    (download / VIDEO_UNET).unlink()
    model = ModelFolder(import_to(tmp_path / "other", download, *parts))
    other = {name.removeprefix("unet."): tensor for name, tensor in state(model, parts[0]).items()}
    assert same(other, {name: tensor + 1 for name, tensor in unet.items()})


def test_features_and_time_positions_are_imported_where_they_are(download: Path, tmp_path: Path) -> None:
    found = {"vit_proj.weight": torch.randn(24, 64), "vit_proj.bias": torch.randn(24)}
    change(download / "visual_tokenizer/tokenizer_encoder.bin", lambda tensors: tensors.update(found))
    table = {"motion_encoder.temp_pos": torch.randn(1, 25, 32)}
    change(download / VIDEO_UNET, lambda tensors: tensors.update(table))
    parts = ("visual_tokenizer", "video_detokenizer/motion_encoder")
    model = ModelFolder(import_to(tmp_path / "model", download, *parts))
    assert model.load(parts[0]).config.features_dim == 24
    assert model.load(parts[1]).config.temporal_frames == 25


def test_configs_of_the_folder_are_respected(download: Path, tmp_path: Path) -> None:
    scheduler = download / "image_detokenizer/scheduler/scheduler_config.json"
    config = json.loads(scheduler.read_text())
    replace(scheduler, json.dumps(config | {"_class_name": "EulerDiscreteScheduler", "steps_offset": 3}).encode())
    planned = plan(download, "keyframe_detokenizer")
    assert any("DDIM runs it" in remark for remark in planned.remarks)
    model = ModelFolder(import_to(tmp_path / "model", download, "keyframe_detokenizer"))
    assert type(model.load("keyframe_detokenizer/scheduler")).__name__ == "DDIMScheduler"
    assert model.load("keyframe_detokenizer/scheduler").config.steps_offset == 3
    unet = download / "image_detokenizer/unet/config.json"
    config = json.loads(unet.read_text())
    replace(unet, json.dumps(config | {"cross_attention_dim": 72}).encode())
    with pytest.raises(WeightsError, match=r"attn2.to_k.weight in image_detokenizer/unet/\S+ has shape"):
        plan(download, "keyframe_detokenizer/unet")
    replace(unet, json.dumps(config | {"_class_name": "UNet3DConditionModel"}).encode())
    with pytest.raises(WeightsError, match=r"of a UNet3DConditionModel, expected UNet2DConditionModel"):
        plan(download, "keyframe_detokenizer/unet")
    replace(unet, b"{")
    with pytest.raises(WeightsError, match=r"cannot read .*unet/config.json"):
        plan(download, "keyframe_detokenizer/unet")


def test_a_vae_of_old_names(download: Path, imported: Path, tmp_path: Path) -> None:
    """Names that `diffusers` saved before 0.17 and still reads."""
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    file = download / "image_detokenizer/vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for new, old in names.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    replace(file, tensors)
    model = ModelFolder(import_to(tmp_path / "model", download, "keyframe_detokenizer/vae"))
    part = "keyframe_detokenizer/vae"
    assert same(state(model, part), state(ModelFolder(imported), part))
    name = "encoder.mid_block.attentions.0.to_q.bias"
    replace(file, tensors | {name: torch.zeros(32)})
    with pytest.raises(WeightsError, match=r"left over encoder.mid_block.attentions.0.(to_q|query).bias"):
        plan(download, part)


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(form: str, download: Path, tmp_path: Path) -> None:
    harm, file = Harm(tmp_path / "harmed"), download / "motion_tokenizer.bin"
    replace(file, {"weight": harm} if form == "zip" else pickle.dumps({"weight": harm}, protocol=2))
    with pytest.raises(WeightsError, match=r"motion_tokenizer.bin is refused(?s:.*)nothing"):
        plan(download, "motion_tokenizer")
    assert not (tmp_path / "harmed").exists()
    if form == "zip":
        torch.load(file, weights_only=False)  # without the pickle it works
        assert (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "name",
    [
        "motion_tokenizer.bin",
        "language_model/pytorch_model-00002-of-00003.bin",
        "video_detokenizer/vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_truncated_file(name: str, download: Path) -> None:
    content = (download / name).read_bytes()
    for length in (0, 5, 1000, len(content) // 2, len(content) - 1):
        replace(download / name, content[:length])
        with pytest.raises(WeightsError, match=f"{Path(name).name} is (damaged|refused)"):
            plan(download, PART_OF[name])


def test_other_kinds_of_files(download: Path, tmp_path: Path) -> None:
    file = download / "motion_tokenizer.bin"
    tensors = load(file)
    file.unlink()
    torch.save(tensors, file, _use_new_zipfile_serialization=False)  # format that torch wrote before 1.6
    model = import_to(tmp_path / "legacy", download, "motion_tokenizer")
    assert same(state(ModelFolder(model), "motion_tokenizer"), tensors)
    replace(file, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n")
    with pytest.raises(WeightsError, match="git lfs pull"):
        plan(download, "motion_tokenizer")
    replace(file, [tensors["encoder.pos_embed"]])
    with pytest.raises(WeightsError, match="holds a list"):
        plan(download, "motion_tokenizer")
    save_file(tensors, download / "motion_tokenizer.safetensors")
    assert "not used: motion_tokenizer.bin" in plan(download).remarks


def test_tied_and_cut_tensors_are_written_as_they_are(download: Path, tmp_path: Path) -> None:
    """Tensors that share a storage, or are a view of a part of one."""
    file = download / "motion_tokenizer.bin"
    tensors = load(file)
    norms = [name for name in tensors if name.endswith("norm1.weight")]
    shared = torch.randn(len(norms), tensors[norms[0]].shape[0] + 3)
    tensors |= {name: shared[index, 2:-1] for index, name in enumerate(norms)}
    tensors[norms[1]] = tensors[norms[0]]
    name = "encoder.blocks.0.mlp.fc1.weight"
    tensors[name] = torch.randn(tensors[name].shape[::-1]).T
    replace(file, tensors)
    model = import_to(tmp_path / "model", download, "motion_tokenizer")
    assert same(state(ModelFolder(model), "motion_tokenizer"), tensors)


@pytest.mark.parametrize("shard", ["../motion_tokenizer.bin", "/etc/passwd", "sub/x.bin", "..", ""])
def test_an_index_cannot_point_outside(shard: str, download: Path, imported: Path, tmp_path: Path) -> None:
    index = download / "language_model/pytorch_model.bin.index.json"
    replace(index, json.dumps({"weight_map": {"lm_head.weight": shard}}).encode())
    with pytest.raises(ModelError, match="in the same folder"):
        plan(download, "language_model")
    replace(index, b"[]")
    with pytest.raises(ModelError, match="no index of shards"):
        plan(download, "language_model")
    shutil.copytree(imported / "motion_tokenizer", tmp_path / "network")
    (tmp_path / "network/model.safetensors").unlink()
    (tmp_path / "network/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(ModelError, match="in the same folder"):
        type(ModelFolder("tiny").load("motion_tokenizer")).load(tmp_path / "network")


def test_folders_appear_complete_or_not_at_all(tmp_path: Path) -> None:
    target, scratch = tmp_path / "model", tmp_path / ".model.unfinished"
    target.mkdir()  # an empty one may be there
    with pytest.raises(FileNotFoundError), new_folder(target, 0, []) as folder:
        shutil.copy(tmp_path / "nowhere", folder)
    assert not scratch.exists()
    with pytest.raises(WeightsError, match="GB free"), new_folder(target, 1 << 60, []):
        pass
    assert not scratch.exists()
    with (
        new_folder(target, 0, []) as folder,
        pytest.raises(WeightsError, match="another run"),
        new_folder(target, 0, []),
    ):
        pass
    (target / "file").write_text("something")
    with pytest.raises(WeightsError, match="not empty"), new_folder(target, 0, []):
        pass
    assert (target / "file").read_text() == "something"


def test_presets_and_files_of_shapes(tmp_path: Path) -> None:
    (tmp_path / "shapes.yaml").write_text("motion_tokenizer: {dim: 96}")
    assert load_config(str(tmp_path / "shapes.yaml")).motion_tokenizer.dim == 96
    (tmp_path / "wrong.yaml").write_text("motion_tokeniser: {dim: 96}")
    with pytest.raises(ModelError, match="motion_tokeniser"):
        load_config(str(tmp_path / "wrong.yaml"))
    with pytest.raises(ModelError, match="no preset"):
        load_config("huge")

"""The commands as processes: memory, a kill in the middle, and what they say."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from jobs import cli
from tests.conftest import ROOT, command, wait_for
from tests.models.published_folder import LLAMA, load, make_published, save_shards
from videolavit.models.folder import ModelFolder

Captured = pytest.CaptureFixture[str]
HIDDEN, INNER, LAYERS = 1024, 14 * 1024, 3
LARGEST = 4 * HIDDEN * INNER


def make_large(folder: Path) -> Path:
    """A published folder of one language model: 587 MB in three shards, tensors of up to 59 MB."""
    config = LLAMA | {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    noise = torch.randn(HIDDEN * INNER)
    tall, wide, square = noise.view(INNER, HIDDEN), noise.view(HIDDEN, INNER), noise[: HIDDEN * HIDDEN]
    ends = ("model.embed_tokens.weight", "lm_head.weight")
    tensors = dict.fromkeys(ends, tall[: LLAMA["vocab_size"]]) | {"model.norm.weight": noise[:HIDDEN]}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        tensors |= {f"{name}.self_attn.{one}_proj.weight": square.view(HIDDEN, HIDDEN) for one in "qkvo"}
        tensors |= {f"{name}.mlp.{one}_proj.weight": tall for one in ("gate", "up")}
        tensors |= {f"{name}.mlp.down_proj.weight": wide}
        tensors |= {f"{name}.{one}_layernorm.weight": noise[:HIDDEN] for one in ("input", "post_attention")}
    save_shards(folder / "language_model", tensors, 3)
    (folder / "language_model/config.json").write_text(json.dumps(config))
    ModelFolder("tiny").text_tokenizer().save_pretrained(folder / "language_model")
    return folder


BOTH_WAYS = """
import sys
from pathlib import Path
from jobs import export_checkpoint, import_checkpoint
print(Path("/proc/self/status").read_text(), flush=True)
large, model, out = sys.argv[1:]
import_checkpoint.main(["--from", large, "--to", model, "--only", "language_model"])
export_checkpoint.main(["--from", model, "--to", out, "--only", "language_model"])
"""
"""Tells its memory with all libraries and no weights, then imports and exports."""


def anonymous(status: str) -> int:
    """Bytes of a process's memory that no file backs."""
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def growth_of(*arguments: object) -> tuple[int, str]:
    """Runs `BOTH_WAYS`; how much its anonymous memory grew at most, sampled from outside, and what it printed."""
    words = [sys.executable, "-c", BOTH_WAYS, *map(str, arguments)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = 0

    def sample() -> None:
        nonlocal peak
        while process.returncode is None:
            with contextlib.suppress(OSError):
                peak = max(peak, anonymous(Path(f"/proc/{process.pid}/status").read_text()))
            time.sleep(0.002)

    sampler = threading.Thread(target=sample)
    sampler.start()
    output, _ = process.communicate(timeout=240)
    sampler.join()
    assert process.returncode == 0, output
    assert peak > 0
    return peak - anonymous(output), output


def test_a_killed_import_leaves_no_model_and_memory_is_bounded(tmp_path: Path) -> None:
    large, model, scratch = make_large(tmp_path / "large"), tmp_path / "model", tmp_path / ".model.unfinished"
    options = ("--from", large, "--to", model, "--only", "language_model")
    killed = subprocess.Popen(command("import_checkpoint", *options), cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(lambda: (scratch / "language_model").is_dir(), "nothing is being written")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert scratch.exists()
    assert not model.exists()

    growth, output = growth_of(large, model, tmp_path / "out")
    assert f"removed {scratch}, which a killed run left" in output
    assert not scratch.exists()
    assert growth < 1.5 * LARGEST
    wanted: dict[str, torch.Tensor] = {}
    for file in sorted((large / "language_model").glob("*.bin")):
        wanted |= load(file)
    back = load(tmp_path / "out/language_model/pytorch_model.bin")
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)
    assert sum(tensor.nbytes for tensor in wanted.values()) > 9 * LARGEST


def test_what_the_commands_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    published, model = make_published(tmp_path / "in"), tmp_path / "model"
    options = ["import-checkpoint", "--from", str(published), "--to", str(model), "--preset", "tiny"]
    monkeypatch.setattr("sys.argv", ["videolavit", *options])
    cli.main()
    printed = capsys.readouterr()
    for said in ("Llama 2 Community License", "LaVIT Community License", "not used: video_3d_unet.bin", "bfloat16"):
        assert said in printed.out
    assert "import: motion_tokenizer/model.safetensors" in printed.err
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "not empty" in capsys.readouterr().err
    monkeypatch.setattr(
        "sys.argv", ["videolavit", "export-checkpoint", "--from", "tiny", "--to", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "no folder tiny" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["videolavit", "import-checkpoint", "--help"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert "LaVIT Community License" in " ".join(capsys.readouterr().out.split())

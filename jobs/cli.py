"""The `videolavit` command, with a sub-command for each job."""

import importlib
import sys

import videolavit

COMMANDS = {
    "decompose": "turn videos into Parquet clip shards of keyframes and motion vectors",
    "tokenize": "turn clip shards, videos, images and texts into Parquet token shards",
    "train": "train a tokenizer, a detokenizer or the language model, on one machine or many",
    "replay": "compute a step of a training again, with the loss of each of its samples",
    "generate": "generate an image or a video from a text or an image",
    "describe": "answer a question about an image or a video",
    "reconstruct": "encode a video into tokens, decode it again, and measure the difference",
    "animate": "animate a picture with the motion of a video",
    "assemble": "make a model folder from a language model, diffusion models and tokenizers that are on disk",
    "import-checkpoint": "convert the published weights of Video-LaVIT to a model folder",
    "export-checkpoint": "convert a model folder to the published layout, or its language model for transformers",
    "inspect": "show the contents of a video, a shard of clips or tokens, or a run",
    "status": "show the rate, the time left and the faults of a run, from another terminal",
    "proof": "train every part from scratch on a synthetic corpus, and measure what it learned",
    "serve": "serve a model with the OpenAI API and a web page",
    "synth": "render a captioned corpus of moving shapes with known motion",
}


def main() -> None:
    """Runs the job named by the first argument."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        importlib.import_module(f"jobs.{name.replace('-', '_')}").main(sys.argv[2:])
        return
    if name == "--version":
        print(f"videolavit {videolavit.__version__}")
        return
    wants_help = name in ("-h", "--help")
    out = sys.stdout if wants_help else sys.stderr
    if not wants_help:
        print(f"videolavit: there is no command {name!r}\n", file=out)
    print("usage: videolavit COMMAND [options]\n       videolavit --version\n", file=out)
    for job, purpose in COMMANDS.items():
        print(f"  {job:<18} {purpose}", file=out)
    print("\n`videolavit COMMAND --help` describes the options of a command.", file=out)
    sys.exit(0 if wants_help else 2)


if __name__ == "__main__":
    main()

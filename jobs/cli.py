"""The `videolavit` command: one sub-command a job."""

import importlib
import sys

JOBS = {
    "decompose": "videos to Parquet clip shards of keyframes and motion vectors",
    "tokenize": "clip shards, videos, images and texts to Parquet token shards",
    "train": "tokenizers, detokenizers and the language model, on one machine or many",
    "generate": "pictures and videos from texts and pictures",
    "describe": "answers to questions about images and videos",
    "reconstruct": "a video through its tokens and back, compared",
    "import-checkpoint": "the published weights of Video-LaVIT to a model folder",
    "export-checkpoint": "a model folder to the published layout",
    "inspect": "what is in a video, a shard of clips or tokens, or a run",
    "proof": "train everything from nothing on a synthetic corpus, and measure what was learned",
    "serve": "a service with the OpenAI API, and a page to try it",
    "synth": "render a captioned corpus of moving shapes with known motion",
}


def main() -> None:
    """Runs the job that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in JOBS:
        importlib.import_module(f"jobs.{name.replace('-', '_')}").main(sys.argv[2:])
        return
    asked = name in ("-h", "--help")
    out = sys.stdout if asked else sys.stderr
    if not asked:
        print(f"videolavit: there is no command {name!r}\n", file=out)
    print("usage: videolavit COMMAND [options]\n", file=out)
    for job, purpose in JOBS.items():
        print(f"  {job:<18} {purpose}", file=out)
    print("\n`videolavit COMMAND --help` says more.", file=out)
    sys.exit(0 if asked else 2)


if __name__ == "__main__":
    main()

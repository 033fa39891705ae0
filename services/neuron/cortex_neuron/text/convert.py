"""Converts a tokenizer to tokenizer.json: `python -m cortex_neuron.text.convert MODEL TARGET`.

A process of its own, because transformers' tokenizers load torch, which the neuron must not.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer


def convert(model: Path, target: Path) -> None:
    """Write tokenizer.json, its configuration and the chat template to `target`, all or nothing."""
    if model.is_file():
        tokenizer = AutoTokenizer.from_pretrained(str(model.parent), gguf_file=model.name)
    else:
        tokenizer = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        tokenizer.save_pretrained(scratch)
        scratch.rename(target)
    except OSError:
        if not (target / "tokenizer.json").exists():  # another neuron was faster: its result is as good
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))

"""A tiny byte-level tokenizer with a chat template, as a Hugging Face directory holds it."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
"""Their places are their ids; 2 ends an answer of the checkpoints in `builders.checkpoints`."""
CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('tools are not known here') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking %}<think>\n{% endif %}"
)


def byte_tokenizer(vocab_size: int = 512) -> Tokenizer:
    """Make a byte-level BPE tokenizer: any text and any bytes can be said with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog sat on the log"] * 2, trainer)
    return tokenizer


def write_tokenizer(path: Path, *, chat_template: str | None = CHAT_TEMPLATE, **generation: Any) -> Path:
    """Write a tokenizer to the directory `path`; `generation` goes to generation_config.json."""
    path.mkdir(parents=True, exist_ok=True)
    byte_tokenizer().save(str(path / "tokenizer.json"))
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    if generation:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path

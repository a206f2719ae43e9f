"""Make small checkpoints with random weights, to try a recipe where the Hub cannot be reached.

    python -m trainer_ext.baselines.small_checkpoint electra outputs/small-electra
    python -m trainer_ext.baselines.small_checkpoint t5 outputs/small-t5

The tokenizer is trained on the project's own essays.
"""

import argparse
import csv
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    ElectraConfig,
    ElectraForPreTraining,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from ..errors import InputError, run_command
from ..recipe_file import SHIPPED

ESSAYS = SHIPPED / "examples" / "essays.tsv"
VOCABULARY = 2000


def make_electra(folder: Path, texts: list[str]) -> None:
    """Save a random ELECTRA (2 layers, 64 units) with a WordPiece tokenizer trained on `texts`."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special))
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, special.index(token)) for token in ("[CLS]", "[SEP]")]
    )
    names = {f"{token[1:-1].lower()}_token": token for token in special}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    config = ElectraConfig(
        vocab_size=inner.get_vocab_size(), embedding_size=64, hidden_size=64, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=128,
    )  # fmt: skip
    ElectraForPreTraining(config).save_pretrained(folder)


def make_t5(folder: Path, texts: list[str]) -> None:
    """Save a random T5 (2 layers of 64 units on each side) with a SentencePiece tokenizer trained on `texts`."""
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    inner.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>")
    )
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = T5Config(
        vocab_size=inner.get_vocab_size(), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["electra", "t5"])
    parser.add_argument("folder", type=Path, help="output folder; must be empty or not exist yet")
    args = parser.parse_args()
    if args.folder.exists() and (not args.folder.is_dir() or any(args.folder.iterdir())):
        raise InputError(f"{args.folder}: is there already; give another folder")
    if not ESSAYS.is_file():
        raise InputError(f"{ESSAYS.name} is not there: this command requires a clone of the project")
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file, delimiter="\t")]
    torch.manual_seed(0)
    {"electra": make_electra, "t5": make_t5}[args.kind](args.folder, texts)
    print(f"a small {args.kind} with random weights is in {args.folder}/")


if __name__ == "__main__":
    run_command(main)

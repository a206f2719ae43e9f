"""Child-Tuning on two connected processes."""

import shutil

import forked
import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from support import ESSAY_FLAGS, ROOT
from transformers import AutoModelForSequenceClassification

from trainer_ext.errors import InputError

SCRIPTS = ROOT / "tests" / "distributed"


def test_replicas_and_resumed_runs_are_identical_in_every_variant(v3_folder, tmp_path):
    said = forked.run(SCRIPTS / "ddp_child.py", v3_folder, tmp_path, cwd=tmp_path, ranks=2).stdout
    assert said.count("replicas and resumed run identical") == 4


def test_sharded_parameters_draw_streams_of_their_own(tmp_path):
    said = forked.run(SCRIPTS / "fsdp_child.py", cwd=tmp_path, ranks=2).stdout
    for variant in ("F, gradient", "F, update", "D, gradient", "D, update"):
        assert f"{variant}: sharded gradients masked on 2 processes" in said


@pytest.fixture(scope="module")
def sharding() -> dict[str, str]:
    """What `accelerate launch --config_file recipes/accelerate/fsdp2.yaml` puts into the environment."""
    config = ROOT / "recipes" / "accelerate" / "fsdp2.yaml"
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(config), "script"]))
    env = prepare_multi_gpu_env(args)
    assert env["ACCELERATE_USE_FSDP"] == "true"
    return env | {"ACCELERATE_MIXED_PRECISION": "no"}


def classify(folder, *flags, env=None, script=SCRIPTS / "sharded_classify.py", check=True):
    """Two processes that train on the essays; the folder holds the run."""
    return forked.run(
        *(script, *ESSAY_FLAGS, "--bf16", "false", "--max_steps", 12, "--save_steps", 6),
        *("--keep_checkpoints", "--output_dir", folder),
        *flags,
        cwd=folder.parent,
        ranks=2,
        env=env,
        check=check,
    )


def test_a_sharded_model_trains_as_whole_replicas_do(v3_folder, tmp_path, sharding):
    flags = ("--model_name_or_path", v3_folder, "--gradient_accumulation_steps", 2, "--activation_checkpointing")
    classify(tmp_path / "sharded", *flags, env=sharding)
    classify(tmp_path / "whole", *flags, script=ROOT / "run_classify.py")
    sharded, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("sharded", "whole"))
    assert sharded.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(sharded[name], whole[name], rtol=0, atol=1e-6)
    figures = [(tmp_path / name / "predictions.tsv").read_text() for name in ("sharded", "whole")]
    assert figures[0].count("\n") == figures[1].count("\n")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "sharded", trust_remote_code=True)
    assert not list((tmp_path / "sharded" / "checkpoints").glob("*/_fsdp*"))  # torch's source is not the model's code


def test_a_sharded_run_goes_on_bit_for_bit(v3_folder, tmp_path, sharding):
    """Child-Tuning D has a mask for each shard; averaged checkpoints are whole."""
    flags = ("--model_name_or_path", v3_folder, "--child_tuning", "D", "--select", "average", "--save_steps", 6)
    flags += ("--max_steps", -1, "--num_train_epochs", 2, "--max_train_samples", 64, "--max_grad_norm", 0.1)
    classify(tmp_path / "run", *flags, env=sharding)
    straight = load_file(tmp_path / "run" / "model.safetensors")
    kept, last = sorted((tmp_path / "run" / "checkpoints").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    assert (kept / "rank1-child_network.safetensors").exists()
    for path in (tmp_path / "run").iterdir():
        if path.is_file():
            path.unlink()
    shutil.rmtree(last)
    done = classify(tmp_path / "run", *flags, env=sharding)
    assert f"resuming from {kept.name}" in done.stderr
    resumed = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


@pytest.mark.parametrize(
    ("change", "flags", "want"),
    [
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, [], "want FULL_STATE_DICT"),
        ({"FSDP_VERSION": "1"}, [], "want fsdp_version: 2"),
        ({}, ["--lora_rank", 4], "--lora_rank under FSDP"),
    ],
)
def test_what_would_not_shard_is_refused(v3_folder, tmp_path, sharding, change, flags, want):
    done = classify(tmp_path / "run", "--model_name_or_path", v3_folder, *flags, env=sharding | change, check=False)
    assert done.returncode
    assert want in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_cpu_does_not_pass_for_gpus(in_process):
    with pytest.raises(InputError, match="several GPUs"):
        in_process("--train_file", ROOT / "examples" / "essays.tsv", "--fsdp")

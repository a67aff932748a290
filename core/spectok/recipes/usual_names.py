"""What other programs call our settings, so that a message can name ours."""

from __future__ import annotations

from collections.abc import Iterable

from spectok.errors import did_you_mean

USUAL = {
    "learning_rate": "lr eta base_lr base_learning_rate max_lr",
    "batch_size": "bs batch batchsize train_batch_size per_device_train_batch_size",
    "steps": "epochs epoch num_epochs max_epochs iterations iters num_iters max_iters max_steps "
    "num_steps n_steps total_steps max_train_steps num_train_epochs",
    "weight_decay": "wd decay_weight",
    "warmup_steps": "warmup warmup_iters num_warmup_steps",
    "mixed_precision": "fp16 bf16 amp precision half autocast",
    "compile": "torch_compile use_compile compiled compile_model",
    "max_grad_norm": "grad_clip clip clip_grad clip_grad_norm gradient_clip_val",
    "gradient_accumulation": "accumulate grad_accum accumulate_grad_batches "
    "gradient_accumulation_steps",
    "lr_schedule": "schedule scheduler lr_scheduler",
    "num_workers": "workers num_loaders",
    "ema_decay": "ema use_ema",
    "optimizer": "opt optim",
    "save_every": "save_steps save_freq checkpoint_every",
    "log_every": "logging_steps log_freq print_every",
    "image_size": "size resolution img_size image_resolution resize",
    "codebook_size": "n_embed num_embeddings n_codes vocab_size codebook_num",
    "codebook_dim": "embed_dim embedding_dim code_dim",
    "path": "dir root folder data_dir data_path train_data_dir",
    "limit": "subset max_images max_samples num_samples",
    "horizontal_flip": "flip hflip random_flip",
    "output": "out output_dir out_dir save_dir logdir",
    "seed": "random_seed manual_seed",
}
_OURS = {theirs: ours for ours, names in USUAL.items() for theirs in names.split()}
LAUNCH = ("devices", "device", "gpus", "num_gpus", "nproc", "num_processes", "world_size", "ddp")
"""What is not a setting, but said to the program that starts the processes."""


def our_name(key: str) -> str:
    """Return what spectok calls a setting; a name that is not known to be another's is returned."""
    plain = key.lower().replace("-", "_")
    return _OURS.get(plain, plain)


def suggest(key: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for what a key is called here, or for the closest name.

    Args:
        key: The key that is not known.
        known: Those that are.
    """
    known = list(known)
    if key.lower() in LAUNCH and "steps" in known:
        return " (processes are launched: torchrun --standalone --nproc_per_node N …)"
    ours = our_name(key)
    if ours == "steps" and "epoch" in key.lower() and ours in known:
        return " (did you mean 'steps'? it counts batches: epochs x images / batch_size)"
    return f" (did you mean {ours!r}?)" if ours in known else did_you_mean(key, known)

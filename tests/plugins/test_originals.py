"""Checkpoints of VQGAN's and LlamaGen's code: diffusers' network of that design is the judge."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from diffusers import VQModel
from safetensors.torch import save_file

from spectok import load_tokenizer
from spectok.cli import main
from spectok.errors import CheckpointError, InputError, UnknownNameError
from spectok.foreign.importing import import_checkpoint, read_tensors

SIZE, CODES, LEVELS = 32, 300, 3
PARTS = {
    "conv_norm_out": "norm_out",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_shortcut": "nin_shortcut",
}


@pytest.fixture(scope="module")
def judge():
    """Return diffusers' VQModel with attention in the innermost level, and well spread codes."""
    torch.manual_seed(0)
    ends = (
        ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    )
    model = VQModel(
        down_block_types=(ends[0][0],) * (LEVELS - 1) + (ends[0][1],),
        up_block_types=(ends[1][0],) + (ends[1][1],) * (LEVELS - 1),
        block_out_channels=(128, 128, 256),
        layers_per_block=1,
        latent_channels=6,
        num_vq_embeddings=CODES,
        vq_embed_dim=4,
        norm_num_groups=32,
    ).eval()
    with torch.no_grad():
        latents = model.encode(some_images(64)).latents
        rows = latents.movedim(1, -1).reshape(-1, 4)
        model.quantize.embedding.weight.copy_(rows[torch.randperm(len(rows))[:CODES]])
    return model


def some_images(count):
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def renamed(model, style):
    """Return the weights of diffusers' network under the names of one of the two projects."""
    found = {}
    for name, value in model.state_dict().items():
        for theirs, part in PARTS.items():
            name = re.sub(rf"\b{re.escape(theirs)}\b", part, name)
        if re.search(r"\.(q|k|v|proj_out)\.weight$", name):
            value = value[..., None, None]
        side = name.split(".")[0]
        level = re.match(r"\w+\.(?:down|up)_blocks\.(\d+)\.", name)
        number = int(level[1]) if level else 0
        if side == "decoder" and style == "taming":
            number = LEVELS - 1 - number
        prefix = {
            ("encoder", "taming"): f"encoder.down.{number}.",
            ("decoder", "taming"): f"decoder.up.{number}.",
        }.get((side, style), f"{side}.conv_blocks.{number}.")
        name = re.sub(r"\w+\.(?:down|up)_blocks\.\d+\.", prefix, name)
        name = name.replace("resnets", "block" if style == "taming" else "res")
        name = name.replace("attentions", "attn").replace("samplers.0", "sample")
        middle = ("block_1", "attn_1", "block_2") if style == "taming" else ("0", "1", "2")
        for old, new in zip((r"block\.0|res\.0", r"attn\.0", r"block\.1|res\.1"), middle):
            name = re.sub(rf"mid_block\.(?:{old})\b", f"mid.{new}", name)
        found[name] = value.contiguous()
    return found


@pytest.fixture(params=["taming", "llamagen"])
def checkpoint(request, judge, tmp_path):
    """Save what a training program of that project would, beside weights that are not needed."""
    tensors = renamed(judge, request.param)
    if request.param == "taming":
        content = {"state_dict": tensors | {"loss.logvar": torch.zeros(1)}, "epoch": 3}
    else:
        content = {"model": tensors | {"quantize.codebook_used": torch.zeros(9)}, "steps": 7}
    path = tmp_path / f"{request.param}.pt"
    torch.save(content, path)
    return path


@torch.no_grad()
def test_ids_and_images_are_those_of_the_judge(checkpoint, judge):
    model, images = import_checkpoint(checkpoint, checkpoint.stem, SIZE), some_images(8)
    latents, codes = judge.encode(images).latents, judge.quantize.embedding.weight
    rows = latents.movedim(1, -1).flatten(0, 2)
    if checkpoint.stem == "llamagen":
        rows, codes = F.normalize(rows, dim=-1), F.normalize(codes, dim=-1)
    distances = torch.cdist(rows.double(), codes.double())
    ids = model.encode(images)
    nearest, second = distances.topk(2, largest=False).values.unbind(-1)
    different = distances.argmin(-1) != ids.flatten()
    margin = (second - nearest)[different].max().item() if different.any() else 0.0
    print(f"{ids.unique().numel()} ids, {different.sum()} differ by a margin of {margin:.1e}")
    assert ids.unique().numel() >= 50
    assert margin < 1e-5
    wanted = codes[ids].reshape(8, 8, 8, 4).movedim(-1, 1)
    decoded = judge.decode(wanted, force_not_quantize=True).sample
    assert (model.decode(ids) - decoded).abs().max() < 1e-5


def test_an_imported_model_is_saved_loads_by_its_folder_and_trains(checkpoint, tmp_path):
    out = tmp_path / "model"
    words = ["import", str(checkpoint), "--format", checkpoint.stem, "--out", str(out)]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--image-size", "32"])
    model = load_tokenizer(out).train()
    before = model.encoder.stem.weight.detach().clone()
    output = model(some_images(2))
    sum(output.losses.values()).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert not torch.equal(before, model.encoder.stem.weight)


def test_what_is_missing_and_left_over_is_named(judge, tmp_path):
    tensors = renamed(judge, "taming")
    del tensors["encoder.mid.block_1.conv1.bias"]
    tensors["quantize.proj.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(tmp_path / "a.safetensors", "taming", SIZE)
    assert "missing: encoder.mid.block_1.conv1.bias; of no use: quantize.proj.weight" in str(
        caught.value
    )


def test_another_format_and_other_numbers_are_told(judge, tmp_path):
    tensors = renamed(judge, "taming")
    save_file(tensors, tmp_path / "a.safetensors")
    message = "none is called encoder.conv_blocks.0.res.0…; they are named as in the format taming"
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(tmp_path / "a.safetensors", "llamagen", SIZE)
    whole = tensors["encoder.conv_in.weight"].mul(100).int()
    save_file(tensors | {"encoder.conv_in.weight": whole}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"encoder.conv_in.weight holds torch.int32"):
        import_checkpoint(tmp_path / "b.safetensors", "taming", SIZE)
    del tensors["quant_conv.weight"]
    save_file(tensors, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=r"network's: quant_conv.weight is missing;"):
        import_checkpoint(tmp_path / "c.safetensors", "taming", SIZE)


class Surprise:
    """An object that a checkpoint may hold."""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"state_dict": {"a": Surprise()}}, "other Python objects than tensors"),
        ({"state_dict": {}}, "holds no tensors by name"),
        ([1, 2], "holds no tensors by name"),
        ({"model": {"encoder.conv_in.weight": torch.zeros(3)}}, "not that network's"),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path, content, expected):
    path = tmp_path / "a.ckpt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=expected):
        import_checkpoint(path, "taming")


def test_damaged_files_and_wrong_requests_are_refused(judge, checkpoint, tmp_path):
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot read"):
        read_tensors(cut)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_tensors(tmp_path / "none.pt")
    with pytest.raises(UnknownNameError, match="taming"):
        import_checkpoint(checkpoint, "timing", SIZE)
    with pytest.raises(InputError, match="divisible"):
        import_checkpoint(checkpoint, checkpoint.stem, 30)


def test_narrow_networks_whose_norms_differ_are_refused(tmp_path):
    narrow = VQModel(
        block_out_channels=(64,), norm_num_groups=32, num_vq_embeddings=9, latent_channels=3
    )
    save_file(renamed(narrow, "llamagen"), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="64 channels, which its norms take in 32 groups"):
        import_checkpoint(tmp_path / "a.safetensors", "llamagen", SIZE)


def test_an_occupied_folder_is_kept(checkpoint, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit):
        main(["import", str(checkpoint), "--format", checkpoint.stem, "--out", str(tmp_path)])
    assert "not an empty folder" in capsys.readouterr().err

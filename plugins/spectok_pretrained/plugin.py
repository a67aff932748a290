"""Registers image tokenizers of diffusers and transformers, loaded by ``load_tokenizer``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectok import hookimpl

if TYPE_CHECKING:
    from spectok import ForeignModel


@hookimpl
def spectok_foreign_models() -> dict[str, ForeignModel]:
    """Register the models whose classes these two libraries have."""
    from spectok import ForeignModel

    return {
        "vqmodel": ForeignModel(
            "spectok_pretrained.vq_model:PretrainedVQModel",
            "VQModel of diffusers (aMUSEd, VQ-Diffusion, MoVQ)",
            class_names=("VQModel",),
        ),
        "vidtok": ForeignModel(
            "spectok_pretrained.vidtok:PretrainedVidTok",
            "AutoencoderVidTok of diffusers (FSQ)",
            class_names=("AutoencoderVidTok",),
        ),
        "janus": ForeignModel(
            "spectok_pretrained.janus:PretrainedJanus",
            "JanusVQVAE of transformers",
            model_types=("janus_vqgan", "janus"),
        ),
        "emu3": ForeignModel(
            "spectok_pretrained.emu3:PretrainedEmu3",
            "Emu3VQVAE of transformers",
            model_types=("emu3_vqgan", "emu3"),
        ),
        "chameleon": ForeignModel(
            "spectok_pretrained.encode_only:PretrainedChameleon",
            "ChameleonVQVAE of transformers (encodes only)",
            model_types=("chameleon_vqgan", "chameleon"),
        ),
        "apertus": ForeignModel(
            "spectok_pretrained.encode_only:PretrainedApertus",
            "Apertus1p5VisionTokenizerModel of transformers (encodes only)",
            model_types=("apertus1p5_vision_tokenizer", "apertus1p5"),
        ),
    }

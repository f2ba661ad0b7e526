"""Weights for the backbone: a pre-trained stand-in, the released M3AE checkpoint, or folders of `transformers`.

Everything is read from local files; nothing is ever looked for on a network.
"""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from papers.m3ad.m3ae import M3AE
from shared.checkpoints import fitting, load_checkpoint
from shared.errors import InputError

# Parameters of the released class that fine-tuning never uses: CLIP's text embedding (49408 words and 77 positions of
# 512, and a layer norm) and RoBERTa's pooler. The paper's shares count them.
UNUSED_PARAMETERS = 49408 * 512 + 77 * 512 + 2 * 512 + 768 * 768 + 768

# Names in the released checkpoint -> names in `M3AE`.
_RENAMED = (
    (r"^vision_encoder\.visual\.class_embedding$", "vision.embeddings.class_embedding"),
    (r"^vision_encoder\.visual\.positional_embedding$", "vision.embeddings.position_embedding.weight"),
    (r"^vision_encoder\.visual\.conv1\.", "vision.embeddings.patch_embedding."),
    (r"^vision_encoder\.visual\.ln_pre\.", "vision.pre_layrnorm."),
    (r"^vision_encoder\.visual\.ln_post\.", "vision.post_layernorm."),
    (r"^vision_encoder\.visual\.transformer\.resblocks\.(\d+)\.", r"vision.encoder.layers.\1."),
    (r"^language_encoder\.", "language."),
    (r"^multi_modal_language_proj\.", "text_projection."),
    (r"^multi_modal_vision_proj\.", "image_projection."),
    (r"^modality_type_embeddings\.", "type_embedding."),
    (r"^multi_modal_language_pooler\.", "text_pooler."),
    (r"^multi_modal_vision_pooler\.", "image_pooler."),
    (r"^multi_modal_language_layers\.", "text_layers."),
    (r"^multi_modal_vision_layers\.", "image_layers."),
)  # fmt: skip
_IN_BLOCK = (
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_IN_CROSS_LAYER = (
    (r"\.attention\.self\.", ".self_attention."),
    (r"\.attention\.output\.dense\.", ".self_attention.out."),
    (r"\.attention\.output\.LayerNorm\.", ".self_norm."),
    (r"\.crossattention\.self\.", ".cross_attention."),
    (r"\.crossattention\.output\.dense\.", ".cross_attention.out."),
    (r"\.crossattention\.output\.LayerNorm\.", ".cross_norm."),
    (r"\.intermediate\.dense\.", ".feed_forward.0."),
    (r"(\.\d+)\.output\.dense\.", r"\1.feed_forward.2."),
    (r"(\.\d+)\.output\.LayerNorm\.", r"\1.output_norm."),
)


def rename_m3ae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a released M3AE checkpoint under the names of `M3AE`; heads and what is unused are left out."""
    renamed = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        new, found = name, False
        for pattern, replacement in _RENAMED:
            new, count = re.subn(pattern, replacement, new)
            found = found or count > 0
        if not found or new.startswith("language.pooler") or new.endswith("position_ids"):
            continue
        rules = _IN_BLOCK if new.startswith("vision.encoder") else ()
        rules = _IN_CROSS_LAYER if new.startswith(("text_layers", "image_layers")) else rules
        packed = re.match(r"(.*)\.attn\.in_proj_(weight|bias)$", new)
        if packed:  # query, key and value in one matrix
            for part, values in zip("qkv", tensor.chunk(3)):
                renamed[f"{packed[1]}.self_attn.{part}_proj.{packed[2]}"] = values
            continue
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        renamed[new] = tensor
    return renamed


def resize_positions(positions: Tensor, patches: int) -> Tensor:
    """Position embedding (1 + n², D) of a class token and n x n patches to another number of patches, bicubic."""
    if len(positions) == patches + 1:
        return positions
    side, wanted = round((len(positions) - 1) ** 0.5), round(patches**0.5)
    grid = positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, (wanted, wanted), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], grid.permute(0, 2, 3, 1).flatten(0, 2).to(positions.dtype)])


def load_m3ae(backbone: M3AE, path: Path) -> None:
    """Put a released M3AE checkpoint into `backbone`; image positions are resized to its image size.

    Raises:
        InputError: no such file, not readable with `weights_only=True`, or tensors missing or of other shapes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no M3AE checkpoint here; --backbone is the file that its authors give")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path}: not readable as tensors alone; if it is the right file, re-save its 'state_dict' with torch.save"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a dictionary with 'state_dict', found {type(content).__name__}")
    _load(backbone, rename_m3ae(content.get("state_dict", content)), path)


def _load(backbone: M3AE, state: dict[str, Tensor], path: Path, prefix: str = "") -> None:
    """Load `state` into all parameters of `backbone` whose names start with `prefix`; spare ViT blocks are dropped."""
    own = {name: value for name, value in backbone.state_dict().items() if name.startswith(prefix)}
    own = {name: value for name, value in own.items() if not name.endswith(("position_ids", "token_type_ids"))}
    positions = "vision.embeddings.position_embedding.weight"
    if positions in own and positions in state:
        state[positions] = resize_positions(state[positions], len(own[positions]) - 1)
    for name, value in own.items():
        if name not in state:
            raise InputError(f"{path}: the tensor for {name} is missing; are these the weights of this architecture?")
        if state[name].shape != value.shape:
            raise InputError(
                f"{path}: {name} has the shape {tuple(state[name].shape)}, expected {tuple(value.shape)}; "
                "set the sizes of the backbone to those of the checkpoint"
            )
    backbone.load_state_dict({name: state[name] for name in own}, strict=False)


def load_folders(backbone: M3AE, vision: Path | None, text: Path | None) -> None:
    """Put CLIP's image encoder and RoBERTa, saved by `transformers`, into `backbone`.

    Raises:
        InputError: a folder without such a model, or a model of other sizes.
    """
    from transformers.models.clip.modeling_clip import CLIPVisionModel
    from transformers.models.roberta.modeling_roberta import RobertaModel

    for folder, kind, prefix, options in (
        (vision, CLIPVisionModel, "vision.", {}),
        (text, RobertaModel, "language.", {"add_pooling_layer": False}),
    ):
        if folder is None:
            continue
        if not (Path(folder) / "config.json").is_file():
            raise InputError(f"{folder}: expected a folder of transformers with config.json and the weights")
        try:
            model = kind.from_pretrained(folder, local_files_only=True, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{folder}: transformers can't read a {kind.__name__} from it: {error}") from error
        _load(backbone, {prefix + name: value for name, value in model.state_dict().items()}, Path(folder), prefix)


def pretrained(path: Path | None) -> tuple[dict[str, Tensor], dict, dict]:
    """Weights of the backbone, vocabulary state and settings out of a checkpoint of variant `pretrain`.

    Raises:
        InputError: no path, or a checkpoint of another stage.
    """
    if path is None:
        raise InputError("tuning starts from a backbone: give the checkpoint of variant 'pretrain' as --init")
    content = load_checkpoint(path, "m3ad")
    with fitting(path):
        if content["config"]["stage"] != "pretrain":
            raise InputError(f"{path}: variant '{content['config']['variant']}' is tuned; expected one of 'pretrain'")
        (state,) = content["models"]
        weights = {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}
        return weights, content["objects"]["vocabulary"], content["config"]

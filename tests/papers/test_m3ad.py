"""M3AD's adapters, backbone, audit and readers, against slow references, other implementations and printed numbers."""

import csv
import doctest
import importlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from papers.m3ad import audit, backbone, m3ae, model, optimiser, pretraining, train, vocabulary
from papers.m3ad import eval as evaluation
from papers.m3ad import network as builder
from shared.cli import configure
from shared.errors import InputError
from tests.smoke import train_variant

SMALL = m3ae.Sizes(
    image=16, patch=8, width=16, heads=2, vision_layers=2, language_layers=2, cross_layers=2, vocabulary=90,
    positions=20, dropout=0.0,
)  # fmt: skip
TOKENS = torch.tensor([[0, 9, 8, 7, 2, 1, 1], [0, 5, 6, 7, 8, 9, 2]])


@pytest.mark.parametrize("name", ["model", "m3ae", "audit", "answering", "data", "vocabulary"])
def test_examples_in_docstrings(name):
    found = importlib.import_module(f"papers.m3ad.{name}")
    result = doctest.testmod(found, extraglobs={"torch": torch})
    assert result.failed == 0 and result.attempted


def network(answers=5):
    return model.M3AD(m3ae.M3AE(SMALL), answers).eval()


def shake(module: nn.Module) -> None:
    """Random values in all parameters, so that nothing is zero or an identity by its initial values."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + 0.05)


# --- adapters --------------------------------------------------------------------------------------------


def test_general_adapter_is_equation_1():
    adapter = model.GeneralAdapter(6, 3)
    shake(adapter)
    adapter.requires_grad_(False)
    f = torch.randn(4, 6)
    for row in range(4):
        hidden = [sum(w * x for w, x in zip(ws, f[row])) + b for ws, b in zip(adapter.down.weight, adapter.down.bias)]
        hidden = [0.5 * h * (1 + math.erf(h / math.sqrt(2))) for h in hidden]
        for column in range(6):
            want = sum(w * h for w, h in zip(adapter.up.weight[column], hidden)) + adapter.up.bias[column]
            assert adapter(f)[row, column].item() == pytest.approx(want.item(), abs=1e-5)


def test_adapter_sits_before_residual_and_norm():
    """A cross layer with adapters against the same written out step by step, and RoBERTa's and the ViT's parts."""
    layer = m3ae.CrossLayer(8, 2, 0.0).eval()
    shake(layer)
    model.inject_adapters(layer, model.OUTPUT_PROJECTIONS["cross"], 3)
    for module in layer.modules():
        if isinstance(module, model.GeneralAdapter):
            shake(module)
    x, other = torch.randn(2, 3, 8), torch.randn(2, 5, 8)

    def step(features, linear, norm, residual):
        f = F.linear(features, linear.weight, linear.bias)
        return norm(f + linear.adapter(f) + residual)

    def attend(part, queries, keys):
        q, k, v = part.query(queries), part.key(keys), part.value(keys)
        heads = []
        for h in range(2):
            a, b, c = (t[..., 4 * h : 4 * h + 4] for t in (q, k, v))
            heads.append(torch.softmax(a @ b.transpose(1, 2) / 2.0, -1) @ c)
        return torch.cat(heads, -1)

    one = step(attend(layer.self_attention, x, x), layer.self_attention.out, layer.self_norm, x)
    two = step(attend(layer.cross_attention, one, other), layer.cross_attention.out, layer.cross_norm, one)
    three = step(F.gelu(layer.feed_forward[0](two)), layer.feed_forward[2], layer.output_norm, two)
    torch.testing.assert_close(layer(x, other), three, atol=1e-5, rtol=1e-4)


def test_adapters_leave_the_model_as_it_was_and_come_out_again():
    net = network()
    image = torch.randn(2, 3, 16, 16)
    before, names = net(image, TOKENS), list(net.state_dict())
    model.prepare_tuning(net, "adapters", bottleneck=4)
    assert torch.equal(net(image, TOKENS), before)
    assert set(names) < set(net.state_dict()), "adapters must not rename the backbone's tensors"
    for name, parameter in net.named_parameters():
        if ".adapter.up" in name:
            nn.init.normal_(parameter)
    assert not torch.allclose(net(image, TOKENS), before)
    assert model.remove_adapters(net) == 2 * 2 + 2 * 2 + 3 * 2 * 2
    assert list(net.state_dict()) == names and torch.equal(net(image, TOKENS), before)
    with pytest.raises(ValueError, match="nothing_like_it"):
        model.inject_adapters(net, "nothing_like_it")


@pytest.mark.parametrize(("places", "number"), [(("vision",), 22), (("language",), 24), (("cross",), 36)])
def test_number_of_general_adapters_at_paper_sizes(places, number):
    with torch.device("meta"):
        assert len(model.add_adapters(m3ae.M3AE(m3ae.Sizes()), places)) == number


def test_fusion_adapter_against_loops():
    adapter = model.FusionAdapter(6, 4, 2).eval()
    shake(adapter)
    text, image = torch.randn(2, 3, 6), torch.randn(2, 4, 6)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    got = adapter(text, image, mask)
    attention = adapter.attention
    for b in range(2):
        tokens = [adapter.down(token) for token in [*text[b], *image[b]]]
        allowed = [*mask[b].tolist(), True, True, True, True]
        q, k, v = (
            [w @ token + bias for token in tokens]
            for w, bias in zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3))
        )
        for n in range(7):
            heads = []
            for h in range(2):
                part = slice(2 * h, 2 * h + 2)
                scores = [math.exp((q[n][part] @ k[m][part]).item() / math.sqrt(2)) * allowed[m] for m in range(7)]
                heads.append(sum(s / sum(scores) * v[m][part] for m, s in enumerate(scores)))
            up = adapter.up(attention.out_proj(torch.cat(heads)))
            if n < 3:
                want, found = adapter.text_norm(up + text[b, n]), got[0][b, n]
            else:
                want, found = adapter.image_norm(up + image[b, n - 3]), got[1][b, n - 3]
            torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)


def test_fusion_starts_from_the_norms_of_the_streams_and_keeps_them():
    net = network()
    for layer in net.backbone.text_layers:
        nn.init.uniform_(layer.output_norm.weight, 0.5, 1.5)
    trained = model.prepare_tuning(net, "adapters", fusion=True, bottleneck=4, fusion_heads=2)
    for k, adapter in enumerate(net.backbone.fusion):
        assert torch.equal(adapter.text_norm.weight, net.backbone.text_layers[k].output_norm.weight)
        assert adapter.text_norm.eps == net.backbone.text_layers[k].output_norm.eps
    assert any("fusion.1.attention" in name for name in trained) and not any("_norm." in name for name in trained)


# --- backbone --------------------------------------------------------------------------------------------


def test_both_streams_read_the_old_features_and_padding_is_ignored():
    net = network().backbone
    shake(net)
    image = torch.randn(2, 3, 16, 16)
    text, vision = net.tokens(image, TOKENS)
    mask = TOKENS != 1
    x = net.text_projection(net.language(input_ids=TOKENS, attention_mask=mask.long()).last_hidden_state)
    y = net.image_projection(net.vision.post_layernorm(net.vision(image).last_hidden_state))
    x, y = x + net.type_embedding.weight[0], y + net.type_embedding.weight[1]
    for one, two in zip(net.text_layers, net.image_layers):
        x, y = one(x, y, mask, None), two(y, x, None, mask)
    torch.testing.assert_close(text[mask], x[mask], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vision, y, atol=1e-5, rtol=1e-4)
    model.add_fusion(net, 4, 2)
    longer = torch.cat([TOKENS, torch.ones(2, 4, dtype=torch.long)], 1)
    torch.testing.assert_close(net(image, TOKENS), net(image, longer), atol=1e-5, rtol=1e-4)


def test_cross_layer_is_bert_s():
    """Against transformers' BertLayer with cross-attention, from a layer under M3AE's names."""
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    config = BertConfig(
        hidden_size=16, num_attention_heads=2, intermediate_size=64, is_decoder=True, add_cross_attention=True,
        attn_implementation="eager",
    )  # fmt: skip
    reference = BertLayer(config).eval()
    shake(reference)
    state = {f"multi_modal_vision_layers.0.{name}": value for name, value in reference.state_dict().items()}
    renamed = {n.removeprefix("image_layers.0."): v for n, v in backbone.rename_m3ae(state).items()}
    layer = m3ae.CrossLayer(16, 2, 0.0).eval()
    layer.load_state_dict(renamed)
    x, other = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    want = reference(x, encoder_hidden_states=other)
    torch.testing.assert_close(layer(x, other), want[0] if isinstance(want, tuple) else want, atol=1e-5, rtol=1e-4)


def m3ae_names(net: m3ae.M3AE) -> dict[str, torch.Tensor]:
    """Tensors of `net` under the released checkpoint's names, with an unused ViT block, heads and a pooler."""
    state, packed = {}, {}
    for name, value in net.state_dict().items():
        if name.startswith("vision."):
            name = name.removeprefix("vision.")
            attention = re.match(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(\w+)", name)
            if attention:
                packed.setdefault((attention[1], attention[3]), {})[attention[2]] = value
                continue
            for new, old in {
                "transformer.resblocks.": "encoder.layers.", ".attn.out_proj.": ".self_attn.out_proj.",
                ".ln_1.": ".layer_norm1.", ".ln_2.": ".layer_norm2.", ".mlp.c_fc.": ".mlp.fc1.",
                ".mlp.c_proj.": ".mlp.fc2.", "conv1.": "embeddings.patch_embedding.", "ln_pre.": "pre_layrnorm.",
                "ln_post.": "post_layernorm.", "class_embedding": "embeddings.class_embedding",
                "positional_embedding": "embeddings.position_embedding.weight",
            }.items():  # fmt: skip
                name = name.replace(old, new)
            state[f"vision_encoder.visual.{name}"] = value
        elif name.startswith("language."):
            state[f"language_encoder.{name.removeprefix('language.')}"] = value
        else:
            for new, old in {
                "multi_modal_language_layers": "text_layers", "multi_modal_vision_layers": "image_layers",
                "multi_modal_language_proj": "text_projection", "multi_modal_vision_proj": "image_projection",
                "multi_modal_language_pooler": "text_pooler", "multi_modal_vision_pooler": "image_pooler",
                "modality_type_embeddings": "type_embedding", "attention.self.": "self_attention.",
                "crossattention.self.": "cross_attention.", "attention.output.LayerNorm": "self_norm",
                "crossattention.output.LayerNorm": "cross_norm", "intermediate.dense": "feed_forward.0",
                "output.dense": "feed_forward.2", "output.LayerNorm": "output_norm",
            }.items():  # fmt: skip
                name = name.replace(old, new)
            name = name.replace("crossattention.self.out.", "crossattention.output.dense.")
            state[name.replace("attention.self.out.", "attention.output.dense.")] = value
    for (number, kind), parts in packed.items():
        values = torch.cat([parts[letter] for letter in "qkv"])
        state[f"vision_encoder.visual.transformer.resblocks.{number}.attn.in_proj_{kind}"] = values
    extra = {"vision_encoder.token_embedding.weight": torch.zeros(3, 2), "vqa_head.0.weight": torch.zeros(2, 2)}
    spare = {n.replace("resblocks.1", "resblocks.2"): v for n, v in state.items() if "resblocks.1" in n}
    return {**state, **extra, **spare, "language_encoder.pooler.dense.weight": torch.zeros(16, 16)}


def test_released_checkpoint_layout(tmp_path):
    source, target = network().backbone, network().backbone
    shake(source)
    state = m3ae_names(source)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "m3ae.ckpt")
    backbone.load_m3ae(target, tmp_path / "m3ae.ckpt")
    image = torch.randn(2, 3, 16, 16)
    assert torch.equal(source(image, TOKENS), target(image, TOKENS))

    broken = {name: value for name, value in state.items() if "multi_modal_language_proj" not in name}
    torch.save({"state_dict": broken}, tmp_path / "less.ckpt")
    with pytest.raises(InputError, match="less.ckpt.*text_projection"):
        backbone.load_m3ae(target, tmp_path / "less.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "m3ae.ckpt").read_bytes()[:500])
    with pytest.raises(InputError, match="cut.ckpt"):
        backbone.load_m3ae(target, tmp_path / "cut.ckpt")
    with pytest.raises(InputError, match="absent.ckpt"):
        backbone.load_m3ae(target, tmp_path / "absent.ckpt")


def test_positions_are_resized_on_their_grid():
    ramp = torch.arange(4.0)[:, None, None].expand(4, 4, 3)  # rises from row to row
    positions = torch.cat([torch.full((1, 3), 7.0), ramp.reshape(16, 3)])
    assert torch.equal(backbone.resize_positions(positions, 16), positions)
    resized = backbone.resize_positions(positions, 64)
    assert resized.shape == (65, 3) and torch.equal(resized[0], positions[0])
    grid = resized[1:].reshape(8, 8, 3)
    torch.testing.assert_close(grid[:, :1].expand(8, 8, 3), grid)
    assert (grid.diff(dim=0) > 0).all()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """CLIP and RoBERTa of a few thousand weights, and a byte-pair tokenizer, as transformers saves them."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import CLIPVisionConfig, CLIPVisionModel, RobertaConfig, RobertaModel

    root = tmp_path_factory.mktemp("weights")
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    CLIPVisionModel(config).save_pretrained(root / "clip")
    text = root / "roberta"
    text.mkdir()
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    sentence = ["Is the heart enlarged? On what side is the lesion? no yes left right"]
    tokenizer.train_from_iterator(sentence, vocab_size=300, special_tokens=special)
    tokenizer.save_model(str(text))
    names = {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": 4, "cls": 0, "sep": 2}
    settings = {"tokenizer_class": "RobertaTokenizer"} | {f"{n}_token": special[k] for n, k in names.items()}
    (text / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    RobertaModel(
        RobertaConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=16, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
        )
    ).save_pretrained(text)  # fmt: skip
    return root


def test_from_pretrained_folders_to_an_answer(folders, smoke_data, tmp_path, monkeypatch):
    """The whole route of released weights: folders, tokenizer, tuning, evaluation, all from local files."""
    values = {
        "image_size": 16, "patch": 8, "width": 16, "heads": 2, "vision_layers": 2, "language_layers": 2,
        "vision_folder": folders / "clip", "text_folder": folders / "roberta", "device": "cpu",
    }  # fmt: skip
    source = smoke_data("m3ad")

    def config(variant, out, **more):
        settings = {**values, **more, "data": source, "out": out}
        return configure(train.Config, train.PROFILES, train.VARIANTS, "smoke", variant, **settings)

    train.train(config("pretrain", tmp_path / "backbone"))
    weights, _, _ = backbone.pretrained(tmp_path / "backbone" / "checkpoint.pt")
    from transformers import CLIPVisionModel

    clip = CLIPVisionModel.from_pretrained(folders / "clip", local_files_only=True).state_dict()
    name = "encoder.layers.1.mlp.fc1.weight"
    assert torch.equal(weights[f"vision.{name}"], clip[name])
    assert not any("layers.2." in key for key in weights if key.startswith("vision."))
    assert torch.equal(weights["vision.embeddings.position_embedding.weight"][0],
                       clip["embeddings.position_embedding.weight"][0])  # fmt: skip
    evaluation.evaluate(source, tmp_path / "backbone" / "checkpoint.pt", tmp_path / "backbone", "cpu")
    task = config("full", tmp_path / "task", init=tmp_path / "backbone" / "checkpoint.pt", text_folder=None)
    train.train(task)
    checkpoint = tmp_path / "task" / "checkpoint.pt"
    film = next(iter(sorted(source.glob("vqa_rad/images/*.jpg"))))
    evaluation.apply(checkpoint, film, tmp_path / "answers.csv", "Is the heart enlarged?", "cpu",
                     figure=tmp_path / "map.png")  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "answers.csv").open(encoding="utf-8")))
    scores = [float(row["score"]) for row in rows]
    assert len(rows) == 5 and scores == sorted(scores, reverse=True) and (tmp_path / "map.png").exists()
    with pytest.raises(InputError, match="width|shape"):
        train.train(config("pretrain", tmp_path / "other", width=32))
    with pytest.raises(InputError, match="text-folder"):
        train.train(config("pretrain", tmp_path / "other", text_folder=None))


# --- what is trained -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["head", "adapters", "full"])
def test_frozen_tensors_stay_bit_identical(tuning):
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    trained = set(model.prepare_tuning(net, tuning, fusion=True, bottleneck=4, fusion_heads=2))
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        loss = model.answer_loss(net.train()(torch.randn(2, 3, 16, 16), TOKENS), torch.tensor([1, 3]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    changed = {
        name for name, value in net.state_dict().items() if name in before and not torch.equal(value, before[name])
    }
    assert changed <= trained
    kept = {"head": 0, "adapters": 8, "full": 1}[tuning]  # weights and biases of projections and poolers
    of_backbone = {name for name in changed if name.startswith("backbone.")}
    assert len(of_backbone) == kept if tuning != "full" else len(of_backbone) > 80


def test_task_state_is_all_that_a_task_adds():
    one, two = network(), network()
    two.backbone.load_state_dict(one.backbone.state_dict())
    for net in (one, two):
        model.prepare_tuning(net, "adapters", fusion=True, bottleneck=4, fusion_heads=2)
        for parameter in net.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter)
    image = torch.randn(2, 3, 16, 16)
    assert not torch.allclose(one(image, TOKENS), two(image, TOKENS))
    model.load_task_state(two, model.task_state(one))
    assert torch.equal(one(image, TOKENS), two(image, TOKENS))
    with pytest.raises(ValueError, match="tensors"):
        model.load_task_state(network(answers=7), model.task_state(one))


def test_a_task_goes_into_runs_on_the_same_backbone_only(smoke_data, smoke_run, tmp_path):
    """Another task's head and answers on the backbone of `--init`; one of another seed's backbone is refused."""
    source, init = smoke_data("m3ad"), smoke_run("m3ad", "pretrain") / "checkpoint.pt"
    film = next(iter(sorted(source.glob("vqa_rad/images/*.jpg"))))
    train_variant("m3ad", "pretrain", source, tmp_path / "backbone", seed=1)
    train_variant("m3ad", "full", source, tmp_path / "same", init=init, seed=1)
    train_variant("m3ad", "full", source, tmp_path / "other", init=tmp_path / "backbone" / "checkpoint.pt", seed=1)

    def answers(run, task=None):
        evaluation.apply(run / "checkpoint.pt", film, tmp_path / "a.csv", "Is the heart enlarged?", "cpu", task=task)
        return (tmp_path / "a.csv").read_text("utf-8")

    for name in ("same", "other"):
        evaluation.export(tmp_path / name / "checkpoint.pt", tmp_path / f"{name}.pt")
    run = smoke_run("m3ad", "full")
    assert answers(run, tmp_path / "same.pt") == answers(tmp_path / "same") != answers(run)
    (tmp_path / "a.csv").unlink()
    with pytest.raises(InputError, match="other.pt.*another backbone"):
        answers(run, tmp_path / "other.pt")
    assert not (tmp_path / "a.csv").exists()


def test_what_saw_no_image_draws_no_attention(smoke_data, smoke_run, tmp_path):
    source = smoke_data("m3ad")
    train_variant("m3ad", "text_only", source, tmp_path, init=smoke_run("m3ad", "pretrain") / "checkpoint.pt")
    film = next(iter(sorted(source.glob("vqa_rad/images/*.jpg"))))
    with pytest.raises(InputError, match="text_only.*--figure"):
        evaluation.apply(
            tmp_path / "checkpoint.pt", film, tmp_path / "a.csv", "Is it?", "cpu", figure=tmp_path / "map.png"
        )
    assert not (tmp_path / "a.csv").exists() and not (tmp_path / "map.png").exists()


def test_learning_rates_and_decay_by_group():
    config = configure(train.Config, train.PROFILES, train.VARIANTS, "paper", "ft", data=".", out=".")
    net = network()
    model.prepare_tuning(net, "full")
    rate = {}
    for group in optimiser.parameter_groups(config, net):
        for parameter in group["params"]:
            rate[id(parameter)] = (group["lr"], group["weight_decay"])
    assert len(rate) == len(list(net.parameters()))
    found = {name: rate[id(parameter)] for name, parameter in net.named_parameters()}
    assert found["head.0.weight"] == (pytest.approx(5e-6 * 50), 0.01)
    assert found["backbone.text_layers.0.self_attention.query.weight"] == (pytest.approx(5e-6 * 5), 0.01)
    assert found["backbone.image_pooler.dense.bias"] == (pytest.approx(5e-6 * 5), 0.0)
    assert found["backbone.vision.post_layernorm.weight"] == (5e-6, 0.0)
    assert found["backbone.type_embedding.weight"] == (5e-6, 0.01)
    assert found["backbone.language.embeddings.word_embeddings.weight"] == (5e-6, 0.01)


def test_warm_up_then_linear_decay():
    config = configure(train.Config, train.PROFILES, train.VARIANTS, "paper", "full", data=".", out=".")
    net = network()
    model.prepare_tuning(net, "head")
    optimizer, schedule = optimiser.optimizer_and_schedule(config, net, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[9] == pytest.approx(1e-4) and rates[0] == pytest.approx(1e-5) and max(rates) == pytest.approx(1e-4)
    np.testing.assert_allclose(np.diff(rates[10:]), -1e-4 / 90, rtol=1e-6)


def test_answer_loss_against_loops():
    logits, answer = torch.randn(3, 4), [2, 0, 3]
    total = 0.0
    for b in range(3):
        for a in range(4):
            p = 1 / (1 + math.exp(-logits[b, a].item()))
            total -= math.log(p if a == answer[b] else 1 - p)
    assert model.answer_loss(logits, torch.tensor(answer)).item() == pytest.approx(total / 3, rel=1e-5)


def test_pretraining_loss_counts_masked_words_of_matching_pairs():
    words, matching = torch.randn(2, 3, 7), torch.randn(2, 2)
    labels, matches = torch.tensor([[-100, 4, -100], [2, -100, 3]]), torch.tensor([1, 0])
    found = pretraining.pretraining_loss(words, matching, labels, matches)
    assert found[0].item() == pytest.approx(-words[0, 1].log_softmax(-1)[4].item(), rel=1e-5)
    expected = -(matching[0].log_softmax(-1)[1] + matching[1].log_softmax(-1)[0]) / 2
    assert found[1].item() == pytest.approx(expected.item(), rel=1e-5)
    none = torch.zeros(2, dtype=torch.long)
    assert pretraining.pretraining_loss(words, matching, labels, none)[0].item() == 0


def test_words_of_no_caption_stay_apart_in_pretraining():
    """They are never right, and a tied output would push all of them to one vector."""
    first, last = vocabulary.Vocabulary().absent
    net = pretraining.Pretraining(m3ae.M3AE(SMALL), (first, last))
    before = net.embedding.weight.detach().clone()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(3):
        found = net(torch.randn(2, 3, 16, 16), torch.tensor([[0, 70, 3, 2], [0, 3, 80, 2]]))
        labels = torch.tensor([[-100, -100, 71, -100], [-100, 72, -100, -100]])
        sum(pretraining.pretraining_loss(*found, labels, torch.ones(2, dtype=torch.long))).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(net.embedding.weight[first:last], before[first:last])
    assert not torch.equal(net.embedding.weight[last:], before[last:])
    net.absent = (0, 0)  # the output itself is tied to all words
    weight = net.embedding.weight.detach()
    text, _ = net.backbone.tokens(torch.zeros(1, 3, 16, 16), torch.tensor([[0, 70, 2]]))
    want = net.transform(text) @ weight.T + net.word_bias
    torch.testing.assert_close(net(torch.zeros(1, 3, 16, 16), torch.tensor([[0, 70, 2]]))[0], want)


def test_pairs_of_variants_start_alike_whatever_else_they_have():
    """Head and adapters by seed and name; the backbone as it was given."""
    weights = {name: value.clone() for name, value in network().backbone.state_dict().items()}
    words = vocabulary.Vocabulary(["a"], ["no", "yes"])
    values = {"image_size": 16, "patch": 8, "width": 16, "heads": 2, "vision_layers": 2, "language_layers": 2,
              "cross_layers": 2, "text_length": 18, "bottleneck": 4, "data": ".", "out": "."}  # fmt: skip
    words.words = [f"w{k:02d}" for k in range(SMALL.vocabulary - 68)]

    def drawn(variant, seed):
        config = configure(train.Config, train.PROFILES, train.VARIANTS, "smoke", variant, seed=seed, **values)
        return dict(builder.draw_added(builder.build_model(config, words, weights), seed).named_parameters())

    torch.manual_seed(1)
    full = drawn("full", 5)
    torch.manual_seed(2)
    for variant in ("head", "cross", "gen", "ft"):
        other = drawn(variant, 5)
        assert all(torch.equal(full[name], value) for name, value in other.items()), variant
    assert all(torch.equal(full[f"backbone.{name}"], value) for name, value in weights.items())
    another = drawn("full", 6)
    for name in ("head.0.weight", "backbone.fusion.0.down.weight", "backbone.fusion.1.attention.in_proj_weight",
                 "backbone.vision.encoder.layers.0.mlp.fc2.adapter.down.weight"):  # fmt: skip
        assert not torch.equal(full[name], another[name]) and full[name].std() > 0.01
    assert not full["backbone.fusion.0.up.weight"].any()


# --- audit -----------------------------------------------------------------------------------------------


def test_backbone_has_the_released_number_of_parameters():
    with torch.device("meta"):
        built = sum(parameter.numel() for parameter in m3ae.M3AE(m3ae.Sizes()).parameters())
    assert built + backbone.UNUSED_PARAMETERS == 344_771_584
    assert backbone.UNUSED_PARAMETERS == 25_337_344 + 590_592


@pytest.mark.parametrize(
    ("answers", "head", "printed"), [(498, 3_129_330, 0.90), (222, 2_705_118, 0.78), (7, 2_374_663, 0.68)]
)
def test_head_shares_are_the_printed_ones(answers, head, printed):
    found = audit.at_paper_sizes(audit.Setting("head"), answers)
    assert found.trained == head and round(found.share, 2) == printed


def test_adapter_counts_at_paper_sizes():
    gen = audit.at_paper_sizes(audit.Setting("adapters"), 498)
    fus = audit.at_paper_sizes(audit.Setting("adapters", fusion=True), 498)
    assert (gen.general, gen.fusion) == (8_129_152, 0)
    assert (fus.general, fus.fusion) == (8_129_152, 6 * (99_136 + 16_640))
    assert gen.trained == 3_129_330 + 8_129_152 + 4 * (768 * 768 + 768)
    assert fus.trained - gen.trained == 694_656
    assert round(fus.fusion_share, 2) == 0.20
    full = audit.at_paper_sizes(audit.Setting("full"), 498)
    assert full.trained == full.all_of_full == 344_771_584 + 3_129_330 and full.share == 100


def test_saved_bytes_on_meta_are_those_of_a_real_step():
    def build():
        net = model.M3AD(m3ae.M3AE(SMALL), 5)
        model.prepare_tuning(net, "adapters", fusion=True, bottleneck=4, fusion_heads=2)
        return net

    with torch.device("meta"):
        meta = build()
    real, abstract = audit.saved_bytes(build(), 3, 6), audit.saved_bytes(meta, 3, 6)
    assert abstract == pytest.approx(real, rel=0.1)  # another attention kernel keeps other small tensors


def test_saved_bytes_of_a_known_graph():
    class Known(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

    net = Known()
    x = torch.randn(10, 4)
    with audit.SavedBytes(net) as saved:
        hidden = x @ net.weight  # keeps x (not the parameter)
        loss = (hidden.exp() * 2).sum()  # keeps the result of exp
    assert loss.requires_grad and saved.total == 2 * 10 * 4 * 4


def test_audit_table_in_the_readme_is_what_the_command_prints(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(audit.audit_table, "__defaults__", (64, ("head", "full")))  # the others take longer
    evaluation.audit(tmp_path / "audit.csv")
    head, *table = list(csv.reader((tmp_path / "audit.csv").open(encoding="utf-8")))
    assert "14315506" in capsys.readouterr().out
    text = Path(evaluation.__file__).with_name("README.md").read_text("utf-8")
    block = text.split("<!-- audit -->")[1].split("<!-- /audit -->")[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block if not line.startswith("|---")]
    assert rows[0] == head and [row[0] for row in rows[1:]] == list(audit.AUDITED)
    assert all(row in rows for row in table)

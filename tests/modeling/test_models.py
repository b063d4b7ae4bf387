# SPDX-License-Identifier: Apache-2.0
"""Every host of text with norm flags: Auto classes, loading, start values, generation, what transformers promises."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    EncoderDecoderConfig,
    EncoderDecoderModel,
)

from ibnorm_hf import IBNorm, assert_norms, list_norms
from ibnorm_hf.modeling.create import get_spec
from ibnorm_hf.modeling.recognize import norm_name

from ..hosts import CAUSAL, HOSTS, IMAGES, TEXT, labels, shake

IDS = torch.arange(3, 23).view(2, 10)


NO_DROPOUT = {
    **{"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
    **{"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0},
}


def make_config(architecture, **flags):
    host = HOSTS[architecture]
    return AutoConfig.for_model(host.model_type, **{**host.sizes(), **flags})


def make_model(architecture, auto=None, **flags):
    """A model in eval mode whose norm weights are not at their initial values."""
    torch.manual_seed(0)
    auto = auto or HOSTS[architecture].language
    return shake(auto.from_config(make_config(architecture, **labels(auto), **flags)))


def make_vanilla(architecture):
    torch.manual_seed(0)
    host = HOSTS[architecture]
    return host.language.from_config(host.vanilla(**host.sizes())).eval()


def in_own_memory(model):
    """The model with its weights copied: mapped from a file they lie at other addresses, by which kernels may round."""
    for weight in model.parameters():
        weight.data = weight.data.clone()
    return model


def first_output(model, **inputs):
    # Of several choices, each is a sequence.
    ids = IDS[:, None].repeat(1, 3, 1) if type(model).__name__.endswith("ForMultipleChoice") else IDS
    with torch.no_grad():
        return model(ids, **inputs)[0]


@pytest.mark.parametrize(
    "architecture, auto",
    [(name, auto) for name, host in HOSTS.items() if name not in IMAGES for auto in host.heads],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_auto_round_trip_is_bit_equal(architecture, auto, tmp_path):
    model = make_model(architecture, auto, norm_type="ibnorm-t", norm_lambda=2)
    assert type(model).__name__.startswith("IBNorm")
    model.save_pretrained(tmp_path)
    again, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model) and not any(report[k] for k in ("missing_keys", "unexpected_keys"))
    assert_norms(again, "ibnorm-t")
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    assert torch.equal(first_output(in_own_memory(again.eval())), first_output(model))


@pytest.mark.parametrize("name", list_norms())
@pytest.mark.parametrize("architecture", TEXT)
def test_every_norm_trains_in_every_architecture(architecture, name):
    model = make_model(architecture, norm_type=name).train()
    assert {norm_name(m) for n, m in model.named_modules() if norm_name(m)} == {name}
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    assert math.isfinite(loss.item()) and all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("architecture", TEXT)
def test_vanilla_weights_give_vanilla_logits(architecture, tmp_path):
    host_norm = HOSTS[architecture].norm
    vanilla = make_vanilla(architecture)
    ours = HOSTS[architecture].language.from_config(make_config(architecture, norm_type=host_norm)).eval()
    ours.load_state_dict(vanilla.state_dict())
    assert torch.equal(first_output(ours), first_output(vanilla))
    vanilla.save_pretrained(tmp_path)
    loaded = type(ours).from_pretrained(tmp_path, norm_type=host_norm).eval()
    assert torch.equal(first_output(loaded), first_output(vanilla))


@pytest.mark.parametrize("architecture", TEXT)
def test_same_seed_gives_every_norm_the_same_linear_weights(architecture):
    def linear_weights(name):
        torch.manual_seed(0)
        model = HOSTS[architecture].language.from_config(make_config(architecture, norm_type=name))
        return {n: p for n, p in model.named_parameters() if p.dim() == 2}

    host = linear_weights(HOSTS[architecture].norm)
    for name, p in linear_weights("ibnorm-l").items():
        assert torch.equal(p, host[name]), name


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM])
def test_gpt2_scales_residual_projections_by_depth(auto):
    config = AutoConfig.for_model("ibnorm_gpt2", n_embd=128, n_layer=8, n_head=4, vocab_size=99)
    model = auto.from_config(config)
    stds = [p.std().item() for n, p in model.named_parameters() if n.endswith("c_proj.weight")]
    assert len(stds) == 16 and stds == pytest.approx([0.02 / 16**0.5] * 16, rel=0.1)


def drop_norms(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not any(part in k.lower() for part in ("norm", "ln_", "alpha"))}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def assert_initial(model):
    found = 0
    for name, p in model.named_parameters():
        if any(part in name for part in ("norm", "ln_")):
            found += 1
            expected = 0.5 if name.endswith("alpha") else 0.0 if name.endswith("bias") else 1.0
            assert torch.equal(p, torch.full_like(p, expected)), name
    assert found


MISSING = [(auto, name) for auto in (AutoModel, AutoModelForSequenceClassification) for name in ("ibnorm-l", "dyt")]
MISSING_IN = [(host, of.language, name) for host, of in TEXT.items() for name in list_norms()]
# OLMo 2 has no head that classifies.
MISSING_IN += [(host, auto, name) for host, of in TEXT.items() for auto, name in MISSING if auto in of.heads]


@pytest.mark.parametrize("architecture, auto, name", MISSING_IN, ids=str)
def test_missing_norm_weights_take_their_start_values(architecture, auto, name, tmp_path):
    model = make_model(architecture, norm_type=name)
    start = dict(norm_parameters(HOSTS[architecture].language.from_config(model.config)))
    with torch.no_grad():
        for _, p in norm_parameters(model):
            p.add_(3.0)
    model.save_pretrained(tmp_path)
    drop_norms(tmp_path)
    loaded = dict(norm_parameters(auto.from_pretrained(tmp_path)))
    assert loaded
    for n, p in loaded.items():
        if n.endswith(".down"):
            assert 0.01 < p.std() < 0.03  # noise, anew
        else:
            assert torch.equal(p, start[n]), n


def norm_parameters(model):
    """(path without the name of the base model, parameter) of everything inside norms."""
    for path, module in model.named_modules():
        if norm_name(module):
            short = path.removeprefix(f"{model.base_model_prefix}.")
            yield from ((f"{short}.{n}", p) for n, p in module.named_parameters())


def test_missing_norm_weights_inside_a_composite_model(tmp_path):
    """The outer class is vanilla, and so is the decoder's inner GPT2Model: neither knows our norms."""
    gpt2 = make_config("gpt2", add_cross_attention=True, is_decoder=True)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(make_config("llama"), gpt2)
    model = EncoderDecoderModel(config)
    assert sum(isinstance(m, IBNorm) for m in model.modules()) == 5 + 7
    with torch.no_grad():
        for p in model.parameters():
            p.add_(3.0)
    model.save_pretrained(tmp_path)
    drop_norms(tmp_path)
    assert_initial(EncoderDecoderModel.from_pretrained(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", TEXT)
def test_low_precision_loads(architecture, dtype, tmp_path):
    model = make_model(architecture)
    model.save_pretrained(tmp_path)
    low = HOSTS[architecture].language.from_pretrained(tmp_path, dtype=dtype, device_map="auto").eval()
    assert {p.dtype for p in low.parameters()} == {dtype}
    out = first_output(low)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), first_output(model), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("architecture", TEXT)
def test_sharded_checkpoint(architecture, tmp_path):
    model = make_model(architecture)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = HOSTS[architecture].language.from_pretrained(tmp_path).eval()
    assert torch.equal(first_output(again), first_output(model))


@pytest.mark.parametrize("architecture", TEXT)
def test_attention_implementations_agree(architecture):
    model = make_model(architecture)
    outputs = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        outputs.append(first_output(model))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_generation(architecture):
    model = make_model(architecture)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    uncached = model.generate(IDS, use_cache=False, **options)
    assert uncached.shape == (2, 18)
    assert torch.equal(model.generate(IDS, **options), uncached)
    assert torch.equal(model.generate(IDS, cache_implementation="static", **options), uncached)
    alone = model.generate(IDS[:1], **options)
    assert torch.equal(alone[0], uncached[0])
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), IDS[:1, :6]], 1)
    mask = (padded != 0).long()
    torch.testing.assert_close(
        model.generate(padded, attention_mask=mask, **options)[:, 10:], model.generate(IDS[:1, :6], **options)[:, 6:]
    )
    assert model.generate(IDS, num_beams=3, **options).shape == (2, 18)


@pytest.mark.parametrize("architecture", TEXT)
def test_checkpointing_gives_bit_equal_gradients(architecture):
    model = make_model(architecture, **NO_DROPOUT).train()

    def gradients():
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))


@pytest.mark.parametrize("architecture", TEXT)
def test_compiles_as_one_graph_with_labels(architecture):
    torch.compiler.reset()
    model = make_model(architecture, **NO_DROPOUT).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compiled(input_ids=IDS, labels=IDS).loss
    loss.backward()
    gradient = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    eager = model(IDS, labels=IDS).loss
    eager.backward()
    torch.testing.assert_close(loss, eager)
    for name, p in model.named_parameters():
        torch.testing.assert_close(gradient[name], p.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("architecture", TEXT)
def test_inherits_parallel_plans_and_ties(architecture):
    host = HOSTS[architecture]
    for plan in ("base_model_tp_plan", "base_model_pp_plan"):
        assert getattr(make_config(architecture), plan) == getattr(host.vanilla(**host.sizes()), plan)
    tied = make_model(architecture, tie_word_embeddings=True)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


@pytest.mark.parametrize("architecture", TEXT)
def test_parameter_counts_equal_the_hosts(architecture):
    assert make_model(architecture).num_parameters() == make_vanilla(architecture).num_parameters()


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"norm_lambda": 0}, "norm_lambda must be a finite number above 0, got 0"),
        ({"norm_lambda": -1}, "norm_lambda must be a finite number above 0, got -1"),
        ({"norm_lambda": math.nan}, "norm_lambda must be a finite number above 0, got nan"),
        ({"norm_type": "ibnrm_l"}, r"Unknown norm_type 'ibnrm-l'; known: .* Did you mean 'ibnorm-l'\?"),
        ({"norm_order": "standardise-first"}, r"Did you mean 'standardize-first'\?"),
        ({"norm_lamda": 3}, r"has no field 'norm_lamda'; did you mean 'norm_lambda'\?"),
        ({"norm_colour": 3}, "has no field 'norm_colour'; the norm flags are norm_type, "),
        ({"norm_type": "layernorm", "norm_lambda": 3}, "norm_lambda=3 has no meaning for 'layernorm'"),
    ],
)
def test_a_flag_outside_its_domain_is_one_clear_error(flags, message):
    with pytest.raises(ValueError, match=message):
        make_config("llama", **flags)


def test_flags_are_spelling_blind_and_survive_saving(tmp_path):
    config = make_config("llama", norm_type="IBNorm_S", norm_lambda=3, norm_order="Standardize_First")
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert (again.norm_type, again.norm_lambda, again.norm_order) == ("ibnorm-s", 3, "standardize-first")
    assert again.norm_affine is True and again.norm_bias is False


def test_pipeline():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, pipeline

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(99)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w2")
    generate = pipeline("text-generation", model=make_model("llama"), tokenizer=fast, device="cpu")
    out = generate("w5 w6", max_new_tokens=3, do_sample=False, return_full_text=False)
    assert isinstance(out[0]["generated_text"], str)


@pytest.mark.parametrize("name", [name for name in list_norms() if not get_spec(name).decayed])
def test_a_stock_trainer_decays_the_same_parameters_whatever_the_norm(name, tmp_path):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    vanilla = make_vanilla("gpt2")
    decayed = [
        Trainer(model=model, args=arguments).get_decay_parameter_names(model)
        for model in (vanilla, make_model("gpt2", norm_type=name))
    ]
    assert decayed[0] == decayed[1] and decayed[0] and not any("ln_" in n for n in decayed[0])

"""The language part: new tokens, LoRA, the loss over answers, and greedy generation."""

from __future__ import annotations

import copy
import json
import shutil
from functools import partial

import pytest
import torch
from test_models import CONVERSATIONS, parts
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from speechzoo.data import encode_batch
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaSM
from speechzoo.training.sharding import blocks
from speechzoo.types import AUDIO


@pytest.fixture(scope="module")
def llm(tiny_llm_dir) -> HFCausalLM:
    return HFCausalLM([], str(tiny_llm_dir)).eval()


@pytest.fixture(scope="module")
def rows() -> dict[str, torch.Tensor]:
    """A spoken two-turn row and a shorter text row, right padded with id 1, which is also supervised."""
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.tensor([[5, AUDIO, 40, 41, 1, 7, 42, 1], [5, 6, 43, 1, 1, 1, 1, 1]]),
        "attention_mask": torch.tensor([[1] * 8, [1] * 4 + [0] * 4]).bool(),
        "turns": torch.tensor([[0, 0, 1, 1, 1, 0, 2, 2], [0, 0, 1, 1, 0, 0, 0, 0]]),
        "speech": torch.randn(1, 3, 32, generator=generator),
        "speech_lens": torch.tensor([2]),
    }


def test_new_rows_start_at_the_mean_of_the_old(tiny_llm_dir, llm):
    table = llm.lm.get_input_embeddings().weight
    size = table.shape[0]
    grown = HFCausalLM([size, size + 1], str(tiny_llm_dir))
    assert grown.lm.get_input_embeddings().weight[:size].equal(table)
    for weight in (grown.lm.get_input_embeddings().weight, grown.lm.get_output_embeddings().weight):
        torch.testing.assert_close(weight[size:], weight[:size].mean(dim=0).expand(2, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(grown.new_embeddings, table.mean(dim=0).expand(2, -1), atol=1e-6, rtol=0)


def test_new_tokens_are_read_from_their_own_table(tiny_llm_dir, llm):
    size = llm.lm.get_input_embeddings().weight.shape[0]
    grown = HFCausalLM([size, size + 1], str(tiny_llm_dir))
    with torch.no_grad():
        grown.new_embeddings[1] = 7.0
    ids = torch.tensor([[3, size + 1, size, AUDIO]])
    got = grown.embed(ids)
    assert got[0, 0].equal(llm.embed(ids[:, :1])[0, 0])
    assert got[0, 1].equal(torch.full((32,), 7.0)) and got[0, 2].equal(grown.new_embeddings[0])
    got[0, :3].sum().backward()
    assert grown.new_embeddings.grad.equal(torch.ones(2, 32))
    learned = grown.lm.get_input_embeddings().weight.grad.abs().sum(dim=1).nonzero().flatten()
    assert learned.tolist() == [3]  # the pretrained table's own rows of the new ids never learn


def test_ids_inside_the_old_table_grow_nothing(tiny_llm_dir, llm):
    """Vocabularies are often padded: then the row that is there is where the token starts."""
    kept = HFCausalLM([9], str(tiny_llm_dir))
    assert kept.lm.get_input_embeddings().weight.shape == llm.lm.get_input_embeddings().weight.shape
    assert kept.new_embeddings[0].equal(llm.lm.get_input_embeddings().weight[9])


def test_lora_learns_in_float32_over_a_frozen_bfloat16_base(tiny_llm_dir, rows):
    size = AutoModelForCausalLM.from_pretrained(tiny_llm_dir).get_input_embeddings().weight.shape[0]
    torch.manual_seed(0)
    llm = HFCausalLM([size], str(tiny_llm_dir), dtype="bfloat16", lora={"r": 2}).train()
    learning = {n: p for n, p in llm.named_parameters() if p.requires_grad}
    frozen = [p for p in llm.parameters() if not p.requires_grad]
    assert all("lora_" in name or name == "new_embeddings" for name in learning) and "new_embeddings" in learning
    assert {p.dtype for p in learning.values()} == {torch.float32} and {p.dtype for p in frozen} == {torch.bfloat16}
    llm(**rows).loss_sum.backward()
    moved = [name for name, p in learning.items() if p.grad is not None and p.grad.any()]
    assert any("lora_B" in name for name in moved) and all(p.grad is None for p in frozen)


@torch.no_grad()
def test_lora_starts_as_the_base_itself(tiny_llm_dir, llm, rows):
    lora = HFCausalLM([], str(tiny_llm_dir), lora={"r": 2, "target_modules": ["q_proj"]}).eval()
    assert lora(**rows, logits=True).logits.equal(llm(**rows, logits=True).logits)
    assert all("q_proj" in n for n, p in lora.named_parameters() if p.requires_grad)


def test_unknown_lora_settings_and_targets_are_named(tiny_llm_dir):
    with pytest.raises(ValueError, match=r"llm\.lora: .*rnk.*\(settings of peft\.LoraConfig\)"):
        HFCausalLM([], str(tiny_llm_dir), lora={"rnk": 2})
    with pytest.raises(ValueError, match="nowhere_proj"):
        HFCausalLM([], str(tiny_llm_dir), lora={"target_modules": ["nowhere_proj"]})


@pytest.mark.parametrize("settings", [{"target_modules": ["q_proj", "v_porj"]}, {"modules_to_save": ["v_porj"]}])
def test_a_misspelt_layer_is_not_left_without_lora_in_silence(tiny_llm_dir, settings):
    with pytest.raises(ValueError, match=f"llm.lora.{next(iter(settings))}: no layer is called 'v_porj' .*q_proj"):
        HFCausalLM([], str(tiny_llm_dir), lora={"r": 2, **settings})
    named = {"target_modules": ["q_proj", "layers.1.self_attn.v_proj"], "modules_to_save": ["lm_head"]}
    assert sorted(HFCausalLM([], str(tiny_llm_dir), lora={"r": 2, **named}).lm.targeted_module_names) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"layers_to_transform": [1, 7]}, "layers_to_transform: no layer 7"),
        ({"layers_to_transform": 2}, ": Target modules .*'layers_to_transform': 2"),
        ({"rank_pattern": {"q_porj": 2}}, "rank_pattern: 'q_porj' is no layer with LoRA"),
        ({"alpha_pattern": {"k_proj": 2}}, "alpha_pattern: 'k_proj' is no layer with LoRA"),
        ({"exclude_modules": ["layers.1.self_attn"]}, "exclude_modules: no layer is called 'layers.1.self_attn'"),
        ({"exclude_modules": ".*v_porj"}, "exclude_modules: no layer is called '.*v_porj'"),
        ({"trainable_token_indices": [10_000]}, ": index 10000 is out of bounds"),
        ({"bias": "some"}, ": .*some"),
    ],
)
def test_settings_of_lora_that_would_do_nothing_are_told(tiny_llm_dir, settings, told):
    with pytest.raises(ValueError, match=rf"llm\.lora\.?{told}"):
        HFCausalLM([], str(tiny_llm_dir), lora={"r": 2, "target_modules": ["q_proj", "v_proj"], **settings})


def test_the_head_at_supervised_positions_only_gives_the_full_loss(tiny_llm_dir, rows):
    """Same sum, same gradients, with and without the logits of every position."""
    losses, grads = [], []
    for logits in (False, True):
        llm = HFCausalLM([], str(tiny_llm_dir)).eval()
        out = llm(**rows, logits=logits)
        out.loss_sum.backward()
        losses.append(out.loss_sum.detach())
        grads.append(llm.lm.get_input_embeddings().weight.grad)
        assert (out.logits is None) is not logits
    torch.testing.assert_close(losses[0], losses[1], atol=0, rtol=1e-6)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_loss_is_the_next_token_entropy_of_transformers(llm, rows):
    """Row by row on the spliced embeddings, with labels put on by hand."""
    total = 0.0
    spliced = llm.splice(**rows)
    labels = torch.tensor([[-100, -100, -100, 40, 41, 1, -100, 42, 1], [-100, -100, 43, 1] + [-100] * 5])
    for row in range(2):
        real = spliced.mask[row]
        out = llm.lm(inputs_embeds=spliced.embeds[row : row + 1, real], labels=labels[row : row + 1, real])
        total += float(out.loss) * int((labels[row] >= 0).sum())
    got = llm(**rows)
    assert got.labels.equal(labels)
    assert float(got.loss_sum) == pytest.approx(total, rel=1e-5)


def argmax_loop(llm: HFCausalLM, ids: list[int], speech: torch.Tensor, steps: int) -> list[int]:
    """Greedy decoding without a cache: the definition."""
    new: list[int] = []
    for _ in range(steps):
        row = torch.tensor([ids + new])
        lens = torch.full((len(speech),), speech.shape[1])
        out = llm(row, torch.ones_like(row).bool(), torch.zeros_like(row), speech, lens, loss=False, logits=True)
        new.append(int(out.logits[0, -1].argmax()))
    return new


@torch.no_grad()
def test_generation_is_the_greedy_loop_and_ends_at_stop_ids(llm, rows):
    speech = rows["speech"][:, :2]
    none = torch.zeros(0, 2, llm.dim)
    expected = [argmax_loop(llm, [5, AUDIO, 40, 8], speech, 7), argmax_loop(llm, [5, 6], none, 7)]
    ids = torch.tensor([[5, AUDIO, 40, 8], [1, 1, 5, 6]])
    batch = (ids, torch.tensor([[1] * 4, [0, 0, 1, 1]]).bool(), speech, torch.tensor([2]))
    free = llm.generate(*batch, max_new_tokens=7, eos_token_id=[])
    assert [row.tolist() for row in free] == expected

    stop = expected[0][3]
    for given in (stop, [stop, expected[1][1]]):
        stops = [given] if isinstance(given, int) else given
        want = [row[: next((at + 1 for at, token in enumerate(row) if token in stops), 7)] for row in expected]
        got = llm.generate(*batch, max_new_tokens=7, eos_token_id=given)
        assert [row.tolist() for row in got] == want
        assert want[0][-1] in stops and len(want[0]) < 7


@torch.no_grad()
def test_sampling_settings_of_a_checkpoint_do_not_make_answers_random(llm, rows, monkeypatch):
    config = llm.lm.generation_config
    monkeypatch.setattr(config, "do_sample", True)
    monkeypatch.setattr(config, "temperature", 5.0)
    ids = torch.tensor([[5, 6]])
    batch = (ids, torch.ones_like(ids).bool(), torch.zeros(0, 1, llm.dim), torch.zeros(0).long())
    answer = llm.generate(*batch, max_new_tokens=6, eos_token_id=[])[0].tolist()
    assert answer == argmax_loop(llm, [5, 6], torch.zeros(0, 1, llm.dim), 6)


def test_clips_and_placeholders_have_to_match(llm, rows):
    with pytest.raises(ValueError, match="1 audio placeholders in the batch, but 2 clips"):
        llm(**{**rows, "speech": torch.zeros(2, 3, 32), "speech_lens": torch.tensor([2, 2])})


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_llm_computes_the_same(tiny_llm_dir, rows, dtype):
    """In float32 its states are those of the same weights with LoRA beside them; in bfloat16 they are as near to them
    as those of the unmerged LLM in bfloat16 are."""
    size = AutoModelForCausalLM.from_pretrained(tiny_llm_dir).get_input_embeddings().weight.shape[0]
    lora = {"r": 2, "init_lora_weights": False}
    torch.manual_seed(0)
    llm = HFCausalLM([size], str(tiny_llm_dir), dtype="bfloat16", lora=lora, attn_implementation="eager").eval()
    wide = copy.deepcopy(llm).float()
    expected = wide(**rows).hidden
    rounding = (llm(**rows).hidden - expected).abs().mean()
    with wide.lm.disable_adapter():
        assert (wide(**rows).hidden - expected).abs().mean() > 10 * rounding  # LoRA is no small thing here
    llm.merge(dtype)
    assert {weight.dtype for weight in llm.parameters()} == {dtype}
    assert not any("lora" in name for name, _ in llm.named_parameters())
    assert llm.lm.config._attn_implementation == "sdpa"
    # torch's SDPA on a CPU takes exponentials with fewer digits.
    bound = 1e-5 if dtype == torch.float32 else 2 * rounding
    assert (llm(**rows).hidden - expected).abs().mean() < bound


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gemma2", {"final_logit_softcapping": 1.0, "head_dim": 16}),
        ("gemma3_text", {"final_logit_softcapping": 1.0, "head_dim": 16}),
        ("cohere", {"logit_scale": 0.0625}),
        ("granite", {"logits_scaling": 8.0}),
        ("nanochat", {"final_logit_softcapping": 1.0}),
        ("recurrent_gemma", {"logits_soft_cap": 1.0}),
        ("hyperclovax", {"logits_scaling": 8.0}),
    ],
)
def test_scaled_and_capped_logits_are_those_of_the_llm_itself(kind, settings, tmp_path):
    if kind not in CONFIG_MAPPING:  # of another release
        pytest.skip(f"transformers has no {kind}")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **heads, **special, **settings))
    for weight in theirs.parameters():
        weight.data *= 3  # far enough from 0 to be bent
    theirs.eval().save_pretrained(tmp_path)
    ours = HFCausalLM([], str(tmp_path)).eval()
    ids = torch.arange(3, 15)[None]
    turns = (ids > 6).long()
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids).bool(), "turns": turns}
    none = {"speech": torch.zeros(0, 1, 32), "speech_lens": torch.zeros(0, dtype=torch.long)}
    with torch.no_grad():
        wanted = theirs(input_ids=ids, labels=ids.masked_fill(turns == 0, -100))
        got, alone = ours(**row, **none, logits=True), ours(**row, **none)
    torch.testing.assert_close(got.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.unembed(got.hidden), wanted.logits, rtol=1e-4, atol=1e-5)
    for loss in (got.loss_sum, alone.loss_sum):
        torch.testing.assert_close(loss / int(turns.sum()), wanted.loss, rtol=1e-5, atol=0)
    plain = ours.head(got.hidden)
    assert not torch.allclose(plain, wanted.logits, rtol=0.02, atol=0.02)  # the head's own would have been wrong


SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}


def test_new_tokens_begin_as_their_llm_reads_them(tmp_path):
    """Gemma's table scales what it looks up; a row of its own that is not would begin far too small."""
    heads = {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = AutoConfig.for_model("gemma3_text", **SMALL, **heads, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    llm, ids = HFCausalLM([64, 65], str(tmp_path)), torch.tensor([5, 64, 65])
    assert llm.embed(ids).equal(llm.lm.get_input_embeddings()(ids))


def test_a_recurrent_llm_answers_rows_of_any_length_together(tmp_path):
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **SMALL, state_size=8))
    for weight in lm.parameters():
        weight.data = torch.randn_like(weight) * 0.3 if weight.dim() > 1 else weight.data
    lm.save_pretrained(tmp_path)
    llm = HFCausalLM([], str(tmp_path)).eval()
    none = torch.zeros(0, 1, 32), torch.zeros(0, dtype=torch.long)
    ids = torch.randint(3, 64, (2, 9))
    mask = torch.arange(9) >= torch.tensor([[0], [4]])
    options = {"max_new_tokens": 8, "eos_token_id": []}
    for row, said in enumerate(llm.generate(ids, mask, *none, **options)):
        alone = ids[row : row + 1, mask[row]]
        (wanted,) = llm.generate(alone, torch.ones_like(alone).bool(), *none, **options)
        assert said.equal(wanted)
        whole = torch.cat([alone[0], said])
        for end in range(alone.shape[1], len(whole)):  # without any cache
            assert llm.lm(input_ids=whole[None, :end], use_cache=False).logits[0, -1].argmax() == whole[end]


def test_an_llm_that_could_not_answer_is_refused_before_it_learns(tmp_path):
    config = AutoConfig.for_model("xlnet", vocab_size=64, d_model=32, n_layer=1, n_head=2, d_inner=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a XLNetLMHeadModel has a cache of its own kind"):
        HFCausalLM([], str(tmp_path))


def test_a_frozen_llm_that_is_recomputed_drops_nothing(tiny_llm_dir, tiny_whisper_pt, tmp_path):
    shutil.copytree(tiny_llm_dir, tmp_path / "llm")
    file = tmp_path / "llm" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "attention_dropout": 0.5}))
    llm = partial(HFCausalLM, model=str(tmp_path / "llm"), gradient_checkpointing=True)
    model = LLaSM(**parts(tiny_llm_dir, tiny_whisper_pt, freeze=["^encoder\\.", "^llm\\."], llm=llm))
    model.configure_model()
    batch = encode_batch(model.prompt, CONVERSATIONS, True, "right")
    wanted = model.eval()(batch).losses["lm"]
    run = []
    for layer in blocks(model.llm):
        layer.input_layernorm.register_forward_hook(lambda *_: run.append(1))
    loss = model.train()(batch).losses["lm"]
    forward = len(run)
    loss.backward()
    torch.testing.assert_close(loss, wanted)
    assert len(run) == 2 * forward  # and computed once more

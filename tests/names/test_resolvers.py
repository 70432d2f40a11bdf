"""Configurations follow the CPU: bfloat16 only where it is fast."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tiny_runs import printed, write_config

from speechzoo.names.recipes import recipe
from speechzoo.names.resolvers import register_resolvers

TEXT = "trainer: {precision: '${cpu:precision}'}\nmodel: {init_args: {llm: {init_args: {dtype: '${cpu:dtype}'}}}}\n"


@pytest.mark.parametrize(
    ("capability", "precision", "dtype"),
    [
        ("AVX512", "bf16-mixed", "bfloat16"),
        ("AVX512_VNNI", "bf16-mixed", "bfloat16"),
        ("AVX2", "32-true", "float32"),
        ("DEFAULT", "32-true", "float32"),
    ],
)
def test_precision_follows_the_cpu(
    tmp_path, tiny_llm_dir, tiny_whisper_pt, manifest, monkeypatch, capability: str, precision: str, dtype: str
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    config = write_config(tmp_path / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)
    (tmp_path / "cpu.yaml").write_text(TEXT)
    settings = printed("fit", "-c", config, "-c", tmp_path / "cpu.yaml")
    assert settings["trainer"]["precision"] == precision
    assert settings["model"]["init_args"]["llm"]["init_args"]["dtype"] == dtype
    forced = printed("fit", "-c", config, "-c", tmp_path / "cpu.yaml", "--trainer.precision=bf16-mixed")
    assert forced["trainer"]["precision"] == "bf16-mixed"


def test_an_unknown_setting_is_named() -> None:
    register_resolvers()
    with pytest.raises(OmegaConfBaseException, match=r"only \$\{cpu:precision\} and \$\{cpu:dtype\} are known"):
        OmegaConf.to_container(OmegaConf.create({"a": "${cpu:speed}"}), resolve=True)


@pytest.mark.parametrize("name", ["llasm_pretrain", "llasm_finetune", "llama_omni_stage1", "llama_omni_stage2"])
def test_the_small_recipes_use_it(name: str) -> None:
    text = recipe(f"quickstart/{name}.yaml").read_text()
    assert "precision: ${cpu:precision}" in text and "dtype: ${cpu:dtype}" in text


@pytest.mark.parametrize(
    ("mode", "sweep", "expected"),
    [
        (None, None, "offline"),
        (None, "abc", "online"),  # a trial of `wandb agent`, which reports to the server
        ("disabled", "abc", "disabled"),
        ("online", None, "online"),
        ("", None, "offline"),
    ],
)
def test_wandb_is_online_for_its_own_agent(tmp_path, monkeypatch, mode, sweep, expected: str) -> None:
    for name, value in (("WANDB_MODE", mode), ("WANDB_SWEEP_ID", sweep)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    register_resolvers()
    assert OmegaConf.create({"mode": "${wandb:mode}"}).mode == expected
    with pytest.raises(OmegaConfBaseException, match=r"only \$\{wandb:mode\} is known"):
        OmegaConf.to_container(OmegaConf.create({"a": "${wandb:key}"}), resolve=True)


def test_no_small_recipe_forces_a_mode() -> None:
    for path in recipe("quickstart/vocoder.yaml").parent.glob("*.yaml"):
        assert "mode: ${wandb:mode}" in path.read_text(), path
